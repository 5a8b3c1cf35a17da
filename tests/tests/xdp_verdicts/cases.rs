//! Frames, and what must become of them.

use std::net::{IpAddr, SocketAddr};

use pilot_common::address::Address;
use pilot_common::datagram::{Headers, MAX_HEADERS_LEN};
use pilot_common::steer::{DropReason, PassReason, Verdict};
use pilot_common::{eth, wire};

use crate::{LOCAL, PORT, SESSION};

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

/// A frame from `source` to `destination` at our port, untagged or tagged, with that payload.
pub(crate) fn frame_between(source: &str, destination: &str, tag: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let headers = Headers {
        destination_mac: [2, 0, 0, 0, 0, 2],
        source_mac: [2, 0, 0, 0, 0, 1],
        tag,
        source: SocketAddr::new(address(source), 40_000),
        destination: SocketAddr::new(address(destination), PORT),
        ecn: 0b10,
    };
    let mut room = [0; MAX_HEADERS_LEN];
    let len = headers.write_back(&mut room, payload).expect("the room is for any headers");
    [&room[MAX_HEADERS_LEN - len..], payload].concat()
}

pub(crate) fn v4(payload: &[u8]) -> Vec<u8> {
    frame_between("192.0.2.1", LOCAL[0], None, payload)
}

pub(crate) fn v6(payload: &[u8]) -> Vec<u8> {
    frame_between("2001:db8::1", LOCAL[1], None, payload)
}

/// A datagram of that wire version, type and length.
pub(crate) fn datagram(version: u8, packet_type: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; len];
    bytes[0] = version << 5 | packet_type << 2;
    let (receiver, len) = (SESSION.to_be_bytes(), len.saturating_sub(1).min(4));
    bytes[1..][..len].copy_from_slice(&receiver[..len]);
    bytes
}

pub(crate) fn data(len: usize) -> Vec<u8> {
    datagram(wire::VERSION, wire::PacketType::Data as u8, len)
}

/// The frame with other bytes at an offset.
fn with(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..][..bytes.len()].copy_from_slice(bytes);
    frame
}

/// The frame with bytes inserted at an offset.
fn insert(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame.splice(offset..offset, bytes.iter().copied());
    frame
}

const IP: usize = eth::LEN;
const UDP_IN_V4: usize = IP + 20;
const UDP_IN_V6: usize = IP + 40;
const SESSION_IN_V4: usize = UDP_IN_V4 + 8 + 1;

