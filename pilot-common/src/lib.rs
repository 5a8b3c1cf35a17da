//! What the XDP program and userspace share, so that both decide the same about the same bytes.
//!
//! A frame is read through a [`cursor::Cursor`], parsed by [`datagram::parse`] and judged by [`steer::steer`]; the
//! [`stats::Verdict`] names a reason, and each reason has a counter. [`maps`] is what the two sides of the kernel
//! border exchange, [`wire`] the header that begins every datagram.
//!
//! Nothing here allocates, panics, or does I/O.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod address;
pub mod checksum;
pub mod cursor;
pub mod datagram;
pub mod eth;
pub mod ipv4;
pub mod ipv6;
pub mod limit;
pub mod maps;
pub mod stats;
pub mod steer;
pub mod udp;
pub mod wire;
