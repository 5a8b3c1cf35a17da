//! The sending half of a stream (RFC 9000 §3.1).

use std::collections::VecDeque;

use super::Delivery;
use crate::error::{Code, OperationError, ProtocolViolation};
use crate::flow::SendCredit;
use crate::range_set::RangeSet;

/// Bytes written and not yet acked, and which of them are to be sent.
#[derive(Debug)]
pub(crate) struct SendStream {
    /// The bytes from offset `base` on.
    buffer: VecDeque<u8>,
    base: u64,
    /// Acked, above `base`.
    acked: RangeSet,
    /// Lost, to be sent again; never acked ones.
    lost: RangeSet,
    /// The first offset never sent.
    next: u64,
    credit: SendCredit,
    /// How much the buffer may hold, as of the last write.
    capacity: usize,
    /// The stream's end (W5.12); `None`: more may be written.
    fin: Option<Delivery>,
    /// RESET_STREAM with its code, after which nothing else is sent.
    reset: Option<(u64, Delivery)>,
    /// The code of the peer's STOP_STREAM.
    stopped: Option<u64>,
    /// The peer's application has read everything below.
    consumed: u64,
}

/// RFC 9000 §3.1, figure 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SendState {
    Ready,
    Send,
    DataSent,
    DataRecvd,
    ResetSent,
    ResetRecvd,
}

/// A piece to send. `offset` and `length` are of the stream's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: usize,
    pub(crate) fin: bool,
    /// Bytes never sent before, which use connection credit.
    pub(crate) fresh: u64,
}

impl SendStream {
    pub(crate) fn new(credit: u64) -> Self {
        Self {
            buffer: VecDeque::new(),
            base: 0,
            acked: RangeSet::default(),
            lost: RangeSet::default(),
            next: 0,
            credit: SendCredit::new(credit),
            capacity: 0,
            fin: None,
            reset: None,
            stopped: None,
            consumed: 0,
        }
    }

    pub(crate) fn state(&self) -> SendState {
        match (self.reset, self.fin) {
            (Some((_, Delivery::Acked)), _) => SendState::ResetRecvd,
            (Some(_), _) => SendState::ResetSent,
            (None, Some(Delivery::Acked)) if self.buffer.is_empty() => SendState::DataRecvd,
            (None, Some(Delivery::Sent | Delivery::Lost | Delivery::Acked)) => SendState::DataSent,
            _ if self.next > 0 => SendState::Send,
            _ => SendState::Ready,
        }
    }

    fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Takes as much as there is room for in a buffer of `capacity` bytes.
    pub(crate) fn write(&mut self, bytes: &[u8], capacity: usize) -> Result<usize, OperationError> {
        self.check()?;
        self.capacity = capacity;
        let room = capacity.saturating_sub(self.buffer.len());
        let taken = &bytes[..bytes.len().min(room)];
        self.buffer.extend(taken);
        Ok(taken.len())
    }

