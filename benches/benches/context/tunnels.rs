//! Many nodes in memory, each with a tunnel to one owner: what leaves the owner for a change, through the engine, until all of
//! it is sealed; and for a plain message to each.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant as Clock};

use anyhow::{Context as _, bail, ensure};
use pilot_engine::{ConnectionHandle, Ecn, Endpoint, Event, Instant};
use pilot_user::context::Follow;
use pilot_user::service::CONTEXTS_PORT;
use pilot_user::service::contexts::{ContextClient, ContextOwner};

use super::nodes::{self, address};
use super::{NAME, Samples, WORDS, append, owner, per_follower};

/// Where peers listen for plain messages.
pub(super) const PLAIN_PORT: u16 = 9;
/// Datagrams between two looks at what else there is, as a worker sends them.
const BATCH: usize = 64;
/// From one change to the next: everything is acked in between.
const PAUSE: Duration = Duration::from_millis(50);
/// Steps of time while a tunnel comes up, short because the others do not run meanwhile; and when all run.
const STEP_ALONE: Duration = Duration::from_micros(500);
const STEP: Duration = Duration::from_millis(10);
/// Fifty times as long as an ack is held back.
const SETTLE_STEPS: usize = 5;
/// After the last tunnel came up: until what young tunnels do is done.
const YOUNG_PAUSES: usize = 20;
/// The longest datagram.
const MTU: usize = 1472;

pub(super) struct Fabric {
    node: Node,
    peers: Vec<Peer>,
    now: Instant,
}

/// The owner's end.
struct Node {
    endpoint: Endpoint,
    contexts: ContextOwner,
    plain: Vec<ConnectionHandle>,
    sent: Sent,
}

/// Datagrams, one behind the other.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    datagrams: Vec<(SocketAddr, usize)>,
}

struct Peer {
    endpoint: Endpoint,
    number: u32,
    contexts: ContextClient,
    /// What was told of the context, and messages that came.
    notices: u64,
    messages: u64,
    buffer: Vec<u8>,
}

/// What a round measured, of each change, and of a message in its place: until it was sent, and until it was opened, applied and
/// told at the other end; and what comes back for the change.
#[derive(Default)]
pub(super) struct Round {
    pub(super) change: Samples,
    pub(super) change_told: Samples,
    pub(super) message: Samples,
    pub(super) message_told: Samples,
    pub(super) answers: Samples,
}

impl Fabric {
    pub(super) fn new(followers: usize) -> anyhow::Result<Self> {
        let mut fabric = Self { node: Node::new()?, peers: Vec::new(), now: Instant::from_nanos(1) };
        for n in 1..=followers {
            let number = u32::try_from(n).context("too many")?;
            fabric.node.endpoint.add_peer(nodes::known(number, false));
            fabric.peers.push(Peer::new(number)?);
            // One after the other: an owner to whom many come at once asks for cookies.
            fabric.come_up(n - 1)?;
        }
        for _ in 0..YOUNG_PAUSES {
            fabric.now += PAUSE;
            fabric.settle()?;
        }
        Ok(fabric)
    }

    /// Each change, and each message in its place, reaches every peer before the next.
    pub(super) fn round(&mut self, changes: usize) -> anyhow::Result<Round> {
        let mut round = Round::default();
        let followers = self.peers.len();
        let counts = |peers: &[Peer]| peers.iter().fold((0, 0), |(n, m), peer| (n + peer.notices, m + peer.messages));
        let before = counts(&self.peers);
        for _ in 0..changes {
            self.now += PAUSE;
            self.node.endpoint.handle_timeout(self.now);
            let begin = Clock::now();
            measured_change(&mut self.node, self.now)?;
            round.change.push(per_follower(begin.elapsed(), followers));
            let answers = measured_change_told(self);
            round.change_told.push(per_follower(begin.elapsed(), followers));
            let begin = Clock::now();
            measured_answers(&mut self.node, &answers, self.now)?;
            round.answers.push(per_follower(begin.elapsed(), followers));
            self.settle()?;

            self.now += PAUSE;
            self.node.endpoint.handle_timeout(self.now);
            let begin = Clock::now();
            measured_message(&mut self.node, self.now)?;
            round.message.push(per_follower(begin.elapsed(), followers));
            let answers = measured_message_told(self);
            round.message_told.push(per_follower(begin.elapsed(), followers));
            self.node.take(&answers, self.now)?;
            self.settle()?;
        }
        let after = counts(&self.peers);
        let each = (changes * followers) as u64;
        ensure!(after.1 - before.1 == each && after.0 - before.0 >= each, "{before:?} {after:?}: not all arrived");
        Ok(round)
    }

