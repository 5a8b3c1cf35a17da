//! The receiving half of a stream: puts bytes in order (RFC 9000 §3.2).

use std::collections::VecDeque;

use super::Delivery;
use crate::error::{Code, OperationError, ProtocolViolation};
use crate::flow::{Pace, ReceiveCredit};
use crate::limits::{MAX_STREAM_CREDIT_BYTES, MAX_STREAM_GAPS};
use crate::range_set::RangeSet;

/// Bytes received and not yet read.
#[derive(Debug)]
pub(crate) struct RecvStream {
    /// The bytes from offset `read` on, up to the highest that arrived; where `beyond` does not cover them, zeros.
    buffer: VecDeque<u8>,
    read: u64,
    /// Of what was read, the last bytes, which the application has not said that it has consumed.
    held: u64,
    /// Everything below arrived.
    contiguous: u64,
    /// What arrived above `contiguous`.
    beyond: RangeSet,
    /// The stream's length, once its FIN arrived.
    length: Option<u64>,
    credit: ReceiveCredit,
    /// The application read up to the end, or was given the code of the reset.
    end_read: bool,
    /// The peer gave the stream up, with this code.
    reset: Option<u64>,
    /// STOP_STREAM with its code: the application reads no more, and what arrives is thrown away.
    stop: Option<(u64, Delivery)>,
}

/// RFC 9000 §3.2, figure 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecvState {
    Recv,
    SizeKnown,
    DataRecvd,
    DataRead,
    ResetRecvd,
    ResetRead,
}

/// What an arrival counts against the connection's credit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counted {
    /// By how much the highest offset grew.
    pub(crate) received: u64,
    /// Bytes that nobody will read, which are as good as read.
    pub(crate) discarded: u64,
}

/// What a read gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now; an event says when there is more.
    Blocked,
    /// The stream has ended and was read to its end.
    End,
}

impl RecvStream {
    pub(crate) fn new(window: u64) -> Self {
        Self {
            buffer: VecDeque::new(),
            read: 0,
            held: 0,
            contiguous: 0,
            beyond: RangeSet::default(),
            length: None,
            credit: ReceiveCredit::new(window),
            end_read: false,
            reset: None,
            stop: None,
        }
    }

    pub(crate) fn state(&self) -> RecvState {
        match (self.reset, self.end_read) {
            (Some(_), true) => RecvState::ResetRead,
            (Some(_), false) => RecvState::ResetRecvd,
            (None, true) => RecvState::DataRead,
            (None, false) if self.length == Some(self.contiguous) => RecvState::DataRecvd,
            (None, false) if self.length.is_some() => RecvState::SizeKnown,
            (None, false) => RecvState::Recv,
        }
    }

    fn highest(&self) -> u64 {
        self.read + self.buffer.len() as u64
    }

    pub(crate) fn credit_limit(&self) -> u64 {
        self.credit.limit()
    }

    /// Takes a piece.
    pub(crate) fn on_piece(&mut self, offset: u64, bytes: &[u8], fin: bool) -> Result<Counted, ProtocolViolation> {
        // The frame decoder keeps offset + length below 2^62.
        let end = offset + bytes.len() as u64;
        let received = self.on_end(end, fin)?;
        if self.stop.is_some() || self.reset.is_some() {
            return Ok(Counted { received, discarded: self.discard(end) });
        }
        if offset <= self.contiguous && self.beyond.is_empty() {
            // In order, the usual case: append what is new.
            if let Some(new) = bytes.get((self.contiguous - offset) as usize..) {
                self.buffer.extend(new);
                self.contiguous = self.contiguous.max(end);
            }
        } else {
            self.place(offset, bytes, end)?;
        }
        Ok(Counted { received, discarded: 0 })
    }

    /// The peer gave the stream up after `length` bytes, which count as received (W5.18; RFC 9000 §4.5). When all of them had arrived,
    /// they are read as if nothing had happened (§3.2).
    pub(crate) fn on_reset(&mut self, code: u64, length: u64) -> Result<Counted, ProtocolViolation> {
        let all_there = self.stop.is_none() && matches!(self.state(), RecvState::DataRecvd | RecvState::DataRead);
        let received = self.on_end(length, true)?;
        if all_there || self.reset.is_some() {
            return Ok(Counted::default());
        }
        self.reset = Some(code);
        Ok(Counted { received, discarded: self.discard(length) })
    }

    /// The code with which the peer gave the stream up, while the application waits for bytes.
    pub(crate) fn reset_code(&self) -> Option<u64> {
        self.reset.filter(|_| self.stop.is_none())
    }

