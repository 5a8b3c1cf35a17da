//! The sending half of a stream.

use std::collections::VecDeque;

use crate::flow::SendCredit;
use crate::limits::STREAM_SEND_BUFFER_BYTES;
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
    fin: Fin,
}

/// The end of the stream (W5.12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fin {
    /// More may be written.
    Open,
    /// The end is known and its FIN is to be sent (again).
    Wanted,
    Sent,
    Acked,
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
            fin: Fin::Open,
        }
    }

    fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Takes as much as there is room for. `None`: the stream is finished.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.fin != Fin::Open {
            return None;
        }
        let room = STREAM_SEND_BUFFER_BYTES - self.buffer.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.buffer.extend(taken);
        Some(taken.len())
    }

    pub(crate) fn has_room(&self) -> bool {
        self.fin == Fin::Open && self.buffer.len() < STREAM_SEND_BUFFER_BYTES
    }

    /// Nothing more will be written. Whether that was news.
    pub(crate) fn finish(&mut self) -> bool {
        let news = self.fin == Fin::Open;
        if news {
            self.fin = Fin::Wanted;
        }
        news
    }

    pub(crate) fn raise_credit(&mut self, limit: u64) -> bool {
        self.credit.raise(limit)
    }

    /// Whether [`SendStream::piece`] would give something, with this much connection credit.
    pub(crate) fn wants_to_send(&self, connection_credit: u64) -> bool {
        !self.lost.is_empty()
            || self.fin == Fin::Wanted && self.next == self.end()
            || self.next < self.end() && self.credit.left() > 0 && connection_credit > 0
    }

    /// The next piece of at most `room` bytes: lost ones first, then new ones within both credits. Marks it as sent.
    pub(crate) fn piece(&mut self, room: usize, connection_credit: u64) -> Option<Piece> {
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
        let fin = self.fin == Fin::Wanted && end == self.end();
        if fin {
            self.fin = Fin::Sent;
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
        if fin {
            self.fin = Fin::Acked;
        }
        let range = offset.max(self.base)..(offset + u64::from(length)).max(self.base);
        self.lost.remove(range.clone());
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
        if fin && self.fin == Fin::Sent {
            self.fin = Fin::Wanted;
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

    /// Everything written so far was acked, and the end too if there is one.
    pub(crate) fn is_delivered(&self) -> bool {
        self.buffer.is_empty() && matches!(self.fin, Fin::Open | Fin::Acked)
    }

    /// Everything, with its end, was acked.
    pub(crate) fn is_over(&self) -> bool {
        self.fin == Fin::Acked && self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(credit: u64, text: &[u8]) -> SendStream {
        let mut stream = SendStream::new(credit);
        assert_eq!(stream.write(text), Some(text.len()));
        stream
    }

    fn piece(offset: u64, length: usize, fin: bool, fresh: u64) -> Option<Piece> {
        Some(Piece { offset, length, fin, fresh })
    }

    /// wire.md W5.9, W5.12: both credits hold, and FIN goes with the last byte or after it, never before.
    #[test]
    fn credit_and_end() {
        let mut s = stream(6, b"0123456789");
        assert!(s.finish());
        assert_eq!(s.write(b"x"), None);
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
}