/// The frames that the requirements name, and what must become of them when the queue has a socket.
pub(crate) fn cases() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    use DropReason::{ReservedType, SourceNotAllowed, WrongLength};
    use PassReason::{
        Fragment, IpOptions, LongerThanMtu, Malformed, NoHeader, NotIp, NotUdp, OtherAddress, OtherPort, OtherVersion,
        Relayed, Truncated, UnknownSession,
    };
    use Verdict::{Drop, Pass, Redirect};

    let of_type = |packet_type, len| v4(&datagram(wire::VERSION, packet_type, len));
    let of_another = |packet_type, len| with(of_type(packet_type, len), SESSION_IN_V4, &[0xab, 0xcd, 0xef, 0]);
    let delta = || v4(&data(46));
    let delta6 = || v6(&data(46));
    // An extension header of eight bytes, whose own next header is UDP, with the lengths that go with it.
    let extended = |header: u8| {
        insert(with(with(delta6(), IP + 6, &[header]), IP + 4, &[0, 62]), UDP_IN_V6, &[17, 0, 0, 0, 0, 0, 0, 0])
    };
    vec![
        // W2.1
        ("data", delta(), Redirect),
        ("data over IPv6", delta6(), Redirect),
        ("data in a VLAN", frame_between("192.0.2.1", LOCAL[0], Some(7), &data(46)), Redirect),
        ("data over IPv6 in a VLAN", frame_between("2001:db8::1", LOCAL[1], Some(7), &data(46)), Redirect),
        ("data from a single allowed host", frame_between("198.51.100.7", LOCAL[0], None, &data(46)), Redirect),
        ("the shortest data", v4(&data(26)), Redirect),
        ("data with trailing Ethernet padding", [delta(), vec![0; 40]].concat(), Redirect),
        ("data that fills the MTU", v4(&data(1472)), Redirect),
        ("initiation", of_type(1, 1200), Redirect),
        ("response", of_type(2, 89), Redirect),
        ("cookie", of_type(3, 65), Redirect),
        ("reset", of_type(5, 25), Redirect),
        // W2.5
        ("data of another session", of_another(4, 46), Pass(UnknownSession)),
        ("data of a worker that is not there", with(delta(), SESSION_IN_V4, &[2]), Pass(UnknownSession)),
        ("data of the next session", with(delta(), SESSION_IN_V4 + 3, &[0xf0]), Pass(UnknownSession)),
        ("response to another session", of_another(2, 89), Pass(UnknownSession)),
        ("cookie for another session", of_another(3, 65), Pass(UnknownSession)),
        ("reset of another session", of_another(5, 25), Pass(UnknownSession)),
        ("initiation to another session, which is userspace's to refuse", of_another(1, 1200), Redirect),
        // W2.2
        ("ARP", with(delta(), 12, &[0x08, 0x06]), Pass(NotIp)),
        (
            "QinQ, 802.1ad",
            insert(frame_between("192.0.2.1", LOCAL[0], Some(7), &data(46)), 12, &[0x88, 0xa8, 0, 1]),
            Pass(NotIp),
        ),
        (
            "QinQ, 802.1Q twice",
            insert(frame_between("192.0.2.1", LOCAL[0], Some(7), &data(46)), 12, &[0x81, 0, 0, 1]),
            Pass(NotIp),
        ),
        ("IPv4 announced as IPv6", with(delta(), 12, &[0x86, 0xdd]), Pass(NotUdp)),
        ("IPv6 announced as IPv4", with(with(delta6(), 12, &[0x08, 0x00]), IP + 6, &[0, 17, 0]), Pass(NotUdp)),
        ("IPv6 with version 5", with(delta6(), IP, &[0x50]), Pass(Malformed)),
        ("IPv4 with version 6", with(delta(), IP, &[0x65]), Pass(Malformed)),
        ("IPv4 with a header of four words", with(delta(), IP, &[0x44]), Pass(Malformed)),
        ("TCP", with(delta(), IP + 9, &[6]), Pass(NotUdp)),
        ("ICMP", with(delta(), IP + 9, &[1]), Pass(NotUdp)),
        ("TCP over IPv6", with(delta6(), IP + 6, &[6]), Pass(NotUdp)),
        ("ICMPv6", with(delta6(), IP + 6, &[58]), Pass(NotUdp)),
        ("first fragment", with(delta(), IP + 6, &[0x20, 0]), Pass(Fragment)),
        ("later fragment", with(delta(), IP + 6, &[0x20, 185]), Pass(Fragment)),
        ("last fragment", with(delta(), IP + 6, &[0, 185]), Pass(Fragment)),
        ("IPv6 fragment", extended(44), Pass(Fragment)),
        (
            "IPv4 options",
            insert(with(with(delta(), IP, &[0x46]), IP + 2, &[0, 78]), UDP_IN_V4, &[1, 1, 1, 0]),
            Pass(IpOptions),
        ),
        ("hop-by-hop options", extended(0), Pass(IpOptions)),
        ("routing header", extended(43), Pass(IpOptions)),
        ("destination options", extended(60), Pass(IpOptions)),
        ("authentication header", extended(51), Pass(IpOptions)),
        ("mobility header", extended(135), Pass(IpOptions)),
        ("UDP length below its header", with(delta(), UDP_IN_V4 + 4, &[0, 7]), Pass(Malformed)),
        ("UDP length beyond the IP packet", with(delta(), UDP_IN_V4 + 4, &[0, 55]), Pass(Malformed)),
        ("IPv6 jumbogram", with(delta6(), IP + 4, &[0, 0]), Pass(Malformed)),
        (
            "v4-mapped source on the wire",
            with(delta6(), IP + 8, &Address::from_v4([192, 0, 2, 1]).octets()),
            Pass(Malformed),
        ),
        (
            "v4-mapped destination on the wire",
            with(delta6(), IP + 24, &Address::from_v4([192, 0, 2, 2]).octets()),
            Pass(Malformed),
        ),
        ("IP length beyond the frame", with(delta(), IP + 2, &[0, 75]), Pass(Truncated)),
        ("other port", with(delta(), UDP_IN_V4 + 2, &4501_u16.to_be_bytes()), Pass(OtherPort)),
        ("other address", frame_between("192.0.2.1", "192.0.2.3", None, &data(46)), Pass(OtherAddress)),
        ("other IPv6 address", frame_between("2001:db8::1", "2001:db8::3", None, &data(46)), Pass(OtherAddress)),
        ("longer than the MTU", v4(&data(1473)), Pass(LongerThanMtu)),
        ("longer than the MTU over IPv6", v6(&data(1453)), Pass(LongerThanMtu)),
        ("merged datagrams of 32 KiB", v4(&data(32_768)), Pass(LongerThanMtu)),
        ("empty datagram", v4(&[]), Pass(NoHeader)),
        ("eight bytes", v4(&data(8)), Pass(NoHeader)),
        ("version 0", v4(&datagram(0, 4, 46)), Pass(OtherVersion)),
        ("version 2 of any length", v4(&datagram(2, 1, 46)), Pass(OtherVersion)),
        ("relayed", of_type(6, 60), Pass(Relayed)),
        // W2.3
        ("source outside allow_from", frame_between("198.51.100.8", LOCAL[0], None, &data(46)), Drop(SourceNotAllowed)),
        (
            "IPv6 source outside allow_from",
            frame_between("2001:db9::1", LOCAL[1], None, &data(46)),
            Drop(SourceNotAllowed),
        ),
        ("reserved type 0", of_type(0, 46), Drop(ReservedType)),
        ("reserved type 7", of_type(7, 46), Drop(ReservedType)),
        ("initiation too short", of_type(1, 1199), Drop(WrongLength)),
        ("initiation too long", of_type(1, 1201), Drop(WrongLength)),
        ("response too short", of_type(2, 88), Drop(WrongLength)),
        ("response too long", of_type(2, 1201), Drop(WrongLength)),
        ("cookie too long", of_type(3, 66), Drop(WrongLength)),
        ("data without a frame", of_type(4, 25), Drop(WrongLength)),
        ("reset too long", of_type(5, 26), Drop(WrongLength)),
        ("relayed too short", of_type(6, 13), Drop(WrongLength)),
        ("UDP length that cuts the data short", with(delta(), UDP_IN_V4 + 4, &[0, 33]), Drop(WrongLength)),
    ]
}