    /// The application reads no more. The bytes that were waiting for it; `None`: it had stopped or ended before.
    pub(crate) fn stop(&mut self, code: u64) -> Option<u64> {
        if self.is_over() || self.stop.is_some() {
            return None;
        }
        self.stop = Some((code, Delivery::Wanted));
        Some(self.discard(self.highest()))
    }

    /// The code of a STOP_STREAM to send. It is pointless once the peer has given the stream up itself.
    pub(crate) fn stop_due(&self) -> Option<u64> {
        self.stop.filter(|(_, delivery)| delivery.is_due() && self.reset.is_none()).map(|(code, _)| code)
    }

    pub(crate) fn on_stop_sent(&mut self) {
        if let Some((_, delivery)) = &mut self.stop {
            *delivery = Delivery::Sent;
        }
    }

    pub(crate) fn on_stop_lost(&mut self) {
        if let Some((_, delivery)) = &mut self.stop {
            delivery.on_lost();
        }
    }

    pub(crate) fn on_stop_acked(&mut self) {
        if let Some((_, delivery)) = &mut self.stop {
            *delivery = Delivery::Acked;
        }
    }

    /// Throws away what is there, and notes that nothing below `end` is waited for. How many bytes will not be read.
    fn discard(&mut self, end: u64) -> u64 {
        let end = end.max(self.highest());
        let discarded = end - self.read;
        // Gives the memory back, too.
        self.buffer = VecDeque::new();
        self.beyond.clear();
        (self.read, self.contiguous) = (end, end);
        discarded
    }

    /// Something ends at `end`, with `fin` the stream: checks it (W5.12) and counts it. By how much the highest offset grew.
    fn on_end(&mut self, end: u64, fin: bool) -> Result<u64, ProtocolViolation> {
        let changed_end = match self.length {
            Some(length) => end > length || fin && end != length,
            None => fin && end < self.highest(),
        };
        if changed_end {
            return Err(ProtocolViolation::new(Code::StreamState, "changed where a stream ends"));
        }
        let grown = end.saturating_sub(self.highest());
        self.credit
            .on_received(grown)
            .ok_or(ProtocolViolation::new(Code::CreditExceeded, "sent beyond the stream's credit"))?;
        if fin {
            self.length = Some(end);
        }
        Ok(grown)
    }

