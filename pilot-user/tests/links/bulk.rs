//! The second UDP port beside the first, where super-packets pass XDP by.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pilot_common::maps::Config;
use pilot_common::steer::{PassReason, Verdict};
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_user::link::counters::Counters;
use pilot_user::link::pair::PairLink;
use pilot_user::link::udp::{UdpLink, UdpOptions};
use pilot_user::link::xdp::{Device, XdpLink};
use pilot_user::link::{Ecn, Effect, Envelope, Link, Slot, Trust, Via};
use pilot_xsk::nic::Facts;
use pilot_xsk::testing::Kernel;
use pilot_xsk::{Options, Xsk};

use crate::netns::{End, World};
use crate::xdp::{self, frame, hop};
use crate::{Kept, SESSION, data, keep, receive, send};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const PEER_MAC: [u8; 6] = [2; 6];

fn udp(listen: impl Into<SocketAddr>, gso: bool) -> UdpLink {
    UdpLink::open(UdpOptions { listen: listen.into(), mtu: 1500, gso, allow_from: vec![], group: None }).unwrap()
}

fn pair(ip: IpAddr) -> PairLink {
    PairLink::new(udp((ip, 0), false), Some(udp((ip, 0), true)))
}

/// Where the link's bulk port is.
fn bulk(link: &PairLink) -> SocketAddr {
    SocketAddr::new(link.local_addr().ip(), link.bulk_port().unwrap())
}

/// Commits a datagram with this port as its source; whether there was room.
fn send_from(link: &mut PairLink, port: u16, destination: SocketAddr, payload: &[u8]) -> bool {
    let Some(mut slot) = link.slot() else { return false };
    slot.payload()[..payload.len()].copy_from_slice(payload);
    let source = Some((UNSPECIFIED, port).into());
    slot.commit(&Envelope { destination, source, ecn: Ecn::NotEct, len: payload.len() });
    true
}

/// A pair with an AF_XDP link in memory that knows `peer`.
fn with_xdp(mut link: PairLink, peer: IpAddr) -> (PairLink, Kernel) {
    let (xdp, kernel) = xdp::link(link.local_addr(), 1500);
    assert!(link.attach(Box::new(xdp)).is_none());
    link.set_next_hops(Arc::new(HashMap::from([(peer, hop(Some(PEER_MAC)))])));
    (link, kernel)
}

/// Which of a run of datagrams go over the bulk port: single ones and runs, so that every guess is right and wrong.
fn goes_by_bulk(number: u32) -> bool {
    number % 7 < 3 || number % 11 == 5
}

const COUNT: u32 = 60;

fn send_mixed(link: &mut PairLink, peer: &PairLink) {
    for number in 0..COUNT {
        let (port, to) = match goes_by_bulk(number) {
            true => (link.bulk_port().unwrap(), bulk(peer)),
            false => (link.local_addr().port(), peer.local_addr()),
        };
        assert!(send_from(link, port, to, &data(number, 300 + number as usize)));
    }
    link.flush().unwrap();
}

fn numbers(by_bulk: bool) -> impl Iterator<Item = u32> {
    (0..COUNT).filter(move |number| goes_by_bulk(*number) == by_bulk)
}

#[test]
fn each_datagram_leaves_by_the_port_that_it_names_and_says_which_it_came_to() {
    let (mut a, mut b) = (pair(LOOPBACK), pair(LOOPBACK));
    for _ in 0..2 {
        send_mixed(&mut a, &b);
        let kept = receive(&mut b, COUNT as usize);
        for (by_bulk, from, to) in [(true, bulk(&a), bulk(&b)), (false, a.local_addr(), b.local_addr())] {
            let came: Vec<&Kept> = kept.iter().filter(|kept| kept.destination == to).collect();
            let via = if by_bulk { Via::Bulk } else { Via::Udp };
            assert!(came.iter().all(|kept| kept.source == from && kept.via == via));
            let sent = numbers(by_bulk).map(|number| data(number, 300 + number as usize));
            assert!(came.iter().map(|kept| kept.payload.clone()).eq(sent), "by bulk: {by_bulk}");
        }
        std::mem::swap(&mut a, &mut b);
    }
    let by_bulk = numbers(true).count() as u64;
    for link in [a, b] {
        let counters = link.counters();
        assert_eq!((counters.bulk.sent, counters.bulk.received), (by_bulk, by_bulk));
        assert_eq!((counters.udp.sent, counters.udp.received), (60 - by_bulk, 60 - by_bulk));
        assert_eq!(counters.xdp, Counters::default());
    }
}

