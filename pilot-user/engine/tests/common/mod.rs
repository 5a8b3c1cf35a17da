//! Two endpoints and a path between them, in virtual time.
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is the test's")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{Config, ConnectionHandle, Ecn, Endpoint, Event, Instant, PeerConfig, PeerId, Received};

/// One end: an endpoint, its peer, and the events it has told.
pub(crate) struct End {
    pub(crate) endpoint: Endpoint,
    pub(crate) peer: PeerId,
    /// Where it is for the other, and its second port there.
    pub(crate) address: SocketAddr,
    pub(crate) bulk_port: Option<u16>,
    pub(crate) events: Vec<Event>,
    /// Every datagram this end sent, as it was.
    pub(crate) sent: Vec<Vec<u8>>,
}

/// What the path does with a datagram: the number of copies that arrive, and how much later than the delay each does.
pub(crate) type Fate = Box<dyn FnMut(&mut Vec<u8>) -> Vec<Duration>>;

/// Whether the network carries a datagram from one address to another, and how much slower than the delay.
pub(crate) type Route = Box<dyn FnMut(SocketAddr, SocketAddr) -> Option<Duration>>;

/// A datagram on its way: when it arrives, its place in the order of sending, from where, to where.
type Flying = (Instant, u64, SocketAddr, SocketAddr, Vec<u8>);

pub(crate) struct Pair {
    pub(crate) ends: [End; 2],
    pub(crate) now: Instant,
    pub(crate) delay: Duration,
    pub(crate) fate: Fate,
    pub(crate) route: Route,
    /// What was sent to where neither end is.
    pub(crate) strays: Vec<(SocketAddr, Vec<u8>)>,
    /// By arrival, then in the order of sending.
    in_flight: BinaryHeap<Reverse<Flying>>,
    sequence: u64,
}

pub(crate) fn identity(n: u8) -> Identity {
    Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
}

pub(crate) fn config(n: u8, boot: u8) -> Config {
    let address = OverlayAddress { network: 0, node: u32::from(n) };
    let mut config =
        Config::new(identity(n), address, [boot; 16], Duration::from_secs(1_700_000_000 + u64::from(boot)));
    config.max_datagram = 1472;
    config
}

pub(crate) fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 4242))
}

pub(crate) fn end(own: u8, other: u8, boot: u8) -> End {
    end_with(own, other, boot, |_| {})
}

fn end_with(own: u8, other: u8, boot: u8, adjust: impl FnOnce(&mut Config)) -> End {
    let mut config = config(own, boot);
    adjust(&mut config);
    let bulk_port = config.bulk_port;
    let mut endpoint = Endpoint::new(config, [own ^ boot; 32]);
    let peer = endpoint.add_peer(PeerConfig {
        key: identity(other).public_key(),
        address: OverlayAddress { network: 0, node: u32::from(other) },
        endpoint: Some(address(other)),
    });
    End { endpoint, peer, address: address(own), bulk_port, events: Vec::new(), sent: Vec::new() }
}

impl Pair {
    /// Nodes 1 and 2, 50 µs apart, on a perfect path.
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// The same, with other configurations; `adjust` is told which end's.
    pub(crate) fn with(adjust: impl Fn(usize, &mut Config)) -> Self {
        Self {
            ends: [end_with(1, 2, 11, |config| adjust(0, config)), end_with(2, 1, 12, |config| adjust(1, config))],
            now: Instant::from_nanos(1),
            delay: Duration::from_micros(50),
            fate: Box::new(|_| vec![Duration::ZERO]),
            route: Box::new(|_, _| Some(Duration::ZERO)),
            strays: Vec::new(),
            in_flight: BinaryHeap::new(),
            sequence: 0,
        }
    }

