//! Hosts, the paths between them, and the loop that goes from one thing that happens to the next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::limits::KEEP_ALIVE;
use pilot_engine::{BulkUse, Config, DropReason, Endpoint, Instant, PeerConfig, PeerId};
use pilot_user::link::Link as _;
use pilot_user::worker::handoff::Handoff;
use pilot_user::worker::{Opened, turn};

use crate::link::{Attachment, Packet, Place};
use crate::logs::Watch;
use crate::netem::{Conditions, Netem};
use crate::oracle::{Oracle, Plan};
use crate::random::Random;

/// The overlay port's UDP port.
const UDP_PORT: u16 = 4242;

/// A host's second UDP port, if it has one.
const BULK_PORT: u16 = 4343;

/// How much sooner what a relay sends arrives than what it is a copy of would at the least.
const RELAY_DELAY: Duration = Duration::from_micros(1);

/// Unix time at the origin of virtual time.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// Passes that a host may make at one instant. Far more than any backlog needs: a host that makes them does not end.
const PASSES_MAX: u32 = 100_000;

/// How long [`World::finish`] lets a transfer go on after the last fault. The longest timer of the engine is 90 s; a
/// connection that has to be made anew and all of its data fit several times.
const FINISH_WITHIN: Duration = Duration::from_secs(300);

/// How long it is watched that nothing but keep-alives is sent.
const QUIET: Duration = Duration::from_secs(60);

/// Bytes of a packet that only keeps alive or acks: 28 of IP's and UDP's headers, 25 round our frames, and the rest for a PING
/// and an ACK, which after losses has up to 32 ranges of four bytes or so each.
const KEEP_ALIVE_BYTES: usize = 256;

/// Number of hosts. Host 0 opens the connection, to host 1.
const HOSTS: usize = 2;

/// Whether a host has a second port, and sends over the bulk path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bulk {
    /// Whether it has the port.
    pub port: bool,
    /// Whether it sends.
    pub usage: BulkUse,
}

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

/// One host.
pub struct Host<A> {
    place: Place,
    bulk: Bulk,
    /// Where the network sees it: at this address, with ports so much higher than its own.
    seen_at: (IpAddr, u16),
    peer: PeerId,
    /// Its engine.
    pub endpoint: Endpoint,
    /// Its application.
    pub oracle: Oracle,
    attachment: A,
    handoff: Handoff,
    opened: Opened,
    uplink: Netem,
    /// The bulk path's, which has its own fate.
    bulk_uplink: Netem,
    /// When it must be looked at, if nothing arrives before.
    deadline: Option<Instant>,
    delivered: u64,
    refused: u64,
}

impl<A> Host<A> {
    /// The other host, to this one's engine.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where the network sees one of the host's own addresses.
    fn seen_as(&self, own: SocketAddr) -> SocketAddr {
        let (ip, higher) = self.seen_at;
        if own.ip() == self.place.address.ip() { SocketAddr::new(ip, own.port().wrapping_add(higher)) } else { own }
    }

    /// Which of the host's own addresses the network sees there.
    fn own(&self, seen: SocketAddr) -> Option<SocketAddr> {
        let second = SocketAddr::new(self.place.address.ip(), BULK_PORT);
        let own = [Some(self.place.address), Some(second).filter(|_| self.bulk.port)];
        own.into_iter().flatten().find(|own| self.seen_as(*own) == seen)
    }

