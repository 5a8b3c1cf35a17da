//! One deadline a tunnel, the earliest first.

use std::collections::BTreeSet;

use crate::event::PeerId;
use crate::time::Instant;

/// Registered times are at most the deadlines: one that moves later, as it does with every packet, is left where it is, and
/// found to be early when its time comes. So the common case touches no tree.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, PeerId)>,
    /// By [`PeerId`]: what is in the queue.
    registered: Vec<Option<Instant>>,
}

impl Timers {
    pub(super) fn set(&mut self, peer: PeerId, deadline: Option<Instant>) {
        let index = peer.0 as usize;
        if index >= self.registered.len() {
            self.registered.resize(index + 1, None);
        }
        let Some(deadline) = deadline else { return };
        let registered = &mut self.registered[index];
        if registered.is_some_and(|at| at <= deadline) {
            return;
        }
        if let Some(at) = registered.replace(deadline) {
            self.queue.remove(&(at, peer));
        }
        self.queue.insert((deadline, peer));
    }

    /// Whether the tunnel's deadline is looked at by then anyway.
    pub(super) fn looks_at(&self, peer: PeerId, by: Instant) -> bool {
        self.registered.get(peer.0 as usize).is_some_and(|at| at.is_some_and(|at| at <= by))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out the next tunnel whose deadline is to be looked at, which may have come or be a later one.
    pub(super) fn pop(&mut self, now: Instant) -> Option<PeerId> {
        let (at, peer) = *self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first();
        self.registered[peer.0 as usize] = None;
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
