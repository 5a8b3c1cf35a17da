//! The transport suites: which systems bear which load, and what their rows are of what they said. What must hold is in `promises`.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use super::report::{Curve, Row};
use super::{Place, Run, Suite};

/// Connections at rest, by whose sum memory is known: enough that what is needed once does not show.
const IDLE_CONNECTIONS: u32 = 1000;
/// Handshakes at a time: as many lanes as Pilot has, and enough that nobody waits for a wake-up.
const HANDSHAKES_AT_A_TIME: u32 = 16;
/// Tunnels of a node, with a request in flight each.
const TUNNELS: [u32; 3] = [1, 100, 10_000];
/// Bytes, of the devices.
const MTUS: [u32; 3] = [1500, 3400, 8900];

/// Said beside the figures, in the report.
pub(super) const ASSUMPTIONS: &[&str] = &[
    "Transport: two namespaces, joined by a veth pair and nothing else. The asking end is on core 0, the serving end on core 1; each has its threads there. Systems without XDP have a pair on which there never was a program.",
    "A run is one process of one system, both ends in it; NATS has its server in a third. Idle connections have their ends in two processes.",
    "An echo is a request of 19 bytes and its reply by the far end's application, one at a time. Round trips are measured by the asking application.",
    "Messages are of 19 bytes, each its own call of the interface, on one connection, and counted where the far end's application has them. Bulk is counted likewise, without headers.",
    "Bytes on the wire are those that both devices count during echoes, with all headers and acks, by two messages an echo.",
    "CPU is of all processes and both ends. Where an end spins, waiting counts. A message's is of the messages run, a megabyte's (10^6 bytes) of bulk at MTU 1500.",
    "Handshakes are whole ones, none resumed, 16 at a time. Pilot's are over UDP, because its XDP program lets one source begin 200 a second.",
    "Memory of an idle connection is what the serving end's process grows by, for 1,000. With Pilot each is a tunnel to another node's keys and a connection in it.",
    "An echo over 1, 100 and 10,000 tunnels is in memory, the node's engine alone, in batches of at most 64 as a worker has them: the time of its peers does not count.",
    "Local drops are packets of Pilot's that were lost, less those that were only late, of those sent: there is nothing between the ends but this machine.",
    "raw-xdp, udp-spin, udp-blocking and udp-gso are neither encrypted nor reliable: they are limits, not peers.",
];

/// Which systems bear a load.
const ECHO: &[&str] = &[
    "pilot-xdp-inline",
    "pilot-xdp-async",
    "pilot-udp",
    "raw-xdp",
    "udp-spin",
    "udp-blocking",
    "tcp-tls",
    "tcp-tls-spin",
    "quinn",
    "grpc-tls",
    "grpc-tls-streaming",
    "websocket-tls",
    "http-json-tls",
    "nats-tls",
];
const MESSAGES: &[&str] = &[
    "pilot-auto",
    "pilot-xdp-inline",
    "pilot-xdp-async",
    "pilot-udp",
    "tcp-tls",
    "quinn",
    "grpc-tls-streaming",
    "websocket-tls",
    "nats-tls",
];
const BULK: &[&str] = &["pilot-xdp-inline", "pilot-auto", "pilot-udp", "raw-xdp", "udp-gso", "tcp-tls", "quinn"];
const HANDSHAKES: &[&str] = &["pilot-udp", "tcp-tls", "quinn"];
/// Whose processor time at rest is looked at: those that sleep.
const IDLE: &[&str] = &["pilot-xdp-async", "pilot-udp", "tcp-tls", "quinn"];
const IDLE_MEMORY: &[&str] = &["pilot-udp", "tcp-tls", "quinn"];
/// Above this, frames do not fit into a chunk, and frames alone cannot be sent.
const RAW_MTU_MAX: u32 = 3822;

/// Who needs a program of the distribution's, in a package of the same name.
const NEEDS: &[(&str, &str)] = &[("nats-tls", "nats-server")];

