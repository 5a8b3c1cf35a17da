//! IPv4 headers without options (RFC 791).

use crate::address::{Address, Family};
use crate::checksum;
use crate::cursor::Cursor;
use crate::datagram::Network;
use crate::stats::PassReason;
use crate::udp;

/// Bytes of a header without options.
pub const LEN: usize = 20;
/// Version 4 and five words of header: what the first byte is when there are no options.
const VERSION_AND_WORDS: u8 = 0x45;
/// Flag "don't fragment", in the flags and offset word.
const DONT_FRAGMENT: u16 = 0x4000;
/// Flag "more fragments" and the fragment offset: all zero in a whole datagram.
const FRAGMENT: u16 = 0x3fff;
/// Hops a datagram may take: what hosts use.
pub(crate) const TIME_TO_LIVE: u8 = 64;

/// Bytes of a header that decide; the addresses follow.
const DECISIVE_LEN: usize = 12;
/// Where the source address begins.
const SOURCE: usize = 12;
/// Where the destination address begins.
const DESTINATION: usize = 16;

/// Reads a header up to its addresses, or says why it is none that carries a whole UDP datagram.
#[inline(always)]
pub(crate) fn parse(bytes: [u8; DECISIVE_LEN]) -> Result<Network, PassReason> {
    let [first, tos, l0, l1, _, _, f0, f1, _, protocol, _, _] = bytes;
    if protocol != udp::PROTOCOL {
        return Err(PassReason::NotUdp);
    }
    if u16::from_be_bytes([f0, f1]) & FRAGMENT != 0 {
        return Err(PassReason::Fragment);
    }
    if first != VERSION_AND_WORDS {
        let options = first > VERSION_AND_WORDS && first < 0x50;
        return Err(if options { PassReason::IpOptions } else { PassReason::Malformed });
    }
    Ok(Network { family: Family::V4, ecn: tos & 0b11, packet_len: usize::from(u16::from_be_bytes([l0, l1])) })
}

/// The source of the header at `offset`, v4-mapped.
#[inline(always)]
pub(crate) fn source<C: Cursor + ?Sized>(frame: &C, offset: usize) -> Result<Address, PassReason> {
    frame.read(offset + SOURCE).map(Address::from_v4).ok_or(PassReason::Truncated)
}

/// The destination of the header at `offset`, v4-mapped.
#[inline(always)]
pub(crate) fn destination<C: Cursor + ?Sized>(frame: &C, offset: usize) -> Result<Address, PassReason> {
    frame.read(offset + DESTINATION).map(Address::from_v4).ok_or(PassReason::Truncated)
}

/// The header of an unfragmentable UDP packet of `packet_len` bytes, this header included.
///
/// The identification is 0: it means nothing where fragmentation is forbidden (RFC 6864 §4.1).
#[inline]
pub(crate) fn header(source: [u8; 4], destination: [u8; 4], ecn: u8, packet_len: u16) -> [u8; LEN] {
    let ([l0, l1], [f0, f1]) = (packet_len.to_be_bytes(), DONT_FRAGMENT.to_be_bytes());
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source, destination);
    let (tos, ttl) = (ecn & 0b11, TIME_TO_LIVE);
    let mut bytes =
        [VERSION_AND_WORDS, tos, l0, l1, 0, 0, f0, f1, ttl, udp::PROTOCOL, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let checksum = checksum::ipv4_header(&bytes).to_be_bytes();
    bytes[10..12].copy_from_slice(&checksum);
    bytes
}
