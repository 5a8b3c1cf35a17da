//! Stateless resets that are owed to who sends to sessions that are not there (`docs/wire.md` W4.9).

use std::collections::VecDeque;
use std::time::Duration;

use pilot_common::wire::{HEADER_LEN, Header, PacketType, RESET_LEN};

use crate::crypto::reset::ResetToken;
use crate::limits::MAX_RESETS_PER_SECOND;
use crate::time::Instant;
use crate::tunnel::Path;

/// See the module's head. Shorter than any data packet, a reset is never longer than what it answers, nor answered by one.
#[derive(Debug, Default)]
pub(super) struct Resets {
    waiting: VecDeque<(Path, [u8; RESET_LEN])>,
    /// The second that is being counted.
    since: Instant,
    in_this_second: u32,
}

impl Resets {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Answers a data packet that came over `path` for a session that is not there. Whether there may be one more now.
    pub(super) fn owe(&mut self, now: Instant, path: Path, session_id: u32, token: ResetToken) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.since, self.in_this_second) = (now, 0);
        }
        if self.in_this_second >= MAX_RESETS_PER_SECOND {
            return false;
        }
        self.in_this_second += 1;
        let header = Header { packet_type: PacketType::Reset, epoch: 0, receiver: session_id, word: 0 };
        let mut reset = [0; RESET_LEN];
        reset[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        reset[HEADER_LEN..].copy_from_slice(&token.0);
        self.waiting.push_back((path, reset));
        true
    }

    /// Writes the next one into `datagram`; its length and where it goes.
    pub(super) fn poll(&mut self, datagram: &mut [u8]) -> Option<(usize, Path)> {
        let (path, reset) = self.waiting.pop_front()?;
        datagram.get_mut(..RESET_LEN)?.copy_from_slice(&reset);
        Some((RESET_LEN, path))
    }
}
