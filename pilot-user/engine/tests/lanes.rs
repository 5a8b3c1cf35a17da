//! Two nodes of two workers each, and between them two lanes: tunnels of their own, by workers of their own.

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use std::time::Duration;

use common::{address, config, identity};
use pilot_common::wire::PacketType;
use pilot_engine::address::OverlayAddress;
use pilot_engine::limits::MAX_LANES;
use pilot_engine::{
    CloseReason, Code, ConnectionHandle, DropReason, Ecn, Endpoint, Event, Instant, OperationError, PeerConfig, PeerId,
    Read, Received, StreamId,
};

/// A node: its workers, the lanes to the other one, and what its workers told.
struct Node {
    workers: [Endpoint; 2],
    lanes: [PeerId; 2],
    events: Vec<(usize, Event)>,
}

struct Scene {
    nodes: [Node; 2],
    now: Instant,
    /// The lane by whose owner nothing gets through any more, at either node.
    dead: Option<usize>,
}

/// Who has a lane: at either node another.
fn owner(node: usize, lane: usize) -> usize {
    node ^ lane
}

fn kind(datagram: &[u8]) -> Option<PacketType> {
    PacketType::from_first_byte(datagram[0])
}

fn peer(node: u8) -> PeerConfig {
    let key = identity(node).public_key();
    PeerConfig { key, address: OverlayAddress { network: 0, node: u32::from(node) }, endpoint: Some(address(node)) }
}

fn node(number: usize) -> Node {
    let (own, other) = (number as u8 + 1, 2 - number as u8);
    let mut lanes = None;
    let workers = [0, 1].map(|worker| {
        let mut config = config(own, 10 + own);
        config.worker = worker;
        // Above the keep-alive, so that a living one stays.
        config.idle_timeout = Duration::from_secs(12);
        let mut endpoint = Endpoint::new(config, [own << 4 | worker; 32]);
        let first = endpoint.add_peer(peer(other));
        let ids = [first, endpoint.add_lane(first, 1).unwrap()];
        for (lane, id) in ids.into_iter().enumerate() {
            endpoint.set_owner(id, owner(number, lane) as u8);
        }
        lanes = Some(ids);
        endpoint
    });
    Node { workers, lanes: lanes.unwrap(), events: Vec::new() }
}

impl Scene {
    fn new() -> Self {
        Self { nodes: [node(0), node(1)], now: Instant::from_nanos(1), dead: None }
    }

    /// A node's worker that has a lane, and the lane's id there.
    fn lane(&mut self, node: usize, lane: usize) -> (&mut Endpoint, PeerId) {
        let it = &mut self.nodes[node];
        (&mut it.workers[owner(node, lane)], it.lanes[lane])
    }

    /// As the links and rings of a node do it: what names no session comes by the first worker.
    fn deliver(&mut self, to: usize, datagram: &[u8]) -> Received {
        let worker = if kind(datagram) == Some(PacketType::Initiation) { 0 } else { usize::from(datagram[1]) };
        let (source, local) = (address(2 - to as u8), address(to as u8 + 1));
        let workers = &mut self.nodes[to].workers;
        match workers[worker].handle_datagram(self.now, source, local, Ecn::NotEct, datagram) {
            Received::Elsewhere(owner) => {
                workers[usize::from(owner)].handle_datagram(self.now, source, local, Ecn::NotEct, datagram)
            }
            received => received,
        }
    }

    /// The datagrams that a worker has to send now.
    fn sent(&mut self, node: usize, worker: usize) -> Vec<Vec<u8>> {
        let (endpoint, mut buffer) = (&mut self.nodes[node].workers[worker], [0; 1472]);
        std::iter::from_fn(|| endpoint.poll_transmit(self.now, &mut buffer).map(|sent| buffer[..sent.len].to_vec()))
            .collect()
    }

