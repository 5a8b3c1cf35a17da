//! Pilot's transport: tunnels, connections, streams and messages, without I/O.
//!
//! [`Endpoint`] is the core and has the contract. Datagrams, times and one seed come in as arguments; datagrams,
//! events and deadlines come out as values. The same endpoint runs over AF_XDP, over UDP and in simulation.
#![forbid(unsafe_code)]

pub mod address;
#[doc(hidden)]
pub mod benching;
mod byte_queue;
pub mod codec;
mod config;
mod connection;
mod crypto;
mod datagram;
mod endpoint;
mod error;
mod event;
mod flow;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod limits;
mod message;
mod packet;
mod range_set;
mod recovery;
mod stats;
mod stream;
pub mod time;
mod tunnel;
mod version;

pub use config::{BulkUse, Config, PeerConfig};
pub use crypto::aead::{Aead, Aeads};
pub use endpoint::{Endpoint, MessageWriter, Received, Transmit};
pub use error::{CloseReason, Code, OperationError, ProtocolViolation, RefuseCode};
pub use event::{ConnectionHandle, Effect, Event, PeerId};
pub use recovery::congestion::ControllerKind;
pub use recovery::ecn::Ecn;
pub use stats::{ConnectionStats, DropReason, RttCounts, Stats, TunnelStats};
pub use stream::StreamId;
pub use stream::recv::Read;
pub use time::Instant;
pub use version::Versions;
