//! One host: its engine and application, its link and clock, and the paths that begin at it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use pilot_common::wire::{Header, PacketType};
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::{Identity, PublicKey};
use pilot_engine::limits::MAX_CONNECTION_CREDIT_BYTES;
use pilot_engine::{Config, DropReason, Endpoint, Instant, PeerConfig, PeerId};
use pilot_user::link::Link as _;
use pilot_user::worker::handoff::Handoff;
use pilot_user::worker::{Opened, turn};

use super::setup::{HostSetup, Setup, Work};
use super::wire::Numbers;
use crate::introductions::Introductions;
use crate::link::{Attachment, Packet, Place};
use crate::netem::{Conditions, Counters, Netem};
use crate::oracle::Oracle;
use crate::random::Random;

/// The overlay port's UDP port.
const UDP_PORT: u16 = 4242;

/// A host's second UDP port, if it has one.
pub(super) const BULK_PORT: u16 = 4343;

/// Drops that come after Diffie-Hellman.
const DEAR_DROPS: [DropReason; 6] = [
    DropReason::HandshakeDecrypt,
    DropReason::Parameters,
    DropReason::Certificate,
    DropReason::UnknownPeer,
    DropReason::StaleTimestamp,
    DropReason::Crossing,
];

/// One host.
pub struct Host<A> {
    pub(super) place: Place,
    setup: HostSetup,
    /// Where the network sees it: at this address, with ports so much higher than its own.
    pub(super) seen_at: (IpAddr, u16),
    /// By their place among the hosts; its own is `None`.
    peers: Vec<Option<PeerId>>,
    /// Its engine.
    pub endpoint: Endpoint,
    /// Its application.
    pub oracle: Oracle,
    pub(super) attachment: A,
    handoff: Handoff,
    pub(super) opened: Opened,
    /// To each host, and in its own place to where nobody is.
    pub(super) uplinks: Vec<Netem>,
    /// The bulk paths', which have their own fate.
    pub(super) bulk_uplinks: Vec<Netem>,
    /// Something arrived, or there is more to do.
    pub(super) has_work: bool,
    /// When it must be looked at, if nothing arrives before.
    deadline: Option<Instant>,
    /// Until when it computes.
    busy_until: Instant,
    work: Work,
    handshakes_written: u64,
    numbers: Numbers,
    pub(super) delivered: u64,
    pub(super) refused: u64,
    waited: u64,
}

/// What a pass of a host's worker came to.
pub(super) struct Pass {
    /// When what it sent leaves.
    pub(super) done: Instant,
    pub(super) sent: Vec<Packet>,
}

impl<A: Attachment> Host<A> {
    pub(super) fn new(own: &Place, places: &[Place], setup: &Setup, random: &mut Random) -> Self {
        let mut of_paths = random.fork();
        let mut paths = || places.iter().map(|_| Netem::new(Conditions::GOOD, of_paths.fork())).collect();
        let (uplinks, bulk_uplinks) = (paths(), paths());
        Self::start(own, places, setup, uplinks, bulk_uplinks, Instant::ORIGIN, random)
    }

    /// The process is killed and started again: a new engine, link and application, and nothing remembered.
    pub(super) fn restart(&mut self, places: &[Place], setup: &Setup, now: Instant, random: &mut Random) {
        let (uplinks, bulk_uplinks) = (std::mem::take(&mut self.uplinks), std::mem::take(&mut self.bulk_uplinks));
        let seen_at = self.seen_at;
        *self = Self::start(&self.place, places, setup, uplinks, bulk_uplinks, now, random);
        self.seen_at = seen_at;
    }

    fn start(
        own: &Place,
        places: &[Place],
        setup: &Setup,
        uplinks: Vec<Netem>,
        bulk_uplinks: Vec<Netem>,
        now: Instant,
        random: &mut Random,
    ) -> Self {
        let index = own.index;
        let of_host = setup.hosts[index];
        let mut attachment = A::open(own, places).expect("memory and a few descriptors");
        let mut config = Config::new(identity(index), overlay(index), random.bytes(), of_host.clock.epoch());
        config.max_datagram = attachment.link().max_payload() as u16;
        config.controller = of_host.controller;
        (config.bulk_port, config.bulk) = (of_host.bulk.port.then_some(BULK_PORT), of_host.bulk.usage);
        config.rekey_after = of_host.rekey.after.unwrap_or(config.rekey_after);
        config.rekey_after_packets = of_host.rekey.after_packets.unwrap_or(config.rekey_after_packets);
        config.introductions = of_host.introductions;
        if of_host.asks_for_cookies {
            config.handshakes_per_second = 0;
        }
        let mut endpoint = Endpoint::new(config, random.bytes());
        let mut add = |other: &Place| {
            (other.index != index).then(|| {
                endpoint.add_peer(PeerConfig {
                    key: identity(other.index).public_key(),
                    address: overlay(other.index),
                    endpoint: Some(other.address),
                })
            })
        };
        let peers: Vec<Option<PeerId>> = places.iter().map(&mut add).collect();
        let by_peer: BTreeMap<PeerId, usize> =
            peers.iter().enumerate().filter_map(|(host, peer)| Some(((*peer)?, host))).collect();
        let to = |(from, to): &(usize, usize)| peers[*to].filter(|_| *from == index);
        let opens_to = setup.connections.iter().filter_map(to).collect();
        let offered = setup.connections.iter().filter(|(_, to)| *to == index).count();
        let mut oracle = Oracle::new(setup.plan, index, by_peer, opens_to, offered);
        oracle.introductions = Introductions::new(places, |host| identity(host).public_key());
        Self {
            place: *own,
            setup: of_host,
            seen_at: (own.address.ip(), 0),
            peers,
            endpoint,
            oracle,
            attachment,
            handoff: Handoff::alone(),
            opened: Opened::default(),
            uplinks,
            bulk_uplinks,
            has_work: true,
            deadline: None,
            busy_until: now,
            work: Work::default(),
            handshakes_written: 0,
            numbers: Numbers::default(),
            delivered: 0,
            refused: 0,
            waited: 0,
        }
    }

