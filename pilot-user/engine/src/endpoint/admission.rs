//! Which initiations are worth a Diffie-Hellman: decided before there is one, and without allocating.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foldhash::fast::FixedState;
use pilot_common::limit::Limit;
use std::hash::BuildHasher as _;

use crate::crypto::cookie::Cookies;
use crate::crypto::rng::SeededRng;
use crate::identity::Identity;
use crate::limits::MAX_HANDSHAKE_SOURCES;
use crate::time::Instant;

/// What to do with an initiation whose mac1 is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Read it.
    Read,
    /// Answer with a cookie: there is load, and nobody has proven to be at the source (W3.20).
    Cookie,
    /// Drop it: somebody is there, and has had enough (W3.22).
    Limited,
}

pub(super) struct Admission {
    pub(super) cookies: Cookies,
    load: Rate,
    sources: Sources,
}

/// Initiations a second that are read.
#[derive(Clone, Copy)]
pub(super) struct Rates {
    /// From anywhere; of more, those with a cookie. With 0, always.
    pub(super) all: u32,
    /// Of those, from one source.
    pub(super) of_source: u32,
}

impl Admission {
    /// `receiver` is the static key that initiations are made for.
    pub(super) fn new(own: &Identity, receiver: &[u8; 32], rng: &mut SeededRng) -> Self {
        let sources = Sources {
            hash: FixedState::with_seed(u64::from(rng.next_u32()) << 32 | u64::from(rng.next_u32())),
            slots: vec![Slot::default(); MAX_HANDSHAKE_SOURCES].into_boxed_slice(),
        };
        Self { cookies: Cookies::new(own, receiver), load: Rate::default(), sources }
    }

    /// Decides about an initiation, which counts as load in any case. Sources are looked at only when they are proven: before
    /// that, anybody could use up what another may have.
    pub(super) fn decide(
        &mut self,
        rates: Rates,
        now: Instant,
        unix_time: Duration,
        source: SocketAddr,
        initiation: &[u8],
    ) -> Verdict {
        if !self.load.is_exceeded(now, rates.all) {
            Verdict::Read
        } else if !self.cookies.verify(unix_time, source, initiation) {
            Verdict::Cookie
        } else if self.sources.rate(source).try_take(now, rates.of_source) {
            Verdict::Read
        } else {
            Verdict::Limited
        }
    }
}

/// A second's worth of events at once, and then so many a second.
#[derive(Clone, Copy, Default)]
pub(super) struct Rate {
    /// See [`Limit::take`]: what its owner has used, in nanoseconds of the engine's time.
    bucket: u64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Rate {
    /// Counts an event, if it is within the rate.
    pub(super) fn try_take(&mut self, now: Instant, per_second: u32) -> bool {
        let at_once = u16::try_from(per_second).unwrap_or(u16::MAX);
        let limit = (per_second > 0).then(|| Limit::per_second(per_second, at_once));
        let taken = limit.and_then(|limit| limit.take(self.bucket, now.as_nanos()));
        self.bucket = taken.unwrap_or(self.bucket);
        taken.is_some()
    }

    /// Counts an event in any case. Whether there were more than the rate allows: then there still are, until they came more
    /// slowly for up to a second.
    fn is_exceeded(&mut self, now: Instant, per_second: u32) -> bool {
        let is_exceeded = !self.try_take(now, per_second);
        if is_exceeded {
            let with_another = self.bucket.max(now.as_nanos()) + SECOND_NS / u64::from(per_second.max(1));
            self.bucket = with_another.min(now.as_nanos() + 2 * SECOND_NS);
        }
        is_exceeded
    }
}

/// A rate for each source that is remembered: of those that share a part of the table, the busiest.
struct Sources {
    /// Of a secret seed: whoever could choose where a source goes could push another out.
    hash: FixedState,
    slots: Box<[Slot]>,
}

/// Slots in which a source may be. Lower: two busy sources push each other out. Higher: more to look at.
const PART: usize = 8;

const _: () = assert!(MAX_HANDSHAKE_SOURCES.is_multiple_of(PART));

#[derive(Clone, Copy, Default)]
struct Slot {
    prefix: u64,
    rate: Rate,
}

impl Sources {
    fn rate(&mut self, source: SocketAddr) -> &mut Rate {
        let prefix = prefix(source.ip());
        let part = self.hash.hash_one(prefix) as usize % (self.slots.len() / PART);
        let part = &mut self.slots[part * PART..][..PART];
        let known = part.iter().position(|slot| slot.prefix == prefix);
        let at = known.unwrap_or_else(|| {
            // All of them are busy, or this one is as good as empty.
            let longest_free = (0..PART).min_by_key(|at| part[*at].rate.bucket).unwrap_or(0);
            part[longest_free] = Slot { prefix, rate: Rate::default() };
            longest_free
        });
        &mut part[at].rate
    }
}

/// The part of an address that one source has: an IPv4 address, or the 64 bits of an IPv6 network, in which it has them all.
fn prefix(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        // Beside the 64 bits of multicast, which are no source.
        IpAddr::V4(ip) => 0xff << 56 | u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_rate_allows_a_seconds_worth_and_then_so_many_a_second() {
        let mut rate = Rate::default();
        let taken = |rate: &mut Rate, now, tries| (0..tries).filter(|_| rate.try_take(now, 10)).count();
        assert_eq!(taken(&mut rate, at(5000), 100), 10);
        assert_eq!(taken(&mut rate, at(5099), 100), 0);
        assert_eq!(taken(&mut rate, at(5100), 100), 1);
        assert_eq!(taken(&mut rate, at(5600), 100), 5);
        assert_eq!(taken(&mut rate, at(60_000), 100), 10);
        assert!(!Rate::default().try_take(at(5000), 0));
    }

    /// wire.md W3.20: load stays load while more comes than may, and ends about a second after.
    #[test]
    fn load_ends_after_the_flood() {
        let mut rate = Rate::default();
        assert!((0..250).all(|_| !rate.is_exceeded(at(1000), 250)), "a burst is none");
        assert!((0..100_000).all(|n| rate.is_exceeded(at(1000 + n / 100), 250)), "a second of a flood");
        assert!(rate.is_exceeded(at(2900), 250));
        assert!(!rate.is_exceeded(at(3100), 250));
        assert!(Rate::default().is_exceeded(at(1), 0), "none is allowed");
    }

    /// wire.md W3.22: by IPv4 address and by IPv6 network, in as much memory as there was.
    #[test]
    fn each_source_has_its_own_rate() {
        let mut sources = Sources {
            hash: FixedState::with_seed(1),
            slots: vec![Slot::default(); MAX_HANDSHAKE_SOURCES].into_boxed_slice(),
        };
        let mut taken = |source: &str, tries| {
            let source = SocketAddr::new(source.parse().unwrap(), 4242);
            (0..tries).filter(|_| sources.rate(source).try_take(at(1000), 10)).count()
        };
        assert_eq!(taken("10.0.0.1", 100), 10);
        assert_eq!(taken("10.0.0.2", 100), 10);
        assert_eq!(taken("::ffff:10.0.0.1", 100), 0, "the same");
        assert_eq!(taken("2001:db8::1", 100), 10);
        assert_eq!(taken("2001:db8::2:0:0:1", 100), 0, "the same network");
        assert_eq!(taken("2001:db8:0:1::1", 100), 10);
        // More sources than places: those that were not there have their rate, one that was busy is kept longest.
        for n in 0..=u16::MAX {
            assert_eq!(taken(&format!("10.1.{}.{}", n >> 8, n & 255), 1), 1);
        }
        assert_eq!(taken("10.0.0.1", 1), 0);
    }
}
