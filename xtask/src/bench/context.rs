//! The context bench: which systems, what its rows are of what they said, what must hold, and what is assumed.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use super::report::{Report, Row, median};
use super::{Place, Run};

/// Ethernet, IPv4 and UDP: what a frame has beside its UDP payload.
const HEADERS_BYTES: f64 = 42.0;
/// What Pilot promises: tokens handed over for each token of content, and the UDP payload, in bytes, of the datagram that
/// carries a change of 27.
const TOKENS_MAX: f64 = 1.1;
const DATAGRAM_BYTES_MAX: f64 = 75.0;
/// The part of the pipeline that comes after the hand-overs, as the bench's program calls it.
const FOLLOW_UPS: &str = "follow-ups";

/// Said beside the figures, in the report.
pub(super) const ASSUMPTIONS: &[&str] = &[
    "Agents are scripts that hand over a fixed corpus (benches/corpus); no language model takes part. Tokens are those of o200k_base.",
    "Each agent is a thread of one process, in a network namespace of its own, on one bridge; all share the machine's cores.",
    "Content is, for each agent, the tokens of what others made and it had not been given before, counted piece by piece.",
    "Handed over is the text inside of what arrives, without the envelope of the protocol: re-sending arms are charged the report and the facts, the others also the lines in which changes are written.",
    "Re-sending arms send the report and the facts whole at every step, to an agent that keeps nothing; their answers are short. Whoever keeps conversations over HTTP saves what websocket-patches saves.",
    "websocket-patches and pilot keep what is shared at the researcher's and send changes; agents keep their conversations. Both work on the same report and facts.",
    "The three hand-overs are of the researcher to the writer, of the writer to the reviewer and back to the researcher. 50 follow-ups go from the researcher to both others, one after the other.",
    "Bytes on the wire are what the agents' devices sent, with all headers, connections, handshakes, acknowledgements and address resolution; segments are made before they are counted. MTU 1500, no loss, no delay but the machine's.",
    "Payload and messages are the applications' own; Pilot's are computed from docs/context.md. Round trips are those that somebody waits for: of connecting, of asking. They are counted by what the protocols say, and not measured.",
    "Time is from handing over to the last agent's having it. CPU is of the whole process, with the applications' parsing, until 80 ms after each part. Pilot's workers spin for 50 µs before they sleep.",
    "Everything is encrypted: TLS 1.3 by rustls with aws-lc-rs, TCP_NODELAY, connections kept open. Pilot's handshake is hybrid post-quantum.",
    "Polling: an interval is 10 ms, and something changes in 1.5 % of them; the delay of short polling grows with the interval, the others' does not. A long poll ends after 100 intervals. Handshakes are not counted there.",
];

/// What is run in every round.
pub(super) fn runs(quick: bool) -> Vec<Run> {
    let pipeline = ["http-json", "a2a-json-rpc", "grpc", "websocket", "websocket-patches", "pilot", "pilot-udp"];
    let changes = ["short-polling", "long-polling", "server-sent-events", "pilot", "pilot-udp"];
    // Ten seconds, or four.
    let stream: &[&str] = if quick { &["changes", "--intervals", "400"] } else { &["changes", "--intervals", "1000"] };
    let run = |words: &[&str], name: &'static str| Run {
        name,
        words: words.iter().chain(&["--system", name]).map(|word| (*word).to_owned()).collect(),
        place: Place::Fabric { steered: name.starts_with("pilot") },
    };
    let pipeline = pipeline.into_iter().map(|name| run(&["pipeline"], name));
    pipeline.chain(changes.into_iter().map(|name| run(stream, name))).collect()
}

#[derive(Deserialize)]
struct Pipeline {
    system: String,
    parts: Vec<Part>,
    notes: Value,
}

#[derive(Deserialize)]
struct Part {
    part: String,
    tokens: [u64; 3],
    content_tokens: u64,
    messages: u64,
    payload_bytes: u64,
    round_trips: u64,
    wire_bytes: u64,
    time_us: u64,
    cpu_us: u64,
}

#[derive(Deserialize)]
struct Changes {
    system: String,
    changes: u64,
    responses: u64,
    empty_responses: u64,
    wire_bytes: u64,
    cpu_us: u64,
    delays_us: Vec<u64>,
    /// Packets and bytes that the source sent for each change.
    sent: Vec<[u64; 2]>,
}

/// A row's metric and unit, and its value of one run.
type Metric<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

