//! What an echo costs a node that has many tunnels to distinct keys, one request in flight on each. In memory: the node's engine is
//! driven as a worker drives it, in batches; only its own time counts, that of its peers does not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context as _, bail};
use pilot_engine::{ConnectionHandle, Ecn, Endpoint, Event, Instant};
use serde::Serialize;

#[path = "../../benches/nodes/mod.rs"]
mod nodes;

use super::MESSAGE;

/// Datagrams that a worker takes, and sends, in a pass.
const BATCH: usize = 64;
/// Bytes of the largest datagram.
const DATAGRAM: usize = 1472;
/// Time passes between two batches: what a worker's pass takes.
const PASS: Duration = Duration::from_micros(20);
/// From one peer's handshake to the next, so that the node does not ask for cookies.
const PAUSE: Duration = Duration::from_millis(5);
/// Passes until a tunnel must be up.
const PASSES_MAX: u32 = 1000;
/// Readings of the clock by which its own cost is known.
const READINGS: u32 = 10_000;

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    system: &'static str,
    tunnels: u32,
    echoes: u64,
    /// The node's: opening, answering, sealing. The median of all turns.
    cpu_ns_per_echo: f64,
}

/// Datagrams on their way to or from the node, and the peer at their other end.
#[derive(Default)]
struct Wire {
    bytes: Vec<u8>,
    datagrams: Vec<(u32, usize)>,
}

impl Wire {
    fn clear(&mut self) {
        self.bytes.clear();
        self.datagrams.clear();
    }

    /// Takes what an endpoint sends, which has room for so many. `peer`: whose it is; `None`: by its destination.
    fn fill(&mut self, endpoint: &mut Endpoint, now: Instant, peer: Option<u32>) -> usize {
        let mut count = 0;
        while count < BATCH && endpoint.wants_transmit() {
            let end = self.bytes.len();
            self.bytes.resize(end + DATAGRAM, 0);
            let sent = endpoint.poll_transmit(now, &mut self.bytes[end..]);
            self.bytes.truncate(end + sent.map_or(0, |sent| sent.len));
            let Some(sent) = sent else { break };
            self.datagrams.push((peer.unwrap_or_else(|| number(sent.destination)), sent.len));
            count += 1;
        }
        count
    }
}

/// When peers are to be asked what is due, the earliest first: each has at most one time that is not void.
#[derive(Default)]
struct Timers {
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
    /// By peer.
    noted: Vec<Option<Instant>>,
}

impl Timers {
    /// A later time than the one noted is left for then.
    fn note(&mut self, at: Option<Instant>, peer: usize) {
        self.noted.resize(self.noted.len().max(peer + 1), None);
        if let Some(at) = at.filter(|at| self.noted[peer].is_none_or(|noted| *at < noted)) {
            self.noted[peer] = Some(at);
            self.heap.push(Reverse((at, peer)));
        }
    }

    fn pop(&mut self, now: Instant) -> Option<usize> {
        while let Some(Reverse((at, peer))) = self.heap.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.heap.pop();
            if self.noted[peer] == Some(at) {
                self.noted[peer] = None;
                return Some(peer);
            }
        }
        None
    }
}

struct Fabric {
    node: Endpoint,
    peers: Vec<(Endpoint, ConnectionHandle)>,
    timers: Timers,
    now: Instant,
    echoes: u64,
    to_node: Wire,
    from_node: Wire,
    /// What the node took, clocks included.
    took: Duration,
    passes: u32,
    /// Nanoseconds for each echo, of every turn of some tunnels.
    turns: Vec<f64>,
    clock: Duration,
    message: Vec<u8>,
}

pub(crate) fn run(tunnels: u32, time: Duration) -> anyhow::Result<Report> {
    let mut fabric = Fabric::new(tunnels)?;
    // Every tunnel once, so that all have been used.
    fabric.go_on(u64::from(tunnels), Duration::MAX)?;
    fabric.turns.clear();
    let before = fabric.echoes;
    fabric.go_on(u64::MAX, time)?;
    let Fabric { mut turns, echoes, .. } = fabric;
    // The middle one: whoever interrupts the thread meanwhile is not the node.
    turns.sort_by(f64::total_cmp);
    let cpu_ns_per_echo = *turns.get(turns.len() / 2).context("nothing was done")?;
    Ok(Report { system: "pilot", tunnels, echoes: echoes - before, cpu_ns_per_echo })
}

/// What it takes to read the clock before a pass and after.
fn clock_cost() -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..READINGS {
        sum += Clock::now().elapsed();
    }
    sum / READINGS
}

impl Fabric {
    fn new(tunnels: u32) -> anyhow::Result<Self> {
        let node = nodes::endpoint(0, nodes::config(0));
        let mut fabric = Self {
            node,
            peers: Vec::new(),
            timers: Timers::default(),
            now: Instant::from_nanos(1),
            echoes: 0,
            to_node: Wire::default(),
            from_node: Wire::default(),
            took: Duration::ZERO,
            passes: 0,
            turns: Vec::new(),
            clock: clock_cost(),
            message: Vec::new(),
        };
        for n in 1..=tunnels {
            fabric.node.add_peer(nodes::known(n, false));
            let mut peer = nodes::endpoint(n, nodes::config(n));
            let server = peer.add_peer(nodes::known(0, true));
            let connection = peer.connect(fabric.now, server, 7)?;
            fabric.peers.push((peer, connection));
            fabric.come_up(n, connection).with_context(|| format!("tunnel {n}"))?;
            fabric.now += PAUSE;
        }
        Ok(fabric)
    }