    /// Whether anything may be written.
    fn check(&self) -> Result<(), OperationError> {
        match (self.stopped, self.fin, self.reset) {
            (Some(code), ..) => Err(OperationError::StreamStopped { code }),
            (None, None, None) => Ok(()),
            _ => Err(OperationError::Finished),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.check().is_ok() && self.buffer.len() < self.capacity
    }

    /// Nothing more will be written.
    pub(crate) fn finish(&mut self) -> Result<(), OperationError> {
        self.check()?;
        self.fin = Some(Delivery::Wanted);
        Ok(())
    }

    /// What the peer does not have is given up (RFC 9000 §3.1). Whether it was not all there, and nothing given up before.
    pub(crate) fn reset(&mut self, code: u64) -> bool {
        let news = matches!(self.state(), SendState::Ready | SendState::Send | SendState::DataSent);
        if news {
            self.reset = Some((code, Delivery::Wanted));
            self.base = self.next;
            // Gives the memory back, too.
            self.buffer = VecDeque::new();
            self.lost.clear();
            self.acked.clear();
        }
        news
    }

    /// The peer reads no more: what is not there yet is given up with its code (W5.18; RFC 9000 §3.5). Whether that was news.
    pub(crate) fn on_stop(&mut self, code: u64) -> bool {
        let news = self.stopped.is_none() && (self.reset(code) || self.state() == SendState::DataRecvd);
        if news {
            self.stopped = Some(code);
        }
        news
    }

    /// The code and final offset of a RESET_STREAM to send. The offset is what was sent, for the peer to count against credit
    /// what is lost of it (RFC 9000 §4.5).
    pub(crate) fn reset_due(&self) -> Option<(u64, u64)> {
        self.reset.filter(|(_, delivery)| delivery.is_due()).map(|(code, _)| (code, self.next))
    }

    pub(crate) fn on_reset_sent(&mut self) {
        if let Some((_, delivery)) = &mut self.reset {
            *delivery = Delivery::Sent;
        }
    }

    pub(crate) fn on_reset_lost(&mut self) {
        if let Some((_, delivery)) = &mut self.reset {
            delivery.on_lost();
        }
    }

    pub(crate) fn on_reset_acked(&mut self) {
        if let Some((_, delivery)) = &mut self.reset {
            *delivery = Delivery::Acked;
        }
    }

    /// The peer's application has read everything below `offset`. Whether that is news: of what was given up it never is.
    pub(crate) fn on_consumed(&mut self, offset: u64) -> Result<bool, ProtocolViolation> {
        if offset > self.next {
            return Err(ProtocolViolation::new(Code::StreamState, "consumed what was not sent"));
        }
        let news = offset > self.consumed;
        self.consumed = self.consumed.max(offset);
        Ok(news && self.reset.is_none())
    }

    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    pub(crate) fn raise_credit(&mut self, limit: u64) -> bool {
        self.credit.raise(limit)
    }

    /// Whether [`SendStream::piece`] would give something, with this much connection credit.
    pub(crate) fn wants_to_send(&self, connection_credit: u64) -> bool {
        if self.reset.is_some() {
            return self.reset_due().is_some();
        }
        !self.lost.is_empty()
            || self.next == self.end() && self.fin.is_some_and(Delivery::is_due)
            || self.next < self.end() && self.credit.left() > 0 && connection_credit > 0
    }

    /// The next piece of at most `room` bytes: lost ones first, then new ones within both credits. Marks it as sent.
    pub(crate) fn piece(&mut self, room: usize, connection_credit: u64) -> Option<Piece> {
        if self.reset.is_some() {
            return None;
        }
        let room = room as u64;
        if let Some(lost) = self.lost.first() {
            if room == 0 {
                return None;
            }
            let range = lost.start..lost.end.min(lost.start + room);
            self.lost.remove(range.clone());
            let length = (range.end - range.start) as usize;
            let fin = self.take_fin(range.end);
            return Some(Piece { offset: range.start, length, fin, fresh: 0 });
        }
        let fresh = (self.end() - self.next).min(self.credit.left()).min(connection_credit).min(room);
        let offset = self.next;
        let fin = self.take_fin(offset + fresh);
        if fresh == 0 && !fin {
            return None;
        }
        self.next += fresh;
        self.credit.take(fresh);
        Some(Piece { offset, length: fresh as usize, fin, fresh })
    }

    /// Whether a piece that ends at `end` is the last and its FIN is still to be sent.
    fn take_fin(&mut self, end: u64) -> bool {
        let fin = end == self.end() && self.fin.is_some_and(Delivery::is_due);
        if fin {
            self.fin = Some(Delivery::Sent);
        }
        fin
    }

    /// Copies the bytes of a piece, which stay in the buffer until they are acked.
    pub(crate) fn copy(&self, offset: u64, out: &mut [u8]) {
        let from = (offset - self.base) as usize;
        let (front, back) = self.buffer.as_slices();
        let split = front.len().saturating_sub(from).min(out.len());
        let (first, second) = out.split_at_mut(split);
        if !first.is_empty() {
            first.copy_from_slice(&front[from..from + first.len()]);
        }
        if !second.is_empty() {
            let from = (from + split) - front.len();
            second.copy_from_slice(&back[from..from + second.len()]);
        }
    }

    /// A piece arrived. Whether room for writing came free.
    pub(crate) fn on_acked(&mut self, offset: u64, length: u32, fin: bool) -> bool {
        if self.reset.is_some() {
            return false;
        }
        if fin {
            self.fin = Some(Delivery::Acked);
        }
        let range = offset.max(self.base)..(offset + u64::from(length)).max(self.base);
        if !self.lost.is_empty() {
            self.lost.remove(range.clone());
        }
        if self.acked.is_empty() && range.start == self.base {
            // Nearly always.
            self.buffer.drain(..(range.end - self.base) as usize);
            return std::mem::replace(&mut self.base, range.end) < range.end;
        }
        self.acked.insert(range);
        match self.acked.first() {
            Some(first) if first.start == self.base => {
                self.acked.remove_first();
                self.buffer.drain(..(first.end - self.base) as usize);
                self.base = first.end;
                true
            }
            _ => false,
        }
    }

    /// A piece was lost, unless another copy of it was acked.
    pub(crate) fn on_lost(&mut self, offset: u64, length: u32, fin: bool) {
        if self.reset.is_some() {
            return;
        }
        if let Some(delivery) = self.fin.as_mut().filter(|_| fin) {
            delivery.on_lost();
        }
        let range = offset.max(self.base)..(offset + u64::from(length)).max(self.base);
        if range.is_empty() {
            return;
        }
        self.lost.insert(range.clone());
        for acked in self.acked.iter().filter(|acked| acked.start < range.end && acked.end > range.start) {
            self.lost.remove(acked.clone());
        }
    }

    /// Everything written so far was acked, and the end, or the reset, too if there is one.
    pub(crate) fn is_delivered(&self) -> bool {
        match self.reset {
            Some((_, delivery)) => delivery == Delivery::Acked,
            None => self.buffer.is_empty() && self.fin.is_none_or(|delivery| delivery == Delivery::Acked),
        }
    }

    /// Everything, with its end, was acked and consumed; or it was given up, and the peer knows.
    pub(crate) fn is_over(&self) -> bool {
        match self.state() {
            SendState::ResetRecvd => true,
            SendState::DataRecvd => self.consumed == self.end() || self.stopped.is_some(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(credit: u64, text: &[u8]) -> SendStream {
        let mut stream = SendStream::new(credit);
        assert_eq!(stream.write(text, text.len()), Ok(text.len()));
        assert_eq!(stream.write(b"x", text.len()), Ok(0), "the buffer is full");
        stream
    }

    fn piece(offset: u64, length: usize, fin: bool, fresh: u64) -> Option<Piece> {
        Some(Piece { offset, length, fin, fresh })
    }

    /// wire.md W5.9, W5.12: both credits hold, and FIN goes with the last byte or after it, never before.
    #[test]
    fn credit_and_end() {
        let mut s = stream(6, b"0123456789");
        assert_eq!(s.finish(), Ok(()));
        assert_eq!(s.write(b"x", 100), Err(OperationError::Finished));
        assert_eq!(s.piece(4, 100), piece(0, 4, false, 4));
        assert_eq!(s.piece(4, 1), piece(4, 1, false, 1), "connection credit");
        assert_eq!(s.piece(4, 100), piece(5, 1, false, 1), "stream credit");
        assert!(!s.wants_to_send(100));
        assert_eq!(s.piece(4, 100), None);
        s.raise_credit(100);
        assert_eq!(s.piece(100, 100), piece(6, 4, true, 4));
        assert_eq!(s.piece(100, 100), None);
        s.on_lost(6, 4, true);
        assert_eq!(s.piece(2, 0), piece(6, 2, false, 0), "sending again uses no credit");
        assert_eq!(s.piece(2, 0), piece(8, 2, true, 0));
        s.on_acked(0, 10, true);
        assert!(s.is_delivered() && !s.is_over(), "delivered is not consumed");
        assert_eq!(s.on_consumed(9), Ok(true));
        assert_eq!(s.on_consumed(9), Ok(false), "no news");
        assert_eq!(s.on_consumed(11).map_err(|v| v.code), Err(Code::StreamState));
        assert_eq!(s.on_consumed(10), Ok(true));
        assert!(s.is_over());
    }

    #[test]
    fn lost_and_acked_in_any_order() {
        let mut s = stream(100, b"0123456789");
        (0..5).for_each(|_| assert!(s.piece(2, 100).is_some()));
        assert!(!s.on_acked(4, 2, false));
        s.on_lost(2, 6, false);
        assert_eq!(s.piece(9, 0), piece(2, 2, false, 0));
        assert_eq!(s.piece(9, 0), piece(6, 2, false, 0), "4..6 was acked");
        assert!(s.on_acked(0, 4, false));
        let mut out = [0; 4];
        s.copy(6, &mut out);
        assert_eq!(&out, b"6789");
        s.on_lost(0, 4, false);
        assert!(!s.wants_to_send(0), "a late loss of what was acked");
    }

    /// Found by fuzzing: 10 bytes were written, 6 sent and read, and the rest given up.
    #[test]
    fn what_was_given_up_is_not_consumed() {
        let mut s = stream(100, b"0123456789");
        assert!(s.piece(6, 100).is_some());
        assert!(s.reset(7));
        assert_eq!(s.on_consumed(6), Ok(false));
        assert_eq!(s.consumed(), 6);
    }
}
