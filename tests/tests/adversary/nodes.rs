//! Two nodes, and who is between them. Each datagram that arrives is judged by what it is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::limits::AMPLIFICATION_LIMIT;
use pilot_engine::{Config, Ecn, Endpoint, Instant, PeerConfig, PeerId, Received};
use pilot_tests::oracle::Oracle;
use pilot_tests::plan::Plan;
use pilot_tests::random::Random;
use pilot_user::worker::Application as _;

use super::attacker::{Arrival, Attacker};

const DATAGRAM_BYTES: usize = 1472;
const DELAY: Duration = Duration::from_millis(2);
/// Of a byte on the way: 2 Mb/s, so that the transfer is under way for as long as the attack.
const BYTE: Duration = Duration::from_micros(4);

pub(crate) struct End {
    pub(crate) endpoint: Endpoint,
    pub(crate) peer: PeerId,
    pub(crate) oracle: Oracle,
    /// When the path from it has carried all that it was given.
    free_at: Instant,
    /// Bytes that came here from each address that is nobody's, and that were sent there.
    elsewhere: BTreeMap<SocketAddr, [u64; 2]>,
}

/// By arrival, then in the order of sending: to which node, from where.
type Flying = Reverse<(Instant, u64, usize, SocketAddr, Vec<u8>)>;

pub(crate) struct Nodes {
    pub(crate) ends: [End; 2],
    pub(crate) attacker: Attacker,
    now: Instant,
    flying: BinaryHeap<Flying>,
    sent: u64,
    /// What the nodes sent ([`authentic`]): to which of them, and whether it has been accepted.
    genuine: HashMap<Vec<u8>, (usize, bool)>,
}

fn identity(end: usize) -> Identity {
    let n = end as u8 + 1;
    Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
}

pub(crate) fn static_key(end: usize) -> [u8; 32] {
    identity(end).public_key().static_key
}

pub(crate) fn address(end: usize) -> SocketAddr {
    ([10, 0, 0, end as u8 + 1], 4242).into()
}

fn end(end: usize, plan: Plan, random: &mut Random) -> End {
    let overlay = |end: usize| OverlayAddress { network: 0, node: end as u32 };
    let mut config = Config::new(identity(end), overlay(end), random.bytes(), Duration::from_secs(1 << 30));
    // So that there are old keys and handshakes to replay from: what the attacker does ends no tunnel.
    config.rekey_after_packets = 100;
    config.max_datagram = DATAGRAM_BYTES as u16;
    let mut endpoint = Endpoint::new(config, random.bytes());
    let (key, other) = (identity(1 - end).public_key(), 1 - end);
    let peer = endpoint.add_peer(PeerConfig { key, address: overlay(other), endpoint: Some(address(other)) });
    let opens_to = if end == 0 { vec![peer] } else { vec![] };
    let oracle = Oracle::new(plan, end, BTreeMap::from([(peer, other)]), opens_to, end);
    End { endpoint, peer, oracle, free_at: Instant::ORIGIN, elsewhere: BTreeMap::new() }
}

