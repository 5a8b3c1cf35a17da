//! Packets in flight, and what was in them.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::connection::Key;
use crate::stream::Direction;
use crate::time::Instant;

/// What a packet carried, as far as its loss or its arrival matters. Not the bytes: those stay where they came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SentFrame {
    Ack {
        largest: u64,
    },
    Ping,
    AckFrequency,
    Open(Key),
    Accept(Key),
    /// REFUSE or CLOSE_CONNECTION, whichever the connection's state says.
    End(Key),
    Credit(Key),
    StreamCredit(Key, u64),
    StreamLimit(Key, Direction),
    MessagesConsumed(Key),
    Consumed(Key, u64),
    /// CONSUMED of a stream that was read to its end, at this offset, and may be gone.
    AllConsumed(Key, u64, u64),
    ResetStream(Key, u64),
    StopStream(Key, u64),
    MessagePart {
        connection: Key,
        number: u64,
        offset: u32,
        length: u32,
    },
    /// The newest one, whichever that is when it is written.
    NewSessionId,
    /// So many whole messages in a row, and where they are.
    Messages {
        connection: Key,
        start: u64,
        bytes: u32,
        count: u32,
    },
    Stream {
        connection: Key,
        stream: u64,
        offset: u64,
        length: u32,
        fin: bool,
    },
}

impl SentFrame {
    /// The connection it is about.
    pub(crate) fn connection(&self) -> Option<Key> {
        match *self {
            Self::Ack { .. } | Self::Ping | Self::NewSessionId | Self::AckFrequency => None,
            Self::Open(key) | Self::Accept(key) | Self::End(key) | Self::Credit(key) => Some(key),
            Self::StreamLimit(key, _) | Self::StreamCredit(key, _) => Some(key),
            Self::MessagesConsumed(key) | Self::Consumed(key, _) | Self::AllConsumed(key, ..) => Some(key),
            Self::ResetStream(key, _) | Self::StopStream(key, _) => Some(key),
            Self::Messages { connection, .. } | Self::MessagePart { connection, .. } => Some(connection),
            Self::Stream { connection, .. } => Some(connection),
        }
    }
}

/// Frames of a packet: most carry a few, and then nothing is allocated. An ACK, data, credit of a stream and of its connection.
pub(crate) type SentFrames = SmallVec<[SentFrame; 4]>;

/// An ack-eliciting packet that was sent and neither acked nor given up.
#[derive(Clone, Debug)]
pub(crate) struct SentPacket {
    pub(crate) sent: Instant,
    pub(crate) bytes: u16,
    /// A path MTU probe: its loss says nothing about congestion (W6.1).
    pub(crate) mtu_probe: bool,
    /// It left with ECT(0).
    pub(crate) ect: bool,
    pub(crate) frames: SentFrames,
}

/// Sent packets by number. The front is always a packet that is still waited for.
#[derive(Debug, Default)]
pub(crate) struct SentPackets {
    packets: VecDeque<Option<SentPacket>>,
    /// The number of the front.
    first: u64,
}

impl SentPackets {
    /// The number that the next packet gets. Numbers are used once (W4.2).
    pub(crate) fn next_number(&self) -> u64 {
        self.first + self.packets.len() as u64
    }

    pub(crate) fn push(&mut self, packet: SentPacket) {
        self.packets.push_back(Some(packet));
    }

    /// Uses up a number for a packet that nobody waits for. Its loss is of no matter: a later ACK says what it said.
    pub(crate) fn skip(&mut self) {
        self.packets.push_back(None);
        self.drop_gone();
    }

    /// The oldest packet waited for.
    pub(crate) fn oldest(&self) -> Option<(u64, &SentPacket)> {
        Some((self.first, self.packets.front()?.as_ref()?))
    }

    /// Takes out the oldest packet.
    pub(crate) fn pop_oldest(&mut self) -> Option<SentPacket> {
        let packet = self.packets.pop_front()??;
        self.first += 1;
        self.drop_gone();
        Some(packet)
    }

    /// Takes out the packets waited for with numbers in `smallest..=largest`, lowest first.
    pub(crate) fn take_range(&mut self, smallest: u64, largest: u64, mut taken: impl FnMut(u64, &SentPacket)) {
        let index = |number: u64| usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let from = index(smallest).min(self.packets.len());
        let to = if largest < self.first { from } else { index(largest + 1).min(self.packets.len()) };
        let first = self.first;
        for (at, slot) in self.packets.range_mut(from..to).enumerate() {
            if let Some(packet) = slot {
                taken(first + (from + at) as u64, packet);
                *slot = None;
            }
        }
        self.drop_gone();
    }

    /// Gives room back that nothing needs.
    pub(crate) fn rest(&mut self) {
        self.packets.shrink_to_fit();
    }

    fn drop_gone(&mut self) {
        while let Some(None) = self.packets.front() {
            self.packets.pop_front();
            self.first += 1;
        }
    }
}
