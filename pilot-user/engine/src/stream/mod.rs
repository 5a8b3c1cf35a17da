//! Streams: ordered bytes within a connection, in both directions or in one.
//!
//! A stream has a sending half and a receiving half, each in a state of RFC 9000 §3.1 and §3.2 (`transitions.txt` has all of
//! their transitions). A unidirectional stream has one of the two at each end. A stream is forgotten when its halves are over.

pub(crate) mod recv;
pub(crate) mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::connection::Key;
use crate::recovery::sent::SentFrame;
use recv::RecvStream;
use send::SendStream;

/// Who can write on a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Direction {
    /// Both ends.
    Bidirectional,
    /// Who opened it.
    Unidirectional,
}

/// A stream's number within its connection: bit 0 is 0 for one that the connection's opener opened, bit 1 is 0 for a
/// bidirectional one, the rest counts up (`docs/wire.md` §5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct StreamId(pub u64);

impl StreamId {
    pub(crate) const fn new(index: u64, direction: Direction, by_opener: bool) -> Self {
        Self(index << 2 | (direction as u64) << 1 | if by_opener { 0 } else { 1 })
    }

    pub(crate) const fn is_by_opener(self) -> bool {
        self.0 & 1 == 0
    }

    /// Whether both ends can write on it. On others only the end that opened them can.
    pub const fn is_bidirectional(self) -> bool {
        self.0 & 2 == 0
    }

    pub(crate) const fn direction(self) -> Direction {
        if self.is_bidirectional() { Direction::Bidirectional } else { Direction::Unidirectional }
    }

    pub(crate) const fn index(self) -> u64 {
        self.0 >> 2
    }
}

/// How far something that must arrive has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    Wanted,
    Sent,
    /// To be sent again.
    Lost,
    Acked,
}

impl Delivery {
    pub(crate) const fn is_due(self) -> bool {
        matches!(self, Self::Wanted | Self::Lost)
    }

    pub(crate) fn on_lost(&mut self) {
        if *self == Self::Sent {
            *self = Self::Lost;
        }
    }
}

/// The halves of a stream that this end has.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) send: Option<SendStream>,
    pub(crate) recv: Option<RecvStream>,
    /// In its connection's queue of streams with something to send.
    pub(crate) queued: bool,
    /// A STREAM_CREDIT is waiting to be sent.
    pub(crate) credit_queued: bool,
    /// A CONSUMED is waiting to be sent.
    pub(crate) consumed_queued: bool,
    /// The application was told that there is something to read, and has not yet read it all.
    pub(crate) readable_told: bool,
    /// A write took less than everything: the application is told when there is room.
    pub(crate) write_blocked: bool,
}

impl Stream {
    pub(crate) fn new(send: Option<SendStream>, recv: Option<RecvStream>) -> Self {
        Self {
            send,
            recv,
            queued: false,
            credit_queued: false,
            consumed_queued: false,
            readable_told: false,
            write_blocked: false,
        }
    }

    /// Whether there is a frame to send, with this much connection credit.
    pub(crate) fn wants_to_send(&self, connection_credit: u64) -> bool {
        self.recv.as_ref().is_some_and(|recv| recv.stop_due().is_some())
            || self.send.as_ref().is_some_and(|send| send.wants_to_send(connection_credit))
    }

    /// Puts it in the queue of those with something to send, if it has something that may be sent.
    pub(crate) fn queue(&mut self, id: StreamId, connection_credit: u64, sendable: &mut VecDeque<StreamId>) {
        if !self.queued && self.wants_to_send(connection_credit) {
            self.queued = true;
            sendable.push_back(id);
        }
    }

    /// Nothing more will happen on it.
    pub(crate) fn is_over(&self) -> bool {
        self.send.as_ref().is_none_or(SendStream::is_over) && self.recv.as_ref().is_none_or(RecvStream::is_over)
    }

    /// A frame of this stream arrived. Whether room for writing came free.
    pub(crate) fn on_acked(&mut self, frame: &SentFrame) -> bool {
        match (frame, &mut self.send, &mut self.recv) {
            (SentFrame::Stream { offset, length, fin, .. }, Some(send), _) => {
                return send.on_acked(*offset, *length, *fin);
            }
            (SentFrame::ResetStream(..), Some(send), _) => send.on_reset_acked(),
            (SentFrame::StopStream(..), _, Some(recv)) => recv.on_stop_acked(),
            _ => {}
        }
        false
    }

    /// A frame of this stream was lost.
    pub(crate) fn on_lost(&mut self, frame: &SentFrame) {
        match (frame, &mut self.send, &mut self.recv) {
            (SentFrame::Stream { offset, length, fin, .. }, Some(send), _) => send.on_lost(*offset, *length, *fin),
            (SentFrame::ResetStream(..), Some(send), _) => send.on_reset_lost(),
            (SentFrame::StopStream(..), _, Some(recv)) => recv.on_stop_lost(),
            _ => {}
        }
    }
}

/// A frame of a stream that is not its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    Stop { code: u64 },
    Reset { code: u64, length: u64 },
}

impl Signal {
    pub(crate) fn sent(self, key: Key, id: StreamId) -> SentFrame {
        match self {
            Self::Stop { .. } => SentFrame::StopStream(key, id.0),
            Self::Reset { .. } => SentFrame::ResetStream(key, id.0),
        }
    }
}

impl Stream {
    /// STOP_STREAM or RESET_STREAM, if one is to be sent.
    pub(crate) fn signal(&self) -> Option<Signal> {
        let stop = self.recv.as_ref().and_then(RecvStream::stop_due).map(|code| Signal::Stop { code });
        let reset = || self.send.as_ref().and_then(SendStream::reset_due);
        stop.or_else(|| reset().map(|(code, length)| Signal::Reset { code, length }))
    }

    pub(crate) fn on_signal_sent(&mut self, signal: Signal) {
        match (signal, &mut self.send, &mut self.recv) {
            (Signal::Stop { .. }, _, Some(recv)) => recv.on_stop_sent(),
            (Signal::Reset { .. }, Some(send), _) => send.on_reset_sent(),
            _ => {}
        }
    }
}