/// For how long, in milliseconds: warming up, and counting.
struct Times {
    echo: [u32; 2],
    messages: [u32; 2],
    bulk: [u32; 2],
    handshakes: [u32; 2],
    idle: [u32; 2],
    tunnels: u32,
}

const FULL: Times = Times {
    echo: [300, 2000],
    messages: [300, 1500],
    bulk: [500, 2000],
    handshakes: [300, 1500],
    idle: [500, 2000],
    tunnels: 500,
};
const QUICK: Times = Times {
    echo: [200, 500],
    messages: [200, 400],
    bulk: [300, 500],
    handshakes: [200, 400],
    idle: [300, 500],
    tunnels: 150,
};

/// What is run of a suite in every round.
pub(super) fn runs(suite: Suite, quick: bool) -> Vec<Run> {
    let times = if quick { QUICK } else { FULL };
    let all = |systems: &'static [&'static str], kind, times, mtu, connections| -> Vec<Run> {
        systems.iter().map(|name| run(name, kind, times, mtu, connections)).collect()
    };
    match suite {
        Suite::Context => Vec::new(),
        Suite::Echo => all(ECHO, "echo", times.echo, MTUS[0], 1),
        Suite::Messages => all(MESSAGES, "messages", times.messages, MTUS[0], 1),
        Suite::Bulk => {
            let fits = |run: &Run, mtu| run.name != "raw-xdp" || mtu <= RAW_MTU_MAX;
            let of = |mtu| all(BULK, "bulk", times.bulk, mtu, 1).into_iter().filter(move |run| fits(run, mtu));
            MTUS.into_iter().flat_map(of).collect()
        }
        Suite::Handshakes => all(HANDSHAKES, "handshakes", times.handshakes, MTUS[0], HANDSHAKES_AT_A_TIME),
        Suite::Idle => {
            let mut runs = all(IDLE, "idle", times.idle, MTUS[0], 1);
            runs.extend(all(IDLE_MEMORY, "idle", times.idle, MTUS[0], IDLE_CONNECTIONS));
            runs
        }
        Suite::Tunnels => TUNNELS.iter().map(|tunnels| in_memory(*tunnels, times.tunnels)).collect(),
    }
}

/// Without those that need what is not here, and a line about each of them.
pub(super) fn installed(runs: Vec<Run>, has: impl Fn(&str) -> bool) -> (Vec<Run>, Vec<String>) {
    let missing: Vec<_> = NEEDS.iter().filter(|(_, program)| !has(program)).collect();
    let (out, kept): (Vec<Run>, Vec<Run>) =
        runs.into_iter().partition(|run| missing.iter().any(|(system, _)| *system == run.name));
    let left_out = missing.iter().filter(|(system, _)| out.iter().any(|run| run.name == *system));
    let lines = left_out
        .map(|(system, program)| format!("skipped: {system}: {program} is not installed (apt install {program})"));
    (kept, lines.collect())
}

fn run(name: &'static str, kind: &str, times: [u32; 2], mtu: u32, connections: u32) -> Run {
    let [warm_up, time] = times.map(|time| time.to_string());
    let (mtu_text, connections) = (mtu.to_string(), connections.to_string());
    let words = [
        "transport",
        "--system",
        name,
        "--kind",
        kind,
        "--warm-up-ms",
        &warm_up,
        "--time-ms",
        &time,
        "--mtu",
        &mtu_text,
        "--connections",
        &connections,
    ];
    let steered = name.starts_with("pilot") || name == "raw-xdp";
    Run { name, words: words.map(str::to_owned).into(), place: Place::Pair { steered, mtu } }
}

fn in_memory(tunnels: u32, time: u32) -> Run {
    let words = ["tunnels", "--tunnels", &tunnels.to_string(), "--time-ms", &time.to_string()].map(str::to_owned);
    Run { name: "pilot", words: words.into(), place: Place::Nowhere }
}

/// What a run said.
#[derive(Deserialize)]
struct Said {
    system: String,
    load: Load,
    time_ns: u64,
    cpu_ns: u64,
    wire_bytes: u64,
    arrived_messages: u64,
    arrived_bytes: u64,
    operations: u64,
    quantiles_ns: Vec<(f64, u64)>,
    #[serde(default)]
    resident_bytes_per_connection: Option<f64>,
    near: Value,
}