    /// Packets that came to the host and were dropped before its worker saw them: by the device, the XDP program or for
    /// want of room.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// Changes the configuration of the host of a number.
type Adjust = Box<dyn Fn(usize, &mut Config)>;

/// A packet on its way, by arrival and then in the order of sending.
type Flying = Reverse<(Instant, u64, Packet)>;

/// See the module's head.
pub struct World<A: Attachment> {
    /// The hosts.
    pub hosts: Vec<Host<A>>,
    seed: u64,
    plan: Plan,
    adjust: Adjust,
    random: Random,
    now: Instant,
    in_flight: BinaryHeap<Flying>,
    sent: u64,
    /// Packets, and of those the ones larger than [`KEEP_ALIVE_BYTES`], since this was reset.
    recent: [u64; 2],
    relay: Option<Relay>,
    logs: Watch,
}

impl<A: Attachment> World<A> {
    /// Two hosts on good paths, of which the first opens a connection to the second.
    pub fn new(seed: u64, plan: Plan) -> Self {
        Self::with_bulk(seed, plan, [Bulk::default(); HOSTS])
    }

    /// The same, of which some may have a second port. Only the link in memory takes it.
    pub fn with_bulk(seed: u64, plan: Plan, bulk: [Bulk; HOSTS]) -> Self {
        Self::with(seed, plan, bulk, |_, _| {})
    }

    /// The same, with other configurations; `adjust` is told which host's, also when the host starts again.
    pub fn with(seed: u64, plan: Plan, bulk: [Bulk; HOSTS], adjust: impl Fn(usize, &mut Config) + 'static) -> Self {
        let logs = Watch::begin();
        let mut random = Random::new(seed);
        let now = Instant::from_nanos(1);
        let places: Vec<Place> = (0..HOSTS).map(place).collect();
        let hosts = places.iter().map(|own| {
            let uplink = Netem::new(Conditions::GOOD, random.fork());
            host(own, &places, plan, bulk[own.index], uplink, &adjust, &mut random)
        });
        let hosts = hosts.collect();
        let adjust = Box::new(adjust);
        let in_flight = BinaryHeap::new();
        Self { hosts, seed, plan, adjust, random, now, in_flight, sent: 0, recent: [0; 2], relay: None, logs }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Other conditions on all paths.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.hosts.iter_mut().for_each(|host| host.uplink.set_conditions(conditions));
        self.set_bulk_conditions(conditions);
    }

    /// Other conditions on the bulk paths alone.
    pub fn set_bulk_conditions(&mut self, conditions: Conditions) {
        self.hosts.iter_mut().for_each(|host| host.bulk_uplink.set_conditions(conditions));
    }

    /// A host is seen at another address, or behind other ports, from now on. What is sent to where it was is lost.
    pub fn rebind(&mut self, host: usize, ip: IpAddr, ports_higher: u16) {
        self.hosts[host].seen_at = (ip, ports_higher);
    }

    /// Somebody sends on, from an address that is not the host's, whatever it sends; `None`: not any more. What came there
    /// goes nowhere.
    pub fn relay(&mut self, of: Option<(usize, SocketAddr)>) {
        self.relay = of.map(|(host, address)| Relay { host, address, sent: 0, came: 0 });
    }

    /// Bytes that the relay has sent, and that came to it.
    pub fn relayed(&self) -> Option<(u64, u64)> {
        self.relay.map(|relay| (relay.sent, relay.came))
    }

    /// What the path from a host did.
    pub fn netem(&self, host: usize) -> crate::netem::Counters {
        self.hosts[host].uplink.counters()
    }

