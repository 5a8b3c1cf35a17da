//! Keys and what is done with them: handshake, mac1, sealing and opening, replay window.

pub(crate) mod aead;
pub(crate) mod backend;
pub(crate) mod handshake;
pub(crate) mod keys;
pub(crate) mod mac;
pub(crate) mod parameters;
mod primitives;
pub(crate) mod replay;
pub(crate) mod reset;
pub(crate) mod rng;
