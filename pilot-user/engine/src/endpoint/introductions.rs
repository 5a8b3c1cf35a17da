//! Introductions (`docs/wire.md` §3.5): two nodes of which one does not know the other's keys, or neither the other's, learn
//! them. Nothing else comes of it: no tunnel, no key, no peer. Who is to be a peer is the application's to say, and a handshake
//! follows as with any other.
//!
//! Until the other end has proven who it is, it costs a bounded number of Diffie-Hellmans a second, and memory for a few.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use pilot_common::wire::{COOKIE_LEN, Header, INITIATION_LEN, PacketType, RESPONSE_MAX_LEN};

use super::admission::{Admission, Rate, Rates, Verdict};
use super::{Endpoint, Received, Transmit};
use crate::crypto::cookie::{self, Cookie};
use crate::crypto::introduction::{Answered, NOBODY, Opening, Proven};
use crate::crypto::mac::Mac1Key;
use crate::crypto::rng::SeededRng;
use crate::error::OperationError;
use crate::event::{Event, PeerId};
use crate::identity::{Identity, PublicKey};
use crate::limits::{
    CONNECT_TIMEOUT, INITIATION_RETRY, INTRODUCTION_TIMEOUT, INTRODUCTIONS_PER_SECOND,
    INTRODUCTIONS_PER_SOURCE_PER_SECOND, MAX_INTRODUCTION_WAIT, MAX_INTRODUCTIONS,
};
use crate::recovery::ecn::Ecn;
use crate::stats::DropReason;
use crate::time::Instant;
use crate::tunnel::{Context, Path};

/// Peers by identity and lane.
type Peers = HashMap<([u8; 32], u8), PeerId>;

pub(super) struct Introductions {
    /// Of who is no peer, always with a cookie (W3.34).
    admission: Admission,
    rate: Rate,
    mac1: Mac1Key,
    begun: Vec<Begun>,
    /// The oldest first.
    answered: VecDeque<Pending>,
}

/// One that this node began.
struct Begun {
    remote: SocketAddr,
    /// The identity that alone will do.
    wanted: Option<[u8; 32]>,
    stage: Stage,
    session_id: u32,
    cookie: Option<Cookie>,
    /// The opening was sent at once because a cookie had come: a second cookie is not worth another, or whoever is on the way
    /// could keep us sending.
    is_repeat: bool,
    /// Repetitions since the other end was last heard.
    tries: usize,
    next_try: Instant,
    until: Instant,
    /// To be sent, if not empty.
    datagram: Vec<u8>,
}

enum Stage {
    /// An opening was sent.
    Opening(Box<Opening>),
    /// The other end is known, and has our proof, unless that was lost: repeated for as long as it may be waited for.
    Proven { proven: Box<Proven>, proof: Vec<u8>, until: Instant },
}

/// One that somebody else began.
struct Pending {
    awaits: Awaits,
    session_id: u32,
    path: Path,
    until: Instant,
    /// To be sent, if not empty.
    datagram: Vec<u8>,
}

enum Awaits {
    Proof(Box<Answered>),
    /// Nothing but this proof again, if the receipt was lost.
    Repetition {
        proof: Vec<u8>,
        receipt: Vec<u8>,
    },
}

impl Endpoint {
    /// Asks who is at `remote`, and tells it who we are (W3.30): for who knows no more than an address, or, with `wanted`, an
    /// Ed25519 identity beside it, to which alone we then show ourselves. Ends in [`Event::Introduced`] or
    /// [`Event::NotIntroduced`]; asking again begins anew.
    pub fn introduce(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        wanted: Option<[u8; 32]>,
    ) -> Result<(), OperationError> {
        let begun = self.with_introductions(now, |introductions, ctx, _| introductions.begin(ctx, remote, wanted));
        begun.unwrap_or(Err(OperationError::IntroductionsOff))
    }

