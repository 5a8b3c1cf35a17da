//! What hosts there are, how they differ, and who talks to whom.

use std::time::Duration;

use pilot_engine::{BulkUse, ControllerKind, Instant};

use crate::plan::Plan;

/// Unix time at the origin of virtual time.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

const MILLION: u128 = 1_000_000;

/// A network to be simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What all chance comes from.
    pub seed: u64,
    /// What every connection carries, each with its own texts.
    pub plan: Plan,
    /// The hosts; each knows all others.
    pub hosts: Vec<HostSetup>,
    /// Connections, by who opens them and to whom; each pair once.
    pub connections: Vec<(usize, usize)>,
}

impl Setup {
    /// Two hosts, of which the first opens a connection to the second.
    pub fn pair(seed: u64, plan: Plan) -> Self {
        Self { seed, plan, hosts: vec![HostSetup::default(); 2], connections: vec![(0, 1)] }
    }

    /// Pairs of hosts that have a tunnel.
    pub fn tunnels(&self) -> usize {
        let mut pairs: Vec<_> = self.connections.iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
        pairs.sort();
        pairs.dedup();
        pairs.len()
    }
}

/// In what a host may differ from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostSetup {
    /// Its second port. Only the link in memory has one.
    pub bulk: Bulk,
    /// Its clock.
    pub clock: Clock,
    /// How fast it computes.
    pub cost: Cost,
    /// Which congestion control it sends with.
    pub controller: ControllerKind,
    /// When it asks for new keys.
    pub rekey: Rekey,
    /// It is always under load, and asks for cookies.
    pub asks_for_cookies: bool,
    /// It tells strangers who it is.
    pub introductions: bool,
}

/// When a host asks for new keys; `None`: as nodes do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rekey {
    /// After this time, if it was the initiator.
    pub after: Option<Duration>,
    /// After so many packets.
    pub after_packets: Option<u64>,
}

/// Whether a host has a second port, and sends over the bulk path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bulk {
    /// Whether it has the port.
    pub port: bool,
    /// Whether it sends.
    pub usage: BulkUse,
}

/// A host's clock against the world's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    /// How much faster it goes, in millionths.
    pub faster_ppm: i32,
    /// Seconds that its calendar is ahead.
    pub ahead_s: i32,
}

impl Clock {
    /// What it shows.
    pub fn local(self, world: Instant) -> Instant {
        let nanos = u128::from(world.as_nanos()) * self.rate() / MILLION;
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// When it first shows this.
    pub fn world(self, local: Instant) -> Instant {
        let nanos = (u128::from(local.as_nanos()) * MILLION).div_ceil(self.rate());
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The calendar's time at the origin of the clock.
    pub(super) fn epoch(self) -> Duration {
        let ahead = Duration::from_secs(self.ahead_s.unsigned_abs().into());
        if self.ahead_s < 0 { EPOCH - ahead } else { EPOCH + ahead }
    }

    fn rate(self) -> u128 {
        (MILLION as i64 + i64::from(self.faster_ppm)).max(1) as u128
    }
}

/// What computing costs a host: while it lasts, what arrives waits in the receive queue, and what was sealed has not left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// A handshake message written or read, which is Diffie-Hellman.
    pub handshake: Duration,
    /// A data packet opened or sealed.
    pub packet: Duration,
    /// A datagram dropped without either.
    pub drop: Duration,
}

/// What a host has computed so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Work {
    pub(super) handshakes: u64,
    pub(super) packets: u64,
    pub(super) drops: u64,
}

impl Cost {
    /// How long it takes to get from one to the other.
    pub(super) fn between(self, before: Work, after: Work) -> Duration {
        let times = |each: Duration, before: u64, after: u64| each * u32::try_from(after - before).unwrap_or(u32::MAX);
        times(self.handshake, before.handshakes, after.handshakes)
            + times(self.packet, before.packets, after.packets)
            + times(self.drop, before.drops, after.drops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_when_the_clock_shows_it_and_not_before() {
        for faster_ppm in [0, 1, -1, 10_000, -10_000] {
            let clock = Clock { faster_ppm, ahead_s: 0 };
            for nanos in (0..1000).chain(1_000_000_000_000..1_000_000_001_000) {
                let deadline = Instant::from_nanos(nanos);
                let at = clock.world(deadline);
                assert!(clock.local(at) >= deadline);
                assert!(nanos == 0 || clock.local(Instant::from_nanos(at.as_nanos() - 1)) < deadline);
            }
        }
    }
}
