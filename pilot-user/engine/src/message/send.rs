//! Messages sent and not yet acked, and those not yet sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use super::{cost, wide};
use crate::byte_queue::ByteQueue;
use crate::codec::Writer;
use crate::error::{Code, ProtocolViolation};
use crate::frame;
use crate::limits::{MESSAGE_SEND_BUFFER_BYTES, MESSAGE_WINDOW, WHOLE_MESSAGE_BYTES};
use crate::range_set::RangeSet;

/// Their bytes lie one behind the other in one buffer, so that sending allocates nothing once it has grown.
#[derive(Debug, Default)]
pub(crate) struct MessageSender {
    bytes: ByteQueue,
    /// Bytes that went out of the front of `bytes` so far: where entries' offsets count from.
    dropped: u64,
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: u64,
    /// The first number never sent.
    next: u64,
    /// Those of which something was lost.
    lost: BTreeSet<u64>,
    /// How far those that go in parts have come, from the first part sent to the last one acked.
    pub(super) parted: BTreeMap<u64, Parted>,
    /// The peer's application has taken all below.
    consumed: u64,
}

#[derive(Debug)]
struct Entry {
    offset: u64,
    /// At most MAX_MESSAGE_BYTES.
    length: u32,
    acked: bool,
}

#[derive(Debug, Default)]
pub(super) struct Parted {
    /// The first offset never sent.
    next: usize,
    acked: RangeSet,
    lost: RangeSet,
}

/// What to send next: these bytes of a message of that many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outgoing {
    pub(crate) number: u64,
    pub(crate) total: usize,
    pub(crate) range: Range<usize>,
}

impl Outgoing {
    /// Whether it goes in one frame, always whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.total <= WHOLE_MESSAGE_BYTES
    }
}

/// Messages that were written one behind the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) first: u64,
    /// None: there was no room.
    pub(crate) count: u32,
    /// The connection credit that they use.
    pub(crate) cost: u64,
    /// Where the last one's frame begins.
    pub(crate) last: usize,
}

impl MessageSender {
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.bytes.len() + length <= MESSAGE_SEND_BUFFER_BYTES && (self.entries.len() as u64) < MESSAGE_WINDOW
    }

    /// Queues a message, for which there is room.
    pub(crate) fn push(&mut self, message: &[u8]) {
        let offset = self.dropped + self.bytes.len() as u64;
        self.entries.push_back(Entry { offset, length: message.len() as u32, acked: false });
        self.bytes.push(message);
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The next message to send, or what is to be sent of it: a lost one, else a new one if credit allows. Does not mark it.
    pub(crate) fn peek(&self, connection_credit: u64) -> Option<Outgoing> {
        if let Some(number) = self.lost.first().copied() {
            let total = self.entry(number)?.length as usize;
            let part = self.parted.get(&number).and_then(|parted| parted.lost.first());
            let range = part.map_or(0..total, |part| part.start as usize..part.end as usize);
            return Some(Outgoing { number, total, range });
        }
        let total = self.entry(self.next)?.length as usize;
        let begun = if total > WHOLE_MESSAGE_BYTES { self.parted.get(&self.next) } else { None };
        let range = begun.map_or(0, |parted| parted.next)..total;
        // A message that is sent in parts has its credit from the first one on.
        let allowed = begun.is_some() || cost(total) <= connection_credit;
        allowed.then_some(Outgoing { number: self.next, total, range })
    }

    /// Writes whole messages of those never sent, of a connection with this id, as long as credit and room allow. `None`: what is next
    /// to send is no such message.
    pub(crate) fn write_fresh(&mut self, id: u64, connection_credit: u64, w: &mut Writer<'_>) -> Option<Run> {
        let is_whole = |entry: &Entry| entry.length as usize <= WHOLE_MESSAGE_BYTES;
        let sent = usize::try_from(self.next - self.first).ok()?;
        self.entries.get(sent).filter(|entry| is_whole(entry) && self.lost.is_empty())?;
        let mut run = Run { first: self.next, count: 0, cost: 0, last: w.len() };
        for entry in self.entries.range(sent..).take_while(|entry| is_whole(entry)) {
            let cost = run.cost + cost(entry.length as usize);
            // The low 16 bits of the number (W5.11).
            let (start, number) = (w.len(), self.next as u16);
            let payload = self.bytes.get((entry.offset - self.dropped) as usize, entry.length as usize);
            if cost > connection_credit || frame::write_message(w, id, number, payload).is_none() {
                break;
            }
            (run.last, run.cost) = (start, cost);
            run.count += 1;
            self.next += 1;
        }
        Some(run)
    }

    /// Bytes of an unacked message.
    pub(crate) fn payload(&self, number: u64, range: Range<usize>) -> &[u8] {
        let Some(entry) = self.entry(number) else { return &[] };
        self.bytes.get((entry.offset - self.dropped) as usize + range.start, range.len())
    }

    /// What [`MessageSender::peek`] named was sent, or the beginning of it: a lost message, or one that goes in parts. The connection
    /// credit that it uses.
    pub(crate) fn on_sent(&mut self, sent: &Outgoing) -> u64 {
        let number = sent.number;
        if self.lost.contains(&number) {
            let left = self.parted.get_mut(&number).is_some_and(|parted| {
                parted.lost.remove(wide(&sent.range));
                !parted.lost.is_empty()
            });
            if !left {
                self.lost.remove(&number);
            }
            return 0;
        }
        self.parted.entry(number).or_default().next = sent.range.end;
        if sent.range.end == sent.total {
            self.next += 1;
        }
        if sent.range.start == 0 { cost(sent.total) } else { 0 }
    }

    /// So many messages from `first` on arrived. Whether room came free.
    pub(crate) fn on_acked(&mut self, first: u64, count: u32) -> bool {
        let end = first + u64::from(count);
        if !self.lost.is_empty() {
            self.lost.retain(|number| !(first..end).contains(number));
        }
        self.mark_acked(first, end)
    }

    /// A part of a message arrived. Whether room came free.
    pub(crate) fn on_part_acked(&mut self, number: u64, part: Range<u64>) -> bool {
        let Some(total) = self.entry(number).map(|entry| u64::from(entry.length)) else { return false };
        let Some(parted) = self.parted.get_mut(&number) else { return false };
        parted.acked.insert(part.clone());
        parted.lost.remove(part);
        if parted.lost.is_empty() {
            self.lost.remove(&number);
        }
        if parted.acked.first() != Some(0..total) {
            return false;
        }
        self.parted.remove(&number);
        self.mark_acked(number, number + 1)
    }

    fn mark_acked(&mut self, first: u64, end: u64) -> bool {
        let index = |number: u64| usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let to = index(end).min(self.entries.len());
        let from = index(first).min(to);
        self.entries.range_mut(from..to).for_each(|entry| entry.acked = true);
        let gone = self.entries.iter().take_while(|entry| entry.acked).count();
        if gone == 0 {
            return false;
        }
        self.entries.drain(..gone);
        let all = self.dropped + self.bytes.len() as u64;
        let dropped = self.entries.front().map_or(all, |entry| entry.offset);
        self.bytes.take((dropped - self.dropped) as usize);
        (self.dropped, self.first) = (dropped, self.first + gone as u64);
        true
    }

    /// So many messages from `first` on were lost, but for those of which another copy was acked.
    pub(crate) fn on_lost(&mut self, first: u64, count: u32) {
        for number in first..first + u64::from(count) {
            if self.entry(number).is_some_and(|entry| !entry.acked) {
                self.lost.insert(number);
            }
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
            self.lost.insert(number);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
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
