//! One deadline a tunnel, the earliest first.

use std::collections::BTreeSet;

use crate::event::PeerId;
use crate::time::Instant;

/// Registered times are at most the real deadlines: a deadline that moves later, as it does with every packet, is left
/// where it is, and found to be early when it fires. So the common case touches no tree.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, PeerId)>,
    /// By [`PeerId`]: what is in the queue, and the real deadline.
    registered: Vec<(Option<Instant>, Option<Instant>)>,
}

impl Timers {
    pub(super) fn set(&mut self, peer: PeerId, deadline: Option<Instant>) {
        let index = peer.0 as usize;
        if index >= self.registered.len() {
            self.registered.resize(index + 1, (None, None));
        }
        let (registered, real) = &mut self.registered[index];
        *real = deadline;
        let Some(deadline) = deadline else { return };
        match *registered {
            Some(at) if at <= deadline => {}
            at => {
                if let Some(at) = at {
                    self.queue.remove(&(at, peer));
                }
                *registered = Some(deadline);
                self.queue.insert((deadline, peer));
            }
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// The next tunnel whose real deadline has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<PeerId> {
        loop {
            let (at, peer) = *self.queue.first()?;
            if at > now {
                return None;
            }
            self.queue.pop_first();
            let (registered, real) = &mut self.registered[peer.0 as usize];
            *registered = None;
            match *real {
                Some(at) if at <= now => return Some(peer),
                Some(at) => {
                    *registered = Some(at);
                    self.queue.insert((at, peer));
                }
                None => {}
            }
        }
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
        assert_eq!(timers.pop_due(at(15)), None);
        assert_eq!(timers.next(), Some(at(20)));
        timers.set(a, Some(at(5)));
        assert_eq!(timers.pop_due(at(25)), Some(a));
        timers.set(a, None);
        assert_eq!(timers.pop_due(at(25)), Some(b));
        assert_eq!(timers.pop_due(at(99)), None);
        assert_eq!(timers.next(), None);
    }
}
