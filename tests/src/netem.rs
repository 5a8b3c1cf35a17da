//! What a path does to what is sent over it: delay, loss and all the rest, as a value, and drawn from a seed.

use std::time::Duration;

use pilot_engine::{Ecn, Instant};

use crate::random::Random;

/// How often something happens to a packet: so many times in a thousand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PerMille(pub u16);

impl PerMille {
    /// Always.
    pub const ALWAYS: Self = Self(1000);

    /// So many in a hundred.
    pub const fn percent(percent: u16) -> Self {
        Self(percent * 10)
    }

    fn happens(self, random: &mut Random) -> bool {
        random.below(1000) < u64::from(self.0)
    }
}

/// How fast a path is, and how long a queue it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bottleneck {
    /// Bits a second, of what is sent as the link counts it.
    pub bits_per_second: u64,
    /// Longest time that a packet waits; one that would have to wait longer is dropped.
    pub queue: Duration,
    /// Packets that would wait longer are marked, if their sender lets them be (RFC 3168).
    pub mark_after: Option<Duration>,
}

impl Bottleneck {
    /// How long a packet of `len` bytes occupies it.
    fn time_for(self, len: usize) -> Duration {
        let nanos = len as u128 * 8 * 1_000_000_000 / u128::from(self.bits_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Loss that comes in bursts (Gilbert and Elliott): the path is well or ill, and changes from one to the other between two
/// packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bursts {
    /// How often a packet finds that it has fallen ill.
    pub begin: PerMille,
    /// How often a packet finds that it is well again.
    pub end: PerMille,
    /// Packets that vanish while it is ill.
    pub loss: PerMille,
}

/// What a path does to ECN-capable packets besides marking them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnEcn {
    /// Nothing.
    #[default]
    Keeps,
    /// Takes the mark off.
    Erases,
    /// Drops them.
    Drops,
}

/// One direction of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conditions {
    /// One way.
    pub delay: Duration,
    /// Up to so much is added to the delay, uniformly, and what was sent later never arrives earlier for it: it is that of
    /// a queue.
    pub jitter: Duration,
    /// Packets that vanish.
    pub loss: PerMille,
    /// And beside these, `None`: no more.
    pub bursts: Option<Bursts>,
    /// Packets that arrive twice, the copy up to [`Conditions::behind`] later.
    pub duplicate: PerMille,
    /// Packets that are held up, and overtaken by those sent up to [`Conditions::behind`] later.
    pub reorder: PerMille,
    /// How far out of order a packet arrives, at most.
    pub behind: Duration,
    /// Packets of which one byte, any, arrives with another value.
    pub corrupt: PerMille,
    /// Packets that arrive without their end: any shorter length, 0 too.
    pub truncate: PerMille,
    /// The slowest link; `None`: all are infinitely fast.
    pub bottleneck: Option<Bottleneck>,
    /// Bytes, as the link counts them: larger packets vanish.
    pub largest: usize,
    /// What becomes of packets that are ECN-capable.
    pub ecn: OnEcn,
}

impl Conditions {
    /// Inside a rack, when nothing goes wrong.
    pub const GOOD: Self = Self {
        delay: Duration::from_micros(20),
        jitter: Duration::ZERO,
        loss: PerMille(0),
        bursts: None,
        duplicate: PerMille(0),
        reorder: PerMille(0),
        behind: Duration::ZERO,
        corrupt: PerMille(0),
        truncate: PerMille(0),
        bottleneck: None,
        largest: usize::MAX,
        ecn: OnEcn::Keeps,
    };

    /// To be filled: 1 ms away, with a queue in which nothing needs to be lost.
    pub const fn slow(bits_per_second: u64) -> Self {
        let queue = Duration::from_millis(100);
        let bottleneck = Some(Bottleneck { bits_per_second, queue, mark_after: None });
        Self { delay: Duration::from_millis(1), bottleneck, ..Self::GOOD }
    }

    /// Nothing arrives.
    pub const PARTITIONED: Self = Self { loss: PerMille::ALWAYS, ..Self::GOOD };
}

/// What became of packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Given to the path.
    pub sent: u64,
    /// Vanished, each by itself.
    pub lost: u64,
    /// Vanished in bursts.
    pub lost_in_bursts: u64,
    /// Were larger than the path carries.
    pub too_large: u64,
    /// Lost their ECN marks, or vanished for having one.
    pub ecn_mangled: u64,
    /// Found the bottleneck's queue full.
    pub overflowed: u64,
    /// Were marked.
    pub marked: u64,
    /// Arrive twice.
    pub duplicated: u64,
    /// Were held up.
    pub reordered: u64,
    /// Arrive with a wrong byte.
    pub corrupted: u64,
    /// Arrive without their end.
    pub truncated: u64,
}

/// One direction of a path, as it goes on.
#[derive(Debug)]
pub struct Netem {
    conditions: Conditions,
    random: Random,
    /// See [`Bursts`].
    is_ill: bool,
    /// When the bottleneck has sent all that it was given.
    free_at: Instant,
    /// When the last packet that was not held up arrives.
    last_arrival: Instant,
    counters: Counters,
}

