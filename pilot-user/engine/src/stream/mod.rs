//! Streams: ordered bytes in both directions within a connection.

pub(crate) mod recv;
pub(crate) mod send;

use recv::RecvStream;
use send::SendStream;

/// A stream's number within its connection: bit 0 is 0 for one that the connection's opener opened, bit 1 is 0 for a
/// bidirectional one, the rest counts up (`docs/wire.md` §5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct StreamId(pub(crate) u64);

impl StreamId {
    pub(crate) const fn bidirectional(index: u64, by_opener: bool) -> Self {
        Self(index << 2 | if by_opener { 0 } else { 1 })
    }

    pub(crate) const fn is_by_opener(self) -> bool {
        self.0 & 1 == 0
    }

    pub(crate) const fn is_bidirectional(self) -> bool {
        self.0 & 2 == 0
    }

    pub(crate) const fn index(self) -> u64 {
        self.0 >> 2
    }
}

/// Both halves of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// In its connection's queue of streams with something to send.
    pub(crate) queued: bool,
    /// A STREAM_CREDIT is waiting to be sent.
    pub(crate) credit_queued: bool,
    /// The application was told that there is something to read, and has not yet read it all.
    pub(crate) readable_told: bool,
    /// A write took less than everything: the application is told when there is room.
    pub(crate) write_blocked: bool,
}

impl Stream {
    pub(crate) fn new(send_credit: u64, receive_window: u64) -> Self {
        Self {
            send: SendStream::new(send_credit),
            recv: RecvStream::new(receive_window),
            queued: false,
            credit_queued: false,
            readable_told: false,
            write_blocked: false,
        }
    }

    /// Nothing more will happen on it: everything sent was acked and everything received was read.
    pub(crate) fn is_over(&self) -> bool {
        self.send.is_over() && self.recv.is_over()
    }
}
