//! Pacing (RFC 9002 §7.7): a leaky bucket in time, so that a window leaves over the round trip and not at once.

use std::time::Duration;

use crate::limits::{MAX_PACING_BURST_PACKETS, MIN_PACING_BURST_PACKETS};
use crate::time::Instant;

/// How fast packets may leave, as it is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bytes.
    pub(crate) window: u64,
    pub(crate) smoothed_rtt: Duration,
    /// The window grows fast: twice as much leaves as it holds, else five quarters, so that pacing never is what limits.
    pub(crate) slow_start: bool,
    /// Bytes that may leave at once.
    pub(crate) burst: u64,
}

impl Pace {
    /// The time that so many bytes take.
    fn time_for(&self, bytes: u64) -> Duration {
        let (numerator, denominator) = if self.slow_start { (1, 2) } else { (4, 5) };
        let nanos = self.smoothed_rtt.as_nanos() * u128::from(bytes) * numerator;
        let nanos = nanos.div_ceil(u128::from(self.window.max(1)) * denominator);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Packets that may leave at once: an eighth of the window, within what a pass of a worker sends, and at most half of what
/// the receiver's ring takes, so that the burst before it may still be there.
pub(crate) fn burst_packets(window_packets: u64, packet_credit: u32) -> u64 {
    let burst = (window_packets / 8).clamp(MIN_PACING_BURST_PACKETS, MAX_PACING_BURST_PACKETS);
    burst.min(u64::from(packet_credit) / 2).max(1)
}

#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// When all that was sent would have left at the pace.
    clear_at: Instant,
    /// A packet was held back, until then.
    held_until: Option<Instant>,
}

impl Pacer {
    /// Whether a packet may leave; if not, notes until when.
    pub(crate) fn may_send(&mut self, now: Instant, pace: &Pace) -> bool {
        let burst = pace.time_for(pace.burst);
        let ahead = self.clear_at.since(now);
        self.held_until = None;
        if ahead < burst || ahead.is_zero() {
            return true;
        }
        // Half a burst at a time: a wake-up for each packet would be most of the work.
        self.held_until = Some(now + (ahead - burst / 2).max(Duration::from_nanos(1)));
        false
    }

    pub(crate) fn on_sent(&mut self, now: Instant, bytes: u64, pace: &Pace) {
        self.clear_at = self.clear_at.max(now) + pace.time_for(bytes);
    }

    /// When what was held back may leave.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// What was held back is to be tried again, if it is still there.
    pub(crate) fn release(&mut self) {
        self.held_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { window: 1_000_000, smoothed_rtt: Duration::from_millis(100), slow_start: false, burst: 20_000 };

    /// wire.md W6.11
    #[test]
    fn a_window_leaves_over_the_round_trip_in_bounded_bursts() {
        let (mut pacer, mut now, mut sent) = (Pacer::default(), Instant::from_nanos(1_000), 0);
        let end = now + PACE.smoothed_rtt;
        let mut wakes = 0;
        while now < end {
            let mut burst = 0;
            while pacer.may_send(now, &PACE) {
                pacer.on_sent(now, 1000, &PACE);
                burst += 1000;
            }
            assert!(burst <= PACE.burst, "{burst} bytes at once");
            sent += burst;
            let until = pacer.held_until().unwrap();
            assert!(until > now, "a deadline that is past stops time");
            now = until;
            wakes += 1;
        }
        assert!((1_250_000..1_280_000).contains(&sent), "five quarters of a window, and a burst: {sent}");
        assert!(wakes <= 130, "a wake-up for half a burst: {wakes}");
    }

    #[test]
    fn what_was_not_used_is_not_saved() {
        let (mut pacer, now) = (Pacer::default(), Instant::from_nanos(1 << 40));
        let mut sent = 0;
        while pacer.may_send(now, &PACE) {
            pacer.on_sent(now, 1000, &PACE);
            sent += 1000;
        }
        assert_eq!(sent, PACE.burst, "after long rest no more than a burst");
    }

    #[test]
    fn bursts_fit_the_receivers_ring() {
        assert_eq!(burst_packets(8, 4096), MIN_PACING_BURST_PACKETS);
        assert_eq!(burst_packets(400, 4096), 50);
        assert_eq!(burst_packets(4000, 4096), MAX_PACING_BURST_PACKETS);
        assert_eq!(burst_packets(4000, 40), 20);
        assert_eq!(burst_packets(4000, 1), 1);
    }
}
