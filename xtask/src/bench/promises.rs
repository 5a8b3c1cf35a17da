//! What Pilot is to show of itself beside its peers: each with the value that is wanted, and the one that was measured.

use super::report::Report;
use super::transport::tunnels_metric;

/// Against what a value is held.
enum Against {
    /// Nothing: the value itself.
    Itself,
    /// A system's value of the same metric: the ratio of the two.
    System(&'static str),
    /// The least value of any of these.
    LeastOf(&'static [&'static str]),
    /// The same system's value of another metric.
    Metric(String),
}

enum Wanted {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

struct Promise {
    metric: String,
    system: &'static str,
    against: Against,
    wanted: Wanted,
    /// What would be better still.
    aim: Option<f64>,
}

/// Who is encrypted, and no limit.
const PEERS: &[&str] = &[
    "tcp-tls",
    "tcp-tls-spin",
    "quinn",
    "grpc-tls",
    "grpc-tls-streaming",
    "websocket-tls",
    "http-json-tls",
    "nats-tls",
];

/// What this report does not have, said at the end of the table.
const ELSEWHERE: &str =
    "instructions per packet and per message beside quinn-proto: `cargo bench -p pilot-benches --bench instructions`";

fn all() -> Vec<Promise> {
    let promise = |metric: &str, system, against, wanted, aim| Promise {
        metric: metric.to_owned(),
        system,
        against,
        wanted,
        aim,
    };
    use Against::{Itself, LeastOf, Metric, System};
    use Wanted::{AtLeast, AtMost, Below};
    let echo = |to, most, aim| promise("echo_19B_p50_us", "pilot-xdp-inline", System(to), AtMost(most), aim);
    let waits = |to, most| promise("echo_19B_p50_us", "pilot-xdp-async", System(to), AtMost(most), None);
    let messages = |to, least| promise("messages_19B_per_s", "pilot-auto", System(to), AtLeast(least), None);
    let bulk = |metric, to, least| promise(metric, "pilot-auto", System(to), AtLeast(least), None);
    let inline = |metric, to, least, aim| promise(metric, "pilot-xdp-inline", System(to), AtLeast(least), aim);
    let mut all = vec![
        echo("udp-spin", 0.65, Some(0.55)),
        echo("raw-xdp", 1.45, Some(1.25)),
        echo("tcp-tls-spin", 0.5, None),
        echo("quinn", 0.12, None),
    ];
    let slow = ["grpc-tls", "grpc-tls-streaming", "websocket-tls", "http-json-tls", "nats-tls"];
    all.extend(slow.map(|peer| echo(peer, 0.1, None)));
    all.push(promise("echo_19B_p99_us", "pilot-xdp-inline", System("udp-spin"), AtMost(1.0), None));
    all.extend([
        waits("tcp-tls", 1.0),
        waits("quinn", 0.9),
        promise("idle_cpu_percent", "pilot-xdp-async", Itself, Below(5.0), None),
    ]);
    all.extend(["grpc-tls-streaming", "websocket-tls", "nats-tls"].map(|peer| messages(peer, 5.0)));
    all.extend([messages("quinn", 2.0), messages("tcp-tls", 1.0)]);
    all.extend([
        inline("bulk_mtu1500_gbit_s", "raw-xdp", 0.75, Some(0.85)),
        inline("bulk_mtu1500_gbit_s", "quinn", 1.2, None),
        inline("bulk_mtu3400_gbit_s", "raw-xdp", 0.7, Some(0.85)),
    ]);
    for metric in ["bulk_mtu1500_gbit_s", "bulk_mtu3400_gbit_s", "bulk_mtu8900_gbit_s"] {
        all.extend([bulk(metric, "quinn", 2.5), bulk(metric, "tcp-tls", 1.0)]);
    }
    all.extend([
        promise("handshakes_per_s", "pilot-udp", System("quinn"), AtLeast(1.0), None),
        promise("wire_bytes_per_19B_message", "pilot-xdp-inline", LeastOf(PEERS), Below(1.0), None),
        promise(&tunnels_metric(10_000), "pilot", Metric(tunnels_metric(1)), AtMost(2.0), None),
    ]);
    for metric in [1500, 3400, 8900].map(|mtu| format!("bulk_mtu{mtu}_local_drop_percent")) {
        all.push(promise(&metric, "pilot-xdp-inline", Itself, Below(0.01), None));
    }
    all
}

/// One line of the table.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Line {
    metric: String,
    system: &'static str,
    against: String,
    wanted: String,
    /// `None`: not measured.
    measured: Option<f64>,
    held: bool,
}

/// The table, of those of which anything was measured.
pub(super) fn lines(report: &Report) -> Vec<Line> {
    let lines = all().into_iter().map(|promise| line(report, promise));
    lines.filter(|line| report.rows.iter().any(|row| row.metric == line.metric)).collect()
}