    /// The host's process is killed and started again: a new engine, link and application, and nothing remembered.
    pub fn restart(&mut self, index: usize) {
        let places: Vec<Place> = self.hosts.iter().map(|host| host.place).collect();
        let uplink = Netem::new(Conditions::GOOD, self.random.fork());
        let host = &mut self.hosts[index];
        let (seen_at, uplink) = (host.seen_at, std::mem::replace(&mut host.uplink, uplink));
        *host = self::host(&host.place, &places, self.plan, host.bulk, uplink, &self.adjust, &mut self.random);
        host.seen_at = seen_at;
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

    /// Whether both ends have read all there is.
    pub fn is_done(&self) -> bool {
        self.hosts.iter().all(|host| host.oracle.is_done(&host.endpoint))
    }

    /// The end of every simulation: faults stop; then everything arrives; then there is quiet, nothing is missing and
    /// nothing worse than INFO was logged.
    pub fn finish(mut self) {
        self.set_conditions(Conditions::GOOD);
        assert!(self.run_until(FINISH_WITHIN, Self::is_done), "not finished {FINISH_WITHIN:?} after the last fault");
        self.check_quiet();
        for host in &mut self.hosts {
            let Host { endpoint, attachment, opened, .. } = host;
            let came = opened.xdp + opened.udp + opened.memory;
            assert_eq!(came + opened.dropped, attachment.received(), "datagrams opened, dropped; and received");
            // A crossing initiation is authentic, and counted with the drops because it gets no answer.
            let reasons = DropReason::ALL.iter().filter(|(reason, _)| *reason != DropReason::Crossing);
            let dropped: u64 = reasons.map(|(reason, _)| endpoint.stats().dropped(*reason)).sum();
            assert_eq!(dropped, opened.dropped, "drops with a reason; and all");
            assert_eq!(host.delivered, attachment.received(), "packets put into the link; and received from it");
            assert_eq!(attachment.leaked(), 0, "room for packets that did not come back");
        }
        // With the hosts, because a umem that misses chunks says so when it is dropped.
        self.hosts.clear();
        assert_eq!(self.logs.text(), "", "was logged");
    }

    /// wire.md W5.15, W6.2: at rest, only keep-alives and their acks.
    fn check_quiet(&mut self) {
        // What is on its way, path MTU probes, and the keep-alive that tells of a host that moved in silence.
        self.run(2 * KEEP_ALIVE);
        self.recent = [0; 2];
        self.run(QUIET);
        let keep_alives = (QUIET.as_nanos() / KEEP_ALIVE.as_nanos()) as u64 + 1;
        let [packets, large] = self.recent;
        // Each end's, and the ack of each.
        assert!(packets <= HOSTS as u64 * keep_alives * 2, "{packets} packets within {QUIET:?} of rest");
        assert_eq!(large, 0, "packets of more than {KEEP_ALIVE_BYTES} bytes at rest");
        assert!(packets >= keep_alives - 1, "only {packets} packets within {QUIET:?}: no keep-alives");
        assert!(self.is_done(), "the connection is still there");
    }

    /// Lets the hosts do what they can now, and goes to the next thing that happens; `false` if that is after `until`.
    fn step(&mut self, until: Instant) -> bool {
        for from in 0..self.hosts.len() {
            self.run_host(from);
        }
        let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
        let deadlines = self.hosts.iter().filter_map(|host| host.deadline);
        let Some(next) = deadlines.chain(arrival).min().filter(|next| *next <= until) else { return false };
        self.now = self.now.max(next);
        while self.in_flight.peek().is_some_and(|Reverse((at, ..))| *at <= self.now)
            && let Some(Reverse((_, _, packet))) = self.in_flight.pop()
        {
            self.deliver(&packet);
        }
        true
    }

    fn run_host(&mut self, index: usize) {
        for _ in 0..PASSES_MAX {
            let host = &mut self.hosts[index];
            let (endpoint, link) = (&mut host.endpoint, host.attachment.link());
            let turn = turn(endpoint, link, &mut host.oracle, &mut host.handoff, self.now, &mut host.opened)
                .expect("a link in memory has no errors");
            host.deadline = turn.deadline;
            for packet in host.attachment.take_sent() {
                let Packet { source, destination, ecn, head, bytes } = packet;
                let is_bulk = [source, destination].iter().any(|end| end.port() == BULK_PORT);
                let source = host.seen_as(source);
                self.recent[0] += 1;
                self.recent[1] += u64::from(bytes.len() > KEEP_ALIVE_BYTES);
                if let Some(relay) = self.relay.as_mut().filter(|relay| relay.host == index) {
                    relay.sent += bytes.len() as u64;
                    self.sent += 1;
                    let copy =
                        Packet { source: relay.address, destination, ecn, head: head.clone(), bytes: bytes.clone() };
                    self.in_flight.push(Reverse((self.now + RELAY_DELAY, self.sent, copy)));
                }
                let uplink = if is_bulk { &mut host.bulk_uplink } else { &mut host.uplink };
                uplink.send(self.now, ecn, bytes, |at, ecn, bytes| {
                    self.sent += 1;
                    let packet = Packet { source, destination, ecn, head: head.clone(), bytes };
                    self.in_flight.push(Reverse((at, self.sent, packet)));
                });
            }
            if !turn.progress {
                // A deadline that is past and finds nothing to do would stop time.
                assert!(turn.deadline.is_none_or(|at| at > self.now), "host {index} has a deadline that nothing meets");
                return;
            }
        }
        unreachable!("host {index} does not come to rest at {:?}", self.now);
    }

    /// Brings a packet to the host it is for; one that is for nobody goes nowhere.
    fn deliver(&mut self, packet: &Packet) {
        let inside = |host: &mut Host<A>| host.own(packet.destination).map(|own| (host.place.index, own));
        if let Some((index, destination)) = self.hosts.iter_mut().find_map(inside) {
            let host = &mut self.hosts[index];
            let taken = host.attachment.deliver(&Packet { destination, ..packet.clone() });
            *if taken { &mut host.delivered } else { &mut host.refused } += 1;
        } else if let Some(relay) = self.relay.as_mut().filter(|relay| relay.address == packet.destination) {
            relay.came += packet.bytes.len() as u64;
        }
    }
}

/// A simulation that fails says how to see it again.
impl<A: Attachment> Drop for World<A> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation with seed {} at {:?}, {:?}", self.seed, self.now.since(Instant::ORIGIN), self.plan);
            for host in &self.hosts {
                eprintln!("  {:?}: {:?}", host.place.address, host.uplink.counters());
                eprintln!("    received {:?}, refused {}", host.opened, host.refused);
                eprintln!("    {:?}", host.oracle);
            }
            eprintln!("{}", self.logs.text());
        }
    }
}

