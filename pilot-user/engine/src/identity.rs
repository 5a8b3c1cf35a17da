//! Who a node is: an Ed25519 identity, and the X25519 static key that it certifies (`docs/wire.md` W3.3).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::crypto::backend::{ed25519_public, ed25519_sign, ed25519_verify, x25519_public};

const PREFIX: &str = "pilot1-";
const CERTIFICATE_LABEL: &[u8] = b"pilot v1 static key";
/// Bytes of a certificate on the wire: identity, not_after, signature.
pub(crate) const CERTIFICATE_LEN: usize = 32 + 8 + 64;

/// A node's own keys. Not `Clone`, and the secret halves are wiped when dropped.
pub struct Identity {
    public: PublicKey,
    static_secret: Zeroizing<[u8; 32]>,
    certificate: [u8; CERTIFICATE_LEN],
}

/// Keys that cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The Ed25519 seed or the X25519 secret was refused.
    #[error("the secret keys are not usable as Ed25519 seed and X25519 secret")]
    Secrets,
}

impl Identity {
    /// The identity with this Ed25519 seed, certifying the X25519 key of this secret for as long as it is used.
    pub fn from_secrets(ed25519_seed: [u8; 32], x25519_secret: [u8; 32]) -> Result<Self, IdentityError> {
        let seed = Zeroizing::new(ed25519_seed);
        let static_secret = Zeroizing::new(x25519_secret);
        let identity = ed25519_public(&seed).ok_or(IdentityError::Secrets)?;
        let static_key = x25519_public(&static_secret).ok_or(IdentityError::Secrets)?;
        let not_after: u64 = 0;
        let signature = ed25519_sign(&seed, &signed_text(&static_key, not_after)).ok_or(IdentityError::Secrets)?;
        let mut certificate = [0; CERTIFICATE_LEN];
        certificate[..32].copy_from_slice(&identity);
        certificate[32..40].copy_from_slice(&not_after.to_be_bytes());
        certificate[40..].copy_from_slice(&signature);
        Ok(Self { public: PublicKey { identity, static_key }, static_secret, certificate })
    }

    /// What others know this node by.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn static_secret(&self) -> &[u8; 32] {
        &self.static_secret
    }

    pub(crate) fn certificate(&self) -> &[u8; CERTIFICATE_LEN] {
        &self.certificate
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// What a peer is known by: its Ed25519 identity, and the X25519 static key to begin a handshake with. Text: `pilot1-` and
/// 86 characters of URL-safe base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey {
    /// The Ed25519 public key: who it is.
    pub identity: [u8; 32],
    /// The X25519 public key that its identity certifies.
    pub static_key: [u8; 32],
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.identity);
        bytes[32..].copy_from_slice(&self.static_key);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a public key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{given}` is not a public key: expected `{PREFIX}` and 86 characters, as `pilot keygen` prints it")]
pub struct PublicKeyError {
    given: String,
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        text.strip_prefix(PREFIX)
            .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
            .and_then(|bytes| {
                let (identity, static_key) = bytes.split_first_chunk::<32>()?;
                Some(Self { identity: *identity, static_key: static_key.try_into().ok()? })
            })
            .ok_or_else(|| PublicKeyError { given: text.chars().take(100).collect() })
    }
}

/// Who a certificate names, if it certifies `static_key` at `unix_seconds` (W3.3).
pub(crate) fn verify_certificate(certificate: &[u8], static_key: &[u8; 32], unix_seconds: u64) -> Option<[u8; 32]> {
    let (identity, rest) = certificate.split_first_chunk::<32>()?;
    let (not_after, signature) = rest.split_first_chunk::<8>()?;
    let not_after = u64::from_be_bytes(*not_after);
    if not_after != 0 && unix_seconds > not_after {
        return None;
    }
    ed25519_verify(identity, &signed_text(static_key, not_after), signature).then_some(*identity)
}

fn signed_text(static_key: &[u8; 32], not_after: u64) -> [u8; CERTIFICATE_LABEL.len() + 40] {
    let mut text = [0; CERTIFICATE_LABEL.len() + 40];
    let (label, rest) = text.split_at_mut(CERTIFICATE_LABEL.len());
    label.copy_from_slice(CERTIFICATE_LABEL);
    rest[..32].copy_from_slice(static_key);
    rest[32..].copy_from_slice(&not_after.to_be_bytes());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(n: u8) -> Identity {
        Identity::from_secrets([n; 32], [n + 1; 32]).unwrap()
    }

    #[test]
    fn public_key_text_round_trips() {
        let key = identity(1).public_key();
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "pilot1-", "pilot1-AAAA", &key.to_string()[1..], &format!("{key}A")] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }

    /// The public halves of RFC 8032 §7.1 (test 1) and RFC 7748 §6.1 (Bob).
    #[test]
    fn public_halves_are_those_of_the_standards() {
        let hex =
            |s: &str| -> [u8; 32] { std::array::from_fn(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap()) };
        let key = Identity::from_secrets(
            hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"),
            hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
        )
        .unwrap()
        .public_key();
        assert_eq!(key.identity, hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
        assert_eq!(key.static_key, hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
    }

    /// wire.md W3.3
    #[test]
    fn a_certificate_binds_one_static_key() {
        let (a, b) = (identity(1), identity(9));
        let key = a.public_key();
        assert_eq!(verify_certificate(a.certificate(), &key.static_key, 0), Some(key.identity));
        assert_eq!(verify_certificate(a.certificate(), &b.public_key().static_key, 0), None);
        for i in 0..CERTIFICATE_LEN {
            let mut bad = *a.certificate();
            bad[i] ^= 1;
            assert_eq!(verify_certificate(&bad, &key.static_key, 0), None, "byte {i}");
            assert_eq!(verify_certificate(&a.certificate()[..i], &key.static_key, 0), None, "cut at {i}");
        }
    }
}
