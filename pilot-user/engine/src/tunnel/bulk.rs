//! The bulk path: a second pair of ports to the same peer, for what one end sends (`docs/wire.md` W6.8 to W6.10).
//!
//! ```text
//!   first ── data queues ──► ask (PATH_CHALLENGE) ── answered ──► drain ── nothing in flight ──► bulk
//!     ▲                                                                                           │
//!     ├──────────────── nothing in flight ── drain ◄── nothing queued for a while ────────────────┤
//!     └──────────────────────────── at once ◄── nothing heard over it ────────────────────────────┘
//! ```
//!
//! To *drain* is to send nothing that asks for an ack until all that did was acked or lost. So no packet of one path can
//! overtake one of the other.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::path::{Challenge, Path, PathState, Paths, is_at, take_round_trip};
use crate::config::{BulkUse, Config};
use crate::crypto::parameters::Parameters;
use crate::event::Event;
use crate::limits::{
    BLACK_HOLE_TIMEOUTS, BULK_AFTER_BYTES, BULK_AFTER_ROUND_TRIPS, BULK_GAP, BULK_IDLE, BULK_RETRY, BULK_SILENCE,
    MAX_BULK_RETRY,
};
use crate::recovery::{Fate, Recovery};
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Bulk {
    usage: BulkUse,
    own_port: Option<u16>,
    peer_port: Option<u16>,
    /// Packets that the peer's first port and its bulk port absorb at once (W6.5).
    packet_credits: (u32, u32),
    /// Once it was wanted. What is known of it stays when data has returned to the first path.
    path: Option<Box<PathState>>,
    is_sending: bool,
    /// Draining, to go to the other path, and why.
    leaving: Option<&'static str>,
    entered: Instant,
    /// Times that it failed, of late.
    failures: u32,
    not_before: Instant,
    queueing: Queueing,
    pub(super) switches: u64,
}

/// For how long more has been queued than could be sent.
#[derive(Debug, Default)]
struct Queueing {
    since: Instant,
    last: Option<Instant>,
    /// Sent since then.
    bytes: u64,
}

impl Queueing {
    fn on_seen(&mut self, now: Instant, gap: Duration, bytes: u64) {
        if self.last.is_none_or(|last| now.since(last) > gap) {
            (self.since, self.bytes) = (now, 0);
        }
        self.last = Some(now);
        self.bytes += bytes;
    }
}

impl Bulk {
    pub(super) fn new(config: &Config, peer: &Parameters) -> Self {
        Self {
            usage: config.bulk,
            own_port: config.bulk_port,
            peer_port: peer.bulk_port,
            packet_credits: (peer.packet_credit, peer.bulk_packet_credit),
            path: None,
            is_sending: false,
            leaving: None,
            entered: Instant::ORIGIN,
            failures: 0,
            not_before: Instant::ORIGIN,
            queueing: Queueing::default(),
            switches: 0,
        }
    }

    pub(super) fn peer_port(&self) -> Option<u16> {
        self.peer_port
    }

    pub(super) fn set_peer_port(&mut self, port: Option<u16>) {
        self.peer_port = port;
    }

    /// Whether it may be used from now on. Data that takes it returns if not.
    pub(super) fn set_usage(&mut self, usage: BulkUse) {
        self.usage = usage;
        if usage == BulkUse::Never && self.is_sending {
            self.leaving.get_or_insert("the first path has become as fast");
        }
    }

    pub(super) fn is_sending(&self) -> bool {
        self.is_sending
    }

    pub(super) fn path(&self) -> Option<&PathState> {
        self.path.as_deref()
    }

    pub(super) fn path_mut(&mut self) -> Option<&mut PathState> {
        self.path.as_deref_mut()
    }

    /// The path, if data goes over it.
    pub(super) fn active(&self) -> Option<&PathState> {
        self.path.as_deref().filter(|_| self.is_sending)
    }

    pub(super) fn active_mut(&mut self) -> Option<&mut PathState> {
        self.path.as_deref_mut().filter(|_| self.is_sending)
    }

