//! The paths of a tunnel: where the peer is, and whether that is proven (`docs/wire.md` W4.5, W6.4, W6.7).
//!
//! ```text
//!   first: where the peer is. Proven by a handshake, or followed there and not yet proven
//!   proven: the last proven one, while the first is not
//!   bulk: beside the first, for what is sent; see `bulk`
//! ```

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pilot_common::wire::{HEADER_LEN, TAG_LEN};
use smallvec::SmallVec;

use super::bulk::Bulk;
use super::mtu::Mtu;
use crate::config::Config;
use crate::crypto::parameters::Parameters;
use crate::crypto::rng::SeededRng;
use crate::event::{Event, PeerId};
use crate::frame::PathData;
use crate::limits::{
    AMPLIFICATION_LIMIT, MAX_PATH_CHALLENGES, MAX_PATH_RESPONSES, MIN_DATAGRAM_BYTES, PATH_CHALLENGE_WAIT,
};
use crate::recovery::{Estimates, Recovery};
use crate::time::Instant;

/// Bytes. The least that a datagram to an unproven address must be allowed to have: a header, a tag, and one frame of any
/// kind that may have to go there.
const LEAST_DATAGRAM_BYTES: u64 = 64;

/// Bytes of a datagram with a PATH_RESPONSE alone, or a PATH_CHALLENGE.
const LEAST_RESPONSE_BYTES: u64 = (HEADER_LEN + 1 + size_of::<PathData>() + TAG_LEN) as u64;

/// Where datagrams of a tunnel come from and go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Path {
    pub(crate) remote: SocketAddr,
    /// Our address and port that the peer uses; `None` until it was heard of. The address may be unspecified.
    pub(crate) local: Option<SocketAddr>,
}

impl Path {
    /// Whether both are one path, as far as is known of their local ends.
    pub(super) fn is(&self, other: &Self) -> bool {
        // As for nearly every packet.
        if self == other {
            return true;
        }
        let port = |path: &Self| path.local.map(|local| local.port());
        self.same_hosts(other)
            && self.remote.port() == other.remote.port()
            && (port(self) == port(other) || self.local.is_none() || other.local.is_none())
    }

    /// Whether they differ in ports alone.
    fn same_hosts(&self, other: &Self) -> bool {
        let local = |path: &Self| path.local.map(|local| local.ip()).filter(|ip| !ip.is_unspecified());
        self.remote.ip() == other.remote.ip()
            && (local(self) == local(other) || local(self).is_none() || local(other).is_none())
    }
}

/// A path and what is known of it.
#[derive(Debug)]
pub(super) struct PathState {
    pub(super) path: Path,
    pub(super) mtu: Mtu,
    /// While data takes another path; `None`: nothing is known.
    pub(super) parked: Option<Box<Estimates>>,
    /// While the peer is asked whether it is there.
    pub(super) challenge: Option<Challenge>,
    pub(super) is_proven: bool,
    /// Of the challenge that was answered.
    pub(super) round_trip: Option<Duration>,
    /// Bytes, while it is not proven.
    received: u64,
    sent: u64,
}

impl PathState {
    fn new(path: Path, largest_datagram: u16) -> Self {
        Self {
            path,
            mtu: Mtu::new(largest_datagram),
            parked: None,
            challenge: None,
            is_proven: false,
            round_trip: None,
            received: 0,
            sent: 0,
        }
    }

    fn proven(path: Path, largest_datagram: u16) -> Self {
        Self { is_proven: true, ..Self::new(path, largest_datagram) }
    }

    /// One at whose far end the peer is to be asked for.
    pub(super) fn asked(now: Instant, path: Path, largest_datagram: u16) -> Self {
        Self { challenge: Some(Challenge::new(now)), ..Self::new(path, largest_datagram) }
    }

    /// Bytes that may be sent now (W6.4).
    fn allowance(&self) -> u64 {
        match self.is_proven {
            true => u64::MAX,
            false => (AMPLIFICATION_LIMIT * self.received).saturating_sub(self.sent),
        }
    }

