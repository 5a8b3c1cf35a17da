//! What a pass of a worker costs in steady state beside its work: no allocation, one kick at most. Two nodes run the production loop
//! over AF_XDP's rings in memory. A binary of its own: its allocations are counted.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use pilot_common::eth::Mac;
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{
    Config, ConnectionHandle, Endpoint, Event, Instant, OperationError, PeerConfig, PeerId, Read, StreamId,
};
use pilot_user::link::next_hops::{NextHop, NextHops};
use pilot_user::link::xdp::{Device, XdpLink};
use pilot_user::link::{Link as _, Trust};
use pilot_user::worker::handoff::Handoff;
use pilot_user::worker::{Application, Opened, turn};
use pilot_xsk::testing::{self, Kernel};

/// Bytes.
const MTU: usize = 1500;

/// Passes of both nodes until buffers have grown as far as they do, and the path's MTU is found.
const WARM_UP: u32 = 5_000;

/// Passes that are counted.
const COUNTED: u32 = 5_000;

/// From one pass to the next: as on a host that has little else to do.
const PASS: Duration = Duration::from_micros(2);

/// What the two applications do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// A message of 19 bytes there and back, one at a time.
    Echo,
    /// Messages of 19 bytes, as many as there is room for.
    Messages,
    /// A stream that never runs dry.
    Bulk,
}

/// The same at both ends; the first begins.
struct Agent {
    work: Work,
    begins: bool,
    connection: Option<ConnectionHandle>,
    stream: Option<StreamId>,
    buffer: Vec<u8>,
    /// Messages, or bytes, that arrived.
    received: u64,
}

const MESSAGE: &[u8; 19] = b"anomalies: 47 -> 48";
static PIECE: [u8; 64 << 10] = [7; 64 << 10];

impl Agent {
    fn write(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let Some(connection) = self.connection.filter(|_| self.begins) else { return };
        match self.work {
            Work::Echo => {}
            // Until it is full, which ends by itself.
            Work::Messages => while endpoint.send_message(now, connection, MESSAGE).is_ok() {},
            Work::Bulk => {
                let Some(stream) = self.stream else { return };
                match endpoint.write(now, connection, stream, &PIECE) {
                    Ok(_) | Err(OperationError::Blocked) => {}
                    Err(error) => unreachable!("in memory nothing is refused: {error}"),
                }
            }
        }
    }

    fn read(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        self.buffer.clear();
        while let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) {
            self.received += 1;
            if self.work == Work::Echo {
                endpoint.send_message(now, connection, &self.buffer).unwrap();
            }
            self.buffer.clear();
        }
    }
}

impl Application for Agent {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        match event {
            Event::Offered { connection, .. } => {
                self.connection = Some(connection);
                endpoint.accept(now, connection).unwrap();
            }
            Event::Connected { connection } => {
                self.connection = Some(connection);
                match self.work {
                    Work::Echo => endpoint.send_message(now, connection, MESSAGE).unwrap(),
                    Work::Messages => {}
                    Work::Bulk => self.stream = Some(endpoint.open_unidirectional(now, connection).unwrap()),
                }
            }
            Event::MessagesReadable { connection } => self.read(endpoint, now, connection),
            Event::StreamOpened { connection, stream } | Event::StreamReadable { connection, stream } => {
                self.buffer.resize(PIECE.len(), 0);
                while let Ok(Read::Bytes(length)) = endpoint.read(now, connection, stream, &mut self.buffer) {
                    self.received += length as u64;
                }
            }
            Event::Closed { reason, .. } => unreachable!("nobody closes: {reason}"),
            _ => {}
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.write(endpoint, now);
        false
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

struct Node {
    endpoint: Endpoint,
    link: XdpLink,
    kernel: Kernel,
    agent: Agent,
    handoff: Handoff,
    opened: Opened,
}

/// What the passes of a node did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cost {
    allocations: u64,
    /// Passes with more than one system call to send.
    kicked_twice: u64,
    /// Frames that were sent, and those of them for which the peer had no room.
    sent: u64,
    lost: u64,
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 4242))
}

