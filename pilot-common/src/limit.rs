//! How often something may happen: a token bucket.

/// A rate, and how many may come at once.
///
/// The bucket is one number, the time at which it will be full again: as long before that as tokens are missing (the virtual
/// scheduling of GCRA, ITU-T I.371). Zero is a full one. What is refused takes nothing, so a flood leaves no debt: a moment
/// after it ends, there is a token again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Time in which a token comes back; 0: at once, so that there is no limit.
    pub interval_us: u32,
    /// Tokens in a full bucket, at least 1. Of a type for which no product here overflows.
    pub at_once: u16,
}

impl Limit {
    /// `rate` a second, not 0, and `at_once` at once.
    pub const fn per_second(rate: u32, at_once: u16) -> Self {
        Self { interval_us: 1_000_000 / rate, at_once }
    }

    /// Takes a token at `now_ns`, a clock that begins at zero: the bucket after that, or `None` if it is empty.
    #[inline(always)]
    pub const fn take(self, bucket: u64, now_ns: u64) -> Option<u64> {
        let interval_ns = self.interval_us as u64 * 1000;
        let from = if bucket > now_ns { bucket } else { now_ns };
        let full_at = from + interval_ns;
        if full_at - now_ns > interval_ns * self.at_once as u64 { None } else { Some(full_at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit::per_second(200, 3);

    /// Takes as many as there are.
    fn drain(bucket: &mut u64, now_ns: u64) -> usize {
        std::iter::from_fn(|| LIMIT.take(*bucket, now_ns).map(|after| *bucket = after)).take(100).count()
    }

    #[test]
    fn a_bucket_holds_its_tokens_and_fills_at_its_rate() {
        let (mut bucket, interval) = (0, 5_000_000);
        assert_eq!(drain(&mut bucket, 7), 3);
        assert_eq!(drain(&mut bucket, 7 + interval - 1), 0);
        assert_eq!(drain(&mut bucket, 7 + interval), 1);
        assert_eq!(drain(&mut bucket, 7 + 3 * interval), 2);
        assert_eq!(drain(&mut bucket, 7 + 1000 * interval), 3, "it does not overflow");
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let mut bucket = 0;
        assert_eq!(drain(&mut bucket, 0), 3);
        let empty = bucket;
        for now in 0..1000 {
            assert_eq!(LIMIT.take(bucket, now), None);
        }
        assert_eq!(bucket, empty);
        assert_eq!(drain(&mut bucket, 5_000_000), 1, "after a flood as without");
    }

    #[test]
    fn extremes() {
        let free = Limit { interval_us: 0, at_once: 1 };
        assert_eq!(free.take(0, 5), Some(5));
        assert_eq!(free.take(5, 5), Some(5));
        let slow = Limit { interval_us: u32::MAX, at_once: u16::MAX };
        let day = 86_400_000_000_000;
        assert!(slow.take(0, day * 36_500).is_some(), "after a century of uptime");
    }
}
