//! What happened in the runs, and what must have.

use std::collections::BTreeMap;

/// How often each fault, and each mechanism that answers one, came to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    fired: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub(crate) fn count(&mut self, what: &'static str) {
        self.count_times(what, 1);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.fired.iter().for_each(|(what, times)| *self.fired.entry(what).or_default() += times);
    }

    pub(crate) fn count_times(&mut self, what: &'static str, times: u64) {
        *self.fired.entry(what).or_default() += times;
    }

    /// All of them came to pass.
    pub(crate) fn check_all_fired(&self, must: &[&str]) {
        let missing: Vec<_> =
            must.iter().filter(|what| self.fired.get(*what).is_none_or(|times| *times == 0)).collect();
        assert!(missing.is_empty(), "never came to pass: {missing:?}");
    }
}
