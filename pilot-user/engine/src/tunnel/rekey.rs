//! A handshake on a living tunnel (`docs/wire.md` W3.14, W4.7): packet numbers, session ids, connections and streams go on,
//! under the next epoch's key. It is begun because the key is old, or because the peer is silent.

use super::{Agreed, Context, Session, Tunnel};
use crate::config::Config;
use crate::crypto::aead::KeyPair;
use crate::event::Event;
use crate::limits::{KEY_LINGER_TIMEOUTS, REJECT_AFTER_TIME, SUSPECT_AFTER};
use crate::time::Instant;

impl Tunnel {
    /// When a handshake for a new key is to begin: the initiator's when the key under which data flows is old, either end's when
    /// it has sealed much, or when it is too old for what waits.
    pub(super) fn rekey_at(&self, config: &Config) -> Option<Instant> {
        let is_at_rest = self.attempt.is_none() && self.next_try.is_none() && self.closing.is_none();
        let Session { keys, is_initiator, .. } = self.session.as_deref().filter(|_| is_at_rest)?;
        if keys.sealed_packets() >= config.rekey_after_packets {
            return Some(keys.since());
        }
        let has_to_send = self.has_data_to_send();
        let early = *is_initiator && (has_to_send || keys.has_carried_data());
        let age = if early { Some(config.rekey_after) } else { has_to_send.then_some(REJECT_AFTER_TIME) };
        age.map(|age| keys.since() + age)
    }

    /// Whether anything of a connection waits to be sent.
    pub(super) fn has_data_to_send(&self) -> bool {
        self.table.has_data() || self.table.control.iter().any(|frame| frame.connection().is_some())
    }

    /// Begins what is due by [`Tunnel::rekey_at`].
    pub(super) fn rekey_if_due(&mut self, ctx: &Context<'_>) {
        // Of a new key, whatever else is so: this is asked for with every packet.
        let is_new = |session: &Session| {
            let (keys, config) = (&session.keys, ctx.config);
            let least = config.rekey_after.min(REJECT_AFTER_TIME);
            keys.sealed_packets() < config.rekey_after_packets && ctx.now < keys.since() + least
        };
        if self.session.as_deref().is_none_or(is_new) {
            return;
        }
        if self.rekey_at(ctx.config).is_some_and(|at| at <= ctx.now) {
            self.is_rekeying = true;
            self.tries = 0;
            self.next_try = Some(ctx.now);
        }
    }

    /// The session that a handshake continues: the peer names its tunnel, and is the process that had it.
    pub(super) fn continued(&self, asked: Option<u64>, boot_id: &[u8; 16]) -> Option<&Session> {
        let transport = self.transport.as_ref().filter(|transport| transport.peer_boot_id == *boot_id)?;
        self.session.as_deref().filter(|_| asked == Some(transport.id) && asked == self.resumable())
    }

    /// As the initiator: the responder continues the tunnel, and this is the next key, which is sealed with at once. `false`:
    /// there is nothing here to continue.
    pub(super) fn install(&mut self, ctx: &mut Context<'_>, keys: KeyPair, agreed: Agreed) -> bool {
        let (tunnel, boot_id, epoch) = (agreed.peer.resume, agreed.peer.boot_id, agreed.peer.epoch);
        if self.continued(tunnel, &boot_id).is_none() {
            return false;
        }
        let installed = match (&mut self.session, epoch) {
            (Some(session), Some(epoch)) => session.keys.install(epoch, keys, ctx.now),
            _ => false,
        };
        if installed {
            self.go_on(ctx, agreed, self.is_rekeying);
        }
        installed
    }

    /// As the responder: the first packet under the offered key was opened, which is sealed with from now on.
    pub(super) fn confirm(&mut self, ctx: &mut Context<'_>) {
        if let (Some(session), Some(transport)) = (&mut self.session, &self.transport)
            && let Some(agreed) = session.offered.take()
        {
            session.keys.confirm(ctx.now, transport.recovery.pto() * KEY_LINGER_TIMEOUTS);
            let for_key = agreed.peer.epoch.is_some();
            self.go_on(ctx, *agreed, for_key);
        }
    }

    /// `for_key`: the handshake was begun for a new key, and not out of suspicion.
    fn go_on(&mut self, ctx: &mut Context<'_>, agreed: Agreed, for_key: bool) {
        self.on_handshake(ctx, agreed.path);
        let (Some(transport), Some(session)) = (&mut self.transport, &mut self.session) else { return };
        let (paths, recovery) = (&mut transport.paths, &mut transport.recovery);
        paths.on_handshake(ctx.now, agreed.path, agreed.peer.bulk_port, recovery, ctx.events);
        session.terms = agreed.terms;
        session.offered = None;
        transport.last_received = ctx.now;
        let silent_since = transport.awaiting_since.take();
        let was_silent = silent_since.is_some_and(|since| ctx.now.since(since) >= SUSPECT_AFTER);
        if for_key && !was_silent {
            transport.stats.rekeys += 1;
        } else {
            recovery.forget_backoff();
            transport.stats.resumptions += 1;
            ctx.events.push_back(Event::TunnelUp { peer: self.peer, resumed: true });
        }
    }
}