#[test]
fn beside_af_xdp_too() {
    let mut b = pair(LOOPBACK);
    let (mut a, kernel) = with_xdp(pair(LOOPBACK), LOOPBACK);
    send_mixed(&mut a, &b);
    let kept = receive(&mut b, numbers(true).count());
    assert!(kept.iter().all(|kept| (kept.source, kept.destination) == (bulk(&a), bulk(&b))));
    let payloads = |by_bulk| numbers(by_bulk).map(|number| data(number, 300 + number as usize));
    assert!(kept.into_iter().map(|kept| kept.payload).eq(payloads(true)));
    let frames = kernel.transmit_all();
    let sent = frames.iter().map(|frame| frame[frame.len() - payload_len(frame)..].to_vec());
    assert!(sent.eq(payloads(false)));
    let counters = a.counters();
    assert_eq!((counters.bulk.sent, counters.xdp.sent), (numbers(true).count() as u64, numbers(false).count() as u64));
    assert_eq!((counters.udp.sent, counters.fallback), (0, 0));
    // A peer whose next hop is unknown gets what is not bulk over UDP.
    a.set_next_hops(Arc::default());
    send_mixed(&mut a, &b);
    receive(&mut b, COUNT as usize);
    let after = a.counters();
    assert_eq!((after.fallback, after.udp.sent), (counters.xdp.sent, counters.xdp.sent));
    assert_eq!(after.bulk.sent, 2 * counters.bulk.sent);
}

fn payload_len(frame: &[u8]) -> usize {
    pilot_common::datagram::parse(frame).unwrap().layout.payload_len
}

#[test]
fn without_a_bulk_port_everything_leaves_by_the_first() {
    let (mut a, mut b) = (PairLink::new(udp((LOOPBACK, 0), false), None), pair(LOOPBACK));
    assert_eq!(a.bulk_port(), None);
    assert!(send_from(&mut a, 9, bulk(&b), &data(1, 100)));
    a.flush().unwrap();
    let kept = receive(&mut b, 1).remove(0);
    assert_eq!((kept.source, kept.destination), (a.local_addr(), bulk(&b)));
}

#[test]
fn the_smallest_payload_counts() {
    let large = |listen: SocketAddr| {
        UdpLink::open(UdpOptions { listen, mtu: 9000, gso: false, allow_from: vec![], group: None }).unwrap()
    };
    let any = SocketAddr::new(LOOPBACK, 0);
    let mut link = PairLink::new(large(any), Some(udp(any, true)));
    assert_eq!((link.max_payload(), link.slot().unwrap().payload().len()), (1472, 1472));
    let mut link = PairLink::new(udp(any, false), Some(large(any)));
    let port = link.bulk_port().unwrap();
    for _ in 0..2 {
        // The second is lent from the bulk socket.
        assert_eq!((link.max_payload(), link.slot().unwrap().payload().len()), (1472, 1472));
        assert!(send_from(&mut link, port, any, &data(0, 100)));
    }
}

#[test]
fn a_datagram_to_the_bulk_port_ends_a_sleep_and_is_taken_in_the_next_pass() {
    for xdp in [false, true] {
        let mut link = pair(LOOPBACK);
        let _kernel;
        if xdp {
            (link, _kernel) = with_xdp(link, LOOPBACK);
        }
        let mut peer = udp((LOOPBACK, 0), false);
        // The sockets were looked at, and are not due for a while.
        assert_eq!(link.recv(64, |_| Trust::Unproven).unwrap(), 0);
        assert!(send(&mut peer, bulk(&link), &data(1, 100)));
        peer.flush().unwrap();
        link.wait(Some(Duration::from_secs(600))).unwrap();
        assert_eq!(link.recv(64, |_| Trust::Unproven).unwrap(), 1);
    }
}