    /// Runs for so many milliseconds.
    fn run(&mut self, ms: u32) {
        for _ in 0..ms {
            self.now += Duration::from_millis(1);
            for (node, worker) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for datagram in self.sent(node, worker) {
                    if self.dead.is_none_or(|lane| worker != owner(node, lane)) {
                        self.deliver(1 - node, &datagram);
                    }
                }
                let it = &mut self.nodes[node];
                let endpoint = &mut it.workers[worker];
                if endpoint.poll_timeout().is_some_and(|at| at <= self.now) {
                    endpoint.handle_timeout(self.now);
                }
                it.events.extend(std::iter::from_fn(|| endpoint.poll_event()).map(|event| (worker, event)));
            }
        }
    }

    fn is_up(&mut self, node: usize, lane: usize) -> bool {
        let (endpoint, id) = self.lane(node, lane);
        endpoint.is_up(id)
    }

    /// A connection on a lane from node 0 to node 1, accepted.
    fn connected(&mut self, lane: usize) -> [ConnectionHandle; 2] {
        let now = self.now;
        let (endpoint, id) = self.lane(0, lane);
        let ours = endpoint.connect(now, id, 7).unwrap();
        let theirs_is = (owner(1, lane), self.nodes[1].lanes[lane]);
        let mut theirs = None;
        // Up to the longest wait between initiations, and more.
        for _ in 0..300 {
            self.run(20);
            theirs = self.nodes[1].events.iter().find_map(|(worker, event)| match event {
                Event::Offered { connection, .. } if (*worker, connection.peer()) == theirs_is => Some(*connection),
                _ => None,
            });
            if theirs.is_some() {
                break;
            }
        }
        let (now, theirs) = (self.now, theirs.unwrap());
        self.lane(1, lane).0.accept(now, theirs).unwrap();
        self.nodes[1].events.clear();
        self.run(20);
        [ours, theirs]
    }
}

/// Bulk on a lane from node 0 to node 1, checked byte by byte.
struct Bulk {
    lane: usize,
    handles: [ConnectionHandle; 2],
    stream: StreamId,
    written: usize,
    read: usize,
}

impl Bulk {
    fn begin(scene: &mut Scene, lane: usize) -> Self {
        let (handles, now) = (scene.connected(lane), scene.now);
        let stream = scene.lane(0, lane).0.open_stream(now, handles[0]).unwrap();
        Self { lane, handles, stream, written: 0, read: 0 }
    }

    fn byte(&self, at: usize) -> u8 {
        (at ^ at >> 8 ^ at >> 16 ^ self.lane) as u8
    }

    /// Writes what there is room for, and reads what there is.
    fn go_on(&mut self, scene: &mut Scene) {
        let now = scene.now;
        let text: Vec<u8> = (self.written..self.written + 50_000).map(|at| self.byte(at)).collect();
        self.written += scene.lane(0, self.lane).0.write(now, self.handles[0], self.stream, &text).unwrap();
        let mut buffer = [0; 5000];
        let endpoint = scene.lane(1, self.lane).0;
        while let Ok(Read::Bytes(count)) = endpoint.read(now, self.handles[1], self.stream, &mut buffer) {
            for byte in &buffer[..count] {
                assert_eq!(*byte, self.byte(self.read), "lane {}, byte {}", self.lane, self.read);
                self.read += 1;
            }
        }
    }
}

/// wire.md W3.16: bulk over both, whole and in order, each by workers, keys and packet numbers of its own.
#[test]
fn two_lanes_carry_bulk_side_by_side() {
    let mut scene = Scene::new();
    let mut bulks = [0, 1].map(|lane| Bulk::begin(&mut scene, lane));
    for _ in 0..500 {
        bulks.iter_mut().for_each(|bulk| bulk.go_on(&mut scene));
        scene.run(1);
    }
    for bulk in bulks {
        assert!(bulk.read > 1_000_000, "lane {}: {}", bulk.lane, bulk.read);
        for node in 0..2 {
            let (endpoint, id) = scene.lane(node, bulk.lane);
            let (stats, tunnel) = (endpoint.stats(), endpoint.tunnel_stats(id).unwrap());
            assert_eq!((stats.handshakes, stats.opened), (1, tunnel.received_packets), "its own, and nothing else");
            let lost = (stats.dropped(DropReason::Authentication), stats.dropped(DropReason::Replay));
            assert_eq!(lost, (0, 0), "lane {}", bulk.lane);
        }
    }
}

