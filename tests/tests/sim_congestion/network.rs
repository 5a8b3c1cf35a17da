//! Pairs of endpoints that send through one bottleneck, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{
    Config, ConnectionHandle, ControllerKind, Ecn, Endpoint, Event, Instant, PeerConfig, PeerId, Read, StreamId,
    TunnelStats,
};
use pilot_tests::netem::{Bottleneck, Conditions, Counters, Netem, PerMille};
use pilot_tests::random::Random;
use pilot_tests::world::Clock;

/// Connections of a flow, and streams of each: 16 MiB of credit, more than any path here holds.
const CONNECTIONS: usize = 8;
const STREAMS: usize = 2;
/// How much later than the one before a flow begins.
const STAGGER: Duration = Duration::from_millis(3);
const MTU: usize = 1472;

/// What all flows share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) bits_per_second: u64,
    pub(crate) rtt: Duration,
    pub(crate) queue: Duration,
    pub(crate) mark_after: Option<Duration>,
    /// Of data; acks are not lost.
    pub(crate) loss_per_mille: u16,
    /// Packets that the receiver's ring absorbs at once.
    pub(crate) packet_credit: u32,
}

impl Path {
    /// What data goes through.
    fn data(self) -> Conditions {
        let Self { bits_per_second, queue, mark_after, loss_per_mille, .. } = self;
        let bottleneck = Some(Bottleneck { bits_per_second, queue, mark_after });
        Conditions { loss: PerMille(loss_per_mille), bottleneck, ..self.empty() }
    }

    /// What takes as long, and has no bottleneck.
    fn empty(self) -> Conditions {
        Conditions { delay: self.rtt / 2, ..Conditions::GOOD }
    }
}

/// A sender and a receiver.
struct Flow {
    ends: [Endpoint; 2],
    peers: [PeerId; 2],
    begins: Option<Instant>,
    /// Which ends write.
    writes: [bool; 2],
    clocks: [Clock; 2],
    /// Bytes that each end has read.
    received: [u64; 2],
    /// When bytes were read last, and the longest time between two such.
    last_read: Instant,
    longest_stall: Duration,
    /// When each datagram of the last millisecond arrived.
    recent: VecDeque<Instant>,
}

/// By arrival, then in the order of sending: flow, end that it goes to.
type Flying = Reverse<(Instant, u64, usize, usize, Ecn, Vec<u8>)>;

pub(crate) struct Network {
    flows: Vec<Flow>,
    data: Netem,
    acks: Netem,
    now: Instant,
    in_flight: BinaryHeap<Flying>,
    sent: u64,
    text: Vec<u8>,
    most_in_flight: u64,
    most_in_a_millisecond: usize,
}

fn address(end: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, end as u8 + 1], 4242))
}

fn identity(n: u8) -> Identity {
    Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
}

fn flow(number: usize, controller: ControllerKind, packet_credit: u32) -> Flow {
    let ends = [0, 1].map(|end: u8| {
        let overlay = OverlayAddress { network: 0, node: u32::from(end) };
        let mut config = Config::new(identity(end + 1), overlay, [end; 16], Duration::from_secs(1 << 30));
        config.max_datagram = MTU as u16;
        (config.controller, config.packet_credit) = (controller, packet_credit);
        let mut endpoint = Endpoint::new(config, [end + 2 * number as u8; 32]);
        let peer = endpoint.add_peer(PeerConfig {
            key: identity(2 - end).public_key(),
            address: overlay,
            endpoint: Some(address(1 - usize::from(end))),
        });
        (endpoint, peer)
    });
    let [(a, to_b), (b, to_a)] = ends;
    let begins = Some(Instant::from_nanos(1) + STAGGER * number as u32);
    Flow {
        ends: [a, b],
        peers: [to_b, to_a],
        begins,
        writes: [true, false],
        clocks: [Clock::default(); 2],
        received: [0; 2],
        last_read: Instant::ORIGIN,
        longest_stall: Duration::ZERO,
        recent: VecDeque::new(),
    }
}

impl Network {
    /// A flow for each controller, all through one bottleneck.
    pub(crate) fn new(seed: u64, path: Path, controllers: &[ControllerKind]) -> Self {
        let mut random = Random::new(seed);
        let flow = |(number, controller): (usize, &ControllerKind)| flow(number, *controller, path.packet_credit);
        Self {
            flows: controllers.iter().enumerate().map(flow).collect(),
            data: Netem::new(path.data(), random.fork()),
            acks: Netem::new(path.empty(), random.fork()),
            now: Instant::from_nanos(1),
            in_flight: BinaryHeap::new(),
            sent: 0,
            text: vec![7; 64 << 10],
            most_in_flight: 0,
            most_in_a_millisecond: 0,
        }
    }

    /// One tunnel, both of whose ends write, through a bottleneck in each direction.
    pub(crate) fn both_ways(seed: u64, path: Path, controller: ControllerKind) -> Self {
        let mut network = Self::new(seed, path, &[controller]);
        network.flows[0].writes = [true; 2];
        network.acks.set_conditions(path.data());
        network
    }

    /// The clock of the first flow's receiver goes so much faster than the sender's, in millionths.
    pub(crate) fn set_receiver_faster(&mut self, ppm: i32) {
        self.flows[0].clocks[1].faster_ppm = ppm;
    }

