//! How often each fault happened and each mechanism was needed: a set of simulations in which something never fires does not
//! test it. A new mechanism is a line in [`Fired::of_process`].

use pilot_engine::{CloseReason, DropReason};

use crate::netem::Counters;
use crate::world::{Clock, Cost, Host};

/// Names and counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fired(Vec<(&'static str, u64)>);

impl Fired {
    /// What paths did to packets.
    pub fn of_paths(paths: &Counters) -> Self {
        Self(vec![
            ("packet sent", paths.sent),
            ("lost alone", paths.lost),
            ("lost in a burst", paths.lost_in_bursts),
            ("lost to a full queue", paths.overflowed),
            ("too large for the path", paths.too_large),
            ("marked with CE", paths.marked),
            ("ECN mangled", paths.ecn_mangled),
            ("duplicated", paths.duplicated),
            ("reordered", paths.reordered),
            ("corrupted", paths.corrupted),
            ("truncated", paths.truncated),
        ])
    }

    /// What happened in one host's process.
    pub fn of_process<A: crate::link::Attachment>(host: &Host<A>) -> Self {
        let (stats, tunnels, setup) = (host.endpoint.stats(), host.endpoint.tunnel_totals(), host.setup());
        let closed = |reason| host.oracle.closed().iter().filter(|closed| **closed == reason).count() as u64;
        let introduced = &host.oracle.introductions;
        let known =
            |asked| introduced.introduced().iter().filter(|(_, begun_here)| *begun_here == asked).count() as u64;
        let dropped = |reasons: &[DropReason]| reasons.iter().map(|reason| stats.dropped(*reason)).sum();
        Self(vec![
            ("clock off", u64::from(setup.clock != Clock::default())),
            ("computing takes time", u64::from(setup.cost != Cost::default())),
            ("arrived at a busy host", host.waited()),
            ("receiver had no room", host.refused()),
            ("handshake", stats.handshakes),
            ("rekey", tunnels.rekeys),
            ("stateless reset sent", stats.resets_sent),
            ("stateless reset believed", stats.resets_received),
            ("resumption after silence", tunnels.resumptions),
            ("reset dropped", dropped(&[DropReason::Reset])),
            ("cookie asked for", dropped(&[DropReason::NoCookie])),
            ("initiations crossed", dropped(&[DropReason::Crossing])),
            ("stale initiation", dropped(&[DropReason::StaleTimestamp])),
            ("introduced, having asked", known(true)),
            ("introduced, having been asked", known(false)),
            ("nobody introduced", introduced.given_up()),
            ("peer restarted", closed(CloseReason::PeerRestarted)),
            ("timed out", closed(CloseReason::TimedOut)),
            ("replay dropped", dropped(&[DropReason::Replay])),
            ("forgery dropped", dropped(&[DropReason::Authentication, DropReason::Mac])),
            ("unknown session", dropped(&[DropReason::UnknownSession])),
            ("loss", tunnels.lost_packets),
            ("spurious loss", tunnels.spurious_losses),
            ("probe time-out", tunnels.probe_timeouts),
            ("persistent congestion", tunnels.persistent_congestions),
            ("congestion told by ECN", tunnels.ecn_ce),
            ("ECN not believed", tunnels.ecn_failures),
            ("paced", tunnels.paced),
            ("queue on the way back taken off", tunnels.queued_back),
            ("path MTU probe", tunnels.mtu_probes),
            ("black hole", tunnels.black_holes),
            ("path challenge", tunnels.path_challenges),
            ("migration", tunnels.peer_moves),
            ("path given up", tunnels.unproven_paths),
            ("session id replaced", tunnels.replaced_ids),
            ("bulk path switch", tunnels.path_switches),
        ])
    }

    /// Something happened so many times.
    pub fn count(&mut self, name: &'static str, times: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += times,
            None => self.0.push((name, times)),
        }
    }

    /// Adds what fired elsewhere.
    pub fn add(&mut self, other: &Self) {
        other.each().for_each(|(name, times)| self.count(name, times));
    }

    /// All that was counted, if only as 0.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().copied()
    }

    /// What never fired.
    pub fn never(&self) -> Vec<&'static str> {
        self.each().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }
}
