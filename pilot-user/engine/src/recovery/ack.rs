//! What this end owes the peer: which packets arrived, and when to say so (`docs/wire.md` W5.3).

use crate::codec::Writer;
use crate::frame::{self, ArrivalTime};
use crate::limits::{ACK_AFTER_PACKETS, MAX_ACK_AFTER_PACKETS, MAX_ACK_DELAY, MAX_ACK_RANGES};
use crate::range_set::RangeSet;
use crate::recovery::ecn::{Ecn, EcnCounts};
use crate::time::Instant;

/// Received packet numbers that the peer may not know were received.
#[derive(Debug)]
pub(crate) struct Acks {
    received: RangeSet,
    largest_received_at: Instant,
    /// Ack-eliciting packets since the last ACK.
    owed: u32,
    /// When an ACK is due at the latest; `None`: none is owed.
    due: Option<Instant>,
    /// The last ACK.
    written_at: Instant,
    /// Ack-eliciting packets after which an ACK is due; the most that is granted; the packet that asked for it.
    after: u32,
    after_at_most: u32,
    asked_in: u64,
    /// The peer wants to know when packets arrive.
    arrivals: bool,
    ecn: EcnCounts,
}

impl Acks {
    /// For an end that lets so many packets be in flight to it.
    pub(crate) fn new(packet_credit: u32) -> Self {
        Self {
            received: RangeSet::default(),
            largest_received_at: Instant::ORIGIN,
            owed: 0,
            due: None,
            written_at: Instant::ORIGIN,
            after: ACK_AFTER_PACKETS,
            after_at_most: (packet_credit / 4).clamp(1, MAX_ACK_AFTER_PACKETS),
            asked_in: 0,
            arrivals: false,
            ecn: EcnCounts::default(),
        }
    }

    /// The peer asked, in packet `number`, for an ACK after so many packets (W5.3), with times of arrival or without (W5.23). One
    /// that was overtaken is old news.
    pub(crate) fn on_frequency(&mut self, number: u64, packets: u64, arrivals: bool) {
        if number >= self.asked_in {
            (self.asked_in, self.arrivals) = (number, arrivals);
            self.after = u32::try_from(packets).unwrap_or(u32::MAX).clamp(1, self.after_at_most);
        }
    }

    /// A packet was opened, which had come with these ECN bits.
    pub(crate) fn on_received(&mut self, now: Instant, number: u64, ack_eliciting: bool, ecn: Ecn) {
        self.ecn.count(ecn);
        let next = self.received.last().map_or(0, |range| range.end);
        self.received.insert(number..number + 1);
        if self.received.len() > MAX_ACK_RANGES {
            self.received.remove_first();
        }
        if number >= next {
            self.largest_received_at = now;
        }
        if ack_eliciting {
            self.owed += 1;
            let at_once = number != next || self.owed >= self.after || ecn == Ecn::Ce;
            let due = if at_once { now } else { now + MAX_ACK_DELAY };
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// Gives room back that nothing needs.
    pub(crate) fn rest(&mut self) {
        self.received.rest();
    }

    /// When an ACK is due, if one is owed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether an ACK should go out now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Whether data that leaves now takes an ACK along, so that request and reply need no packet for it: where the next
    /// ack-eliciting packet makes it due, and where packets are so far apart that time will. `is_alone`: it is all that this end has in
    /// flight.
    pub(crate) fn rides_along(&self, now: Instant, is_alone: bool) -> bool {
        let is_rare = is_alone && now.since(self.written_at) >= MAX_ACK_DELAY;
        self.owed > 0 && (self.owed + 1 >= self.after || is_rare)
    }

    /// Writes an ACK; returns the largest number it acks. `None`: nothing to ack, or no room.
    pub(crate) fn write(&mut self, now: Instant, writer: &mut Writer<'_>) -> Option<u64> {
        let largest = self.received.last()?.end - 1;
        let delay = now.since(self.largest_received_at);
        let newest_first = NewestFirst { ranges: &self.received, left: self.received.len() };
        let arrival = self.arrivals.then(|| ArrivalTime::at(self.largest_received_at));
        frame::write_ack(writer, delay, self.ecn.any(), arrival, newest_first)?;
        (self.owed, self.due, self.written_at) = (0, None, now);
        Some(largest)
    }

    /// The peer got an ACK whose largest number was `largest`: what it said need not be said again.
    pub(crate) fn on_ack_acked(&mut self, largest: u64) {
        // The newest range stays, in whole, as the base of the next ACK.
        let newest = self.received.last().map_or(0, |range| range.start);
        self.received.remove(0..newest.min(largest + 1));
    }
}

/// Inclusive ranges, newest first, with a length that is known.
struct NewestFirst<'a> {
    ranges: &'a RangeSet,
    left: usize,
}

impl Iterator for NewestFirst<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        self.left = self.left.checked_sub(1)?;
        self.ranges.get(self.left).map(|range| (range.start, range.end - 1))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for NewestFirst<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Reader;
    use crate::frame::Frame;

    const T: Instant = Instant::from_nanos(1_000_000_000);

    fn written(acks: &mut Acks, now: Instant) -> Vec<(u64, u64)> {
        let mut buffer = [0; 700];
        let mut writer = Writer::new(&mut buffer);
        acks.write(now, &mut writer).unwrap();
        let length = writer.len();
        match Frame::next(&mut Reader::new(&buffer[..length])) {
            Ok(Some(Frame::Ack(ack))) => ack.ranges().collect(),
            other => panic!("{other:?}"),
        }
    }

