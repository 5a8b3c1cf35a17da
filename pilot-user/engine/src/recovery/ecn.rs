//! Explicit congestion notification (RFC 9000 §13.4, A.4): marks counted where packets arrive, and whether a path can be
//! believed to mark ours (wire.md W5.21).

use crate::limits::ECN_TEST_PACKETS;

/// ECN bits of an IP header (RFC 3168).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Ecn {
    /// Not ECN-capable.
    #[default]
    NotEct = 0b00,
    /// ECN-capable, codepoint 1.
    Ect1 = 0b01,
    /// ECN-capable, codepoint 0.
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

/// Packets that arrived with each mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct EcnCounts {
    pub(crate) ect0: u64,
    pub(crate) ect1: u64,
    pub(crate) ce: u64,
}

impl EcnCounts {
    pub(crate) fn count(&mut self, ecn: Ecn) {
        match ecn {
            Ecn::NotEct => {}
            Ecn::Ect0 => self.ect0 += 1,
            Ecn::Ect1 => self.ect1 += 1,
            Ecn::Ce => self.ce += 1,
        }
    }

    /// The counts, if there is something to tell.
    pub(crate) fn any(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The first packets are marked, and nothing is known of them yet.
    Testing,
    /// The counts of the peer fit what was sent.
    Capable,
    /// They did not, or nothing that was marked arrived: nothing is marked any more on this path.
    Failed,
}

/// What became of packets sent with ECT(0) on one path.
#[derive(Debug)]
pub(crate) struct EcnPath {
    state: State,
    /// Packets sent with ECT(0), over any path, as the peer counts them.
    sent: u64,
    /// Of those, on this path, and of those lost.
    tested: u64,
    lost: u64,
    /// Of the newest ACK.
    counts: EcnCounts,
    /// Paths that could not be believed.
    pub(crate) failures: u64,
}

impl Default for EcnPath {
    fn default() -> Self {
        Self { state: State::Testing, sent: 0, tested: 0, lost: 0, counts: EcnCounts::default(), failures: 0 }
    }
}

impl EcnPath {
    /// Whether the next packet is to be marked. A probe of a path that proved nothing yet is not: the marks may be why
    /// nothing arrives.
    pub(crate) fn marks(&self, probing: bool) -> bool {
        match self.state {
            State::Testing => self.tested < ECN_TEST_PACKETS && !probing,
            State::Capable => true,
            State::Failed => false,
        }
    }

    /// The path is another one, of which nothing is known.
    pub(crate) fn test_anew(&mut self) {
        (self.state, self.tested, self.lost) = (State::Testing, 0, 0);
    }

    pub(crate) fn on_sent(&mut self) {
        self.sent += 1;
        self.tested += 1;
    }

    /// Takes the counts of an ACK that acks a larger number than any before, and newly `acked` marked packets; returns how
    /// many more packets were marked with CE. Counts of older ACKs may run behind, and are not for here.
    pub(crate) fn on_ack(&mut self, acked: u64, counts: Option<EcnCounts>) -> u64 {
        if self.state == State::Failed {
            return 0;
        }
        let (before, counts) = (self.counts, counts.unwrap_or_default());
        let increase = (counts.ect0 + counts.ce).checked_sub(before.ect0 + before.ce);
        // ECT(0) and CE must grow by all that was acked, and we sent no ECT(1), nor more than we did.
        let believable = increase.is_some_and(|increase| increase >= acked)
            && counts.ce >= before.ce
            && counts.ect0 + counts.ce <= self.sent
            && counts.ect1 == 0;
        if !believable {
            self.fail();
            return 0;
        }
        if acked > 0 {
            self.state = State::Capable;
        }
        self.counts = counts;
        counts.ce - before.ce
    }

    /// A marked packet was lost. When all of the first ones are, the path drops what is marked.
    pub(crate) fn on_lost(&mut self) {
        self.lost += 1;
        if self.state == State::Testing && self.tested >= ECN_TEST_PACKETS && self.lost >= self.tested {
            self.fail();
        }
    }

    fn fail(&mut self) {
        self.state = State::Failed;
        self.failures += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(ect0: u64, ect1: u64, ce: u64) -> Option<EcnCounts> {
        Some(EcnCounts { ect0, ect1, ce })
    }

    fn sent(packets: u64) -> EcnPath {
        let mut path = EcnPath::default();
        (0..packets).for_each(|_| path.on_sent());
        path
    }

    /// wire.md W5.21
    #[test]
    fn a_path_that_counts_right_is_used_and_its_marks_are_told() {
        let mut path = sent(ECN_TEST_PACKETS);
        assert!(!path.marks(false), "only so many until something is known");
        assert_eq!(path.on_ack(4, counts(3, 0, 1)), 1);
        assert!(path.marks(false) && path.marks(true));
        assert_eq!(path.on_ack(3, counts(6, 0, 1)), 0);
        assert_eq!(path.on_ack(0, counts(6, 0, 1)), 0, "acks of unmarked packets change nothing");
        assert_eq!(path.on_ack(2, counts(6, 0, 4)), 3, "more than newly acked: an ACK between was lost");
        assert!(path.marks(false));
    }

    /// wire.md W5.21: RFC 9000 §13.4.2.1, each way in which counts are wrong.
    #[test]
    fn a_path_that_mangles_is_not_used() {
        let wrong = [
            ("bleached", None),
            ("fewer than acked", counts(4, 0, 0)),
            ("more than sent", counts(9, 0, 3)),
            ("ECT(1)", counts(6, 1, 0)),
            ("went back", counts(1, 0, 0)),
            ("CE went back", counts(8, 0, 0)),
        ];
        for (how, then) in wrong {
            let mut path = sent(ECN_TEST_PACKETS);
            path.on_ack(2, counts(1, 0, 1));
            assert_eq!(path.on_ack(4, then), 0, "{how}");
            assert!(!path.marks(false), "{how}");
            assert_eq!(path.on_ack(1, counts(9, 0, 1)), 0, "for ever: {how}");
        }
    }

    /// wire.md W5.21: counts go on when the path changes.
    #[test]
    fn another_path_is_tested_anew() {
        let mut path = sent(ECN_TEST_PACKETS);
        path.on_ack(4, counts(4, 0, 0));
        path.on_ack(6, None);
        assert!(!path.marks(false));
        path.test_anew();
        assert!(path.marks(false));
        (0..ECN_TEST_PACKETS).for_each(|_| path.on_sent());
        assert_eq!(path.on_ack(3, counts(6, 0, 1)), 1);
        assert!(path.marks(true));
    }

    /// wire.md W5.21
    #[test]
    fn a_path_that_drops_marked_packets_is_not_used() {
        let mut path = sent(3);
        assert!(path.marks(false) && !path.marks(true), "a probe must arrive where marked packets do not");
        (3..ECN_TEST_PACKETS).for_each(|_| path.on_sent());
        (1..ECN_TEST_PACKETS).for_each(|_| path.on_lost());
        assert_eq!(path.state, State::Testing);
        path.on_lost();
        assert_eq!(path.state, State::Failed);
    }
}