    /// The first other host, to this one's engine.
    pub fn peer(&self) -> PeerId {
        self.peers.iter().flatten().copied().next().expect("a host is never alone")
    }

    /// What the paths from it did.
    pub fn netem(&self) -> Counters {
        let mut all = Counters::default();
        self.uplinks.iter().chain(&self.bulk_uplinks).for_each(|path| all += path.counters());
        all
    }

    /// Packets that came to the host and were dropped before its worker saw them: by the device, the XDP program or for
    /// want of room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What the others know it by.
    pub fn public_key(&self) -> PublicKey {
        identity(self.place.index).public_key()
    }

    /// What is special about it.
    pub fn setup(&self) -> &HostSetup {
        &self.setup
    }

    /// Packets that arrived while it computed.
    pub fn waited(&self) -> u64 {
        self.waited
    }

    /// Where the network sees one of the host's own addresses.
    pub(super) fn seen_as(&self, own: SocketAddr) -> SocketAddr {
        let (ip, higher) = self.seen_at;
        if own.ip() == self.place.address.ip() { SocketAddr::new(ip, own.port().wrapping_add(higher)) } else { own }
    }

    /// Which of the host's own addresses the network sees there.
    pub(super) fn own(&self, seen: SocketAddr) -> Option<SocketAddr> {
        let second = SocketAddr::new(self.place.address.ip(), BULK_PORT);
        let own = [Some(self.place.address), Some(second).filter(|_| self.setup.bulk.port)];
        own.into_iter().flatten().find(|own| self.seen_as(*own) == seen)
    }

    /// When its worker makes its next pass, if nothing arrives before.
    pub(super) fn next_pass(&self) -> Option<Instant> {
        let at = if self.has_work { Some(Instant::ORIGIN) } else { self.deadline };
        at.map(|at| at.max(self.busy_until))
    }

    /// One pass. What it computed keeps it busy.
    pub(super) fn pass(&mut self, now: Instant) -> Pass {
        let local = self.setup.clock.local(now);
        let link = self.attachment.link();
        let turn = turn(&mut self.endpoint, link, &mut self.oracle, &mut self.handoff, local, &mut self.opened)
            .expect("a link in memory has no errors");
        // A deadline that is past and finds nothing to do would stop time.
        let is_met = turn.progress || turn.deadline.is_none_or(|at| at > local);
        assert!(is_met, "host {} has a deadline that nothing meets", self.place.index);
        self.has_work = turn.progress;
        self.deadline = turn.deadline.map(|at| self.setup.clock.world(at));
        self.check_buffers();
        let sent = self.attachment.take_sent();
        for packet in &sent {
            let header = Header::parse(packet.datagram()).expect("an engine sends what is right");
            match header.packet_type {
                PacketType::Data => self.numbers.on_sent(header),
                PacketType::Initiation | PacketType::Response => self.handshakes_written += 1,
                // Made without Diffie-Hellman; what they answer is charged as a drop.
                _ => {}
            }
        }
        let before = self.work;
        self.work = self.work();
        self.busy_until = now + self.setup.cost.between(before, self.work);
        Pass { done: self.busy_until, sent }
    }

    /// Asks who is where another host is at first; with `wanted`, only whether it is that one.
    pub(super) fn introduce(&mut self, now: Instant, whom: usize, wanted: Option<usize>) {
        let local = self.setup.clock.local(now);
        self.oracle.introductions.ask(&mut self.endpoint, local, whom, wanted);
        self.has_work = true;
    }

    fn work(&self) -> Work {
        let stats = self.endpoint.stats();
        let introduced = self.oracle.introductions.introduced().len() as u64;
        let dear: u64 = DEAR_DROPS.iter().map(|reason| stats.dropped(*reason)).sum();
        Work {
            handshakes: self.handshakes_written + stats.handshakes + introduced + dear,
            packets: stats.opened + stats.sealed,
            drops: self.opened.dropped,
        }
    }

    /// A packet came to one of its addresses.
    pub(super) fn deliver(&mut self, now: Instant, packet: Packet) {
        self.waited += u64::from(self.busy_until > now);
        self.has_work = true;
        *if self.attachment.deliver(packet) { &mut self.delivered } else { &mut self.refused } += 1;
    }

    /// What arrived and was not read is within the window that the peer was given (wire.md W5.9), and that within its bound.
    fn check_buffers(&self) {
        for connection in self.oracle.connections() {
            let Some(stats) = self.endpoint.connection_stats(connection) else { continue };
            assert!(stats.unread_bytes <= stats.receive_window, "host {}: {stats:?}", self.place.index);
            assert!(stats.receive_window <= MAX_CONNECTION_CREDIT_BYTES, "host {}: {stats:?}", self.place.index);
        }
    }
}

/// Where a host is.
pub(super) fn place(index: usize) -> Place {
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