    /// Whether a datagram that came over `path` came over the bulk path, which moves nobody (W6.8): to our bulk port, or from
    /// that of the peer.
    pub(super) fn is_arrival(&self, first: &Path, path: &Path) -> bool {
        let to_ours = self.own_port.is_some() && path.local.map(|local| local.port()) == self.own_port;
        to_ours || is_at(path.remote, first.remote.ip(), self.peer_port)
    }

    /// Where it goes, beside `first`; `None`: neither end has a port for it.
    fn beside(&self, first: &Path) -> Option<Path> {
        let ip = match (first.local, first.remote.ip()) {
            (Some(local), _) => local.ip(),
            (None, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (None, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let local = self.own_port.map(|port| SocketAddr::new(ip, port)).or(first.local);
        let remote = SocketAddr::new(first.remote.ip(), self.peer_port.unwrap_or(first.remote.port()));
        Some(Path { remote, local }).filter(|path| !path.is(first))
    }

    /// When data returns to the first path if none queues until then.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        let may_leave = self.is_sending && self.leaving.is_none() && self.usage == BulkUse::Auto;
        if may_leave { self.queueing.last.map(|last| last + BULK_IDLE) } else { None }
    }

    /// Data is to return to the first path, for none has been queueing (W6.9).
    pub(super) fn leave_if_idle(&mut self, now: Instant) {
        if self.idle_at().is_some_and(|at| at <= now) {
            self.leaving = Some("nothing has been queueing for a while");
        }
    }

    /// Why to send over it now, if so (W6.9).
    fn wanted(&self, now: Instant, has_data: bool, round_trip: Duration) -> Option<&'static str> {
        let Queueing { since, last, bytes } = self.queueing;
        // The bytes first: where nothing queues, it is asked for with every packet.
        let queues = || {
            bytes >= BULK_AFTER_BYTES
                && last.is_some_and(|last| now.since(last) <= gap(round_trip))
                && now.since(since) >= round_trip * BULK_AFTER_ROUND_TRIPS
        };
        match self.usage {
            BulkUse::Auto if queues() => Some("data has been queueing for several round trips"),
            BulkUse::Always if has_data => Some("the configuration says so"),
            _ => None,
        }
    }

    /// It does not work: it is left alone for a while, longer each time (W6.10).
    pub(super) fn on_failed(&mut self, now: Instant) {
        let pause = BULK_RETRY * (1 << self.failures.min(16));
        self.not_before = now + pause.min(MAX_BULK_RETRY);
        self.failures += 1;
        self.path = None;
        self.leaving = None;
    }
}

/// The longest that queueing may stop and go on as the same.
fn gap(round_trip: Duration) -> Duration {
    BULK_GAP.max(round_trip * 2)
}

impl Paths {
    /// Whether nothing new may leave, because what is in flight has to arrive first.
    pub(super) fn is_draining(&self) -> bool {
        self.bulk.leaving.is_some()
    }

    /// More data is queued than can be sent now; `bytes`: what was sent of it.
    pub(super) fn on_queueing(&mut self, now: Instant, bytes: usize, recovery: &Recovery) {
        self.bulk.queueing.on_seen(now, gap(recovery.rtt.smoothed), bytes as u64);
    }

    /// Decides which path data takes, before more is sent. `has_data`: messages or stream data wait.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        has_data: bool,
        recovery: &mut Recovery,
        events: &mut VecDeque<Event>,
    ) {
        self.bulk.leave_if_idle(now);
        if !self.bulk.is_sending && self.bulk.leaving.is_none() {
            let wanted = self.bulk.wanted(now, has_data, recovery.rtt.smoothed).filter(|_| self.first.is_proven);
            let Some(why) = wanted else { return };
            self.enter_bulk(now, why);
        }
        // Not into silence: the other path has time until this one answers.
        if recovery.timeouts_in_a_row() >= BLACK_HOLE_TIMEOUTS
            && self.bulk.leaving.take().is_some()
            && self.bulk.is_sending
        {
            // Else it would be time to leave again at once.
            self.bulk.queueing.last = Some(now);
        }
        if let Some(why) = self.bulk.leaving.filter(|_| !recovery.has_unacked()) {
            self.switch(now, !self.bulk.is_sending, why, recovery, events);
        }
    }

