//! The decision about a received frame (`docs/wire.md` §2): a pure function, in the kernel and in userspace the same.

use crate::address::{Address, Prefix};
use crate::cursor::Cursor;
use crate::datagram::Layout;
use crate::maps::Config;
pub use crate::stats::{DropReason, PassReason, Verdict};
use crate::wire::{Header, HeaderError, PacketType};

/// The questions that need a table. BPF maps answer them in the kernel, [`Lists`] in userspace.
pub trait Tables {
    /// Whether the address is one that this node receives on.
    fn is_local(&self, address: Address) -> bool;

    /// Whether `allow_from` has a prefix that contains the address.
    fn is_allowed(&self, address: Address) -> bool;

    /// Whether the session id is one of ours.
    fn has_session(&self, id: u32) -> bool;

    /// Takes a token for an initiation from this source, if there is one.
    fn take_initiation(&self, source: Address) -> bool;

    /// Takes a token for a datagram of an unknown session, if there is one.
    fn take_unknown_session(&self) -> bool;
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
    Ok(match admit(frame, layout.payload_offset, layout.payload_len, source, config, tables) {
        Ok(header) => ration(header, source, tables),
        Err(verdict) => verdict,
    })
}

/// What becomes of a datagram that is surely ours, which may be one too many. The only part that asks for the time, and not
/// for what belongs to a session of ours.
#[inline(always)]
fn ration(header: Header, source: Address, tables: &impl Tables) -> Verdict {
    if header.packet_type == PacketType::Initiation {
        // W2.7
        if tables.take_initiation(source) { Verdict::Redirect } else { Verdict::Drop(DropReason::TooManyInitiations) }
    } else if tables.has_session(header.receiver) {
        Verdict::Redirect
    } else if tables.take_unknown_session() {
        // W2.5
        Verdict::Pass(PassReason::UnknownSession)
    } else {
        Verdict::Drop(DropReason::UnknownSession)
    }
}

/// The header of a datagram that is addressed to us and surely ours, or else what becomes of it: the part of [`steer`] that
/// the socket link applies too (W2.4).
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
) -> Result<Header, Verdict> {
    if !config.allow_all && !tables.is_allowed(source) {
        return Err(Verdict::Drop(DropReason::SourceNotAllowed));
    }
    if len < crate::wire::HEADER_LEN {
        return Err(Verdict::Pass(PassReason::NoHeader));
    }
    let Some(header) = bytes.read(offset) else {
        return Err(Verdict::Pass(PassReason::Truncated));
    };
    match Header::decode(header, len) {
        Ok(Header { packet_type: PacketType::Relayed, .. }) => Err(Verdict::Pass(PassReason::Relayed)),
        Ok(header) => Ok(header),
        Err(HeaderError::Short) => Err(Verdict::Pass(PassReason::NoHeader)),
        Err(HeaderError::Version) => Err(Verdict::Pass(PassReason::OtherVersion)),
        Err(HeaderError::Type) => Err(Verdict::Drop(DropReason::ReservedType)),
        Err(HeaderError::Length) => Err(Verdict::Drop(DropReason::WrongLength)),
    }
}

/// [`Tables`] as lists, searched from the front: for the few addresses and prefixes that a node has. Nothing is rationed.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'a> {
    /// The addresses that the node receives on.
    pub local: &'a [Address],
    /// The prefixes that may send to it.
    pub allow_from: &'a [Prefix],
    /// Its session ids; `None`: every one is.
    pub sessions: Option<&'a [u32]>,
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

    #[inline]
    fn has_session(&self, id: u32) -> bool {
        self.sessions.is_none_or(|sessions| sessions.contains(&id))
    }

    #[inline]
    fn take_initiation(&self, _: Address) -> bool {
        true
    }

    #[inline]
    fn take_unknown_session(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::{IpAddr, SocketAddr};

    use super::*;
    use crate::datagram::{Headers, MAX_HEADERS_LEN};
    use crate::wire;

    const CONFIG: Config = Config { port: 4500, mtu: 1500, allow_all: false };

    /// The one session id that is ours.
    const SESSION: u32 = 0x0700_0001;

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
        steer(frame, &config, &Lists { local: &local, allow_from: &allow_from, sessions: Some(&[SESSION]) })
    }

    fn datagram(version: u8, packet_type: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = version << 5 | packet_type << 2;
        bytes[1..5].copy_from_slice(&SESSION.to_be_bytes());
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

    /// wire.md W2.5, W2.7: what names a session must name one of ours, and what there is too much of is dropped; neither is
    /// asked where the answer is known without.
    #[test]
    fn sessions_are_looked_up_and_the_rest_is_rationed() {
        struct Asked {
            left: Cell<u32>,
            of: Cell<Option<Address>>,
        }
        impl Asked {
            fn take(&self) -> bool {
                let left = self.left.get();
                self.left.set(left.saturating_sub(1));
                left > 0
            }
        }
        impl Tables for Asked {
            fn is_local(&self, _: Address) -> bool {
                true
            }
            fn is_allowed(&self, _: Address) -> bool {
                true
            }
            fn has_session(&self, id: u32) -> bool {
                id == SESSION
            }
            fn take_initiation(&self, source: Address) -> bool {
                self.of.set(Some(source));
                self.take()
            }
            fn take_unknown_session(&self) -> bool {
                self.take()
            }
        }
        let asked = Asked { left: Cell::new(1), of: Cell::new(None) };
        let judged = |payload: &[u8]| steer(&frame("192.0.2.1", "192.0.2.2", payload)[..], &CONFIG, &asked);
        for (packet_type, len) in [(2, 89), (3, 65), (4, 26), (5, 25)] {
            let ours = datagram(wire::VERSION, packet_type, len);
            assert_eq!(judged(&ours), Verdict::Redirect, "{packet_type}");
            assert_eq!((asked.left.get(), asked.of.get()), (1, None), "nothing was taken");
            let mut other = ours;
            other[4] ^= 1;
            assert_eq!(judged(&other), Verdict::Pass(PassReason::UnknownSession), "{packet_type}");
            assert_eq!(judged(&other), Verdict::Drop(DropReason::UnknownSession), "{packet_type}");
            asked.left.set(1);
        }
        let initiation = datagram(wire::VERSION, 1, 1200);
        assert_eq!(judged(&initiation), Verdict::Redirect, "whatever its receiver");
        assert_eq!(judged(&initiation), Verdict::Drop(DropReason::TooManyInitiations));
        assert_eq!(asked.of.get(), Some(Address::from_v4([192, 0, 2, 1])));
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
                let tables = Lists { local: &[], allow_from: &allow_from, sessions: None };
                let ip: IpAddr = source.parse().expect("an address");
                let admitted = admit(&payload[..], 0, payload.len(), ip.into(), &CONFIG, &tables);
                assert_eq!(
                    admitted.map_or_else(|verdict| verdict, |_| Verdict::Redirect),
                    verdict(CONFIG, &frame(source, "192.0.2.2", &payload))
                );
            }
        }
    }
}
