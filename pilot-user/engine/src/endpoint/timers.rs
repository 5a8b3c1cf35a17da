//! One deadline a tunnel, the earliest first.

use crate::event::PeerId;
use crate::time::Instant;

/// Registered times are at most the deadlines: one that moves later, as it does with every packet, is left where it is, and
/// found to be early when its time comes. So the common case moves nothing.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// A binary heap, the earliest first: its memory stays, where a tree's nodes come and go with their only entry.
    heap: Vec<(Instant, PeerId)>,
    /// By [`PeerId`]: where in the heap it is.
    places: Vec<Option<u32>>,
}

impl Timers {
    pub(super) fn set(&mut self, peer: PeerId, deadline: Option<Instant>) {
        let index = peer.0 as usize;
        if index >= self.places.len() {
            self.places.resize(index + 1, None);
        }
        let Some(deadline) = deadline else { return };
        let place = match self.places[index].map(|place| place as usize) {
            Some(place) if self.heap[place].0 <= deadline => return,
            Some(place) => {
                self.heap[place].0 = deadline;
                place
            }
            None => {
                self.heap.push((deadline, peer));
                self.heap.len() - 1
            }
        };
        self.rise(place);
    }

    /// Whether the tunnel's deadline is looked at by then anyway.
    pub(super) fn looks_at(&self, peer: PeerId, by: Instant) -> bool {
        let place = self.places.get(peer.0 as usize).copied().flatten();
        place.is_some_and(|place| self.heap[place as usize].0 <= by)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// Takes out the next tunnel whose deadline is to be looked at, which may have come or be a later one.
    pub(super) fn pop(&mut self, now: Instant) -> Option<PeerId> {
        let (at, peer) = *self.heap.first()?;
        if at > now {
            return None;
        }
        self.heap.swap_remove(0);
        self.places[peer.0 as usize] = None;
        self.sink();
        Some(peer)
    }

    /// An entry goes up to where none above is later.
    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            let above = (place - 1) / 2;
            self.heap.swap(place, above);
            self.note(place);
            place = above;
        }
        self.note(place);
    }

    /// The first entry goes down to where none below is earlier.
    fn sink(&mut self) {
        let mut place = 0;
        while place < self.heap.len() {
            let below = [2 * place + 1, 2 * place + 2].into_iter().filter(|below| *below < self.heap.len());
            let earliest = below.min_by_key(|below| self.heap[*below]);
            let Some(earliest) = earliest.filter(|below| self.heap[*below] < self.heap[place]) else { break };
            self.heap.swap(place, earliest);
            self.note(place);
            place = earliest;
        }
        self.note(place);
    }

    /// What is at a place has come there.
    fn note(&mut self, place: usize) {
        if let Some((_, peer)) = self.heap.get(place) {
            self.places[peer.0 as usize] = Some(place as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the earliest of what was set last, by a look at all of them.
        #[test]
        fn the_earliest_comes_first(steps in prop::collection::vec((0u32..40, prop::option::of(0u64..1000)), 1..200)) {
            let (mut timers, mut all) = (Timers::default(), std::collections::BTreeMap::new());
            for (peer, at) in steps {
                if let Some(at) = at {
                    timers.set(PeerId(peer), Some(Instant::from_nanos(at)));
                    all.entry(PeerId(peer)).and_modify(|before: &mut u64| *before = at.min(*before)).or_insert(at);
                } else {
                    let first = all.iter().map(|(peer, at)| (*at, *peer)).min();
                    prop_assert_eq!(timers.next(), first.map(|(at, _)| Instant::from_nanos(at)));
                    prop_assert_eq!(timers.pop(Instant::END), first.map(|(_, peer)| peer));
                    first.map(|(_, peer)| all.remove(&peer));
                }
                let placed = all.iter().all(|(peer, at)| timers.looks_at(*peer, Instant::from_nanos(*at)));
                prop_assert!(placed && timers.heap.len() == all.len());
            }
        }
    }

    #[test]
    fn later_is_lazy_and_earlier_is_not() {
        let (a, b, at) = (PeerId(0), PeerId(1), Instant::from_nanos);
        let mut timers = Timers::default();
        timers.set(a, Some(at(10)));
        timers.set(b, Some(at(20)));
        timers.set(a, Some(at(30)));
        assert_eq!(timers.next(), Some(at(10)), "early, and harmless");
        assert!(timers.looks_at(a, at(10)) && !timers.looks_at(a, at(9)) && !timers.looks_at(PeerId(2), at(99)));
        assert_eq!((timers.pop(at(9)), timers.pop(at(15)), timers.pop(at(15))), (None, Some(a), None));
        assert!(!timers.looks_at(a, at(99)));
        timers.set(a, Some(at(30)));
        assert_eq!(timers.next(), Some(at(20)));
        timers.set(a, Some(at(5)));
        assert_eq!(timers.pop(at(25)), Some(a));
        timers.set(a, None);
        assert_eq!(timers.pop(at(25)), Some(b));
        assert_eq!(timers.pop(at(99)), None);
        assert_eq!(timers.next(), None);
    }
}
