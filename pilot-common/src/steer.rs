//! The decision about a received frame (`docs/wire.md` §2): a pure function, in the kernel and in userspace the same.

use crate::address::{Address, Prefix};
use crate::cursor::Cursor;
use crate::datagram::Layout;
use crate::maps::Config;
pub use crate::stats::{DropReason, PassReason, Verdict};
use crate::wire::{Header, HeaderError, PacketType};

/// The two questions that need a table. BPF maps answer them in the kernel, [`Lists`] in userspace.
pub trait Tables {
    /// Whether the address is one that this node receives on.
    fn is_local(&self, address: Address) -> bool;

    /// Whether `allow_from` has a prefix that contains the address.
    fn is_allowed(&self, address: Address) -> bool;
}

/// What becomes of a frame.
///
/// From what costs least to what costs most, and nothing is dropped before it is known to be addressed to us (wire.md
/// W2.1 to W2.3).
#[inline(always)]
pub fn steer<C: Cursor + ?Sized>(frame: &C, config: &Config, tables: &impl Tables) -> Verdict {
    judge(frame, config, tables).unwrap_or_else(Verdict::Pass)
}

#[inline(always)]
fn judge<C: Cursor + ?Sized>(frame: &C, config: &Config, tables: &impl Tables) -> Result<Verdict, PassReason> {
    let layout = Layout::parse(frame)?;
    if layout.destination_port != config.port {
        return Err(PassReason::OtherPort);
    }
    if layout.packet_len > config.mtu as usize {
        return Err(PassReason::LongerThanMtu);
    }
    if !tables.is_local(layout.destination(frame)?) {
        return Err(PassReason::OtherAddress);
    }
    let source = layout.source(frame)?;
    Ok(admit(frame, layout.payload_offset, layout.payload_len, source, config, tables))
}

/// What becomes of a datagram that is addressed to us: the part of [`steer`] that the socket link applies too (W2.4).
///
/// The datagram is the `len` bytes at `offset` of `bytes`. `Pass` there means that no tunnel of this version gets it.
#[inline(always)]
pub fn admit<C: Cursor + ?Sized>(
    bytes: &C,
    offset: usize,
    len: usize,
    source: Address,
    config: &Config,
    tables: &impl Tables,
) -> Verdict {
    if !config.allow_all && !tables.is_allowed(source) {
        return Verdict::Drop(DropReason::SourceNotAllowed);
    }
    if len < crate::wire::HEADER_LEN {
        return Verdict::Pass(PassReason::NoHeader);
    }
    let Some(header) = bytes.read(offset) else {
        return Verdict::Pass(PassReason::Truncated);
    };
    match Header::decode(header, len) {
        Ok(Header { packet_type: PacketType::Relayed, .. }) => Verdict::Pass(PassReason::Relayed),
        Ok(_) => Verdict::Redirect,
        Err(HeaderError::Short) => Verdict::Pass(PassReason::NoHeader),
        Err(HeaderError::Version) => Verdict::Pass(PassReason::OtherVersion),
        Err(HeaderError::Type) => Verdict::Drop(DropReason::ReservedType),
        Err(HeaderError::Length) => Verdict::Drop(DropReason::WrongLength),
    }
}

/// [`Tables`] as lists, searched from the front: for the few addresses and prefixes that a node has.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'a> {
    /// The addresses that the node receives on.
    pub local: &'a [Address],
    /// The prefixes that may send to it.
    pub allow_from: &'a [Prefix],
}

