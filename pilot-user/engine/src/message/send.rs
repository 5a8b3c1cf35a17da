//! Messages sent and not yet acked, and those not yet sent.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{cost, nearest, wide};
use crate::byte_queue::ByteQueue;
use crate::codec::Writer;
use crate::error::{Code, ProtocolViolation};
use crate::frame;
use crate::limits::{MESSAGE_SEND_BUFFER_BYTES, MESSAGE_WINDOW, WHOLE_MESSAGE_BYTES};
use crate::range_set::RangeSet;

/// Messages lie one behind the other in one buffer, each as the MESSAGE that takes it, with its length: a packet takes a run of them as
/// it is, what becomes of it is a range of bytes, and nothing is held for each. One that goes in parts lies there as well, and is seen
/// by its length. Positions count from the first byte there ever was.
#[derive(Debug, Default)]
pub(crate) struct MessageSender {
    frames: ByteQueue,
    /// The connection that the frames name.
    connection: u64,
    /// Where `frames` begins, and where the first one never sent does.
    start: u64,
    fresh: u64,
    /// The numbers of those two, and of the next message.
    first: u64,
    next: u64,
    end: u64,
    /// What was acked behind something that was not. No range of it, and of `lost`, ends within a frame.
    acked: RangeSet,
    /// What was lost; of one that goes in parts, if anything was.
    lost: RangeSet,
    /// How far those that go in parts have come, from the first part sent to the last one acked, by number.
    pub(super) parted: BTreeMap<u64, Parted>,
    /// The peer's application has taken all below.
    consumed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Parted {
    /// Where its frame is, with how many bytes before its own.
    frame: Range<u64>,
    head: usize,
    /// The first offset never sent.
    next: usize,
    acked: RangeSet,
    lost: RangeSet,
}

/// What to send next: these bytes of a message of that many, which goes in parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) number: u64,
    pub(crate) total: usize,
    pub(crate) range: Range<usize>,
    frame: Range<u64>,
    head: usize,
}

/// Messages that were written one behind the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Where they are, for [`MessageSender::on_acked`] and [`MessageSender::on_lost`].
    pub(crate) start: u64,
    pub(crate) bytes: u32,
    /// None: there was no room.
    pub(crate) count: u32,
    /// The connection credit that they use.
    pub(crate) cost: u64,
    /// Where the last one's frame begins.
    pub(crate) last: usize,
}

/// A frame of the buffer.
struct Held {
    head: usize,
    length: usize,
}

impl Held {
    fn is_whole(&self) -> bool {
        self.length <= WHOLE_MESSAGE_BYTES
    }
}