    /// wire.md W5.3
    #[test]
    fn due_by_count_by_disorder_and_by_delay() {
        let mut acks = Acks::new(128);
        acks.on_received(T, 0, false, Ecn::NotEct);
        assert_eq!(acks.due(), None, "acks are not acked");
        assert!(!acks.rides_along(T, true), "nor taken along");
        acks.on_received(T, 1, true, Ecn::NotEct);
        assert!(acks.rides_along(T, true), "there was none for long");
        assert_eq!(written(&mut acks, T), [(0, 1)]);
        (2..8).for_each(|n| acks.on_received(T, n, true, Ecn::NotEct));
        assert!(!acks.rides_along(T, true));
        acks.on_received(T, 8, true, Ecn::NotEct);
        assert_eq!(acks.due(), Some(T + MAX_ACK_DELAY));
        assert!(!acks.is_due(T));
        assert!(acks.rides_along(T, true), "data that leaves now carries it");
        acks.on_received(T, 9, true, Ecn::NotEct);
        assert!(acks.is_due(T), "the eighth");
        assert_eq!(written(&mut acks, T), [(0, 9)]);
        assert_eq!((acks.due(), acks.rides_along(T, true)), (None, false));
        acks.on_received(T, 10, true, Ecn::NotEct);
        assert!(
            !acks.rides_along(T, true)
                && acks.rides_along(T + MAX_ACK_DELAY, true)
                && !acks.rides_along(T + MAX_ACK_DELAY, false)
        );
        acks.on_received(T, 11, true, Ecn::NotEct);
        acks.on_received(T, 13, true, Ecn::NotEct);
        assert!(acks.is_due(T), "a gap");
        written(&mut acks, T);
        acks.on_received(T, 12, true, Ecn::NotEct);
        assert!(acks.is_due(T), "late");
        assert_eq!(written(&mut acks, T), [(0, 13)]);
    }

    /// wire.md W5.4
    #[test]
    fn ranges_are_bounded_and_newest_first() {
        let mut acks = Acks::new(128);
        (0..100).for_each(|n| acks.on_received(T, 2 * n, true, Ecn::NotEct));
        let ranges = written(&mut acks, T);
        assert_eq!(ranges.len(), MAX_ACK_RANGES);
        assert_eq!(ranges[0], (198, 198));
        assert_eq!(ranges[31], (136, 136));
        acks.on_ack_acked(190);
        assert_eq!(written(&mut acks, T), [(198, 198), (196, 196), (194, 194), (192, 192)]);
    }

    /// wire.md W5.3
    #[test]
    fn the_peer_asks_for_fewer_and_gets_them_within_bounds() {
        let mut acks = Acks::new(128);
        let mut number = 0;
        let mut received_until_due = |acks: &mut Acks| {
            let from = number;
            while !acks.is_due(T) {
                acks.on_received(T, number, true, Ecn::NotEct);
                number += 1;
            }
            written(acks, T);
            number - from
        };
        for (asked_in, packets, granted) in [(5, 16, 16), (6, 1000, 32), (9, 0, 1), (8, 16, 1), (10, 8, 8)] {
            acks.on_frequency(asked_in, packets, false);
            assert_eq!(received_until_due(&mut acks), granted, "{packets} asked for in {asked_in}");
        }
    }

    /// wire.md W5.23: when the newest arrived, and not when that is told.
    #[test]
    fn times_of_arrival_are_told_when_asked_for() {
        let mut acks = Acks::new(128);
        let told = |acks: &mut Acks| {
            let mut buffer = [0; 100];
            acks.write(T + MAX_ACK_DELAY, &mut Writer::new(&mut buffer)).unwrap();
            let Ok(Some(Frame::Ack(ack))) = Frame::next(&mut Reader::new(&buffer)) else { panic!("{buffer:?}") };
            ack.arrival
        };
        acks.on_received(T, 4, true, Ecn::NotEct);
        assert_eq!(told(&mut acks), None);
        acks.on_frequency(5, 8, true);
        acks.on_received(T, 5, true, Ecn::NotEct);
        acks.on_received(T + MAX_ACK_DELAY, 3, true, Ecn::NotEct);
        assert_eq!(told(&mut acks), Some(ArrivalTime::at(T)));
        acks.on_frequency(4, 8, false);
        assert_eq!(told(&mut acks), Some(ArrivalTime::at(T)), "old news");
        acks.on_frequency(6, 8, false);
        assert_eq!(told(&mut acks), None);
    }

    /// wire.md W5.3, W5.21
    #[test]
    fn a_mark_is_told_at_once_and_with_all_counts() {
        let mut acks = Acks::new(128);
        acks.on_received(T, 0, true, Ecn::Ect0);
        assert!(!acks.is_due(T));
        acks.on_received(T, 1, true, Ecn::Ce);
        assert!(acks.is_due(T));
        let mut buffer = [0; 100];
        acks.write(T, &mut Writer::new(&mut buffer)).unwrap();
        let Ok(Some(Frame::Ack(ack))) = Frame::next(&mut Reader::new(&buffer)) else { panic!("{buffer:?}") };
        assert_eq!(ack.ecn, Some(EcnCounts { ect0: 1, ect1: 0, ce: 1 }));
    }
}
