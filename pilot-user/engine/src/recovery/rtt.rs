//! Round-trip time (RFC 9002 §5).

use std::time::Duration;

use crate::frame::ArrivalTime;
use crate::limits::{CLOCK_DRIFT_PPM, INITIAL_RTT, MIN_RTT_WINDOW, TIMER_GRANULARITY};
use crate::time::{Instant, nanos};

/// Estimates from the acks of one path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    pub(crate) latest: Duration,
    pub(crate) smoothed: Duration,
    pub(crate) var: Duration,
    /// What a round trip took on the other path, if there are two: the peer's acks may take either.
    pub(crate) elsewhere: Duration,
    /// `None` before the first sample.
    least: Option<Least<Duration>>,
    /// What the way there took, plus what the peer's clock is ahead, in microseconds: last, and least.
    there: Option<(i64, Least<i64>)>,
}

/// The least of the last one to two [`MIN_RTT_WINDOW`]s, so that a longer route is noticed, and clocks that go at different speeds
/// have not come far apart.
#[derive(Clone, Copy, Debug)]
struct Least<T> {
    of_all: T,
    /// Of the window that goes on, and when it began.
    recent: T,
    since: Instant,
}

impl<T: Ord + Copy> Least<T> {
    fn new(now: Instant, value: T) -> Self {
        Self { of_all: value, recent: value, since: now }
    }

    fn update(&mut self, now: Instant, value: T) {
        self.recent = self.recent.min(value);
        self.of_all = self.of_all.min(value);
        if now.since(self.since) >= MIN_RTT_WINDOW {
            (self.of_all, self.recent, self.since) = (self.recent, value, now);
        }
    }
}

impl Default for Rtt {
    fn default() -> Self {
        Self {
            latest: INITIAL_RTT,
            smoothed: INITIAL_RTT,
            var: INITIAL_RTT / 2,
            elsewhere: Duration::ZERO,
            least: None,
            there: None,
        }
    }
}

