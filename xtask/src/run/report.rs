//! What a run found: the JSON object, the same in words, and what about it is wrong.

use std::fmt;

use serde::Serialize;

use super::agents::Shared;
use super::pilot::{Datapath, Engine, Ping, Sending, Sent, Xdp};
use crate::udp_echo::RoundTrips;

/// The most bytes of UDP payload that a delta of 19 bytes may cost: the protocol's promise.
const WIRE_BYTES_MAX: u64 = 50;

/// The result of a run. Counters are those of the receiving node, b.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    datapath: Datapath,
    aead: String,
    handshake_us: f64,
    delta: Delta,
    bulk: Bulk,
    xdp: Xdp,
    engine: Engine,
    udp_echo: Echo,
    context: Shared,
}

#[derive(Debug, Serialize)]
struct Delta {
    payload_bytes: u64,
    wire_bytes: u64,
    wire_bytes_mean: f64,
    count: u64,
    lost: u64,
    p50_us: f64,
    p99_us: f64,
    #[serde(skip)]
    retransmitted: u64,
}

#[derive(Debug, Serialize)]
struct Bulk {
    bytes: u64,
    gbit_s: f64,
    sha256_ok: bool,
    retransmitted: u64,
    /// The changes of path on the way, in their order; empty: all went the first way.
    paths: Vec<Sending>,
}

#[derive(Debug, Serialize)]
struct Echo {
    p50_us: f64,
    p99_us: f64,
}

/// What the run collected before it becomes a [`Report`].
#[derive(Debug)]
pub(crate) struct Findings {
    /// Node b's datapath, as it was last.
    pub(crate) datapath_b: Datapath,
    pub(crate) ping: Ping,
    pub(crate) sent: Sent,
    /// What `pilot send` said about the path it sends over.
    pub(crate) paths: Vec<Sending>,
    /// SHA-256 of the file that was sent and of the one that arrived, in hexadecimal.
    pub(crate) sha256: [String; 2],
    pub(crate) xdp: Option<Xdp>,
    pub(crate) engine: Engine,
    pub(crate) echo: RoundTrips,
    pub(crate) context: Shared,
}

impl From<Findings> for Report {
    fn from(found: Findings) -> Self {
        let Findings { datapath_b, ping, sent, paths, sha256, xdp, engine, echo, context } = found;
        // Traffic went through AF_XDP only if it did at both ends; otherwise the end that explains why not counts.
        let datapath = if datapath_b.kind == "xdp" { ping.datapath } else { datapath_b };
        Self {
            datapath,
            aead: ping.aead,
            handshake_us: ping.handshake_us,
            delta: Delta {
                payload_bytes: ping.payload_bytes,
                wire_bytes: ping.wire_bytes,
                wire_bytes_mean: ping.wire_bytes_mean,
                count: ping.count,
                lost: ping.lost,
                p50_us: ping.p50_us,
                p99_us: ping.p99_us,
                retransmitted: ping.retransmitted,
            },
            bulk: Bulk {
                bytes: sent.bytes,
                gbit_s: sent.gbit_s,
                sha256_ok: sent.sha256_ok && sent.sha256 == sha256[0] && sha256[0] == sha256[1],
                retransmitted: sent.retransmitted,
                paths,
            },
            xdp: xdp.unwrap_or_default(),
            engine,
            udp_echo: Echo { p50_us: echo.p50_us, p99_us: echo.p99_us },
            context,
        }
    }
}