const OF_PIPELINE: &[Metric<Pipeline>] = &[
    ("pipeline_tokens_per_content_token", "ratio", |run| Some(tokens(run, |_| true) / content(run, |_| true))),
    ("handover_tokens_per_content_token", "ratio", |run| Some(tokens(run, is_handover) / content(run, is_handover))),
    ("pipeline_tokens", "tokens", |run| Some(tokens(run, |_| true))),
    ("pipeline_content_tokens", "tokens", |run| Some(content(run, |_| true))),
    ("pipeline_wire_bytes", "bytes", |run| Some(sum(run, |_| true, |part| part.wire_bytes))),
    ("handover_wire_bytes", "bytes", |run| Some(sum(run, is_handover, |part| part.wire_bytes))),
    ("pipeline_payload_bytes", "bytes", |run| Some(sum(run, |_| true, |part| part.payload_bytes))),
    ("pipeline_messages", "messages", |run| Some(sum(run, |_| true, |part| part.messages))),
    ("pipeline_round_trips", "round trips", |run| Some(sum(run, |_| true, |part| part.round_trips))),
    ("pipeline_time_ms", "ms", |run| Some(sum(run, |_| true, |part| part.time_us) / 1e3)),
    ("pipeline_cpu_ms", "ms", |run| Some(sum(run, |_| true, |part| part.cpu_us) / 1e3)),
    // Of Pilot alone, whose engine counts by cause: together they are all that the devices sent.
    ("wire_handshake_bytes", "bytes", |run| sent(run, "handshakes")),
    ("wire_mtu_probe_bytes", "bytes", |run| sent(run, "mtu_probes")),
    ("wire_ack_bytes", "bytes", |run| sent(run, "acks")),
    ("wire_message_bytes", "bytes", |run| sent(run, "data").map(|_| sum(run, |_| true, |part| part.payload_bytes))),
    ("wire_message_overhead_bytes", "bytes", |run| {
        Some(sent(run, "data")? - sum(run, |_| true, |part| part.payload_bytes))
    }),
    ("wire_other_bytes", "bytes", |run| {
        let counted = ["handshakes", "mtu_probes", "acks", "data"].map(|cause| sent(run, cause));
        Some(sum(run, |_| true, |part| part.wire_bytes) - counted.into_iter().sum::<Option<f64>>()?)
    }),
];

const OF_CHANGES: &[Metric<Changes>] = &[
    ("empty_responses_percent", "%", |run| Some(100.0 * run.empty_responses as f64 / run.responses.max(1) as f64)),
    ("change_delay_ms", "ms", |run| {
        let mut delays: Vec<f64> = run.delays_us.iter().map(|us| *us as f64 / 1e3).collect();
        delays.sort_by(f64::total_cmp);
        Some(median(&delays))
    }),
    ("change_delay_max_ms", "ms", |run| run.delays_us.iter().max().map(|us| *us as f64 / 1e3)),
    ("change_wire_bytes", "bytes", |run| Some(run.wire_bytes as f64 / run.changes as f64)),
    ("change_cpu_ms", "ms", |run| Some(run.cpu_us as f64 / 1e3 / run.changes as f64)),
    ("change_packets", "packets", |run| run.sent.iter().map(|[packets, _]| *packets as f64).reduce(f64::max)),
    ("change_datagram_bytes", "bytes", |run| {
        // Where one packet left, it is the one that carried the change.
        let alone = run.sent.iter().filter(|[packets, _]| *packets == 1 && run.system.starts_with("pilot"));
        alone.map(|[_, bytes]| *bytes as f64 - HEADERS_BYTES).reduce(f64::max)
    }),
];

fn is_handover(part: &Part) -> bool {
    part.part != FOLLOW_UPS
}

fn sum(run: &Pipeline, which: impl Fn(&Part) -> bool, of: impl Fn(&Part) -> u64) -> f64 {
    run.parts.iter().filter(|part| which(part)).map(of).sum::<u64>() as f64
}

fn tokens(run: &Pipeline, which: impl Fn(&Part) -> bool) -> f64 {
    sum(run, which, |part| part.tokens.iter().sum())
}

fn content(run: &Pipeline, which: impl Fn(&Part) -> bool) -> f64 {
    sum(run, which, |part| part.content_tokens)
}

/// Bytes of frames that the agents' engines sent for a cause, if they say it: of datagrams and their UDP payload bytes.
fn sent(run: &Pipeline, cause: &str) -> Option<f64> {
    let others = run.notes["others"].as_array().into_iter().flatten();
    let frames = std::iter::once(&run.notes).chain(others).map(|agent| {
        let [datagrams, bytes] = [0, 1].map(|at| agent["sent"][cause][at].as_f64());
        Some(datagrams? * HEADERS_BYTES + bytes?)
    });
    frames.sum()
}

/// The rows of what all runs said.
pub(super) fn rows(raw: &[Value]) -> Result<Vec<Row>> {
    let mut rows = of_bench(raw, "pipeline", |run: &Pipeline| &run.system, OF_PIPELINE)?;
    rows.extend(of_bench(raw, "changes", |run: &Changes| &run.system, OF_CHANGES)?);
    Ok(rows)
}

