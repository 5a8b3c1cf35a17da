//! IPv6 headers without extension headers (RFC 8200).

use crate::address::{Address, Family};
use crate::cursor::Cursor;
use crate::datagram::Network;
use crate::ipv4::TIME_TO_LIVE;
use crate::stats::PassReason;
use crate::udp;

/// Bytes of a header.
pub const LEN: usize = 40;
/// Next header values of the extension headers that can stand before UDP (RFC 8200 §4.1, RFC 6275, 7401, 5533).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// Bytes of a header that decide; the addresses follow.
const DECISIVE_LEN: usize = 8;
/// Where the source address begins.
const SOURCE: usize = 8;
/// Where the destination address begins.
const DESTINATION: usize = 24;

/// Reads a header up to its addresses, or says why it is none that carries a whole UDP datagram.
#[inline(always)]
pub(crate) fn parse(bytes: [u8; DECISIVE_LEN]) -> Result<Network, PassReason> {
    let [v0, v1, _, _, l0, l1, next_header, _] = bytes;
    match next_header {
        udp::PROTOCOL => {}
        FRAGMENT => return Err(PassReason::Fragment),
        HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
            return Err(PassReason::IpOptions);
        }
        _ => return Err(PassReason::NotUdp),
    }
    if v0 >> 4 != 6 {
        return Err(PassReason::Malformed);
    }
    Ok(Network { family: Family::V6, ecn: v1 >> 4 & 0b11, packet_len: LEN + usize::from(u16::from_be_bytes([l0, l1])) })
}

/// The source of the header at `offset`.
#[inline(always)]
pub(crate) fn source<C: Cursor + ?Sized>(frame: &C, offset: usize) -> Result<Address, PassReason> {
    address(frame, offset + SOURCE)
}

/// The destination of the header at `offset`.
#[inline(always)]
pub(crate) fn destination<C: Cursor + ?Sized>(frame: &C, offset: usize) -> Result<Address, PassReason> {
    address(frame, offset + DESTINATION)
}

/// A v4-mapped address must not be on the wire, and here it would pass for the IPv4 address.
#[inline(always)]
fn address<C: Cursor + ?Sized>(frame: &C, offset: usize) -> Result<Address, PassReason> {
    let address = Address::from_v6(frame.read(offset).ok_or(PassReason::Truncated)?);
    match address.family() {
        Family::V6 => Ok(address),
        Family::V4 => Err(PassReason::Malformed),
    }
}

/// The header of a UDP packet whose payload, the UDP header included, is `payload_len` bytes.
#[inline]
pub(crate) fn header(source: &[u8; 16], destination: &[u8; 16], ecn: u8, payload_len: u16) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[0] = 6 << 4;
    bytes[1] = (ecn & 0b11) << 4;
    bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
    bytes[6] = udp::PROTOCOL;
    bytes[7] = TIME_TO_LIVE;
    bytes[8..24].copy_from_slice(source);
    bytes[24..].copy_from_slice(destination);
    bytes
}