fn line(report: &Report, promise: Promise) -> Line {
    let Promise { metric, system, against, wanted, aim } = promise;
    let median = |metric: &str, system: &str| report.row(metric, system).map(|row| row.median);
    let own = median(&metric, system);
    let (against, other) = match against {
        Against::Itself => (String::new(), Some(1.0)),
        Against::System(to) => (to.to_owned(), median(&metric, to)),
        Against::LeastOf(peers) => {
            let values = peers.iter().filter_map(|peer| Some((*peer, median(&metric, peer)?)));
            let least = values.min_by(|(_, a), (_, b)| a.total_cmp(b));
            (least.map_or("every peer".to_owned(), |(peer, _)| format!("every peer: {peer}")), least.map(|(_, it)| it))
        }
        Against::Metric(other) => (other.clone(), median(&other, system)),
    };
    let measured = own.zip(other).map(|(own, other)| own / other);
    let (sign, value) = match wanted {
        Wanted::AtMost(value) => ("≤", value),
        Wanted::Below(value) => ("<", value),
        Wanted::AtLeast(value) => ("≥", value),
    };
    let held = measured.is_some_and(|measured| match wanted {
        Wanted::AtMost(value) => measured <= value,
        Wanted::Below(value) => measured < value,
        Wanted::AtLeast(value) => measured >= value,
    });
    let times = if against.is_empty() { "" } else { "×" };
    let aim = aim.map(|aim| format!(" (aim {aim}{times})")).unwrap_or_default();
    Line { metric, system, against, wanted: format!("{sign} {value}{times}{aim}"), measured, held }
}

/// For people.
pub(super) fn table(lines: &[Line]) -> String {
    let mut cells = vec![["metric", "of", "against", "wanted", "measured", ""].map(str::to_owned)];
    cells.extend(lines.iter().map(|line| {
        let measured = line.measured.map_or("not measured".to_owned(), |value| format!("{value:.3}"));
        let verdict = match (line.measured, line.held) {
            (None, _) => "",
            (_, true) => "held",
            (_, false) => "NOT HELD",
        };
        let Line { metric, system, against, wanted, .. } = line;
        [metric.clone(), (*system).to_owned(), against.clone(), wanted.clone(), measured, verdict.to_owned()]
    }));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let text = cells.iter().map(|row| {
        let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    let held = lines.iter().filter(|line| line.held).count();
    let text = text.collect::<Vec<_>>().join("\n");
    format!("{text}\n{held} of {} held. Not here: {ELSEWHERE}", lines.len())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::report::Row;
    use super::*;

    fn report(rows: &[(&str, &str, f64)]) -> Report {
        let rows = rows.iter().map(|(metric, system, value)| Row::of(metric, system, "u", &[*value]).unwrap());
        Report::new(rows.collect(), Value::Null, &[])
    }

    fn find<'a>(lines: &'a [Line], metric: &str, against: &str) -> &'a Line {
        lines.iter().find(|line| line.metric == metric && line.against == against).unwrap()
    }

    #[test]
    fn each_is_held_or_not_by_its_own_measure() {
        let p50 = "echo_19B_p50_us";
        let mut rows = vec![(p50, "pilot-xdp-inline", 6.0), (p50, "udp-spin", 10.0), (p50, "raw-xdp", 4.0)];
        rows.extend([("messages_19B_per_s", "pilot-auto", 100.0), ("messages_19B_per_s", "quinn", 51.0)]);
        rows.extend([("idle_cpu_percent", "pilot-xdp-async", 5.0)]);
        let wire = "wire_bytes_per_19B_message";
        rows.extend([
            (wire, "pilot-xdp-inline", 93.0),
            (wire, "quinn", 94.0),
            (wire, "tcp-tls", 107.0),
            (wire, "udp-spin", 61.0),
        ]);
        rows.extend([
            ("cpu_ns_per_echo_10000_tunnels", "pilot", 1500.0),
            ("cpu_ns_per_echo_1_tunnel", "pilot", 1000.0),
        ]);
        let lines = lines(&report(&rows));
        assert!(find(&lines, p50, "udp-spin").held);
        assert_eq!(find(&lines, p50, "udp-spin").measured, Some(0.6));
        assert!(!find(&lines, p50, "raw-xdp").held, "1.5 is above 1.45");
        assert!(!find(&lines, "messages_19B_per_s", "quinn").held, "1.96 is below 2");
        assert!(!find(&lines, "idle_cpu_percent", "").held, "5 is not below 5");
        assert!(find(&lines, wire, "every peer: quinn").held, "a plain socket is no peer");
        assert_eq!(find(&lines, "cpu_ns_per_echo_10000_tunnels", "cpu_ns_per_echo_1_tunnel").measured, Some(1.5));
        let absent = find(&lines, p50, "quinn");
        assert_eq!((absent.measured, absent.held), (None, false));
        assert!(lines.iter().all(|line| !line.metric.starts_with("bulk")), "of what was not run nothing is said");
        let text = table(&lines);
        assert!(
            text.contains("NOT HELD") && text.contains("not measured") && text.contains("≤ 0.65× (aim 0.55×)"),
            "{text}"
        );
        assert!(text.contains(&format!("3 of {} held", lines.len())), "{text}");
    }
}
