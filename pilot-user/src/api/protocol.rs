//! What an application and its node say to each other (`docs/local-protocol.md`): the same whether they share a process or a
//! socket. Between two processes [`super::codec`] makes frames of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::documents::Asked;
use super::limits::FRAME_OVERHEAD_BYTES;
use crate::context::{Kind, Refusal, Stamp};
use pilot_engine::{CloseReason, OperationError};

/// The version of the protocol.
pub(crate) const VERSION: u32 = 1;

/// Names a connection, a stream or a following in a session (L1.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Id(pub(crate) u32);

impl Id {
    /// L1.4: the bit that streams have which the application opened.
    const BY_APPLICATION: u32 = 0x100;

    /// The next id of a worker's connections and of what belongs to them, after `count` others.
    pub(crate) const fn new(count: u32, worker: u8, by_application: bool) -> Self {
        Self(count << 9 | if by_application { Self::BY_APPLICATION } else { 0 } | worker as u32)
    }

    /// Which worker has what it names.
    pub(crate) const fn worker(self) -> u8 {
        self.0 as u8
    }

    pub(crate) const fn is_by_application(self) -> bool {
        self.0 & Self::BY_APPLICATION != 0
    }
}

/// From an application to its node.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ToNode {
    Request { request: u32, what: Request },
    Message(Id, Vec<u8>),
    Datagram(Id, Vec<u8>),
    Data(Id, Vec<u8>),
    Finish(Id),
    Credit(Id, u32),
    Open { stream: Id, connection: Id, unidirectional: bool },
}

/// From a node to an application.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ToApplication {
    Result { request: u32, value: Value },
    Error { request: u32, error: Error },
    Event(Id, Event),
    Message(Id, Vec<u8>),
    Datagram(Id, Vec<u8>),
    Data(Id, Vec<u8>),
    Finish(Id),
    Credit(Id, u32),
    Part(Id, Vec<u8>),
}

/// Id 0: the session as a whole.
pub(crate) const SESSION: Id = Id(0);

/// What a frame costs its flow (L5.1).
pub(crate) fn cost(body: &[u8]) -> u32 {
    // A body is at most a message or a piece of data.
    body.len() as u32 + FRAME_OVERHEAD_BYTES
}

/// A request (L3).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Hello {
        version: u32,
        name: Option<String>,
    },
    Connect {
        peer: String,
        port: u16,
        timeout_ms: Option<u64>,
    },
    Listen {
        port: u16,
    },
    Unlisten {
        port: u16,
    },
    Accept {
        connection: Id,
    },
    Refuse {
        connection: Id,
        #[serde(default = "not_allowed")]
        code: u64,
        #[serde(default)]
        reason: String,
    },
    Close {
        connection: Id,
        #[serde(default)]
        code: u64,
        #[serde(default)]
        reason: String,
    },
    Reset {
        stream: Id,
        code: u64,
    },
    Stop {
        stream: Id,
        code: u64,
    },
    Peers,
    Connections,
    Stats {
        connection: Option<Id>,
    },
    Subscribe,
    Introduce {
        endpoint: SocketAddr,
        /// As `pilot keygen` prints it.
        key: Option<String>,
    },
    ContextCreate(NewContext),
    ContextDelete {
        name: String,
    },
    ContextChange {
        peer: Option<String>,
        name: String,
        change: Asked,
        if_stamp: Option<Stamp>,
    },
    ContextFollow {
        peer: Option<String>,
        name: String,
        filter: Option<String>,
        #[serde(default)]
        latest: bool,
    },
    ContextUnfollow {
        following: Id,
    },
}

/// A context that an application has its node hold.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct NewContext {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) document: Value,
    #[serde(default)]
    pub(crate) read: Vec<String>,
    #[serde(default)]
    pub(crate) write: Vec<String>,
    #[serde(default)]
    pub(crate) durable: bool,
}

fn not_allowed() -> u64 {
    pilot_engine::RefuseCode::NotAllowed as u64
}

impl Request {
    /// All that a node does.
    pub(crate) const OPS: [&str; 19] = [
        "hello",
        "connect",
        "listen",
        "unlisten",
        "accept",
        "refuse",
        "close",
        "reset",
        "stop",
        "peers",
        "connections",
        "stats",
        "subscribe",
        "introduce",
        "context_create",
        "context_delete",
        "context_change",
        "context_follow",
        "context_unfollow",
    ];
}

/// What happened (L4).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    Incoming { peer: String, address: String, port: u16 },
    Stream { stream: Id, unidirectional: bool },
    Closed(Error),
    Reset { peer_code: u64 },
    Stopped { peer_code: u64 },
    Consumed(Consumed),
    Restarted { consumed: u64 },
    TunnelUp { peer: String },
    TunnelDown { peer: String, reason: String },
    ShuttingDown { drain_ms: u64 },
    Whole { stamp: Stamp, kind: Kind, bytes: usize },
    Changed { stamp: Stamp, bytes: usize },
    Checked { stamp: Stamp },
    Diverged { stamp: Stamp },
    Ended(Error),
}

