//! A UDP datagram with all that is round it: read from a frame, or written in front of a payload.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

use crate::address::{Address, Family};
use crate::cursor::Cursor;
use crate::eth::{self, Mac};
use crate::stats::PassReason;
use crate::{checksum, ipv4, ipv6, udp};

/// Most bytes of headers before a payload: tagged Ethernet, IPv6, UDP.
pub const MAX_HEADERS_LEN: usize = eth::LEN + eth::TAG_LEN + ipv6::LEN + udp::LEN;

/// One received datagram's headers, and where its payload lies in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The next hop on the link: us.
    pub destination_mac: Mac,
    /// The last hop on the link.
    pub source_mac: Mac,
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The rest.
    pub layout: Layout,
}

/// Finds the one whole UDP datagram that a frame consists of, or says why it is none.
#[inline]
pub fn parse<C: Cursor + ?Sized>(frame: &C) -> Result<Datagram, PassReason> {
    let layout = Layout::parse(frame)?;
    Ok(Datagram {
        destination_mac: frame.read(0).ok_or(PassReason::Truncated)?,
        source_mac: frame.read(6).ok_or(PassReason::Truncated)?,
        source: SocketAddr::new(layout.source(frame)?.into(), layout.source_port),
        destination: SocketAddr::new(layout.destination(frame)?.into(), layout.destination_port),
        layout,
    })
}

/// The numbers of a datagram's headers. Addresses stay in the frame until they are asked for: most frames are decided
/// about without them, and the 512 bytes of an XDP program's stack have no room for copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The 802.1Q tag's control information, see [`eth::Kind::tag`].
    pub tag: Option<u16>,
    /// The IP version.
    pub family: Family,
    /// The ECN bits (RFC 3168): 0 to 3.
    pub ecn: u8,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
    /// Where the IP packet begins in the frame.
    pub packet_offset: usize,
    /// Bytes of the IP packet, its header included.
    pub packet_len: usize,
    /// Where the payload begins in the frame.
    pub payload_offset: usize,
    /// Bytes of payload. What the frame has after them is padding.
    pub payload_len: usize,
}

/// What IPv4 and IPv6 headers have in common.
pub(crate) struct Network {
    pub(crate) family: Family,
    pub(crate) ecn: u8,
    /// Bytes of the packet, header included.
    pub(crate) packet_len: usize,
}

impl Layout {
    /// As [`parse`], but for the addresses.
    ///
    /// Lengths are honoured: the payload lies within the UDP length, that within the IP length, that within the frame.
    /// No checksum is verified (wire.md W2.6).
    #[inline(always)]
    pub fn parse<C: Cursor + ?Sized>(frame: &C) -> Result<Self, PassReason> {
        let kind = eth::Kind::parse(frame)?;
        let packet_offset = kind.header_len();
        let (network, header_len) = match kind.ethertype {
            eth::IPV4 => (ipv4::parse(frame.read(packet_offset).ok_or(PassReason::Truncated)?)?, ipv4::LEN),
            eth::IPV6 => (ipv6::parse(frame.read(packet_offset).ok_or(PassReason::Truncated)?)?, ipv6::LEN),
            _ => return Err(PassReason::NotIp),
        };
        let Network { family, ecn, packet_len } = network;
        let udp_offset = packet_offset + header_len;
        let udp = udp::Header::from_bytes(frame.read(udp_offset).ok_or(PassReason::Truncated)?);
        let udp_len = usize::from(udp.length);
        if udp_len < udp::LEN || header_len + udp_len > packet_len {
            return Err(PassReason::Malformed);
        }
        if packet_offset + packet_len > frame.frame_len() {
            return Err(PassReason::Truncated);
        }
        Ok(Self {
            tag: kind.tag,
            family,
            ecn,
            source_port: udp.source,
            destination_port: udp.destination,
            packet_offset,
            packet_len,
            payload_offset: udp_offset + udp::LEN,
            payload_len: udp_len - udp::LEN,
        })
    }

    /// Who sent it.
    #[inline(always)]
    pub fn source<C: Cursor + ?Sized>(&self, frame: &C) -> Result<Address, PassReason> {
        match self.family {
            Family::V4 => ipv4::source(frame, self.packet_offset),
            Family::V6 => ipv6::source(frame, self.packet_offset),
        }
    }