    /// Takes the PATH_RESPONSE to a challenge of this path. Whether it is one.
    fn on_response(&mut self, now: Instant, data: PathData) -> bool {
        let Some(sent) = self.challenge.as_ref().and_then(|challenge| challenge.sent_at(data)) else { return false };
        self.round_trip = Some(now.since(sent));
        self.challenge = None;
        self.is_proven = true;
        true
    }
}

/// The question whether the peer is at the far end of a path, asked a few times (RFC 9000 §8.2).
#[derive(Debug)]
pub(super) struct Challenge {
    /// A late answer to any of them will do.
    sent: SmallVec<[(PathData, Instant); MAX_PATH_CHALLENGES as usize]>,
    tries: u32,
    /// When to ask again, or to give up.
    next: Instant,
}

impl Challenge {
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: SmallVec::new(), tries: 0, next: now }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.tries < MAX_PATH_CHALLENGES && self.next <= now
    }

    fn has_failed(&self, now: Instant) -> bool {
        self.tries >= MAX_PATH_CHALLENGES && self.next <= now
    }

    fn sent_at(&self, data: PathData) -> Option<Instant> {
        self.sent.iter().find(|(sent, _)| *sent == data).map(|(_, at)| *at)
    }

    /// A challenge leaves, or would if it were allowed.
    fn next_try(&mut self, now: Instant, probe_timeout: Duration) {
        self.next = now + PATH_CHALLENGE_WAIT.max(probe_timeout) * (1 << self.tries);
        self.tries += 1;
    }
}

/// A PATH_CHALLENGE or PATH_RESPONSE to send, in a datagram of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathFrame {
    pub(super) path: Path,
    pub(super) data: PathData,
    pub(super) is_response: bool,
    /// Bytes that the datagram is to have.
    pub(super) datagram: u16,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) peer: PeerId,
    /// Bytes: the largest datagram that both ends take.
    pub(super) largest_datagram: u16,
    pub(super) first: PathState,
    /// Boxed, as all that most tunnels never have.
    proven: Option<Box<PathState>>,
    pub(super) bulk: Bulk,
    responses: VecDeque<PathFrame>,
    pub(super) challenges: u64,
    pub(super) moves: u64,
    pub(super) unproven: u64,
}

impl Paths {
    /// Of a tunnel whose handshake has proven `path`.
    pub(super) fn new(peer: PeerId, config: &Config, parameters: &Parameters, path: Path) -> Self {
        let largest_datagram = config.max_datagram.min(parameters.max_datagram);
        Self {
            peer,
            largest_datagram,
            first: PathState::proven(path, largest_datagram),
            proven: None,
            bulk: Bulk::new(config, parameters),
            responses: VecDeque::new(),
            challenges: 0,
            moves: 0,
            unproven: 0,
        }
    }

    /// A handshake that continues the tunnel has proven `path`.
    pub(super) fn on_handshake(
        &mut self,
        now: Instant,
        path: Path,
        bulk_port: Option<u16>,
        recovery: &mut Recovery,
        events: &mut VecDeque<Event>,
    ) {
        if !self.first.path.is(&path) || self.bulk.peer_port() != bulk_port {
            self.stop_bulk(now, recovery, events, "a handshake came from another address");
            self.bulk.set_peer_port(bulk_port);
        }
        if !self.first.path.is(&path) {
            self.change_first(PathState::proven(path, self.largest_datagram), recovery);
        }
        self.first.path = path;
        self.first.is_proven = true;
        self.first.challenge = None;
        self.proven = None;
    }

    /// What is sent goes there now.
    pub(super) fn sending(&self) -> &PathState {
        self.bulk.active().unwrap_or(&self.first)
    }

    pub(super) fn sending_mut(&mut self) -> &mut PathState {
        if self.bulk.is_sending() { self.bulk.active_mut().unwrap_or(&mut self.first) } else { &mut self.first }
    }

