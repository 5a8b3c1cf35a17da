//! Sealing and opening data packets (`docs/wire.md` §4), and which AEAD does it.

use pilot_common::wire::{HEADER_LEN, TAG_LEN};
use zeroize::Zeroizing;

use super::backend::AeadKey;
use crate::limits::REJECT_AFTER_PACKETS;

/// Bytes of a nonce.
pub(crate) const NONCE_LEN: usize = 12;

/// The AEADs of the handshake's parameter 5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Aead {
    /// AES-256-GCM: the faster one where the processor has instructions for it.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305: the faster one elsewhere, and the only one of the pure-Rust backend.
    ChaCha20Poly1305 = 2,
}

impl Aead {
    /// The name that logs and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }

    pub(crate) const fn from_wire(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }
}

/// The AEADs that an end uses, the best first; never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aeads {
    first: Aead,
    second: Option<Aead>,
}

impl Aeads {
    /// What this build and this processor do best: AES-256-GCM only where both have it, because without instructions for it
    /// it is slower than the other (W3.7).
    pub fn detect() -> Self {
        let aes = AeadKey::new(Aead::Aes256Gcm, &[0; 32]).is_some() && has_aes_instructions();
        match aes {
            true => Self { first: Aead::Aes256Gcm, second: Some(Aead::ChaCha20Poly1305) },
            false => Self::only(Aead::ChaCha20Poly1305),
        }
    }

    /// Exactly this one.
    pub const fn only(aead: Aead) -> Self {
        Self { first: aead, second: None }
    }

    /// Whether this build has every one of them.
    pub fn are_supported(&self) -> bool {
        self.iter().all(|aead| AeadKey::new(aead, &[0; 32]).is_some())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Aead> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// The AEADs of a list on the wire; those of which we know nothing are passed over.
    pub(crate) fn from_wire(ids: &[u8]) -> Option<Self> {
        let mut known = ids.iter().filter_map(|id| Aead::from_wire(*id));
        let first = known.next()?;
        Some(Self { first, second: known.find(|aead| *aead != first) })
    }

    /// What a responder with these chooses for an initiator that offers `offered` (W3.7): each lists AES-256-GCM only where it
    /// has instructions for it, so that the first of ours that both have is it where both have them.
    pub(crate) fn choose(&self, offered: &Self) -> Option<Aead> {
        self.iter().find(|aead| offered.iter().any(|other| other == *aead))
    }
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// The two keys of a tunnel: one seals, the other opens. Wiped when dropped.
pub(crate) struct KeyPair {
    aead: Aead,
    raw: Zeroizing<[[u8; 32]; 2]>,
    /// While the tunnel is in use: expanded keys take twenty times the room, and making them takes 240 ns.
    expanded: Option<[AeadKey; 2]>,
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
    /// Expands raw keys. `None`: this build does not have the AEAD.
    pub(crate) fn new(aead: Aead, seal: &[u8; 32], open: &[u8; 32]) -> Option<Self> {
        let raw = Zeroizing::new([*seal, *open]);
        let mut keys = Self { aead, raw, expanded: None, sealed_packets: 0 };
        keys.expand()?;
        Some(keys)
    }

    fn expand(&mut self) -> Option<&[AeadKey; 2]> {
        if self.expanded.is_none() {
            let [seal, open] = &*self.raw;
            self.expanded = Some([AeadKey::new(self.aead, seal)?, AeadKey::new(self.aead, open)?]);
        }
        self.expanded.as_ref()
    }

    /// Keeps the raw keys alone, until the next packet.
    pub(crate) fn rest(&mut self) {
        self.expanded = None;
    }

    /// Seals a packet in place: `packet` is header, frames, and room for the tag.
    pub(crate) fn seal(&mut self, number: u64, packet: &mut [u8]) -> Result<(), SealError> {
        if self.is_used_up() {
            return Err(SealError::Exhausted);
        }
        self.sealed_packets += 1;
        let (header, rest) = packet.split_first_chunk_mut::<HEADER_LEN>().ok_or(SealError::Refused)?;
        let frames_len = rest.len().checked_sub(TAG_LEN).ok_or(SealError::Refused)?;
        let (frames, room) = rest.split_at_mut(frames_len);
        let [seal, _] = self.expand().ok_or(SealError::Refused)?;
        let tag = seal.seal(nonce(number), header, frames).ok_or(SealError::Refused)?;
        room.copy_from_slice(&tag);
        Ok(())
    }

    /// Packets sealed so far.
    pub(crate) fn sealed_packets(&self) -> u64 {
        self.sealed_packets
    }

    /// Whether it has sealed as much as it may (W4.6).
    pub(crate) fn is_used_up(&self) -> bool {
        self.sealed_packets >= REJECT_AFTER_PACKETS
    }

    /// Opens a packet out of place, into `frames`; returns how many bytes of frames there are. `None`: not authentic.
    pub(crate) fn open(&mut self, number: u64, packet: &[u8], frames: &mut [u8]) -> Option<usize> {
        let (header, rest) = packet.split_first_chunk::<HEADER_LEN>()?;
        let length = rest.len().checked_sub(TAG_LEN)?;
        let (sealed, tag) = rest.split_at(length);
        let frames = frames.get_mut(..length)?;
        let [_, open] = self.expand()?;
        open.open(nonce(number), header, sealed, tag, frames)?;
        Some(length)
    }
}

#[cfg(test)]
impl KeyPair {
    pub(crate) fn is_expanded_for_test(&self) -> bool {
        self.expanded.is_some()
    }

    /// As if it had sealed so many packets.
    pub(crate) fn set_sealed_for_test(&mut self, packets: u64) {
        self.sealed_packets = packets;
    }
}

/// W4.1: four zero bytes and the packet number. Unique for a key because a number is used once.
fn nonce(number: u64) -> [u8; NONCE_LEN] {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(aead: Aead) -> (KeyPair, KeyPair) {
        let (a, b) = ([1; 32], [2; 32]);
        (KeyPair::new(aead, &a, &b).unwrap(), KeyPair::new(aead, &b, &a).unwrap())
    }

    /// wire.md W3.7
    #[test]
    fn the_first_that_both_have_is_chosen() {
        use Aead::{Aes256Gcm as A, ChaCha20Poly1305 as C};
        let both = Aeads { first: A, second: Some(C) };
        let (aes, chacha) = (Aeads::only(A), Aeads::only(C));
        for (ours, offered, chosen) in [
            (both, both, Some(A)),
            (both, chacha, Some(C)),
            (chacha, both, Some(C)),
            (aes, both, Some(A)),
            (chacha, aes, None),
        ] {
            assert_eq!(ours.choose(&offered), chosen);
        }
        assert_eq!(Aeads::from_wire(&[9, 2, 2, 1]), Some(Aeads { first: C, second: Some(A) }));
        assert_eq!(Aeads::from_wire(&[0, 9]), None);
        assert!(Aeads::detect().are_supported());
    }

    /// wire.md W4.1: header and number are both authenticated.
    #[test]
    fn opens_only_what_was_sealed() {
        for aead in Aeads::detect().iter() {
            opens_only_what(aead);
        }
    }

    fn opens_only_what(aead: Aead) {
        let (mut ours, mut theirs) = pair(aead);
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
        let (mut ours, _) = pair(Aead::ChaCha20Poly1305);
        ours.sealed_packets = REJECT_AFTER_PACKETS - 1;
        let mut packet = [0; HEADER_LEN + 1 + TAG_LEN];
        assert_eq!(ours.seal(1, &mut packet), Ok(()));
        assert_eq!(ours.seal(2, &mut packet), Err(SealError::Exhausted));
    }
}
