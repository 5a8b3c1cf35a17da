//! UDP and AF_XDP as one link.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_user::link::next_hops::NextHops;
use pilot_user::link::orders::{Order, Report, orders};
use pilot_user::link::pair::{PairLink, XdpState};
use pilot_user::link::udp::{UdpLink, UdpOptions};
use pilot_user::link::xdp::XdpLink;
use pilot_user::link::{Link, Slot, Trust, Via};
use pilot_xsk::testing::Kernel;

use crate::xdp::hop;
use crate::{data, keep, receive, send, xdp};

fn udp() -> UdpLink {
    let options =
        UdpOptions { listen: "127.0.0.1:0".parse().unwrap(), mtu: 1500, gso: false, allow_from: vec![], group: None };
    UdpLink::open(options).unwrap()
}

/// A pair with an AF_XDP link in memory, and a UDP socket that plays the peer.
struct Pair {
    link: PairLink,
    kernel: Kernel,
    peer: UdpLink,
}

impl Pair {
    fn new() -> Self {
        let mut link = PairLink::new(udp(), None);
        let (xdp, kernel) = xdp::link(link.local_addr(), 1500);
        assert!(link.attach(Box::new(xdp)).is_none());
        Self { link, kernel, peer: udp() }
    }

    fn to_peer(&self) -> SocketAddr {
        self.peer.local_addr()
    }

    fn know_peer(&mut self) {
        self.link.set_next_hops(self.hops());
    }

    fn hops(&self) -> Arc<NextHops> {
        Arc::new(HashMap::from([(self.to_peer().ip(), hop(Some([2; 6])))]))
    }

    /// Sends one datagram; whether it went through AF_XDP, and else it must have reached the peer over UDP.
    fn goes_by_xdp(&mut self, number: u32) -> bool {
        let to = self.to_peer();
        assert!(send(&mut self.link, to, &data(number, 60)));
        self.link.flush().unwrap();
        let frames = self.kernel.transmit_all();
        if frames.is_empty() {
            assert_eq!(receive(&mut self.peer, 1)[0].payload, data(number, 60));
        }
        !frames.is_empty()
    }
}

#[test]
fn without_a_next_hop_datagrams_go_over_udp_and_are_counted() {
    let mut pair = Pair::new();
    assert!(!pair.goes_by_xdp(1));
    pair.know_peer();
    assert!(pair.goes_by_xdp(2));
    let counters = pair.link.counters();
    assert_eq!((counters.udp.sent, counters.xdp.sent, counters.fallback), (1, 1, 1));
    assert_eq!(counters.udp.lost.total() + counters.xdp.lost.total(), 0);
}

#[test]
fn more_than_a_udp_batch_without_a_next_hop_is_not_lost() {
    let mut pair = Pair::new();
    let to = pair.to_peer();
    for number in 0..200 {
        assert!(send(&mut pair.link, to, &data(number, 60)));
    }
    pair.link.flush().unwrap();
    let kept = receive(&mut pair.peer, 200);
    assert!(kept.iter().enumerate().all(|(number, kept)| kept.payload == data(number as u32, 60)));
}

#[test]
fn both_ways_are_received_from() {
    let mut pair = Pair::new();
    let mut kept = Vec::new();
    // The first pass gives the kernel chunks to receive into.
    pair.link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
    let to = pair.link.local_addr();
    let frame = {
        let headers = pilot_common::datagram::Headers {
            destination_mac: [2; 6],
            source_mac: [4; 6],
            tag: None,
            source: pair.to_peer(),
            destination: to,
            ecn: 0,
        };
        let mut frame = vec![0; headers.len()];
        headers.write_back(&mut frame, &data(1, 60)).unwrap();
        [frame, data(1, 60)].concat()
    };
    assert!(pair.kernel.deliver(&frame));
    assert!(send(&mut pair.peer, to, &data(2, 60)));
    pair.peer.flush().unwrap();
    // A worker that never sleeps must come to the UDP socket too.
    for _ in 0..64 {
        pair.link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
    }
    let ways: Vec<_> = kept.iter().map(|kept| (kept.via, kept.payload.clone())).collect();
    assert_eq!(ways, [(Via::Xdp, data(1, 60)), (Via::Udp, data(2, 60))]);
}

#[test]
fn a_udp_datagram_ends_a_sleep_and_is_taken_in_the_next_pass() {
    let mut pair = Pair::new();
    let mut kept = Vec::new();
    pair.link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
    assert!(send(&mut pair.peer, pair.link.local_addr(), &data(2, 60)));
    pair.peer.flush().unwrap();
    pair.link.wait(Some(Duration::from_secs(600))).unwrap();
    assert_eq!(pair.link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap(), 1);
}

#[test]
fn a_device_that_is_down_is_sent_round_and_tried_again() {
    let mut pair = Pair::new();
    pair.know_peer();
    let to = pair.to_peer();
    assert!(send(&mut pair.link, to, &data(1, 60)));
    pair.kernel.refuse_kick(nix::libc::ENETDOWN);
    pair.link.flush().unwrap();
    assert_eq!(pair.link.xdp_state(), XdpState::Down);
    assert_eq!(pair.kernel.transmit_all().len(), 1, "what was queued leaves when the device is up");
    assert!(!pair.goes_by_xdp(2));
    pair.know_peer();
    assert_eq!(pair.link.xdp_state(), XdpState::Up);
    assert!(pair.goes_by_xdp(3));
    assert_eq!(pair.link.counters().xdp.lost.total(), 0);
}

