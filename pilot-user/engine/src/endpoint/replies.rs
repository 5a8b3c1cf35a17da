//! Short answers to datagrams that belong to no tunnel. Nobody is remembered for one.

use std::collections::VecDeque;
use std::time::Duration;

use pilot_common::wire::COOKIE_LEN;

use super::Transmit;
use crate::crypto::cookie::Cookies;
use crate::crypto::rng::SeededRng;
use crate::limits::MAX_REPLIES;
use crate::recovery::ecn::Ecn;
use crate::tunnel::Path;

/// Those that wait to be sent; room for all that there may be is taken at once.
pub(super) struct Replies(VecDeque<Reply>);

struct Reply {
    path: Path,
    len: usize,
    /// The longest is a cookie reply.
    bytes: [u8; COOKIE_LEN],
}

impl Replies {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(MAX_REPLIES))
    }

    /// Asked before a reply is made: without room it would be made for nothing.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < MAX_REPLIES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Queues a reply of at most a cookie reply's length, back the way `path` that the datagram came. Without room it is lost.
    pub(super) fn push(&mut self, path: Path, reply: &[u8]) {
        let mut bytes = [0; COOKIE_LEN];
        if self.has_room()
            && let Some(room) = bytes.get_mut(..reply.len())
        {
            room.copy_from_slice(reply);
            self.0.push_back(Reply { path, len: reply.len(), bytes });
        }
    }

    /// Queues the cookie reply to an initiation that came by `path`.
    pub(super) fn push_cookie(
        &mut self,
        cookies: &Cookies,
        unix_time: Duration,
        path: Path,
        initiation: &[u8],
        rng: &mut SeededRng,
    ) {
        if self.has_room()
            && let Some(reply) = cookies.reply(unix_time, path.remote, initiation, rng)
        {
            self.push(path, &reply);
        }
    }

    /// Writes the next one into `datagram`.
    pub(super) fn pop(&mut self, datagram: &mut [u8]) -> Option<Transmit> {
        let Reply { path, len, bytes } = self.0.pop_front()?;
        datagram.get_mut(..len)?.copy_from_slice(&bytes[..len]);
        Some(Transmit { destination: path.remote, source: path.local, ecn: Ecn::NotEct, len })
    }
}
