//! The AF_XDP link over rings in memory.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pilot_common::datagram::{self, Headers};
use pilot_common::eth::Mac;
use pilot_user::link::next_hops::NextHop;
use pilot_user::link::xdp::{Device, XdpLink};
use pilot_user::link::{Ecn, Envelope, Link, Slot, Trust, Via};
use pilot_xsk::testing::{self, Kernel};

use crate::{data, keep, send};

pub(crate) const INDEX: u32 = 7;
const OUR_MAC: Mac = [2, 0, 0, 0, 0, 1];
const PEER_MAC: Mac = [2, 0, 0, 0, 0, 2];
const OTHER_MAC: Mac = [2, 0, 0, 0, 0, 3];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn link(local: SocketAddr, mtu: usize) -> (XdpLink, Kernel) {
    let (xsk, kernel) = testing::over_memory(&pilot_xsk::Options::for_mtu(mtu as u32)).unwrap();
    (XdpLink::new(xsk, Device { index: INDEX, mac: OUR_MAC, mtu, local }).unwrap(), kernel)
}

pub(crate) fn hop(mac: Option<Mac>) -> NextHop {
    NextHop { interface: INDEX, vlan: None, source: None, mac }
}

pub(crate) fn frame(mac: Mac, source: SocketAddr, destination: SocketAddr, ecn: u8, payload: &[u8]) -> Vec<u8> {
    let headers = Headers { destination_mac: OUR_MAC, source_mac: mac, tag: None, source, destination, ecn };
    let mut frame = vec![0; headers.len()];
    headers.write_back(&mut frame, payload).unwrap();
    [frame.as_slice(), payload].concat()
}

/// Delivers a frame and lets the link receive it.
fn deliver(link: &mut XdpLink, kernel: &Kernel, frame: &[u8], trust: Trust) -> Vec<crate::Kept> {
    let mut kept = Vec::new();
    link.recv(64, keep(&mut kept, trust)).unwrap();
    assert!(kernel.deliver(frame));
    link.recv(64, keep(&mut kept, trust)).unwrap();
    kept
}

#[test]
fn a_frame_is_lent_as_a_datagram() {
    for (local, peer) in [("192.0.2.1:4242", "192.0.2.2:999"), ("[2001:db8::1]:4242", "[2001:db8::2]:999")] {
        let (local, peer) = (addr(local), addr(peer));
        let (mut link, kernel) = link(local, 1500);
        let payload = data(3, 100);
        let kept = deliver(&mut link, &kernel, &frame(PEER_MAC, peer, local, Ecn::Ce as u8, &payload), Trust::Unproven);
        let expected = crate::Kept { source: peer, destination: local, ecn: Ecn::Ce, via: Via::Xdp, payload };
        assert_eq!(kept, [expected]);
        assert_eq!(link.counters().received, 1);
    }
}

#[test]
fn frames_that_are_no_datagrams_are_counted_not_handed_out() {
    let (local, peer) = (addr("192.0.2.1:4242"), addr("192.0.2.2:999"));
    let (mut link, kernel) = link(local, 1500);
    let good = frame(PEER_MAC, peer, local, 0, &data(3, 100));
    for len in [0, 13, 33, 41, good.len() - 1] {
        assert!(deliver(&mut link, &kernel, &good[..len], Trust::Authentic).is_empty(), "{len}");
    }
    assert_eq!((link.counters().received, link.counters().refused.passed()), (0, 5));
}

