//! Round-trip time (RFC 9002 §5).

use std::time::Duration;

use crate::limits::{INITIAL_RTT, MIN_RTT_WINDOW, TIMER_GRANULARITY};
use crate::time::{Instant, nanos};

/// Estimates from the acks of one path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    pub(crate) latest: Duration,
    pub(crate) smoothed: Duration,
    pub(crate) var: Duration,
    /// Least of the last one to two [`MIN_RTT_WINDOW`]s, so that a longer route is noticed. `None` before the first sample.
    pub(crate) min: Option<Duration>,
    /// What a round trip took on the other path, if there are two: the peer's acks may take either.
    pub(crate) elsewhere: Duration,
    /// Least of the window that goes on, and when it began.
    recent: Duration,
    recent_since: Instant,
}

impl Default for Rtt {
    fn default() -> Self {
        Self {
            latest: INITIAL_RTT,
            smoothed: INITIAL_RTT,
            var: INITIAL_RTT / 2,
            min: None,
            elsewhere: Duration::ZERO,
            recent: Duration::MAX,
            recent_since: Instant::ORIGIN,
        }
    }
}

impl Rtt {
    /// Takes a sample; `ack_delay` is what the peer says it waited, at most what it had announced. Returns the sample
    /// without that, as far as it can be taken off.
    pub(crate) fn update(&mut self, now: Instant, latest: Duration, ack_delay: Duration) -> Duration {
        self.latest = latest;
        let Some(min) = self.min else {
            let (smoothed, var, min) = (latest, latest / 2, Some(latest));
            *self = Self { latest, smoothed, var, min, elsewhere: self.elsewhere, recent: latest, recent_since: now };
            return latest;
        };
        self.recent = self.recent.min(latest);
        let mut min = min.min(latest);
        if now.since(self.recent_since) >= MIN_RTT_WINDOW {
            (min, self.recent, self.recent_since) = (self.recent, latest, now);
        }
        self.min = Some(min);
        // The peer's waiting is taken off only where what is left is possible (§5.3).
        let adjusted = if latest >= min + ack_delay { latest - ack_delay } else { latest };
        self.var = (self.var * 3 + self.smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = (self.smoothed * 7 + adjusted) / 8;
        adjusted
    }

    /// After persistent congestion the path may be another one (RFC 9002 §5.2).
    pub(crate) fn forget_min(&mut self) {
        (self.min, self.recent) = (self.min.map(|_| self.latest), self.latest);
    }

    /// Both the last sample and the mean: what a round trip takes, as far as loss is concerned.
    pub(crate) fn longest(&self) -> Duration {
        self.smoothed.max(self.latest)
    }

    /// The probe time-out without backoff (W5.6).
    pub(crate) fn pto(&self, max_ack_delay: Duration) -> Duration {
        // In nanoseconds, as it is asked for with nearly every packet.
        let [smoothed, elsewhere, var, ack_delay] = [self.smoothed, self.elsewhere, self.var, max_ack_delay].map(nanos);
        let var = var.saturating_mul(4).max(nanos(TIMER_GRANULARITY));
        Duration::from_nanos(smoothed.max(elsewhere).saturating_add(var).saturating_add(ack_delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// RFC 9002 §5.3, by hand.
    #[test]
    fn samples_of_the_standard() {
        let mut rtt = Rtt::default();
        let now = Instant::from_nanos(1);
        rtt.update(now, us(800), us(500));
        assert_eq!((rtt.smoothed, rtt.var, rtt.min), (us(800), us(400), Some(us(800))));
        rtt.update(now, us(1600), us(400));
        assert_eq!((rtt.smoothed, rtt.var), (us(850), us(400)), "1200 after the delay");
        rtt.update(now, us(900), us(400));
        assert_eq!(rtt.latest, us(900));
        assert_eq!(rtt.var, us(400 * 3 + 50) / 4, "a delay that would go below the least is not taken off");
        assert_eq!(rtt.min, Some(us(800)));
        assert_eq!(rtt.pto(us(1000)), rtt.smoothed + rtt.var * 4 + us(1000));
    }

    /// A longer route is believed after a window without a shorter sample.
    #[test]
    fn the_least_is_that_of_a_window() {
        let mut rtt = Rtt::default();
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        rtt.update(at(1), us(100), us(0));
        for second in 2..=30 {
            rtt.update(at(second), us(5000), us(0));
            if second <= 10 {
                assert_eq!(rtt.min, Some(us(100)), "{second} s");
            }
        }
        assert_eq!(rtt.min, Some(us(5000)));
        rtt.update(at(31), us(90), us(0));
        assert_eq!(rtt.min, Some(us(90)), "a shorter one at once");
    }
}