    /// Runs a peer until it has what it came for. Those before it take what they are sent, and their timers rest: with many of them,
    /// there is always something under way to one.
    fn come_up(&mut self, at: usize) -> anyhow::Result<()> {
        for _ in 0..1_000 {
            let sent = self.peers[at].run(self.now)?;
            self.node.take(&sent, self.now)?;
            let answers = self.deliver();
            self.node.take(&answers, self.now)?;
            if self.peers[at].notices > 0 && self.node.plain.len() == self.peers.len() {
                return Ok(());
            }
            self.now += STEP_ALONE;
            self.node.run(self.now)?;
        }
        bail!("peer {at} does not come up")
    }

    /// Runs all for a while, in which acks that are owed are sent. It does not end by itself: of many tunnels that are young, one has
    /// always something to say.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.exchange()?;
        for _ in 0..SETTLE_STEPS {
            self.now += STEP;
            self.node.run(self.now)?;
            self.exchange()?;
        }
        Ok(())
    }

    /// Carries what there is, until nothing is under way.
    fn exchange(&mut self) -> anyhow::Result<()> {
        loop {
            for peer in &mut self.peers {
                let sent = peer.run(self.now)?;
                if !sent.datagrams.is_empty() {
                    self.node.take(&sent, self.now)?;
                }
            }
            if self.node.sent.datagrams.is_empty() {
                return Ok(());
            }
            let answers = self.deliver();
            self.node.take(&answers, self.now)?;
        }
    }

    /// Gives the peers what the owner sent; what they say.
    fn deliver(&mut self) -> Sent {
        let mut answers = Sent::default();
        let sent = std::mem::take(&mut self.node.sent);
        for (destination, datagram) in sent.iter() {
            let peer = &mut self.peers[number(destination) - 1];
            peer.endpoint.handle_datagram(self.now, address(0), destination, Ecn::NotEct, datagram);
            if let Ok(said) = peer.run(self.now) {
                answers.append(said);
            }
        }
        self.node.sent = sent.cleared();
        answers
    }
}

/// A change, until all of it is sealed.
#[inline(never)]
fn measured_change(node: &mut Node, now: Instant) -> anyhow::Result<()> {
    node.contexts.with_owner(&mut node.endpoint, now, append)?;
    node.run(now)
}

/// It arrives: it is opened, applied, and told.
#[inline(never)]
fn measured_change_told(fabric: &mut Fabric) -> Sent {
    // The same as another function would be one with it, and counted together.
    black_box("a change");
    fabric.deliver()
}

/// What comes back for it at once.
#[inline(never)]
fn measured_answers(node: &mut Node, answers: &Sent, now: Instant) -> anyhow::Result<()> {
    node.take(answers, now)
}

/// As many bytes to as many peers, as messages.
#[inline(never)]
fn measured_message(node: &mut Node, now: Instant) -> anyhow::Result<()> {
    let message = [WORDS.as_bytes(), b"head!"].concat();
    for connection in black_box(&node.plain) {
        node.endpoint.send_message(now, *connection, &message)?;
    }
    node.run(now)
}

/// They arrive: they are opened and read.
#[inline(never)]
fn measured_message_told(fabric: &mut Fabric) -> Sent {
    fabric.deliver()
}

impl Node {
    fn new() -> anyhow::Result<Self> {
        let contexts = ContextOwner::new(owner()?, None, &[]);
        Ok(Self { endpoint: endpoint(0), contexts, plain: Vec::new(), sent: Sent::default() })
    }

    fn take(&mut self, sent: &Sent, now: Instant) -> anyhow::Result<()> {
        for (source, datagram) in sent.iter() {
            self.endpoint.handle_datagram(now, source, address(0), Ecn::NotEct, datagram);
        }
        self.run(now)
    }

