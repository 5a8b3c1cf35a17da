//! The core: one worker's tunnels.
//!
//! # Contract
//!
//! The endpoint does no I/O, reads no clock and draws no randomness. Its methods are of four kinds:
//!
//! - *input*: [`Endpoint::handle_datagram`], [`Endpoint::handle_timeout`];
//! - *operations* of the application: `connect`, `accept`, `send_message`, `write`, `read` and so on (`api.rs`);
//! - *output*: [`Endpoint::poll_transmit`], [`Endpoint::poll_effect`], [`Endpoint::poll_event`], [`Endpoint::poll_timeout`];
//! - *inspection*: `stats`, `tunnel_stats`.
//!
//! `now` never goes backwards from call to call. After any input or operation: call `poll_transmit` until it returns `None`
//! (or until there is no room to send, and then go on later), `poll_event` until `None`, and call `handle_timeout` at the
//! instant that `poll_timeout` names, or after. The order among the three does not matter; leaving one out stops progress but
//! breaks nothing. Where a link looks up session ids before the endpoint does, `poll_effect` tells which there are: it is called
//! until `None` after each `poll_transmit`, before the datagram leaves. A datagram that comes to nothing is a counted [`DropReason`], never an error, and never ends a tunnel.

/// What a tunnel or an introduction may use of its endpoint, beside what it is itself part of.
macro_rules! context {
    ($endpoint:expr, $now:expr) => {
        Context {
            now: $now,
            config: &$endpoint.config,
            own_mac1: &$endpoint.own_mac1,
            reset_key: &$endpoint.reset_key,
            events: &mut $endpoint.events,
            sessions: &mut $endpoint.sessions,
            addresses: &mut $endpoint.addresses,
            rng: &mut $endpoint.rng,
            stats: &mut $endpoint.stats,
        }
    };
}

pub(crate) mod addresses;
mod admission;
mod api;
mod introductions;
mod replies;
mod timers;

pub use api::MessageWriter;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use pilot_common::wire::{Header, HeaderError, PacketType};

use crate::config::{BulkUse, Config};
use crate::crypto::handshake::Initiated;
use crate::crypto::mac::Mac1Key;
use crate::crypto::reset::{ResetKey, ResetToken};
use crate::crypto::rng::SeededRng;
use crate::event::{Effect, Event, PeerId};
use crate::limits::{MAX_ACK_DELAY, MAX_DATAGRAM_BYTES, MAX_RESETS_PER_SECOND, VERSION_ANSWERS_PER_SECOND};
use crate::recovery::ecn::Ecn;
use crate::stats::{DropReason, Stats};
use crate::time::Instant;
use crate::tunnel::transmit::Sent;
use crate::tunnel::{Context, Path, Sessions, Tunnel};
use crate::version;
use addresses::PeerAddresses;
use admission::{Admission, Rate, Rates, Verdict};
use introductions::Introductions;
use replies::Replies;
use timers::Timers;

/// See the module's head.
pub struct Endpoint {
    config: Config,
    /// As configured; in `config`, as the link allows it.
    bulk: BulkUse,
    own_mac1: Mac1Key,
    reset_key: ResetKey,
    reset_rate: Rate,
    admission: Admission,
    /// `None`: the configuration does not allow any.
    introductions: Option<Box<Introductions>>,
    /// What strangers are told; before all else, because it is short and they wait.
    replies: Replies,
    version_answers: Rate,
    rng: SeededRng,
    /// By [`PeerId`].
    tunnels: Vec<Tunnel>,
    /// By identity and lane.
    peers: HashMap<([u8; 32], u8), PeerId>,
    sessions: Sessions,
    addresses: PeerAddresses,
    events: VecDeque<Event>,
    /// Tunnels that may have something to send, each once, in turn.
    ready: VecDeque<PeerId>,
    is_ready: Vec<bool>,
    /// The worker that has the tunnel, see [`Endpoint::set_owner`].
    owners: Vec<u8>,
    timers: Timers,
    /// Tunnels that something was done on since their deadlines were looked at, each once: several things are done in a pass,
    /// and the deadlines are asked for at its end.
    stale: Vec<PeerId>,
    is_stale: Vec<bool>,
    /// Empty between calls; kept for its room.
    due: Vec<PeerId>,
    /// The latest time that was told.
    now: Instant,
    stats: Stats,
    scratch: Box<[u8]>,
}

