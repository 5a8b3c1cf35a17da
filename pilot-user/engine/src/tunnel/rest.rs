//! Tunnels at rest: a node may have a hundred thousand of them, and none needs more than its state.

use super::{Transport, Tunnel};
use crate::limits::REST_AFTER;
use crate::time::Instant;

/// When room is given back, if no packet is sent or opened until then.
pub(super) fn rest_at(transport: &Transport) -> Option<Instant> {
    let is_awake = !transport.is_resting && !transport.recovery.has_unacked();
    is_awake.then(|| transport.last_sent.max(transport.last_received) + REST_AFTER)
}

impl Tunnel {
    /// Gives back the room of what the next packet makes anew.
    pub(super) fn rest(&mut self) {
        if let (Some(transport), Some(session)) = (&mut self.transport, &mut self.session) {
            transport.is_resting = true;
            transport.recovery.rest();
            transport.acks.rest();
            transport.replay.rest();
            session.keys.rest();
            self.table.rest();
        }
    }
}

#[cfg(test)]
impl Tunnel {
    /// Whether nothing is held that the next packet makes anew.
    pub(crate) fn is_at_rest_for_test(&mut self) -> bool {
        let keys_rest = self.session.as_mut().is_some_and(|session| !session.keys.are_expanded_for_test());
        keys_rest && self.transport.as_ref().is_some_and(|transport| transport.is_resting)
    }
}