    /// Takes the next step to the bulk path.
    fn enter_bulk(&mut self, now: Instant, why: &'static str) {
        match &mut self.bulk.path {
            Some(path) if path.is_proven => self.bulk.leaving = Some(why),
            Some(path) => _ = path.challenge.get_or_insert_with(|| Challenge::new(now)),
            None if self.bulk.not_before > now => {}
            None => {
                let path = self.bulk.beside(&self.first.path);
                self.bulk.path = path.map(|path| Box::new(PathState::asked(now, path, self.largest_datagram)));
            }
        }
    }

    /// Data takes the other path from now on.
    fn switch(
        &mut self,
        now: Instant,
        bulk: bool,
        why: &'static str,
        recovery: &mut Recovery,
        events: &mut VecDeque<Event>,
    ) {
        let Some(path) = self.bulk.path.as_deref_mut() else { return };
        let (from, to) = if bulk { (&mut self.first, path) } else { (path, &mut self.first) };
        // The challenge came back by the same path; acks take the peer's, which this one may share with the path left.
        let known = recovery.rtt.smoothed;
        // Of a path that does not answer it says nothing.
        let elsewhere = if recovery.timeouts_in_a_row() == 0 { known } else { Duration::ZERO };
        from.parked = Some(Box::new(recovery.switch_path(to.parked.take().map(|parked| *parked))));
        to.mtu.forget_probe();
        take_round_trip(now, to, known, recovery);
        recovery.rtt.elsewhere = elsewhere;
        recovery.set_datagram(to.mtu.current());
        let (at_first, at_bulk) = self.bulk.packet_credits;
        // Of a bulk path that leads to the peer's first port, that one's.
        recovery.set_packet_credit(if bulk && self.bulk.peer_port.is_some() { at_bulk } else { at_first });
        self.bulk.is_sending = bulk;
        self.bulk.leaving = None;
        self.bulk.switches += 1;
        if bulk {
            self.bulk.entered = now;
        } else {
            // Asked anew next time: much can have changed by then. Until then it is only known.
            if let Some(path) = &mut self.bulk.path {
                path.is_proven = false;
            }
            if now.since(self.bulk.entered) >= BULK_RETRY {
                self.bulk.failures = 0;
            }
        }
        self.bulk.queueing.last = bulk.then_some(now);
        events.push_back(Event::Sending { peer: self.peer, bulk, why });
    }

    /// There is no bulk path any more beside the first, which changes.
    pub(super) fn stop_bulk(
        &mut self,
        now: Instant,
        recovery: &mut Recovery,
        events: &mut VecDeque<Event>,
        why: &'static str,
    ) {
        if self.bulk.is_sending {
            self.switch(now, false, why, recovery, events);
        }
        self.bulk.path = None;
        self.bulk.leaving = None;
    }

    /// Probe time-outs have passed. Whether the bulk path was left for it (W6.10): then all that was in flight is lost. What
    /// the peer sends says nothing of this path: while its acks are what is missing, it goes on probing over another.
    pub(super) fn on_probe_timeout(
        &mut self,
        now: Instant,
        recovery: &mut Recovery,
        events: &mut VecDeque<Event>,
        fate: impl FnMut(Fate),
    ) -> bool {
        let is_silent = recovery.unanswered_for(now) >= BULK_SILENCE;
        let is_dead = self.bulk.is_sending && is_silent && recovery.timeouts_in_a_row() >= BLACK_HOLE_TIMEOUTS;
        if is_dead {
            recovery.give_up_in_flight(fate);
            self.switch(now, false, "nothing is heard any more over the bulk path", recovery, events);
            self.bulk.on_failed(now);
        }
        is_dead
    }
}
