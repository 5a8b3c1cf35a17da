//! aws-lc-rs.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::kem::{self, ML_KEM_512};
use aws_lc_rs::signature::{self, ED25519, Ed25519KeyPair, KeyPair as _};
use pilot_common::wire::TAG_LEN;
use zeroize::Zeroizing;

use crate::crypto::aead::{Aead, NONCE_LEN};
use crate::crypto::kem::{CIPHERTEXT_LEN, DECAPSULATION_KEY_LEN, SharedSecret};

/// An expanded key of one direction. aws-lc wipes it when it is freed.
pub(crate) struct AeadKey(LessSafeKey);

impl AeadKey {
    /// `None`: this backend does not have the AEAD.
    pub(crate) fn new(aead: Aead, key: &[u8; 32]) -> Option<Self> {
        let algorithm = match aead {
            Aead::Aes256Gcm => &AES_256_GCM,
            Aead::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        UnboundKey::new(algorithm, key).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    /// Seals in place; the tag.
    pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), text).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Opens out of place; `out` is as long as `sealed`.
    pub(crate) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Option<()> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_separate_gather(nonce, Aad::from(aad), sealed, tag, out).ok()
    }
}

/// The public half of an X25519 secret.
pub(crate) fn x25519_public(secret: &[u8; 32]) -> Option<[u8; 32]> {
    let private = PrivateKey::from_private_key(&X25519, secret).ok()?;
    private.compute_public_key().ok()?.as_ref().try_into().ok()
}

/// X25519. `None`: the peer's key is of small order, and the result would be zero (RFC 7748 §6.1).
pub(crate) fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Option<[u8; 32]> {
    let private = PrivateKey::from_private_key(&X25519, secret).ok()?;
    agree(&private, UnparsedPublicKey::new(&X25519, public), (), |shared| shared.try_into().map_err(|_| ())).ok()
}

/// The secret that a ciphertext of ML-KEM-512 tells this key, or one that nobody else has (FIPS 203 §7.3).
pub(crate) fn ml_kem_512_decapsulate(
    key: &[u8; DECAPSULATION_KEY_LEN],
    ciphertext: &[u8; CIPHERTEXT_LEN],
) -> Option<SharedSecret> {
    let key = kem::DecapsulationKey::new(&ML_KEM_512, key).ok()?;
    let secret = key.decapsulate(ciphertext[..].into()).ok()?;
    Some(Zeroizing::new(secret.as_ref().try_into().ok()?))
}

/// The public half of an Ed25519 seed.
pub(crate) fn ed25519_public(seed: &[u8; 32]) -> Option<[u8; 32]> {
    Ed25519KeyPair::from_seed_unchecked(seed).ok()?.public_key().as_ref().try_into().ok()
}

/// Signs with an Ed25519 seed.
pub(crate) fn ed25519_sign(seed: &[u8; 32], text: &[u8]) -> Option<[u8; 64]> {
    Ed25519KeyPair::from_seed_unchecked(seed).ok()?.sign(text).as_ref().try_into().ok()
}

/// Whether a signature is right.
pub(crate) fn ed25519_verify(public: &[u8; 32], text: &[u8], signature: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&ED25519, public).verify(text, signature).is_ok()
}
