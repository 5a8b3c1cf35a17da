//! What programs use: a [`Node`], its [`Connection`]s, and their messages, datagrams, streams and calls.
//!
//! A node is either of this process ([`Node::builder`]), with workers of its own, or that of the host, whose daemon is reached
//! through its socket ([`Node::attach`]). Both are used in the same way, because both are the same protocol
//! (`docs/local-protocol.md`): a switchboard hands what an application says to the worker that has the tunnel, and the worker's
//! `Host` does it on the endpoint. In one process those are values in queues; between two, frames on a socket.
//!
//! ```text
//!   Connection, SendStream …            credit: what may be sent before the node has taken what was
//!        │ ToNode                   ▲ ToApplication
//!        ▼                          │ dispatch: by id to the queue of a connection or stream
//!   switchboard: by id to a worker  outbox: filled by all workers
//!        │ inbox, doorbell          ▲
//!        ▼                          │ credit: what the application would take
//!   Host, on the worker's thread: endpoint
//! ```
//!
//! Nothing here is buffered without a bound: who sends waits for credit, who does not read is sent no more, and then the peer's
//! credit runs out too. Futures can be dropped at any time: what their documentation calls *cancel-safe* has then done nothing, or
//! all of it.

pub(crate) mod access;
pub mod audit;
mod call;
pub(crate) mod codec;
mod connection;
mod context;
mod dispatch;
pub(crate) mod documents;
pub(crate) mod frames;
pub mod host;
pub mod limits;
mod node;
pub(crate) mod outbox;
pub(crate) mod protocol;
pub(crate) mod reload;
pub(crate) mod running;
mod session;
mod sessions;
mod stream;
pub(crate) mod switchboard;
mod topic;

pub use call::IncomingCall;
pub use connection::Connection;
pub(crate) use context::Step;
pub use context::{Context, Following, Interest, Update};
pub use node::{Builder, Events, Listener, Node, StartError};
pub use protocol::{Code, Error};
pub use stream::{RecvStream, SendStream};
pub use topic::{Published, Publisher, Subscription, TOPICS_PORT};
