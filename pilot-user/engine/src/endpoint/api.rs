//! Operations of the application on an [`Endpoint`].

use super::Endpoint;
use crate::config::BulkUse;
use crate::connection::{Connection, State};
use crate::crypto::aead::Aead;
use crate::error::{CloseReason, Code, OperationError};
use crate::event::{ConnectionHandle, PeerId};
use crate::limits::MAX_MESSAGE_BYTES;
use crate::stats::{Stats, TunnelStats};
use crate::stream::StreamId;
use crate::stream::recv::Read;
use crate::time::Instant;

impl Endpoint {
    /// Opens a connection to a peer's port. It can be written to at once; what is written leaves when the peer has accepted,
    /// which [`crate::Event::Connected`] tells. Without a tunnel, a handshake comes first.
    pub fn connect(&mut self, now: Instant, peer: PeerId, port: u16) -> Result<ConnectionHandle, OperationError> {
        if !self.owns(peer) {
            return Err(OperationError::UnknownPeer);
        }
        self.with(now, peer, |tunnel, ctx| {
            let handle = tunnel.table.open(port)?;
            if !tunnel.want(ctx) {
                tunnel.table.close(handle.key, 0, "");
                return Err(OperationError::Closed(CloseReason::NoEndpoint));
            }
            Ok(handle)
        })
    }

    /// Brings the tunnel to a peer up without opening a connection.
    pub fn open_tunnel(&mut self, now: Instant, peer: PeerId) {
        if self.owns(peer) {
            self.with(now, peer, |tunnel, ctx| tunnel.want(ctx));
        }
    }

    /// Which of a node's workers has the tunnel to a peer; without this, each endpoint its own. To the peer all workers are one
    /// node, with one tunnel: two that both answered it would end each other's, and one that did not know the tunnel could
    /// not continue it (W3.14). Here, nothing is begun with a peer that another worker has.
    pub fn set_owner(&mut self, peer: PeerId, worker: u8) {
        if let Some(owner) = self.owners.get_mut(peer.0 as usize) {
            *owner = worker;
        }
    }

    /// Whether tunnels to the peer are this worker's.
    pub fn owns(&self, peer: PeerId) -> bool {
        self.owners.get(peer.0 as usize) == Some(&self.config.worker)
    }

    /// What leaves and arrives by the first port goes another way, or its device works again: what could not arrive is sent
    /// again soon, however long the pauses had become. `is_zero_copy`: nothing beside it is faster, so that
    /// [`BulkUse::Auto`] does without the bulk path.
    pub fn on_link_changed(&mut self, now: Instant, is_zero_copy: bool) {
        self.config.bulk = match self.bulk {
            BulkUse::Auto if is_zero_copy => BulkUse::Never,
            wanted => wanted,
        };
        for id in 0..self.tunnels.len() as u32 {
            self.with(now, PeerId(id), |tunnel, ctx| tunnel.on_link_changed(ctx.config.bulk));
        }
    }

    /// Accepts an offered connection.
    pub fn accept(&mut self, now: Instant, connection: ConnectionHandle) -> Result<(), OperationError> {
        self.with(now, connection.peer, |tunnel, _| tunnel.table.accept(connection.key))
    }

    /// Refuses an offered connection and gives the handle back. Codes: [`crate::RefuseCode`].
    pub fn refuse(&mut self, now: Instant, connection: ConnectionHandle, code: u64, reason: &str) {
        self.with(now, connection.peer, |tunnel, _| tunnel.table.refuse(connection.key, code, reason));
    }

    /// Ends a connection and gives the handle back, which names nothing from then on. What the peer's engine does not have yet
    /// is not sent any more: ask [`Endpoint::is_delivered`] before, or let the peer's application answer.
    pub fn close(&mut self, now: Instant, connection: ConnectionHandle, code: u64, reason: &str) {
        self.with(now, connection.peer, |tunnel, _| tunnel.table.close(connection.key, code, reason));
    }

    /// Ends the tunnel to a peer and tells it.
    pub fn close_tunnel(&mut self, now: Instant, peer: PeerId, code: Code) {
        if (peer.0 as usize) < self.tunnels.len() {
            self.with(now, peer, |tunnel, ctx| tunnel.close(ctx, code, CloseReason::ClosedHere(code)));
        }
    }