/// How much of what was sent was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Consumed {
    Messages(u64),
    Bytes(u64),
}

/// Why something was not done, or is over. `code` is what programs look at, the words are for people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{words}")]
pub struct Error {
    /// What it is.
    pub code: Code,
    /// In words: what was given, what is allowed.
    pub words: String,
    /// The code that the peer's application gave, where it was the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_code: Option<u64>,
}

/// The kinds of errors (L6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// A frame, JSON or a member of it cannot be read.
    Malformed,
    /// No common version of the protocol.
    Version,
    /// No such request.
    UnknownOp,
    /// The application's uid may not.
    NotAllowed,
    /// Too much at once.
    Busy,
    /// A bound on applications, connections or streams.
    TooMany,
    /// A message or datagram.
    TooLong,
    /// Sent without credit.
    Credit,
    /// No such peer in the configuration.
    UnknownPeer,
    /// Nobody knows where the peer is.
    NoEndpoint,
    /// No such connection, stream or listener.
    NoSuch,
    /// Another application listens there.
    PortInUse,
    /// The peer did not accept.
    Refused,
    /// The peer's application closed, reset or stopped it.
    Closed,
    /// This node, or this application, closed it.
    ClosedHere,
    /// No answer.
    TimedOut,
    /// The peer's process is another one.
    PeerRestarted,
    /// The peer broke the protocol.
    Protocol,
    /// The application does not read.
    Slow,
    /// A context's owner refused.
    Context,
    /// The node stops, or is gone.
    ShuttingDown,
    /// A fault of the node.
    #[serde(other)]
    Internal,
}

impl Error {
    pub(crate) fn new(code: Code, words: impl Into<String>) -> Self {
        Self { code, words: words.into(), peer_code: None }
    }

    pub(crate) fn malformed(words: impl Into<String>) -> Self {
        Self::new(Code::Malformed, words)
    }

    pub(crate) fn no_such(what: &str, id: Id) -> Self {
        Self::new(Code::NoSuch, format!("there is no {what} {}", id.0))
    }

    pub(crate) fn gone() -> Self {
        Self::new(Code::ShuttingDown, "the node is gone: it was stopped, or its process ended")
    }

    /// L2.5.
    pub(crate) fn stops() -> Self {
        Self::new(Code::ShuttingDown, "the node was told to stop: nothing is begun any more")
    }

    fn by_peer(code: Code, peer_code: u64, words: String) -> Self {
        Self { code, words, peer_code: Some(peer_code) }
    }
}

impl From<&CloseReason> for Error {
    fn from(reason: &CloseReason) -> Self {
        let words = reason.to_string();
        match reason {
            CloseReason::ByPeer { code, .. } => Self::by_peer(Code::Closed, *code, words),
            CloseReason::Refused { code, .. } => Self::by_peer(Code::Refused, *code, words),
            CloseReason::TunnelClosed { .. } => Self::new(Code::Closed, words),
            CloseReason::TimedOut => Self::new(Code::TimedOut, words),
            CloseReason::PeerRestarted => Self::new(Code::PeerRestarted, words),
            CloseReason::OtherVersion { .. } | CloseReason::ProtocolViolation(_) => Self::new(Code::Protocol, words),
            CloseReason::ClosedHere(_) => Self::new(Code::ClosedHere, words),
            CloseReason::NoEndpoint => Self::new(Code::NoEndpoint, words),
            CloseReason::NotRead => Self::new(Code::Slow, words),
        }
    }
}

impl From<&OperationError> for Error {
    fn from(error: &OperationError) -> Self {
        let words = error.to_string();
        match error {
            OperationError::Closed(reason) => reason.into(),
            OperationError::PeerRestarted { .. } => Self::new(Code::PeerRestarted, words),
            OperationError::NoConnection | OperationError::NoStream | OperationError::Finished => {
                Self::new(Code::NoSuch, words)
            }
            OperationError::Blocked => Self::new(Code::Busy, words),
            OperationError::TooLong { .. } => Self::new(Code::TooLong, words),
            OperationError::StreamReset { code } | OperationError::StreamStopped { code } => {
                Self::by_peer(Code::Closed, *code, words)
            }
            OperationError::TooMany { .. } => Self::new(Code::TooMany, words),
            OperationError::UnknownPeer => Self::new(Code::UnknownPeer, words),
            OperationError::IntroductionsOff => Self::new(Code::NotAllowed, words),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::by_peer(Code::Context, refusal.code as u64, refusal.words)
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error.code {
            Code::TimedOut => ErrorKind::TimedOut,
            Code::Refused => ErrorKind::ConnectionRefused,
            Code::NotAllowed => ErrorKind::PermissionDenied,
            Code::Closed | Code::PeerRestarted => ErrorKind::ConnectionReset,
            Code::ClosedHere | Code::ShuttingDown => ErrorKind::ConnectionAborted,
            _ => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
