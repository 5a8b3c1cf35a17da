//! Unreliable datagrams (`docs/wire.md` W5.19; RFC 9221): what waits to be sent, or to be received by the application. Nothing is sent again.

use std::collections::VecDeque;

use crate::byte_queue::ByteQueue;
use crate::limits::{DATAGRAM_BUFFER_BYTES, MESSAGE_OVERHEAD_BYTES};

/// A bounded queue that drops its oldest. The bytes lie one behind the other in one buffer, so that nothing is allocated once it
/// has grown.
#[derive(Debug, Default)]
pub(crate) struct DatagramQueue {
    bytes: ByteQueue,
    lengths: VecDeque<usize>,
    /// Datagrams dropped because there was no room.
    dropped: u64,
}

impl DatagramQueue {
    fn held(&self) -> usize {
        self.bytes.len() + self.lengths.len() * MESSAGE_OVERHEAD_BYTES as usize
    }

    /// Adds a datagram, dropping as many of the oldest as it takes.
    pub(crate) fn push(&mut self, datagram: &[u8]) {
        while !self.lengths.is_empty()
            && self.held() + datagram.len() + MESSAGE_OVERHEAD_BYTES as usize > DATAGRAM_BUFFER_BYTES
        {
            self.drop_first();
        }
        self.bytes.push([datagram]);
        self.lengths.push_back(datagram.len());
    }

    /// Drops and counts the oldest.
    pub(crate) fn drop_first(&mut self) {
        self.dropped += u64::from(self.pop());
    }

    /// The oldest.
    pub(crate) fn first(&self) -> Option<&[u8]> {
        Some(self.bytes.get(0, *self.lengths.front()?))
    }

    /// Takes the oldest out. Whether there was one.
    pub(crate) fn pop(&mut self) -> bool {
        let Some(length) = self.lengths.pop_front() else { return false };
        self.bytes.take(length);
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let mut queue = DatagramQueue::default();
        let fitting = DATAGRAM_BUFFER_BYTES / (1000 + MESSAGE_OVERHEAD_BYTES as usize);
        (0..fitting + 3).for_each(|n| queue.push(&[n as u8; 1000]));
        assert_eq!(queue.dropped(), 3);
        assert_eq!(queue.first(), Some(&[3; 1000][..]));
        // Without bytes they cost something too.
        (0..1_000_000).for_each(|_| queue.push(&[]));
        assert_eq!(queue.lengths.len(), DATAGRAM_BUFFER_BYTES / MESSAGE_OVERHEAD_BYTES as usize);
        while queue.pop() {}
        assert!(queue.is_empty() && queue.first().is_none());
    }
}