    /// Bytes that a flow's receiver has read.
    pub(crate) fn received(&self, flow: usize) -> u64 {
        self.flows[flow].received[1]
    }

    /// Bytes that the ends of the first flow have read.
    pub(crate) fn received_by_both(&self) -> [u64; 2] {
        self.flows[0].received
    }

    /// The longest time for which a flow's receiver read nothing, since this was last asked.
    pub(crate) fn take_longest_stall(&mut self, flow: usize) -> Duration {
        let (now, flow) = (self.now, &mut self.flows[flow]);
        std::mem::take(&mut flow.longest_stall).max(now.since(std::mem::replace(&mut flow.last_read, now)))
    }

    /// The sender's.
    pub(crate) fn stats(&self, flow: usize) -> TunnelStats {
        let flow = &self.flows[flow];
        flow.ends[0].tunnel_stats(flow.peers[0]).unwrap()
    }

    pub(crate) fn bottleneck(&self) -> Counters {
        self.data.counters()
    }

    /// Full datagrams, of any flow's sender at any time.
    pub(crate) fn most_in_flight(&self) -> u64 {
        self.most_in_flight
    }

    /// Datagrams that arrived at any flow's receiver.
    pub(crate) fn most_in_a_millisecond(&self) -> usize {
        self.most_in_a_millisecond
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            (0..self.flows.len()).for_each(|flow| self.run_flow(flow));
            let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
            let timers = self.flows.iter_mut().flat_map(|flow| {
                let ends = flow.ends.iter_mut().zip(flow.clocks);
                ends.filter_map(|(end, clock)| Some(clock.world(end.poll_timeout()?))).chain(flow.begins)
            });
            let Some(next) = timers.chain(arrival).min().filter(|next| *next <= until) else { break };
            assert!(next > self.now, "a deadline that nothing meets");
            self.now = next;
            self.deliver();
            for flow in &mut self.flows {
                for (end, clock) in flow.ends.iter_mut().zip(flow.clocks) {
                    end.handle_timeout(clock.local(self.now));
                }
            }
        }
        self.now = until;
    }

    fn deliver(&mut self) {
        while self.in_flight.peek().is_some_and(|Reverse((at, ..))| *at <= self.now)
            && let Some(Reverse((_, _, number, to, ecn, bytes))) = self.in_flight.pop()
        {
            let flow = &mut self.flows[number];
            flow.ends[to].handle_datagram(flow.clocks[to].local(self.now), address(1 - to), address(to), ecn, &bytes);
            if to == 1 {
                flow.recent.push_back(self.now);
                while flow.recent.front().is_some_and(|at| *at + Duration::from_millis(1) < self.now) {
                    flow.recent.pop_front();
                }
                self.most_in_a_millisecond = self.most_in_a_millisecond.max(flow.recent.len());
            }
        }
    }

    fn run_flow(&mut self, number: usize) {
        let (flow, now) = (&mut self.flows[number], self.now);
        if flow.begins.take_if(|at| *at <= now).is_some() {
            for _ in 0..CONNECTIONS {
                flow.ends[0].connect(flow.clocks[0].local(now), flow.peers[0], 7).unwrap();
            }
        }
        for end in 0..2 {
            while let Some(event) = flow.ends[end].poll_event() {
                flow.on_event(end, now, event, &mut self.text);
            }
        }
        for from in 0..2 {
            let netem = if from == 0 { &mut self.data } else { &mut self.acks };
            let mut buffer = [0; MTU];
            let local = flow.clocks[from].local(now);
            while let Some(transmit) = flow.ends[from].poll_transmit(local, &mut buffer) {
                netem.send(now, transmit.ecn, buffer[..transmit.len].to_vec(), |at, ecn, bytes| {
                    self.sent += 1;
                    self.in_flight.push(Reverse((at, self.sent, number, 1 - from, ecn, bytes)));
                });
            }
        }
        let in_flight = flow.ends[0].tunnel_stats(flow.peers[0]).map_or(0, |stats| stats.bytes_in_flight);
        self.most_in_flight = self.most_in_flight.max(in_flight / MTU as u64);
    }
}

impl Flow {
    fn on_event(&mut self, end: usize, world: Instant, event: Event, text: &mut [u8]) {
        let now = self.clocks[end].local(world);
        match event {
            Event::Offered { connection, .. } => self.ends[end].accept(now, connection).unwrap(),
            Event::Connected { connection } => {
                for _ in 0..STREAMS {
                    let stream = self.ends[end].open_stream(now, connection).unwrap();
                    self.write(end, now, connection, stream, text);
                }
            }
            Event::StreamOpened { connection, stream } | Event::StreamWritable { connection, stream } => {
                self.write(end, now, connection, stream, text);
            }
            Event::StreamReadable { connection, stream } => {
                while let Ok(Read::Bytes(length)) = self.ends[end].read(now, connection, stream, text) {
                    self.received[end] += length as u64;
                    if end == 1 {
                        self.longest_stall = self.longest_stall.max(world.since(self.last_read));
                        self.last_read = world;
                    }
                }
            }
            Event::Closed { reason, .. } => unreachable!("{reason}"),
            _ => {}
        }
    }

    fn write(&mut self, end: usize, now: Instant, connection: ConnectionHandle, stream: StreamId, text: &[u8]) {
        while self.writes[end]
            && self.ends[end].write(now, connection, stream, text).is_ok_and(|written| written == text.len())
        {}
    }
}