fn mac(n: u8) -> Mac {
    [2, 0, 0, 0, 0, n]
}

impl Node {
    fn new(own: u8, other: u8, work: Work) -> (Self, PeerId) {
        let identity = |n: u8| Identity::from_secrets([n; 32], [n + 100; 32]).unwrap();
        let overlay = |n: u8| OverlayAddress { network: 0, node: n.into() };
        let mut config = Config::new(identity(own), overlay(own), [own; 16], Duration::from_secs(1 << 30));
        config.max_datagram = 1472;
        let mut endpoint = Endpoint::new(config, [own; 32]);
        let peer = endpoint.add_peer(PeerConfig {
            key: identity(other).public_key(),
            address: overlay(other),
            endpoint: Some(address(other)),
        });
        let (xsk, kernel) = testing::over_memory(&pilot_xsk::Options::for_mtu(MTU as u32)).unwrap();
        let device = Device { index: 1, mac: mac(own), mtu: MTU, local: address(own) };
        let mut link = XdpLink::new(xsk, device).unwrap();
        let hop = NextHop { interface: 1, vlan: None, source: None, mac: Some(mac(other)) };
        link.set_next_hops(Arc::new(NextHops::from([(address(other).ip(), hop)])));
        // The kernel has chunks to receive into before the other end sends.
        assert_eq!(link.recv(1, |_| Trust::Unproven).unwrap(), 0);
        let agent = Agent { work, begins: own == 1, connection: None, stream: None, buffer: Vec::new(), received: 0 };
        (Self { endpoint, link, kernel, agent, handoff: Handoff::alone(), opened: Opened::default() }, peer)
    }

    fn pass(&mut self, now: Instant, cost: &mut Cost) {
        let before = self.link.xsk().counters();
        let Self { endpoint, link, agent, handoff, opened, .. } = self;
        let allocated = measure(|| _ = turn(endpoint, link, agent, handoff, now, opened).unwrap());
        let after = self.link.xsk().counters();
        cost.allocations += allocated.count_total;
        cost.kicked_twice += u64::from(after.tx_kicks - before.tx_kicks > 1);
        cost.sent += after.sent - before.sent;
    }
}

/// Runs both nodes for so many passes.
fn run(nodes: &mut [Node; 2], now: &mut Instant, passes: u32) -> [Cost; 2] {
    let mut costs = [Cost::default(); 2];
    for _ in 0..passes {
        *now += PASS;
        for from in [0, 1] {
            nodes[from].pass(*now, &mut costs[from]);
            for frame in nodes[from].kernel.transmit_all() {
                costs[from].lost += u64::from(!nodes[1 - from].kernel.deliver(&frame));
            }
        }
    }
    costs
}

fn costs_nothing(work: Work) {
    let [(ours, peer), (theirs, _)] = [Node::new(1, 2, work), Node::new(2, 1, work)];
    let (mut nodes, mut now) = ([ours, theirs], Instant::from_nanos(1));
    nodes[0].endpoint.connect(now, peer, 7).unwrap();
    run(&mut nodes, &mut now, WARM_UP);
    let before = nodes[1].agent.received;
    let costs = run(&mut nodes, &mut now, COUNTED);
    let received = nodes[1].agent.received - before;
    println!("{work:?}: {received} arrived, {costs:?}");
    let least = if work == Work::Bulk { 1_000_000 } else { u64::from(COUNTED) / 4 };
    assert!(received > least, "{received}");
    for cost in costs {
        assert!(cost.sent > 0);
        assert_eq!((cost.allocations, cost.kicked_twice, cost.lost), (0, 0, 0), "{work:?}: {costs:?}");
    }
}

#[test]
fn an_echo_costs_no_allocation_and_one_kick() {
    costs_nothing(Work::Echo);
}

#[test]
fn messages_cost_no_allocation_and_one_kick() {
    costs_nothing(Work::Messages);
}

#[test]
fn bulk_costs_no_allocation_and_one_kick() {
    costs_nothing(Work::Bulk);
}
