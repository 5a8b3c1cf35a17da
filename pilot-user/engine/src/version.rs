//! Nodes of different versions (`docs/wire.md` W3.10): what no version changes, so that each can say which it speaks.

use std::fmt;

use pilot_common::wire::{HEADER_LEN, INITIATION_LEN, PacketType, VERSION};

use crate::crypto::cookie::mac1;
use crate::crypto::mac::MAC_LEN;

/// Versions of the wire protocol, from 1 to 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Versions(u8);

impl Versions {
    /// Those that this node speaks.
    pub const SPOKEN: Self = Self(1 << VERSION);

    /// Whether this one is among them.
    pub const fn contains(self, version: u8) -> bool {
        version < 8 && self.0 >> version & 1 == 1
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = (1..8).filter(|version| self.contains(*version));
        all.enumerate().try_for_each(|(n, version)| write!(f, "{}{version}", if n == 0 { "" } else { ", " }))
    }
}

/// Begins an answer: version 0, which is no wire version, and the type of a cookie reply, because what chooses a worker by type
/// and session id brings both to whom they answer.
const FIRST_BYTE: u8 = (PacketType::Cookie as u8) << 2;
/// Bytes of an answer.
pub(crate) const ANSWER_LEN: usize = HEADER_LEN + MAC_LEN + 1;

/// What the receiver of an initiation says that speaks none of its version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// By which the initiator knows the attempt.
    pub(crate) session_id: u32,
    /// Of the initiation: proof that this one was seen.
    pub(crate) mac1: [u8; MAC_LEN],
    pub(crate) versions: Versions,
}

impl Answer {
    /// The answer to a datagram of another version, if it is an initiation.
    pub(crate) fn to(datagram: &[u8]) -> Option<Self> {
        let [first, _, _, _, _, id @ ..] = *datagram.first_chunk::<HEADER_LEN>()?;
        let is_initiation = datagram.len() >= INITIATION_LEN
            && PacketType::from_first_byte(first) == Some(PacketType::Initiation)
            && !matches!(pilot_common::wire::version(first), 0 | VERSION);
        is_initiation.then_some(Self {
            session_id: u32::from_be_bytes(id),
            mac1: *mac1(datagram)?,
            versions: Versions::SPOKEN,
        })
    }

    pub(crate) fn to_bytes(self) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        bytes[0] = FIRST_BYTE;
        bytes[1..5].copy_from_slice(&self.session_id.to_be_bytes());
        bytes[HEADER_LEN..][..MAC_LEN].copy_from_slice(&self.mac1);
        bytes[ANSWER_LEN - 1] = self.versions.0;
        bytes
    }

    pub(crate) fn from_bytes(datagram: &[u8]) -> Option<Self> {
        let bytes: &[u8; ANSWER_LEN] = datagram.try_into().ok()?;
        let ([FIRST_BYTE, id @ .., 0, 0, 0, 0], [mac1 @ .., versions]) = bytes.split_first_chunk::<HEADER_LEN>()?
        else {
            return None;
        };
        let (session_id, mac1) = (u32::from_be_bytes(*id), mac1.try_into().ok()?);
        Some(Self { session_id, mac1, versions: Versions(*versions) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire.md W3.10
    #[test]
    fn answers_go_there_and_back() {
        let mut initiation = [7; INITIATION_LEN];
        initiation[0] = 2 << 5 | 1 << 2;
        initiation[5..9].copy_from_slice(&[1, 2, 3, 4]);
        let answer = Answer::to(&initiation).unwrap();
        assert_eq!(answer, Answer { session_id: 0x0102_0304, mac1: [7; 16], versions: Versions(0b10) });
        let bytes = answer.to_bytes();
        assert_eq!(Answer::from_bytes(&bytes), Some(answer));
        for at in [0, 5, 8] {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Answer::from_bytes(&bad), None, "byte {at}");
        }
        assert_eq!(Answer::from_bytes(&bytes[1..]), None);
        assert_eq!(Answer::to(&initiation[1..]), None, "shorter than any initiation");
        for first in [1 << 5 | 1 << 2, 2 << 5 | 4 << 2, 1 << 2] {
            initiation[0] = first;
            assert_eq!(Answer::to(&initiation), None, "{first:#b}: our version, no initiation, an answer's version");
        }
    }

    #[test]
    fn versions_are_named() {
        assert_eq!(Versions(0b1101).to_string(), "2, 3");
        assert_eq!(Versions::SPOKEN.to_string(), "1");
        assert_eq!(Versions(0).to_string(), "");
    }
}
