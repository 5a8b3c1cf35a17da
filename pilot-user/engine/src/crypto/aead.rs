//! Sealing and opening data packets (`docs/wire.md` §4).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use pilot_common::wire::{HEADER_LEN, TAG_LEN};

use crate::limits::REJECT_AFTER_PACKETS;

/// The AEADs of the handshake's parameter 5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Aead {
    /// AES-256-GCM.
    Aes256Gcm = 1,
}

impl Aead {
    /// The name that logs and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
        }
    }
}

/// The two keys of a tunnel, expanded: one seals, the other opens. Wiped when dropped, by aws-lc-rs.
pub(crate) struct KeyPair {
    seal: LessSafeKey,
    open: LessSafeKey,
    sealed_packets: u64,
}

/// A packet could not be sealed; only [`SealError::Exhausted`] is expected in a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SealError {
    /// The key has sealed as much as it may (W4.6).
    Exhausted,
    /// The library refused.
    Refused,
}

impl KeyPair {
    /// Expands raw keys. `None` only if the library refuses 32 bytes as a key.
    pub(crate) fn new(aead: Aead, seal: &[u8; 32], open: &[u8; 32]) -> Option<Self> {
        let algorithm = match aead {
            Aead::Aes256Gcm => &AES_256_GCM,
        };
        let expand = |key: &[u8; 32]| UnboundKey::new(algorithm, key).ok().map(LessSafeKey::new);
        Some(Self { seal: expand(seal)?, open: expand(open)?, sealed_packets: 0 })
    }

    /// Seals a packet in place: `packet` is header, frames, and room for the tag.
    pub(crate) fn seal(&mut self, number: u64, packet: &mut [u8]) -> Result<(), SealError> {
        if self.sealed_packets >= REJECT_AFTER_PACKETS {
            return Err(SealError::Exhausted);
        }
        self.sealed_packets += 1;
        let (header, rest) = packet.split_first_chunk_mut::<HEADER_LEN>().ok_or(SealError::Refused)?;
        let frames_len = rest.len().checked_sub(TAG_LEN).ok_or(SealError::Refused)?;
        let (frames, room) = rest.split_at_mut(frames_len);
        let tag = self
            .seal
            .seal_in_place_separate_tag(nonce(number), Aad::from(&*header), frames)
            .map_err(|_| SealError::Refused)?;
        room.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a packet out of place, into `frames`; returns how many bytes of frames there are. `None`: not authentic.
    pub(crate) fn open(&self, number: u64, packet: &[u8], frames: &mut [u8]) -> Option<usize> {
        let (header, rest) = packet.split_first_chunk::<HEADER_LEN>()?;
        let length = rest.len().checked_sub(TAG_LEN)?;
        let (sealed, tag) = rest.split_at(length);
        let frames = frames.get_mut(..length)?;
        self.open.open_separate_gather(nonce(number), Aad::from(header), sealed, tag, frames).ok()?;
        Some(length)
    }
}

/// W4.1: four zero bytes and the packet number. Unique for a key because a number is used once.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (KeyPair, KeyPair) {
        let (a, b) = ([1; 32], [2; 32]);
        (KeyPair::new(Aead::Aes256Gcm, &a, &b).unwrap(), KeyPair::new(Aead::Aes256Gcm, &b, &a).unwrap())
    }

    /// wire.md W4.1: header and number are both authenticated.
    #[test]
    fn opens_only_what_was_sealed() {
        let (mut ours, theirs) = pair();
        let mut packet = [9; HEADER_LEN + 40 + TAG_LEN];
        ours.seal(77, &mut packet).unwrap();
        let mut frames = [0; 64];
        assert_eq!(theirs.open(77, &packet, &mut frames), Some(40));
        assert_eq!(frames[..40], [9; 40]);
        assert_eq!(theirs.open(78, &packet, &mut frames), None, "another number");
        assert_eq!(ours.open(77, &packet, &mut frames), None, "the other direction");
        for i in 0..packet.len() {
            packet[i] ^= 0x80;
            assert_eq!(theirs.open(77, &packet, &mut frames), None, "byte {i}");
            packet[i] ^= 0x80;
            assert_eq!(theirs.open(77, &packet[..i], &mut frames), None, "cut to {i}");
        }
        assert_eq!(theirs.open(77, &packet, &mut [0; 39]), None, "no room");
    }

    /// wire.md W4.6
    #[test]
    fn a_key_is_refused_past_its_limit() {
        let (mut ours, _) = pair();
        ours.sealed_packets = REJECT_AFTER_PACKETS - 1;
        let mut packet = [0; HEADER_LEN + 1 + TAG_LEN];
        assert_eq!(ours.seal(1, &mut packet), Ok(()));
        assert_eq!(ours.seal(2, &mut packet), Err(SealError::Exhausted));
    }
}
