//! Answers to an initiation that are no response: a cookie, or that the peer speaks other versions. Anybody on the way can
//! make them, so they end nothing.

use pilot_common::wire::{COOKIE_LEN, VERSION};
use subtle::ConstantTimeEq as _;

use super::{Attempt, Context, Held, Tunnel};
use crate::crypto::cookie::{self, Cookie};
use crate::limits::COOKIE_LIFETIME;
use crate::stats::DropReason;
use crate::time::Instant;
use crate::version;

impl Tunnel {
    fn attempt(&self, session_id: u32) -> Result<&Attempt, DropReason> {
        let attempt = self.attempt.as_deref().filter(|attempt| attempt.initiation.session_id() == session_id);
        attempt.ok_or(DropReason::NoAttempt)
    }

    /// The peer is under load, and wants to know first whether we are where we seem to be (W3.21).
    pub(crate) fn on_cookie(
        &mut self,
        ctx: &mut Context<'_>,
        receiver: u32,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let attempt = self.attempt(receiver)?;
        let reply: &[u8; COOKIE_LEN] = datagram.try_into().map_err(|_| DropReason::Length)?;
        let cookie = cookie::open(&self.config.key.static_key, attempt.initiation.mac1(), reply);
        let cookie = cookie.ok_or(DropReason::HandshakeDecrypt)?;
        let unused = !attempt.is_repeat;
        self.cookie = Some(Box::new(Held { cookie, until: ctx.now + COOKIE_LIFETIME, unused }));
        if unused {
            // The same try again: to the same address, and with the same wait after it.
            self.tries = self.tries.saturating_sub(1);
            self.next_try = Some(ctx.now);
        }
        Ok(())
    }

    /// The peer does not speak our version (W3.10). It may learn to while we go on trying: it is the reason that is given when
    /// that was in vain.
    pub(crate) fn on_versions(&mut self, answer: &version::Answer) -> Result<(), DropReason> {
        let attempt = self.attempt(answer.session_id)?;
        if !bool::from(attempt.initiation.mac1().ct_eq(&answer.mac1)) || answer.versions.contains(VERSION) {
            return Err(DropReason::NoAttempt);
        }
        if self.spoken.replace(answer.versions) != Some(answer.versions) {
            tracing::warn!(peer = %self.config.address, versions = %answer.versions, "the peer speaks other versions");
        }
        Ok(())
    }
}

/// The cookie to send along at `now`, and whether that is what the initiation is sent for.
pub(super) fn take_cookie(held: Option<&mut Held>, now: Instant) -> (Option<&Cookie>, bool) {
    match held {
        Some(held) if held.until > now => (Some(&held.cookie), std::mem::take(&mut held.unused)),
        _ => (None, false),
    }
}