    /// An initiation that was not made for us by who knows our key.
    pub(super) fn on_opening(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        datagram: &[u8],
    ) -> Result<Received, DropReason> {
        let introductions = self.introductions.as_mut().ok_or(DropReason::Mac)?;
        let covered = introductions.mac1.verify(datagram).ok_or(DropReason::Mac)?;
        let unix_time = self.config.unix_time + now.since(Instant::ORIGIN);
        let rates = Rates { all: 0, of_source: INTRODUCTIONS_PER_SOURCE_PER_SECOND };
        match introductions.admission.decide(rates, now, unix_time, path.remote, datagram) {
            Verdict::Read => {}
            Verdict::Cookie => {
                let cookies = &introductions.admission.cookies;
                self.replies.push_cookie(cookies, unix_time, path, datagram, &mut self.rng);
                return Err(DropReason::NoCookie);
            }
            Verdict::Limited => return Err(DropReason::SourceLimit),
        }
        introductions.answer(&mut context!(self, now), path, header, covered)?;
        Ok(Received::Unproven)
    }

    /// A response or cookie reply to no tunnel's handshake.
    pub(super) fn on_introduction(
        &mut self,
        now: Instant,
        header: Header,
        datagram: &[u8],
    ) -> Result<Received, DropReason> {
        self.with_introductions(now, |introductions, ctx, peers| match header.packet_type {
            PacketType::Cookie => introductions.on_cookie(ctx, header.receiver, datagram),
            _ if introductions.begun_by_id(header.receiver).is_some() => {
                introductions.on_response(ctx, header.receiver, datagram)
            }
            _ => introductions.on_proof(ctx, peers, header.receiver, datagram),
        })
        .unwrap_or(Err(DropReason::NoAttempt))?;
        Ok(Received::Unproven)
    }

    pub(super) fn with_introductions<R>(
        &mut self,
        now: Instant,
        run: impl FnOnce(&mut Introductions, &mut Context<'_>, &Peers) -> R,
    ) -> Option<R> {
        let introductions = self.introductions.as_mut()?;
        Some(run(introductions, &mut context!(self, now), &self.peers))
    }
}

impl Introductions {
    pub(super) fn new(own: &Identity, rng: &mut SeededRng) -> Self {
        Self {
            admission: Admission::new(own, &NOBODY, rng),
            rate: Rate::default(),
            mac1: Mac1Key::to(&NOBODY),
            begun: Vec::new(),
            answered: VecDeque::new(),
        }
    }

    fn begin(
        &mut self,
        ctx: &mut Context<'_>,
        remote: SocketAddr,
        wanted: Option<[u8; 32]>,
    ) -> Result<(), OperationError> {
        if let Some(at) = self.begun.iter().position(|begun| begun.remote == remote) {
            ctx.sessions.release(self.begun.swap_remove(at).session_id);
        }
        let full = OperationError::TooMany { what: "introductions", allowed: MAX_INTRODUCTIONS as u64 };
        if self.begun.len() >= MAX_INTRODUCTIONS {
            return Err(full);
        }
        let (opening, datagram) = open(ctx, None).ok_or(full)?;
        self.begun.push(Begun {
            remote,
            wanted,
            session_id: opening.session_id(),
            stage: Stage::Opening(opening),
            cookie: None,
            is_repeat: false,
            tries: 0,
            next_try: ctx.now + INITIATION_RETRY[0],
            until: ctx.now + CONNECT_TIMEOUT,
            datagram,
        });
        Ok(())
    }

    fn begun_by_id(&mut self, session_id: u32) -> Option<&mut Begun> {
        self.begun.iter_mut().find(|begun| begun.session_id == session_id)
    }

