//! How a tunnel comes up and goes down.

use pilot_common::wire::{INITIATION_LEN, RESPONSE_MAX_LEN};

use super::challenged::take_cookie;
use super::{Agreed, Answer, Attempt, Closing, Context, Path, Paths, Session, SessionIds, Terms, Transport, Tunnel};
use crate::config::{BulkUse, PeerConfig};
use crate::connection::PeerLimits;
use crate::crypto::aead::{Aead, Aeads, KeyPair};
use crate::crypto::handshake::{Initiated, Initiation};
use crate::crypto::keys::Slots;
use crate::crypto::parameters::Parameters;
use crate::crypto::replay::ReplayWindow;
use crate::crypto::reset::ResetToken;
use crate::error::{CloseReason, Code};
use crate::event::Event;
use crate::limits::{
    CONFIRM_TIMEOUT, CONNECTION_CREDIT_BYTES, INITIATION_RETRY, MAX_ACK_DELAY, MAX_CLOSE_PACKETS, MAX_STREAMS,
    STREAM_CREDIT_BYTES, UNANSWERED_INITIATIONS,
};
use crate::recovery::Recovery;
use crate::recovery::ack::Acks;
use crate::recovery::sent::SentFrame;
use crate::stats::{DropReason, TunnelStats};
use crate::time::Instant;

impl Agreed {
    fn new(aead: Aead, peer: Parameters, path: Path, handshake: std::time::Duration) -> Self {
        Self { terms: Terms { aead, idle_timeout: peer.idle_timeout, handshake }, path, peer }
    }
}

impl Session {
    fn new(now: Instant, local_id: u32, is_initiator: bool, keys: KeyPair, agreed: Agreed) -> Self {
        Self {
            local: SessionIds::new(local_id),
            remote_id: agreed.peer.session_id,
            remote_token: agreed.peer.reset_token,
            remote_id_from: None,
            keys: Slots::new(keys, now),
            is_initiator,
            terms: agreed.terms,
            offered: Some(Box::new(agreed)),
        }
    }
}

impl Tunnel {
    /// Brings the tunnel up if it is not and nothing is under way to that end. `false`: no address to send to is known.
    pub(crate) fn want(&mut self, ctx: &mut Context<'_>) -> bool {
        if self.is_up() {
            return true;
        }
        self.waiting_since.get_or_insert(ctx.now);
        if self.fresh.is_some() || self.answer.is_some() || self.next_try.is_some() || self.attempt.is_some() {
            return true;
        }
        self.tries = 0;
        self.next_try = Some(ctx.now);
        self.destination().is_some()
    }

    /// Where to send an initiation: in turn where the peer was last, and where the configuration says.
    fn destination(&self) -> Option<Path> {
        let configured = self.config.endpoint.map(|remote| Path { remote, local: None });
        if self.tries.is_multiple_of(2) { self.last_path.or(configured) } else { configured.or(self.last_path) }
    }

    /// The tunnel that a handshake could continue (W3.14).
    pub(super) fn resumable(&self) -> Option<u64> {
        self.transport.as_ref().filter(|_| self.closing.is_none()).map(|transport| transport.id)
    }

    /// What we say of ourselves in a handshake.
    fn parameters(
        &self,
        ctx: &Context<'_>,
        session_id: u32,
        aeads: Aeads,
        timestamp: Option<u64>,
        (resume, epoch): (Option<u64>, Option<u64>),
        path: &Path,
    ) -> Parameters {
        Parameters {
            certificate: *ctx.config.identity.certificate(),
            timestamp,
            boot_id: ctx.config.boot_id,
            address: ctx.config.address,
            aeads,
            session_id,
            connection_credit: CONNECTION_CREDIT_BYTES,
            stream_credit: STREAM_CREDIT_BYTES,
            max_datagram: ctx.config.max_datagram,
            ack_delay: MAX_ACK_DELAY,
            packet_credit: ctx.config.packet_credit,
            bulk_packet_credit: ctx.config.bulk_packet_credit,
            idle_timeout: ctx.config.idle_timeout,
            reset_token: Some(ctx.reset_key.token(session_id, path.remote.ip())),
            stream_limit: MAX_STREAMS,
            bulk_port: ctx.config.bulk_port,
            resume,
            epoch,
            lane: self.lane,
        }
    }