impl MessageSender {
    #[inline]
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.frames.len() + length <= MESSAGE_SEND_BUFFER_BYTES && self.end - self.first < MESSAGE_WINDOW
    }

    /// Queues a message, for which there is room.
    #[inline]
    pub(crate) fn push(&mut self, message: &[u8]) {
        frame::push_message(&mut self.frames, self.connection, self.end as u16, message);
        self.end += 1;
    }

    /// The connection has this id from now on. Nothing was sent under another one.
    pub(crate) fn set_connection(&mut self, id: u64) {
        if std::mem::replace(&mut self.connection, id) == id || self.frames.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.frames);
        let (mut rest, mut number) = (before.rest(), self.first);
        while let Some(body) = frame::message_at(rest) {
            frame::push_message(&mut self.frames, id, number as u16, &rest[body.clone()]);
            (rest, number) = (&rest[body.end..], number + 1);
        }
    }

    /// What there is from a position on.
    fn from(&self, position: u64) -> &[u8] {
        self.frames.get((position - self.start) as usize, usize::MAX)
    }

    #[inline]
    fn held(&self, position: u64) -> Option<Held> {
        frame::message_at(self.from(position)).map(|body| Held { head: body.start, length: body.len() })
    }

    /// The number of what lies at a position.
    fn number(&self, position: u64) -> u64 {
        nearest(frame::message_number(self.from(position), self.connection).unwrap_or(0), self.first)
    }

    /// How many messages lie in a range.
    fn count(&self, range: &Range<u64>) -> u64 {
        let (at, length) = ((range.start - self.start) as usize, (range.end - range.start) as usize);
        let (mut rest, mut count) = (self.frames.get(at, length), 0);
        while let Some(body) = frame::message_at(rest) {
            rest = rest.get(body.end..).unwrap_or_default();
            count += 1;
        }
        count
    }

    /// Bytes that were never sent.
    pub(crate) fn fresh_bytes(&self) -> u64 {
        self.start + self.frames.len() as u64 - self.fresh
    }

    /// Whether all was sent, and nothing of it lost.
    #[inline]
    pub(crate) fn is_sent(&self) -> bool {
        self.fresh_bytes() == 0 && self.lost.is_empty()
    }

    /// Whether there is something to send: a lost message, or a new one if credit allows.
    #[inline]
    pub(crate) fn wants_to_send(&self, connection_credit: u64) -> bool {
        // As nearly always, when this is asked for every packet.
        if self.is_sent() {
            return false;
        }
        let is_allowed = |held: Held| cost(held.length) <= connection_credit || self.is_begun(&held);
        !self.lost.is_empty() || self.held(self.fresh).is_some_and(is_allowed)
    }

    /// A message that is sent in parts has its credit from the first one on.
    fn is_begun(&self, held: &Held) -> bool {
        !held.is_whole() && self.parted.contains_key(&self.next)
    }

    /// Writes whole messages one behind the other while room allows: lost ones, else new ones as long as credit allows, too.
    /// `None`: what is next to send is no such message.
    pub(crate) fn write_run(&mut self, connection_credit: u64, w: &mut Writer<'_>) -> Option<Run> {
        let lost = self.lost.first();
        let start = lost.as_ref().map_or(self.fresh, |lost| lost.start);
        if !self.held(start)?.is_whole() {
            return None;
        }
        let (room, credit) = match &lost {
            Some(lost) => (w.room().min((lost.end - lost.start) as usize), u64::MAX),
            None => (w.room(), connection_credit),
        };
        let frames = self.from(start);
        let mut run = Run { start, bytes: 0, count: 0, cost: 0, last: w.len() };
        let mut at = 0;
        while let Some(body) = frames.get(at..).and_then(frame::message_at) {
            let cost = run.cost + cost(body.len());
            if at + body.end > room || cost > credit || body.len() > WHOLE_MESSAGE_BYTES {
                break;
            }
            (run.last, run.cost) = (w.len() + at, cost);
            run.count += 1;
            at += body.end;
        }
        // The room was looked at.
        w.bytes(frames.get(..at)?)?;
        run.bytes = at as u32;
        if lost.is_some() {
            self.lost.remove(start..start + at as u64);
            run.cost = 0;
        } else {
            self.fresh += at as u64;
            self.next += u64::from(run.count);
        }
        Some(run)
    }

    /// What is next to send, where that is one that goes in parts: what was lost of it, else what is new if credit allows. Does not
    /// mark it.
    pub(crate) fn next_part(&self, connection_credit: u64) -> Option<Part> {
        let lost = self.lost.first();
        let at = lost.as_ref().map_or(self.fresh, |lost| lost.start);
        let held = self.held(at).filter(|held| !held.is_whole())?;
        let total = held.length;
        let number = if lost.is_some() { self.number(at) } else { self.next };
        let parted = self.parted.get(&number);
        let range = match (&lost, parted) {
            (Some(_), Some(parted)) => parted.lost.first().map(|part| part.start as usize..part.end as usize)?,
            (Some(_), None) => return None,
            (None, Some(parted)) => parted.next..total,
            (None, None) if cost(total) <= connection_credit => 0..total,
            (None, None) => return None,
        };
        let frame = at..at + (held.head + total) as u64;
        Some(Part { number, total, range, frame, head: held.head })
    }

    /// The bytes of it.
    pub(crate) fn part(&self, part: &Part) -> &[u8] {
        let at = (part.frame.start - self.start) as usize + part.head + part.range.start;
        self.frames.get(at, part.range.len())
    }

    /// What [`MessageSender::next_part`] named was sent, or the beginning of it. The connection credit that it uses.
    pub(crate) fn on_part_sent(&mut self, sent: &Part) -> u64 {
        let parted = self.parted.entry(sent.number).or_default();
        if self.lost.first().is_some_and(|lost| lost.start == sent.frame.start) {
            parted.lost.remove(wide(&sent.range));
            if parted.lost.is_empty() {
                self.lost.remove(sent.frame.clone());
            }
            return 0;
        }
        (parted.frame, parted.head, parted.next) = (sent.frame.clone(), sent.head, sent.range.end);
        if sent.range.end == sent.total {
            self.next += 1;
            self.fresh = sent.frame.end;
        }
        if sent.range.start == 0 { cost(sent.total) } else { 0 }
    }

    /// A run of messages arrived. Whether room came free.
    pub(crate) fn on_acked(&mut self, start: u64, bytes: u32, count: u32) -> bool {
        let range = start..start + u64::from(bytes);
        if !self.lost.is_empty() {
            self.lost.remove(range.clone());
        }
        self.mark_acked(range, count)
    }

    /// A part of a message arrived. Whether room came free.
    pub(crate) fn on_part_acked(&mut self, number: u64, part: Range<u64>) -> bool {
        let Some(parted) = self.parted.get_mut(&number) else { return false };
        parted.acked.insert(part.clone());
        parted.lost.remove(part);
        if parted.lost.is_empty() {
            self.lost.remove(parted.frame.clone());
        }
        let total = parted.frame.end - parted.frame.start - parted.head as u64;
        if parted.acked.first() != Some(0..total) {
            return false;
        }
        let frame = parted.frame.clone();
        self.parted.remove(&number);
        self.mark_acked(frame, 1)
    }

    fn mark_acked(&mut self, range: Range<u64>, count: u32) -> bool {
        if range.start == self.start && self.acked.is_empty() {
            // Nearly always.
            self.drop_first(range.end, u64::from(count));
            return true;
        }
        // Another copy of it may be gone.
        self.acked.insert(range.start.max(self.start)..range.end.max(self.start));
        let Some(first) = self.acked.first().filter(|first| first.start == self.start) else { return false };
        self.acked.remove_first();
        self.drop_first(first.end, self.count(&first));
        true
    }

    fn drop_first(&mut self, end: u64, count: u64) {
        self.frames.take((end - self.start) as usize);
        (self.start, self.first) = (end, self.first + count);
    }

    /// A run of messages was lost, but for those of which another copy was acked.
    pub(crate) fn on_lost(&mut self, start: u64, bytes: u32) {
        let range = start.max(self.start)..(start + u64::from(bytes)).max(self.start);
        self.lost.insert(range.clone());
        for acked in self.acked.iter().filter(|acked| acked.start < range.end && acked.end > range.start) {
            self.lost.remove(acked.clone());
        }
    }

    /// A part of a message was lost, unless another copy of it was acked.
    pub(crate) fn on_part_lost(&mut self, number: u64, part: Range<u64>) {
        let Some(parted) = self.parted.get_mut(&number) else { return };
        parted.lost.insert(part.clone());
        for acked in parted.acked.iter().filter(|acked| acked.start < part.end && acked.end > part.start) {
            parted.lost.remove(acked.clone());
        }
        if !parted.lost.is_empty() {
            self.lost.insert(parted.frame.clone());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The peer's application has taken all messages below `number`. Whether that is news.
    pub(crate) fn on_consumed(&mut self, number: u64) -> Result<bool, ProtocolViolation> {
        if number > self.next {
            return Err(ProtocolViolation::new(Code::ConnectionState, "consumed messages that were not sent"));
        }
        let news = number > self.consumed;
        self.consumed = self.consumed.max(number);
        Ok(news)
    }

    /// Messages that the peer's application has taken.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }
}
