//! Pilot's transport: tunnels, connections, streams and messages, without I/O.
#![forbid(unsafe_code)]

pub mod address;
mod codec;
mod crypto;
pub mod identity;
pub mod limits;
pub mod time;