impl Rtt {
    /// Takes a sample; `ack_delay` is what the peer says it waited, at most what it had announced. Returns the sample
    /// without that, as far as it can be taken off.
    pub(crate) fn update(&mut self, now: Instant, latest: Duration, ack_delay: Duration) -> Duration {
        self.latest = latest;
        let Some(least) = &mut self.least else {
            (self.smoothed, self.var) = (latest, latest / 2);
            self.least = Some(Least::new(now, latest));
            return latest;
        };
        least.update(now, latest);
        let min = least.of_all;
        // The peer's waiting is taken off only where what is left is possible (§5.3).
        let adjusted = if latest >= min + ack_delay { latest - ack_delay } else { latest };
        self.var = (self.var * 3 + self.smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = (self.smoothed * 7 + adjusted) / 8;
        adjusted
    }

    /// Takes from a sample that [`Self::update`] returned what queued on the way back (W5.23): a queue that this end's packets do not
    /// make, and that it cannot make shorter. What the peer says of its clock counts for no more than the round trip shows.
    pub(crate) fn there(&mut self, now: Instant, sent: Instant, arrival: ArrivalTime, sample: Duration) -> Duration {
        let took = arrival.since(sent, self.there.map_or(0, |(last, _)| last));
        // As if the peer's clock were the slower one in any case: then the least is one of those just now, and what clocks have come
        // apart since then makes a queue seem shorter. The other way it would make one, of all that the clocks came apart in the window.
        let steady = took - (now.as_nanos() / 1000 * CLOCK_DRIFT_PPM / 1_000_000) as i64;
        let (last, least) = self.there.get_or_insert_with(|| (took, Least::new(now, steady)));
        *last = took;
        least.update(now, steady);
        let queue = Duration::from_micros(steady.abs_diff(least.of_all));
        let min = self.min().unwrap_or(sample);
        min + sample.saturating_sub(min).min(queue)
    }

    /// The least sample of the last seconds. `None` before the first.
    pub(crate) fn min(&self) -> Option<Duration> {
        self.least.map(|least| least.of_all)
    }

    /// After persistent congestion the path may be another one (RFC 9002 §5.2).
    pub(crate) fn forget_min(&mut self, now: Instant) {
        self.least = self.least.map(|_| Least::new(now, self.latest));
        self.there = None;
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
        assert_eq!((rtt.smoothed, rtt.var, rtt.min()), (us(800), us(400), Some(us(800))));
        rtt.update(now, us(1600), us(400));
        assert_eq!((rtt.smoothed, rtt.var), (us(850), us(400)), "1200 after the delay");
        rtt.update(now, us(900), us(400));
        assert_eq!(rtt.latest, us(900));
        assert_eq!(rtt.var, us(400 * 3 + 50) / 4, "a delay that would go below the least is not taken off");
        assert_eq!(rtt.min(), Some(us(800)));
        assert_eq!(rtt.pto(us(1000)), rtt.smoothed + rtt.var * 4 + us(1000));
    }

    /// wire.md W5.23
    #[test]
    fn queues_there_and_back_are_told_apart() {
        let (mut rtt, ahead) = (Rtt::default(), us(40_000_000));
        let mut at = Instant::from_nanos(1_000_000);
        let mut sample = |there: u64, back: u64| {
            at += us(1000);
            let (sent, now) = (at, at + us(there + back));
            let round_trip = rtt.update(now, us(there + back), us(0));
            rtt.there(now, sent, ArrivalTime::at(sent + us(there) + ahead), round_trip).as_micros().next_multiple_of(10)
        };
        assert_eq!(sample(5000, 5000), 10_000);
        assert_eq!(sample(7000, 5000), 12_000, "of this end's making");
        assert_eq!(sample(5000, 9000), 10_000, "not of this end's making");
        assert_eq!(sample(7000, 9000), 12_000);
        assert_eq!(sample(4000, 5000), 9000, "a shorter way is believed at once");
        assert_eq!(sample(5000, 9000), 10_000);
    }

    /// wire.md W5.23: a clock that goes faster, or slower, or lies, makes no queue where the round trip shows none, and hides none for
    /// longer than the least is believed.
    #[test]
    fn clocks_that_differ_make_no_queue() {
        for ppm in [-200i64, 200] {
            let mut rtt = Rtt::default();
            for n in 0..1000 {
                let sent = Instant::from_nanos(1_000_000_000 + n * 50_000_000);
                let shown = |time: Instant| {
                    Instant::from_nanos((time.as_nanos() as i64 * (1_000_000 + ppm) / 1_000_000) as u64)
                };
                // Every second there is a moment without a queue, every tenth round trip has one.
                let queue = if n % 10 == 5 { us(5000) } else { us(0) };
                let now = sent + us(20_000) + queue;
                let round_trip = rtt.update(now, us(20_000) + queue, us(0));
                let sample = rtt.there(now, sent, ArrivalTime::at(shown(sent + us(10_000) + queue)), round_trip);
                assert!(
                    sample <= us(20_000) + queue && sample + us(200) >= us(20_000) + queue,
                    "{ppm}, {n}: {sample:?}"
                );
            }
        }
        let mut rtt = Rtt::default();
        let now = Instant::from_nanos(1 << 40);
        for lie in [0, 1 << 29, 77, 1 << 28, 1 << 20, u64::MAX / 2] {
            let round_trip = rtt.update(now, us(20_000), us(0));
            assert_eq!(rtt.there(now, now, ArrivalTime::at(Instant::from_nanos(lie)), round_trip), us(20_000));
        }
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
                assert_eq!(rtt.min(), Some(us(100)), "{second} s");
            }
        }
        assert_eq!(rtt.min(), Some(us(5000)));
        rtt.update(at(31), us(90), us(0));
        assert_eq!(rtt.min(), Some(us(90)), "a shorter one at once");
    }
}
