//! The primitives that Noise asks for: X25519 and ChaCha20-Poly1305 of the backend, BLAKE2s, randomness from a seed.
//!
//! No randomness is drawn from the operating system, so that a simulated handshake is the same every time.

use std::sync::{Mutex, PoisonError};

use blake2::{Blake2s256, Digest as _};
use pilot_common::wire::TAG_LEN;
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use super::aead::{Aead, NONCE_LEN};
use super::backend::{AeadKey, x25519, x25519_public};
use super::rng::SeededRng;

/// Hands snow our primitives; randomness once, because a seed is used once.
pub(super) struct Primitives(Mutex<Option<SeededRng>>);

impl Primitives {
    pub(super) fn new(rng: SeededRng) -> Self {
        Self(Mutex::new(Some(rng)))
    }
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let rng = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::new(rng))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519Key::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::new(Blake2s(Blake2s256::new())) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(ChaChaPoly(None)) as Box<dyn Cipher>)
    }
}

impl Random for SeededRng {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill(bytes);
        Ok(())
    }
}

#[derive(Default)]
struct X25519Key {
    secret: Zeroizing<[u8; 32]>,
    /// `None`: there is no usable secret.
    public: Option<[u8; 32]>,
}

impl Dh for X25519Key {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        // A secret of another length leaves the key unset; every use then fails with `Error::Dh`.
        self.public = secret.try_into().ok().and_then(|secret| {
            *self.secret = secret;
            x25519_public(&self.secret)
        });
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(&mut *self.secret)?;
        self.public = x25519_public(&self.secret);
        self.public.map(|_| ()).ok_or(Error::Dh)
    }

    fn pubkey(&self) -> &[u8] {
        self.public.as_ref().map_or(&[0; 32], |public| public)
    }

    fn privkey(&self) -> &[u8] {
        &*self.secret
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        // snow passes its largest key buffer; X25519's key is its first 32 bytes.
        #[cfg(test)]
        count::DIFFIE_HELLMANS.set(count::DIFFIE_HELLMANS.get() + 1);
        let peer = public.first_chunk::<32>().ok_or(Error::Dh)?;
        let out = out.first_chunk_mut::<32>().ok_or(Error::Dh)?;
        *out = self.public.and_then(|_| x25519(&self.secret, peer)).ok_or(Error::Dh)?;
        Ok(())
    }
}

struct ChaChaPoly(Option<AeadKey>);

/// Noise §12.3: four zero bytes and the counter, little-endian.
fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    bytes
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = AeadKey::new(Aead::ChaCha20Poly1305, key);
    }

    fn encrypt(&self, counter: u64, aad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        match self.0.as_ref().and_then(|key| key.seal(nonce(counter), aad, text)) {
            Some(tag) => rest[..TAG_LEN].copy_from_slice(&tag),
            // snow has no error here. Nothing in the clear may leave: zeros fail at the receiver.
            None => out[..plaintext.len() + TAG_LEN].fill(0),
        }
        plaintext.len() + TAG_LEN
    }

    fn decrypt(&self, counter: u64, aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let length = sealed.len().checked_sub(TAG_LEN).ok_or(Error::Decrypt)?;
        let (text, tag) = sealed.split_at(length);
        let out = out.get_mut(..length).ok_or(Error::Decrypt)?;
        key.open(nonce(counter), aad, text, tag, out).ok_or(Error::Decrypt)?;
        Ok(length)
    }
}

struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

/// For tests of what costs none.
#[cfg(test)]
pub(crate) mod count {
    use std::cell::Cell;

    thread_local! {
        /// Computed on this thread.
        pub(crate) static DIFFIE_HELLMANS: Cell<u64> = const { Cell::new(0) };
    }
}