    /// Writes an initiation into `datagram` (W3.11).
    pub(super) fn initiate(&mut self, ctx: &mut Context<'_>, datagram: &mut [u8]) -> Option<(usize, Path)> {
        let wait = INITIATION_RETRY[(self.tries as usize).min(INITIATION_RETRY.len() - 1)];
        self.next_try = Some(ctx.now + wait);
        let Some(path) = self.destination() else {
            // Nobody to send to: wait for the peer to come.
            self.next_try = None;
            return None;
        };
        self.tries += 1;
        self.drop_attempt(ctx);
        let datagram = datagram.first_chunk_mut::<INITIATION_LEN>()?;
        let session_id = ctx.sessions.allocate(ctx.config.worker, ctx.rng, Some(self.peer));
        let resume = self.resumable();
        let session = self.session.as_ref().filter(|_| self.is_rekeying && resume.is_some());
        let epoch = session.map(|session| session.keys.epoch());
        let timestamp = u64::try_from(ctx.unix_time().as_nanos()).unwrap_or(u64::MAX);
        let parameters = self.parameters(ctx, session_id, ctx.config.aeads, Some(timestamp), (resume, epoch), &path);
        let (identity, key) = (&ctx.config.identity, &self.config.key);
        let (cookie, is_repeat) = take_cookie(self.cookie.as_deref_mut(), ctx.now);
        let macs = (&self.mac1, cookie);
        match Initiation::begin(identity, key, macs, &parameters, ctx.rng.fork(), datagram) {
            Some(initiation) => {
                self.attempt = Some(Box::new(Attempt { initiation, sent: ctx.now, path, resume, is_repeat }));
                Some((INITIATION_LEN, path))
            }
            None => {
                ctx.sessions.release(session_id);
                None
            }
        }
    }

    /// An initiation of this peer was read and certified; decides whether to answer it.
    pub(crate) fn on_initiation(
        &mut self,
        ctx: &mut Context<'_>,
        initiated: Initiated,
        path: Path,
    ) -> Result<(), DropReason> {
        let aead = ctx.config.aeads.choose(&initiated.parameters.aeads).ok_or(DropReason::NoCommonAead)?;
        let timestamp = initiated.parameters.timestamp.unwrap_or(0);
        if timestamp <= self.last_timestamp {
            return Err(DropReason::StaleTimestamp);
        }
        self.last_timestamp = timestamp;
        // W3.37: certified, and newer than all that came with another.
        if initiated.key != self.config.key {
            self.configure(PeerConfig { key: initiated.key, ..self.config });
        }
        // W3.12.
        let ours_wins = ctx.config.identity.public_key().static_key < self.config.key.static_key;
        if self.attempt.is_some() && ours_wins && self.tries <= UNANSWERED_INITIATIONS {
            if !self.is_rekeying {
                // That the peer is there is news, though: ours goes out again at once.
                if self.last_path.is_none() {
                    self.set_last_path(path, ctx.addresses);
                }
                self.next_try = Some(ctx.now);
            }
            // Authentic, and so no drop to whoever brought it.
            ctx.stats.count_drop(DropReason::Crossing);
            return Ok(());
        }
        if !ours_wins {
            // Of two handshakes that are both answered, each end would take another one's keys.
            self.drop_attempt(ctx);
        }
        self.answer = Some(Box::new(Answer { initiated, aead, path }));
        Ok(())
    }

    /// Writes the response to an accepted initiation.
    pub(super) fn respond(&mut self, ctx: &mut Context<'_>, datagram: &mut [u8]) -> Option<(usize, Path)> {
        let Answer { initiated, aead, path } = *self.answer.take()?;
        self.drop_fresh(ctx);
        let datagram = datagram.first_chunk_mut::<RESPONSE_MAX_LEN>()?;
        // W3.14: continued is what both still have, of the same process of the peer.
        let continued = self.continued(initiated.parameters.resume, &initiated.parameters.boot_id);
        let epoch = continued.map(|session| session.keys.next_epoch());
        let (local_id, resumes) = match continued {
            Some(session) => (session.local.newest(), self.resumable()),
            None => (ctx.sessions.allocate(ctx.config.worker, ctx.rng, Some(self.peer)), None),
        };
        let parameters = self.parameters(ctx, local_id, Aeads::only(aead), None, (resumes, epoch), &path);
        let Some((length, secrets)) = initiated.answer(&self.mac1, &parameters, ctx.rng, datagram) else {
            if resumes.is_none() {
                ctx.sessions.release(local_id);
            }
            return None;
        };
        let agreed = Agreed::new(secrets.aead, secrets.peer, path, std::time::Duration::ZERO);
        if let Some(session) = self.session.as_mut().filter(|_| resumes.is_some()) {
            session.keys.offer(secrets.keys);
            session.offered = Some(Box::new(agreed));
        } else {
            self.fresh = Some(Box::new(Session::new(ctx.now, local_id, false, secrets.keys, agreed)));
            self.fresh_since = ctx.now;
        }
        Some((length, path))
    }

