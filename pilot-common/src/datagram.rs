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
            .write_back(rest)
            .ok_or(no_room)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(source: &str, destination: &str, tag: Option<u16>, ecn: u8) -> Headers {
        Headers {
            destination_mac: [2, 0, 0, 0, 0, 2],
            source_mac: [2, 0, 0, 0, 0, 1],
            tag,
            source: source.parse().expect("an address with port"),
            destination: destination.parse().expect("an address with port"),
            ecn,
        }
    }

    fn v4() -> Headers {
        headers("192.0.2.1:40000", "192.0.2.2:4500", None, 0)
    }

    fn v6() -> Headers {
        headers("[2001:db8::1]:40000", "[2001:db8::2]:4500", None, 0)
    }

    /// The frame, after as much unused room as there was.
    fn frame(headers: &Headers, payload: &[u8]) -> Vec<u8> {
        let mut room = [0xee; MAX_HEADERS_LEN];
        let len = headers.write_back(&mut room, payload).expect("enough room");
        assert_eq!(len, headers.len());
        assert!(room[..MAX_HEADERS_LEN - len].iter().all(|byte| *byte == 0xee), "only its own bytes are written");
        [&room[MAX_HEADERS_LEN - len..], payload].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        for (source, destination) in
            [("192.0.2.1:40000", "192.0.2.2:4500"), ("[2001:db8::1]:40000", "[2001:db8::2]:4500")]
        {
            for tag in [None, Some(0x2007)] {
                for ecn in 0..4 {
                    for payload in [&b""[..], b"x", &[7; 1472]] {
                        let headers = headers(source, destination, tag, ecn);
                        let mut frame = frame(&headers, payload);
                        let datagram = parse(&frame[..]).expect("what was written");
                        let Datagram { destination_mac, source_mac, source, destination, layout } = datagram;
                        let Layout { tag, ecn, .. } = layout;
                        assert_eq!(Headers { destination_mac, source_mac, tag, source, destination, ecn }, headers);
                        assert_eq!(&frame[layout.payload_offset..][..layout.payload_len], payload);
                        assert_eq!(layout.payload_offset, headers.len());
                        assert_eq!(layout.packet_offset + layout.packet_len, frame.len());

                        frame.extend([0; 20]);
                        assert_eq!(parse(&frame[..]), Ok(datagram), "padding is not payload");
                    }
                }
            }
        }
    }

    /// The bytes of a frame as other implementations write them, but for identification and time to live.
    #[test]
    fn ipv4_bytes_are_the_standard_ones() {
        let frame = frame(&Headers { ecn: 0b11, ..v4() }, b"hi");
        let ip = &frame[14..34];
        assert_eq!(ip[..12], [0x45, 0b11, 0, 30, 0, 0, 0x40, 0, 64, 17, ip[10], ip[11]], "don't-fragment is set");
        assert_eq!(ip[12..], [192, 0, 2, 1, 192, 0, 2, 2]);
        assert_eq!(checksum::ipv4_header(ip.as_array().expect("20 bytes")), 0, "the header's checksum is right");
        assert_eq!(frame[34..], [0x9c, 0x40, 0x11, 0x94, 0, 10, 0, 0, b'h', b'i'], "no UDP checksum (wire.md W2.6)");
    }

    #[test]
    fn ipv6_bytes_are_the_standard_ones() {
        let frame = frame(&Headers { ecn: 0b01, ..v6() }, b"hi");
        assert_eq!(frame[14..22], [0x60, 0x10, 0, 0, 0, 10, 17, 64]);
        let written = udp::Header::from_bytes(*frame[54..62].as_array().expect("8 bytes"));
        assert_ne!(written.checksum, 0, "IPv6 needs a UDP checksum (wire.md W2.6)");
        let [source, destination] = [22, 38].map(|at| *frame[at..at + 16].as_array().expect("16 bytes"));
        let zeroed = udp::Header { checksum: 0, ..written }.to_bytes();
        assert_eq!(written.checksum, checksum::udp_ipv6(&source, &destination, &zeroed, b"hi"));
    }

    /// The payload is what the UDP length says, the packet what the IP length says.
    #[test]
    fn lengths_are_honoured() {
        let mut bytes = frame(&v4(), &[7; 100]);
        bytes[39] = 58;
        assert_eq!(parse(&bytes[..]).map(|datagram| datagram.layout.payload_len), Ok(50), "within the packet");
        bytes[38..40].copy_from_slice(&[0, 109]);
        assert_eq!(parse(&bytes[..]), Err(PassReason::Malformed), "beyond the packet");
        bytes[38..40].copy_from_slice(&[0, 7]);
        assert_eq!(parse(&bytes[..]), Err(PassReason::Malformed), "less than its header");
        bytes[38..40].copy_from_slice(&[0, 108]);
        bytes[17] += 1;
        assert_eq!(parse(&bytes[..]), Err(PassReason::Truncated), "a packet beyond the frame");
    }

    #[test]
    fn refusals_say_why() {
        let mixed = Headers { destination: v6().destination, ..v4() };
        let (source, destination) = (mixed.source.ip(), mixed.destination.ip());
        let mut room = [0; MAX_HEADERS_LEN];
        assert_eq!(mixed.write_back(&mut room, b""), Err(WriteError::Families { source, destination }));
        for (headers, most) in [(v4(), 65_507), (v6(), 65_527)] {
            assert!(headers.write_back(&mut room, &vec![0; most]).is_ok());
            let refused = headers.write_back(&mut room, &vec![0; most + 1]);
            assert_eq!(refused, Err(WriteError::TooLong { payload: most + 1 }));
            for given in 0..headers.len() {
                let refused = headers.write_back(&mut room[..given], b"");
                assert_eq!(refused, Err(WriteError::NoRoom { given, needed: headers.len() }));
            }
            let tagged = Headers { tag: Some(1), ..headers };
            assert!(tagged.write_back(&mut room[..headers.len()], b"").is_err(), "a tag needs room too");
        }
        assert_eq!(
            WriteError::NoRoom { given: 3, needed: 42 }.to_string(),
            "3 bytes of room before the payload: the headers need 42"
        );
    }

    #[test]
    fn truncated_anywhere_is_said_so() {
        for headers in [v4(), v6(), Headers { tag: Some(9), ..v6() }] {
            let frame = frame(&headers, b"payload");
            for len in 0..frame.len() {
                assert_eq!(parse(&frame[..len]), Err(PassReason::Truncated), "{len} bytes");
            }
        }
    }
}
