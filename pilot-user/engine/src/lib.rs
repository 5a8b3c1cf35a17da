//! Pilot's transport: tunnels, connections, streams and messages, without I/O.
#![forbid(unsafe_code)]

pub mod address;
pub mod identity;
pub mod time;