    /// Bytes that a datagram may have now that goes where data goes; `None`: none may leave (W6.4).
    pub(super) fn allowance(&self) -> Option<usize> {
        let allowed = self.sending().allowance();
        (allowed >= LEAST_DATAGRAM_BYTES).then(|| usize::try_from(allowed).unwrap_or(usize::MAX))
    }

    /// A datagram was sent.
    pub(super) fn on_sent(&mut self, path: &Path, bytes: usize) {
        if !self.first.is_proven && self.first.path.is(path) {
            self.first.sent += bytes as u64;
        }
    }

    /// Whether there is nothing to ask, to answer or to try, and data goes where it went.
    pub(super) fn is_calm(&self, now: Instant) -> bool {
        let is_asked = |state: &PathState| state.challenge.is_some();
        self.responses.is_empty()
            && !is_asked(&self.first)
            && !self.bulk.path().is_some_and(is_asked)
            && !self.is_draining()
            && self.sending().mtu.probe(now, false).is_none()
    }

    // Following the peer

    /// A packet was opened that came over `path`; `newest`: none before had a higher number (W4.5).
    pub(super) fn on_received(
        &mut self,
        now: Instant,
        path: &Path,
        bytes: usize,
        newest: bool,
        recovery: &mut Recovery,
        events: &mut VecDeque<Event>,
    ) {
        if self.first.path.is(path) {
            self.first.received += bytes as u64;
            if self.first.path.local.is_none_or(|local| local.ip().is_unspecified()) {
                self.first.path.local = path.local;
            }
            return;
        }
        if !newest || self.is_bulk_arrival(path) {
            return;
        }
        self.moves += 1;
        self.stop_bulk(now, recovery, events, "the peer's address changed");
        let known = self.proven.take_if(|proven| proven.path.is(path));
        let to = known.map(|known| *known).unwrap_or_else(|| PathState {
            received: bytes as u64,
            ..PathState::asked(now, *path, self.largest_datagram)
        });
        self.change_first(to, recovery);
    }

    fn is_bulk_arrival(&self, path: &Path) -> bool {
        let mut known = [Some(&self.first), self.proven.as_deref()].into_iter().flatten();
        known.any(|known| self.bulk.is_arrival(&known.path, path))
    }

    /// Puts another path in the place of the first, which must be in use. What is known of a path belongs to the hosts at its
    /// ends: another port is the same path behind another mapping (RFC 9000 §9.4).
    fn change_first(&mut self, mut to: PathState, recovery: &mut Recovery) {
        if self.first.path.same_hosts(&to.path) {
            to.mtu = self.first.mtu.clone();
        } else {
            to.mtu.forget_probe();
            self.first.parked = Some(Box::new(recovery.switch_path(to.parked.take().map(|parked| *parked))));
        }
        let left = std::mem::replace(&mut self.first, to);
        match &mut self.proven {
            _ if left.is_proven => self.proven = Some(Box::new(left)),
            // It differed from the one that is left in its port alone, and had lent it what was known.
            Some(proven) if proven.parked.is_none() => (proven.parked, proven.mtu) = (left.parked, left.mtu),
            _ => {}
        }
        recovery.set_datagram(self.first.mtu.current());
    }

    /// The last path that was proven: where an initiation may go.
    pub(super) fn last_proven(&self) -> Option<Path> {
        [Some(&self.first), self.proven.as_deref()].into_iter().flatten().find(|it| it.is_proven).map(|it| it.path)
    }

    // Asking and answering

    /// PATH_CHALLENGE: answered over the path that it came by, in a datagram as long as it came in.
    pub(super) fn on_challenge(&mut self, path: Path, data: PathData, bytes: usize) {
        if self.responses.len() < MAX_PATH_RESPONSES {
            let datagram = bytes.min(usize::from(MIN_DATAGRAM_BYTES)) as u16;
            self.responses.push_back(PathFrame { path, data, is_response: true, datagram });
        }
    }