#[derive(Deserialize)]
struct Load {
    kind: String,
    mtu: u32,
    connections: u32,
}

#[derive(Deserialize)]
struct Tunnels {
    system: String,
    tunnels: u32,
    cpu_ns_per_echo: f64,
}

impl Said {
    fn is(&self, kind: &str) -> bool {
        self.load.kind == kind
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / (self.time_ns as f64 / 1e9)
    }

    /// Microseconds that a share of the round trips took at most.
    fn echo_us(&self, share: f64) -> Option<f64> {
        let found = self.quantiles_ns.iter().find(|(at, _)| (at - share).abs() < 1e-6)?;
        self.is("echo").then_some(found.1 as f64 / 1e3)
    }

    fn gbit_s(&self, mtu: u32) -> Option<f64> {
        let counts = self.is("bulk") && self.load.mtu == mtu;
        counts.then(|| self.per_second(self.arrived_bytes) * 8.0 / 1e9)
    }

    fn dropped_percent(&self, mtu: u32) -> Option<f64> {
        let counts = self.is("bulk") && self.load.mtu == mtu;
        let [dropped, sent] = ["dropped_packets", "sent_packets"].map(|name| self.near[name].as_f64());
        counts.then_some(100.0 * dropped? / sent?.max(1.0))
    }
}

type Metric = (&'static str, &'static str, fn(&Said) -> Option<f64>);

/// What each of them cost, where there were any.
fn each(total: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| total as f64 / count as f64)
}

const METRICS: &[Metric] = &[
    ("echo_19B_p50_us", "µs", |said| said.echo_us(0.5)),
    ("echo_19B_p99_us", "µs", |said| said.echo_us(0.99)),
    ("echo_19B_p999_us", "µs", |said| said.echo_us(0.999)),
    ("wire_bytes_per_19B_message", "bytes", |said| {
        said.is("echo").then(|| each(said.wire_bytes, 2 * said.operations)).flatten()
    }),
    ("messages_19B_per_s", "1/s", |said| said.is("messages").then(|| said.per_second(said.arrived_messages))),
    ("cpu_ns_per_message", "ns", |said| {
        said.is("messages").then(|| each(said.cpu_ns, said.arrived_messages)).flatten()
    }),
    ("bulk_mtu1500_gbit_s", "Gbit/s", |said| said.gbit_s(1500)),
    ("bulk_mtu3400_gbit_s", "Gbit/s", |said| said.gbit_s(3400)),
    ("bulk_mtu8900_gbit_s", "Gbit/s", |said| said.gbit_s(8900)),
    ("cpu_ns_per_MB", "ns", |said| {
        let counts = said.is("bulk") && said.load.mtu == MTUS[0];
        counts.then(|| each(said.cpu_ns, said.arrived_bytes)).flatten().map(|ns| ns * 1e6)
    }),
    ("bulk_mtu1500_local_drop_percent", "%", |said| said.dropped_percent(1500)),
    ("bulk_mtu3400_local_drop_percent", "%", |said| said.dropped_percent(3400)),
    ("bulk_mtu8900_local_drop_percent", "%", |said| said.dropped_percent(8900)),
    ("handshakes_per_s", "1/s", |said| said.is("handshakes").then(|| said.per_second(said.operations))),
    ("idle_cpu_percent", "%", |said| {
        let counts = said.is("idle") && said.load.connections == 1;
        counts.then(|| 100.0 * said.cpu_ns as f64 / said.time_ns as f64)
    }),
    ("bytes_per_idle_connection", "bytes", |said| {
        said.resident_bytes_per_connection.filter(|_| said.load.connections > 1)
    }),
];

/// The metric of so many tunnels.
pub(super) fn tunnels_metric(tunnels: u32) -> String {
    format!("cpu_ns_per_echo_{tunnels}_tunnel{}", if tunnels == 1 { "" } else { "s" })
}

