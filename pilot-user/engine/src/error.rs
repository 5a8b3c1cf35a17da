//! Errors by who caused them: a peer that broke the protocol, the end of a connection, a call that may not be.

use crate::version::Versions;

/// Codes of CLOSE and REFUSE (`docs/wire.md` §8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Code {
    /// Nothing is wrong.
    #[error("no error")]
    NoError = 0,
    /// This end cannot go on.
    #[error("internal error")]
    Internal = 1,
    /// A frame could not be decoded.
    #[error("malformed frame")]
    FrameEncoding = 2,
    /// A frame type that this version does not have.
    #[error("unknown frame type")]
    UnknownFrame = 3,
    /// More was sent than there was credit for.
    #[error("credit exceeded")]
    CreditExceeded = 4,
    /// A frame for a connection that cannot have it.
    #[error("frame does not fit the connection's state")]
    ConnectionState = 5,
    /// A frame for a stream that cannot have it.
    #[error("frame does not fit the stream's state")]
    StreamState = 6,
    /// An acknowledgement of a packet that was never sent.
    #[error("acknowledgement of a packet that was not sent")]
    AckOfUnsent = 7,
    /// A bound on connections, streams or gaps.
    #[error("limit exceeded")]
    LimitExceeded = 8,
    /// The key has sealed all it may.
    #[error("key used up")]
    KeyExhausted = 9,
    /// The node stops.
    #[error("node is shutting down")]
    ShuttingDown = 10,
}

/// Codes of REFUSE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RefuseCode {
    /// Nobody listens on the port.
    NoListener = 1,
    /// This peer may not.
    NotAllowed = 2,
    /// Too many connections.
    TooMany = 3,
}

/// The peer broke the protocol in an authenticated packet; the tunnel is closed with the code (W5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why} ({code})")]
pub struct ProtocolViolation {
    /// The code the peer is told.
    pub code: Code,
    /// What it did.
    pub why: &'static str,
}

impl ProtocolViolation {
    pub(crate) const fn new(code: Code, why: &'static str) -> Self {
        Self { code, why }
    }
}

/// Why a connection is over. Every later call on it returns this.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// The peer's application closed it.
    #[error("closed by the peer with code {code}: {reason}")]
    ByPeer {
        /// The application's code; 0 is a normal end.
        code: u64,
        /// The application's words.
        reason: String,
    },
    /// The peer did not accept it.
    #[error("refused by the peer with code {code}: {reason}")]
    Refused {
        /// See [`RefuseCode`].
        code: u64,
        /// The peer's words.
        reason: String,
    },
    /// The peer closed the tunnel.
    #[error("the peer closed the tunnel with code {code}: {reason}")]
    TunnelClosed {
        /// See [`Code`].
        code: u64,
        /// The peer's words.
        reason: String,
    },
    /// Nothing was heard from the peer for too long.
    #[error("no answer from the peer")]
    TimedOut,
    /// The peer answered that it does not speak our version of the protocol, and nothing else came.
    #[error(
        "the peer speaks version {spoken} of the wire protocol and this node version {own}: upgrade one of them",
        own = Versions::SPOKEN
    )]
    OtherVersion {
        /// What the peer speaks.
        spoken: Versions,
    },
    /// The peer's process is another one now, or has forgotten the tunnel. How much of what was written its application had read
    /// is told by [`crate::Event::PeerRestarted`], and by every later call.
    #[error("the peer restarted")]
    PeerRestarted,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    ProtocolViolation(ProtocolViolation),
    /// This node closed the tunnel.
    #[error("this node closed the tunnel: {0}")]
    ClosedHere(Code),
    /// The peer's address is not known.
    #[error("no endpoint is known for the peer: it must connect first, or be given one in the configuration")]
    NoEndpoint,
}

/// Why an operation on a connection did nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OperationError {
    /// The connection is over.
    #[error(transparent)]
    Closed(CloseReason),
    /// The peer's process is another one now, or has forgotten the tunnel; the connection is over ([`CloseReason::PeerRestarted`]).
    #[error("the peer restarted; before, its application had read {consumed_offset}")]
    PeerRestarted {
        /// What the peer's application had reported as read: bytes of the stream that the call is for, or else messages of the
        /// connection. It may have read more. What lies behind may be lost.
        consumed_offset: u64,
    },
    /// The handle names no connection: it was closed here, or never was.
    #[error("no such connection")]
    NoConnection,
    /// The stream is not there: finished and read to its end, or never opened.
    #[error("no such stream")]
    NoStream,
    /// No room now. An event says when there is.
    #[error("no room in the send buffer")]
    Blocked,
    /// A message or an unreliable datagram above the largest size.
    #[error("{what} of {given} bytes: at most {allowed} are allowed")]
    TooLong {
        /// A message or a datagram.
        what: &'static str,
        /// Bytes given.
        given: usize,
        /// Bytes allowed.
        allowed: usize,
    },
    /// The stream was finished or reset here before, or the peer only reads from it or only writes to it.
    #[error("the stream is finished: nothing can be written behind its end")]
    Finished,
    /// The peer gave up writing to the stream; what it had not delivered is lost.
    #[error("the peer reset the stream with code {code}")]
    StreamReset {
        /// The application's code.
        code: u64,
    },
    /// The peer reads no more from the stream.
    #[error("the peer stopped reading the stream with code {code}")]
    StreamStopped {
        /// The application's code.
        code: u64,
    },
    /// No more streams or connections may be opened now.
    #[error("too many open {what}: at most {allowed}")]
    TooMany {
        /// Streams or connections.
        what: &'static str,
        /// How many are allowed.
        allowed: u64,
    },
    /// The configuration does not allow introductions.
    #[error("introductions are off on this node")]
    IntroductionsOff,
    /// The endpoint does not know the peer.
    #[error("unknown peer")]
    UnknownPeer,
}
