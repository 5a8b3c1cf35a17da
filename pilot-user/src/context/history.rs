//! The last changes of a context, as they are sent, so that each is encoded once and a follower that was away is given no
//! more than what it missed (C3.2).

use std::collections::VecDeque;
use std::sync::Arc;

use super::limits::{HISTORY_BYTES, HISTORY_ENTRIES};

/// How much of the past an owner keeps of a context. The oldest changes go first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryLimits {
    /// Changes.
    pub entries: usize,
    /// Bytes of them.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { entries: HISTORY_ENTRIES, bytes: HISTORY_BYTES }
    }
}

#[derive(Debug)]
pub(super) struct History {
    limits: HistoryLimits,
    /// The version that the first entry led to.
    first: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// The change.
    pub(super) encoded: Arc<[u8]>,
    /// What it touched of a JSON document, by [`super::pointer::touched`].
    pub(super) touched: Vec<String>,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.encoded.len() + self.touched.iter().map(String::len).sum::<usize>()
    }
}

impl History {
    /// Of a context that is at `version`.
    pub(super) fn new(limits: HistoryLimits, version: u64) -> Self {
        Self { limits, first: version + 1, entries: VecDeque::new(), bytes: 0 }
    }

    /// The change to the next version. When it is full, it loses its oldest 64th: what is so old is in no cache, and is waited for
    /// together, rather than each time that there is a change to be sent.
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        let HistoryLimits { entries, bytes } = self.limits;
        if self.entries.len() > entries || self.bytes > bytes {
            let (entries, bytes) = (entries - entries / 64, bytes - bytes / 64);
            while self.entries.len() > entries || self.bytes > bytes {
                let Some(oldest) = self.entries.pop_front() else { return };
                self.bytes -= oldest.bytes();
                self.first += 1;
            }
        }
    }

    /// Whether every change after `version` is there.
    pub(super) fn reaches(&self, version: u64) -> bool {
        version + 1 >= self.first
    }

    /// The first version whose change is there.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The change that led to `version`.
    pub(super) fn change_to(&self, version: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(version.checked_sub(self.first)?).ok()?)
    }

    /// The changes to the versions after `version`.
    pub(super) fn after(&self, version: u64) -> impl Iterator<Item = &Entry> {
        let skipped = (version + 1).saturating_sub(self.first);
        self.entries.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// context.md C3.2: it is never more than it may be, what is there leads to the last version, and little is lost at once.
    #[test]
    fn the_oldest_go_first_and_few_at_once() {
        for (limits, least) in [
            (HistoryLimits { entries: 128, bytes: usize::MAX }, 126),
            (HistoryLimits { entries: usize::MAX, bytes: 1280 }, 126),
            (HistoryLimits { entries: 3, bytes: usize::MAX }, 3),
        ] {
            let mut history = History::new(limits, 5);
            for version in 6..1000 {
                history.push(Entry { encoded: [version as u8; 10].into(), touched: Vec::new() });
                let kept = history.entries.len();
                assert!(kept <= limits.entries && history.bytes == 10 * kept && history.bytes <= limits.bytes);
                assert!(kept >= least.min(version - 5), "{kept} of {limits:?}");
                assert_eq!(history.first() + kept as u64 - 1, version as u64);
                let change = |version: usize| history.change_to(version as u64).map(|entry| entry.encoded[0]);
                assert_eq!((change(version), change(version + 1)), (Some(version as u8), None));
            }
        }
    }
}