/// Whoever fills every pass must not keep the others away.
#[test]
fn all_three_ways_are_served_under_load() {
    let (mut link, kernel) = with_xdp(pair(LOOPBACK), LOOPBACK);
    let mut peer = udp((LOOPBACK, 0), true);
    let (to_first, to_bulk) = (link.local_addr(), bulk(&link));
    let by_xdp = frame(PEER_MAC, peer.local_addr(), to_first, 0, &data(1, 60));
    let mut kept = Vec::new();
    link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
    let mut least = [usize::MAX; 3];
    for pass in 0..2 * WARM_UP {
        while kernel.deliver(&by_xdp) {}
        for to in [to_first, to_bulk] {
            for _ in 0..64 {
                assert!(send(&mut peer, to, &data(2, 1000)));
            }
            peer.flush().unwrap();
        }
        kept.clear();
        let taken = link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
        assert!(taken == kept.len() && taken <= 64, "{taken}");
        let count = |wanted: fn(&Kept, SocketAddr) -> bool| kept.iter().filter(|kept| wanted(kept, to_bulk)).count();
        let counts = [
            count(|kept, _| kept.via == Via::Xdp),
            count(|kept, bulk| kept.via == Via::Udp && kept.destination != bulk),
            count(|kept, bulk| kept.destination == bulk),
        ];
        if pass >= WARM_UP {
            least = std::array::from_fn(|way| least[way].min(counts[way]));
        }
    }
    assert_eq!(least, [32, 16, 16], "AF_XDP, UDP, bulk: the least of any pass");
}

/// Passes until all ways are known to yield.
const WARM_UP: u32 = 40;

/// Commits until the send buffer is full and nothing more fits the arena. Returns how many.
fn fill(link: &mut PairLink, to: SocketAddr) -> u64 {
    let port = link.bulk_port().unwrap();
    let mut committed = 0;
    while link.counters().bulk.lost.no_room == 0 {
        assert!(committed < 100_000, "never blocked: {:?}", link.counters());
        // A whole super-packet leaves before there is room for more.
        while committed % 64 < 63 && send_from(link, port, to, &data(0, 1400)) {
            committed += 1;
        }
        link.flush().unwrap();
        assert!(send_from(link, port, to, &data(0, 1400)), "the first port has room");
        committed += 1;
    }
    committed
}

/// A device that takes next to nothing fills the bulk socket's send buffer. What does not go there goes on.
#[test]
fn a_blocked_bulk_socket_stops_nobody_else_and_loses_nothing_unsaid() {
    let Some(world) = World::new("blocked") else { return };
    let (a, to): (SocketAddr, SocketAddr) = ("10.77.0.1:0".parse().unwrap(), "10.77.0.2:9".parse().unwrap());
    let (link, kernel) = world.inside(End::A, || {
        // With the neighbour known, nothing waits elsewhere than in the queue.
        tc("add", &["tbf", "rate", "8kbit", "burst", "10kb", "limit", "100mb"]);
        with_xdp(pair(a.ip()), to.ip())
    });
    let mac = world.inside(End::B, || Facts::read("vb").unwrap().mac);
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    world.ip(End::A, &["neigh", "replace", "10.77.0.2", "lladdr", &mac, "dev", "va"]);
    let mut link = link;
    let port = link.bulk_port().unwrap();
    let mut committed = fill(&mut link, to);

    let first = link.local_addr().port();
    for number in 0..1000 {
        assert!(send_from(&mut link, first, to, &data(number, 500)), "{number}");
        assert!(send_from(&mut link, port, to, &data(number, 1400)), "{number}");
        committed += 1;
        if number % 16 == 15 {
            link.flush().unwrap();
            let frames = kernel.transmit_all();
            assert_eq!(frames.len(), 16, "{number}");
        }
    }
    let counters = link.counters();
    assert!(counters.xdp.sent >= 992 && counters.xdp.lost.total() == 0, "{counters:?}");
    let waiting = committed - counters.bulk.sent - counters.bulk.lost.total();
    assert!(waiting <= 64 && counters.bulk.lost.total() == counters.bulk.lost.no_room, "{waiting}, {counters:?}");

    // The device is there again: so is the bulk port, and a worker that sleeps is woken for it.
    world.inside(End::A, || tc("del", &[]));
    while link.counters().bulk.sent < counters.bulk.sent + waiting {
        link.wait(Some(Duration::from_secs(600))).unwrap();
        link.flush().unwrap();
    }
    assert_eq!(link.counters().bulk.lost, counters.bulk.lost);
}

