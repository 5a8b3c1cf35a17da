//! Frames as they come off the wire: parsed, steered, and the headers written back.

use std::net::SocketAddr;

use pilot_common::address::{Address, Prefix};
use pilot_common::datagram::{self, Headers, MAX_HEADERS_LEN};
use pilot_common::maps::Config;
use pilot_common::stats::{PassReason, Verdict};
use pilot_common::steer::{Lists, admit, steer};
use pilot_common::wire;

/// What the node of the target receives on.
const LOCAL: [Address; 1] = [Address::from_v4([192, 0, 2, 2])];

const PORT: u16 = 4500;

/// The frame is the input, from the Ethernet header on.
pub(super) fn run(frame: &[u8]) {
    if let Ok(header) = wire::Header::parse(frame) {
        assert_eq!(header.to_bytes(), frame[..wire::HEADER_LEN], "no bit of a header is without meaning");
    }
    let parsed = datagram::parse(frame);
    let verdict = judge(frame, PORT);
    // W2.3: nothing is dropped that is not a datagram to us.
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => return assert!(matches!(verdict, Verdict::Pass(_)), "{verdict:?} of what is {reason:?}"),
    };
    let layout = parsed.layout;
    let end = layout.payload_offset + layout.payload_len;
    assert!(end <= layout.packet_offset + layout.packet_len, "the payload lies within its packet");
    assert!(layout.packet_offset + layout.packet_len <= frame.len(), "and that within the frame");
    let payload = &frame[layout.payload_offset..end];

    if parsed.destination.port() != PORT {
        assert_eq!(verdict, Verdict::Pass(PassReason::OtherPort));
    }
    // The same frame, were it to us: the link that sees datagrams only judges it alike (W2.4).
    let to_us = LOCAL.contains(&parsed.destination.ip().into());
    if to_us && layout.packet_len <= 1500 {
        let source = parsed.source.ip().into();
        let admitted = admit(payload, 0, payload.len(), source, &config(layout.destination_port), &tables());
        assert_eq!(judge(frame, layout.destination_port), admitted.err().unwrap_or(Verdict::Redirect));
        if let Ok(header) = admitted {
            assert_eq!(Ok(header), wire::Header::parse(payload), "only datagrams of this version are redirected");
        }
    } else {
        assert!(!matches!(verdict, Verdict::Drop(_) | Verdict::Redirect), "{verdict:?} of others' traffic");
    }
    write_back(&parsed, payload);
}

/// What is written for these headers and this payload is read as the same.
fn write_back(parsed: &datagram::Datagram, payload: &[u8]) {
    let headers = Headers {
        destination_mac: parsed.destination_mac,
        source_mac: parsed.source_mac,
        tag: parsed.layout.tag,
        source: parsed.source,
        destination: parsed.destination,
        ecn: parsed.layout.ecn,
    };
    let mut room = [0; MAX_HEADERS_LEN];
    let length = headers.write_back(&mut room, payload).expect("what was read within a packet fits one");
    let written = [&room[MAX_HEADERS_LEN - length..], payload].concat();
    let again = datagram::parse(&written[..]).expect("what was written can be read");
    let ends = |it: &datagram::Datagram| -> (SocketAddr, SocketAddr) { (it.source, it.destination) };
    assert_eq!(ends(&again), ends(parsed));
    let macs = |it: &datagram::Datagram| (it.source_mac, it.destination_mac, it.layout.tag, it.layout.ecn);
    assert_eq!(macs(&again), macs(parsed));
    assert_eq!(&written[again.layout.payload_offset..][..again.layout.payload_len], payload);
}

fn judge(frame: &[u8], port: u16) -> Verdict {
    steer(frame, &config(port), &tables())
}

const fn config(port: u16) -> Config {
    Config { port, mtu: 1500, allow_all: true }
}

const fn tables() -> Lists<'static> {
    const NONE: [Prefix; 0] = [];
    Lists { local: &LOCAL, allow_from: &NONE, sessions: None }
}
