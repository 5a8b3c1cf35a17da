//! What became of a frame, and the counter of each reason.

/// What to do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To the AF_XDP socket of the receive queue.
    Redirect,
    /// To the kernel's network stack.
    Pass(PassReason),
    /// Nowhere.
    Drop(DropReason),
}

/// Why a frame is left to the kernel: it is not surely ours (wire.md W2.2).
///
/// As wide as a word, because a narrower error would share bytes with a word of the parser's results, which the compiler
/// for BPF then takes apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum PassReason {
    /// The frame ends before its headers, or before the packet whose length they say.
    Truncated,
    /// Neither IPv4 nor IPv6, also behind more than one VLAN tag.
    NotIp,
    /// Another protocol than UDP.
    NotUdp,
    /// A fragment of a datagram.
    Fragment,
    /// IPv4 options or IPv6 extension headers.
    IpOptions,
    /// Headers that contradict themselves.
    Malformed,
    /// UDP to another port.
    OtherPort,
    /// To an address that is not in the map of local addresses.
    OtherAddress,
    /// An IP packet longer than the device's MTU: several datagrams that were not segmented.
    LongerThanMtu,
    /// A datagram too short for the fixed header.
    NoHeader,
    /// Another wire version (W1.1).
    OtherVersion,
    /// A relayed datagram: this node does not relay.
    Relayed,
    /// A session id that is none of ours (W2.5), within the rate at which userspace is asked about such.
    UnknownSession,
    /// Ours, but the receive queue has no AF_XDP socket. Only the XDP program finds that.
    NoSocket,
}

/// Why a frame is dropped: it is addressed to us and certainly bad (W2.3), or one too many of what costs us work (W2.5, W2.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// The source is in no prefix of `allow_from`.
    SourceNotAllowed,
    /// A reserved type (W1.5).
    ReservedType,
    /// A length that the type does not allow (W1.4).
    WrongLength,
    /// A session id that is none of ours, beyond the rate (W2.5).
    UnknownSession,
    /// An initiation beyond what its source may send (W2.7).
    TooManyInitiations,
}

const PASS_REASONS: usize = PassReason::NoSocket as usize + 1;
const DROP_REASONS: usize = DropReason::TooManyInitiations as usize + 1;
/// Number of verdicts, each with its counter.
pub const COUNTERS: usize = 1 + PASS_REASONS + DROP_REASONS;

impl Verdict {
    /// Every verdict, in the order of [`Verdict::counter`].
    pub const ALL: [Self; COUNTERS] = [
        Self::Redirect,
        Self::Pass(PassReason::Truncated),
        Self::Pass(PassReason::NotIp),
        Self::Pass(PassReason::NotUdp),
        Self::Pass(PassReason::Fragment),
        Self::Pass(PassReason::IpOptions),
        Self::Pass(PassReason::Malformed),
        Self::Pass(PassReason::OtherPort),
        Self::Pass(PassReason::OtherAddress),
        Self::Pass(PassReason::LongerThanMtu),
        Self::Pass(PassReason::NoHeader),
        Self::Pass(PassReason::OtherVersion),
        Self::Pass(PassReason::Relayed),
        Self::Pass(PassReason::UnknownSession),
        Self::Pass(PassReason::NoSocket),
        Self::Drop(DropReason::SourceNotAllowed),
        Self::Drop(DropReason::ReservedType),
        Self::Drop(DropReason::WrongLength),
        Self::Drop(DropReason::UnknownSession),
        Self::Drop(DropReason::TooManyInitiations),
    ];

    /// The index of the verdict's counter (W2.4), below [`COUNTERS`].
    #[inline(always)]
    pub const fn counter(self) -> usize {
        match self {
            Self::Redirect => 0,
            Self::Pass(reason) => 1 + reason as usize,
            Self::Drop(reason) => 1 + PASS_REASONS + reason as usize,
        }
    }

    /// The verdict's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Pass(reason) => reason.name(),
            Self::Drop(reason) => reason.name(),
        }
    }
}

impl PassReason {
    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "pass_truncated",
            Self::NotIp => "pass_not_ip",
            Self::NotUdp => "pass_not_udp",
            Self::Fragment => "pass_fragment",
            Self::IpOptions => "pass_ip_options",
            Self::Malformed => "pass_malformed",
            Self::OtherPort => "pass_other_port",
            Self::OtherAddress => "pass_other_address",
            Self::LongerThanMtu => "pass_longer_than_mtu",
            Self::NoHeader => "pass_no_header",
            Self::OtherVersion => "pass_other_version",
            Self::Relayed => "pass_relayed",
            Self::UnknownSession => "pass_unknown_session",
            Self::NoSocket => "pass_no_socket",
        }
    }
}

impl DropReason {
    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceNotAllowed => "drop_source_not_allowed",
            Self::ReservedType => "drop_reserved_type",
            Self::WrongLength => "drop_wrong_length",
            Self::UnknownSession => "drop_unknown_session",
            Self::TooManyInitiations => "drop_too_many_initiations",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_verdict_has_its_own_counter_and_name() {
        for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict.counter(), index, "{verdict:?}");
        }
        let names: HashSet<_> = Verdict::ALL.map(Verdict::name).into();
        assert_eq!(names.len(), COUNTERS);
    }
}