    /// The other end wants to know first whether we are where we seem to be.
    fn on_cookie(&mut self, ctx: &mut Context<'_>, session_id: u32, datagram: &[u8]) -> Result<(), DropReason> {
        let begun = self.begun_by_id(session_id).ok_or(DropReason::NoAttempt)?;
        let Stage::Opening(opening) = &begun.stage else { return Err(DropReason::NoAttempt) };
        let reply: &[u8; COOKIE_LEN] = datagram.try_into().map_err(|_| DropReason::Length)?;
        begun.cookie = Some(cookie::open(&NOBODY, opening.mac1(), reply).ok_or(DropReason::HandshakeDecrypt)?);
        if !std::mem::replace(&mut begun.is_repeat, true) {
            begun.open_again(ctx);
        }
        Ok(())
    }

    /// The answer to an opening, or the receipt for a proof.
    fn on_response(&mut self, ctx: &mut Context<'_>, session_id: u32, datagram: &[u8]) -> Result<(), DropReason> {
        let begun = self.begun_by_id(session_id).ok_or(DropReason::NoAttempt)?;
        let accepted = match &mut begun.stage {
            Stage::Opening(opening) => {
                let own = (&ctx.config.identity, ctx.config.address);
                let mut proof = [0; RESPONSE_MAX_LEN];
                let unix_seconds = ctx.unix_time().as_secs();
                let (length, proven) = opening.prove(own, begun.wanted.as_ref(), unix_seconds, datagram, &mut proof)?;
                let (proven, proof, until) =
                    (Box::new(proven), proof[..length].to_vec(), ctx.now + INTRODUCTION_TIMEOUT);
                begun.datagram.clone_from(&proof);
                begun.stage = Stage::Proven { proven, proof, until };
                begun.tries = 0;
                begun.next_try = ctx.now + begun.wait();
                return Ok(());
            }
            Stage::Proven { proven, .. } => proven.read_receipt(ctx.own_mac1, datagram)?,
        };
        if let Some(at) = self.begun.iter().position(|begun| begun.session_id == session_id)
            && let Begun { stage: Stage::Proven { proven, .. }, remote, .. } = self.begun.swap_remove(at)
        {
            ctx.sessions.release(session_id);
            let (key, address) = (proven.stranger.key, proven.stranger.address);
            ctx.events.push_back(Event::Introduced { key, address, remote, begun_here: true, accepted });
        }
        Ok(())
    }

    fn answer(&mut self, ctx: &mut Context<'_>, path: Path, header: Header, covered: &[u8]) -> Result<(), DropReason> {
        if self.answered.len() >= MAX_INTRODUCTIONS || !self.rate.try_take(ctx.now, INTRODUCTIONS_PER_SECOND) {
            return Err(DropReason::SourceLimit);
        }
        let session_id = ctx.sessions.allocate(ctx.config.worker, ctx.rng, None);
        let own = (&ctx.config.identity, ctx.config.address);
        let mut datagram = [0; RESPONSE_MAX_LEN];
        let (length, answered) = Answered::answer(own, session_id, ctx.rng, header, covered, &mut datagram)
            .inspect_err(|_| ctx.sessions.release(session_id))?;
        self.answered.push_back(Pending {
            awaits: Awaits::Proof(Box::new(answered)),
            session_id,
            path,
            until: ctx.now + INTRODUCTION_TIMEOUT,
            datagram: datagram[..length].to_vec(),
        });
        Ok(())
    }

