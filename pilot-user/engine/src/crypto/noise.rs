//! snow's handshake state: built over our primitives, wiped when dropped.

use std::ops::{Deref, DerefMut};

use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::primitives::Primitives;
use super::rng::SeededRng;

/// Of a handshake for a tunnel, with the KEM's secret as psk 2 (W3.13).
const IK: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// See [`HandshakeState::set_psk`].
pub(super) const IK_PSK: usize = 2;
/// Of an introduction, with the KEM's secret as psk 3 (W3.31).
const XX: &str = "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s";
/// See [`HandshakeState::set_psk`].
pub(super) const XX_PSK: usize = 3;
const PROLOGUE: &[u8] = b"Pilot wire 1";

/// A handshake under way. Boxed before it holds a secret, so that none is left where it was moved from.
pub(super) struct Noise(Box<HandshakeState>);

impl Noise {
    /// An initiator, who knows whom it talks to.
    pub(super) fn initiator(own_secret: &[u8; 32], peer: &[u8; 32], rng: SeededRng) -> Option<Self> {
        let builder = builder(IK, rng)?.local_private_key(own_secret).ok()?.remote_public_key(peer).ok()?;
        Some(Self(Box::new(builder.prologue(PROLOGUE).ok()?.build_initiator().ok()?)))
    }

    /// A responder, who learns it from message 1.
    pub(super) fn responder(own_secret: &[u8; 32], rng: SeededRng) -> Option<Self> {
        let builder = builder(IK, rng)?.local_private_key(own_secret).ok()?;
        Some(Self(Box::new(builder.prologue(PROLOGUE).ok()?.build_responder().ok()?)))
    }

    /// The initiator of an introduction, who knows nobody's key.
    pub(super) fn xx_initiator(own_secret: &[u8; 32], rng: SeededRng) -> Option<Self> {
        let builder = builder(XX, rng)?.local_private_key(own_secret).ok()?;
        Some(Self(Box::new(builder.prologue(PROLOGUE).ok()?.build_initiator().ok()?)))
    }

    /// The responder of an introduction, who learns it from message 3.
    pub(super) fn xx_responder(own_secret: &[u8; 32], rng: SeededRng) -> Option<Self> {
        let builder = builder(XX, rng)?.local_private_key(own_secret).ok()?;
        Some(Self(Box::new(builder.prologue(PROLOGUE).ok()?.build_responder().ok()?)))
    }

    /// Both data keys (W3.8): the first is for initiator to responder.
    pub(super) fn raw_split(&mut self) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
        let (first, second) = self.dangerously_get_raw_split();
        (Zeroizing::new(first), Zeroizing::new(second))
    }

    /// snow holds the chaining key, from which the data keys come, and the psk in itself, and leaves them there: a state
    /// that has no secrets is written over it. Keys of curve and cipher are ours, and wipe themselves. What snow copies to
    /// the stack while it computes is out of reach.
    fn wipe(&mut self) {
        let blank = builder("Noise_NN_25519_ChaChaPoly_BLAKE2s", SeededRng::new([0; 32]));
        if let Some(blank) = blank.and_then(|builder| builder.build_initiator().ok()) {
            *self.0 = blank;
            // Without this, nobody reads what was written, and the compiler may leave it out.
            std::hint::black_box(&mut self.0);
        }
    }
}

fn builder<'a>(pattern: &str, rng: SeededRng) -> Option<Builder<'a>> {
    Some(Builder::with_resolver(pattern.parse().ok()?, Box::new(Primitives::new(rng))))
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl Deref for Noise {
    type Target = HandshakeState;

    fn deref(&self) -> &HandshakeState {
        &self.0
    }
}

impl DerefMut for Noise {
    fn deref_mut(&mut self) -> &mut HandshakeState {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    /// The vectors of cacophony for both patterns, as snow tests itself with them: its own primitives are not in our build.
    #[test]
    fn the_patterns_over_our_primitives_are_cacophonys() {
        is_cacophonys(IK, IK_PSK, 2, include_str!("../../tests/vectors/noise_ikpsk2.txt"));
        is_cacophonys(XX, XX_PSK, 3, include_str!("../../tests/vectors/noise_xxpsk3.txt"));
    }

    /// A pattern of so many messages. Only where the initiator knows the responder's key, the vector says so.
    fn is_cacophonys(pattern: &str, psk_location: usize, messages: usize, vector: &'static str) {
        let vector: Vec<(&str, Vec<u8>)> = vector
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, hex)| (name, unhex(hex)))
            .collect();
        let all = |name: &str| vector.iter().filter(|(n, _)| *n == name).map(|(_, v)| &v[..]).collect::<Vec<_>>();
        let one = |name: &str| all(name)[0];
        let psk: &[u8; 32] = one("psk").try_into().unwrap();
        let end = |secret: &'static str, ephemeral: &'static str| {
            let builder = builder(pattern, SeededRng::new([0; 32])).unwrap();
            builder
                .prologue(one("prologue"))
                .unwrap()
                .psk(psk_location as u8, psk)
                .unwrap()
                .local_private_key(one(secret))
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(one(ephemeral))
        };
        let known = all("init_remote_static");
        let initiator = end("init_static", "init_ephemeral");
        let initiator = known.iter().fold(initiator, |initiator, key| initiator.remote_public_key(key).unwrap());
        let mut ends =
            [initiator.build_initiator().unwrap(), end("resp_static", "resp_ephemeral").build_responder().unwrap()];
        let (mut message, mut text) = ([0; 200], [0; 200]);
        for (n, (payload, ciphertext)) in all("payload").into_iter().zip(all("ciphertext")).take(messages).enumerate() {
            let [from, to] = [n % 2, 1 - n % 2];
            let length = ends[from].write_message(payload, &mut message).unwrap();
            assert_eq!(&message[..length], ciphertext);
            let length = ends[to].read_message(&message[..length], &mut text).unwrap();
            assert_eq!(&text[..length], payload);
        }
        assert!(ends.iter().all(|end| end.get_handshake_hash() == one("handshake_hash")));
        // What follows is sealed with the split keys, messages alternating as before.
        let (first, second) = ends[0].dangerously_get_raw_split();
        for (n, (payload, ciphertext)) in all("payload").into_iter().zip(all("ciphertext")).enumerate().skip(messages) {
            let key = [&first, &second][n % 2];
            let nonce = std::array::from_fn(|i| if i == 4 { ((n - messages) / 2) as u8 } else { 0 });
            let aead = crate::crypto::aead::Aead::ChaCha20Poly1305;
            let key = crate::crypto::backend::AeadKey::new(aead, key).unwrap();
            let mut text = payload.to_vec();
            let tag = key.seal(nonce, &[], &mut text).unwrap();
            assert_eq!([&text[..], &tag].concat(), ciphertext);
        }
    }

    #[test]
    fn nothing_is_left_after_the_wipe() {
        let public = crate::crypto::backend::x25519_public(&[7; 32]).unwrap();
        let mut noise = Noise::initiator(&[1; 32], &public, SeededRng::new([2; 32])).unwrap();
        noise.write_message(&[], &mut [0; 200]).unwrap();
        let hash = noise.get_handshake_hash().to_vec();
        let keys = noise.raw_split();
        noise.wipe();
        assert_ne!(noise.get_handshake_hash(), hash);
        assert_ne!(noise.raw_split(), keys);
        assert_eq!(noise.get_remote_static(), None);
    }
}
