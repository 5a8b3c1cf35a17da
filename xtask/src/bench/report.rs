//! What a bench found: rows of medians, and beside them where and how it was found.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `report.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    #[serde(default)]
    pub(super) curves: Vec<Curve>,
    pub(super) machine: Value,
    pub(super) assumptions: Vec<String>,
}

/// How a metric of one system is distributed within a run, by the median over all runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Curve {
    pub(super) metric: String,
    pub(super) system: String,
    pub(super) unit: String,
    /// A share of all, and the value that it has at most.
    pub(super) points: Vec<(f64, f64)>,
}

/// One metric of one system, over all runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) metric: String,
    pub(super) system: String,
    pub(super) unit: String,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) runs: usize,
}

impl Row {
    /// Of one value a run; `None`: there was none.
    pub(super) fn of(metric: &str, system: &str, unit: &str, values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (metric, system, unit) = (metric.to_owned(), system.to_owned(), unit.to_owned());
        Some(Self { metric, system, unit, median: median(&sorted), min, max, runs: sorted.len() })
    }
}

impl Report {
    pub(super) fn new(rows: Vec<Row>, machine: Value, assumptions: &[&str]) -> Self {
        let assumptions = assumptions.iter().map(|text| (*text).to_owned()).collect();
        Self { rows, curves: Vec::new(), machine, assumptions }
    }

    /// Takes over what another report has of metrics that this one has not, if it is of the same commit: suites that were run one by
    /// one are one report, as far as they measured the same program.
    pub(super) fn complete(&mut self, other: Self) {
        if self.machine["commit"] != other.machine["commit"] {
            return;
        }
        let is_new = |metric: &str| self.rows.iter().all(|row| row.metric != metric);
        let rows: Vec<Row> = other.rows.into_iter().filter(|row| is_new(&row.metric)).collect();
        self.rows.extend(rows);
        if self.curves.is_empty() {
            self.curves = other.curves;
        }
        for assumption in other.assumptions {
            if !self.assumptions.contains(&assumption) {
                self.assumptions.push(assumption);
            }
        }
        // What each suite said of its systems.
        if let (Value::Object(own), Value::Object(others)) =
            (&mut self.machine["systems"], other.machine["systems"].clone())
        {
            others.into_iter().for_each(|(name, said)| _ = own.entry(name).or_insert(said));
        }
    }

    /// The metrics, in the order of their first rows.
    pub(super) fn metrics(&self) -> Vec<&str> {
        let mut metrics: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !metrics.contains(&row.metric.as_str()) {
                metrics.push(&row.metric);
            }
        }
        metrics
    }

    pub(super) fn row(&self, metric: &str, system: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.metric == metric && row.system == system)
    }
}

/// The middle of sorted values, or between the two in the middle.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_fields_that_readers_of_reports_know() {
        let row = Row::of("pipeline_wire_bytes", "pilot", "bytes", &[3.0, 1.0, 2.0]).unwrap();
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(
            text,
            r#"{"metric":"pipeline_wire_bytes","system":"pilot","unit":"bytes","median":2.0,"min":1.0,"max":3.0,"runs":3}"#
        );
        assert_eq!(Row::of("m", "s", "u", &[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Row::of("m", "s", "u", &[]), None);
    }

    #[test]
    fn suites_that_were_run_one_by_one_are_one_report() {
        let report = |metric: &str, value: f64, commit: &str| {
            let machine = serde_json::json!({"commit": commit, "systems": {metric: 1}});
            Report::new(vec![Row::of(metric, "x", "u", &[value]).unwrap()], machine, &["an assumption"])
        };
        let mut now = report("a", 1.0, "c");
        now.complete(report("b", 2.0, "c"));
        now.complete(report("a", 3.0, "c"));
        now.complete(report("d", 4.0, "another commit"));
        assert_eq!(now.metrics(), ["a", "b"]);
        assert_eq!(now.row("a", "x").unwrap().median, 1.0, "what was measured now stays");
        assert_eq!(now.assumptions.len(), 1);
        assert_eq!(now.machine["systems"], serde_json::json!({"a": 1, "b": 1}));
    }

    #[test]
    fn a_report_is_read_back_as_it_was_written() {
        let rows = vec![Row::of("a", "x", "u", &[1.0]).unwrap(), Row::of("b", "x", "u", &[2.0]).unwrap()];
        let report = Report::new(rows.clone(), serde_json::json!({"cores": 2}), &["an assumption"]);
        let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!((read.rows, read.machine["cores"].as_u64()), (rows, Some(2)));
        assert_eq!(report.metrics(), ["a", "b"]);
        assert_eq!(report.row("b", "x").unwrap().median, 2.0);
        assert!(report.row("b", "y").is_none());
    }
}
