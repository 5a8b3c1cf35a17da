//! A tunnel: everything with one peer, on one lane (`docs/wire.md` W3.16).
//!
//! ```text
//!            connect                                         initiation of the peer
//!   idle ───────────────► attempt ── response ──┐       ┌─── answer ──► fresh (unconfirmed)
//!    ▲                                          ▼       ▼                 │ first data packet under its key
//!    └──── idle time-out, CLOSE ──────────── session + transport ◄────────┘
//!                                              │     ▲
//!       the key is old, or the peer silent     └─────┘ a handshake that both continue: the next epoch's key (`rekey`)
//! ```
//!
//! `session` is ids and keys; `transport` packet numbers and recovery. With the table of connections they are the state that
//! resumption continues (`docs/wire.md` W3.14).

mod bulk;
mod challenged;
mod ids;
pub(crate) mod lifecycle;
mod mtu;
mod path;
mod receive;
mod rekey;
mod removed;
mod rest;
pub(crate) mod transmit;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Config, PeerConfig};
use crate::connection::table::Table;
use crate::connection::{Connection, Key};
use crate::crypto::aead::Aead;
use crate::crypto::cookie::Cookie;
use crate::crypto::handshake::{Initiated, Initiation};
use crate::crypto::keys::Slots;
use crate::crypto::mac::Mac1Key;
use crate::crypto::parameters::Parameters;
use crate::crypto::replay::ReplayWindow;
use crate::crypto::reset::{ResetKey, ResetToken};
use crate::crypto::rng::SeededRng;
use crate::endpoint::addresses::PeerAddresses;
use crate::error::CloseReason;
use crate::event::{Event, PeerId};
use crate::flow::Pace;
use crate::limits::{
    BLACK_HOLE_TIMEOUTS, CONFIRM_TIMEOUT, CONNECT_TIMEOUT, KEEP_ALIVE, MAX_STREAM_SEND_BUFFER_BYTES,
    MIN_DATAGRAM_BYTES, STREAM_SEND_BUFFER_BYTES, SUSPECT_AFTER,
};
use crate::recovery::Recovery;
use crate::recovery::ack::Acks;
use crate::recovery::sent::SentFrame;
use crate::stats::{Stats, TunnelStats};
use crate::time::Instant;
use crate::version::Versions;
use ids::SessionIds;
pub(crate) use ids::Sessions;
pub(crate) use path::Path;
use path::Paths;

/// What a tunnel may use of its endpoint during one call.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) config: &'a Config,
    pub(crate) own_mac1: &'a Mac1Key,
    pub(crate) reset_key: &'a ResetKey,
    pub(crate) events: &'a mut VecDeque<Event>,
    pub(crate) sessions: &'a mut Sessions,
    pub(crate) addresses: &'a mut PeerAddresses,
    pub(crate) rng: &'a mut SeededRng,
    pub(crate) stats: &'a mut Stats,
}

impl Context<'_> {
    pub(crate) fn unix_time(&self) -> Duration {
        self.config.unix_time + self.now.since(Instant::ORIGIN)
    }
}

/// Ids and keys.
struct Session {
    local: SessionIds,
    remote_id: u32,
    /// With which the peer says that it has forgotten that id (W4.9).
    remote_token: Option<ResetToken>,
    /// The packet that brought it; `None`: the handshake did. What comes late changes it no more.
    remote_id_from: Option<u64>,
    keys: Slots,
    /// Of the first handshake.
    is_initiator: bool,
    /// By the last handshake.
    terms: Terms,
    /// By a handshake whose key the peer has not yet proven to have, or is about to.
    offered: Option<Box<Agreed>>,
}

/// What a handshake agreed, beside keys.
struct Agreed {
    terms: Terms,
    /// Which it has proven: the peer answered what was sent there.
    path: Path,
    /// What the peer said of itself.
    peer: Parameters,
}

/// What of it is asked for later.
#[derive(Clone, Copy)]
struct Terms {
    aead: Aead,
    /// The peer's; zero for none.
    idle_timeout: Duration,
    handshake: Duration,
}

/// A handshake that we began.
struct Attempt {
    initiation: Initiation,
    sent: Instant,
    /// Where to.
    path: Path,
    resume: Option<u64>,
    /// Sent at once because a cookie had come: a second one is not worth another, or whoever is on the way could keep us
    /// sending.
    is_repeat: bool,
}