impl Nodes {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan { seed, streams: 3, stream_bytes: 200_000, messages: 2000, nap: Duration::ZERO };
        Self {
            ends: [0, 1].map(|n| end(n, plan, &mut random)),
            attacker: Attacker::new(random.fork()),
            now: Instant::from_nanos(1),
            flying: BinaryHeap::new(),
            sent: 0,
            genuine: HashMap::new(),
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    pub(crate) fn run_until_done(&mut self, limit: Duration) -> bool {
        let until = self.now + limit;
        let is_done = |nodes: &Self| nodes.ends.iter().all(|end| end.oracle.is_done(&end.endpoint));
        while !is_done(self) {
            if !self.step(until) {
                return false;
            }
        }
        true
    }

    fn step(&mut self, until: Instant) -> bool {
        (0..2).for_each(|end| self.turn(end));
        let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
        let timers = self.ends.iter_mut().filter_map(|end| end.endpoint.poll_timeout());
        let Some(next) = timers.chain(arrival).min().filter(|next| *next <= until) else { return false };
        self.now = self.now.max(next);
        while self.flying.peek().is_some_and(|Reverse((at, ..))| *at <= self.now)
            && let Some(Reverse((_, _, to, source, bytes))) = self.flying.pop()
        {
            self.arrive(to, source, &bytes);
        }
        true
    }

    /// Timers, application, and all that there is to send.
    fn turn(&mut self, from: usize) {
        let End { endpoint, oracle, .. } = &mut self.ends[from];
        endpoint.handle_timeout(self.now);
        oracle.poll(endpoint, self.now);
        while let Some(event) = endpoint.poll_event() {
            oracle.on_event(endpoint, self.now, event);
        }
        let mut buffer = [0; DATAGRAM_BYTES];
        while let Some(transmit) = self.ends[from].endpoint.poll_transmit(self.now, &mut buffer) {
            self.send(from, transmit.destination, buffer[..transmit.len].to_vec());
        }
    }

    fn send(&mut self, from: usize, destination: SocketAddr, bytes: Vec<u8>) {
        let (to, end) = (1 - from, &mut self.ends[from]);
        if destination != address(to) {
            // Who is there could prove to be on the path, as a NAT does, by sending it on. Here it ends.
            let [came, went] = end.elsewhere.entry(destination).or_default();
            *went += bytes.len() as u64;
            assert!(*went <= AMPLIFICATION_LIMIT * *came, "{went} bytes to {destination} for {came}");
            assert!(bytes[0] >> 2 & 7 != 1, "an initiation to {destination}");
            return;
        }
        end.free_at = end.free_at.max(self.now) + BYTE * bytes.len() as u32;
        let usual = end.free_at + DELAY;
        let is_new = !self.genuine.contains_key(&authentic(&bytes));
        // All resets for one session id are one datagram, which can end one tunnel.
        assert!(is_new || bytes[0] >> 2 & 7 == 5, "the same datagram twice");
        self.genuine.entry(authentic(&bytes)).or_insert((to, false));
        for Arrival { later, to, source, bytes } in self.attacker.on_seen(to, bytes) {
            self.sent += 1;
            self.flying.push(Reverse((usual + later, self.sent, to, source, bytes)));
        }
    }

    fn arrive(&mut self, to: usize, source: SocketAddr, bytes: &[u8]) {
        let end = &mut self.ends[to];
        if source != address(1 - to) {
            end.elsewhere.entry(source).or_default()[0] += bytes.len() as u64;
        }
        let moves = |end: &End| end.endpoint.tunnel_stats(end.peer).map(|stats| stats.peer_moves);
        let before = moves(end);
        let received = end.endpoint.handle_datagram(self.now, source, address(to), Ecn::NotEct, bytes);
        match received {
            Received::Data | Received::Handshake => {
                let genuine = self.genuine.get_mut(&authentic(bytes)).filter(|(for_whom, _)| *for_whom == to);
                let (_, is_old) = genuine.unwrap_or_else(|| unreachable!("a forgery was accepted: {bytes:02x?}"));
                assert!(!std::mem::replace(is_old, true), "accepted twice: {bytes:02x?}");
            }
            // Whoever sees the initiation can answer it with a cookie, or with versions: that moves nothing, and ends nothing.
            Received::Unproven => assert_eq!(moves(end), before, "moved by what proves nothing"),
            Received::Dropped(reason) => assert_eq!(moves(end), before, "moved by what was dropped: {reason:?}"),
            Received::Elsewhere(worker) => unreachable!("there is no worker {worker}"),
        }
    }
}

/// What is authentic of a datagram: of an initiation, all but mac2, which says nothing of who sent it and is looked at under load alone
/// (wire.md W3.20, W3.21).
fn authentic(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[0] >> 2 & 7 == 1
        && let Some(mac2) = bytes.last_chunk_mut::<16>()
    {
        mac2.fill(0);
    }
    bytes
}
