//! What the two ends of a connection send to each other: texts that either end can compute.

use std::time::Duration;

use pilot_engine::limits::{MAX_MESSAGE_BYTES, WHOLE_MESSAGE_BYTES};

use crate::random::{fill, mix};

/// Part of a stream's length that is sent back on it in the other direction, as a divisor.
const ANSWER_SHARE: u64 = 8;

/// One message in so many is of any length up to twice what goes in one frame; the others have at most [`DELTA_BYTES`].
const LONG_MESSAGES: u64 = 16;

/// One message in so many is of any length up to the largest.
const LARGE_MESSAGES: u64 = 256;

/// Bytes of the largest usual message, a delta.
const DELTA_BYTES: u64 = 32;

/// Bytes that an unreliable datagram has at most, beside its number.
const DATAGRAM_BYTES: u64 = 1100;

/// One in so many of the streams in one direction is given up by its writer, and another by its reader.
const GIVEN_UP: u64 = 3;

/// What the two ends of a connection send to each other. Both have the same plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What all texts are drawn from.
    pub seed: u64,
    /// Streams in both directions that each end opens, and as many in one, of which some are given up halfway.
    pub streams: u64,
    /// Bytes that are sent on a stream by the end that opened it.
    pub stream_bytes: u64,
    /// Messages that each end sends, each ahead of an unreliable datagram.
    pub messages: u64,
    /// How long an end lets wait what it could read.
    pub nap: Duration,
}

impl Plan {
    /// The same for one connection among many, opened by one host to another: with texts of its own.
    pub fn between(self, opener: usize, acceptor: usize) -> Self {
        Self { seed: mix(self.seed ^ mix((opener << 8 | acceptor) as u64)), ..self }
    }

    /// The key of a text (see [`fill`]): who writes it, and where.
    fn key(&self, by_opener: bool, place: u64) -> u64 {
        mix(self.seed ^ mix(place << 1 | u64::from(by_opener)))
    }

    /// The text that one end writes on the stream that it, or the other, opened as its `index`-th of the kind.
    pub(crate) fn stream(&self, by_opener: bool, opened_by_opener: bool, index: u64, both_ways: bool) -> Text {
        let answer = by_opener != opened_by_opener;
        let key = self.key(by_opener, index << 3 | u64::from(both_ways) << 2 | u64::from(opened_by_opener) << 1);
        let text = Text { key, length: self.stream_bytes, done: 0, ended: false, given_up: None };
        match (answer, both_ways) {
            (false, true) => text,
            (true, true) => Text { length: self.stream_bytes / ANSWER_SHARE, ..text },
            // Nobody writes, and nobody reads.
            (true, false) => Text { length: 0, ended: true, ..text },
            (false, false) => {
                let given_up = match mix(key) % GIVEN_UP {
                    0 => Some(Side::Writer),
                    1 => Some(Side::Reader),
                    _ => None,
                };
                Text { given_up, ..text }
            }
        }
    }

    /// What the unreliable datagram of a number says: the number, and then what can be computed.
    pub(crate) fn datagram(&self, by_opener: bool, number: u64) -> Vec<u8> {
        let key = !self.key(by_opener, number << 2 | 1);
        let mut datagram = vec![0; 8 + (mix(key) % DATAGRAM_BYTES) as usize];
        fill(key, 0, &mut datagram);
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        datagram
    }

    pub(crate) fn message(&self, by_opener: bool, number: u64) -> Vec<u8> {
        let key = self.key(by_opener, number << 2 | 1);
        let longest = match key {
            _ if key.is_multiple_of(LARGE_MESSAGES) => MAX_MESSAGE_BYTES as u64,
            _ if key.is_multiple_of(LONG_MESSAGES) => 2 * WHOLE_MESSAGE_BYTES as u64,
            _ => DELTA_BYTES,
        };
        let mut message = vec![0; (mix(key) % (longest + 1)) as usize];
        fill(key, 0, &mut message);
        message
    }
}

/// One direction of a stream, as far as it has come.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) key: u64,
    pub(crate) length: u64,
    pub(crate) done: u64,
    pub(crate) ended: bool,
    /// By whom, after half of it.
    pub(crate) given_up: Option<Side>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Writer,
    Reader,
}

impl Text {
    /// The code with which it is given up.
    pub(crate) fn code(&self) -> u64 {
        self.key >> 2
    }

    /// The part of a buffer to write next: of any length, as applications do.
    pub(crate) fn piece<'a>(&self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        let left = (self.length - self.done).min(buffer.len() as u64);
        let length = (1 + mix(self.key ^ self.done) % buffer.len() as u64).min(left);
        &mut buffer[..length as usize]
    }

    pub(crate) fn piece_to_read<'a>(&self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        let length = 1 + mix(!self.key ^ self.done) % buffer.len() as u64;
        &mut buffer[..length as usize]
    }
}