impl Tables for Lists<'_> {
    #[inline]
    fn is_local(&self, address: Address) -> bool {
        self.local.contains(&address)
    }

    #[inline]
    fn is_allowed(&self, address: Address) -> bool {
        self.allow_from.iter().any(|prefix| prefix.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;
    use crate::datagram::{Headers, MAX_HEADERS_LEN};
    use crate::wire;

    const CONFIG: Config = Config { port: 4500, mtu: 1500, allow_all: false };

    fn frame(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let headers = Headers {
            destination_mac: [2; 6],
            source_mac: [4; 6],
            tag: None,
            source: SocketAddr::new(ip(source), 40_000),
            destination: SocketAddr::new(ip(destination), CONFIG.port),
            ecn: 0,
        };
        let mut room = [0; MAX_HEADERS_LEN];
        let len = headers.write_back(&mut room, payload).expect("enough room");
        [&room[MAX_HEADERS_LEN - len..], payload].concat()
    }

    fn verdict(config: Config, frame: &[u8]) -> Verdict {
        let local = [Address::from_v4([192, 0, 2, 2])];
        let allow_from = ["192.0.2.0/24".parse().expect("a prefix")];
        steer(frame, &config, &Lists { local: &local, allow_from: &allow_from })
    }

    fn datagram(version: u8, packet_type: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = version << 5 | packet_type << 2;
        bytes
    }

    fn delta() -> Vec<u8> {
        datagram(wire::VERSION, PacketType::Data as u8, 46)
    }

    /// wire.md W2.1 to W2.3, for what comes after the headers. Frames with odd headers are in tests/tests/xdp_verdicts,
    /// where the kernel gets them too.
    #[test]
    fn each_reason_after_the_headers() {
        let to_us = |payload: &[u8]| verdict(CONFIG, &frame("192.0.2.1", "192.0.2.2", payload));
        assert_eq!(to_us(&delta()), Verdict::Redirect);
        assert_eq!(to_us(&delta()[..8]), Verdict::Pass(PassReason::NoHeader));
        assert_eq!(to_us(&datagram(2, 4, 46)), Verdict::Pass(PassReason::OtherVersion));
        assert_eq!(to_us(&datagram(1, 6, 46)), Verdict::Pass(PassReason::Relayed));
        assert_eq!(to_us(&datagram(1, 7, 46)), Verdict::Drop(DropReason::ReservedType));
        assert_eq!(to_us(&datagram(1, 1, 46)), Verdict::Drop(DropReason::WrongLength));
        assert_eq!(to_us(&datagram(1, 4, 1473)), Verdict::Pass(PassReason::LongerThanMtu));
        let outside = frame("198.51.100.1", "192.0.2.2", &delta());
        assert_eq!(verdict(CONFIG, &outside), Verdict::Drop(DropReason::SourceNotAllowed));
        assert_eq!(verdict(Config { allow_all: true, ..CONFIG }, &outside), Verdict::Redirect);
        let ours = frame("192.0.2.1", "192.0.2.2", &delta());
        assert_eq!(verdict(Config { port: 4501, ..CONFIG }, &ours), Verdict::Pass(PassReason::OtherPort));
        let other = frame("192.0.2.1", "192.0.2.3", &delta());
        assert_eq!(verdict(CONFIG, &other), Verdict::Pass(PassReason::OtherAddress));
    }

    /// Nothing is dropped that is not addressed to us, however bad it is otherwise (W2.3).
    #[test]
    fn others_traffic_is_never_dropped() {
        for payload in [datagram(1, 7, 46), datagram(1, 1, 46), delta()] {
            let frame = frame("198.51.100.1", "192.0.2.3", &payload);
            assert_eq!(verdict(CONFIG, &frame), Verdict::Pass(PassReason::OtherAddress));
        }
    }

    /// The socket link sees datagrams, not frames, and judges them alike (W2.4).
    #[test]
    fn a_datagram_is_admitted_as_its_frame_is() {
        for source in ["192.0.2.1", "198.51.100.1"] {
            for payload in [delta(), datagram(1, 7, 46), datagram(2, 4, 46), datagram(1, 4, 8)] {
                let allow_from = ["192.0.2.0/24".parse().expect("a prefix")];
                let tables = Lists { local: &[], allow_from: &allow_from };
                let ip: IpAddr = source.parse().expect("an address");
                let admitted = admit(&payload[..], 0, payload.len(), ip.into(), &CONFIG, &tables);
                assert_eq!(admitted, verdict(CONFIG, &frame(source, "192.0.2.2", &payload)));
            }
        }
    }
}
