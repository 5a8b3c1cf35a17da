//! What the engine tells the application. Readable and writable are told once, and again only after a call has said
//! that there is nothing more, or no room. And what it asks of the link.

use std::net::SocketAddr;

use crate::address::OverlayAddress;
use crate::connection::Key;
use crate::error::CloseReason;
use crate::identity::PublicKey;
use crate::stream::StreamId;

/// A peer and a lane to it, as the endpoint numbers them: the order in which they were added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PeerId(pub(crate) u32);

/// Names a connection from its opening until [`crate::Endpoint::close`] gives it back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ConnectionHandle {
    pub(crate) peer: PeerId,
    pub(crate) key: Key,
}

impl ConnectionHandle {
    /// Whom the connection is with.
    pub const fn peer(self) -> PeerId {
        self.peer
    }
}

/// Something to be done outside of the engine, before anything is sent that was written before it was told (`docs/wire.md`
/// W2.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Datagrams that name this session id are ours from now on.
    SessionBegins(u32),
    /// They are not any more.
    SessionEnds(u32),
}

/// Something happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A handshake with the peer is done and confirmed.
    TunnelUp {
        /// Whom with.
        peer: PeerId,
        /// The tunnel that was there before continues under new keys.
        resumed: bool,
    },
    /// The tunnel is over; each of its connections has its own [`Event::Closed`].
    TunnelDown {
        /// Whom it was with.
        peer: PeerId,
        /// Why.
        reason: CloseReason,
    },
    /// What is sent to the peer takes another path from now on. A tunnel begins on its first path.
    Sending {
        /// To whom.
        peer: PeerId,
        /// Over the bulk path, or else over the first.
        bulk: bool,
        /// Why, in words for an operator.
        why: &'static str,
    },
    /// The peer opens a connection: [`crate::Endpoint::accept`] or [`crate::Endpoint::refuse`] it.
    Offered {
        /// The connection.
        connection: ConnectionHandle,
        /// The port it is for.
        port: u16,
    },
    /// The peer accepted a connection opened here.
    Connected {
        /// The connection.
        connection: ConnectionHandle,
    },
    /// Messages can be received.
    MessagesReadable {
        /// The connection.
        connection: ConnectionHandle,
    },
    /// There is room for messages after [`crate::OperationError::Blocked`].
    MessagesWritable {
        /// The connection.
        connection: ConnectionHandle,
    },
    /// The peer opened a stream.
    StreamOpened {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream.
        stream: StreamId,
    },
    /// A stream has bytes, or its end, to read.
    StreamReadable {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream.
        stream: StreamId,
    },
    /// There is room in a stream after a write took less than everything.
    StreamWritable {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream.
        stream: StreamId,
    },
    /// The peer gave up writing to a stream. Reading it gives [`crate::OperationError::StreamReset`] once, and then it is gone.
    StreamReset {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream.
        stream: StreamId,
        /// The application's code.
        code: u64,
    },
    /// The peer reads no more from a stream. What was written and not delivered is given up.
    StreamStopped {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream.
        stream: StreamId,
        /// The application's code.
        code: u64,
    },
    /// The peer's application has read more of what was written to a stream.
    StreamConsumed {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream.
        stream: StreamId,
    },
    /// The peer's application has taken more of the messages that were sent.
    MessagesConsumed {
        /// The connection.
        connection: ConnectionHandle,
    },
    /// Unreliable datagrams can be received.
    DatagramsReadable {
        /// The connection.
        connection: ConnectionHandle,
    },
    /// The peer's process is another one now, or has forgotten the tunnel. Told for each stream that was written to here, then
    /// for messages, then comes [`Event::Closed`].
    PeerRestarted {
        /// The connection.
        connection: ConnectionHandle,
        /// The stream; `None`: messages.
        stream: Option<StreamId>,
        /// As in [`crate::OperationError::PeerRestarted`].
        consumed_offset: u64,
    },
    /// Somebody has proven to have these keys (W3.30), which says nothing about whether to trust it. To talk to it, let it in by
    /// [`crate::Endpoint::add_peer`]; the tunnel then begins as any other.
    Introduced {
        /// Who it is.
        key: PublicKey,
        /// The overlay address that it says it has.
        address: OverlayAddress,
        /// Where it is.
        remote: SocketAddr,
        /// Whether it was asked for by [`crate::Endpoint::introduce`], and not by the other end.
        begun_here: bool,
        /// Whether the end that was asked has the other among its peers. Otherwise it waits until it is let in there.
        accepted: bool,
    },
    /// Nobody answered there to [`crate::Endpoint::introduce`], or not who was wanted.
    NotIntroduced {
        /// Where.
        remote: SocketAddr,
    },
    /// A connection is over. What had arrived can still be read.
    Closed {
        /// The connection.
        connection: ConnectionHandle,
        /// Why.
        reason: CloseReason,
    },
}