    /// PATH_RESPONSE: it proves the path that the challenge went by, however it came back (RFC 9000 §8.2.3). Whether it
    /// proves that the peer has moved.
    pub(super) fn on_response(&mut self, now: Instant, data: PathData, recovery: &mut Recovery) -> bool {
        if self.first.on_response(now, data) {
            self.proven = None;
            take_round_trip(now, &self.first, Duration::ZERO, recovery);
            return true;
        }
        if let Some(bulk) = self.bulk.path_mut() {
            bulk.on_response(now, data);
        }
        false
    }

    /// The next datagram that asks or answers.
    pub(super) fn next_frame(&mut self, now: Instant, rng: &mut SeededRng, recovery: &Recovery) -> Option<PathFrame> {
        while let Some(mut response) = self.responses.pop_front() {
            let unproven = self.first.path.is(&response.path).then(|| self.first.allowance());
            response.datagram = up_to(response.datagram, unproven.unwrap_or(u64::MAX));
            if u64::from(response.datagram) >= LEAST_RESPONSE_BYTES {
                return Some(response);
            }
        }
        let allowed = self.first.allowance();
        // Of the bulk path, the address is proven, and the port was told in a handshake.
        let asked = [(Some(&mut self.first), allowed), (self.bulk.path_mut(), u64::MAX)];
        for (state, allowed) in asked {
            let Some(state) = state else { continue };
            let Some(challenge) = state.challenge.as_mut().filter(|challenge| challenge.is_due(now)) else { continue };
            if allowed < LEAST_DATAGRAM_BYTES {
                continue;
            }
            let mut data = PathData::default();
            rng.fill(&mut data);
            challenge.sent.push((data, now));
            self.challenges += 1;
            challenge.next_try(now, recovery.pto());
            let datagram = up_to(MIN_DATAGRAM_BYTES, allowed);
            return Some(PathFrame { path: state.path, data, is_response: false, datagram });
        }
        None
    }

    /// When [`Paths::handle_timeout`] or [`Paths::next_frame`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let challenges = [Some(&self.first), self.bulk.path()].into_iter().flatten();
        let challenges = challenges.filter_map(|state| Some(state.challenge.as_ref()?.next));
        challenges.chain(self.bulk.idle_at()).min()
    }

    /// Gives up what was not answered, and the bulk path when it has served.
    pub(super) fn handle_timeout(&mut self, now: Instant, recovery: &mut Recovery) {
        self.bulk.leave_if_idle(now);
        let is_blocked = self.first.allowance() < LEAST_DATAGRAM_BYTES;
        if let Some(challenge) = &mut self.first.challenge {
            if challenge.has_failed(now) {
                self.unproven += 1;
                self.first.challenge = None;
                if let Some(proven) = self.proven.take() {
                    self.change_first(*proven, recovery);
                    recovery.forget_backoff();
                }
            } else if is_blocked && challenge.is_due(now) {
                challenge.next_try(now, recovery.pto());
            }
        }
        if self.bulk.path().and_then(|bulk| bulk.challenge.as_ref()).is_some_and(|challenge| challenge.has_failed(now))
        {
            self.bulk.on_failed(now);
        }
    }
}

/// A path without a sample has the round trip of its challenge, but no less than `least`.
pub(super) fn take_round_trip(now: Instant, state: &PathState, least: Duration, recovery: &mut Recovery) {
    if let (None, Some(round_trip)) = (recovery.rtt.min(), state.round_trip) {
        recovery.rtt.update(now, round_trip.max(least), Duration::ZERO);
    }
}

fn up_to(datagram: u16, allowed: u64) -> u16 {
    u64::from(datagram).min(allowed) as u16
}

/// Whether a datagram's end is this port at this address.
pub(super) fn is_at(end: SocketAddr, ip: IpAddr, port: Option<u16>) -> bool {
    end.ip() == ip && Some(end.port()) == port
}
