//! The UDP socket as a link.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use pilot_common::steer::{DropReason, PassReason, Verdict};
use pilot_user::link::udp::{PAYLOAD_MAX, UdpLink, UdpOptions};
use pilot_user::link::{Ecn, Envelope, Link, Slot, Trust, Via};

use crate::{data, keep, receive, send};

fn open(listen: &str, gso: bool, allow_from: &[&str]) -> UdpLink {
    let allow_from = allow_from.iter().map(|prefix| prefix.parse().unwrap()).collect();
    UdpLink::open(UdpOptions { listen: listen.parse().unwrap(), mtu: 1500, gso, allow_from, group: None }).unwrap()
}

#[test]
fn datagrams_arrive_whole_with_addresses_and_ecn() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let (mut a, mut b) = (open(listen, false, &[]), open(listen, false, &[]));
        for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
            let payload = data(ecn as u32, 100);
            let mut slot = a.slot().unwrap();
            slot.payload()[..100].copy_from_slice(&payload);
            slot.commit(&Envelope { destination: b.local_addr(), source: None, ecn, len: 100 });
            a.flush().unwrap();
            let kept = receive(&mut b, 1).remove(0);
            assert_eq!((kept.source, kept.destination), (a.local_addr(), b.local_addr()));
            assert_eq!((kept.ecn, kept.via, kept.payload), (ecn, Via::Udp, payload));
        }
    }
}

#[test]
fn a_dual_stack_socket_names_ipv4_peers_by_their_ipv4_address() {
    let (mut dual, mut v4) = (open("[::]:0", false, &["127.0.0.0/8"]), open("127.0.0.1:0", false, &[]));
    let to_dual = (IpAddr::from([127, 0, 0, 1]), dual.local_addr().port()).into();
    assert!(send(&mut v4, to_dual, &data(1, 60)));
    v4.flush().unwrap();
    let kept = receive(&mut dual, 1).remove(0);
    assert_eq!((kept.source, kept.destination), (v4.local_addr(), to_dual));
    assert!(send(&mut dual, kept.source, &data(2, 60)));
    dual.flush().unwrap();
    assert_eq!(receive(&mut v4, 1)[0].source, to_dual);
}

#[test]
fn the_source_address_can_be_chosen() {
    let (mut a, mut b) = (open("0.0.0.0:0", false, &[]), open("127.0.0.1:0", false, &[]));
    let source = IpAddr::from([127, 0, 0, 9]);
    let mut slot = a.slot().unwrap();
    slot.payload()[..60].copy_from_slice(&data(1, 60));
    slot.commit(&Envelope { destination: b.local_addr(), source: Some((source, 0).into()), ecn: Ecn::NotEct, len: 60 });
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].source, (source, a.local_addr().port()).into());
}

/// A super-packet arrives as the datagrams it was made of, also when a pass takes fewer than it has.
#[test]
fn gso_and_gro_keep_datagrams_apart_and_limits_hold() {
    let (mut a, mut b) = (open("127.0.0.1:0", true, &[]), open("127.0.0.1:0", true, &[]));
    let to_b = b.local_addr();
    for round in 0..4 {
        for number in 0..64 {
            // The last is shorter than the others, which ends a super-packet.
            assert!(send(&mut a, to_b, &data(round * 64 + number, if number == 63 { 500 } else { 1000 })));
        }
        assert!(a.slot().is_none(), "a batch is 64");
        a.flush().unwrap();
    }
    let mut kept = Vec::new();
    while kept.len() < 256 {
        let before = kept.len();
        let count = b.recv(10, keep(&mut kept, Trust::Unproven)).unwrap();
        assert_eq!(kept.len() - before, count);
        assert!((1..=10).contains(&count), "{count}");
        // What waits in our memory must not be slept on.
        if kept.len() % 64 != 0 {
            b.wait(Some(Duration::from_secs(600))).unwrap();
        }
    }
    for (number, kept) in kept.iter().enumerate() {
        assert_eq!(kept.payload, data(number as u32, if number % 64 == 63 { 500 } else { 1000 }));
    }
    assert_eq!((a.counters().sent, b.counters().received), (256, 256));
}

