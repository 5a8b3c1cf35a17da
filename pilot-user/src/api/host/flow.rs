//! One direction of a connection's messages or of a stream, as a worker sees it: how much may go on, and what must wait.

use std::collections::VecDeque;

use super::super::limits::{FLOW_CREDIT_BYTES, FRAME_OVERHEAD_BYTES, GIVE_BACK_AFTER_BYTES};
use super::super::protocol::cost;

/// Towards the application. What it has no credit for stays in the engine, whose sender then runs out of credit too.
#[derive(Debug)]
pub(super) struct Inbound {
    /// Bytes that the application would still take (L5.1).
    credit: u32,
    /// What each of the bodies cost that it has and has not given back, the oldest first (L4.2). Credit bounds them.
    given: VecDeque<u32>,
    /// Of the first of those: how much was given back.
    returned: u32,
    /// The end of it was given to the application, too.
    pub(super) is_ended: bool,
    /// The engine may have something: told once, until it has said that there is nothing more.
    pub(super) is_readable: bool,
    /// In its client's queue for room in the outbox.
    pub(super) is_queued: bool,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            credit: FLOW_CREDIT_BYTES,
            given: VecDeque::new(),
            returned: 0,
            is_ended: false,
            is_readable: false,
            is_queued: false,
        }
    }
}

impl Inbound {
    pub(super) fn credit(&self) -> u32 {
        self.credit
    }

    /// A body goes to the application.
    pub(super) fn spend(&mut self, cost: u32) {
        self.credit -= cost;
        self.given.push_back(cost);
    }

    /// L5.2: the application has read so much. What it has consumed with that; `None`: more than there was.
    pub(super) fn give_back(&mut self, bytes: u32) -> Option<Read> {
        self.credit = self.credit.checked_add(bytes).filter(|credit| *credit <= FLOW_CREDIT_BYTES)?;
        self.returned += bytes;
        let mut read = Read::default();
        while let Some(cost) = self.given.front().copied().filter(|cost| *cost <= self.returned) {
            self.returned -= cost;
            self.given.pop_front();
            read.bodies += 1;
            // An event of a following costs what there is credit for, and may be less.
            read.bytes += u64::from(cost.saturating_sub(FRAME_OVERHEAD_BYTES));
        }
        Some(read)
    }

    /// Whether the application has read all that it was given, to the end.
    pub(super) fn is_over(&self) -> bool {
        self.is_ended && self.given.is_empty()
    }
}

/// What an application has read of a flow: whole bodies, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Read {
    pub(super) bodies: u64,
    pub(super) bytes: u64,
}

/// From the application: what the engine has no room for is held, and is never more than the credit.
#[derive(Debug)]
pub(super) struct Outbound {
    /// Bytes that the application may still send (L5.1).
    credit: u32,
    /// Bytes that were taken and not yet given back.
    owed: u32,
    held: VecDeque<Vec<u8>>,
    /// Of the first of those held: how much the engine has.
    taken: usize,
    /// What is behind what is held.
    pub(super) is_finished: bool,
}

impl Default for Outbound {
    fn default() -> Self {
        Self { credit: FLOW_CREDIT_BYTES, owed: 0, held: VecDeque::new(), taken: 0, is_finished: false }
    }
}

/// What a call of the engine made of a body.
pub(super) enum Taken {
    Whole,
    Part(usize),
    Nothing,
}

impl Outbound {
    /// L5.4: whether there is credit for it, which is spent.
    pub(super) fn try_spend(&mut self, cost: u32) -> bool {
        let left = self.credit.checked_sub(cost);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Hands a body to `give`, if nothing waits before it. What it costs in all of those that are through now.
    pub(super) fn put(&mut self, body: Vec<u8>, give: impl FnMut(&[u8]) -> Taken) -> u32 {
        self.held.push_back(body);
        if self.held.len() > 1 {
            return 0;
        }
        self.flush(give)
    }

    /// Hands on what is held, until there is no room. What it cost.
    pub(super) fn flush(&mut self, mut give: impl FnMut(&[u8]) -> Taken) -> u32 {
        let mut through = 0;
        while let Some(body) = self.held.front() {
            match give(&body[self.taken..]) {
                Taken::Nothing => break,
                Taken::Part(length) if self.taken + length < body.len() => {
                    self.taken += length;
                    // Told of more room by an event, which comes after less than everything was taken.
                    break;
                }
                Taken::Part(_) | Taken::Whole => {
                    through += cost(body);
                    self.taken = 0;
                    self.held.pop_front();
                }
            }
        }
        self.owed += through;
        through
    }

    /// What is held will not be sent. What it cost.
    pub(super) fn give_up(&mut self) -> u32 {
        self.flush(|_| Taken::Whole)
    }

    /// L5.2: what is to be given back now.
    pub(super) fn due(&mut self) -> Option<u32> {
        if self.owed < GIVE_BACK_AFTER_BYTES {
            return None;
        }
        self.credit += self.owed;
        Some(std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L4.2: a body is read when all that it cost was given back, whatever pieces that comes in.
    #[test]
    fn what_is_given_back_was_read_in_its_order() {
        let mut inbound = Inbound::default();
        for cost in [65, 64, 164] {
            inbound.spend(cost);
        }
        let read = |bodies, bytes| Some(Read { bodies, bytes });
        assert_eq!(inbound.give_back(64), read(0, 0));
        assert_eq!(inbound.give_back(1), read(1, 1));
        inbound.is_ended = true;
        assert_eq!(inbound.give_back(64 + 163), read(1, 0));
        assert!(!inbound.is_over());
        assert_eq!(inbound.give_back(1), read(1, 100));
        assert!(inbound.is_over());
        assert_eq!(inbound.give_back(1), None, "L5.2: more than is owed");
    }
}