fn tc(verb: &str, what: &[&str]) {
    let output = Command::new("tc").args([&["qdisc", verb, "dev", "va", "root"], what].concat()).output().unwrap();
    assert!(output.status.success(), "tc {verb}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node on `vb` as the control thread sets one up, with the generic XDP program and an AF_XDP socket, and with a bulk port.
struct Node {
    link: PairLink,
    program: Program,
}

impl Node {
    fn new(local: SocketAddr) -> Self {
        let facts = Facts::read("vb").unwrap();
        let mut link = PairLink::new(udp(local, false), Some(udp((local.ip(), 0), true)));
        let addresses = BTreeSet::from([local.ip()]);
        let config = Config { port: local.port(), mtu: facts.mtu, allow_all: true };
        let steering = Steering { config, local: &addresses, allow_from: &[] };
        let mut program = Program::load(1).unwrap();
        link.list_sessions(program.sessions(0).unwrap());
        link.apply(Effect::SessionBegins(SESSION));
        program.attach("vb", facts.ifindex, AttachMode::Generic, &steering).unwrap();
        let options = Options { mode: pilot_xsk::Mode::Copy, ..Options::for_mtu(facts.mtu) };
        let mut xsk = Xsk::open(facts.ifindex, 0, &options).unwrap();
        xsk.refill().unwrap();
        program.set_socket(0, xsk.fd()).unwrap();
        let device = Device { index: facts.ifindex, mac: facts.mac, mtu: facts.mtu as usize, local };
        link.attach(Box::new(XdpLink::new(xsk, device).unwrap()));
        Self { link, program }
    }

    fn verdicts(&self, reason: PassReason) -> u64 {
        self.program.counters().unwrap().get(Verdict::Pass(reason))
    }
}

/// A peer that uses GSO towards either port: what is longer than the MTU goes to the UDP socket, which takes it apart.
#[test]
fn super_packets_come_whole_by_either_port() {
    let Some(world) = World::new("gso") else { return };
    let local: SocketAddr = "10.77.0.2:4242".parse().unwrap();
    let mut node = world.inside(End::B, || Node::new(local));
    let mut peer = world.inside(End::A, || udp(([10, 77, 0, 1], 0), true));
    let to_bulk = bulk(&node.link);
    // One alone, which the kernel resolves the neighbour for.
    assert!(send(&mut peer, local, &data(0, 100)));
    peer.flush().unwrap();
    assert_eq!(receive(&mut node.link, 1)[0].via, Via::Xdp);

    let ways = [(local, Via::Udp, PassReason::LongerThanMtu), (to_bulk, Via::Bulk, PassReason::OtherPort)];
    for (to, via, reason) in ways {
        let (passed, redirected) = (node.verdicts(reason), node.program.counters().unwrap().redirected());
        const SUPER_PACKETS: u64 = 10;
        for round in 0..SUPER_PACKETS as u32 {
            for number in 0..40 {
                assert!(send(&mut peer, to, &data(round * 40 + number, if number == 39 { 600 } else { 1400 })));
            }
            peer.flush().unwrap();
        }
        let kept = receive(&mut node.link, 400);
        for (number, kept) in kept.iter().enumerate() {
            assert_eq!((kept.via, kept.destination), (via, to));
            assert_eq!(kept.payload, data(number as u32, if number % 40 == 39 { 600 } else { 1400 }));
        }
        // The program saw them in one piece each: forty datagrams would be forty verdicts.
        assert_eq!(node.verdicts(reason) - passed, SUPER_PACKETS, "{reason:?}");
        assert_eq!(node.program.counters().unwrap().redirected(), redirected);
    }
    let counters = node.link.counters();
    assert_eq!((counters.udp.received, counters.bulk.received, counters.xdp.received), (400, 400, 1));

    // The other way: our super-packets leave by the bulk port alone.
    let to_peer = peer.local_addr();
    let port = to_bulk.port();
    for number in 0..40 {
        assert!(send_from(&mut node.link, port, to_peer, &data(number, 1400)));
    }
    node.link.flush().unwrap();
    for (number, kept) in receive(&mut peer, 40).iter().enumerate() {
        assert_eq!((kept.source, &kept.payload), (to_bulk, &data(number as u32, 1400)));
    }
    assert_eq!(node.link.counters().bulk.sent, 40);
}

/// What the process may, it uses: net.core.rmem_max does not cut the receive buffer of a node that has CAP_NET_ADMIN.
#[test]
fn a_burst_longer_than_the_kernels_limit_is_kept() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: bulk::a_burst_longer_than_the_kernels_limit_is_kept: needs root, to go beyond rmem_max");
        return;
    }
    let (mut a, mut b) = (udp((LOOPBACK, 0), false), udp((LOOPBACK, 0), false));
    // Each occupies some 2,300 bytes, of 8 MB that the kernel allows twice. Where rmem_max is 4 MB it would keep 3,600.
    const BURST: u32 = 5000;
    for number in 0..BURST {
        if !send(&mut a, b.local_addr(), &data(number, 1400)) {
            a.flush().unwrap();
            assert!(send(&mut a, b.local_addr(), &data(number, 1400)));
        }
    }
    a.flush().unwrap();
    assert_eq!(receive(&mut b, BURST as usize).len(), BURST as usize);
}