    fn transmit(&mut self) {
        for from in 0..2 {
            let mut buffer = [0; 1472];
            while let Some(transmit) = self.ends[from].endpoint.poll_transmit(self.now, &mut buffer) {
                let mut datagram = buffer[..transmit.len].to_vec();
                self.ends[from].sent.push(datagram.clone());
                let port = transmit.source.map_or(self.ends[from].address.port(), |source| {
                    // What is behind another address is there by its first port.
                    let second = self.ends[from].bulk_port.filter(|port| *port == source.port());
                    second.unwrap_or(self.ends[from].address.port())
                });
                let source = SocketAddr::new(self.ends[from].ip(), port);
                let Some(slower) = (self.route)(source, transmit.destination) else { continue };
                for late in (self.fate)(&mut datagram) {
                    self.sequence += 1;
                    let at = self.now + self.delay + slower + late;
                    let flying = (at, self.sequence, source, transmit.destination, datagram.clone());
                    self.in_flight.push(Reverse(flying));
                }
            }
            while let Some(event) = self.ends[from].endpoint.poll_event() {
                self.ends[from].events.push(event);
            }
        }
    }

    /// Delivers what was sent and goes to the next thing that happens; `false` when nothing will before `until`.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        self.transmit();
        let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
        let timers = self.ends.iter_mut().filter_map(|end| end.endpoint.poll_timeout());
        let Some(next) = timers.chain(arrival).min().filter(|next| *next <= until) else { return false };
        self.now = self.now.max(next);
        while self.in_flight.peek().is_some_and(|Reverse((at, ..))| *at <= self.now)
            && let Some(Reverse((_, _, source, destination, datagram))) = self.in_flight.pop()
        {
            self.arrive(source, destination, datagram);
        }
        for end in &mut self.ends {
            end.endpoint.handle_timeout(self.now);
        }
        true
    }

    /// Brings a datagram to whoever is at its destination.
    pub(crate) fn arrive(&mut self, source: SocketAddr, destination: SocketAddr, datagram: Vec<u8>) {
        let is_at = |end: &&mut End| {
            let second = end.bulk_port.map(|port| SocketAddr::new(end.ip(), port));
            destination == end.address || Some(destination) == second
        };
        match self.ends.iter_mut().find(is_at) {
            Some(end) => _ = end.endpoint.handle_datagram(self.now, source, destination, Ecn::NotEct, &datagram),
            None => self.strays.push((destination, datagram)),
        }
    }

    /// Hands a datagram to an end, as from the other.
    pub(crate) fn deliver(&mut self, to: usize, datagram: &[u8]) -> Received {
        let (source, local) = (self.ends[1 - to].address, self.ends[to].address);
        self.ends[to].endpoint.handle_datagram(self.now, source, local, Ecn::NotEct, datagram)
    }

    /// Runs for `time`.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
        self.transmit();
    }

    /// Runs until `done`, at most for `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let until = self.now + limit;
        loop {
            if done(self) {
                return;
            }
            if !self.step(until) {
                // The last step may have been what was waited for.
                let told = self.ends.each_ref().map(|end| &end.events);
                let told = format!("nothing more happens before {until:?}; events: {told:?}");
                return assert!(done(self), "{told}");
            }
        }
    }

    /// A connection from end 0 to port 7 of end 1, accepted.
    pub(crate) fn connected(&mut self) -> [ConnectionHandle; 2] {
        let ours = self.ends[0].endpoint.connect(self.now, self.ends[0].peer, 7).unwrap();
        let mut theirs = None;
        self.run_until(Duration::from_secs(30), |pair| {
            if let Some(Event::Offered { connection, port }) = pair.ends[1].take(|e| matches!(e, Event::Offered { .. }))
            {
                assert_eq!(port, 7);
                pair.ends[1].endpoint.accept(pair.now, connection).unwrap();
                theirs = Some(connection);
            }
            pair.ends[0].take(|e| matches!(e, Event::Connected { .. })).is_some()
        });
        [ours, theirs.unwrap()]
    }

    pub(crate) fn messages(&mut self, end: usize, connection: ConnectionHandle) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut message = Vec::new();
        while let Ok(Some(_)) = self.ends[end].endpoint.receive_message(self.now, connection, &mut message) {
            all.push(std::mem::take(&mut message));
        }
        all
    }
}

impl End {
    /// Takes the first event that `which` names.
    pub(crate) fn take(&mut self, which: impl Fn(&Event) -> bool) -> Option<Event> {
        let at = self.events.iter().position(which)?;
        Some(self.events.remove(at))
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.address.ip()
    }
}

/// A small generator for tests: SplitMix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }
}