    /// Draws a new id for this end's session with a peer and tells it; the old one is accepted until the peer has taken the
    /// new one, and a little longer (W4.8). `false`: no tunnel is up, or the peer has not yet taken the ids before.
    pub fn replace_session_id(&mut self, now: Instant, peer: PeerId) -> bool {
        let is_known = (peer.0 as usize) < self.tunnels.len();
        is_known && self.with(now, peer, |tunnel, ctx| tunnel.replace_session_id(ctx))
    }

    /// Queues a message, at most [`MAX_MESSAGE_BYTES`].
    pub fn send_message(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        message: &[u8],
    ) -> Result<(), OperationError> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(OperationError::TooLong { given: message.len(), allowed: MAX_MESSAGE_BYTES });
        }
        self.on(now, connection, |it| it.send_message(message))
    }

    /// Appends the next message to `out` and returns its length; `None`: no message now.
    pub fn receive_message(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, OperationError> {
        self.with(now, connection.peer, |tunnel, _| {
            let it = tunnel.table.get_mut(connection.key).ok_or(OperationError::NoConnection)?;
            let (length, credit) = it.receive_message(out)?;
            tunnel.table.queue_credit(connection.key, credit, None);
            Ok(length)
        })
    }

    /// Opens a bidirectional stream.
    pub fn open_stream(&mut self, now: Instant, connection: ConnectionHandle) -> Result<StreamId, OperationError> {
        self.on(now, connection, Connection::open_stream)
    }

    /// Writes to a stream; returns how much was taken. [`OperationError::Blocked`]: nothing was.
    pub fn write(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<usize, OperationError> {
        self.on(now, connection, |it| it.write(stream, bytes))
    }

    /// Says that nothing more will be written to a stream.
    pub fn finish(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
    ) -> Result<(), OperationError> {
        self.on(now, connection, |it| it.finish(stream))
    }

    /// Reads from a stream.
    pub fn read(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
        out: &mut [u8],
    ) -> Result<Read, OperationError> {
        self.with(now, connection.peer, |tunnel, _| {
            let it = tunnel.table.get_mut(connection.key).ok_or(OperationError::NoConnection)?;
            let (read, stream_credit, connection_credit) = it.read(stream, out)?;
            tunnel.table.queue_credit(connection.key, connection_credit, stream_credit.then_some(stream));
            Ok(read)
        })
    }

    /// Whether everything sent on a connection has arrived at the peer's engine. Not that its application read it.
    pub fn is_delivered(&self, connection: ConnectionHandle) -> bool {
        let tunnel = self.tunnels.get(connection.peer.0 as usize);
        tunnel.and_then(|tunnel| tunnel.table.get(connection.key)).is_none_or(Connection::is_delivered)
    }

    /// The port a connection is for; `None` when the handle names none.
    pub fn port(&self, connection: ConnectionHandle) -> Option<u16> {
        let tunnel = self.tunnels.get(connection.peer.0 as usize)?;
        tunnel.table.get(connection.key).map(|it| it.port)
    }

    /// Whether a connection was accepted and is not over.
    pub fn is_open(&self, connection: ConnectionHandle) -> bool {
        let tunnel = self.tunnels.get(connection.peer.0 as usize);
        tunnel.and_then(|tunnel| tunnel.table.get(connection.key)).is_some_and(|it| it.state == State::Open)
    }

    /// Whether a tunnel to the peer is up.
    pub fn is_up(&self, peer: PeerId) -> bool {
        self.tunnels.get(peer.0 as usize).is_some_and(|tunnel| tunnel.is_up())
    }

    /// Totals.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The tunnel to a peer as it is now; `None` when there is none.
    pub fn tunnel_stats(&self, peer: PeerId) -> Option<TunnelStats> {
        self.tunnels.get(peer.0 as usize)?.stats()
    }

    /// The AEAD of the tunnel to a peer.
    pub fn aead(&self, peer: PeerId) -> Option<Aead> {
        self.tunnels.get(peer.0 as usize)?.aead()
    }

    /// Runs an operation on a connection, which may then have something to send.
    fn on<R>(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        run: impl FnOnce(&mut Connection) -> Result<R, OperationError>,
    ) -> Result<R, OperationError> {
        self.with(now, connection.peer, |tunnel, _| {
            let it = tunnel.table.get_mut(connection.key).ok_or(OperationError::NoConnection)?;
            let result = run(it)?;
            tunnel.table.queue(connection.key);
            Ok(result)
        })
    }
}