    fn on_proof(
        &mut self,
        ctx: &mut Context<'_>,
        peers: &Peers,
        session_id: u32,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let pending = self.answered.iter_mut().find(|pending| pending.session_id == session_id);
        let pending = pending.ok_or(DropReason::NoAttempt)?;
        let answered = match &mut pending.awaits {
            Awaits::Proof(answered) => answered,
            Awaits::Repetition { proof, receipt } if proof == datagram => {
                pending.datagram.clone_from(receipt);
                return Ok(());
            }
            Awaits::Repetition { .. } => return Err(DropReason::NoAttempt),
        };
        let own = (&ctx.config.identity, ctx.own_mac1);
        let accepts = |key: &PublicKey| peers.contains_key(&(key.identity, 0));
        let mut receipt = [0; RESPONSE_MAX_LEN];
        let (length, stranger, accepted) =
            answered.finish(own, ctx.unix_time().as_secs(), datagram, accepts, &mut receipt)?;
        let receipt = receipt[..length].to_vec();
        pending.datagram.clone_from(&receipt);
        pending.awaits = Awaits::Repetition { proof: datagram.to_vec(), receipt };
        // Where its opening came from it has shown to be, by cookie.
        let (key, address, remote) = (stranger.key, stranger.address, pending.path.remote);
        ctx.events.push_back(Event::Introduced { key, address, remote, begun_here: false, accepted });
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let begun = self.begun.iter().map(|begun| begun.next_try.min(begun.until));
        begun.chain(self.answered.front().map(|pending| pending.until)).min()
    }

    pub(super) fn handle_timeout(&mut self, ctx: &mut Context<'_>) {
        while let Some(pending) = self.answered.pop_front_if(|pending| pending.until <= ctx.now) {
            ctx.sessions.release(pending.session_id);
        }
        for ended in self.begun.extract_if(.., |begun| begun.until <= ctx.now) {
            ctx.sessions.release(ended.session_id);
            ctx.events.push_back(Event::NotIntroduced { remote: ended.remote });
        }
        let now = ctx.now;
        for begun in self.begun.iter_mut().filter(|begun| begun.next_try <= now) {
            match &begun.stage {
                Stage::Proven { proof, until, .. } if now < *until => begun.datagram.clone_from(proof),
                _ => {
                    begun.is_repeat = false;
                    begun.open_again(ctx);
                }
            }
            begun.tries += 1;
            begun.next_try = now + begun.wait();
        }
    }

    pub(super) fn wants_transmit(&self) -> bool {
        self.begun.iter().any(|begun| !begun.datagram.is_empty())
            || self.answered.iter().any(|pending| !pending.datagram.is_empty())
    }

    /// Writes the next datagram to send into `datagram`.
    pub(super) fn poll_transmit(&mut self, datagram: &mut [u8]) -> Option<Transmit> {
        let begun =
            self.begun.iter_mut().map(|begun| (Path { remote: begun.remote, local: None }, &mut begun.datagram));
        let answered = self.answered.iter_mut().map(|pending| (pending.path, &mut pending.datagram));
        let (path, waiting) = begun.chain(answered).find(|(_, waiting)| !waiting.is_empty())?;
        let bytes = std::mem::take(waiting);
        datagram.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        Some(Transmit { destination: path.remote, source: path.local, ecn: Ecn::NotEct, len: bytes.len() })
    }
}

impl Begun {
    /// Begins from the beginning, as fresh as the first time (W3.11), whatever came of it.
    fn open_again(&mut self, ctx: &mut Context<'_>) {
        if let Some((opening, datagram)) = open(ctx, self.cookie.as_ref()) {
            ctx.sessions.release(std::mem::replace(&mut self.session_id, opening.session_id()));
            self.stage = Stage::Opening(opening);
            self.datagram = datagram;
        }
    }

    fn wait(&self) -> std::time::Duration {
        INITIATION_RETRY[self.tries.min(INITIATION_RETRY.len() - 1)].min(MAX_INTRODUCTION_WAIT)
    }
}

/// A new opening.
fn open(ctx: &mut Context<'_>, cookie: Option<&Cookie>) -> Option<(Box<Opening>, Vec<u8>)> {
    let mut datagram = [0; INITIATION_LEN];
    let session_id = ctx.sessions.allocate(ctx.config.worker, ctx.rng, None);
    let opening = Opening::begin(&ctx.config.identity, cookie, session_id, ctx.rng.fork(), &mut datagram);
    if opening.is_none() {
        ctx.sessions.release(session_id);
    }
    Some((Box::new(opening?), datagram.to_vec()))
}
