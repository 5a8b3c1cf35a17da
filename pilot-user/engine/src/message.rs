//! Messages: whole, in order, each delivered once, in a lane of their own ahead of streams (`docs/wire.md` W5.11). Small ones
//! go in one frame, the usual case; larger ones in parts (W5.13).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use crate::error::{Code, ProtocolViolation};
use crate::frame::Part;
use crate::limits::{
    MAX_MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES, MESSAGE_SEND_BUFFER_BYTES, MESSAGE_WINDOW, WHOLE_MESSAGE_BYTES,
};
use crate::range_set::RangeSet;

/// What a message counts against connection credit (W5.9).
pub(crate) const fn cost(length: usize) -> u64 {
    length as u64 + MESSAGE_OVERHEAD_BYTES
}

/// Messages sent and not yet acked, and those not yet sent. Their bytes lie one behind the other in one buffer, so that
/// sending allocates nothing once it has grown.
#[derive(Debug, Default)]
pub(crate) struct MessageSender {
    bytes: VecDeque<u8>,
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
    parted: BTreeMap<u64, Parted>,
    /// The peer's application has taken all below.
    consumed: u64,
}

#[derive(Debug)]
struct Entry {
    offset: u64,
    length: usize,
    acked: bool,
}

#[derive(Debug, Default)]
struct Parted {
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

fn wide(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

impl MessageSender {
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.bytes.len() + length <= MESSAGE_SEND_BUFFER_BYTES && (self.entries.len() as u64) < MESSAGE_WINDOW
    }

    /// Queues a message, for which there is room.
    pub(crate) fn push(&mut self, message: &[u8]) {
        let offset = self.dropped + self.bytes.len() as u64;
        self.entries.push_back(Entry { offset, length: message.len(), acked: false });
        self.bytes.extend(message);
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The next message to send, or what is to be sent of it: a lost one, else a new one if credit allows. Does not mark it.
    pub(crate) fn peek(&self, connection_credit: u64) -> Option<Outgoing> {
        if let Some(number) = self.lost.first().copied() {
            let total = self.entry(number)?.length;
            let part = self.parted.get(&number).and_then(|parted| parted.lost.first());
            let range = part.map_or(0..total, |part| part.start as usize..part.end as usize);
            return Some(Outgoing { number, total, range });
        }
        let total = self.entry(self.next)?.length;
        let begun = if total > WHOLE_MESSAGE_BYTES { self.parted.get(&self.next) } else { None };
        let range = begun.map_or(0, |parted| parted.next)..total;
        // A message that is sent in parts has its credit from the first one on.
        let allowed = begun.is_some() || cost(total) <= connection_credit;
        allowed.then_some(Outgoing { number: self.next, total, range })
    }

    /// Bytes of an unacked message, in up to two parts.
    pub(crate) fn payload(&self, number: u64, range: Range<usize>) -> [&[u8]; 2] {
        let Some(entry) = self.entry(number) else { return [&[], &[]] };
        let base = (entry.offset - self.dropped) as usize;
        let (from, to) = (base + range.start, base + range.end);
        let (front, back) = self.bytes.as_slices();
        let split = front.len();
        [&front[from.min(split)..to.min(split)], &back[from.saturating_sub(split)..to.saturating_sub(split)]]
    }

    /// What [`MessageSender::peek`] named was sent, or the beginning of it. The connection credit that it uses.
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
        if sent.range.end == sent.total {
            self.next += 1;
        }
        if !sent.is_whole() {
            self.parted.entry(number).or_default().next = sent.range.end;
        }
        if sent.range.start == 0 { cost(sent.total) } else { 0 }
    }

    /// A message arrived. Whether room came free.
    pub(crate) fn on_acked(&mut self, number: u64) -> bool {
        self.lost.remove(&number);
        self.mark_acked(number)
    }

    /// A part of a message arrived. Whether room came free.
    pub(crate) fn on_part_acked(&mut self, number: u64, part: Range<u64>) -> bool {
        let Some(total) = self.entry(number).map(|entry| entry.length as u64) else { return false };
        let Some(parted) = self.parted.get_mut(&number) else { return false };
        parted.lost.remove(part.clone());
        parted.acked.insert(part);
        if parted.lost.is_empty() {
            self.lost.remove(&number);
        }
        if parted.acked.first() != Some(0..total) {
            return false;
        }
        self.parted.remove(&number);
        self.mark_acked(number)
    }

    fn mark_acked(&mut self, number: u64) -> bool {
        let Some(index) = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()) else {
            return false;
        };
        if let Some(entry) = self.entries.get_mut(index) {
            entry.acked = true;
        }
        let before = self.first;
        while self.entries.front().is_some_and(|entry| entry.acked)
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes.drain(..entry.length);
            self.dropped += entry.length as u64;
            self.first += 1;
        }
        self.first > before
    }

    /// A message was lost, unless another copy of it was acked.
    pub(crate) fn on_lost(&mut self, number: u64) {
        if self.entry(number).is_some_and(|entry| !entry.acked) {
            self.lost.insert(number);
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

    /// The peer's application has taken all messages below `number`. Whether those are all there are, and that is news.
    pub(crate) fn on_consumed(&mut self, number: u64) -> Result<bool, ProtocolViolation> {
        if number > self.next {
            return Err(ProtocolViolation::new(Code::ConnectionState, "consumed messages that were not sent"));
        }
        let news = number > self.consumed;
        self.consumed = self.consumed.max(number);
        Ok(news && number == self.first + self.entries.len() as u64)
    }

    /// Messages that the peer's application has taken.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }
}

/// Messages received and not yet taken.
#[derive(Debug, Default)]
pub(crate) struct MessageReceiver {
    bytes: VecDeque<u8>,
    lengths: VecDeque<usize>,
    /// The number that is next in order.
    next: u64,
    /// What arrived ahead of order.
    ahead: BTreeMap<u64, Box<[u8]>>,
    /// Messages of which parts arrived, with the bytes of all.
    parted: BTreeMap<u64, (Box<[u8]>, RangeSet)>,
    /// Messages that the application took.
    taken: u64,
}

const TOO_LARGE: ProtocolViolation =
    ProtocolViolation::new(Code::LimitExceeded, "sent a message above the largest size");

impl MessageReceiver {
    /// The number of a message that is still missing; `None`: this is a repetition.
    fn missing(&self, number: u16) -> Result<Option<u64>, ProtocolViolation> {
        let number = nearest(number, self.next);
        if number < self.next || self.ahead.contains_key(&number) {
            return Ok(None);
        }
        if number - self.next >= MESSAGE_WINDOW {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "sent a message beyond the window"));
        }
        Ok(Some(number))
    }

    /// Takes a message. What it counts against credit: nothing, when it is a repetition.
    pub(crate) fn on_message(&mut self, number: u16, payload: &[u8]) -> Result<u64, ProtocolViolation> {
        if payload.len() > WHOLE_MESSAGE_BYTES {
            return Err(TOO_LARGE);
        }
        let Some(number) = self.missing(number)? else { return Ok(0) };
        if self.parted.contains_key(&number) {
            return Err(ProtocolViolation::new(Code::ConnectionState, "sent two messages under one number"));
        }
        if number > self.next {
            self.ahead.insert(number, payload.into());
        } else {
            self.arrived(payload);
        }
        Ok(cost(payload.len()))
    }

    /// Takes a part of a message. What it counts against credit: the whole message, with the first part that arrives, because
    /// there is memory for all of it from then on.
    pub(crate) fn on_part(&mut self, number: u16, part: Part<'_>) -> Result<u64, ProtocolViolation> {
        if part.total > MAX_MESSAGE_BYTES || part.total <= WHOLE_MESSAGE_BYTES {
            return Err(TOO_LARGE);
        }
        let Some(number) = self.missing(number)? else { return Ok(0) };
        let mut counted = 0;
        let (bytes, arrived) = self.parted.entry(number).or_insert_with(|| {
            counted = cost(part.total);
            (vec![0; part.total].into_boxed_slice(), RangeSet::default())
        });
        if bytes.len() != part.total {
            return Err(ProtocolViolation::new(Code::ConnectionState, "sent two messages under one number"));
        }
        // The frame decoder keeps parts within their message.
        let range = part.offset..part.offset + part.payload.len();
        bytes[range.clone()].copy_from_slice(part.payload);
        arrived.insert(wide(&range));
        if arrived.first() == Some(0..part.total as u64)
            && let Some((bytes, _)) = self.parted.remove(&number)
        {
            if number > self.next {
                self.ahead.insert(number, bytes);
            } else {
                self.arrived(&bytes);
            }
        }
        Ok(counted)
    }

    /// The next message in order is there, and those that waited for it with it.
    fn arrived(&mut self, payload: &[u8]) {
        self.append(payload);
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() == self.next) {
            let payload = entry.remove();
            self.append(&payload);
        }
    }

    fn append(&mut self, payload: &[u8]) {
        self.bytes.extend(payload);
        self.lengths.push_back(payload.len());
        self.next += 1;
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.lengths.is_empty()
    }

    /// Takes the next message, appending it to `out`; its length.
    pub(crate) fn take(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        let length = self.lengths.pop_front()?;
        self.taken += 1;
        let (front, back) = self.bytes.as_slices();
        let split = front.len().min(length);
        out.extend_from_slice(&front[..split]);
        out.extend_from_slice(&back[..length - split]);
        self.bytes.drain(..length);
        Some(length)
    }

    /// Messages that the application took.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }
}

