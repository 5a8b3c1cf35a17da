//! Session ids: those of all tunnels, and those of one session, which this end may replace (`docs/wire.md` W1.2, W4.8).

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use smallvec::{SmallVec, smallvec};

use crate::crypto::rng::SeededRng;
use crate::event::{Effect, PeerId};
use crate::limits::{MAX_SESSION_IDS, SESSION_ID_LINGER};
use crate::time::Instant;

/// Session ids in use, and whose they are (W1.2), and the changes that were not told yet (W2.5).
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// Those drawn here. Looked up, never iterated. A fast hash will do, because nobody else can make them collide.
    /// `None`: an introduction's.
    own: HashMap<u32, Option<PeerId>, FixedState>,
    /// Ids that peers gave, to find whose a reset is. Of two peers that gave the same, one is not found, and suspected later.
    remote: HashMap<u32, PeerId, FixedState>,
    effects: VecDeque<Effect>,
}

impl Sessions {
    pub(crate) fn peer(&self, id: u32) -> Option<PeerId> {
        self.own.get(&id).copied().flatten()
    }

    pub(crate) fn peer_of_remote(&self, id: u32) -> Option<PeerId> {
        self.remote.get(&id).copied()
    }

    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Packets to a peer name it by `id` from now on.
    pub(super) fn insert_remote(&mut self, id: u32, peer: PeerId) {
        self.remote.insert(id, peer);
    }

    pub(super) fn remove_remote(&mut self, id: u32, peer: PeerId) {
        if self.remote.get(&id) == Some(&peer) {
            self.remote.remove(&id);
        }
    }

    /// A new id: the worker, and 24 random bits that make none in use and not 0.
    pub(crate) fn allocate(&mut self, worker: u8, rng: &mut SeededRng, peer: Option<PeerId>) -> u32 {
        loop {
            let id = u32::from(worker) << 24 | rng.next_u32() >> 8;
            if id != 0 && !self.own.contains_key(&id) {
                self.own.insert(id, peer);
                self.effects.push_back(Effect::SessionBegins(id));
                return id;
            }
        }
    }

    pub(crate) fn release(&mut self, id: u32) {
        if self.own.remove(&id).is_some() {
            self.effects.push_back(Effect::SessionEnds(id));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.own.len()
    }
}

/// The ids by which the peer may name one session: the newest, and those that it may still be using.
#[derive(Debug)]
pub(super) struct SessionIds {
    /// Oldest first; at least one.
    ids: SmallVec<[u32; 2]>,
    /// When the older ones end, once the peer was seen using the newest.
    retire_at: Option<Instant>,
}

impl SessionIds {
    pub(super) fn new(id: u32) -> Self {
        Self { ids: smallvec![id], retire_at: None }
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    /// The id that was drawn last.
    pub(super) fn newest(&self) -> u32 {
        self.ids.last().copied().unwrap_or_default()
    }

    /// Whether another id may be added.
    pub(super) fn has_room(&self) -> bool {
        self.ids.len() < MAX_SESSION_IDS
    }

    /// Adds a newer id, for which there is room.
    pub(super) fn push(&mut self, id: u32) {
        self.ids.push(id);
        self.retire_at = None;
    }

    /// The id that the peer is to be told; `None`: it has known the only one since the handshake, or uses it.
    pub(super) fn to_tell(&self) -> Option<u32> {
        self.ids.last().copied().filter(|_| self.ids.len() > 1 && self.retire_at.is_none())
    }

    /// A packet was opened that named the session by `id`.
    pub(super) fn on_used(&mut self, now: Instant, id: u32) {
        if self.ids.len() > 1 && self.ids.last() == Some(&id) {
            self.retire_at.get_or_insert(now + SESSION_ID_LINGER);
        }
    }

    /// When [`SessionIds::retire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retire_at
    }

    /// Ends the older ids if it is time.
    pub(super) fn retire(&mut self, now: Instant, sessions: &mut Sessions) {
        if self.retire_at.is_some_and(|at| at <= now) {
            self.retire_at = None;
            let older = self.ids.len() - 1;
            self.ids.drain(..older).for_each(|id| sessions.release(id));
        }
    }

    /// The session is over.
    pub(super) fn release(&self, sessions: &mut Sessions) {
        self.ids.iter().for_each(|id| sessions.release(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire.md W2.5: what is told is what is in use, in the order in which it came to be.
    #[test]
    fn ids_that_come_and_go_are_told_once() {
        let (peer, mut rng, mut sessions) = (PeerId(0), SeededRng::new([1; 32]), Sessions::default());
        let ids = [(); 3].map(|()| sessions.allocate(3, &mut rng, Some(peer)));
        sessions.release(ids[1]);
        sessions.release(ids[1]);
        let told: Vec<_> = std::iter::from_fn(|| sessions.poll_effect()).collect();
        let [a, b, c] = ids.map(Effect::SessionBegins);
        assert_eq!(told, [a, b, c, Effect::SessionEnds(ids[1])]);
    }

    /// wire.md W4.8: both are accepted until the peer uses the new one, and a while after; there are never many.
    #[test]
    fn old_ids_linger_and_are_bounded() {
        let (peer, mut rng, mut sessions) = (PeerId(0), SeededRng::new([1; 32]), Sessions::default());
        let mut next = |sessions: &mut Sessions| sessions.allocate(3, &mut rng, Some(peer));
        let first = next(&mut sessions);
        let mut ids = SessionIds::new(first);
        assert_eq!((ids.to_tell(), ids.deadline()), (None, None));
        while ids.has_room() {
            ids.push(next(&mut sessions));
        }
        let newest = ids.to_tell().unwrap();
        assert_eq!((sessions.len(), newest >> 24), (MAX_SESSION_IDS, 3));
        let now = Instant::from_nanos(5);
        ids.on_used(now, first);
        assert_eq!(ids.deadline(), None, "the peer uses the oldest");
        ids.on_used(now, newest);
        ids.on_used(now + SESSION_ID_LINGER, newest);
        assert_eq!((ids.deadline(), ids.to_tell()), (Some(now + SESSION_ID_LINGER), None));
        ids.retire(now, &mut sessions);
        assert!(ids.contains(first), "late packets still name it");
        ids.retire(now + SESSION_ID_LINGER, &mut sessions);
        assert!(!ids.contains(first) && ids.contains(newest) && ids.has_room());
        assert_eq!(sessions.len(), 1);
        ids.release(&mut sessions);
        assert_eq!(sessions.len(), 0);
    }
}
