//! Two workers on one port, and a kernel that gives each what is the other's.

use std::net::SocketAddr;
use std::time::Duration;

use quanta::Instant as Clock;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{CloseReason, Config, ConnectionHandle, Endpoint, Event, Instant, PeerConfig, PeerId};
use pilot_user::link::Link as _;
use pilot_user::link::udp::{Group, UdpLink, UdpOptions};
use pilot_user::service::{ECHO_PORT, Services};
use pilot_user::worker::drivers::{Pinned, Worker};
use pilot_user::worker::handoff::{Handoff, mesh};
use pilot_user::worker::{Application, Opened, turn};

const MESSAGES: u32 = 2000;
/// Peers, each from a port of its own: enough that both workers own tunnels.
const PEERS: u8 = 6;
const PATIENCE: Duration = Duration::from_secs(60);

fn open(listen: SocketAddr, group: Option<Group>) -> UdpLink {
    UdpLink::open(UdpOptions { listen, mtu: 1500, gso: false, allow_from: vec![], group }).unwrap()
}

fn identity(node: u8) -> Identity {
    Identity::from_secrets([node; 32], [node + 100; 32]).unwrap()
}

fn peer(node: u8, endpoint: Option<SocketAddr>) -> PeerConfig {
    let address = OverlayAddress { network: 0, node: u32::from(node) };
    PeerConfig { key: identity(node).public_key(), address, endpoint }
}

fn endpoint(node: u8, worker: u8, max_datagram: usize) -> Endpoint {
    let address = OverlayAddress { network: 0, node: u32::from(node) };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut config = Config::new(identity(node), address, [node; 16], now);
    config.worker = worker;
    config.max_datagram = max_datagram as u16;
    Endpoint::new(config, [node ^ worker << 7; 32])
}

/// Asks for echoes, several at a time, and sees that they come back in order.
#[derive(Default)]
struct Asker {
    connection: Option<ConnectionHandle>,
    sent: u32,
    got: u32,
    buffer: Vec<u8>,
}

impl Application for Asker {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        match event {
            Event::MessagesReadable { connection } => loop {
                self.buffer.clear();
                let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) else { return };
                assert_eq!(self.buffer, self.got.to_be_bytes());
                self.got += 1;
            },
            Event::Closed { reason, .. } => panic!("{reason:?}"),
            _ => {}
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let Some(connection) = self.connection else { return false };
        let before = self.sent;
        while self.sent < MESSAGES
            && self.sent - self.got < 8
            && endpoint.send_message(now, connection, &self.sent.to_be_bytes()).is_ok()
        {
            self.sent += 1;
        }
        self.sent > before
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

fn asker(node: u8, to: SocketAddr) -> (Worker<UdpLink, Asker>, PeerId) {
    let link = open("127.0.0.1:0".parse().unwrap(), None);
    let mut endpoint = endpoint(node, 0, link.max_payload());
    let peer = endpoint.add_peer(peer(1, Some(to)));
    (Worker::new(endpoint, link, Asker::default(), Handoff::alone(), Clock::now()), peer)
}

#[test]
fn tunnels_live_whoever_gets_their_datagrams() {
    // The kernel knows sockets by the order of opening, and these are opened in the wrong one: what names worker 0 goes to
    // worker 1, and the other way round.
    let group = Some(Group { workers: 2 });
    let second = open("127.0.0.1:0".parse().unwrap(), group);
    let first = open(second.local_addr(), group);
    let to = first.local_addr();
    let links = [first, second];
    let doorbells = [0, 1].map(|worker: usize| links[worker].doorbell());
    let (notices, _) = crossbeam_channel::bounded(1);
    let origin = Clock::now();
    let workers: Vec<_> = links
        .into_iter()
        .zip(mesh(&doorbells))
        .zip(&doorbells)
        .enumerate()
        .map(|(worker, ((link, handoff), doorbell))| {
            let mut endpoint = endpoint(1, worker as u8, link.max_payload());
            for node in 2..2 + PEERS {
                endpoint.add_peer(peer(node, None));
            }
            let services = Services::new(worker, None, notices.clone(), doorbell.clone()).unwrap();
            let worker = Worker::new(endpoint, link, services, handoff, origin);
            Pinned::spawn(worker, None, doorbell.clone()).unwrap()
        })
        .collect();

    let mut askers: Vec<_> = (2..2 + PEERS).map(|node| asker(node, to)).collect();
    for (asker, peer) in &mut askers {
        let now = asker.now();
        asker.application.connection = Some(asker.endpoint.connect(now, *peer, ECHO_PORT).unwrap());
    }
    let until = Clock::now() + PATIENCE;
    while askers.iter().any(|(asker, _)| asker.application.got < MESSAGES) {
        let got: Vec<u32> = askers.iter().map(|(asker, _)| asker.application.got).collect();
        assert!(Clock::now() < until, "echoes: {got:?}");
        for (asker, _) in &mut askers {
            asker.pass().unwrap();
        }
    }

    let workers: Vec<_> = workers.into_iter().map(|worker| worker.stop().unwrap()).collect();
    let counters = [0, 1].map(|worker: usize| workers[worker].handoff.counters());
    for (own, other) in [(0, 1), (1, 0)] {
        let received = workers[own].link.counters().received;
        let (given, opened) = (counters[own], workers[own].opened);
        // All that is not an initiation is another's.
        assert!(given.handed_over > u64::from(MESSAGES) / 8 && given.dropped == 0, "{given:?}");
        assert!(counters[other].taken_over <= given.handed_over);
        // Counted where it was opened, and nowhere else.
        assert_eq!(opened.udp + opened.dropped, received - given.handed_over + given.taken_over);
    }
}

/// What a worker's endpoint told.
#[derive(Default)]
struct Told(Vec<Event>);

impl Application for Told {
    fn on_event(&mut self, _: &mut Endpoint, _: Instant, event: Event) {
        self.0.push(event);
    }