fn of_bench<T: for<'a> Deserialize<'a>>(
    raw: &[Value],
    bench: &str,
    system: impl Fn(&T) -> &String,
    metrics: &[Metric<T>],
) -> Result<Vec<Row>> {
    let said = raw.iter().filter(|run| run["bench"] == bench).map(|run| serde_json::from_value(run.clone()));
    let runs: Vec<T> = said.collect::<Result<_, _>>().with_context(|| format!("what {bench} said"))?;
    let mut systems: Vec<&String> = Vec::new();
    for run in &runs {
        if !systems.contains(&system(run)) {
            systems.push(system(run));
        }
    }
    let mut rows = Vec::new();
    for (metric, unit, value) in metrics {
        for name in &systems {
            let values: Vec<f64> = runs.iter().filter(|run| system(run) == *name).filter_map(value).collect();
            rows.extend(Row::of(metric, name, unit, &values));
        }
    }
    Ok(rows)
}

/// What Pilot promises and this run does not show. These are counts: they do not depend on how busy the machine is.
pub(super) fn failures(report: &Report) -> Vec<String> {
    let promises = [
        ("pipeline_tokens_per_content_token", TOKENS_MAX),
        ("empty_responses_percent", 0.0),
        ("change_datagram_bytes", DATAGRAM_BYTES_MAX),
    ];
    let mut failures = Vec::new();
    for (metric, most) in promises {
        for system in ["pilot", "pilot-udp"] {
            match report.row(metric, system) {
                Some(row) if row.max <= most => {}
                Some(row) => failures.push(format!("{metric} of {system}: {}, promised: at most {most}", row.max)),
                None => failures.push(format!("{metric} of {system}: not measured")),
            }
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(part: &str, tokens: u64, content_tokens: u64) -> Value {
        json!({
            "part": part, "tokens": [0, tokens, 1], "content_tokens": content_tokens, "messages": 2, "payload_bytes": 30,
            "round_trips": 3, "wire_bytes": 100, "time_us": 1500, "cpu_us": 2500,
        })
    }

    fn raw(system: &str, empty: u64, sent: Value) -> Vec<Value> {
        let parts = [part("researcher to writer", 99, 50), part(FOLLOW_UPS, 199, 25)];
        let one = json!({"handshakes": [1, 3], "mtu_probes": [0, 0], "acks": [0, 0], "data": [1, 50]});
        let notes = json!({"sent": one, "others": [{"sent": {"handshakes": [0, 0], "mtu_probes": [0, 0], "acks": [1, 8], "data": [0, 0]}}]});
        vec![
            json!({"bench": "pipeline", "system": system, "parts": parts, "notes": notes}),
            json!({
                "bench": "changes", "system": system, "changes": 2, "responses": 4, "empty_responses": empty,
                "wire_bytes": 600, "cpu_us": 4000, "delays_us": [3000, 1000], "sent": sent, "notes": null,
            }),
        ]
    }

    #[test]
    fn rows_are_sums_and_ratios_of_what_was_said() {
        let rows = rows(&raw("pilot", 1, json!([[1, 117], [2, 250]]))).unwrap();
        let value = |metric: &str| rows.iter().find(|row| row.metric == metric).unwrap().median;
        assert_eq!(value("pipeline_tokens_per_content_token"), 300.0 / 75.0);
        assert_eq!(value("handover_tokens_per_content_token"), 100.0 / 50.0);
        assert_eq!((value("pipeline_wire_bytes"), value("handover_wire_bytes")), (200.0, 100.0));
        assert_eq!((value("wire_handshake_bytes"), value("wire_ack_bytes")), (45.0, 50.0));
        assert_eq!((value("wire_message_bytes"), value("wire_message_overhead_bytes")), (60.0, 32.0));
        assert_eq!((value("wire_mtu_probe_bytes"), value("wire_other_bytes")), (0.0, 13.0));
        assert_eq!((value("pipeline_time_ms"), value("pipeline_cpu_ms")), (3.0, 5.0));
        assert_eq!(value("empty_responses_percent"), 25.0);
        assert_eq!((value("change_delay_ms"), value("change_delay_max_ms")), (2.0, 3.0));
        assert_eq!(value("change_wire_bytes"), 300.0);
        assert_eq!((value("change_datagram_bytes"), value("change_packets")), (75.0, 2.0));
    }

    #[test]
    fn what_is_promised_and_not_shown_is_a_failure() {
        let report = |runs: &[Value]| Report::new(rows(runs).unwrap(), Value::Null, ASSUMPTIONS);
        let short = [raw("pilot", 0, json!([[1, 117]])), raw("pilot-udp", 0, json!([[1, 118]]))].concat();
        let failures = failures(&report(&short));
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert!(failures[0].contains("pilot: 4, promised: at most 1.1"), "{failures:?}");
        assert!(failures[2].contains("change_datagram_bytes of pilot-udp: 76"), "{failures:?}");
        let failures = super::failures(&report(&raw("pilot", 1, json!([]))));
        assert!(failures.iter().any(|failure| failure == "empty_responses_percent of pilot: 25, promised: at most 0"));
        assert!(failures.iter().any(|failure| failure == "change_datagram_bytes of pilot: not measured"));
    }

    #[test]
    fn a_run_that_says_something_else_is_an_error() {
        assert!(rows(&[json!({"bench": "pipeline", "system": "pilot"})]).is_err());
    }
}
