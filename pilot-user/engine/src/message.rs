//! Messages: small, whole, in order, each delivered once, in a lane of their own ahead of streams (`docs/wire.md` W5.11).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::error::{Code, ProtocolViolation};
use crate::limits::{MAX_MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES, MESSAGE_SEND_BUFFER_BYTES, MESSAGE_WINDOW};

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
    lost: BTreeSet<u64>,
}

#[derive(Debug)]
struct Entry {
    offset: u64,
    length: usize,
    acked: bool,
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

    /// The next message to send, with its length: a lost one, else a new one if credit allows. Does not mark it.
    pub(crate) fn peek(&self, connection_credit: u64) -> Option<(u64, usize)> {
        if let Some(number) = self.lost.first() {
            return Some((*number, self.entry(*number)?.length));
        }
        let entry = self.entry(self.next)?;
        (cost(entry.length) <= connection_credit).then_some((self.next, entry.length))
    }

    /// The bytes of an unacked message, in up to two parts.
    pub(crate) fn payload(&self, number: u64) -> [&[u8]; 2] {
        let Some(entry) = self.entry(number) else { return [&[], &[]] };
        let from = (entry.offset - self.dropped) as usize;
        let to = from + entry.length;
        let (front, back) = self.bytes.as_slices();
        let split = front.len();
        [&front[from.min(split)..to.min(split)], &back[from.saturating_sub(split)..to.saturating_sub(split)]]
    }

    /// The message that [`MessageSender::peek`] named was sent. Whether for the first time.
    pub(crate) fn on_sent(&mut self, number: u64) -> bool {
        let fresh = number == self.next;
        if fresh {
            self.next += 1;
        } else {
            self.lost.remove(&number);
        }
        fresh
    }

    /// A message arrived. Whether room came free.
    pub(crate) fn on_acked(&mut self, number: u64) -> bool {
        self.lost.remove(&number);
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

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
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
}

impl MessageReceiver {
    /// Takes a message. Whether it is new; an old one is a repetition.
    pub(crate) fn on_message(&mut self, number: u16, payload: &[u8]) -> Result<bool, ProtocolViolation> {
        if payload.len() > MAX_MESSAGE_BYTES {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "sent a message above the largest size"));
        }
        let number = nearest(number, self.next);
        if number < self.next || self.ahead.contains_key(&number) {
            return Ok(false);
        }
        if number - self.next >= MESSAGE_WINDOW {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "sent a message beyond the window"));
        }
        if number > self.next {
            self.ahead.insert(number, payload.into());
            return Ok(true);
        }
        self.append(payload);
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() == self.next) {
            let payload = entry.remove();
            self.append(&payload);
        }
        Ok(true)
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
        let (front, back) = self.bytes.as_slices();
        let split = front.len().min(length);
        out.extend_from_slice(&front[..split]);
        out.extend_from_slice(&back[..length - split]);
        self.bytes.drain(..length);
        Some(length)
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
        assert_eq!(receiver.on_message(1, b"b"), Ok(true));
        assert_eq!(receiver.on_message(1, b"b"), Ok(false));
        assert_eq!(take(&mut receiver), None);
        assert_eq!(receiver.on_message(0, b""), Ok(true));
        assert_eq!(receiver.on_message(0, b""), Ok(false));
        assert_eq!(take(&mut receiver), Some(b"".to_vec()));
        assert_eq!(take(&mut receiver), Some(b"b".to_vec()));
        assert_eq!(receiver.on_message(1, b"b"), Ok(false), "taken already");
    }

    /// wire.md W5.11, W5.13
    #[test]
    fn bounds() {
        let mut receiver = MessageReceiver::default();
        let code = |result: Result<bool, ProtocolViolation>| result.unwrap_err().code;
        assert_eq!(code(receiver.on_message(0, &[0; MAX_MESSAGE_BYTES + 1])), Code::LimitExceeded);
        assert_eq!(code(receiver.on_message(MESSAGE_WINDOW as u16, b"")), Code::LimitExceeded);
        assert_eq!(code(receiver.on_message(u16::MAX, b"")), Code::LimitExceeded, "before the first");
        assert_eq!(receiver.on_message(MESSAGE_WINDOW as u16 - 1, b""), Ok(true));

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
        /// Sender to receiver with loss, repetition and late acks: every message once, in order.
        #[test]
        fn survives_loss(fates in prop::collection::vec(0u8..4, 0..300), count in 1usize..80) {
            let (mut sender, mut receiver) = (MessageSender::default(), MessageReceiver::default());
            let messages: Vec<Vec<u8>> = (0..count).map(|n| vec![n as u8; n % 23]).collect();
            messages.iter().for_each(|m| sender.push(m));
            let (mut fates, mut out) = (fates.into_iter(), Vec::new());
            while let Some((number, length)) = sender.peek(u64::MAX) {
                let payload = sender.payload(number).concat();
                prop_assert_eq!(payload.len(), length);
                sender.on_sent(number);
                let fate = fates.next().unwrap_or(0);
                if fate < 3 {
                    receiver.on_message(number as u16, &payload).unwrap();
                }
                match fate {
                    0 => { sender.on_acked(number); }
                    1 => { sender.on_acked(number); sender.on_lost(number); }
                    _ => sender.on_lost(number),
                }
                while let Some(message) = take(&mut receiver) {
                    out.push(message);
                }
            }
            prop_assert!(sender.is_empty());
            prop_assert_eq!(out, messages);
        }
    }
}
