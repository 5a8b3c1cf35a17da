//! The BPF maps by which userspace and the XDP program talk: names, keys, values, sizes.
//!
//! Keys and values are integers and arrays of them, because those need no promise about padding on either side.

use crate::address::{Address, Family};
use crate::limit::Limit;

/// The XDP program.
pub const PROGRAM: &str = "pilot_steer";

/// XSKMAP from receive queue to AF_XDP socket.
pub const XSKS: &str = "XSKS";
/// Array of one [`ConfigWords`].
pub const CONFIG: &str = "CONFIG";
/// Hash from [`Address::octets`] to [`Present`]: the addresses that this node receives on.
pub const LOCAL: &str = "LOCAL";
/// Longest-prefix trie from [`crate::address::Prefix::lpm_key`] to [`AllowValue`].
pub const ALLOW_FROM: &str = "ALLOW_FROM";
/// Per-CPU array of u64, indexed by [`crate::stats::Verdict::counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Array of u64, memory that workers share with the program: a bit for each session id, see [`session_bit`].
pub const SESSIONS: &str = "SESSIONS";
/// LRU hash from [`Address::site`] to the bucket of [`Limits::initiations`].
pub const SITES: &str = "SITES";
/// Per-CPU array of one bucket of [`Limits::unknown_sessions`].
pub const UNKNOWN_SESSIONS: &str = "UNKNOWN_SESSIONS";
// The log has maps of its own: the ring `AYA_LOGS`, which the crates aya-log-ebpf and aya-log agree on, and the program's
// window of time, of which userspace knows nothing.

/// Most receive queues: as many as a session id's 8 bits can name workers (wire.md W1.2). On a device with more, the
/// queues above get no socket, and what they receive is passed.
pub const MAX_QUEUES: u32 = 256;
/// Most local addresses. The kernel allocates them all at load, some 100 bytes each; with fewer, a host with many
/// addresses could not listen on all of them.
pub const MAX_LOCAL: u32 = 256;
/// Most prefixes in `allow_from`. Allocated as they are inserted; more would make the trie deep and every packet slower.
pub const MAX_ALLOW_FROM: u32 = 4096;

/// Session ids of one worker: what is left of 32 bits beside the worker's own (wire.md W1.2). A bit for each is 2 MiB, next to
/// 25 MiB of its packet memory; so the table is exact, is never full, and a lookup is one read.
pub const WORKER_SESSIONS: u32 = 1 << 24;
/// Session ids that share a word of [`SESSIONS`].
pub const WORD_SESSIONS: u32 = u64::BITS;
/// Sources whose initiations are counted at a time, some 100 bytes each, allocated at load. Those that came once and not again
/// make room first. With fewer, an attacker needs fewer addresses to be forgotten between two initiations of each.
pub const MAX_SITES: u32 = 16_384;

/// Initiations that one [`Address::site`] may send (W2.7). Each may cost a check of mac1, 1.3 µs, and with a right one a
/// handshake, 0.3 ms: 6 % of a core. Lower: whoever forges a peer's address keeps its handshakes out with fewer datagrams, and
/// the nodes behind one NAT, all restarted, come back more slowly. Higher: one source can take more of a core.
const INITIATIONS_PER_SECOND: u32 = 200;
/// Initiations of one site at once. Lower: as many nodes behind one NAT, restarted together, wait for their next try.
/// Higher: a tenth of a second of a core per source at once.
const INITIATIONS_AT_ONCE: u16 = 400;
/// Datagrams of unknown sessions that each CPU passes to userspace (W2.5), where each costs a system call's share, 1 µs,
/// and may be answered by a stateless reset. Lower: after a restart, peers hear of it later. Higher: a flood takes more of the
/// kernel and of the worker.
const UNKNOWN_PER_SECOND: u32 = 1000;
/// Such datagrams at once: what so many peers have in flight when this node restarts.
const UNKNOWN_AT_ONCE: u16 = 256;

/// Most frames that a CPU logs in a second. The next line says how many more there were. More would let who sends to us fill
/// a disk, at some 200 bytes a line, and would not be read by anybody; with fewer, the frames of one failed handshake might
/// not all be seen.
pub const MAX_LOG_LINES: u64 = 100;

/// The value of a set's member.
pub type Present = u8;
/// The IP version of an allowed prefix, see [`allow_value`].
pub type AllowValue = u8;
/// [`Config`] and [`Limits`] as the map holds them, and whether the program logs.
pub type ConfigWords = [u32; 8];

