//! Hosts, the paths between them, and the loop that goes from one thing that happens to the next.

mod host;
mod rest;
mod setup;
mod wire;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pilot_common::wire::PacketType;
use pilot_engine::{Ecn, Instant};

use crate::link::{Attachment, Packet, Place};
use crate::logs::Watch;
use crate::netem::{Conditions, Counters};
use crate::plan::Plan;
use crate::random::Random;
pub use host::Host;
use host::{BULK_PORT, Pass, place};
pub use setup::{Bulk, Clock, Cost, HostSetup, Rekey, Setup};

/// How much sooner what a relay sends arrives than what it is a copy of would at the least.
const RELAY_DELAY: Duration = Duration::from_micros(1);

/// Passes that a host may make at one instant. Far more than any backlog needs: a host that makes them does not end.
const PASSES_MAX: u32 = 100_000;

/// Somebody on the way who sends on, from an address of their own, what a host sends, and is faster than its path.
#[derive(Clone, Copy, Debug)]
struct Relay {
    /// Whose packets.
    host: usize,
    address: SocketAddr,
    /// Bytes that it sent, and that came to it.
    sent: u64,
    came: u64,
}

/// A packet on its way, by arrival and then in the order of sending.
type Flying = Reverse<(Instant, u64, Packet)>;

/// See the module's head.
pub struct World<A: Attachment> {
    /// The hosts.
    pub hosts: Vec<Host<A>>,
    setup: Setup,
    random: Random,
    now: Instant,
    in_flight: BinaryHeap<Flying>,
    sent: u64,
    traffic: Traffic,
    relay: Option<Relay>,
    /// Which hosts have asked which who they are.
    asked: BTreeSet<(usize, usize)>,
    logs: Watch,
}

/// Packets that were sent since it was reset.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    packets: u64,
    /// Bytes of the largest.
    largest: usize,
}

impl<A: Attachment> World<A> {
    /// Two hosts on good paths, of which the first opens a connection to the second.
    pub fn new(seed: u64, plan: Plan) -> Self {
        Self::of(Setup::pair(seed, plan))
    }

    /// The same, of which some may have a second port. Only the link in memory takes it.
    pub fn with_bulk(seed: u64, plan: Plan, bulk: [Bulk; 2]) -> Self {
        let hosts = bulk.map(|bulk| HostSetup { bulk, ..HostSetup::default() }).to_vec();
        Self::of(Setup { hosts, ..Setup::pair(seed, plan) })
    }

    /// Any hosts, on good paths.
    pub fn of(setup: Setup) -> Self {
        let logs = Watch::begin();
        let mut random = Random::new(setup.seed);
        let places: Vec<Place> = (0..setup.hosts.len()).map(place).collect();
        let hosts = places.iter().map(|own| Host::new(own, &places, &setup, &mut random)).collect();
        Self {
            hosts,
            setup,
            random,
            now: Instant::from_nanos(1),
            in_flight: BinaryHeap::new(),
            sent: 0,
            traffic: Traffic::default(),
            relay: None,
            asked: BTreeSet::new(),
            logs,
        }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Other conditions on all paths.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        let paths = self.hosts.iter_mut().flat_map(|host| host.uplinks.iter_mut().chain(&mut host.bulk_uplinks));
        paths.for_each(|path| path.set_conditions(conditions));
    }

    /// Other conditions on the bulk paths alone.
    pub fn set_bulk_conditions(&mut self, conditions: Conditions) {
        let paths = self.hosts.iter_mut().flat_map(|host| &mut host.bulk_uplinks);
        paths.for_each(|path| path.set_conditions(conditions));
    }

    /// Other conditions on all paths from one host to another.
    pub fn set_conditions_between(&mut self, from: usize, to: usize, conditions: Conditions) {
        let host = &mut self.hosts[from];
        host.uplinks[to].set_conditions(conditions);
        host.bulk_uplinks[to].set_conditions(conditions);
    }

    /// A host is seen at another address, or behind other ports, from now on. What is sent to where it was is lost.
    pub fn rebind(&mut self, host: usize, ip: IpAddr, ports_higher: u16) {
        self.hosts[host].seen_at = (ip, ports_higher);
    }

    /// A host is seen where it was at first.
    pub fn rebind_home(&mut self, host: usize) {
        self.rebind(host, self.hosts[host].place.address.ip(), 0);
    }

    /// Somebody sends on, from an address that is not the host's, whatever it sends; `None`: not any more. What came there
    /// goes nowhere.
    pub fn relay(&mut self, of: Option<(usize, SocketAddr)>) {
        self.relay = of.map(|(host, address)| Relay { host, address, sent: 0, came: 0 });
    }

    /// A host asks who is where another is at first; with `wanted`, only whether it is that one.
    pub fn introduce(&mut self, from: usize, whom: usize, wanted: Option<usize>) {
        let now = self.now;
        self.hosts[from].introduce(now, whom, wanted);
        self.asked.insert((from, whom));
    }