    /// A response to our attempt, which it ends: a second one finds none (W3.15).
    pub(crate) fn on_response(
        &mut self,
        ctx: &mut Context<'_>,
        receiver: u32,
        datagram: &[u8],
        path: Path,
    ) -> Result<(), DropReason> {
        let attempt = self.attempt.as_mut().filter(|attempt| attempt.initiation.session_id() == receiver);
        let attempt = attempt.ok_or(DropReason::NoAttempt)?;
        let unix_seconds = ctx.config.unix_time.as_secs() + ctx.now.since(Instant::ORIGIN).as_secs();
        let secrets = attempt.initiation.finish(ctx.own_mac1, &self.config.key, unix_seconds, datagram)?;
        let (sent, asked, resume) = (attempt.sent, attempt.path, attempt.resume);
        let resumes = secrets.peer.resume.filter(|id| Some(*id) == resume);
        // Where the initiation went the peer is; where the response came from it need not be (W6.4), and a copy that somebody else
        // sent would else take the key's confirmation elsewhere. Packets will tell if the peer moved (W4.5).
        let proven = if asked.is(&path) { path } else { asked };
        let agreed = Agreed::new(secrets.aead, secrets.peer, proven, ctx.now.since(sent));
        if resumes.is_some() {
            self.drop_attempt(ctx);
            if !self.install(ctx, secrets.keys, agreed) {
                // What the peer agreed to continue ended here meanwhile. One end of a tunnel that begins anew while the other
                // continues would understand nothing: the next attempt asks for a new one.
                if !self.is_up() {
                    self.next_try = self.waiting_since.map(|_| ctx.now);
                }
                return Ok(());
            }
        } else {
            // The session takes the attempt's id over.
            self.attempt = None;
            self.establish(ctx, Box::new(Session::new(ctx.now, receiver, true, secrets.keys, agreed)));
        }
        // Confirms the key to the responder, which sends nothing under it before (W3.9).
        self.table.control.push_back(SentFrame::Ping);
        Ok(())
    }

    /// The first packet under the key of a new tunnel was opened: it replaces the one before.
    pub(super) fn confirm_fresh(&mut self, ctx: &mut Context<'_>) {
        if let Some(fresh) = self.fresh.take() {
            self.establish(ctx, fresh);
        }
    }

    fn establish(&mut self, ctx: &mut Context<'_>, mut session: Box<Session>) {
        // A session is made with what was agreed, and established once.
        let Some(agreed) = session.offered.take() else { return };
        self.on_handshake(ctx, agreed.path);
        if self.session.is_some() && self.closing.is_none() {
            self.on_down(ctx, CloseReason::PeerRestarted);
            self.next_try = None;
            self.waiting_since = None;
        }
        self.start_transport(ctx, &session, &agreed);
        self.closing = None;
        self.release_session(ctx);
        ctx.sessions.insert_remote(session.remote_id, self.peer);
        self.session = Some(session);
        ctx.events.push_back(Event::TunnelUp { peer: self.peer, resumed: false });
    }

    /// A handshake is done, and no other is needed.
    pub(super) fn on_handshake(&mut self, ctx: &mut Context<'_>, path: Path) {
        ctx.stats.handshakes += 1;
        self.drop_attempt(ctx);
        self.drop_fresh(ctx);
        self.tries = 0;
        self.next_try = None;
        self.is_rekeying = false;
        self.waiting_since = None;
        self.spoken = None;
        self.set_last_path(path, ctx.addresses);
    }

    fn start_transport(&mut self, ctx: &mut Context<'_>, session: &Session, agreed: &Agreed) {
        self.drop_transport(ctx);
        let peer = &agreed.peer;
        let (first, second) = match session.is_initiator {
            true => (session.local.newest(), session.remote_id),
            false => (session.remote_id, session.local.newest()),
        };
        let mut recovery = Recovery::new(peer.ack_delay, peer.packet_credit, ctx.config.controller);
        if session.is_initiator {
            recovery.rtt.update(ctx.now, agreed.terms.handshake, std::time::Duration::ZERO);
        }
        self.transport = Some(Box::new(Transport {
            id: u64::from(first) << 32 | u64::from(second),
            peer_boot_id: peer.boot_id,
            recovery,
            acks: Acks::new(ctx.config.packet_credit.max(ctx.config.bulk_packet_credit)),
            replay: ReplayWindow::default(),
            next_received: 0,
            paths: Paths::new(self.peer, ctx.config, peer, agreed.path),
            last_received: ctx.now,
            last_sent: ctx.now,
            awaiting_since: None,
            is_resting: false,
            stats: TunnelStats::default(),
        }));
        let limits = PeerLimits {
            connection_credit: peer.connection_credit,
            stream_credit: peer.stream_credit,
            streams: peer.stream_limit,
        };
        self.table.on_tunnel_up(session.is_initiator, limits, ctx.events);
    }