    fn poll(&mut self, _: &mut Endpoint, _: Instant) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// A worker whose time is the test's: loopback delivers at once.
struct Timed {
    endpoint: Endpoint,
    link: UdpLink,
    handoff: Handoff,
    told: Told,
    opened: Opened,
}

impl Timed {
    fn new(endpoint: Endpoint, link: UdpLink, handoff: Handoff) -> Self {
        Self { endpoint, link, handoff, told: Told::default(), opened: Opened::default() }
    }

    fn turn(&mut self, now: Instant) {
        let Self { endpoint, link, handoff, told, opened } = self;
        turn(endpoint, link, told, handoff, now, opened).unwrap();
    }
}

/// A node of two workers, without peers.
fn two_workers(node: u8) -> [Timed; 2] {
    let group = Some(Group { workers: 2 });
    let first = open("127.0.0.1:0".parse().unwrap(), group);
    let second = open(first.local_addr(), group);
    let mut handoffs = mesh(&[first.doorbell(), second.doorbell()]).into_iter();
    let mut number = 0..;
    [first, second].map(|link| {
        let endpoint = endpoint(node, number.next().unwrap(), link.max_payload());
        Timed::new(endpoint, link, handoffs.next().unwrap())
    })
}

/// wire.md W4.9: a reset names a worker of its sender's. Whichever worker of ours it comes to, the one that has the tunnel
/// hears of it, long before silence would have told.
#[test]
fn a_reset_reaches_the_owner() {
    for owner in [0, 1] {
        let mut workers = two_workers(1);
        let at = workers[0].link.local_addr();
        let to = open("127.0.0.1:0".parse().unwrap(), None);
        let ids = workers.each_mut().map(|worker| {
            let id = worker.endpoint.add_peer(peer(2, Some(to.local_addr())));
            worker.endpoint.set_owner(id, owner as u8);
            id
        });
        let id = ids[owner];
        let restarted = |link: &UdpLink| {
            let mut endpoint = endpoint(2, 0, link.max_payload());
            endpoint.add_peer(peer(1, Some(at)));
            endpoint
        };
        let mut other = Timed::new(restarted(&to), to, Handoff::alone());

        let mut now = Instant::from_nanos(1);
        let mut run = |workers: &mut [Timed], other: &mut Timed| {
            for _ in 0..20 {
                now += Duration::from_millis(1);
                other.turn(now);
                workers.iter_mut().for_each(|worker| worker.turn(now));
            }
            now
        };
        workers[owner].endpoint.open_tunnel(Instant::from_nanos(1), id);
        let now = run(&mut workers, &mut other);
        assert!(workers[owner].endpoint.is_up(id));
        other.endpoint = restarted(&other.link);
        workers[owner].endpoint.connect(now, id, ECHO_PORT).unwrap();
        run(&mut workers, &mut other);
        assert_eq!(workers[owner].endpoint.stats().resets_received, 1, "owner {owner}");
        let ended = |event: &Event| matches!(event, Event::TunnelDown { reason: CloseReason::PeerRestarted, .. });
        assert!(workers[owner].told.0.iter().any(ended), "{:?}", workers[owner].told.0);
        assert_eq!(workers[1 - owner].endpoint.stats().resets_received, 0);
    }
}

/// wire.md W3.16: two nodes of two workers each, and a lane by each of them: one tunnel has each worker, and no other.
#[test]
fn each_lane_has_workers_of_its_own() {
    let mut nodes = [two_workers(1), two_workers(2)];
    let at = nodes.each_ref().map(|[first, _]| first.link.local_addr());
    let owner = |node: usize, lane: usize| node ^ lane;
    let mut lanes = [Vec::new(), Vec::new()];
    for (node, workers) in nodes.iter_mut().enumerate() {
        for worker in workers {
            let first = worker.endpoint.add_peer(peer(2 - node as u8, Some(at[1 - node])));
            lanes[node] = vec![first, worker.endpoint.add_lane(first, 1).unwrap()];
            for (lane, id) in lanes[node].iter().enumerate() {
                worker.endpoint.set_owner(*id, owner(node, lane) as u8);
            }
        }
    }
    let mut now = Instant::from_nanos(1);
    for lane in 0..2 {
        nodes[0][owner(0, lane)].endpoint.open_tunnel(now, lanes[0][lane]);
    }
    for _ in 0..50 {
        now += Duration::from_millis(1);
        nodes.iter_mut().flatten().for_each(|worker| worker.turn(now));
    }
    for (node, workers) in nodes.iter().enumerate() {
        for lane in 0..2 {
            let worker = &workers[owner(node, lane)];
            let up = Event::TunnelUp { peer: lanes[node][lane], resumed: false };
            assert_eq!(worker.told.0, [up], "node {node}, lane {lane}");
            assert_eq!(worker.endpoint.stats().handshakes, 1);
        }
    }
}
