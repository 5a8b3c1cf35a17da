//! What happened in the runs, and what must have.

use std::collections::BTreeMap;

/// How often each fault, and each mechanism that answers one, came to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    fired: BTreeMap<&'static str, u64>,
}

const MUST_FIRE: [&str; 20] = [
    "client restarted with its copies",
    "client restarted without",
    "commit failed",
    "commit of several changes",
    "conflict",
    "connection cut",
    "copy checked",
    "copy damaged",
    "divergence healed",
    "done",
    "document came whole",
    "no room",
    "not allowed",
    "owner killed with a commit under way",
    "owner restarted",
    "resumed without the document",
    "several versions at once",
    "unanswered",
    "refused",
    "version by version",
];

impl Counters {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.fired.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.fired.iter().for_each(|(what, times)| *self.fired.entry(what).or_default() += times);
    }

    pub(crate) fn check_all_fired(&self) {
        let missing: Vec<_> = MUST_FIRE.iter().filter(|what| !self.fired.contains_key(*what)).collect();
        assert!(missing.is_empty(), "never came to pass: {missing:?}");
    }
}