    fn place(&mut self, offset: u64, bytes: &[u8], end: u64) -> Result<(), ProtocolViolation> {
        let start = offset.max(self.contiguous);
        if end <= start {
            return Ok(());
        }
        if end > self.highest() {
            self.buffer.resize((end - self.read) as usize, 0);
        }
        let new = &bytes[(start - offset) as usize..];
        let at = (start - self.read) as usize;
        let (front, back) = self.buffer.as_mut_slices();
        let split = front.len().saturating_sub(at).min(new.len());
        if split > 0 {
            front[at..at + split].copy_from_slice(&new[..split]);
        }
        if split < new.len() {
            let at = at + split - front.len();
            back[at..at + new.len() - split].copy_from_slice(&new[split..]);
        }
        self.beyond.insert(start..end);
        if let Some(first) = self.beyond.first().filter(|first| first.start == self.contiguous) {
            self.contiguous = first.end;
            self.beyond.remove_first();
        }
        if self.beyond.len() > MAX_STREAM_GAPS {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "left too many gaps in a stream"));
        }
        Ok(())
    }

    /// Whether a read would give bytes or the end.
    pub(crate) fn is_readable(&self) -> bool {
        let wanted = self.stop.is_none() && self.reset.is_none() && !self.end_read;
        wanted && (self.contiguous > self.read || self.length == Some(self.read))
    }

    /// Reads into `out`; whether the peer should get more credit.
    pub(crate) fn read(&mut self, out: &mut [u8], pace: Pace) -> Result<(Read, bool), OperationError> {
        if self.stop.is_some() {
            return Err(OperationError::NoStream);
        }
        if let Some(code) = self.reset {
            self.end_read = true;
            return Err(OperationError::StreamReset { code });
        }
        if self.length == Some(self.read) {
            self.end_read = true;
            return Ok((Read::End, false));
        }
        let length = out.len().min((self.contiguous - self.read) as usize);
        if length == 0 {
            return Ok((Read::Blocked, false));
        }
        let (front, back) = self.buffer.as_slices();
        let split = front.len().min(length);
        out[..split].copy_from_slice(&front[..split]);
        out[split..length].copy_from_slice(&back[..length - split]);
        self.buffer.drain(..length);
        self.read += length as u64;
        // Behind a known end there is nothing that credit could be for.
        let due = self.credit.on_consumed(length as u64, pace, MAX_STREAM_CREDIT_BYTES);
        Ok((Read::Bytes(length), due && self.length.is_none()))
    }

    /// Bytes were read that are not consumed yet.
    pub(crate) fn hold(&mut self, bytes: u64) {
        self.held += bytes;
    }

    /// The application has consumed so many of those.
    pub(crate) fn consume(&mut self, bytes: u64) {
        self.held = self.held.saturating_sub(bytes);
    }

    /// The application has consumed everything below.
    pub(crate) fn consumed(&self) -> u64 {
        self.read - self.held
    }

    /// Whether the peer has to know how far the application has read.
    pub(crate) fn needs_consumed(&self) -> bool {
        self.reset.is_none() && self.stop.is_none() && !self.is_over()
    }

    /// Bytes that the peer may be ahead of the application.
    pub(crate) fn window(&self) -> u64 {
        self.credit.window()
    }

    /// Whether more credit is of use to the peer.
    pub(crate) fn needs_credit(&self) -> bool {
        self.length.is_none() && self.stop.is_none()
    }

    /// Everything, with its end, was read and consumed; or nobody will read it, both ends know, and it is known how long it is.
    pub(crate) fn is_over(&self) -> bool {
        let both_know = |(_, delivery)| self.reset.is_some() || delivery == Delivery::Acked;
        let is_done = self.end_read && (self.held == 0 || self.reset.is_some());
        is_done || self.length.is_some() && self.stop.is_some_and(both_know)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace { now: crate::Instant::ORIGIN, rtt: None };

    fn read_all(stream: &mut RecvStream) -> Vec<u8> {
        let (mut all, mut out) = (Vec::new(), [0; 7]);
        while let Ok((Read::Bytes(n), _)) = stream.read(&mut out, PACE) {
            all.extend_from_slice(&out[..n]);
        }
        all
    }

    /// wire.md W5.9, W5.12
    #[test]
    fn violations() {
        let violation = |pieces: &[(u64, usize, bool)]| {
            let mut stream = RecvStream::new(100);
            pieces.iter().find_map(|(offset, length, fin)| stream.on_piece(*offset, &vec![0; *length], *fin).err())
        };
        let code = |pieces| violation(pieces).map(|v| v.code);
        assert_eq!(code(&[(0, 100, true)]), None);
        assert_eq!(code(&[(0, 101, false)]), Some(Code::CreditExceeded));
        assert_eq!(code(&[(1 << 61, 1, false)]), Some(Code::CreditExceeded));
        assert_eq!(code(&[(0, 10, true), (10, 1, false)]), Some(Code::StreamState), "beyond the end");
        assert_eq!(code(&[(0, 10, true), (0, 9, true)]), Some(Code::StreamState), "another end");
        assert_eq!(code(&[(0, 10, false), (0, 9, true)]), Some(Code::StreamState), "an end before what came");
        assert_eq!(code(&[(0, 10, true), (0, 10, true), (5, 5, true), (3, 2, false)]), None, "the same again");
    }

    #[test]
    fn too_many_gaps() {
        let mut stream = RecvStream::new(1 << 20);
        let violation = (0..).find_map(|n| stream.on_piece(1 + 2 * n, &[1], false).err());
        assert_eq!(violation.map(|v| v.code), Some(Code::LimitExceeded));
    }

    proptest! {
        /// Pieces of one text, in any order, overlapping, repeated, read in between: the text comes out.
        #[test]
        fn any_order_gives_the_text(
            text in prop::collection::vec(any::<u8>(), 1..600),
            pieces in prop::collection::vec((any::<prop::sample::Index>(), 1usize..80, any::<bool>()), 0..60),
        ) {
            let mut stream = RecvStream::new(1 << 20);
            let mut out = Vec::new();
            let whole = text.chunks(50).enumerate().rev().map(|(n, chunk)| (n * 50, chunk.len(), false));
            let random = pieces.iter().map(|(at, length, read)| (at.index(text.len()), *length, *read));
            for (offset, length, read) in random.chain(whole) {
                let end = (offset + length).min(text.len());
                stream.on_piece(offset as u64, &text[offset..end], end == text.len()).unwrap();
                if read {
                    out.extend(read_all(&mut stream));
                }
            }
            out.extend(read_all(&mut stream));
            prop_assert_eq!(out, text);
            prop_assert!(stream.is_over());
        }
    }
}
