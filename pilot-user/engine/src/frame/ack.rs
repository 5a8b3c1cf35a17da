//! ACK and its kin: which packets arrived, and when the newest did.

use std::time::Duration;

use super::{ACK, ACK_ARRIVAL, ACK_ECN, WITH_ECN};
use crate::codec::{MAX_VARINT, Reader, Writer, varint_len};
use crate::limits::MAX_ACK_RANGES;
use crate::recovery::ecn::EcnCounts;
use crate::time::Instant;

/// Which packets arrived. The ranges stay in the packet's bytes, which were checked: a copy of them would make every frame
/// half a kilobyte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ack<'a> {
    pub(crate) delay: Duration,
    pub(crate) ecn: Option<EcnCounts>,
    /// When the largest arrived (W5.23).
    pub(crate) arrival: Option<ArrivalTime>,
    pub(super) ranges: Ranges<'a>,
}

impl<'a> Ack<'a> {
    /// Newest first, each `(smallest, largest)`.
    pub(crate) fn ranges(&self) -> Ranges<'a> {
        self.ranges.clone()
    }

    pub(crate) fn largest(&self) -> u64 {
        self.ranges.next.1
    }
}

/// A time by the clock of the end that tells it: microseconds, modulo [`Self::MODULUS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ArrivalTime(u32);

impl ArrivalTime {
    /// What a varint of four bytes holds: 18 minutes.
    pub(super) const MODULUS: u64 = 1 << 30;

    pub(crate) fn at(time: Instant) -> Self {
        Self((time.as_nanos() / 1000 % Self::MODULUS) as u32)
    }

    /// How long after `sent`, by the clock here, it is, plus what this clock is behind the other: of all that it may be, the one
    /// nearest to `near`. Microseconds.
    pub(crate) fn since(self, sent: Instant, near: i64) -> i64 {
        const HALF: i64 = ArrivalTime::MODULUS as i64 / 2;
        let difference = i64::from(self.0) - i64::from(Self::at(sent).0) - near;
        near + (difference + HALF).rem_euclid(2 * HALF) - HALF
    }
}

/// See [`Ack::ranges`].
#[derive(Clone, Debug)]
pub(crate) struct Ranges<'a> {
    pub(super) next: (u64, u64),
    pub(super) left: usize,
    pub(super) further: Reader<'a>,
}

impl Iterator for Ranges<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        self.left = self.left.checked_sub(1)?;
        let range = self.next;
        if self.left > 0 {
            self.next = further_range(&mut self.further, range.0)?;
        }
        Some(range)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Ranges<'_> {}

/// By the ranges: a number can be written in more than one length.
impl PartialEq for Ranges<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.clone().eq(other.clone())
    }
}

impl Eq for Ranges<'_> {}

/// RFC 9000 §19.3, at most [`MAX_ACK_RANGES`] ranges (W5.4).
pub(super) fn ack<'a>(with_ecn: bool, with_arrival: bool, reader: &mut Reader<'a>) -> Option<Ack<'a>> {
    let largest = reader.varint()?;
    let delay = Duration::from_micros(reader.varint()?);
    let more = usize::try_from(reader.varint()?).ok().filter(|more| *more < MAX_ACK_RANGES)?;
    let mut smallest = largest.checked_sub(reader.varint()?)?;
    let (first, all) = ((smallest, largest), *reader);
    for _ in 0..more {
        smallest = further_range(reader, smallest)?.0;
    }
    let ranges = Ranges { next: first, left: more + 1, further: all.before(reader) };
    let ecn = if with_ecn { Some(ecn_counts(reader)?) } else { None };
    let arrival = if with_arrival { Some(arrival_time(reader)?) } else { None };
    Some(Ack { delay, ecn, arrival, ranges })
}

/// The range below the one that begins at `smallest`.
fn further_range(reader: &mut Reader<'_>, smallest: u64) -> Option<(u64, u64)> {
    let largest = smallest.checked_sub(reader.varint()?)?.checked_sub(2)?;
    Some((largest.checked_sub(reader.varint()?)?, largest))
}

fn arrival_time(reader: &mut Reader<'_>) -> Option<ArrivalTime> {
    reader.varint().filter(|micros| *micros < ArrivalTime::MODULUS).map(|micros| ArrivalTime(micros as u32))
}

fn ecn_counts(reader: &mut Reader<'_>) -> Option<EcnCounts> {
    Some(EcnCounts { ect0: reader.varint()?, ect1: reader.varint()?, ce: reader.varint()? })
}

/// Writes an ACK of inclusive ranges, newest first; of those that do not fit, the oldest are left out. With counts it is an
/// ACK_ECN, and with a time an ACK_ARRIVAL.
pub(crate) fn write_ack(
    writer: &mut Writer<'_>,
    delay: Duration,
    ecn: Option<EcnCounts>,
    arrival: Option<ArrivalTime>,
    mut newest_first: impl ExactSizeIterator<Item = (u64, u64)>,
) -> Option<()> {
    /// Bytes of the largest further range.
    const RANGE_BYTES: usize = 16;
    let more = newest_first.len().checked_sub(1)?.min(MAX_ACK_RANGES - 1);
    let (mut smallest, largest) = newest_first.next()?;
    let micros = u64::try_from(delay.as_micros()).unwrap_or(MAX_VARINT).min(MAX_VARINT);
    let counts = ecn.map_or(0, |EcnCounts { ect0, ect1, ce }| [ect0, ect1, ce].map(varint_len).iter().sum());
    let time = arrival.map_or(0, |ArrivalTime(micros)| varint_len(micros.into()));
    let head = 1 + varint_len(largest) + varint_len(micros) + 1 + varint_len(largest - smallest) + counts + time;
    let more = more.min(writer.room().checked_sub(head)? / RANGE_BYTES);
    writer.u8(match (arrival, ecn) {
        (None, None) => ACK,
        (None, Some(_)) => ACK_ECN,
        (Some(_), None) => ACK_ARRIVAL,
        (Some(_), Some(_)) => ACK_ARRIVAL | WITH_ECN,
    })?;
    writer.varint(largest)?;
    writer.varint(micros)?;
    writer.varint(more as u64)?;
    writer.varint(largest - smallest)?;
    for (next_smallest, next_largest) in newest_first.take(more) {
        writer.varint(smallest - next_largest - 2)?;
        writer.varint(next_largest - next_smallest)?;
        smallest = next_smallest;
    }
    if let Some(EcnCounts { ect0, ect1, ce }) = ecn {
        [ect0, ect1, ce].into_iter().try_for_each(|count| writer.varint(count))?;
    }
    arrival.map_or(Some(()), |ArrivalTime(micros)| writer.varint(micros.into()))
}