/// Whoever can put a frame on the wire could otherwise take over what we send to a peer.
#[test]
fn only_authentic_frames_teach_where_a_peer_is() {
    let (local, peer) = (addr("192.0.2.1:4242"), addr("192.0.2.2:999"));
    let (mut link, kernel) = link(local, 1500);
    link.set_next_hops(Arc::new(HashMap::from([(peer.ip(), hop(None))])));

    deliver(&mut link, &kernel, &frame(OTHER_MAC, peer, local, 0, &data(1, 50)), Trust::Unproven);
    assert!(send(&mut link, peer, &data(2, 50)));
    link.flush().unwrap();
    assert!(kernel.transmit_all().is_empty());
    assert_eq!(link.counters().lost.unreachable, 1);

    deliver(&mut link, &kernel, &frame(PEER_MAC, peer, local, 0, &data(1, 50)), Trust::Authentic);
    deliver(&mut link, &kernel, &frame(OTHER_MAC, peer, local, 0, &data(1, 50)), Trust::Unproven);
    assert!(send(&mut link, peer, &data(2, 50)));
    link.flush().unwrap();
    let sent = kernel.transmit_all();
    assert_eq!(sent.len(), 1);
    let parsed = datagram::parse(sent[0].as_slice()).unwrap();
    assert_eq!((parsed.source_mac, parsed.destination_mac), (OUR_MAC, PEER_MAC));
    assert_eq!((parsed.source, parsed.destination), (local, peer));
    assert_eq!(&sent[0][parsed.layout.payload_offset..], data(2, 50));
    assert_eq!(link.counters().sent, 1);
}

#[test]
fn headers_say_what_route_and_envelope_say() {
    let (peer, chosen) = (addr("[2001:db8::2]:999"), addr("[2001:db8::9]:4242"));
    let preferred: IpAddr = "2001:db8::1".parse().unwrap();
    let (mut link, kernel) = link(addr("[::]:4242"), 1500);
    let route = NextHop { vlan: Some(5), source: Some(preferred), ..hop(Some(PEER_MAC)) };
    link.set_next_hops(Arc::new(HashMap::from([(peer.ip(), route)])));
    for (source, expected) in [(None, preferred), (Some(chosen), chosen.ip())] {
        let mut slot = link.slot().unwrap();
        slot.payload()[..60].copy_from_slice(&data(1, 60));
        slot.commit(&Envelope { destination: peer, source, ecn: Ecn::Ect0, len: 60 });
        link.flush().unwrap();
        let sent = kernel.transmit_all().remove(0);
        let parsed = datagram::parse(sent.as_slice()).unwrap();
        assert_eq!(parsed.source, SocketAddr::new(expected, 4242));
        assert_eq!((parsed.layout.tag, parsed.layout.ecn), (Some(5), Ecn::Ect0 as u8));
    }
}

#[test]
fn no_frame_goes_where_the_routing_table_does_not_send_it() {
    let peer = addr("192.0.2.2:999");
    let (mut link, kernel) = link(addr("192.0.2.1:4242"), 1500);
    for hops in [HashMap::new(), HashMap::from([(peer.ip(), NextHop { interface: INDEX + 1, ..hop(Some(PEER_MAC)) })])]
    {
        link.set_next_hops(Arc::new(hops));
        assert!(send(&mut link, peer, &data(1, 50)));
        link.flush().unwrap();
        assert!(kernel.transmit_all().is_empty());
    }
    assert_eq!(link.counters().lost.unreachable, 2);
}

#[test]
fn slots_that_were_not_sent_come_home_and_room_ends() {
    let peer = addr("192.0.2.2:999");
    let (mut link, kernel) = link(addr("192.0.2.1:4242"), 1500);
    link.set_next_hops(Arc::new(HashMap::from([(peer.ip(), hop(Some(PEER_MAC)))])));
    let home = link.xsk().chunks().home;
    drop(link.slot().unwrap());
    assert!(send(&mut link, addr("198.51.100.1:1"), &data(1, 50)), "no route: given back");
    assert_eq!(link.xsk().chunks().home, home);
    let mut room = 0;
    while send(&mut link, peer, &data(room, 50)) {
        room += 1;
    }
    assert_eq!(room, pilot_xsk::Options::default().tx_ring);
    link.flush().unwrap();
    assert_eq!(kernel.transmit_all().len(), room as usize);
    link.flush().unwrap();
    assert_eq!(link.xsk().chunks().home, home);
    assert!(link.slot().is_some());
}