/// wire.md W3.16: one that falls silent, or is closed, ends alone, and comes back alone.
#[test]
fn the_death_of_one_leaves_the_other_alone() {
    for dead in [0, 1] {
        let alive = 1 - dead;
        let mut scene = Scene::new();
        let mut bulks = [0, 1].map(|lane| Bulk::begin(&mut scene, lane));
        scene.run(50);
        scene.dead = Some(dead);
        let started = bulks[alive].read;
        bulks[dead].go_on(&mut scene);
        for _ in 0..1500 {
            bulks[alive].go_on(&mut scene);
            scene.run(1);
        }
        scene.run(12_000);
        let down = |(worker, event): &(usize, Event), node: usize| {
            matches!(event, Event::TunnelDown { reason: CloseReason::TimedOut, .. }) && *worker == owner(node, dead)
        };
        for node in 0..2 {
            let told = &scene.nodes[node].events;
            assert!(told.iter().any(|event| down(event, node)), "{told:?}");
            assert_eq!((scene.is_up(node, dead), scene.is_up(node, alive)), (false, true), "node {node}");
        }
        assert!(bulks[alive].read > started + 1_000_000);

        scene.dead = None;
        scene.connected(dead);
        let (now, (endpoint, id)) = (scene.now, scene.lane(0, alive));
        endpoint.close_tunnel(now, id, Code::NoError);
        scene.run(50);
        for node in 0..2 {
            assert_eq!((scene.is_up(node, dead), scene.is_up(node, alive)), (true, false), "node {node}");
        }
    }
}

/// wire.md W3.5, W3.16: an initiation is for the lane that it was made for, whichever came last; timestamps are a lane's own.
#[test]
fn an_initiation_is_of_one_lane_and_one_time() {
    let mut scene = Scene::new();
    let mut initiations = Vec::new();
    // That of lane 1 is the older one, and comes last.
    for lane in [1, 0] {
        scene.now += Duration::from_millis(1);
        let (now, (endpoint, id)) = (scene.now, scene.lane(0, lane));
        endpoint.open_tunnel(now, id);
        initiations.extend(scene.sent(0, owner(0, lane)));
    }
    let [of_1, of_0] = &initiations[..] else { panic!("{} initiations", initiations.len()) };
    assert_eq!(scene.deliver(1, of_0), Received::Handshake);
    assert_eq!(scene.deliver(1, of_0), Received::Dropped(DropReason::StaleTimestamp));
    scene.run(100);
    assert_eq!([0, 1].map(|lane| scene.is_up(1, lane)), [true, false], "as node 0 has not sent it again yet");
    assert_eq!(scene.deliver(1, of_1), Received::Handshake);
    scene.run(100);
    assert_eq!([0, 1].map(|lane| scene.is_up(1, lane)), [true, true]);
    for initiation in [of_0, of_1] {
        assert_eq!(scene.deliver(1, initiation), Received::Dropped(DropReason::StaleTimestamp));
    }
    scene.run(100);
    assert_eq!([0, 1].map(|lane| scene.lane(1, lane).0.stats().handshakes), [1, 1]);
}

/// wire.md W3.16, W3.4: lanes are few, those that were not added are nobody's, and a peer's configuration is all its lanes'.
#[test]
fn lanes_are_added_at_both_ends() {
    let mut scene = Scene::new();
    let now = scene.now;
    let [first, second] = scene.nodes[0].lanes;
    let endpoint = &mut scene.nodes[0].workers[0];
    assert_eq!((endpoint.add_lane(first, 0), endpoint.add_lane(first, 1)), (Some(first), Some(second)));
    assert_eq!(endpoint.add_lane(second, 1), Some(second));
    let third = endpoint.add_lane(first, MAX_LANES - 1).unwrap();
    assert!(third != first && third != second);
    assert_eq!(endpoint.add_lane(first, MAX_LANES), None);

    endpoint.add_peer(PeerConfig { endpoint: None, ..peer(2) });
    assert_eq!(endpoint.connect(now, third, 7), Err(OperationError::Closed(CloseReason::NoEndpoint)));
    endpoint.add_peer(peer(2));
    endpoint.connect(now, first, 7).unwrap();
    endpoint.connect(now, third, 7).unwrap();
    scene.run(1000);
    assert!(scene.nodes[0].workers[0].is_up(first) && !scene.nodes[0].workers[0].is_up(third));
    assert!(scene.nodes[1].workers[0].stats().dropped(DropReason::UnknownPeer) > 0);
}
