//! The BPF maps by which userspace and the XDP program talk: names, keys, values, sizes.
//!
//! Keys and values are integers and arrays of them, because those need no promise about padding on either side.

use crate::address::{Address, Family};

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

/// Most frames that a CPU logs in a second. The next line says how many more there were. More would let who sends to us fill
/// a disk, at some 200 bytes a line, and would not be read by anybody; with fewer, the frames of one failed handshake might
/// not all be seen.
pub const MAX_LOG_LINES: u64 = 100;

/// The value of a set's member.
pub type Present = u8;
/// The IP version of an allowed prefix, see [`allow_value`].
pub type AllowValue = u8;
/// [`Config`] as the map holds it, and whether the program logs.
pub type ConfigWords = [u32; 4];

const _: () = assert!(size_of::<Address>() == 16 && size_of::<ConfigWords>() == 16);

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
    pub const fn to_words(self, log: bool) -> ConfigWords {
        [self.port as u32, self.mtu, self.allow_all as u32, log as u32]
    }

    /// Reads the map's value.
    #[inline(always)]
    pub const fn from_words(words: &ConfigWords) -> Self {
        let [port, mtu, allow_all, _] = *words;
        Self { port: port as u16, mtu, allow_all: allow_all != 0 }
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
            let words = config.to_words(log);
            assert_eq!((Config::from_words(&words), is_logging(&words)), (config, log));
        }
    }
}