    /// As a worker's passes, until there is nothing to do.
    fn run(&mut self, now: Instant) -> anyhow::Result<()> {
        loop {
            self.endpoint.handle_timeout(now);
            let mut progress = self.contexts.poll(&mut self.endpoint, now);
            while let Some(event) = self.endpoint.poll_event() {
                progress = true;
                self.contexts.on_event(&mut self.endpoint, now, &event);
                match event {
                    Event::Offered { connection, port: CONTEXTS_PORT } => {
                        self.contexts.accept(&mut self.endpoint, now, connection);
                    }
                    Event::Offered { connection, .. } => {
                        self.endpoint.accept(now, connection)?;
                        self.plain.push(connection);
                    }
                    _ => {}
                }
            }
            progress |= self.sent.fill(&mut self.endpoint, now, BATCH, None);
            self.endpoint.poll_timeout();
            if !progress {
                return Ok(());
            }
        }
    }
}

impl Peer {
    fn new(n: u32) -> anyhow::Result<Self> {
        let mut endpoint = endpoint(n);
        let server = endpoint.add_peer(nodes::known(0, true));
        endpoint.connect(Instant::ORIGIN, server, PLAIN_PORT)?;
        let mut contexts = ContextClient::new(server);
        contexts.client.follow(Follow { name: NAME.into(), ..Follow::default() }, None);
        Ok(Self { endpoint, number: n, contexts, notices: 0, messages: 0, buffer: Vec::new() })
    }

    /// What it sends after it did all there is to do.
    fn run(&mut self, now: Instant) -> anyhow::Result<Sent> {
        let mut sent = Sent::default();
        loop {
            self.endpoint.handle_timeout(now);
            let mut progress = self.contexts.poll(&mut self.endpoint, now);
            while let Some(event) = self.endpoint.poll_event() {
                progress = true;
                if let Some(reason) = self.contexts.on_event(&mut self.endpoint, now, &event) {
                    bail!("the connection of contexts ended: {reason}");
                }
                if let Event::MessagesReadable { connection } = event {
                    self.buffer.clear();
                    while let Ok(Some(_)) = self.endpoint.receive_message(now, connection, &mut self.buffer) {
                        self.messages += 1;
                    }
                }
            }
            while self.contexts.client.poll_notice().is_some() {
                self.notices += 1;
            }
            progress |= sent.fill(&mut self.endpoint, now, BATCH, Some(address(self.number)));
            if !progress {
                return Ok(sent);
            }
        }
    }
}

impl Sent {
    /// Takes what an endpoint sends, at most so many datagrams: by the address of the other end, which is where they go, or where
    /// they come from. Whether there was one.
    fn fill(&mut self, endpoint: &mut Endpoint, now: Instant, most: usize, source: Option<SocketAddr>) -> bool {
        let mut sent = 0;
        while sent < most && endpoint.wants_transmit() {
            let end = self.bytes.len();
            self.bytes.resize(end + MTU, 0);
            let transmit = endpoint.poll_transmit(now, &mut self.bytes[end..]);
            self.bytes.truncate(end + transmit.map_or(0, |transmit| transmit.len));
            let Some(transmit) = transmit else { break };
            self.datagrams.push((source.unwrap_or(transmit.destination), transmit.len));
            sent += 1;
        }
        sent > 0
    }

    fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let mut rest = &self.bytes[..];
        self.datagrams.iter().map(move |(address, length)| {
            let (datagram, after) = rest.split_at(*length);
            rest = after;
            (*address, datagram)
        })
    }

    fn append(&mut self, other: Self) {
        self.bytes.extend(other.bytes);
        self.datagrams.extend(other.datagrams);
    }

    fn cleared(mut self) -> Self {
        self.bytes.clear();
        self.datagrams.clear();
        self
    }
}

fn endpoint(n: u32) -> Endpoint {
    let mut config = nodes::config(n);
    config.max_datagram = MTU as u16;
    nodes::endpoint(n, config)
}

fn number(address: SocketAddr) -> usize {
    match address.ip() {
        IpAddr::V4(ip) => (u32::from(ip) & 0xff_ffff) as usize,
        IpAddr::V6(_) => 0,
    }
}