/// What runs of a subcommand of the bench's program said.
fn said<T: for<'a> Deserialize<'a>>(raw: &[Value], bench: &str) -> Result<Vec<T>> {
    let said = raw.iter().filter(|run| run["bench"] == bench).map(|run| serde_json::from_value(run.clone()));
    said.collect::<Result<_, _>>().with_context(|| format!("what {bench} said"))
}

/// Names in the order in which they first come.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

pub(super) fn rows(raw: &[Value]) -> Result<Vec<Row>> {
    let runs: Vec<Said> = said(raw, "transport")?;
    let mut rows = Vec::new();
    for (metric, unit, value) in METRICS {
        for name in names(runs.iter().map(|run| &run.system)) {
            let values: Vec<f64> = runs.iter().filter(|run| run.system == *name).filter_map(value).collect();
            rows.extend(Row::of(metric, name, unit, &values));
        }
    }
    let runs: Vec<Tunnels> = said(raw, "tunnels")?;
    for tunnels in TUNNELS {
        for name in names(runs.iter().map(|run| &run.system)) {
            let of_it = runs.iter().filter(|run| run.tunnels == tunnels && run.system == *name);
            let values: Vec<f64> = of_it.map(|run| run.cpu_ns_per_echo).collect();
            rows.extend(Row::of(&tunnels_metric(tunnels), name, "ns", &values));
        }
    }
    Ok(rows)
}