/// The number nearest to `next` whose low 16 bits are `low` (W5.11).
fn nearest(low: u16, next: u64) -> u64 {
    let ahead = low.wrapping_sub(next as u16);
    if ahead < 1 << 15 {
        next + u64::from(ahead)
    } else {
        // Behind; numbers begin at 0, so that what would lie before that is far ahead, and refused there.
        let behind = (1 << 16) - u64::from(ahead);
        next.checked_sub(behind).unwrap_or(next + u64::from(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(receiver: &mut MessageReceiver) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        receiver.take(&mut out).map(|_| out)
    }

    /// wire.md W5.11
    #[test]
    fn whole_once_and_in_order() {
        let mut receiver = MessageReceiver::default();
        assert_eq!(receiver.on_message(1, b"b"), Ok(cost(1)));
        assert_eq!(receiver.on_message(1, b"b"), Ok(0));
        assert_eq!(take(&mut receiver), None);
        assert_eq!(receiver.on_message(0, b""), Ok(cost(0)));
        assert_eq!(receiver.on_message(0, b""), Ok(0));
        assert_eq!(take(&mut receiver), Some(b"".to_vec()));
        assert_eq!(take(&mut receiver), Some(b"b".to_vec()));
        assert_eq!(receiver.on_message(1, b"b"), Ok(0), "taken already");
        assert_eq!(receiver.taken(), 2);
    }

    /// wire.md W5.9, W5.13: parts in any order are a message when all are there, which counts whole and once.
    #[test]
    fn parts_make_a_message() {
        let mut receiver = MessageReceiver::default();
        let message: Vec<u8> = (0..3000u16).map(|n| n as u8).collect();
        let part = |offset: usize, end: usize| Part { total: 3000, offset, payload: &message[offset..end] };
        assert_eq!(receiver.on_part(1, part(2048, 3000)), Ok(cost(3000)));
        assert_eq!(receiver.on_part(1, part(0, 1024)), Ok(0));
        assert_eq!(receiver.on_part(1, part(0, 1024)), Ok(0), "again");
        assert_eq!(receiver.on_message(0, b"a"), Ok(cost(1)));
        assert_eq!(take(&mut receiver), Some(b"a".to_vec()));
        assert_eq!(take(&mut receiver), None, "a part is missing");
        assert_eq!(receiver.on_part(1, part(1024, 2048)), Ok(0));
        assert!(take(&mut receiver) == Some(message.clone()));
        assert_eq!(receiver.on_part(1, part(1024, 2048)), Ok(0), "taken already");
        let code = |result: Result<u64, ProtocolViolation>| result.unwrap_err().code;
        assert_eq!(receiver.on_part(2, part(0, 1024)), Ok(cost(3000)));
        assert_eq!(code(receiver.on_part(2, Part { total: 3001, ..part(0, 1024) })), Code::ConnectionState);
        assert_eq!(code(receiver.on_message(2, b"")), Code::ConnectionState);
        assert_eq!(
            code(receiver.on_part(3, Part { total: MAX_MESSAGE_BYTES + 1, ..part(0, 64) })),
            Code::LimitExceeded
        );
        assert_eq!(code(receiver.on_part(3, Part { total: 1024, ..part(0, 64) })), Code::LimitExceeded);
    }

    /// wire.md W5.11, W5.13
    #[test]
    fn bounds() {
        let mut receiver = MessageReceiver::default();
        let code = |result: Result<u64, ProtocolViolation>| result.unwrap_err().code;
        assert_eq!(code(receiver.on_message(0, &[0; WHOLE_MESSAGE_BYTES + 1])), Code::LimitExceeded);
        assert_eq!(code(receiver.on_message(MESSAGE_WINDOW as u16, b"")), Code::LimitExceeded);
        assert_eq!(code(receiver.on_message(u16::MAX, b"")), Code::LimitExceeded, "before the first");
        assert_eq!(receiver.on_message(MESSAGE_WINDOW as u16 - 1, b""), Ok(cost(0)));

        let mut sender = MessageSender::default();
        let sent = (0..)
            .take_while(|_| {
                sender.has_room(1) && {
                    sender.push(b"x");
                    true
                }
            })
            .count();
        assert_eq!(sent as u64, MESSAGE_WINDOW);
    }

    /// wire.md W5.9: a message that credit does not allow whole is not begun; one that was begun goes on. A part is sent again
    /// when it was lost, and not when another copy of it had arrived.
    #[test]
    fn credit_and_loss_of_what_goes_in_parts() {
        let mut sender = MessageSender::default();
        sender.push(&[1; 3000]);
        sender.push(b"small");
        let part = |range| Some(Outgoing { number: 0, total: 3000, range });
        assert_eq!(sender.peek(cost(3000) - 1), None);
        assert_eq!(sender.peek(cost(3000)), part(0..3000));
        assert_eq!(sender.on_sent(&part(0..1024).unwrap()), cost(3000));
        assert_eq!(sender.peek(0), part(1024..3000), "it has its credit");
        assert_eq!(sender.on_sent(&part(1024..3000).unwrap()), 0);
        assert_eq!(sender.peek(cost(5) - 1), None);
        sender.on_part_lost(0, 0..1024);
        assert_eq!(sender.peek(0), part(0..1024));
        assert!(!sender.on_part_acked(0, 0..1024));
        sender.on_part_lost(0, 0..1024);
        assert_eq!(sender.peek(0), None, "a late loss of what was acked");
        assert!(sender.on_part_acked(0, 1024..3000));
        assert_eq!(sender.peek(cost(5)).map(|next| next.number), Some(1));
    }

    #[test]
    fn numbers_far_apart() {
        for next in [0u64, 1, 40_000, 65_535, 65_536, 1 << 40] {
            for delta in [-4096i64, -1, 0, 1, 4095] {
                let Some(number) = next.checked_add_signed(delta) else { continue };
                assert_eq!(nearest(number as u16, next), number);
            }
        }
    }

    proptest! {
        /// Sender to receiver with loss, repetition and late acks, whole and in parts: every message once, in order; both ends
        /// count the same credit.
        #[test]
        fn survives_loss(fates in prop::collection::vec((0u8..4, 1usize..30), 0..300), count in 1usize..80) {
            let (mut sender, mut receiver) = (MessageSender::default(), MessageReceiver::default());
            let length = |n: usize| if n % 7 == 3 { 1025 + 97 * n } else { n % 23 };
            let messages: Vec<Vec<u8>> = (0..count).map(|n| (0..length(n)).map(|at| (n + at) as u8).collect()).collect();
            messages.iter().for_each(|m| sender.push(m));
            let (mut fates, mut out, mut credit) = (fates.into_iter(), Vec::new(), [0, 0]);
            while let Some(mut next) = sender.peek(u64::MAX) {
                let (fate, units) = fates.next().unwrap_or((0, 16));
                if !next.is_whole() {
                    next.range.end = next.range.end.min(next.range.start + 64 * units);
                }
                let (number, offset) = (next.number, next.range.start);
                let payload = sender.payload(number, next.range.clone()).concat();
                prop_assert_eq!(payload.len(), next.range.len());
                credit[0] += sender.on_sent(&next);
                let part = wide(&next.range);
                if fate < 3 {
                    credit[1] += match next.is_whole() {
                        true => receiver.on_message(number as u16, &payload).unwrap(),
                        false => receiver.on_part(number as u16, Part { total: next.total, offset, payload: &payload }).unwrap(),
                    };
                }
                let acked = |sender: &mut MessageSender| match next.is_whole() {
                    true => sender.on_acked(number),
                    false => sender.on_part_acked(number, part.clone()),
                };
                let lost = |sender: &mut MessageSender| match next.is_whole() {
                    true => sender.on_lost(number),
                    false => sender.on_part_lost(number, part.clone()),
                };
                match fate {
                    0 => { acked(&mut sender); }
                    1 => { acked(&mut sender); lost(&mut sender); }
                    _ => lost(&mut sender),
                }
                while let Some(message) = take(&mut receiver) {
                    out.push(message);
                }
            }
            prop_assert!(sender.is_empty() && sender.parted.is_empty() && receiver.parted.is_empty());
            prop_assert!(out == messages);
            prop_assert_eq!(credit[0], credit[1]);
        }
    }
}
