//! Path MTU: the least that every path carries until a probe of the larger size both ends can take was acked
//! (`docs/wire.md` W6.1).

use crate::limits::{MAX_MTU_PROBES, MIN_DATAGRAM_BYTES};

#[derive(Debug)]
pub(crate) struct Mtu {
    current: u16,
    target: u16,
    probes_left: u8,
    in_flight: bool,
    fallen_back: bool,
}

impl Mtu {
    /// For a path whose ends take at most `target` bytes.
    pub(crate) fn new(target: u16) -> Self {
        Self { current: MIN_DATAGRAM_BYTES, target, probes_left: MAX_MTU_PROBES, in_flight: false, fallen_back: false }
    }

    /// Bytes: the largest datagram known to arrive.
    pub(crate) fn current(&self) -> u16 {
        self.current
    }

    /// The size to probe now, if any.
    pub(crate) fn probe(&self) -> Option<u16> {
        (self.current < self.target && self.probes_left > 0 && !self.in_flight).then_some(self.target)
    }

    pub(crate) fn on_probe_sent(&mut self) {
        self.in_flight = true;
        self.probes_left -= 1;
    }

    pub(crate) fn on_probe_fate(&mut self, bytes: u16, arrived: bool) {
        self.in_flight = false;
        if arrived {
            self.current = self.current.max(bytes);
            self.fallen_back = false;
        }
    }

    /// Nothing arrives any more, perhaps because the path carries less than it did (W6.6): back to what every path carries,
    /// and the search begins anew.
    pub(crate) fn fall_back(&mut self) {
        if self.current > MIN_DATAGRAM_BYTES {
            *self = Self { in_flight: self.in_flight, fallen_back: true, ..Self::new(self.target) };
        }
    }

    /// Whether a probe goes ahead of data: bulk may leave no gap for it, and its size was known to pass.
    pub(crate) fn is_urgent(&self) -> bool {
        self.fallen_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire.md W6.1
    #[test]
    fn grows_by_an_acked_probe_only() {
        let mut mtu = Mtu::new(1400);
        assert_eq!((mtu.current(), mtu.probe()), (1200, Some(1400)));
        mtu.on_probe_sent();
        assert_eq!(mtu.probe(), None, "one at a time");
        mtu.on_probe_fate(1400, false);
        assert_eq!((mtu.current(), mtu.probe()), (1200, Some(1400)));
        mtu.on_probe_sent();
        mtu.on_probe_fate(1400, true);
        assert_eq!((mtu.current(), mtu.probe()), (1400, None));

        let mut mtu = Mtu::new(1400);
        (0..MAX_MTU_PROBES).for_each(|_| {
            mtu.on_probe_sent();
            mtu.on_probe_fate(1400, false);
        });
        assert_eq!((mtu.current(), mtu.probe()), (1200, None), "gives up");
        assert_eq!(Mtu::new(1200).probe(), None);
    }

    /// wire.md W6.6
    #[test]
    fn falls_back_and_searches_again() {
        let mut mtu = Mtu::new(1400);
        mtu.fall_back();
        assert!(!mtu.is_urgent(), "there was nothing to fall from");
        mtu.on_probe_sent();
        mtu.on_probe_fate(1400, true);
        mtu.fall_back();
        assert_eq!((mtu.current(), mtu.probe(), mtu.is_urgent()), (1200, Some(1400), true));
        mtu.on_probe_sent();
        mtu.on_probe_fate(1400, true);
        assert_eq!((mtu.current(), mtu.is_urgent()), (1400, false));
    }
}