impl Report {
    /// What did not go as it must, a sentence each; empty when all is well.
    pub(crate) fn failures(&self, asked_count: u64, asked_bytes: u64) -> Vec<String> {
        let Self { datapath, delta, bulk, engine, context, .. } = self;
        let mut failures = context.failures();
        if delta.lost > 0 || delta.count != asked_count {
            failures.push(format!(
                "{} of {asked_count} deltas were sent, {} of them never answered",
                delta.count, delta.lost
            ));
        }
        if delta.wire_bytes > WIRE_BYTES_MAX {
            failures.push(format!("a delta costs {} bytes, allowed are {WIRE_BYTES_MAX}", delta.wire_bytes));
        }
        if bulk.bytes != asked_bytes || !bulk.sha256_ok {
            failures.push(format!(
                "the file that arrived is not the one that was sent ({} of {asked_bytes} bytes sent)",
                bulk.bytes
            ));
        }
        if datapath.kind == "xdp" && engine.opened_from_udp > 0 {
            failures.push(format!("{} datagrams came through the kernel's UDP socket", engine.opened_from_udp));
        }
        // Only bulk may take another way, and is told.
        if engine.rx_bulk > 0 && !bulk.paths.iter().any(|path| path.bulk) {
            failures.push(format!("{} datagrams came to b's bulk port, and a never said why", engine.rx_bulk));
        }
        failures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { datapath, aead, handshake_us, delta, bulk, xdp, engine, udp_echo, context } = self;
        let words: Vec<&str> = [Some(datapath.kind.as_str()), datapath.mode.as_deref(), datapath.attach.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        writeln!(f, "datapath    {}: {}", words.join(", "), datapath.reason)?;
        writeln!(f, "handshake   {handshake_us:.0} µs, {aead}")?;
        writeln!(
            f,
            "deltas      {} of {} bytes, each answered by b's application: {} lost, {} packets retransmitted",
            thousands(delta.count),
            delta.payload_bytes,
            thousands(delta.lost),
            thousands(delta.retransmitted)
        )?;
        writeln!(
            f,
            "            {} bytes of UDP payload carry one, {:.1} with acks",
            delta.wire_bytes, delta.wire_bytes_mean
        )?;
        writeln!(f, "            round trip p50 {:.1} µs, p99 {:.1} µs", delta.p50_us, delta.p99_us)?;
        writeln!(
            f,
            "            plain UDP echo of as many bytes: p50 {:.1} µs, p99 {:.1} µs",
            udp_echo.p50_us, udp_echo.p99_us
        )?;
        writeln!(
            f,
            "file        {} bytes at {:.2} Gbit/s, {} packets retransmitted, SHA-256 {}",
            thousands(bulk.bytes),
            bulk.gbit_s,
            thousands(bulk.retransmitted),
            if bulk.sha256_ok { "equal on both sides" } else { "DIFFERS" }
        )?;
        for path in &bulk.paths {
            let way = if path.bulk { "over the bulk path (UDP, segmentation offload)" } else { "over the first path" };
            writeln!(f, "            {way}, because {}", path.why)?;
        }
        // Without a program there is nothing that could have counted.
        if datapath.kind == "xdp" || xdp.redirected > 0 {
            writeln!(
                f,
                "XDP at b    {} packets redirected, {} passed, {} dropped",
                thousands(xdp.redirected),
                thousands(xdp.passed),
                thousands(xdp.dropped)
            )?;
        }
        writeln!(
            f,
            "engine at b {} datagrams opened of {} that AF_XDP delivered, {} of {} that the bulk port did, {} opened from the \
             first UDP port",
            thousands(engine.opened_from_xdp),
            thousands(engine.rx_ring),
            thousands(engine.opened_from_bulk),
            thousands(engine.rx_bulk),
            thousands(engine.opened_from_udp)
        )?;
        write!(f, "{context}")
    }
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datapath(kind: &str) -> Datapath {
        Datapath { kind: kind.to_owned(), mode: None, attach: None, reason: format!("{kind} it is") }
    }

    fn findings() -> Findings {
        Findings {
            datapath_b: datapath("xdp"),
            ping: Ping {
                count: 1000,
                lost: 0,
                payload_bytes: 19,
                wire_bytes: 48,
                wire_bytes_mean: 49.2,
                handshake_us: 500.0,
                p50_us: 9.0,
                p99_us: 12.0,
                aead: "AES-256-GCM".to_owned(),
                datapath: datapath("xdp"),
                retransmitted: 0,
            },
            paths: vec![],
            sent: Sent { bytes: 64, gbit_s: 1.0, sha256: "ab".to_owned(), sha256_ok: true, retransmitted: 0 },
            sha256: ["ab".to_owned(), "ab".to_owned()],
            xdp: Some(Xdp { redirected: 10, passed: 1, dropped: 0 }),
            engine: Engine { opened_from_xdp: 10, opened_from_udp: 0, opened_from_bulk: 0, rx_ring: 10, rx_bulk: 0 },
            echo: RoundTrips { count: 1000, p50_us: 7.0, p99_us: 9.0 },
            context: Shared::of(vec![]),
        }
    }

    fn failures(change: impl FnOnce(&mut Findings)) -> Vec<String> {
        let mut found = findings();
        change(&mut found);
        Report::from(found).failures(1000, 64)
    }

    #[test]
    fn a_good_run_has_no_failures() {
        assert_eq!(failures(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_must_hold_fails_when_it_does_not() {
        assert_eq!(failures(|found| found.ping.lost = 1).len(), 1);
        assert_eq!(failures(|found| found.ping.count = 999).len(), 1);
        assert_eq!(failures(|found| found.ping.wire_bytes = 51).len(), 1);
        assert_eq!(failures(|found| found.sent.sha256_ok = false).len(), 1);
        assert_eq!(failures(|found| found.sent.bytes = 63).len(), 1);
        assert_eq!(failures(|found| found.sha256[1] = "cd".to_owned()).len(), 1, "what arrived");
        assert_eq!(failures(|found| found.sent.sha256 = "cd".to_owned()).len(), 1, "what pilot says");
        assert_eq!(failures(|found| found.engine.opened_from_udp = 1).len(), 1);
        let bulk = |found: &mut Findings| (found.engine.rx_bulk, found.engine.opened_from_bulk) = (5, 5);
        assert_eq!(failures(bulk).len(), 1, "unexplained");
        let explained = |found: &mut Findings| found.paths = vec![Sending { bulk: true, why: "it queues".into() }];
        assert_eq!(failures(|found| [bulk, explained].iter().for_each(|change| change(found))), Vec::<String>::new());
    }

    #[test]
    fn the_datapath_is_xdp_only_if_it_is_at_both_ends() {
        for (a, b, kind) in [("xdp", "xdp", "xdp"), ("udp", "xdp", "udp"), ("xdp", "udp", "udp")] {
            let mut found = findings();
            found.ping.datapath = datapath(a);
            found.datapath_b = datapath(b);
            found.engine.opened_from_udp = 5;
            let report = Report::from(found);
            assert_eq!(report.datapath, datapath(kind), "{a} and {b}");
            assert_eq!(report.failures(1000, 64).is_empty(), kind == "udp");
        }
    }

    #[test]
    fn the_json_object_has_these_fields_and_no_others() {
        let json = serde_json::to_value(Report::from(findings())).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "datapath": {"kind": "xdp", "mode": null, "attach": null, "reason": "xdp it is"},
                "aead": "AES-256-GCM",
                "handshake_us": 500.0,
                "delta": {"payload_bytes": 19, "wire_bytes": 48, "wire_bytes_mean": 49.2, "count": 1000, "lost": 0, "p50_us": 9.0, "p99_us": 12.0},
                "bulk": {"bytes": 64, "gbit_s": 1.0, "sha256_ok": true, "retransmitted": 0, "paths": []},
                "xdp": {"redirected": 10, "passed": 1, "dropped": 0},
                "engine": {"opened_from_xdp": 10, "opened_from_udp": 0, "opened_from_bulk": 0},
                "udp_echo": {"p50_us": 7.0, "p99_us": 9.0},
                "context": {"hops": [], "messages": 0, "payload_bytes": 0, "wire_bytes": 0, "tokens": 0, "content_tokens": 0,
                    "tokens_per_content_token": 0.0},
            })
        );
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (67_108_864, "67,108,864")] {
            assert_eq!(thousands(number), text);
        }
    }
}