    /// Bytes that the relay has sent, and that came to it.
    pub fn relayed(&self) -> Option<(u64, u64)> {
        self.relay.map(|relay| (relay.sent, relay.came))
    }

    /// What the paths from a host did.
    pub fn netem(&self, host: usize) -> Counters {
        self.hosts[host].netem()
    }

    /// A host's process is killed and started again: a new engine, link and application, and nothing remembered.
    pub fn restart(&mut self, index: usize) {
        let places: Vec<Place> = self.hosts.iter().map(|host| host.place).collect();
        self.hosts[index].restart(&places, &self.setup, self.now, &mut self.random);
    }

    /// Lets `time` pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Lets time pass until `done`, at most `limit`. Whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until = self.now + limit;
        while !done(self) {
            if !self.step(until) {
                return done(self);
            }
        }
        true
    }

    /// Whether all have read all there is.
    pub fn is_done(&self) -> bool {
        self.hosts.iter().all(|host| host.oracle.is_done(&host.endpoint))
    }

    /// Lets the hosts do what they can now, and goes to the next thing that happens; `false` if that is after `until`.
    fn step(&mut self, until: Instant) -> bool {
        (0..self.hosts.len()).for_each(|index| self.run_host(index));
        let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
        let passes = self.hosts.iter().filter_map(Host::next_pass);
        let Some(next) = passes.chain(arrival).min().filter(|next| *next <= until) else { return false };
        self.now = self.now.max(next);
        while self.in_flight.peek().is_some_and(|Reverse((at, ..))| *at <= self.now)
            && let Some(Reverse((_, _, packet))) = self.in_flight.pop()
        {
            self.deliver(packet);
        }
        true
    }

    /// The passes that a host makes now, unless it is still busy.
    fn run_host(&mut self, index: usize) {
        for _ in 0..PASSES_MAX {
            if self.hosts[index].next_pass().is_none_or(|at| at > self.now) {
                return;
            }
            let Pass { done, sent } = self.hosts[index].pass(self.now);
            sent.into_iter().for_each(|packet| self.send(index, done, packet));
        }
        unreachable!("host {index} does not come to rest at {:?}", self.now);
    }

    /// A packet leaves a host.
    fn send(&mut self, from: usize, at: Instant, packet: Packet) {
        let first_byte = packet.datagram().first().copied().unwrap_or_default();
        let Packet { source, destination, ecn, head, bytes } = packet;
        let is_bulk = [source, destination].iter().any(|end| end.port() == BULK_PORT);
        let source = self.hosts[from].seen_as(source);
        self.traffic.packets += 1;
        // A key may come to its end at rest: handshakes are bounded by the number of packets alone.
        if PacketType::from_first_byte(first_byte) == Some(PacketType::Data) {
            self.traffic.largest = self.traffic.largest.max(bytes.len());
        }
        if let Some(relay) = self.relay.as_mut().filter(|relay| relay.host == from) {
            relay.sent += bytes.len() as u64;
            self.sent += 1;
            let copy = Packet { source: relay.address, destination, ecn, head: head.clone(), bytes: bytes.clone() };
            self.in_flight.push(Reverse((at + RELAY_DELAY, self.sent, copy)));
        }
        let to = self.hosts.iter().position(|host| host.own(destination).is_some()).unwrap_or(from);
        let host = &mut self.hosts[from];
        let uplink = if is_bulk { &mut host.bulk_uplinks[to] } else { &mut host.uplinks[to] };
        uplink.send(at, ecn, bytes, |arrival, ecn, bytes| {
            self.sent += 1;
            let packet = Packet { source, destination, ecn, head: head.clone(), bytes };
            self.in_flight.push(Reverse((arrival, self.sent, packet)));
        });
    }

    /// Somebody sends a bare datagram to a host's address, saying to be at `source`; it arrives at once.
    pub fn forge(&mut self, source: SocketAddr, to: usize, bytes: Vec<u8>) {
        let destination = self.hosts[to].place.address;
        self.deliver(Packet { source, destination, ecn: Ecn::NotEct, head: Vec::new(), bytes });
    }

    /// Brings a packet to the host it is for; one that is for nobody goes nowhere.
    fn deliver(&mut self, packet: Packet) {
        let inside = |host: &mut Host<A>| host.own(packet.destination).map(|own| (host.place.index, own));
        if let Some((index, destination)) = self.hosts.iter_mut().find_map(inside) {
            self.hosts[index].deliver(self.now, Packet { destination, ..packet });
        } else if let Some(relay) = self.relay.as_mut().filter(|relay| relay.address == packet.destination) {
            relay.came += packet.bytes.len() as u64;
        }
    }
}

/// A simulation that fails says how to see it again.
impl<A: Attachment> Drop for World<A> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation at {:?} of {:?}", self.now.since(Instant::ORIGIN), self.setup);
            for host in &self.hosts {
                eprintln!("  {:?}: {:?}", host.place.address, host.netem());
                eprintln!("    received {:?}, refused {}", host.opened, host.refused());
                eprintln!("    {:?}", host.oracle);
            }
            eprintln!("{}", self.logs.text());
        }
    }
}
