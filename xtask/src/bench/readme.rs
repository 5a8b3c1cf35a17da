//! The README's tables, which are written from a report and by nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::report::Report;

/// Between these the tables stand: what agents cost, and what a transport does.
const CONTEXT: [&str; 2] =
    ["<!-- Written by `cargo xtask bench --readme`; do not edit. -->", "<!-- End of what it writes. -->"];
const TRANSPORT: [&str; 2] = [
    "<!-- Transports, written by `cargo xtask bench --readme`; do not edit. -->",
    "<!-- End of what it writes of transports. -->",
];

/// What the columns of a table are called, and the metric of each.
type Columns = &'static [(&'static str, &'static str)];

const PIPELINE: Columns = &[
    ("tokens per token of content, 3 hand-overs", "handover_tokens_per_content_token"),
    ("and 50 follow-ups", "pipeline_tokens_per_content_token"),
    ("tokens handed over", "pipeline_tokens"),
    ("bytes on the wire", "pipeline_wire_bytes"),
    ("messages", "pipeline_messages"),
    ("round trips", "pipeline_round_trips"),
    ("time, ms", "pipeline_time_ms"),
    ("CPU, ms", "pipeline_cpu_ms"),
];
const CHANGES: Columns = &[
    ("empty responses, %", "empty_responses_percent"),
    ("bytes on the wire per change", "change_wire_bytes"),
    ("delay, ms", "change_delay_ms"),
    ("longest, ms", "change_delay_max_ms"),
    ("CPU per change, ms", "change_cpu_ms"),
];

const SYSTEMS: Columns = &[
    ("echo p50, µs", "echo_19B_p50_us"),
    ("p99, µs", "echo_19B_p99_us"),
    ("bytes on the wire per message", "wire_bytes_per_19B_message"),
    ("messages/s", "messages_19B_per_s"),
    ("bulk, MTU 1500, Gbit/s", "bulk_mtu1500_gbit_s"),
    ("MTU 3400", "bulk_mtu3400_gbit_s"),
    ("MTU 8900", "bulk_mtu8900_gbit_s"),
    ("handshakes/s", "handshakes_per_s"),
    ("idle CPU, %", "idle_cpu_percent"),
    ("bytes per idle connection", "bytes_per_idle_connection"),
];

