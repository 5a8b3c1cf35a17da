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
    /// Somebody asks for the size before there is data that would fill it.
    is_wanted: bool,
    /// When to probe again, once none is left.
    retry_at: Instant,
    pause: Duration,
}

/// What to probe with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Probe {
    pub(crate) bytes: u16,
    /// It carries no data: the size did not arrive before, and data would come late. Otherwise it is the packet that is longer
    /// than what is known to arrive, if there is as much to send, and costs nothing.
    pub(crate) is_padding: bool,
}

impl Mtu {
    /// For a path whose ends take at most `target` bytes.
    pub(crate) fn new(target: u16) -> Self {
        Self {
            current: MIN_DATAGRAM_BYTES,
            target,
            probes_left: MAX_MTU_PROBES,
            in_flight: false,
            is_wanted: false,
            retry_at: Instant::ORIGIN,
            pause: MTU_RETRY,
        }
    }

    /// Bytes: the largest datagram known to arrive.
    pub(crate) fn current(&self) -> u16 {
        self.current
    }

    /// What to probe with now, if with anything. `has_data`: messages or stream data wait; at rest a search that failed is not
    /// begun again (W5.15).
    pub(crate) fn probe(&self, now: Instant, has_data: bool) -> Option<Probe> {
        // As with nearly every packet.
        if self.current >= self.target || self.in_flight {
            return None;
        }
        let is_padding = self.is_wanted || self.probes_left < MAX_MTU_PROBES;
        let is_time = if self.probes_left > 0 { is_padding || has_data } else { has_data && self.retry_at <= now };
        let next =
            MTU_STEPS.into_iter().find(|step| *step > self.current).map_or(self.target, |step| step.min(self.target));
        is_time.then_some(Probe { bytes: next, is_padding })
    }

    /// The search goes on without data that fills a packet: unreliable datagrams are as long as is known to arrive, and never longer;
    /// and messages that are sent whole may leave room.
    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    pub(crate) fn on_probe_sent(&mut self) {
        self.in_flight = true;
        self.probes_left = self.probes_left.saturating_sub(1);
    }

    pub(crate) fn on_probe_fate(&mut self, now: Instant, bytes: u16, arrived: bool) {
        self.in_flight = false;
        if arrived {
            *self = Self { current: self.current.max(bytes), is_wanted: self.is_wanted, ..Self::new(self.target) };
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
            *self = Self { in_flight: self.in_flight, is_wanted: self.is_wanted, ..Self::new(self.target) };
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
        // A search that has begun ends by itself.
        let bytes = mtu.probe(now, mtu.probes_left == MAX_MTU_PROBES)?.bytes;
        mtu.on_probe_sent();
        assert_eq!(mtu.probe(now, true), None, "one at a time");
        mtu.on_probe_fate(now, bytes, bytes <= carries);
        Some(bytes)
    }

    const fn padding(bytes: u16) -> Option<Probe> {
        Some(Probe { bytes, is_padding: true })
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
            assert_eq!(mtu.probe(now, true), padding(1472));
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
        assert_eq!(mtu.probe(NOW + MTU_RETRY, true), padding(1472));
    }

    /// wire.md W6.6: as long as nothing was lost, data is what a probe is made of; what was lost once goes without.
    #[test]
    fn probes_are_data_until_one_is_lost() {
        let mut mtu = Mtu::new(1472);
        assert_eq!(mtu.probe(NOW, false), None, "nothing to send");
        assert_eq!(mtu.probe(NOW, true), Some(Probe { bytes: 1400, is_padding: false }));
        mtu.on_probe_sent();
        mtu.on_probe_fate(NOW, 1400, false);
        assert_eq!(mtu.probe(NOW, false), padding(1400));
        mtu.on_probe_sent();
        mtu.on_probe_fate(NOW, 1400, true);
        assert_eq!(mtu.probe(NOW, true), Some(Probe { bytes: 1472, is_padding: false }));
        mtu.want();
        assert_eq!(mtu.probe(NOW, false), padding(1472), "somebody asks");
        mtu.on_probe_sent();
        mtu.on_probe_fate(NOW, 1472, true);
        assert_eq!(mtu.probe(NOW, true), None, "it is known");
    }
}