/// What a datagram was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A data packet of a peer, authenticated.
    Data,
    /// A handshake message of a peer, authenticated; or its reset, with the right token.
    Handshake,
    /// An initiation of a peer whose tunnel this worker has: to be handed to it, as it came.
    Elsewhere(u8),
    /// An answer to a handshake that anybody on the way could have given, or a part of an introduction. It proves nothing about who
    /// sent it.
    Unproven,
    /// Nothing that can be used.
    Dropped(DropReason),
}

/// A datagram to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// Where to.
    pub destination: SocketAddr,
    /// From which of our addresses and ports; `None`: the first port, from whichever address the routing table chooses.
    pub source: Option<SocketAddr>,
    /// ECN bits to send with.
    pub ecn: Ecn,
    /// Bytes of the buffer that are the datagram.
    pub len: usize,
}

impl Endpoint {
    /// An endpoint without peers. All randomness comes from `seed`, which must be secret and used once.
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let config = config.clamped();
        let mut rng = SeededRng::new(seed);
        let static_key = config.identity.public_key().static_key;
        Self {
            own_mac1: Mac1Key::to(&static_key),
            reset_key: ResetKey::of(&config.identity),
            reset_rate: Rate::default(),
            admission: Admission::new(&config.identity, &static_key, &mut rng),
            introductions: config.introductions.then(|| Box::new(Introductions::new(&config.identity, &mut rng))),
            replies: Replies::new(),
            version_answers: Rate::default(),
            bulk: config.bulk,
            config,
            rng,
            tunnels: Vec::new(),
            peers: HashMap::new(),
            sessions: Sessions::default(),
            addresses: PeerAddresses::default(),
            events: VecDeque::new(),
            ready: VecDeque::new(),
            is_ready: Vec::new(),
            owners: Vec::new(),
            timers: Timers::default(),
            stale: Vec::new(),
            is_stale: Vec::new(),
            due: Vec::new(),
            now: Instant::ORIGIN,
            stats: Stats::default(),
            scratch: vec![0; usize::from(MAX_DATAGRAM_BYTES)].into_boxed_slice(),
        }
    }

    /// Handles one received datagram: `source` sent it to our address and port `destination`, and it came with these ECN
    /// bits.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        ecn: Ecn,
        datagram: &[u8],
    ) -> Received {
        let path = Path { remote: source, local: Some(destination) };
        self.dispatch(now, path, ecn, datagram).unwrap_or_else(|reason| {
            self.stats.count_drop(reason);
            Received::Dropped(reason)
        })
    }

    fn dispatch(&mut self, now: Instant, path: Path, ecn: Ecn, datagram: &[u8]) -> Result<Received, DropReason> {
        let header = match Header::parse(datagram) {
            Ok(header) => header,
            Err(HeaderError::Short) => return Err(DropReason::Short),
            Err(HeaderError::Version) => return self.on_other_version(now, path, datagram),
            Err(HeaderError::Type) => return Err(DropReason::Type),
            Err(HeaderError::Length) => return Err(DropReason::Length),
        };
        // Of a handshake message, neither Noise nor its parameters cover these.
        let fits = match header.packet_type {
            PacketType::Data => true,
            PacketType::Initiation => header.epoch == 0 && header.receiver == 0,
            PacketType::Cookie => header.epoch == 0 && header.word == 0,
            _ => header.epoch == 0,
        };
        if !fits {
            return Err(DropReason::Header);
        }
        match header.packet_type {
            PacketType::Data => {
                let Some(peer) = self.sessions.peer(header.receiver) else {
                    self.owe_reset(now, path, header.receiver);
                    return Err(DropReason::UnknownSession);
                };
                let mut scratch = std::mem::take(&mut self.scratch);
                let result =
                    self.with(now, peer, |tunnel, ctx| tunnel.on_data(ctx, header, datagram, &path, ecn, &mut scratch));
                self.scratch = scratch;
                result.map(|()| Received::Data)
            }
            PacketType::Initiation => self.on_initiation(now, path, header, datagram),
            PacketType::Response => {
                let Some(peer) = self.sessions.peer(header.receiver) else {
                    return self.on_introduction(now, header, datagram);
                };
                self.with(now, peer, |tunnel, ctx| tunnel.on_response(ctx, header.receiver, datagram, path))?;
                Ok(Received::Handshake)
            }
            PacketType::Cookie => {
                let Some(peer) = self.sessions.peer(header.receiver) else {
                    return self.on_introduction(now, header, datagram);
                };
                self.with(now, peer, |tunnel, ctx| tunnel.on_cookie(ctx, header.receiver, datagram))?;
                Ok(Received::Unproven)
            }
            PacketType::Reset => {
                let peer = self.sessions.peer_of_remote(header.receiver).ok_or(DropReason::Reset)?;
                let token = datagram.last_chunk().map(|token| ResetToken(*token)).ok_or(DropReason::Length)?;
                self.with(now, peer, |tunnel, ctx| tunnel.on_reset(ctx, header.receiver, token))?;
                Ok(Received::Handshake)
            }
            PacketType::Relayed => Err(DropReason::Type),
        }
    }

    /// W4.9. Only for ids that this worker gave: of the others it does not know whether they are in use. Only where a peer may
    /// be: a stranger does not learn that there is a node. A reset is shorter than any data packet, and answered by none.
    fn owe_reset(&mut self, now: Instant, path: Path, session_id: u32) {
        let is_ours = session_id >> 24 == u32::from(self.config.worker);
        let may_be_peer = is_ours && self.addresses.contains(path.remote.ip());
        if may_be_peer && self.replies.has_room() && self.reset_rate.try_take(now, MAX_RESETS_PER_SECOND) {
            self.replies.push(path, &self.reset_key.token(session_id, path.remote.ip()).to_datagram(session_id));
            self.stats.resets_sent += 1;
        }
    }

    fn on_initiation(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        datagram: &[u8],
    ) -> Result<Received, DropReason> {
        // W3.2: before anything that costs more.
        let Some(covered) = self.own_mac1.verify(datagram) else {
            return self.on_opening(now, path, header, datagram);
        };
        let unix_time = self.config.unix_time + now.since(Instant::ORIGIN);
        let Config { handshakes_per_second: all, handshakes_per_source_per_second: of_source, .. } = self.config;
        match self.admission.decide(Rates { all, of_source }, now, unix_time, path.remote, datagram) {
            Verdict::Read => {}
            Verdict::Cookie => {
                self.replies.push_cookie(&self.admission.cookies, unix_time, path, datagram, &mut self.rng);
                return Err(DropReason::NoCookie);
            }
            Verdict::Limited => return Err(DropReason::SourceLimit),
        }
        let rng = self.rng.fork();
        let initiated = Initiated::read(&self.config.identity, rng, unix_time.as_secs(), header, covered)?;
        // W3.4, W3.16: default deny.
        let lane = (initiated.key.identity, initiated.parameters.lane);
        let peer = *self.peers.get(&lane).ok_or(DropReason::UnknownPeer)?;
        let owner = self.owners[peer.0 as usize];
        if owner != self.config.worker {
            return Ok(Received::Elsewhere(owner));
        }
        self.with(now, peer, |tunnel, ctx| tunnel.on_initiation(ctx, initiated, path))?;
        Ok(Received::Handshake)
    }

    /// Of another version, initiations and answers to ours are understood (W3.10).
    fn on_other_version(&mut self, now: Instant, path: Path, datagram: &[u8]) -> Result<Received, DropReason> {
        if let Some(answer) = version::Answer::from_bytes(datagram) {
            let peer = self.sessions.peer(answer.session_id).ok_or(DropReason::NoAttempt)?;
            self.with(now, peer, |tunnel, _| tunnel.on_versions(&answer))?;
            return Ok(Received::Unproven);
        }
        if let Some(answer) = version::Answer::to(datagram)
            && self.own_mac1.verify(datagram).is_some()
            && self.version_answers.try_take(now, VERSION_ANSWERS_PER_SECOND)
        {
            self.replies.push(path, &answer.to_bytes());
        }
        Err(DropReason::Version)
    }

    /// Does what time has made due, as [`Endpoint::poll_timeout`] said when it was last asked. Costs next to nothing when that
    /// is nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.with_introductions(now, |introductions, ctx, _| introductions.handle_timeout(ctx));
        if self.timers.next().is_none_or(|at| at > now) {
            return;
        }
        // Taken out all at once: what is due and left to `poll_transmit`, as an ack, is still due after.
        let mut due = std::mem::take(&mut self.due);
        due.extend(std::iter::from_fn(|| self.timers.pop(now)));
        for peer in due.drain(..) {
            let deadline = self.tunnels[peer.0 as usize].deadline(&self.config);
            if deadline.is_some_and(|at| at <= now) {
                self.run(now, peer, |tunnel, ctx| tunnel.handle_timeout(ctx));
                self.make_ready(peer);
                self.make_stale(peer);
            } else {
                self.timers.set(peer, deadline);
            }
        }
        self.due = due;
    }

    /// When to call [`Endpoint::handle_timeout`] next, at the latest.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        self.settle_deadlines();
        let introductions = self.introductions.as_ref().and_then(|introductions| introductions.deadline());
        self.timers.next().into_iter().chain(introductions).min()
    }

    fn settle_deadlines(&mut self) {
        while let Some(peer) = self.stale.pop() {
            self.is_stale[peer.0 as usize] = false;
            if self.is_looked_at(peer) && self.tunnels[peer.0 as usize].is_calm(self.now) {
                continue;
            }
            self.timers.set(peer, self.tunnels[peer.0 as usize].deadline(&self.config));
        }
    }

    /// Usual packets make nothing due before an ack of them, and calm tunnels that are looked at until then need not be now.
    fn is_looked_at(&self, peer: PeerId) -> bool {
        self.timers.looks_at(peer, self.now + MAX_ACK_DELAY)
    }

    /// Writes the next datagram to send into `datagram`, whose room is a link's largest payload. Tunnels take turns.
    pub fn poll_transmit(&mut self, now: Instant, datagram: &mut [u8]) -> Option<Transmit> {
        if !self.replies.is_empty() {
            return self.replies.pop(datagram);
        }
        if let Some(introductions) = &mut self.introductions
            && let Some(transmit) = introductions.poll_transmit(datagram)
        {
            return Some(transmit);
        }
        while let Some(peer) = self.ready.pop_front() {
            let sent = self.run(now, peer, |tunnel, ctx| tunnel.poll_transmit(ctx, datagram));
            self.make_stale(peer);
            let more = sent.as_ref().is_some_and(|sent| sent.more);
            if more {
                self.ready.push_back(peer);
            }
            self.is_ready[peer.0 as usize] = more;
            if let Some(Sent { len, path, ecn, .. }) = sent {
                return Some(Transmit { destination: path.remote, source: path.local, ecn, len });
            }
        }
        None
    }

    /// Whether [`Endpoint::poll_transmit`] may have something: room need not be fetched for nothing.
    pub fn wants_transmit(&self) -> bool {
        let introductions = self.introductions.as_ref().is_some_and(|introductions| introductions.wants_transmit());
        !self.ready.is_empty() || !self.replies.is_empty() || introductions
    }

    /// The next thing to do before what [`Endpoint::poll_transmit`] gave is sent.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.sessions.poll_effect()
    }

    /// The next thing to tell the application.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The tunnel to a peer, for [`crate::fuzzing`].
    pub(crate) fn tunnel_mut(&mut self, peer: PeerId) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(peer.0 as usize)
    }

    /// Runs an input or operation on a tunnel, which may then have something to send.
    fn with<R>(&mut self, now: Instant, peer: PeerId, run: impl FnOnce(&mut Tunnel, &mut Context<'_>) -> R) -> R {
        let result = self.run(now, peer, run);
        // Most of what arrives needs no answer at once.
        if !self.tunnels[peer.0 as usize].is_calm(now) {
            self.make_ready(peer);
            self.make_stale(peer);
        } else if !self.is_looked_at(peer) {
            self.make_stale(peer);
        }
        result
    }

    fn make_ready(&mut self, peer: PeerId) {
        if !std::mem::replace(&mut self.is_ready[peer.0 as usize], true) {
            self.ready.push_back(peer);
        }
    }

    /// Runs something on a tunnel, whose deadline may be another one after ([`Endpoint::make_stale`]).
    fn run<R>(&mut self, now: Instant, peer: PeerId, run: impl FnOnce(&mut Tunnel, &mut Context<'_>) -> R) -> R {
        self.now = now;
        // A PeerId is made by `add_peer` and `add_lane` alone, and tunnels are never taken out.
        let tunnel = &mut self.tunnels[peer.0 as usize];
        let mut ctx = context!(self, now);
        run(tunnel, &mut ctx)
    }

    /// Its deadline may be another one now.
    fn make_stale(&mut self, peer: PeerId) {
        if !std::mem::replace(&mut self.is_stale[peer.0 as usize], true) {
            self.stale.push(peer);
        }
    }
}

#[cfg(test)]
mod tests;