/// What the report has of tables, in Markdown, each with the marks between which it stands.
pub(super) fn tables(report: &Report) -> Vec<([&'static str; 2], String)> {
    let mut tables = Vec::new();
    let has = |columns: Columns| columns.iter().any(|(_, metric)| report.rows.iter().any(|row| row.metric == *metric));
    if has(PIPELINE) {
        let [pipeline, changes] =
            [table(report, "three agents over", PIPELINE), table(report, "rare changes by", CHANGES)];
        tables.push((CONTEXT, format!("{pipeline}\n{changes}\n{}", where_from(report, PIPELINE))));
    }
    if has(SYSTEMS) {
        let systems = table(report, "19-byte messages over", SYSTEMS);
        tables.push((TRANSPORT, format!("{systems}\n{}", where_from(report, SYSTEMS))));
    }
    tables
}

fn where_from(report: &Report, columns: Columns) -> String {
    let is_of_it = |metric: &str| columns.iter().any(|(_, column)| *column == metric);
    let runs = report.rows.iter().find(|row| is_of_it(&row.metric)).map_or(0, |row| row.runs);
    let fact = |name: &str| report.machine[name].as_str().unwrap_or("unknown").to_owned();
    format!(
        "Medians of {runs} runs on {} cores of {}, kernel {}.\n",
        report.machine["cores"],
        fact("cpu"),
        fact("kernel").split('-').next().unwrap_or_default(),
    )
}

fn table(report: &Report, head: &str, columns: Columns) -> String {
    let mut text = format!("| {head} |");
    columns.iter().for_each(|(name, _)| text += &format!(" {name} |"));
    text += &format!("\n|---|{}\n", "---:|".repeat(columns.len()));
    let mut systems: Vec<&str> = Vec::new();
    for (_, metric) in columns {
        let of_it = report.rows.iter().filter(|row| row.metric == *metric).map(|row| row.system.as_str());
        for system in of_it.collect::<Vec<_>>() {
            if !systems.contains(&system) {
                systems.push(system);
            }
        }
    }
    for system in systems {
        text += &format!("| {system} |");
        for (_, metric) in columns {
            let value = report.row(metric, system).map_or("–".to_owned(), |row| number(row.median));
            text += &format!(" {value} |");
        }
        text.push('\n');
    }
    text
}

/// Three digits that matter, and thousands apart.
pub(super) fn number(value: f64) -> String {
    let whole = |value: f64| {
        let digits = format!("{value:.0}");
        let split = |(at, digit)| [if at > 0 && (digits.len() - at) % 3 == 0 { "," } else { "" }, digit].concat();
        let parts: Vec<String> = digits.split("").filter(|digit| !digit.is_empty()).enumerate().map(split).collect();
        parts.concat()
    };
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => whole(value),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Puts the tables of the report in a directory into a text, in place of what is between the marks.
pub(super) fn rewrite(readme: &Path, out: &Path) -> Result<()> {
    let path = out.join("report.json");
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let report: Report =
        serde_json::from_str(&read(&path)?).with_context(|| format!("{} is no report", path.display()))?;
    let mut text = read(readme)?;
    for (marks, table) in tables(&report) {
        text = replace(&text, marks, &table).with_context(|| readme.display().to_string())?;
    }
    fs::write(readme, text).with_context(|| format!("writing {}", readme.display()))
}

fn replace(text: &str, [begin, end]: [&str; 2], table: &str) -> Result<String> {
    let (before, rest) = text.split_once(begin).with_context(|| format!("the mark is missing: {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("the mark is missing: {end}"))?;
    Ok(format!("{before}{begin}\n\n{table}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::report::Row;
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_all_before_the_point() {
        let numbers = [0.0, 0.00321, 0.5, 1.0456, 12.34, 123.4, 1234.0, 1_234_567.0, 98.5];
        let texts = ["0", "0.003", "0.50", "1.05", "12.3", "123", "1,234", "1,234,567", "98.5"];
        assert_eq!(numbers.map(number), texts);
    }

    #[test]
    fn tables_stand_between_the_marks_and_nothing_else_changes() {
        let rows = [("handover_tokens_per_content_token", 1.5), ("pipeline_wire_bytes", 1234.0)];
        let rows = rows.map(|(metric, value)| Row::of(metric, "pilot", "u", &[value]).unwrap());
        let report = Report::new(rows.into(), serde_json::json!({"cores": 2, "cpu": "a CPU"}), &[]);
        let tables = tables(&report);
        let [(marks, table)] = &tables[..] else { panic!("{tables:?}") };
        assert!(table.contains("| pilot | 1.50 | – | – | 1,234 |"), "{table}");
        let [begin, end] = marks;
        let text = format!("before\n{begin}\nold\n{end}\nafter\n");
        let once = replace(&text, *marks, table).unwrap();
        assert!(once.starts_with("before\n") && once.ends_with("\nafter\n") && !once.contains("old"), "{once}");
        assert_eq!(replace(&once, *marks, table).unwrap(), once, "again");
        assert!(replace("no marks", *marks, table).unwrap_err().to_string().contains("mark is missing"));
    }

    #[test]
    fn a_system_has_a_line_whichever_of_the_metrics_it_has() {
        let rows = [("echo_19B_p50_us", "pilot-udp", 9.0), ("bulk_mtu1500_gbit_s", "quinn", 4.5)];
        let rows = rows.map(|(metric, system, value)| Row::of(metric, system, "u", &[value]).unwrap());
        let tables = tables(&Report::new(rows.into(), serde_json::json!({"cores": 2}), &[]));
        let [(marks, table)] = &tables[..] else { panic!("{tables:?}") };
        assert_eq!(*marks, TRANSPORT);
        assert!(
            table.contains("| pilot-udp | 9.00 | –") && table.contains("| quinn | – | – | – | – | 4.50 |"),
            "{table}"
        );
    }

    #[test]
    fn the_readme_has_the_marks() {
        let readme = fs::read_to_string(crate::workspace().join("README.md")).unwrap();
        [CONTEXT, TRANSPORT].iter().for_each(|marks| assert!(replace(&readme, *marks, "").is_ok(), "{marks:?}"));
    }
}