#[test]
fn a_device_that_is_gone_costs_what_was_queued_and_counts_it() {
    let mut pair = Pair::new();
    let (reports, mut from_link) = tokio::sync::mpsc::channel(8);
    let (_control, end) = orders(0, pair.link.doorbell(), reports);
    pair.link.follow(end);
    pair.know_peer();
    let to = pair.to_peer();
    for number in 0..5 {
        assert!(send(&mut pair.link, to, &data(number, 60)));
    }
    pair.kernel.refuse_kick(nix::libc::ENXIO);
    pair.link.flush().unwrap();
    assert_eq!(pair.link.xdp_state(), XdpState::Gone);
    let counters = pair.link.counters();
    assert_eq!((counters.xdp.sent, counters.xdp.lost.device_gone), (0, 5));
    assert!(matches!(from_link.try_recv(), Ok((0, Report::Detached(_)))));
    assert!(send(&mut pair.link, to, &data(9, 60)));
    pair.link.flush().unwrap();
    assert_eq!(receive(&mut pair.peer, 1)[0].payload, data(9, 60));
}

#[test]
fn orders_attach_tell_and_detach() {
    let mut link = PairLink::new(udp(), None);
    let (reports, mut from_link) = tokio::sync::mpsc::channel(8);
    let (control, end) = orders(3, link.doorbell(), reports);
    link.follow(end);
    let (xdp, kernel) = xdp::link(link.local_addr(), 1500);
    let mut pair = Pair { link, kernel, peer: udp() };
    let pass = |link: &mut PairLink| link.recv(64, |_| Trust::Unproven).unwrap();

    assert!(control.send(Order::Attach(Box::new(xdp))).is_ok());
    // The order rings, so a sleeping worker takes it.
    pair.link.wait(Some(Duration::from_secs(600))).unwrap();
    pass(&mut pair.link);
    assert_eq!(pair.link.xdp_state(), XdpState::Up);

    assert!(!pair.goes_by_xdp(1));
    assert!(!pair.goes_by_xdp(2));
    let ip = pair.to_peer().ip();
    assert!(matches!(from_link.try_recv(), Ok((3, Report::Resolve(asked))) if asked == ip));
    assert!(from_link.try_recv().is_err(), "asked once");

    assert!(control.send(Order::NextHops(pair.hops())).is_ok());
    pass(&mut pair.link);
    assert!(pair.goes_by_xdp(3));

    assert!(control.send(Order::Detach).is_ok());
    pass(&mut pair.link);
    assert_eq!(pair.link.xdp_state(), XdpState::Absent);
    let Ok((3, Report::Detached(xdp))) = from_link.try_recv() else { panic!("not given back") };
    let before: &XdpLink = &xdp;
    assert_eq!(before.counters().sent, 1);
    assert_eq!(pair.link.counters().xdp.sent, 1, "what it counted stays");

    // Attached again, it knows the ways at once.
    assert!(control.send(Order::Attach(xdp)).is_ok());
    pass(&mut pair.link);
    assert!(pair.goes_by_xdp(4));
}

#[test]
fn orders_that_nobody_takes_are_refused_and_sockets_are_not_lost() {
    let mut link = PairLink::new(udp(), None);
    let (reports, mut from_link) = tokio::sync::mpsc::channel(1);
    let (control, end) = orders(0, link.doorbell(), reports);
    link.follow(end);
    let mut taken = 0;
    while control.send(Order::NextHops(Arc::default())).is_ok() {
        taken += 1;
        assert!(taken < 1000, "orders are bounded");
    }
    link.recv(64, |_| Trust::Unproven).unwrap();
    // The first report fills the queue; the socket given back second waits for its turn.
    let (first, _kernel) = xdp::link(link.local_addr(), 1500);
    let (second, _kernel) = xdp::link(link.local_addr(), 1500);
    for order in [Order::Attach(Box::new(first)), Order::Attach(Box::new(second)), Order::Detach] {
        assert!(control.send(order).is_ok());
    }
    link.recv(64, |_| Trust::Unproven).unwrap();
    assert!(matches!(from_link.try_recv(), Ok((0, Report::Detached(_)))));
    link.recv(64, |_| Trust::Unproven).unwrap();
    assert!(matches!(from_link.try_recv(), Ok((0, Report::Detached(_)))));
}

#[test]
fn the_smaller_payload_counts() {
    let options =
        UdpOptions { listen: "127.0.0.1:0".parse().unwrap(), mtu: 9000, gso: false, allow_from: vec![], group: None };
    let mut link = PairLink::new(UdpLink::open(options).unwrap(), None);
    assert_eq!(link.max_payload(), 8972);
    let (xdp, _kernel) = xdp::link(link.local_addr(), 1500);
    link.attach(Box::new(xdp));
    assert_eq!(link.max_payload(), 1472);
    assert_eq!(link.slot().unwrap().payload().len(), 1472);
    link.detach();
    assert_eq!(link.max_payload(), 8972);
}

/// A peer that fills every pass must not keep handshakes of others away.
#[test]
fn a_full_ring_does_not_starve_the_udp_socket() {
    let mut pair = Pair::new();
    let to = pair.link.local_addr();
    let headers = pilot_common::datagram::Headers {
        destination_mac: [2; 6],
        source_mac: [4; 6],
        tag: None,
        source: pair.to_peer(),
        destination: to,
        ecn: 0,
    };
    let mut frame = vec![0; headers.len()];
    headers.write_back(&mut frame, &data(1, 60)).unwrap();
    frame.extend(data(1, 60));
    let mut kept = Vec::new();
    pair.link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
    assert!(send(&mut pair.peer, to, &data(2, 60)));
    pair.peer.flush().unwrap();
    for _ in 0..64 {
        while pair.kernel.deliver(&frame) {}
        kept.clear();
        assert_eq!(pair.link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap(), 64);
        if kept.iter().any(|kept| kept.via == Via::Udp) {
            return;
        }
    }
    panic!("never looked at");
}