/// What the peer, under load, gave us to send along (W3.21).
struct Held {
    cookie: Cookie,
    until: Instant,
    /// The initiation that it answers is to be repeated with it.
    unused: bool,
}

/// An initiation that is to be answered.
struct Answer {
    initiated: Initiated,
    aead: Aead,
    path: Path,
}

/// What outlives a handshake.
struct Transport {
    id: u64,
    /// The peer's process.
    peer_boot_id: [u8; 16],
    recovery: Recovery,
    acks: Acks,
    replay: ReplayWindow,
    /// One above the highest packet number opened.
    next_received: u64,
    paths: Paths,
    last_received: Instant,
    last_sent: Instant,
    /// Since when something was sent that asks for an answer, and nothing was heard.
    awaiting_since: Option<Instant>,
    /// Room was given back since the last packet (`rest`).
    is_resting: bool,
    stats: TunnelStats,
}

/// The tunnel is over here; the peer is told, and told again when it still sends (W5.15).
struct Closing {
    code: u64,
    reason: String,
    due: bool,
    packets_left: u8,
    until: Instant,
}

/// See the module's head.
pub(crate) struct Tunnel {
    peer: PeerId,
    lane: u8,
    pub(crate) config: PeerConfig,
    mac1: Mac1Key,
    pub(crate) table: Table,
    attempt: Option<Box<Attempt>>,
    /// Initiations sent since the last success.
    tries: u32,
    /// When to send the next one.
    next_try: Option<Instant>,
    /// Initiations go on although the peer is heard, for a new key.
    is_rekeying: bool,
    cookie: Option<Box<Held>>,
    /// What the peer says that it speaks, when that is not our version.
    spoken: Option<Versions>,
    answer: Option<Box<Answer>>,
    /// Of the last initiation accepted (W3.5).
    last_timestamp: u64,
    /// Of a new tunnel that the peer began, and has not yet proven to have the key of.
    fresh: Option<Box<Session>>,
    fresh_since: Instant,
    session: Option<Box<Session>>,
    transport: Option<Box<Transport>>,
    closing: Option<Box<Closing>>,
    /// Where the peer was last, by proof.
    last_path: Option<Path>,
    /// Since when connections wait for a tunnel.
    waiting_since: Option<Instant>,
}

impl Tunnel {
    pub(crate) fn new(peer: PeerId, lane: u8, config: PeerConfig) -> Self {
        Self {
            peer,
            lane,
            mac1: Mac1Key::to(&config.key.static_key),
            config,
            table: Table::new(peer),
            attempt: None,
            tries: 0,
            next_try: None,
            is_rekeying: false,
            cookie: None,
            spoken: None,
            answer: None,
            last_timestamp: 0,
            fresh: None,
            fresh_since: Instant::ORIGIN,
            session: None,
            transport: None,
            closing: None,
            last_path: None,
            waiting_since: None,
        }
    }

    /// The peer as it is configured now: who it is stays the same, its static key may be another one (W3.36).
    pub(crate) fn configure(&mut self, config: PeerConfig) {
        self.mac1 = Mac1Key::to(&config.key.static_key);
        self.config = config;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.session.is_some() && self.closing.is_none()
    }

    pub(crate) fn last_address(&self) -> Option<SocketAddr> {
        self.last_path.map(|path| path.remote)
    }

    pub(crate) fn remember_address(&mut self, remote: SocketAddr, addresses: &mut PeerAddresses) {
        if self.last_path.is_none() {
            self.set_last_path(Path { remote, local: None }, addresses);
        }
    }

    fn set_last_path(&mut self, path: Path, addresses: &mut PeerAddresses) {
        addresses.replace(self.last_address(), Some(path.remote));
        self.last_path = Some(path);
    }

    /// Whether nothing is to be sent now, nor anything under way but what was sent: what goes on is due by time alone, and no
    /// sooner than an ack of a packet that came just now. When in doubt, it is not.
    pub(crate) fn is_calm(&self, now: Instant) -> bool {
        let (Some(transport), Some(_)) = (&self.transport, &self.session) else { return false };
        let is_between_handshakes =
            self.answer.is_none() && self.fresh.is_none() && self.attempt.is_none() && self.next_try.is_none();
        let has_frames = self.table.has_data() || !self.table.control.is_empty() || transport.acks.is_due(now);
        is_between_handshakes
            && self.closing.is_none()
            && !has_frames
            && transport.recovery.is_calm()
            && transport.paths.is_calm(now)
    }