fn place(index: usize) -> Place {
    let number = index as u8 + 1;
    let address = SocketAddr::from(([10, 0, 0, number], UDP_PORT));
    Place { address, mac: [2, 0, 0, 0, 0, number], index }
}

fn identity(index: usize) -> Identity {
    let number = index as u8 + 1;
    Identity::from_secrets([number; 32], [number + 100; 32]).expect("any bytes are usable as these keys")
}

fn overlay(index: usize) -> OverlayAddress {
    OverlayAddress { network: 0, node: index as u32 + 1 }
}

fn host<A: Attachment>(
    own: &Place,
    places: &[Place],
    plan: Plan,
    bulk: Bulk,
    uplink: Netem,
    adjust: &dyn Fn(usize, &mut Config),
    random: &mut Random,
) -> Host<A> {
    let mut attachment = A::open(own, places).expect("memory and a few descriptors");
    let mut config = Config::new(identity(own.index), overlay(own.index), random.bytes(), EPOCH);
    config.max_datagram = attachment.link().max_payload() as u16;
    (config.bulk_port, config.bulk) = (bulk.port.then_some(BULK_PORT), bulk.usage);
    adjust(own.index, &mut config);
    let mut endpoint = Endpoint::new(config, random.bytes());
    let other = &places[HOSTS - 1 - own.index];
    let peer = endpoint.add_peer(PeerConfig {
        key: identity(other.index).public_key(),
        address: overlay(other.index),
        endpoint: Some(other.address),
    });
    Host {
        place: *own,
        bulk,
        seen_at: (own.address.ip(), 0),
        peer,
        endpoint,
        oracle: Oracle::new(plan, (own.index == 0).then_some(peer)),
        attachment,
        handoff: Handoff::alone(),
        opened: Opened::default(),
        uplink,
        bulk_uplink: Netem::new(Conditions::GOOD, random.fork()),
        deadline: None,
        delivered: 0,
        refused: 0,
    }
}
