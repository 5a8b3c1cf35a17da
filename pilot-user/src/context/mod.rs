//! Shared context: a versioned document that its owner holds and any number of peers follow. A follower is given the
//! document once, and from then on only what changes; after any disconnect it goes on where it was. The protocol, with the
//! requirements that the code cites, is `docs/context.md`.
//!
//! As in the engine, nothing here does I/O, reads a clock or draws randomness: messages come in and go out as bytes, and
//! incarnations are arguments. [`Owner`] is the owner's end of all its connections, [`Client`] the other end of one; the
//! services that run them over an endpoint are `service::contexts` and the `pilot ctx` commands.
//!
//! An owner announces a version when it can no longer be lost: at once for a volatile context, after the disk has it for a
//! durable one. What is not announced is not sent.

pub mod change;
pub mod client;
pub mod document;
mod history;
pub mod limits;
pub mod message;
pub mod owner;
mod pointer;
mod render;
pub mod tokens;

pub use change::{Change, ChangeError};
pub use client::{Client, Follow, FollowId, Notice, Replica, RequestId};
pub use document::{Document, Kind};
pub use history::HistoryLimits;
pub use message::{NoStamp, Refusal, RefusalCode, Stamp, Violation};
pub use owner::{Commit, Held, LinkId, Owner, Rights};
