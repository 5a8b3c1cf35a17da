//! The receiving half of a stream: puts bytes in order.

use std::collections::VecDeque;

use crate::error::{Code, ProtocolViolation};
use crate::flow::ReceiveCredit;
use crate::limits::MAX_STREAM_GAPS;
use crate::range_set::RangeSet;

/// Bytes received and not yet read.
#[derive(Debug)]
pub(crate) struct RecvStream {
    /// The bytes from offset `read` on, up to the highest that arrived; where `beyond` does not cover them, zeros.
    buffer: VecDeque<u8>,
    read: u64,
    /// Everything below arrived.
    contiguous: u64,
    /// What arrived above `contiguous`.
    beyond: RangeSet,
    /// The stream's length, once its FIN arrived.
    length: Option<u64>,
    credit: ReceiveCredit,
    /// The application read up to the end.
    end_read: bool,
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
            contiguous: 0,
            beyond: RangeSet::default(),
            length: None,
            credit: ReceiveCredit::new(window),
            end_read: false,
        }
    }

    fn highest(&self) -> u64 {
        self.read + self.buffer.len() as u64
    }

    pub(crate) fn credit_limit(&self) -> u64 {
        self.credit.limit()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.length.is_some()
    }

    /// Takes a piece. Returns by how much the highest offset grew, which counts against the connection's credit.
    pub(crate) fn on_piece(&mut self, offset: u64, bytes: &[u8], fin: bool) -> Result<u64, ProtocolViolation> {
        // The frame decoder keeps offset + length below 2^62.
        let end = offset + bytes.len() as u64;
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
        if offset <= self.contiguous && self.beyond.is_empty() {
            // In order, the usual case: append what is new.
            if let Some(new) = bytes.get((self.contiguous - offset) as usize..) {
                self.buffer.extend(new);
                self.contiguous = self.contiguous.max(end);
            }
        } else {
            self.place(offset, bytes, end)?;
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
        self.contiguous > self.read || self.length == Some(self.read) && !self.end_read
    }

    /// Reads into `out`; whether the peer should get more credit.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> (Read, bool) {
        if self.length == Some(self.read) {
            self.end_read = true;
            return (Read::End, false);
        }
        let length = out.len().min((self.contiguous - self.read) as usize);
        if length == 0 {
            return (Read::Blocked, false);
        }
        let (front, back) = self.buffer.as_slices();
        let split = front.len().min(length);
        out[..split].copy_from_slice(&front[..split]);
        out[split..length].copy_from_slice(&back[..length - split]);
        self.buffer.drain(..length);
        self.read += length as u64;
        // Behind a known end there is nothing that credit could be for.
        let credit_due = self.credit.on_consumed(length as u64) && self.length.is_none();
        (Read::Bytes(length), credit_due)
    }

    /// Everything, with its end, was read.
    pub(crate) fn is_over(&self) -> bool {
        self.end_read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(stream: &mut RecvStream) -> Vec<u8> {
        let (mut all, mut out) = (Vec::new(), [0; 7]);
        while let (Read::Bytes(n), _) = stream.read(&mut out) {
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