    /// Draws a new id for this end's session and tells the peer (W4.8). `false`: there is no session, or the peer has not
    /// yet taken the ones before.
    pub(crate) fn replace_session_id(&mut self, ctx: &mut Context<'_>) -> bool {
        let session = self.session.as_mut().filter(|session| self.closing.is_none() && session.local.has_room());
        let Some(session) = session else { return false };
        session.local.push(ctx.sessions.allocate(ctx.config.worker, ctx.rng, Some(self.peer)));
        self.table.control.push_back(SentFrame::NewSessionId);
        if let Some(transport) = &mut self.transport {
            transport.stats.replaced_ids += 1;
        }
        true
    }

    /// See [`crate::Endpoint::on_link_changed`].
    pub(crate) fn on_link_changed(&mut self, bulk: BulkUse) {
        if let Some(transport) = &mut self.transport {
            transport.recovery.forget_backoff();
            transport.paths.bulk.set_usage(bulk);
        }
    }

    // Going down

    /// Closes the tunnel and tells the peer.
    pub(crate) fn close(&mut self, ctx: &mut Context<'_>, code: Code, reason: CloseReason) {
        if !self.is_up() {
            return;
        }
        let text = match &reason {
            CloseReason::ProtocolViolation(violation) => violation.why.to_owned(),
            _ => code.to_string(),
        };
        self.on_down(ctx, reason);
        self.closing = Some(Box::new(Closing {
            code: code as u64,
            reason: text,
            due: true,
            packets_left: MAX_CLOSE_PACKETS,
            until: ctx.now + CONFIRM_TIMEOUT,
        }));
    }

    /// Ends the connections and says so. Those that wait for the next tunnel go on waiting, and it is brought up.
    pub(super) fn on_down(&mut self, ctx: &mut Context<'_>, reason: CloseReason) {
        self.table.on_tunnel_down(&reason, ctx.events);
        ctx.events.push_back(Event::TunnelDown { peer: self.peer, reason });
        if self.table.has_waiting() {
            self.waiting_since.get_or_insert(ctx.now);
            self.next_try.get_or_insert(ctx.now);
        }
    }

    /// The peer says, by the token that it gave with a session id, that it has forgotten the tunnel: nothing that is there can
    /// go on, and it is asked for another one at once (W4.9).
    pub(crate) fn on_reset(&mut self, ctx: &mut Context<'_>, id: u32, token: ResetToken) -> Result<(), DropReason> {
        let is_genuine = |session: &&mut Box<Session>| session.remote_id == id && session.remote_token == Some(token);
        self.session.as_mut().filter(is_genuine).ok_or(DropReason::Reset)?;
        ctx.stats.resets_received += 1;
        if self.closing.is_none() {
            self.on_down(ctx, CloseReason::PeerRestarted);
        }
        self.drop_session(ctx);
        self.drop_attempt(ctx);
        self.next_try = None;
        self.want(ctx);
        Ok(())
    }

    pub(super) fn give_up_connecting(&mut self, ctx: &mut Context<'_>) {
        self.waiting_since = None;
        let reason = self.spoken.take().map_or(CloseReason::TimedOut, |spoken| CloseReason::OtherVersion { spoken });
        self.table.give_up_waiting(&reason, ctx.events);
        if self.transport.is_none() {
            self.next_try = None;
            self.drop_attempt(ctx);
        }
    }

    /// The peer answered under the session in use: a handshake begun out of suspicion is not needed.
    pub(super) fn on_heard(&mut self, ctx: &mut Context<'_>) {
        if self.closing.is_none() && !self.is_rekeying && (self.attempt.is_some() || self.next_try.is_some()) {
            self.drop_attempt(ctx);
            self.next_try = None;
            self.tries = 0;
        }
    }

    pub(super) fn drop_attempt(&mut self, ctx: &mut Context<'_>) {
        if let Some(attempt) = self.attempt.take() {
            ctx.sessions.release(attempt.initiation.session_id());
        }
    }

    pub(super) fn drop_fresh(&mut self, ctx: &mut Context<'_>) {
        if let Some(fresh) = self.fresh.take() {
            fresh.local.release(ctx.sessions);
        }
    }

    fn release_session(&mut self, ctx: &mut Context<'_>) {
        if let Some(session) = self.session.take() {
            session.local.release(ctx.sessions);
            ctx.sessions.remove_remote(session.remote_id, self.peer);
        }
    }

    pub(super) fn drop_session(&mut self, ctx: &mut Context<'_>) {
        self.release_session(ctx);
        self.drop_transport(ctx);
        self.closing = None;
        self.is_rekeying = false;
    }

    fn drop_transport(&mut self, ctx: &mut Context<'_>) {
        if let Some(stats) = self.stats() {
            ctx.stats.ended.count(&stats);
        }
        self.transport = None;
    }
}
