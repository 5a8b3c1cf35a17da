//! Rust alone: ChaCha20-Poly1305 and the curves. Without AES-256-GCM, which in software is slow or leaks by its timing.

use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use ml_kem::kem::Decapsulate as _;
use ml_kem::ml_kem_512;
use pilot_common::wire::TAG_LEN;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::crypto::aead::{Aead, NONCE_LEN};
use crate::crypto::kem::{CIPHERTEXT_LEN, DECAPSULATION_KEY_LEN, SharedSecret};

/// A key of one direction, wiped when dropped.
pub(crate) struct AeadKey(ChaCha20Poly1305);

impl AeadKey {
    /// `None`: this backend does not have the AEAD.
    pub(crate) fn new(aead: Aead, key: &[u8; 32]) -> Option<Self> {
        (aead == Aead::ChaCha20Poly1305).then(|| Self(ChaCha20Poly1305::new(key.into())))
    }

    /// Seals in place; the tag.
    pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        self.0.encrypt_inout_detached(&Nonce::from(nonce), aad, text.into()).ok().map(Into::into)
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
        let tag: [u8; TAG_LEN] = tag.try_into().ok()?;
        if out.len() != sealed.len() {
            return None;
        }
        // The cipher works in place; the tag is checked before anything is deciphered.
        out.copy_from_slice(sealed);
        self.0.decrypt_inout_detached(&Nonce::from(nonce), aad, out.into(), &Tag::from(tag)).ok()
    }
}

/// The public half of an X25519 secret.
pub(crate) fn x25519_public(secret: &[u8; 32]) -> Option<[u8; 32]> {
    Some(PublicKey::from(&StaticSecret::from(*secret)).to_bytes())
}

/// X25519. `None`: the peer's key is of small order, and the result would be zero (RFC 7748 §6.1).
pub(crate) fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Option<[u8; 32]> {
    let shared = StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*public));
    shared.was_contributory().then(|| shared.to_bytes())
}

/// The secret that a ciphertext of ML-KEM-512 tells this key, or one that nobody else has (FIPS 203 §7.3).
#[allow(deprecated, reason = "seeds are preferred for keys that are stored; this one is FIPS 203's own form")]
pub(crate) fn ml_kem_512_decapsulate(
    key: &[u8; DECAPSULATION_KEY_LEN],
    ciphertext: &[u8; CIPHERTEXT_LEN],
) -> Option<SharedSecret> {
    let key = ml_kem_512::DecapsulationKey::from_expanded(key.into()).ok()?;
    Some(Zeroizing::new(key.decapsulate(ciphertext.into()).into()))
}

/// The public half of an Ed25519 seed.
pub(crate) fn ed25519_public(seed: &[u8; 32]) -> Option<[u8; 32]> {
    Some(SigningKey::from_bytes(seed).verifying_key().to_bytes())
}

/// Signs with an Ed25519 seed.
pub(crate) fn ed25519_sign(seed: &[u8; 32], text: &[u8]) -> Option<[u8; 64]> {
    Some(SigningKey::from_bytes(seed).sign(text).to_bytes())
}

/// Whether a signature is right.
pub(crate) fn ed25519_verify(public: &[u8; 32], text: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(public), Signature::from_slice(signature)) else {
        return false;
    };
    key.verify_strict(text, &signature).is_ok()
}
