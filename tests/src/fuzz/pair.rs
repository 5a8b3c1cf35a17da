//! Two nodes of the targets, and the path between them.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::{Identity, PublicKey};
use pilot_engine::{BulkUse, Config, Ecn, Endpoint, Event, Instant, PeerConfig, PeerId, Received};

/// Bytes: the largest datagram of both nodes.
pub(super) const DATAGRAM_BYTES: usize = 1472;

/// The second port of both nodes.
const BULK_PORT: u16 = 4343;

/// Time on the way, in [`Pair::settle`].
const DELAY: Duration = Duration::from_micros(50);

/// Datagrams that an end may send at one instant. Far more than windows and credit allow: an end that sends so many does not
/// end.
const BURST_MAX: usize = 20_000;

/// Datagrams that two nodes may send in a minute in which nothing happens: a keep-alive every 10 s from each, the acks of them,
/// and as much again (wire.md W5.15, W6.2).
pub(super) const QUIET_DATAGRAMS: usize = 48;

/// A node: what it is, and its engine.
pub(super) struct End {
    pub(super) endpoint: Endpoint,
    pub(super) peer: PeerId,
    /// Counts the starts of the process.
    boot: u8,
    bulk: BulkUse,
    /// Under load, whatever comes.
    is_loaded: bool,
    /// The network sees its ports so much higher than they are.
    ports_higher: u16,
}

/// A datagram on its way.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    source: SocketAddr,
    destination: SocketAddr,
}

/// Both nodes, in virtual time.
pub(super) struct Pair {
    pub(super) ends: [End; 2],
    pub(super) now: Instant,
}

fn identity(end: usize) -> Identity {
    let n = end as u8 + 1;
    Identity::from_secrets([n; 32], [n + 100; 32]).expect("any 32 bytes are a secret")
}

pub(super) fn public_key(end: usize) -> PublicKey {
    identity(end).public_key()
}

pub(super) fn address(end: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, end as u8 + 1], 4242))
}

fn overlay(end: usize) -> OverlayAddress {
    OverlayAddress { network: 0, node: end as u32 }
}

fn config(end: usize, boot: u8) -> Config {
    let mut config = Config::new(identity(end), overlay(end), [boot; 16], Duration::from_secs(1_700_000_000));
    config.max_datagram = DATAGRAM_BYTES as u16;
    config
}

/// The other node.
fn add_peer(endpoint: &mut Endpoint, end: usize) -> PeerId {
    let (other, key) = (1 - end, public_key(1 - end));
    endpoint.add_peer(PeerConfig { key, address: overlay(other), endpoint: Some(address(other)) })
}

impl End {
    fn new(end: usize, boot: u8, bulk: BulkUse, is_loaded: bool) -> Self {
        let mut config = config(end, boot);
        (config.bulk_port, config.bulk) = ((bulk != BulkUse::Never).then_some(BULK_PORT), bulk);
        if is_loaded {
            config.handshakes_per_second = 0;
        }
        let mut endpoint = Endpoint::new(config, [(end as u8) << 7 | boot; 32]);
        let peer = add_peer(&mut endpoint, end);
        Self { endpoint, peer, boot, bulk, is_loaded, ports_higher: 0 }
    }
}

impl Pair {
    /// Nodes that know each other, without a tunnel.
    pub(super) fn new() -> Self {
        Self::with_load([false; 2])
    }

    /// The same, where one or both ask for cookies.
    pub(super) fn with_load(is_loaded: [bool; 2]) -> Self {
        Self { ends: [0, 1].map(|end| End::new(end, 0, BulkUse::Never, is_loaded[end])), now: Instant::from_nanos(1) }
    }

    /// The same, where both tell strangers who they are.
    pub(super) fn with_introductions() -> Self {
        let mut pair = Self::new();
        for (end, node) in pair.ends.iter_mut().enumerate() {
            let mut config = config(end, 0);
            config.introductions = true;
            node.endpoint = Endpoint::new(config, [0x40 | end as u8; 32]);
            node.peer = add_peer(&mut node.endpoint, end);
        }
        pair
    }

