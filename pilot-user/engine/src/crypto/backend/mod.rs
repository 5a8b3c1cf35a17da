//! The primitives, from one of two libraries. Each backend has the same functions; nothing else in the engine names a
//! cryptographic library but BLAKE2s and the keystream of `rng`, which are pure Rust anyway.

#[cfg(feature = "aws-lc")]
pub(crate) mod aws_lc;
#[cfg(feature = "rustcrypto")]
pub(crate) mod rustcrypto;

#[cfg(feature = "aws-lc")]
pub(crate) use aws_lc::{
    AeadKey, ed25519_public, ed25519_sign, ed25519_verify, ml_kem_512_decapsulate, x25519, x25519_public,
};
#[cfg(all(feature = "rustcrypto", not(feature = "aws-lc")))]
pub(crate) use rustcrypto::{
    AeadKey, ed25519_public, ed25519_sign, ed25519_verify, ml_kem_512_decapsulate, x25519, x25519_public,
};

#[cfg(not(any(feature = "aws-lc", feature = "rustcrypto")))]
compile_error!("pilot-engine needs one of the features `aws-lc` (default) and `rustcrypto`");

#[cfg(test)]
mod tests;
