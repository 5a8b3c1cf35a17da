//! Path MTU: the least that every path carries until probes of larger sizes were acked (`docs/wire.md` W6.1, W6.6).

use std::time::Duration;

use crate::limits::{MAX_MTU_PROBES, MAX_MTU_RETRY, MIN_DATAGRAM_BYTES, MTU_RETRY, MTU_STEPS};
use crate::time::Instant;

#[derive(Clone, Debug)]
pub(crate) struct Mtu {
    current: u16,
    target: u16,
    /// Of the next size.
    probes_left: u8,
    in_flight: bool,
    /// When to probe again, once none is left.
    retry_at: Instant,
    pause: Duration,
}

impl Mtu {
    /// For a path whose ends take at most `target` bytes.
    pub(crate) fn new(target: u16) -> Self {
        Self {
            current: MIN_DATAGRAM_BYTES,
            target,
            probes_left: MAX_MTU_PROBES,
            in_flight: false,
            retry_at: Instant::ORIGIN,
            pause: MTU_RETRY,
        }
    }

    /// Bytes: the largest datagram known to arrive.
    pub(crate) fn current(&self) -> u16 {
        self.current
    }

    /// The size to probe now, if any. `has_data`: messages or stream data wait; at rest a search that failed is not
    /// begun again (W5.15).
    pub(crate) fn probe(&self, now: Instant, has_data: bool) -> Option<u16> {
        // As with nearly every packet.
        if self.current >= self.target || self.in_flight {
            return None;
        }
        let is_time = self.probes_left > 0 || has_data && self.retry_at <= now;
        let next =
            MTU_STEPS.into_iter().find(|step| *step > self.current).map_or(self.target, |step| step.min(self.target));
        is_time.then_some(next)
    }

    pub(crate) fn on_probe_sent(&mut self) {
        self.in_flight = true;
        self.probes_left = self.probes_left.saturating_sub(1);
    }

    pub(crate) fn on_probe_fate(&mut self, now: Instant, bytes: u16, arrived: bool) {
        self.in_flight = false;
        if arrived {
            *self = Self { current: self.current.max(bytes), ..Self::new(self.target) };
        } else if self.probes_left == 0 {
            self.retry_at = now + self.pause;
            self.pause = MAX_MTU_RETRY.min(self.pause * 2);
        }
    }

    /// Data takes another path or comes back to this one: what became of a probe is not told any more.
    pub(crate) fn forget_probe(&mut self) {
        self.in_flight = false;
    }

    /// Nothing arrives any more, perhaps because the path carries less than it did (W6.6): back to what every path carries,
    /// and the search begins anew. Whether it was more.
    pub(crate) fn fall_back(&mut self) -> bool {
        let was_more = self.current > MIN_DATAGRAM_BYTES;
        if was_more {
            *self = Self { in_flight: self.in_flight, ..Self::new(self.target) };
        }
        was_more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(7);

    /// Probes once, and has the probe arrive if the path carries as much.
    fn step(mtu: &mut Mtu, now: Instant, carries: u16) -> Option<u16> {
        let size = mtu.probe(now, false)?;
        mtu.on_probe_sent();
        assert_eq!(mtu.probe(now, true), None, "one at a time");
        mtu.on_probe_fate(now, size, size <= carries);
        Some(size)
    }

    fn search(mtu: &mut Mtu, carries: u16) -> Vec<u16> {
        std::iter::from_fn(|| step(mtu, NOW, carries)).collect()
    }

    /// wire.md W6.1, W6.6
    #[test]
    fn grows_by_acked_probes_only_and_step_by_step() {
        for (target, carries, probes, found) in [
            (1472, 1472, &[1400, 1472][..], 1472),
            (1472, 1450, &[1400, 1472, 1472, 1472], 1400),
            (1400, 1399, &[1400, 1400, 1400], 1200),
            (9000, 9000, &[1400, 3400, 8900, 9000], 9000),
            (8900, 4000, &[1400, 3400, 8900, 8900, 8900], 3400),
            (1200, 9000, &[], 1200),
        ] {
            let mut mtu = Mtu::new(target);
            assert_eq!(mtu.current(), 1200);
            assert_eq!(search(&mut mtu, carries), probes, "{target}, {carries}");
            assert_eq!(mtu.current(), found, "{target}, {carries}");
        }
    }

    /// wire.md W6.6: a path that became wider is found, while there is data; the pauses grow, and have an end.
    #[test]
    fn a_search_that_failed_is_repeated_while_there_is_data() {
        let mut mtu = Mtu::new(1472);
        search(&mut mtu, 1400);
        let (mut now, mut pause) = (NOW, MTU_RETRY);
        for _ in 0..8 {
            assert_eq!(mtu.probe(now + pause, false), None, "at rest");
            assert_eq!(mtu.probe(now, true), None, "too early");
            now += pause;
            assert_eq!(mtu.probe(now, true), Some(1472));
            mtu.on_probe_sent();
            mtu.on_probe_fate(now, 1472, false);
            pause = MAX_MTU_RETRY.min(pause * 2);
        }
        assert_eq!(pause, MAX_MTU_RETRY);
        now += pause;
        mtu.on_probe_sent();
        mtu.on_probe_fate(now, 1472, true);
        assert_eq!((mtu.current(), mtu.probe(now + pause, true)), (1472, None));
    }

    /// wire.md W6.6
    #[test]
    fn falls_back_and_searches_again() {
        let mut mtu = Mtu::new(1472);
        search(&mut mtu, 1472);
        assert!(mtu.fall_back() && !mtu.fall_back());
        assert_eq!(mtu.current(), 1200);
        assert_eq!(search(&mut mtu, 1400), [1400, 1472, 1472, 1472]);
        mtu.on_probe_sent();
        mtu.forget_probe();
        assert_eq!(mtu.probe(NOW + MTU_RETRY, true), Some(1472));
    }
}