    /// To whom.
    #[inline(always)]
    pub fn destination<C: Cursor + ?Sized>(&self, frame: &C) -> Result<Address, PassReason> {
        match self.family {
            Family::V4 => ipv4::destination(frame, self.packet_offset),
            Family::V6 => ipv6::destination(frame, self.packet_offset),
        }
    }
}

/// What to write in front of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// The next hop on the link.
    pub destination_mac: Mac,
    /// The sending interface.
    pub source_mac: Mac,
    /// The 802.1Q tag to send with, see [`eth::Kind::tag`].
    pub tag: Option<u16>,
    /// The sender.
    pub source: SocketAddr,
    /// The receiver, of the same family.
    pub destination: SocketAddr,
    /// The ECN bits (RFC 3168): 0 to 3.
    pub ecn: u8,
}

impl Headers {
    /// Bytes of these headers, at most [`MAX_HEADERS_LEN`].
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "headers are never empty")]
    pub const fn len(&self) -> usize {
        let link = eth::LEN + if self.tag.is_some() { eth::TAG_LEN } else { 0 };
        let network = if self.destination.is_ipv4() { ipv4::LEN } else { ipv6::LEN };
        link + network + udp::LEN
    }

    /// Writes the headers of `payload` into the last bytes of `room`, which lies right before it; returns how many.
    ///
    /// Fragmentation is forbidden (wire.md W6.1). The UDP checksum is absent over IPv4 and computed over IPv6 (W2.6).
    #[inline]
    pub fn write_back(&self, room: &mut [u8], payload: &[u8]) -> Result<usize, WriteError> {
        let too_long = |_| WriteError::TooLong { payload: payload.len() };
        let udp_len = u16::try_from(udp::LEN + payload.len()).map_err(too_long)?;
        let mut udp = udp::Header {
            source: self.source.port(),
            destination: self.destination.port(),
            length: udp_len,
            checksum: 0,
        };
        let no_room = WriteError::NoRoom { given: room.len(), needed: self.len() };
        let (rest, udp_bytes) = room.split_last_chunk_mut().ok_or(no_room)?;
        let (rest, ethertype) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (rest, bytes) = rest.split_last_chunk_mut().ok_or(no_room)?;
                let packet_len = u16::try_from(ipv4::LEN + udp::LEN + payload.len()).map_err(too_long)?;
                *bytes = ipv4::header(source.octets(), destination.octets(), self.ecn, packet_len);
                (rest, eth::IPV4)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let (rest, bytes) = rest.split_last_chunk_mut().ok_or(no_room)?;
                *bytes = ipv6::header(&source, &destination, self.ecn, udp_len);
                udp.checksum = checksum::udp_ipv6(&source, &destination, &udp.to_bytes(), payload);
                (rest, eth::IPV6)
            }
            _ => return Err(WriteError::Families { source: self.source.ip(), destination: self.destination.ip() }),
        };
        *udp_bytes = udp.to_bytes();
        let kind = eth::Kind { tag: self.tag, ethertype };
        eth::Header { destination: self.destination_mac, source: self.source_mac, kind }
            .write_back(rest).ok_or(no_room)?;
        Ok(self.len())
    }
}

/// Why headers cannot be written. The room's content is then unspecified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteError {
    /// Too little room before the payload.
    NoRoom {
        /// Bytes there are.
        given: usize,
        /// Bytes there must be.
        needed: usize,
    },
    /// Source and destination are of different families.
    Families {
        /// The source.
        source: IpAddr,
        /// The destination.
        destination: IpAddr,
    },
    /// More payload than a length field can say.
    TooLong {
        /// Bytes of payload.
        payload: usize,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { given, needed } => {
                write!(f, "{given} bytes of room before the payload: the headers need {needed}")
            }
            Self::Families { source, destination } => {
                write!(f, "source {source} and destination {destination} are not both IPv4 or both IPv6")
            }
            Self::TooLong { payload } => {
                write!(f, "a payload of {payload} bytes does not fit an IP packet of at most 65535")
            }
        }
    }
}

impl core::error::Error for WriteError {}
