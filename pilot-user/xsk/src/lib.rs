//! AF_XDP sockets: frames between a NIC queue and userspace memory, without the kernel's network stack.
//!
//! An [`Xsk`] is one socket with its own umem (the packet memory) and its own four rings, bound to one queue of one
//! interface. It belongs to one thread at a time: it is `Send` and every operation takes `&mut self`.
//!
//! ```text
//!             fill ──► kernel writes a received frame ──► rx          per pass:
//!   umem ◄──┐                                              │            refill → recv → (tx_chunk → send)* → flush
//!   chunks  └────────────── frame lent, chunk to fill ◄────┘
//!             tx ────► kernel sends the frame ──────────► completion ──► home
//! ```
//!
//! # Who owns a chunk
//!
//! Packet memory is cut into chunks. Every chunk is in one place: *home* (free), *in hand* (a `Chunk` exists), *with the
//! kernel to receive* (fill ring until it is read from RX) or *with the kernel to send* (TX ring until it is read from
//! COMPLETION). Bytes can be reached only through a `Chunk`, which borrows the umem exclusively: so there is at most
//! one at a time, it cannot outlive the memory, and dropping it brings the chunk home. Giving it to the kernel consumes
//! it. An address that the kernel gives back becomes a `Chunk` again only if that very chunk was given to it for that
//! purpose; anything else is counted ([`Counters::bad_addresses`]) and touched by nobody.
//!
//! # What is trusted
//!
//! The kernel is trusted to keep off chunks that it was not given. Indexes, addresses, lengths and flags that it writes
//! are checked before they are used.
//!
//! This is the one userspace crate of Pilot with `unsafe`, so that there is one place to read.

mod abi;
mod bits;
mod index;
mod mmap;
pub mod nic;
mod open;
mod port;
mod ring;
mod socket;
mod stats;
mod sync;
mod sys;
pub mod testing;
mod umem;

pub use bits::SharedBits;
pub use mmap::Placement;
pub use open::{Mode, OpenError, Options};
pub use socket::{Flushed, KickError, RECV_BATCH, TxChunk, Xsk};
pub use stats::{Chunks, Counters, KernelStatistics};
