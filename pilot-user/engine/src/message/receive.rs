//! Messages received and not yet taken.

use std::collections::BTreeMap;

use super::{cost, nearest, wide};
use crate::byte_queue::ByteQueue;
use crate::codec::Reader;
use crate::error::{Code, ProtocolViolation};
use crate::frame::{self, Part};
use crate::limits::{MAX_MESSAGE_BYTES, MESSAGE_WINDOW, WHOLE_MESSAGE_BYTES};
use crate::range_set::RangeSet;

/// Those that came in order, and what waits for what is missing.
#[derive(Debug, Default)]
pub(crate) struct MessageReceiver {
    /// Each as a MESSAGE with its length, which most were: a packet's are taken as they are.
    frames: ByteQueue,
    /// The number that is next in order.
    next: u64,
    /// What arrived ahead of order.
    ahead: BTreeMap<u64, Box<[u8]>>,
    /// Messages of which parts arrived, with the bytes of all.
    pub(super) parted: BTreeMap<u64, (Box<[u8]>, RangeSet)>,
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

    /// Takes the MESSAGEs of connection `id` that come next in a packet. What they count against credit.
    pub(crate) fn on_messages(&mut self, id: u64, frames: &mut Reader<'_>) -> Result<u64, ProtocolViolation> {
        let mut counted = 0;
        loop {
            if self.ahead.is_empty() && self.parted.is_empty() {
                // Nearly all: there may be a hundred in a packet.
                let run = frame::messages_in_order(frames.peek(), id, self.next as u16);
                counted += run.payload + u64::from(run.count) * cost(0);
                self.frames.push([frames.bytes(run.bytes).unwrap_or_default()]);
                self.next += u64::from(run.count);
            }
            let Some((number, payload)) = frame::next_message(frames, id) else { return Ok(counted) };
            counted += self.on_message(number, payload)?;
        }
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
        // To the application they are of no connection.
        frame::push_message(&mut self.frames, 0, self.next as u16, payload);
        self.next += 1;
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Takes the next message and lends it.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<&[u8]> {
        let body = frame::message_at(self.frames.rest())?;
        self.taken += 1;
        self.frames.take(body.end).get(body)
    }

    /// Messages that the application took.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }
}