const _: () = assert!(size_of::<Address>() == 16 && size_of::<ConfigWords>() == 32);

/// Where a session id's bit is in `SESSIONS`: the word's index, and the word with that bit alone. Workers have their words one
/// after the other, because a session id begins with the worker.
#[inline(always)]
pub const fn session_bit(id: u32) -> (u32, u64) {
    (id / WORD_SESSIONS, 1 << (id % WORD_SESSIONS))
}

/// The value of a prefix in `ALLOW_FROM`, and what a lookup must find for an address of that family: the trie would find
/// `::/0` for IPv4 addresses also, which an IPv6 prefix does not contain.
#[inline(always)]
pub const fn allow_value(family: Family) -> AllowValue {
    family as u8
}

/// What the program must know besides addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Our UDP port.
    pub port: u16,
    /// The device's MTU in bytes: the longest IP packet that is one datagram.
    pub mtu: u32,
    /// Whether every source is allowed; then nothing is looked up in `allow_from`.
    pub allow_all: bool,
}

impl Config {
    /// The map's value. Its bytes are not replaced at once: a packet that comes in between may see some words old and
    /// some new. With `log`, the program logs what is sent to our port and is not redirected.
    #[inline]
    pub const fn to_words(self, limits: Limits, log: bool) -> ConfigWords {
        let Limits { initiations, unknown_sessions: unknown } = limits;
        let [one, other] = [initiations.at_once as u32, unknown.at_once as u32];
        let config = [self.port as u32, self.mtu, self.allow_all as u32, log as u32];
        [config[0], config[1], config[2], config[3], initiations.interval_us, one, unknown.interval_us, other]
    }

    /// Reads the map's value.
    #[inline(always)]
    pub const fn from_words(words: &ConfigWords) -> Self {
        let [port, mtu, allow_all, ..] = *words;
        Self { port: port as u16, mtu, allow_all: allow_all != 0 }
    }
}

/// How much of what costs work is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Initiations of each [`Address::site`].
    pub initiations: Limit,
    /// Datagrams of unknown sessions that each CPU passes to userspace.
    pub unknown_sessions: Limit,
}

impl Limits {
    /// What nodes use.
    pub const NODE: Self = Self {
        initiations: Limit::per_second(INITIATIONS_PER_SECOND, INITIATIONS_AT_ONCE),
        unknown_sessions: Limit::per_second(UNKNOWN_PER_SECOND, UNKNOWN_AT_ONCE),
    };

    /// Reads the map's value.
    #[inline(always)]
    pub const fn from_words(words: &ConfigWords) -> Self {
        let [_, _, _, _, initiations_us, initiations, unknown_us, unknown] = *words;
        Self {
            initiations: Limit { interval_us: initiations_us, at_once: initiations as u16 },
            unknown_sessions: Limit { interval_us: unknown_us, at_once: unknown as u16 },
        }
    }
}

/// Whether the program logs: the switch in the map's value.
#[inline(always)]
pub const fn is_logging(words: &ConfigWords) -> bool {
    words[3] != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_give_the_config_back() {
        for (allow_all, log) in [(false, false), (false, true), (true, false), (true, true)] {
            let config = Config { port: 0xfedc, mtu: 9000, allow_all };
            let words = config.to_words(Limits::NODE, log);
            assert_eq!((Config::from_words(&words), is_logging(&words)), (config, log));
            assert_eq!(Limits::from_words(&words), Limits::NODE);
        }
        assert_ne!(Limits::NODE.initiations, Limits::NODE.unknown_sessions, "or they could be mixed up");
    }

    /// wire.md W1.2: a worker's words are its own, and each of its ids has a bit of its own.
    #[test]
    fn every_session_id_has_its_bit() {
        let words = WORKER_SESSIONS / WORD_SESSIONS;
        for worker in [0, 1, 7, 255] {
            let first = worker * WORKER_SESSIONS;
            assert_eq!(session_bit(first), (worker * words, 1));
            assert_eq!(session_bit(first + 64), (worker * words + 1, 1));
            assert_eq!(session_bit(first + (WORKER_SESSIONS - 1)), (worker * words + (words - 1), 1 << 63));
        }
        let word: u64 = (0..64).map(|id| session_bit(id).1).sum();
        assert_eq!(word, u64::MAX, "no two share a bit");
    }
}