impl Netem {
    /// A path under some conditions.
    pub fn new(conditions: Conditions, random: Random) -> Self {
        let (free_at, last_arrival) = (Instant::ORIGIN, Instant::ORIGIN);
        Self { conditions, random, is_ill: false, free_at, last_arrival, counters: Counters::default() }
    }

    /// Other conditions, for what is sent from now on. What was sent before still arrives before it.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sends a packet with these ECN bits, and tells `arrives` of each copy of it when and as what it arrives.
    pub fn send(
        &mut self,
        now: Instant,
        mut ecn: Ecn,
        mut bytes: Vec<u8>,
        mut arrives: impl FnMut(Instant, Ecn, Vec<u8>),
    ) {
        self.counters.sent += 1;
        if self.vanishes(&mut ecn, bytes.len()) {
            return;
        }
        let Self { conditions, random, counters, .. } = self;
        let mut departure = now;
        if let Some(bottleneck) = conditions.bottleneck {
            let start = self.free_at.max(now);
            if start.since(now) > bottleneck.queue {
                counters.overflowed += 1;
                return;
            }
            if ecn != Ecn::NotEct && bottleneck.mark_after.is_some_and(|longest| start.since(now) > longest) {
                counters.marked += 1;
                ecn = Ecn::Ce;
            }
            departure = start + bottleneck.time_for(bytes.len());
            self.free_at = departure;
        }
        if conditions.corrupt.happens(random) && !bytes.is_empty() {
            counters.corrupted += 1;
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 + random.below(255) as u8;
        }
        if conditions.truncate.happens(random) && !bytes.is_empty() {
            counters.truncated += 1;
            let len = random.below(bytes.len() as u64) as usize;
            bytes.truncate(len);
        }
        let behind = conditions.behind.as_nanos() as u64;
        let in_turn = departure + conditions.delay + up_to(conditions.jitter, random);
        let mut arrival = in_turn.max(self.last_arrival);
        if conditions.reorder.happens(random) {
            counters.reordered += 1;
            arrival += Duration::from_nanos(random.below(behind));
        } else {
            self.last_arrival = arrival;
        }
        if conditions.duplicate.happens(random) {
            counters.duplicated += 1;
            arrives(arrival + Duration::from_nanos(random.below(behind)), ecn, bytes.clone());
        }
        arrives(arrival, ecn, bytes);
    }

    /// Whether a packet is lost before it reaches the bottleneck. The path may take its mark off.
    fn vanishes(&mut self, ecn: &mut Ecn, len: usize) -> bool {
        let Self { conditions, random, is_ill, counters, .. } = self;
        if len > conditions.largest {
            counters.too_large += 1;
            return true;
        }
        if *ecn != Ecn::NotEct && conditions.ecn != OnEcn::Keeps {
            counters.ecn_mangled += 1;
            if conditions.ecn == OnEcn::Drops {
                return true;
            }
            *ecn = Ecn::NotEct;
        }
        if conditions.loss.happens(random) {
            counters.lost += 1;
            return true;
        }
        let Some(bursts) = conditions.bursts else { return false };
        let changes = if *is_ill { bursts.end } else { bursts.begin };
        *is_ill ^= changes.happens(random);
        let is_lost = *is_ill && bursts.loss.happens(random);
        counters.lost_in_bursts += u64::from(is_lost);
        is_lost
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.lost_in_bursts += other.lost_in_bursts;
        self.too_large += other.too_large;
        self.ecn_mangled += other.ecn_mangled;
        self.overflowed += other.overflowed;
        self.marked += other.marked;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.truncated += other.truncated;
    }
}

