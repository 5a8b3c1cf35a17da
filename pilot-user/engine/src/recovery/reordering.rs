//! How much disorder a path has shown, learnt from losses that were none (RFC 8985 §6.2, RFC 9002 §6.1).

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{
    MAX_LOST_REMEMBERED, MAX_PACKET_THRESHOLD, MAX_TIME_THRESHOLD_EIGHTHS, PACKET_THRESHOLD,
    REORDERING_FORGOTTEN_AFTER, TIME_THRESHOLD_EIGHTHS, TIMER_GRANULARITY,
};
use crate::time::Instant;

/// A packet that was declared lost and may still be acked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lost {
    pub(crate) number: u64,
    pub(crate) sent: Instant,
    /// It counted for congestion.
    pub(crate) counted: bool,
}

/// When a packet is lost, and what was declared so.
#[derive(Debug)]
pub(crate) struct Reordering {
    packets: u64,
    /// Of the round-trip time.
    eighths: u32,
    /// By number.
    lost: VecDeque<Lost>,
    /// Round trips with losses since the last one that was none.
    calm: u32,
    /// Losses of packets sent before belong to a round trip that was counted.
    round: Instant,
}

impl Default for Reordering {
    fn default() -> Self {
        Self {
            packets: PACKET_THRESHOLD,
            eighths: TIME_THRESHOLD_EIGHTHS,
            lost: VecDeque::new(),
            calm: 0,
            round: Instant::ORIGIN,
        }
    }
}

impl Reordering {
    /// Gives room back that nothing needs.
    pub(crate) fn rest(&mut self) {
        self.lost.shrink_to_fit();
    }

    /// Whether there are packets that were declared lost and may still be acked.
    pub(crate) fn remembers_losses(&self) -> bool {
        !self.lost.is_empty()
    }

    /// A packet is lost when one so many numbers above it was acked.
    pub(crate) fn packet_threshold(&self) -> u64 {
        self.packets
    }

    /// The age at which a packet is lost if a later one was acked, for a round trip of `rtt`.
    pub(crate) fn time_threshold(&self, rtt: Duration) -> Duration {
        (rtt * self.eighths / 8).max(TIMER_GRANULARITY)
    }

    pub(crate) fn on_lost(&mut self, now: Instant, packet: Lost) {
        if packet.sent >= self.round {
            self.round = now;
            self.calm += 1;
            if self.calm >= REORDERING_FORGOTTEN_AFTER {
                (self.packets, self.eighths) = (PACKET_THRESHOLD, TIME_THRESHOLD_EIGHTHS);
            }
        }
        if self.lost.len() >= MAX_LOST_REMEMBERED {
            self.lost.pop_front();
        }
        self.lost.push_back(packet);
    }

    /// Takes out the lost packets in `smallest..=largest`, which is acked; each was overtaken, and not lost. `largest_acked`
    /// is that of the ACKs before.
    pub(crate) fn take_acked(
        &mut self,
        now: Instant,
        (smallest, largest): (u64, u64),
        largest_acked: u64,
        rtt: Duration,
        mut spurious: impl FnMut(Lost),
    ) {
        if self.lost.back().is_none_or(|lost| lost.number < smallest) {
            return;
        }
        let from = self.lost.partition_point(|lost| lost.number < smallest);
        let to = self.lost.partition_point(|lost| lost.number <= largest);
        for lost in self.lost.drain(from..to) {
            let overtaken_by = largest_acked.saturating_sub(lost.number) + 1;
            self.packets = self.packets.max(overtaken_by).min(MAX_PACKET_THRESHOLD);
            let needed = (now.since(lost.sent).as_nanos() * 8).div_ceil(rtt.as_nanos().max(1));
            let needed = u32::try_from(needed).unwrap_or(u32::MAX);
            self.eighths = self.eighths.max(needed.min(MAX_TIME_THRESHOLD_EIGHTHS));
            self.calm = 0;
            spurious(lost);
        }
    }

    /// Forgets packets sent before `since`: they do not arrive any more. Gives the memory back when all are forgotten.
    pub(crate) fn forget(&mut self, since: Instant) {
        while self.lost.front().is_some_and(|lost| lost.sent < since) {
            self.lost.pop_front();
        }
        if self.lost.is_empty() && self.lost.capacity() > 0 {
            self.lost = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(8);

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1000)
    }

    fn lost(number: u64) -> Lost {
        Lost { number, sent: at(number), counted: true }
    }

    /// wire.md W5.5
    #[test]
    fn thresholds_learn_from_what_was_not_lost_within_bounds() {
        let mut reordering = Reordering::default();
        assert_eq!((reordering.packet_threshold(), reordering.time_threshold(RTT)), (3, RTT * 9 / 8));
        (10..14).for_each(|n| reordering.on_lost(at(8_000), lost(n)));
        let mut none = Vec::new();
        reordering.take_acked(at(8_100), (11, 12), 20, RTT, |lost| none.push(lost.number));
        assert_eq!(none, [11, 12]);
        assert_eq!(reordering.packet_threshold(), 10, "the oldest was overtaken by nine");
        assert_eq!(reordering.time_threshold(RTT), RTT * 9 / 8, "its age was no more than that");
        reordering.take_acked(at(10_500), (13, 13), 20, RTT, |lost| none.push(lost.number));
        assert_eq!(reordering.time_threshold(RTT), RTT * 11 / 8);
        reordering.take_acked(at(900_000), (10, 10), 20_000, RTT, |lost| none.push(lost.number));
        assert_eq!(none, [11, 12, 13, 10]);
        assert_eq!(reordering.packet_threshold(), MAX_PACKET_THRESHOLD);
        assert_eq!(reordering.time_threshold(RTT), RTT * MAX_TIME_THRESHOLD_EIGHTHS / 8);
        for round in 0..u64::from(REORDERING_FORGOTTEN_AFTER) {
            assert_eq!(reordering.packet_threshold(), MAX_PACKET_THRESHOLD, "{round}");
            let sent = at(1_000_000 * (round + 1));
            (0..5).for_each(|_| reordering.on_lost(sent + RTT, Lost { number: 100 + round, sent, counted: true }));
        }
        assert_eq!(reordering.packet_threshold(), PACKET_THRESHOLD, "it was long ago");
    }

    #[test]
    fn remembers_so_many_and_so_long() {
        let mut reordering = Reordering::default();
        (0..2 * MAX_LOST_REMEMBERED as u64).for_each(|n| reordering.on_lost(at(n), lost(n)));
        assert_eq!(reordering.lost.len(), MAX_LOST_REMEMBERED);
        reordering.forget(at(u64::MAX / 1000));
        assert_eq!(reordering.lost.capacity(), 0);
    }
}
