//! Round-trip time (RFC 9002 §5).

use std::time::Duration;

use crate::limits::{INITIAL_RTT, TIMER_GRANULARITY};

/// Estimates from the acks of one path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    pub(crate) latest: Duration,
    pub(crate) smoothed: Duration,
    pub(crate) var: Duration,
    /// `None` before the first sample.
    pub(crate) min: Option<Duration>,
}

impl Default for Rtt {
    fn default() -> Self {
        Self { latest: INITIAL_RTT, smoothed: INITIAL_RTT, var: INITIAL_RTT / 2, min: None }
    }
}

impl Rtt {
    /// Takes a sample; `ack_delay` is what the peer says it waited, at most what it had announced.
    pub(crate) fn update(&mut self, latest: Duration, ack_delay: Duration) {
        self.latest = latest;
        let Some(min) = self.min else {
            *self = Self { latest, smoothed: latest, var: latest / 2, min: Some(latest) };
            return;
        };
        let min = min.min(latest);
        self.min = Some(min);
        // The peer's waiting is taken off only where what is left is possible (§5.3).
        let adjusted = if latest >= min + ack_delay { latest - ack_delay } else { latest };
        self.var = (self.var * 3 + self.smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = (self.smoothed * 7 + adjusted) / 8;
    }

    /// The probe time-out without backoff (W5.6).
    pub(crate) fn pto(&self, max_ack_delay: Duration) -> Duration {
        self.smoothed + (self.var * 4).max(TIMER_GRANULARITY) + max_ack_delay
    }

    /// The age at which a packet is lost if a later one was acked (W5.5).
    pub(crate) fn loss_delay(&self) -> Duration {
        (self.smoothed.max(self.latest) * 9 / 8).max(TIMER_GRANULARITY)
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
        rtt.update(us(800), us(500));
        assert_eq!((rtt.smoothed, rtt.var, rtt.min), (us(800), us(400), Some(us(800))));
        rtt.update(us(1600), us(400));
        assert_eq!((rtt.smoothed, rtt.var), (us(850), us(400)), "1200 after the delay");
        rtt.update(us(900), us(400));
        assert_eq!(rtt.latest, us(900));
        assert_eq!(rtt.var, us(400 * 3 + 50) / 4, "a delay that would go below the least is not taken off");
        assert_eq!(rtt.min, Some(us(800)));
        assert_eq!(rtt.pto(us(1000)), rtt.smoothed + rtt.var * 4 + us(1000));
    }
}
