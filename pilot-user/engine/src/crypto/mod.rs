//! Keys and what is done with them: handshake, KEM, mac1, cookies, sealing and opening, replay window.

pub(crate) mod aead;
pub(crate) mod backend;
pub(crate) mod cookie;
pub(crate) mod handshake;
pub(crate) mod introduction;
pub(crate) mod kem;
pub(crate) mod keys;
pub(crate) mod mac;
mod noise;
pub(crate) mod parameters;
pub(crate) mod primitives;
pub(crate) mod replay;
pub(crate) mod reset;
pub(crate) mod rng;
#[cfg(test)]
mod vectors;
