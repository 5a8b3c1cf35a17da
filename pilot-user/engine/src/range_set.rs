//! A set of numbers as sorted, disjoint, non-adjacent ranges: packet numbers to ack, parts of a stream.

use std::ops::Range;

/// Few ranges, mostly growing at the end: a sorted vector. The owner bounds how many there may be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges, not how many numbers.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.0.first().cloned()
    }

    /// The range at `index`, counted from the lowest.
    pub(crate) fn get(&self, index: usize) -> Option<&Range<u64>> {
        self.0.get(index)
    }

    pub(crate) fn last(&self) -> Option<Range<u64>> {
        self.0.last().cloned()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Range<u64>> {
        self.0.iter()
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.end <= number);
        self.0.get(at).is_some_and(|range| range.start <= number)
    }

    /// Adds a range; what is there already stays.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        // Those from `from` to before `to` touch or overlap the new one and become one with it.
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = from + self.0[from..].partition_point(|r| r.start <= range.end);
        let merged = self.0[from..to].iter().fold(range, |all, r| all.start.min(r.start)..all.end.max(r.end));
        self.0.splice(from..to, [merged]);
    }

    /// Takes a range out, splitting what it lies within.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end <= range.start);
        let to = from + self.0[from..].partition_point(|r| r.start < range.end);
        if from == to {
            return;
        }
        let before = self.0[from].start..range.start;
        let after = range.end..self.0[to - 1].end;
        self.0.splice(from..to, [before, after].into_iter().filter(|r| !r.is_empty()));
    }

    /// Takes out the lowest range.
    pub(crate) fn remove_first(&mut self) -> Option<Range<u64>> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Gives room back that nothing needs.
    pub(crate) fn rest(&mut self) {
        self.0.shrink_to_fit();
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a set of every number; and always sorted, disjoint, non-adjacent, none empty.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..200, 0u64..30), 1..100)) {
            let (mut ranges, mut numbers) = (RangeSet::default(), BTreeSet::new());
            for (insert, start, length) in steps {
                let range = start..start + length;
                if insert {
                    ranges.insert(range.clone());
                    numbers.extend(range);
                } else {
                    ranges.remove(range.clone());
                    numbers.retain(|n| !range.contains(n));
                }
                prop_assert!(ranges.0.iter().all(|r| r.start < r.end));
                prop_assert!(ranges.0.windows(2).all(|w| w[0].end < w[1].start));
                prop_assert!(ranges.iter().cloned().flatten().eq(numbers.iter().copied()));
                prop_assert!((0..240).all(|n| ranges.contains(n) == numbers.contains(&n)));
            }
        }
    }
}