    /// What the application's reading is measured against.
    pub(crate) fn pace(&self, now: Instant) -> Pace {
        let rtt = self.transport.as_ref().map(|transport| &transport.recovery.rtt);
        // Before the first sample the estimate is a guess for the worst path.
        Pace { now, rtt: rtt.filter(|rtt| rtt.min().is_some()).map(|rtt| rtt.smoothed) }
    }

    /// Runs what an application says that it has consumed. The ACK that is owed takes it along; where it has left, a PING does
    /// (W5.16).
    pub(crate) fn consume(&mut self, key: Key, run: impl FnOnce(&mut Connection)) {
        self.table.consume(key, run);
        let is_awaited = self.transport.as_ref().is_some_and(|transport| transport.acks.due().is_none());
        if is_awaited && self.table.has_consumed() && self.table.control.is_empty() {
            self.table.control.push_back(SentFrame::Ping);
        }
    }

    /// Bytes that a stream may hold for sending: what is in flight, and as much to follow.
    pub(crate) fn send_buffer(&self) -> usize {
        let flight = self.transport.as_ref().map_or(0, |transport| transport.recovery.most_in_flight());
        let two = usize::try_from(2 * flight).unwrap_or(usize::MAX);
        two.clamp(STREAM_SEND_BUFFER_BYTES, MAX_STREAM_SEND_BUFFER_BYTES)
    }

    /// Bytes: the largest datagram the path is known to carry.
    pub(crate) fn max_datagram(&self) -> u16 {
        self.transport.as_ref().map_or(MIN_DATAGRAM_BYTES, |transport| transport.paths.sending().mtu.current())
    }

    /// Unreliable datagrams are sent, which may be as long as the path is known to carry.
    pub(crate) fn want_larger_datagrams(&mut self) {
        if let Some(transport) = &mut self.transport {
            transport.paths.sending_mut().mtu.want();
        }
    }

    pub(crate) fn aead(&self) -> Option<Aead> {
        self.session.as_ref().map(|session| session.terms.aead)
    }

    pub(crate) fn stats(&self) -> Option<TunnelStats> {
        let transport = self.transport.as_ref()?;
        let recovery = &transport.recovery;
        Some(TunnelStats {
            lost_packets: recovery.counters.lost_packets,
            spurious_losses: recovery.counters.spurious_losses,
            persistent_congestions: recovery.counters.persistent_congestions,
            ecn_ce: recovery.counters.ecn_ce,
            paced: recovery.counters.paced,
            queued_back: recovery.counters.queued_back,
            ecn_failures: recovery.ecn_failures(),
            probe_timeouts: recovery.counters.probe_timeouts,
            handshake: self.session.as_ref().map_or(Duration::ZERO, |session| session.terms.handshake),
            smoothed_rtt: recovery.rtt.smoothed,
            min_rtt: recovery.rtt.min().unwrap_or(Duration::ZERO),
            congestion_window: recovery.congestion_window(),
            bytes_in_flight: recovery.bytes_in_flight(),
            max_datagram: transport.paths.sending().mtu.current(),
            sending_bulk: transport.paths.bulk.is_sending(),
            path_switches: transport.paths.bulk.switches,
            path_challenges: transport.paths.challenges,
            peer_moves: transport.paths.moves,
            unproven_paths: transport.paths.unproven,
            ..transport.stats.clone()
        })
    }