/// The distribution of each system's round trips: at each share, the median of the runs.
pub(super) fn curves(raw: &[Value]) -> Result<Vec<Curve>> {
    let runs: Vec<Said> = said::<Said>(raw, "transport")?.into_iter().filter(|run| run.is("echo")).collect();
    let curve = |name: &String| {
        let of_it: Vec<&Said> = runs.iter().filter(|run| run.system == *name).collect();
        let shares = of_it.first().map_or(&[][..], |run| &run.quantiles_ns);
        let points = shares.iter().filter_map(|(share, _)| {
            let values: Vec<f64> = of_it.iter().filter_map(|run| run.echo_us(*share)).collect();
            Some((*share, Row::of("", "", "", &values)?.median))
        });
        Curve { metric: "echo_19B".to_owned(), system: name.clone(), unit: "µs".to_owned(), points: points.collect() }
    };
    Ok(names(runs.iter().map(|run| &run.system)).into_iter().map(curve).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(kind: &str, system: &str, mtu: u32, connections: u32) -> Value {
        json!({
            "bench": "transport", "system": system, "load": {"kind": kind, "mtu": mtu, "connections": connections},
            "time_ns": 500_000_000, "cpu_ns": 1_000_000_000, "wire_bytes": 2000, "arrived_messages": 10,
            "arrived_bytes": 1_000_000, "operations": 10, "quantiles_ns": [[0.5, 7000], [0.99, 9000], [0.999, 11000]],
            "near": {"sent_packets": 1000, "dropped_packets": 1}, "far": null,
        })
    }

    fn value(rows: &[Row], metric: &str) -> Option<f64> {
        rows.iter().find(|row| row.metric == metric).map(|row| row.median)
    }

    #[test]
    fn each_load_has_its_metrics_and_no_others() {
        let echo = rows(&[raw("echo", "x", 1500, 1)]).unwrap();
        assert_eq!(value(&echo, "echo_19B_p50_us"), Some(7.0));
        assert_eq!(value(&echo, "echo_19B_p99_us"), Some(9.0));
        assert_eq!(value(&echo, "echo_19B_p999_us"), Some(11.0));
        assert_eq!(value(&echo, "wire_bytes_per_19B_message"), Some(100.0));
        assert_eq!(echo.len(), 4);
        let messages = rows(&[raw("messages", "x", 1500, 1)]).unwrap();
        assert_eq!(value(&messages, "messages_19B_per_s"), Some(20.0));
        assert_eq!(value(&messages, "cpu_ns_per_message"), Some(1e8));
        assert_eq!(messages.len(), 2);
        let bulk = rows(&[raw("bulk", "x", 1500, 1), raw("bulk", "x", 8900, 1)]).unwrap();
        assert_eq!(value(&bulk, "bulk_mtu1500_gbit_s"), Some(0.016));
        assert_eq!(value(&bulk, "bulk_mtu8900_gbit_s"), Some(0.016));
        assert_eq!(value(&bulk, "cpu_ns_per_MB"), Some(1e9));
        assert_eq!(value(&bulk, "bulk_mtu1500_local_drop_percent"), Some(0.1));
        assert_eq!(value(&bulk, "bulk_mtu3400_gbit_s"), None);
        assert_eq!(value(&rows(&[raw("handshakes", "x", 1500, 16)]).unwrap(), "handshakes_per_s"), Some(20.0));
        assert_eq!(value(&rows(&[raw("idle", "x", 1500, 1)]).unwrap(), "idle_cpu_percent"), Some(200.0));
        let mut many = raw("idle", "x", 1500, 1000);
        many["resident_bytes_per_connection"] = json!(3000.0);
        let many = rows(&[many]).unwrap();
        assert_eq!((many.len(), value(&many, "bytes_per_idle_connection")), (1, Some(3000.0)));
        let tunnels = json!({"bench": "tunnels", "system": "pilot", "tunnels": 100, "cpu_ns_per_echo": 900.0});
        assert_eq!(value(&rows(&[tunnels]).unwrap(), "cpu_ns_per_echo_100_tunnels"), Some(900.0));
    }

    #[test]
    fn what_others_said_is_left_to_them_and_what_is_unknown_is_an_error() {
        assert_eq!(rows(&[json!({"bench": "pipeline", "part": 1})]).unwrap(), []);
        assert!(rows(&[json!({"bench": "transport", "system": "x"})]).is_err());
    }

    #[test]
    fn who_lacks_a_program_is_left_out_and_told() {
        let all = || runs(Suite::Echo, true);
        let (kept, lines) = installed(all(), |program| program != "nats-server");
        assert_eq!(kept.len() + 1, all().len());
        assert!(kept.iter().all(|run| run.name != "nats-tls"));
        assert_eq!(lines, ["skipped: nats-tls: nats-server is not installed (apt install nats-server)"]);
        let (kept, lines) = installed(all(), |_| true);
        assert_eq!((kept.len(), lines.len()), (all().len(), 0));
        assert!(installed(runs(Suite::Bulk, true), |_| false).1.is_empty(), "it is not in that suite");
    }

    #[test]
    fn the_documentation_says_what_each_system_is() {
        let text = std::fs::read_to_string(crate::workspace().join("docs/benchmarks.md")).unwrap();
        for name in [ECHO, MESSAGES, BULK, HANDSHAKES, IDLE, IDLE_MEMORY].concat() {
            assert!(text.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_curve_is_the_median_of_the_runs() {
        let slower = |by: u64| {
            let mut run = raw("echo", "x", 1500, 1);
            run["quantiles_ns"] = json!([[0.5, 7000 + by], [0.99, 9000 + by]]);
            run
        };
        let curves = curves(&[slower(0), slower(2000), slower(1000), raw("bulk", "y", 1500, 1)]).unwrap();
        assert_eq!(curves.len(), 1);
        assert_eq!(curves[0].points, [(0.5, 8.0), (0.99, 10.0)]);
    }

    #[test]
    fn who_has_a_program_attached_is_apart_from_who_must_not() {
        for suite in [Suite::Echo, Suite::Messages, Suite::Bulk, Suite::Handshakes, Suite::Idle] {
            for run in runs(suite, true) {
                let Place::Pair { steered, mtu } = run.place else { panic!("{} is elsewhere", run.name) };
                assert_eq!(steered, run.name.starts_with("pilot") || run.name == "raw-xdp", "{}", run.name);
                assert!(mtu == 1500 || suite == Suite::Bulk);
                assert!(run.name != "raw-xdp" || mtu <= RAW_MTU_MAX);
            }
        }
    }
}