#[test]
fn sizes_follow_mtu_and_chunks() {
    for (local, mtu, payload) in [
        ("192.0.2.1:1", 1500, 1472),
        ("[2001:db8::1]:1", 1500, 1452),
        // One chunk of 4096, of which the kernel keeps 256 before a received frame.
        ("192.0.2.1:1", 3822, 4096 - 256 - 18 - 28),
        // Several.
        ("192.0.2.1:1", 9000, 8972),
        ("[2001:db8::1]:1", 9000, 8952),
    ] {
        let (mut link, _kernel) = link(addr(local), mtu);
        assert_eq!(link.max_payload(), payload);
        assert_eq!(link.slot().unwrap().payload().len(), payload);
    }
}

/// A frame of several chunks leaves in parts, and one that comes in parts is handed out whole.
#[test]
fn jumbo_frames_take_several_chunks() {
    let (local, peer) = (addr("192.0.2.1:4242"), addr("192.0.2.2:999"));
    let (mut link, kernel) = link(local, 9000);
    link.set_next_hops(Arc::new(HashMap::from([(peer.ip(), hop(Some(PEER_MAC)))])));
    let payload = data(1, link.max_payload());
    assert!(send(&mut link, peer, &payload));
    link.flush().unwrap();
    let sent = kernel.take();
    assert_eq!(sent.iter().map(|part| part.more).collect::<Vec<_>>(), [true, true, false]);
    let frame: Vec<u8> = sent.iter().flat_map(|part| part.bytes.clone()).collect();
    let parsed = datagram::parse(frame.as_slice()).unwrap();
    assert_eq!(&frame[parsed.layout.payload_offset..], payload);
    assert!(sent.iter().all(|part| kernel.complete(part.address)));

    let arriving = crate::xdp::frame(PEER_MAC, peer, local, 0, &payload);
    let (parts, last) = arriving.split_at(3840 * 2);
    let mut received = Vec::new();
    let mut receive = |link: &mut XdpLink| {
        link.recv(64, |datagram| {
            received.push(datagram.payload.to_vec());
            Trust::Authentic
        })
        .unwrap();
    };
    receive(&mut link);
    parts.chunks(3840).for_each(|part| assert!(kernel.deliver_part(part)));
    receive(&mut link);
    assert!(kernel.deliver(last));
    receive(&mut link);
    assert!(received == [payload], "{} frames", received.len());
}

#[test]
fn a_datagram_longer_than_the_link_takes_is_a_counted_loss() {
    let peer = addr("192.0.2.2:999");
    let (mut link, kernel) = link(addr("192.0.2.1:4242"), 1500);
    link.set_next_hops(Arc::new(HashMap::from([(peer.ip(), hop(Some(PEER_MAC)))])));
    let slot = link.slot().unwrap();
    slot.commit(&Envelope { destination: peer, source: None, ecn: Ecn::NotEct, len: 1473 });
    link.flush().unwrap();
    assert!(kernel.transmit_all().is_empty());
    assert_eq!(link.counters().lost.too_big, 1);
}

#[test]
fn what_the_kernel_has_no_room_for_leaves_before_a_sleep_ends() {
    let peer = addr("192.0.2.2:999");
    let (mut link, kernel) = link(addr("192.0.2.1:4242"), 1500);
    link.set_next_hops(Arc::new(HashMap::from([(peer.ip(), hop(Some(PEER_MAC)))])));
    assert!(send(&mut link, peer, &data(1, 50)));
    kernel.refuse_kick(nix::libc::ENOBUFS);
    link.flush().unwrap();
    kernel.send_on_kick(32);
    // No one will wake it: the sleep itself must try again, however long it may take.
    let kicks = link.xsk().counters().tx_kicks;
    link.wait(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(link.xsk().counters().tx_kicks, kicks + 1);
    link.wait(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(link.xsk().counters().tx_kicks, kicks + 1, "nothing is left to send");
}