fn up_to(longest: Duration, random: &mut Random) -> Duration {
    Duration::from_nanos(random.below(longest.as_nanos() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: u64 = 10_000;

    /// Sends numbered packets of 100 bytes, one every 10 µs; returns them by arrival.
    fn sent(conditions: Conditions) -> (Counters, Vec<(Instant, Vec<u8>)>) {
        let mut netem = Netem::new(conditions, Random::new(1));
        let mut arrived = Vec::new();
        for number in 0..PACKETS {
            let mut bytes = vec![0; 100];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            let ecn = if number % 2 == 0 { Ecn::Ect0 } else { Ecn::NotEct };
            netem.send(Instant::from_nanos(number * 10_000), ecn, bytes, |at, arrived_as, bytes| {
                assert_eq!(arrived_as == Ecn::NotEct, ecn == Ecn::NotEct, "only what may be is marked");
                arrived.push((at, bytes));
            });
        }
        arrived.sort();
        (netem.counters(), arrived)
    }

    #[test]
    fn a_good_path_delays_and_does_nothing_else() {
        let (counters, arrived) = sent(Conditions { jitter: Duration::from_millis(1), ..Conditions::GOOD });
        assert_eq!(counters, Counters { sent: PACKETS, ..Counters::default() });
        for (number, (at, bytes)) in (0..).zip(&arrived) {
            assert_eq!(bytes[..8], u64::to_be_bytes(number), "in order, in spite of the jitter");
            assert!(at.since(Instant::from_nanos(number * 10_000)) >= Conditions::GOOD.delay);
        }
    }

    #[test]
    fn each_fault_happens_as_often_as_it_should_and_alone() {
        let (rate, behind) = (PerMille(100), Duration::from_millis(1));
        let good = Conditions { behind, ..Conditions::GOOD };
        let about = |count: u64| (900..1100).contains(&count);
        let whole = |arrived: &[(Instant, Vec<u8>)]| arrived.iter().all(|(_, bytes)| bytes[8..] == [0; 92]);

        let (counters, arrived) = sent(Conditions { loss: rate, ..good });
        assert!(about(counters.lost) && whole(&arrived));
        assert_eq!(arrived.len() as u64, PACKETS - counters.lost);

        let (counters, arrived) = sent(Conditions { duplicate: rate, ..good });
        assert!(about(counters.duplicated) && whole(&arrived));
        assert_eq!(arrived.len() as u64, PACKETS + counters.duplicated);

        let (counters, arrived) = sent(Conditions { reorder: rate, ..good });
        assert!(about(counters.reordered) && whole(&arrived));
        assert!(!arrived.is_sorted_by_key(|(_, bytes)| bytes.clone()));

        let (counters, arrived) = sent(Conditions { truncate: rate, ..good });
        assert!(about(counters.truncated));
        assert_eq!(arrived.iter().filter(|(_, bytes)| bytes.len() < 100).count() as u64, counters.truncated);

        let (counters, arrived) = sent(Conditions { corrupt: rate, ..good });
        let wrong = (0u64..).zip(&arrived).filter(|(number, (_, bytes))| {
            let right = [&number.to_be_bytes()[..], &[0; 92]].concat();
            right.iter().zip(bytes).filter(|(right, given)| right != given).count() == 1
        });
        assert!(about(counters.corrupted));
        assert_eq!(wrong.count() as u64, counters.corrupted);
    }

    #[test]
    fn bursts_are_longer_than_chance_makes_them() {
        let bursts = Bursts { begin: PerMille(10), end: PerMille(100), loss: PerMille::ALWAYS };
        let (counters, arrived) = sent(Conditions { bursts: Some(bursts), ..Conditions::GOOD });
        let numbers: Vec<u64> = arrived.iter().map(|(_, it)| u64::from_be_bytes(it[..8].try_into().unwrap())).collect();
        let gaps = numbers.windows(2).filter(|pair| pair[1] > pair[0] + 1).count() as u64;
        // Ill for 1/11 of the packets, in bursts of ten on average.
        assert!((700..1200).contains(&counters.lost_in_bursts), "{counters:?}");
        assert!((counters.lost_in_bursts / 14..counters.lost_in_bursts / 7).contains(&gaps), "{gaps}: {counters:?}");
        assert_eq!(arrived.len() as u64, PACKETS - counters.lost_in_bursts);
    }

    #[test]
    fn a_path_may_be_narrow_or_mangle_marks() {
        let (counters, arrived) = sent(Conditions { largest: 99, ..Conditions::GOOD });
        assert_eq!((counters.too_large, arrived.len()), (PACKETS, 0));
        let (counters, arrived) = sent(Conditions { largest: 100, ecn: OnEcn::Drops, ..Conditions::GOOD });
        assert_eq!((counters.ecn_mangled, arrived.len() as u64), (PACKETS / 2, PACKETS / 2));
        let mut netem = Netem::new(Conditions { ecn: OnEcn::Erases, ..Conditions::GOOD }, Random::new(1));
        netem.send(Instant::ORIGIN, Ecn::Ect0, vec![1], |_, ecn, _| assert_eq!(ecn, Ecn::NotEct));
        assert_eq!(netem.counters().ecn_mangled, 1);
    }

    #[test]
    fn a_bottleneck_queues_and_then_drops() {
        // Half of what is sent: 100 bytes in 20 µs.
        let bottleneck = Bottleneck { bits_per_second: 40_000_000, queue: Duration::from_millis(1), mark_after: None };
        let (counters, arrived) = sent(Conditions { bottleneck: Some(bottleneck), ..Conditions::GOOD });
        assert_eq!(arrived.len() as u64, PACKETS - counters.overflowed);
        assert!((PACKETS / 2 - 100..PACKETS / 2).contains(&counters.overflowed), "{counters:?}");
        for (at, bytes) in &arrived {
            let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            let waited = at.since(Instant::from_nanos(number * 10_000));
            assert!(waited <= bottleneck.queue + Conditions::GOOD.delay + Duration::from_micros(20));
        }
        assert_eq!(counters.marked, 0);
        let bottleneck = Some(Bottleneck { mark_after: Some(Duration::from_micros(500)), ..bottleneck });
        let (counters, arrived) = sent(Conditions { bottleneck, ..Conditions::GOOD });
        assert!(
            counters.marked * 2 > arrived.len() as u64 / 2 && counters.marked < arrived.len() as u64,
            "{counters:?}"
        );
    }
}
