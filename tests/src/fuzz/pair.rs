//! Two nodes of the targets, and the path between them.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{Config, Endpoint, Event, Instant, PeerConfig, PeerId, Received};

/// Bytes: the largest datagram of both nodes.
pub(super) const DATAGRAM_BYTES: usize = 1472;

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

pub(super) fn static_key(end: usize) -> [u8; 32] {
    identity(end).public_key().static_key
}

pub(super) fn address(end: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, end as u8 + 1], 4242))
}

impl End {
    fn new(end: usize, boot: u8) -> Self {
        let overlay = |end: usize| OverlayAddress { network: 0, node: end as u32 };
        let mut config = Config::new(identity(end), overlay(end), [boot; 16], Duration::from_secs(1_700_000_000));
        config.max_datagram = DATAGRAM_BYTES as u16;
        let mut endpoint = Endpoint::new(config, [(end as u8) << 7 | boot; 32]);
        let other = 1 - end;
        let key = identity(other).public_key();
        let peer = endpoint.add_peer(PeerConfig { key, address: overlay(other), endpoint: Some(address(other)) });
        Self { endpoint, peer, boot }
    }
}

impl Pair {
    /// Nodes that know each other, without a tunnel.
    pub(super) fn new() -> Self {
        Self { ends: [End::new(0, 0), End::new(1, 0)], now: Instant::from_nanos(1) }
    }

    /// The process of a node ends without a word and is started again.
    pub(super) fn restart(&mut self, end: usize) {
        self.ends[end] = End::new(end, self.ends[end].boot.wrapping_add(1) & 0x7f);
    }

    /// The next datagram that a node sends now.
    pub(super) fn transmit(&mut self, end: usize) -> Option<Vec<u8>> {
        let mut buffer = [0; DATAGRAM_BYTES];
        let transmit = self.ends[end].endpoint.poll_transmit(self.now, &mut buffer)?;
        assert_eq!(transmit.destination, address(1 - end), "there is nobody else");
        Some(buffer[..transmit.len].to_vec())
    }

    /// A datagram arrives at a node, as from the other.
    pub(super) fn deliver(&mut self, end: usize, datagram: &[u8]) -> Received {
        self.ends[end].endpoint.handle_datagram(self.now, address(1 - end), address(end), datagram)
    }

    /// Time passes, and what it made due is done.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.endpoint.handle_timeout(self.now);
        }
    }

    /// Goes on for `time` over a path that loses nothing; `on_event` is told the events, by end. Returns how many datagrams
    /// were sent.
    pub(super) fn settle(&mut self, time: Duration, mut on_event: impl FnMut(&mut Self, usize, Event)) -> usize {
        let until = self.now + time;
        let mut all_sent = 0;
        loop {
            let sent = [0, 1].map(|end| {
                let datagrams: Vec<Vec<u8>> = std::iter::from_fn(|| self.transmit(end)).take(BURST_MAX).collect();
                assert!(datagrams.len() < BURST_MAX, "node {end} sends without end");
                datagrams
            });
            all_sent += sent[0].len() + sent[1].len();
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
                    self.deliver(1 - from, &datagram);
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