#[test]
fn a_slot_dropped_uncommitted_sends_nothing() {
    let (mut a, mut b) = (open("127.0.0.1:0", false, &[]), open("127.0.0.1:0", false, &[]));
    let to_b = b.local_addr();
    assert!(a.slot().is_some());
    assert!(send(&mut a, to_b, &data(7, 50)));
    assert!(a.slot().is_some());
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].payload, data(7, 50));
    assert_eq!(a.counters().sent, 1);
}

/// wire.md W2.4: the same verdicts as in the XDP program, each counted.
#[test]
fn what_no_tunnel_gets_is_refused_and_counted() {
    let mut link = open("127.0.0.1:0", false, &["127.0.0.1"]);
    let (friend, stranger) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.2:0").unwrap());
    let with_first = |first: u8| {
        let mut bytes = data(0, 100);
        bytes[0] = first;
        bytes
    };
    for (socket, payload, verdict) in [
        (&friend, vec![], Verdict::Pass(PassReason::NoHeader)),
        (&friend, data(0, 8), Verdict::Pass(PassReason::NoHeader)),
        (&friend, data(0, 25), Verdict::Drop(DropReason::WrongLength)),
        (&friend, with_first(2 << 5 | 4 << 2), Verdict::Pass(PassReason::OtherVersion)),
        (&friend, with_first(1 << 5), Verdict::Drop(DropReason::ReservedType)),
        (&friend, with_first(1 << 5 | 7 << 2), Verdict::Drop(DropReason::ReservedType)),
        (&friend, with_first(1 << 5 | 6 << 2), Verdict::Pass(PassReason::Relayed)),
        (&stranger, data(0, 100), Verdict::Drop(DropReason::SourceNotAllowed)),
    ] {
        let before = link.counters().refused.get(verdict);
        socket.send_to(&payload, link.local_addr()).unwrap();
        // A good one behind it, so that there is something to wait for.
        friend.send_to(&data(1, 26), link.local_addr()).unwrap();
        assert_eq!(receive(&mut link, 1)[0].payload, data(1, 26));
        assert_eq!(link.counters().refused.get(verdict), before + 1, "{verdict:?}");
    }
    assert_eq!(link.counters().refused.redirected(), 0);
}

#[test]
fn sizes_follow_the_mtu() {
    for (listen, mtu, payload) in [
        ("127.0.0.1:0", 1500, 1472),
        ("[::1]:0", 1500, 1452),
        ("127.0.0.1:0", 9000, PAYLOAD_MAX),
        ("127.0.0.1:0", 65_536, PAYLOAD_MAX),
        ("127.0.0.1:0", 10, 0),
    ] {
        let options = UdpOptions { listen: listen.parse().unwrap(), mtu, gso: false, allow_from: vec![], group: None };
        let mut link = UdpLink::open(options).unwrap();
        assert_eq!(link.max_payload(), payload);
        assert!(link.slot().unwrap().payload().len() >= payload);
    }
}

#[test]
fn a_datagram_without_a_route_is_a_counted_loss() {
    let mut link = open("127.0.0.1:0", false, &[]);
    // From a loopback address nothing leads there.
    assert!(send(&mut link, "192.0.2.1:9".parse().unwrap(), &data(0, 60)));
    link.flush().unwrap();
    assert_eq!((link.counters().sent, link.counters().lost.total()), (0, 1));
}

#[test]
fn a_datagram_longer_than_its_slot_is_a_counted_loss() {
    let mut link = open("127.0.0.1:0", false, &[]);
    let len = link.max_payload() + 1;
    let destination = link.local_addr();
    link.slot().unwrap().commit(&Envelope { destination, source: None, ecn: Ecn::NotEct, len });
    link.flush().unwrap();
    assert_eq!((link.counters().sent, link.counters().lost.too_big), (0, 1));
}

#[test]
fn the_doorbell_and_a_datagram_end_a_sleep() {
    let (mut a, mut b) = (open("127.0.0.1:0", false, &[]), open("127.0.0.1:0", false, &[]));
    b.doorbell().ring();
    b.wait(Some(Duration::from_secs(600))).unwrap();
    assert!(send(&mut a, b.local_addr(), &data(0, 60)));
    a.flush().unwrap();
    b.wait(Some(Duration::from_secs(600))).unwrap();
    assert_eq!(receive(&mut b, 1).len(), 1);
}
