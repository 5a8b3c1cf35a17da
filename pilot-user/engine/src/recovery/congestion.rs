//! Congestion control: NewReno (RFC 9002 §7, appendix B).

use crate::limits::{INITIAL_WINDOW_PACKETS, MIN_DATAGRAM_BYTES, MIN_WINDOW_PACKETS};
use crate::time::Instant;

/// The congestion window, in bytes.
#[derive(Debug)]
pub(crate) struct NewReno {
    window: u64,
    slow_start_threshold: u64,
    /// Packets sent before this are of the congestion event already answered.
    recovery_start: Option<Instant>,
    datagram: u64,
    /// Bytes acked towards the next increase in congestion avoidance.
    acked: u64,
}

impl Default for NewReno {
    fn default() -> Self {
        let datagram = u64::from(MIN_DATAGRAM_BYTES);
        Self {
            window: INITIAL_WINDOW_PACKETS * datagram,
            slow_start_threshold: u64::MAX,
            recovery_start: None,
            datagram,
            acked: 0,
        }
    }
}

impl NewReno {
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// The path carries larger datagrams now.
    pub(crate) fn set_datagram(&mut self, bytes: u16) {
        self.datagram = u64::from(bytes);
    }

    /// `limited`: the window, and not the application or the peer's credit, held the sender back. Otherwise it says nothing
    /// about the path, and does not grow (RFC 9002 §7.8).
    pub(crate) fn on_acked(&mut self, sent: Instant, bytes: u64, limited: bool) {
        if !limited || self.recovery_start.is_some_and(|start| sent <= start) {
            return;
        }
        if self.window < self.slow_start_threshold {
            self.window += bytes;
            return;
        }
        self.acked += bytes;
        if self.acked >= self.window {
            self.acked -= self.window;
            self.window += self.datagram;
        }
    }

    /// A packet sent at `sent` was lost: halves the window once per round trip.
    pub(crate) fn on_lost(&mut self, now: Instant, sent: Instant) {
        if self.recovery_start.is_some_and(|start| sent <= start) {
            return;
        }
        self.recovery_start = Some(now);
        self.slow_start_threshold = (self.window / 2).max(MIN_WINDOW_PACKETS * self.datagram);
        self.window = self.slow_start_threshold;
        self.acked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_once_per_round_trip_and_never_below_the_least() {
        let mut reno = NewReno::default();
        let initial = reno.window();
        let at = Instant::from_nanos;
        reno.on_acked(at(1), 1200, true);
        assert_eq!(reno.window(), initial + 1200, "slow start");
        reno.on_acked(at(1), 1200, false);
        assert_eq!(reno.window(), initial + 1200, "not limited by the window");
        reno.on_lost(at(10), at(2));
        reno.on_lost(at(11), at(3));
        assert_eq!(reno.window(), (initial + 1200) / 2, "one event");
        reno.on_acked(at(5), 1 << 30, true);
        assert_eq!(reno.window(), (initial + 1200) / 2, "sent before recovery");
        let window = reno.window();
        reno.on_acked(at(12), window, true);
        assert_eq!(reno.window(), window + 1200, "one datagram a window");
        (0..40).for_each(|n| reno.on_lost(at(100 + n), at(99 + n)));
        assert_eq!(reno.window(), 2 * 1200);
    }
}
