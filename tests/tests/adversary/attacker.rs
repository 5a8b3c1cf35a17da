//! What the attacker does to a datagram that it sees.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::fuzzing::write_mac1;
use pilot_tests::random::Random;

use super::nodes::{address, static_key};

/// Datagrams that it remembers, of each direction.
const REMEMBERED: usize = 400;
/// Later than this it delays nothing: longer than most timers of a tunnel in use.
const LONGEST_DELAY: u64 = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Act {
    Drop,
    Delay,
    Repeat,
    /// An old one again.
    Replay,
    /// An old initiation or response again.
    ReplayHandshake,
    /// Any bytes of it changed, mac1 made right again where there is one.
    Alter,
    /// The same to an old initiation or response.
    AlterHandshake,
    Truncate,
    Extend,
    /// The header of one before the rest of another.
    Splice,
    /// Back to its sender.
    Reflect,
    /// From another address.
    Elsewhere,
    /// Made up, of any type.
    Forge,
}

impl Act {
    pub(crate) const ALL: [Self; 13] = [
        Self::Drop,
        Self::Delay,
        Self::Repeat,
        Self::Replay,
        Self::ReplayHandshake,
        Self::Alter,
        Self::AlterHandshake,
        Self::Truncate,
        Self::Extend,
        Self::Splice,
        Self::Reflect,
        Self::Elsewhere,
        Self::Forge,
    ];
}

/// What is to arrive: how much later than usual, at which node, and from where.
pub(crate) struct Arrival {
    pub(crate) later: Duration,
    pub(crate) to: usize,
    pub(crate) source: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Attacker {
    random: Random,
    /// It does something with so many datagrams in 256.
    strength: u64,
    /// By the node that they were for.
    seen: [VecDeque<Vec<u8>>; 2],
    handshakes: [Vec<Vec<u8>>; 2],
    pub(crate) acts: BTreeMap<Act, u64>,
}

impl Attacker {
    pub(crate) fn new(random: Random) -> Self {
        Self { random, strength: 0, seen: Default::default(), handshakes: Default::default(), acts: BTreeMap::new() }
    }

    /// Nothing, a little, half, nearly all.
    pub(crate) fn set_strength(&mut self, step: u64) {
        self.strength = [0, 40, 128, 250][(step % 4) as usize];
    }

    pub(crate) fn stop(&mut self) {
        self.strength = 0;
    }

    /// Somewhere that the attacker sends from, and that nobody has.
    fn elsewhere(&mut self) -> SocketAddr {
        ([203, 0, 113, 1 + self.random.below(3) as u8], 4242).into()
    }

    /// What arrives of a datagram that was sent to a node.
    pub(crate) fn on_seen(&mut self, to: usize, bytes: Vec<u8>) -> Vec<Arrival> {
        let kind = bytes[0] >> 2 & 7;
        if kind <= 2 {
            self.handshakes[to].push(bytes.clone());
        }
        self.seen[to].push_back(bytes.clone());
        if self.seen[to].len() > REMEMBERED {
            self.seen[to].pop_front();
        }
        let genuine = |bytes| Arrival { later: Duration::ZERO, to, source: address(1 - to), bytes };
        if self.random.below(256) >= self.strength {
            return vec![genuine(bytes)];
        }
        let act = Act::ALL[self.random.below(Act::ALL.len() as u64) as usize];
        *self.acts.entry(act).or_default() += 1;
        let bad = self.act(act, to, &bytes);
        // Beside the genuine one, or instead of it.
        let instead = matches!(act, Act::Drop | Act::Delay | Act::Elsewhere) || self.random.below(4) == 0;
        let good = (!instead).then(|| genuine(bytes));
        good.into_iter().chain(bad).collect()
    }

    fn act(&mut self, act: Act, to: usize, bytes: &[u8]) -> Option<Arrival> {
        let later = Duration::from_micros(self.random.below(3) * self.random.below(2_000));
        let usual = address(1 - to);
        let arrival = Arrival { later, to, source: usual, bytes: bytes.to_vec() };
        let anywhere = if self.random.below(2) == 0 { usual } else { self.elsewhere() };
        Some(match act {
            Act::Drop => return None,
            Act::Delay => Arrival { later: Duration::from_millis(self.random.below(LONGEST_DELAY)), ..arrival },
            Act::Repeat => Arrival { source: anywhere, ..arrival },
            Act::Replay => Arrival { source: anywhere, bytes: self.old(to)?, ..arrival },
            Act::ReplayHandshake => Arrival { source: anywhere, bytes: self.old_handshake(to)?, ..arrival },
            Act::Alter => Arrival { bytes: self.altered(to, bytes.to_vec()), ..arrival },
            Act::AlterHandshake => {
                let old = self.old_handshake(to)?;
                Arrival { bytes: self.altered(to, old), ..arrival }
            }
            Act::Truncate => {
                let left = self.random.below(bytes.len() as u64) as usize;
                Arrival { bytes: bytes[..left].to_vec(), ..arrival }
            }
            Act::Extend => {
                let more = vec![self.random.next() as u8; 1 + self.random.below(40) as usize];
                Arrival { bytes: [bytes, &more].concat(), ..arrival }
            }
            Act::Splice => {
                let (head, other) = (self.random.below(2), self.old(to)?);
                let (head, rest) = if head == 0 { (bytes, &other[..]) } else { (&other[..], bytes) };
                Arrival { bytes: [&head[..9], &rest[9..]].concat(), ..arrival }
            }
            Act::Reflect => Arrival { to: 1 - to, source: address(to), ..arrival },
            Act::Elsewhere => Arrival { source: self.elsewhere(), ..arrival },
            Act::Forge => Arrival { source: anywhere, bytes: self.forged(to, bytes), ..arrival },
        })
    }

    fn old(&mut self, to: usize) -> Option<Vec<u8>> {
        let index = self.random.below(self.seen[to].len() as u64) as usize;
        self.seen[to].get(index).cloned()
    }

    fn old_handshake(&mut self, to: usize) -> Option<Vec<u8>> {
        let index = self.random.below(self.handshakes[to].len() as u64) as usize;
        self.handshakes[to].get(index).cloned()
    }

    fn altered(&mut self, to: usize, mut bytes: Vec<u8>) -> Vec<u8> {
        // The header, which steers, as often as all the rest.
        let within = if self.random.below(2) == 0 { 9 } else { bytes.len() as u64 };
        for _ in 0..1 + self.random.below(3) {
            bytes[self.random.below(within) as usize] ^= 1 << self.random.below(8);
        }
        if bytes[0] >> 2 & 7 <= 2 && self.random.below(2) == 0 {
            write_mac1(&static_key(to), &mut bytes);
        }
        bytes
    }

    /// Noise behind a header that may be right: the genuine one's, or one of any type to that session.
    fn forged(&mut self, to: usize, like: &[u8]) -> Vec<u8> {
        let kind = 1 + self.random.below(6) as u8;
        let length = match kind {
            1 => 1200,
            2 => 300,
            3 => 65,
            5 => 25,
            _ => 26 + self.random.below(1200) as usize,
        };
        let mut bytes: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
        bytes[..9].copy_from_slice(&like[..9]);
        bytes[0] = 1 << 5 | kind << 2;
        match kind {
            1 => bytes[1..5].fill(0),
            // A number that is new.
            4 => bytes[5..9]
                .copy_from_slice(&(u32::from_be_bytes([like[5], like[6], like[7], like[8]]) + 1).to_be_bytes()),
            _ => {}
        }
        if kind <= 2 {
            write_mac1(&static_key(to), &mut bytes);
        }
        bytes
    }
}