    /// The earliest time at which `handle_timeout` has something to do.
    pub(crate) fn deadline(&self, config: &Config) -> Option<Instant> {
        let mut earliest = Instant::END;
        let mut add = |at: Option<Instant>| earliest = earliest.min(at.unwrap_or(Instant::END));
        add(self.next_try);
        add(self.fresh.as_ref().map(|_| self.fresh_since + CONFIRM_TIMEOUT));
        add(self.waiting_since.map(|since| since + CONNECT_TIMEOUT));
        if let Some(closing) = &self.closing {
            add(Some(closing.until));
        } else if let (Some(transport), Some(session)) = (&self.transport, &self.session) {
            add(self.idle_at(config, transport));
            add(self.rekey_at(config));
            add(session.keys.deadline());
            // Where nothing can be sent, it does not matter what is due.
            if !session.keys.is_used_up() {
                add(transport.recovery.deadline());
                add(transport.paths.deadline());
                add(session.local.deadline());
                add(self.suspect_at(transport));
                add(rest::rest_at(transport));
                // Nothing of it can be done where nothing may be sent.
                if transport.paths.allowance().is_some() {
                    add(transport.acks.due());
                    add(self.keep_alive_at(transport));
                }
            }
        }
        (earliest < Instant::END).then_some(earliest)
    }

    fn idle_at(&self, config: &Config, transport: &Transport) -> Option<Instant> {
        let peer = self.session.as_ref().map_or(Duration::ZERO, |session| session.terms.idle_timeout);
        let timeout = match (config.idle_timeout, peer) {
            (Duration::ZERO, Duration::ZERO) => return None,
            (Duration::ZERO, timeout) | (timeout, Duration::ZERO) => timeout,
            (own, peer) => own.min(peer),
        };
        Some(transport.last_received + timeout)
    }

    /// A peer that does not answer may have restarted: a handshake beside the tunnel finds out.
    fn suspect_at(&self, transport: &Transport) -> Option<Instant> {
        let idle = self.attempt.is_none() && self.next_try.is_none();
        transport.awaiting_since.filter(|_| idle).map(|since| since + SUSPECT_AFTER)
    }

    /// W6.2.
    fn keep_alive_at(&self, transport: &Transport) -> Option<Instant> {
        let may_send = transport.paths.allowance().is_some();
        (self.table.has_live() && !transport.recovery.has_unacked() && may_send)
            .then(|| transport.last_sent + KEEP_ALIVE)
    }

    /// Does what is due at `ctx.now`. What is to be sent then is asked for by `poll_transmit`.
    pub(crate) fn handle_timeout(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now;
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.fresh.is_some() && due(Some(self.fresh_since + CONFIRM_TIMEOUT)) {
            self.drop_fresh(ctx);
        }
        if due(self.waiting_since.map(|since| since + CONNECT_TIMEOUT)) {
            self.give_up_connecting(ctx);
        }
        if let Some(closing) = &self.closing {
            if due(Some(closing.until)) {
                self.drop_session(ctx);
            }
            return;
        }
        let Some(transport) = &self.transport else { return };
        if due(self.idle_at(ctx.config, transport)) {
            self.on_down(ctx, CloseReason::TimedOut);
            return self.drop_session(ctx);
        }
        if due(self.suspect_at(transport)) {
            self.next_try = Some(ctx.now);
        }
        if due(self.keep_alive_at(transport)) {
            self.table.control.push_back(SentFrame::Ping);
        }
        if due(rest::rest_at(transport)) {
            self.rest();
        }
        if let Some(session) = &mut self.session {
            session.local.retire(now, ctx.sessions);
            session.keys.retire(now);
        }
        if let Some(transport) = &mut self.transport {
            let (table, acks, paths) = (&mut self.table, &mut transport.acks, &mut transport.paths);
            let recovery = &mut transport.recovery;
            paths.handle_timeout(now, recovery);
            let mtu = &mut paths.sending_mut().mtu;
            recovery.on_timeout(now, |fate| receive::apply(now, fate, table, acks, mtu, ctx.events));
            let mut lost = Vec::new();
            if paths.on_probe_timeout(now, recovery, ctx.events, |fate| lost.push(fate)) {
                let mtu = &mut paths.sending_mut().mtu;
                lost.into_iter().for_each(|fate| receive::apply(now, fate, table, acks, mtu, ctx.events));
            } else if recovery.timeouts_in_a_row() == BLACK_HOLE_TIMEOUTS {
                // Once an outage: the search that follows has its own bound.
                let mtu = &mut paths.sending_mut().mtu;
                transport.stats.black_holes += u64::from(mtu.fall_back());
                recovery.set_datagram(mtu.current());
            }
            paths.choose(now, false, recovery, ctx.events);
        }
    }
}