    fn come_up(&mut self, n: u32, connection: ConnectionHandle) -> anyhow::Result<()> {
        for _ in 0..PASSES_MAX {
            let (peer, _) = &mut self.peers[n as usize - 1];
            peer.handle_timeout(self.now);
            self.to_node.fill(peer, self.now, Some(n));
            peer.poll_timeout();
            self.pass()?;
            self.deliver(false)?;
            let (peer, _) = &self.peers[n as usize - 1];
            if peer.is_open(connection) && self.to_node.datagrams.is_empty() && self.from_node.datagrams.is_empty() {
                return Ok(());
            }
            self.now += PASS;
        }
        bail!("it does not come up")
    }

    /// Has every peer ask whose question was answered, batch by batch, until there were so many echoes or the node took so long.
    fn go_on(&mut self, echoes: u64, time: Duration) -> anyhow::Result<()> {
        let mut next = 0;
        let (until, begin) = (self.echoes + echoes.min(u64::MAX / 2), self.took);
        while self.echoes < until && self.took - begin < time {
            let (before, took, passes) = (self.echoes, self.took, self.passes);
            while self.answer_in_time() {
                self.pass()?;
                self.deliver(true)?;
                self.now += PASS;
            }
            // One request of each of the next tunnels in turn; the others' are under way meanwhile.
            let count = self.peers.len().min(BATCH);
            for _ in 0..count {
                let (peer, connection) = &mut self.peers[next];
                peer.handle_timeout(self.now);
                peer.send_message(self.now, *connection, MESSAGE)?;
                self.to_node.fill(peer, self.now, Some(next as u32 + 1));
                self.timers.note(peer.poll_timeout(), next);
                next = (next + 1) % self.peers.len();
            }
            for _ in 0..PASSES_MAX {
                self.pass()?;
                self.deliver(true)?;
                if self.echoes - before >= count as u64 {
                    break;
                }
            }
            if self.echoes - before < count as u64 {
                bail!("{} of {count} echoes came back", self.echoes - before);
            }
            let took = (self.took - took).saturating_sub(self.clock * (self.passes - passes));
            self.turns.push(took.as_nanos() as f64 / count as f64);
            self.now += PASS;
        }
        Ok(())
    }

    /// Has the peers whose time has come say what is due, as acks of what they got. Whether there is any.
    fn answer_in_time(&mut self) -> bool {
        while self.to_node.datagrams.len() < BATCH
            && let Some(peer) = self.timers.pop(self.now)
        {
            let (endpoint, _) = &mut self.peers[peer];
            endpoint.handle_timeout(self.now);
            self.to_node.fill(endpoint, self.now, Some(peer as u32 + 1));
            self.timers.note(endpoint.poll_timeout(), peer);
        }
        !self.to_node.datagrams.is_empty()
    }

    /// A pass of the node, which is what is measured.
    fn pass(&mut self) -> anyhow::Result<()> {
        let begin = Clock::now();
        let mut bytes = &self.to_node.bytes[..];
        for (peer, length) in &self.to_node.datagrams {
            let (datagram, rest) = bytes.split_at(*length);
            bytes = rest;
            self.node.handle_datagram(self.now, nodes::address(*peer), nodes::address(0), Ecn::NotEct, datagram);
        }
        self.node.handle_timeout(self.now);
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Offered { connection, .. } => self.node.accept(self.now, connection)?,
                Event::MessagesReadable { connection } => {
                    self.message.clear();
                    while self.node.receive_message(self.now, connection, &mut self.message)?.is_some() {
                        self.node.send_message(self.now, connection, &self.message)?;
                        self.message.clear();
                    }
                }
                _ => {}
            }
        }
        self.from_node.fill(&mut self.node, self.now, None);
        self.node.poll_timeout();
        self.took += begin.elapsed();
        self.passes += 1;
        self.to_node.clear();
        Ok(())
    }

    /// Gives the peers what the node sent. `quietly`: what they have to say to that waits for their next question.
    fn deliver(&mut self, quietly: bool) -> anyhow::Result<()> {
        let mut bytes = &self.from_node.bytes[..];
        for (n, length) in &self.from_node.datagrams {
            let (datagram, rest) = bytes.split_at(*length);
            bytes = rest;
            let (peer, _) = &mut self.peers[*n as usize - 1];
            peer.handle_datagram(self.now, nodes::address(0), nodes::address(*n), Ecn::NotEct, datagram);
            while let Some(event) = peer.poll_event() {
                if let Event::MessagesReadable { connection } = event {
                    self.message.clear();
                    while peer.receive_message(self.now, connection, &mut self.message)?.is_some() {
                        self.echoes += 1;
                    }
                }
            }
            if !quietly {
                self.to_node.fill(peer, self.now, Some(*n));
            }
            self.timers.note(peer.poll_timeout(), *n as usize - 1);
        }
        self.from_node.clear();
        Ok(())
    }
}

/// The peer at an address.
fn number(address: SocketAddr) -> u32 {
    match address.ip() {
        std::net::IpAddr::V4(ip) => u32::from(ip) & 0xff_ffff,
        std::net::IpAddr::V6(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tunnel_has_its_echo() {
        for tunnels in [1, 70] {
            let mut fabric = Fabric::new(tunnels).unwrap();
            fabric.go_on(210, Duration::MAX).unwrap();
            assert!(fabric.echoes >= 210 && fabric.turns.len() >= 4, "{}", fabric.echoes);
            assert!(run(tunnels, Duration::from_millis(1)).unwrap().cpu_ns_per_echo > 0.0);
        }
    }
}