    /// The same with second ports, of which both make use.
    pub(super) fn with_bulk() -> Self {
        let usage = [BulkUse::Always, BulkUse::Auto];
        Self { ends: [0, 1].map(|end| End::new(end, 0, usage[end], false)), now: Instant::from_nanos(1) }
    }

    /// The network sees a node behind other ports from now on.
    pub(super) fn rebind(&mut self, end: usize, ports_higher: u16) {
        self.ends[end].ports_higher = ports_higher;
    }

    /// The process of a node ends without a word and is started again.
    pub(super) fn restart(&mut self, end: usize) {
        let End { boot, bulk, is_loaded, ports_higher, .. } = self.ends[end];
        self.ends[end] = End { ports_higher, ..End::new(end, boot.wrapping_add(1) & 0x7f, bulk, is_loaded) };
    }

    /// The next datagram that a node sends now.
    pub(super) fn transmit(&mut self, end: usize) -> Option<Vec<u8>> {
        self.send(end).map(|sent| sent.bytes)
    }

    /// The same with its addresses, as the network sees them.
    pub(super) fn send(&mut self, end: usize) -> Option<Sent> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let transmit = self.ends[end].endpoint.poll_transmit(self.now, &mut buffer)?;
        let destination = transmit.destination;
        assert_eq!(destination.ip(), address(1 - end).ip(), "there is nobody else");
        let port = transmit.source.map_or(address(end).port(), |source| source.port());
        let source = SocketAddr::new(address(end).ip(), port + self.ends[end].ports_higher);
        Some(Sent { bytes: buffer[..transmit.len].to_vec(), source, destination })
    }

    /// A datagram arrives at the node that is at its destination, if one is.
    pub(super) fn arrive(&mut self, end: usize, sent: &Sent) {
        let node = &mut self.ends[end];
        let port = sent.destination.port().wrapping_sub(node.ports_higher);
        let is_there = port == address(end).port() || node.bulk != BulkUse::Never && port == BULK_PORT;
        if is_there {
            let destination = SocketAddr::new(address(end).ip(), port);
            node.endpoint.handle_datagram(self.now, sent.source, destination, Ecn::NotEct, &sent.bytes);
        }
    }

    /// A datagram arrives at a node, as from the other.
    pub(super) fn deliver(&mut self, end: usize, datagram: &[u8]) -> Received {
        self.ends[end].endpoint.handle_datagram(self.now, address(1 - end), address(end), Ecn::NotEct, datagram)
    }

    /// Time passes, and what it made due is done.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.endpoint.handle_timeout(self.now);
        }
    }

    /// Goes on for `time` over a path that loses nothing; `on_event` is told the events, by end. Returns how many datagrams
    /// each sent.
    pub(super) fn settle(&mut self, time: Duration, mut on_event: impl FnMut(&mut Self, usize, Event)) -> [usize; 2] {
        let until = self.now + time;
        let mut all_sent = [0; 2];
        loop {
            let sent = [0, 1].map(|end| {
                let datagrams: Vec<Sent> = std::iter::from_fn(|| self.send(end)).take(BURST_MAX).collect();
                assert!(datagrams.len() < BURST_MAX, "node {end} sends without end");
                datagrams
            });
            (0..2).for_each(|end| all_sent[end] += sent[end].len());
            let next = if sent.iter().all(Vec::is_empty) {
                self.ends.iter_mut().filter_map(|end| end.endpoint.poll_timeout()).min().unwrap_or(until)
            } else {
                self.now + DELAY
            };
            if next > until {
                self.now = until;
                return all_sent;
            }
            self.now = self.now.max(next);
            for (from, datagrams) in sent.into_iter().enumerate() {
                for datagram in datagrams {
                    self.arrive(1 - from, &datagram);
                }
            }
            self.pass(Duration::ZERO);
            for end in 0..2 {
                while let Some(event) = self.ends[end].endpoint.poll_event() {
                    on_event(self, end, event);
                }
            }
            if self.now >= until {
                return all_sent;
            }
        }
    }
}
