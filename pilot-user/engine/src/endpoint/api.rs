//! Operations of the application on an [`Endpoint`].

use std::net::SocketAddr;

use super::Endpoint;
use crate::codec::MAX_VARINT;
use crate::config::{BulkUse, PeerConfig};
use crate::connection::{Connection, Lane, State};
use crate::crypto::aead::Aead;
use crate::error::{CloseReason, Code, OperationError};
use crate::event::{ConnectionHandle, PeerId};
use crate::limits::{DATAGRAM_OVERHEAD_BYTES, MAX_LANES, MAX_MESSAGE_BYTES};
use crate::stats::{ConnectionStats, Stats, TunnelStats};
use crate::stream::recv::Read;
use crate::stream::{Direction, StreamId};
use crate::time::Instant;
use crate::tunnel::Tunnel;

/// The messages of one connection, see [`Endpoint::send_messages`].
pub struct MessageWriter<'a>(&'a mut Connection);

impl MessageWriter<'_> {
    /// Queues a message, at most [`MAX_MESSAGE_BYTES`].
    #[inline]
    pub fn send(&mut self, message: &[u8]) -> Result<(), OperationError> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(OperationError::TooLong {
                what: "a message",
                given: message.len(),
                allowed: MAX_MESSAGE_BYTES,
            });
        }
        self.0.send_message(message)
    }
}

impl Endpoint {
    /// Lets a peer talk to this node, on lane 0. A peer added before is the same peer, on all its lanes with what is configured
    /// now.
    pub fn add_peer(&mut self, peer: PeerConfig) -> PeerId {
        for lane in 1..MAX_LANES {
            if let Some(id) = self.peers.get(&(peer.key.identity, lane)) {
                self.configure(*id, peer);
            }
        }
        self.add(peer, 0)
    }

    /// Another tunnel to a peer that was added (W3.16), with an owner of its own ([`Endpoint::set_owner`]): a tunnel is one
    /// worker's, and by several lanes a peer is reached by as many. It comes up when both ends have added it, and is used like
    /// a peer's first. `None`: no such peer, or not one of [`MAX_LANES`] lanes, from 0.
    pub fn add_lane(&mut self, peer: PeerId, lane: u8) -> Option<PeerId> {
        let first = self.tunnels.get(peer.0 as usize).filter(|_| lane < MAX_LANES)?;
        let (config, address) = (first.config, first.last_address());
        let id = self.add(config, lane);
        if let Some(address) = address {
            self.remember_address(id, address);
        }
        Some(id)
    }

    fn add(&mut self, peer: PeerConfig, lane: u8) -> PeerId {
        let id = *self.peers.entry((peer.key.identity, lane)).or_insert(PeerId(self.tunnels.len() as u32));
        if (id.0 as usize) < self.tunnels.len() {
            self.configure(id, peer);
            return id;
        }
        self.addresses.replace(None, peer.endpoint);
        self.tunnels.push(Tunnel::new(id, lane, peer));
        self.is_ready.push(false);
        self.owners.push(self.config.worker);
        self.is_stale.push(false);
        id
    }

    fn configure(&mut self, id: PeerId, peer: PeerConfig) {
        let tunnel = &mut self.tunnels[id.0 as usize];
        self.addresses.replace(tunnel.config.endpoint, peer.endpoint);
        tunnel.configure(peer);
    }

    /// Lets a peer talk to this node no more: it is told that its tunnels are closed, and is a stranger from then on. Its ids name
    /// nobody any more; added again, it has another.
    pub fn remove_peer(&mut self, now: Instant, peer: PeerId) {
        /// No worker has this number.
        const NOBODY: u8 = u8::MAX;
        let Some(tunnel) = self.tunnels.get(peer.0 as usize) else { return };
        let identity = tunnel.config.key.identity;
        // Removed before, it may have another id now.
        if (0..MAX_LANES).all(|lane| self.peers.get(&(identity, lane)) != Some(&peer)) {
            return;
        }
        for lane in 0..MAX_LANES {
            if let Some(id) = self.peers.remove(&(identity, lane)) {
                self.with(now, id, |tunnel, ctx| tunnel.on_removed(ctx));
                self.owners[id.0 as usize] = NOBODY;
            }
        }
    }

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

    /// Where a peer was last, by proof (W6.4). `None`: it was not met.
    pub fn last_address(&self, peer: PeerId) -> Option<SocketAddr> {
        self.tunnels.get(peer.0 as usize)?.last_address()
    }

    /// Says where [`Endpoint::last_address`] of an earlier process was: initiations go there, too, and resets (W4.9). Nothing when
    /// the peer was met since.
    pub fn remember_address(&mut self, peer: PeerId, address: SocketAddr) {
        if let Some(tunnel) = self.tunnels.get_mut(peer.0 as usize) {
            tunnel.remember_address(address, &mut self.addresses);
        }
    }

    /// Which of a node's workers has the tunnel to a peer; without this, each endpoint its own. To the peer all workers are one
    /// node, with one tunnel on a lane: two that both answered it would end each other's, and one that did not know the tunnel could
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
        self.send_messages(now, connection, |to| to.send(message))?
    }

    /// Queues one message after the other, as `run` sends them. Costs less than to look the connection up for each.
    #[inline]
    pub fn send_messages<R>(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        run: impl FnOnce(&mut MessageWriter<'_>) -> R,
    ) -> Result<R, OperationError> {
        let tunnel = self.tunnels.get_mut(connection.peer.0 as usize);
        let it = tunnel.and_then(|tunnel| tunnel.table.get_mut(connection.key)).ok_or(OperationError::NoConnection)?;
        let result = run(&mut MessageWriter(it));
        // Usually, where there are many, others wait already: what holds for those holds for these.
        if !it.has_turn(Lane::Messages) {
            self.with(now, connection.peer, |tunnel, _| tunnel.table.queue(connection.key));
        }
        Ok(result)
    }

    /// Appends the next message to `out` and returns its length; `None`: no message now.
    pub fn receive_message(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, OperationError> {
        let before = out.len();
        let taken = self.take_messages(now, connection, 1, |message| out.extend_from_slice(message))?;
        Ok((taken > 0).then(|| out.len() - before))
    }

    /// Lends one message after the other to `take`, as many as there are; returns how many. Costs less than to take each by itself.
    pub fn receive_messages(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        take: impl FnMut(&[u8]),
    ) -> Result<u64, OperationError> {
        self.take_messages(now, connection, u64::MAX, take)
    }

    fn take_messages(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        most: u64,
        take: impl FnMut(&[u8]),
    ) -> Result<u64, OperationError> {
        let tunnel = &mut self.tunnels[connection.peer.0 as usize];
        let pace = tunnel.pace(now);
        let taken = tunnel.table.receive_messages(connection.key, most, take, pace);
        self.after_reading(now, connection.peer);
        taken
    }

    /// Queues an unreliable datagram (RFC 9221), at most [`Endpoint::max_datagram`] bytes: it arrives once, late, or never. Never
    /// blocks: of those that wait, the oldest are dropped and counted.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        datagram: &[u8],
    ) -> Result<(), OperationError> {
        let allowed = self.max_datagram(connection);
        if datagram.len() > allowed {
            return Err(OperationError::TooLong { what: "a datagram", given: datagram.len(), allowed });
        }
        if let Some(tunnel) = self.tunnels.get_mut(connection.peer.0 as usize) {
            tunnel.want_larger_datagrams();
        }
        self.on(now, connection, |it| it.send_datagram(datagram))
    }

    /// Bytes of the largest unreliable datagram that the path is known to carry. May grow, and shrink.
    pub fn max_datagram(&self, connection: ConnectionHandle) -> usize {
        let tunnel = self.tunnels.get(connection.peer.0 as usize);
        let path = tunnel.map_or(crate::limits::MIN_DATAGRAM_BYTES, |tunnel| tunnel.max_datagram());
        usize::from(path) - DATAGRAM_OVERHEAD_BYTES
    }

    /// Appends the next unreliable datagram to `out` and returns its length; `None`: none now.
    pub fn receive_datagram(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, OperationError> {
        self.on(now, connection, |it| it.receive_datagram(out))
    }

    /// Opens a bidirectional stream.
    pub fn open_stream(&mut self, now: Instant, connection: ConnectionHandle) -> Result<StreamId, OperationError> {
        self.on(now, connection, |it| it.open_stream(Direction::Bidirectional))
    }

    /// Opens a stream that is written to at this end alone.
    pub fn open_unidirectional(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
    ) -> Result<StreamId, OperationError> {
        self.on(now, connection, |it| it.open_stream(Direction::Unidirectional))
    }

    /// Writes to a stream; returns how much was taken. [`OperationError::Blocked`]: nothing was. A stream that has room for less
    /// than everything tells of more by [`crate::Event::StreamWritable`].
    pub fn write(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<usize, OperationError> {
        let peer = self.tunnels.get(connection.peer.0 as usize);
        let capacity = peer.map_or(0, |tunnel| tunnel.send_buffer());
        self.on(now, connection, |it| it.write_stream_bytes(stream, bytes, capacity))
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

    /// Gives up writing to a stream: what the peer does not have yet is not sent any more, and the peer's application is told the
    /// code. Nothing happens when the peer has all of it.
    pub fn reset(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
        code: u64,
    ) -> Result<(), OperationError> {
        self.on(now, connection, |it| it.reset(stream, code.min(MAX_VARINT)))
    }

    /// Gives up reading from a stream: what was not read is thrown away, and the peer gives up writing with the code. Nothing
    /// happens when all of it was read.
    pub fn stop(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
        code: u64,
    ) -> Result<(), OperationError> {
        self.on(now, connection, |it| it.stop(stream, code.min(MAX_VARINT)))
    }

    /// Reads from a stream. A half of a stream that was read to its end, or to its reset, is gone.
    pub fn read(
        &mut self,
        now: Instant,
        connection: ConnectionHandle,
        stream: StreamId,
        out: &mut [u8],
    ) -> Result<Read, OperationError> {
        let tunnel = &mut self.tunnels[connection.peer.0 as usize];
        let pace = tunnel.pace(now);
        let read = tunnel.table.read(connection.key, stream, out, pace);
        self.after_reading(now, connection.peer);
        read
    }

    /// Reading may have given the peer credit; usually it has not.
    fn after_reading(&mut self, now: Instant, peer: PeerId) {
        if !self.tunnels[peer.0 as usize].table.control.is_empty() {
            self.with(now, peer, |_, _| {});
        }
    }

    /// From now on, what is taken from a connection counts as consumed when [`Endpoint::consume_messages`] and
    /// [`Endpoint::consume_bytes`] say so: for who hands it on to an application that may come to nothing. Credit is given when it is
    /// taken, as ever.
    pub fn consume_later(&mut self, connection: ConnectionHandle) {
        if let Some(tunnel) = self.tunnels.get_mut(connection.peer.0 as usize) {
            tunnel.table.get_mut(connection.key).into_iter().for_each(Connection::consume_later);
        }
    }

    /// So many more of the messages that were taken are consumed, of a connection of [`Endpoint::consume_later`].
    pub fn consume_messages(&mut self, now: Instant, connection: ConnectionHandle, count: u64) {
        self.with(now, connection.peer, |tunnel, _| tunnel.consume(connection.key, |it| it.consume_messages(count)));
    }

    /// So many more of the bytes that were read of a stream are consumed, of a connection of [`Endpoint::consume_later`]. A half that
    /// was read to its end is there until all of it is.
    pub fn consume_bytes(&mut self, now: Instant, connection: ConnectionHandle, stream: StreamId, bytes: u64) {
        self.with(now, connection.peer, |tunnel, _| {
            tunnel.consume(connection.key, |it| it.consume_bytes(stream, bytes))
        });
    }

    /// How many bytes of a stream the peer's application has read, as far as this end was told, which the peer does when it sends
    /// something anyway. `None`: there is no such stream any more.
    pub fn consumed(&self, connection: ConnectionHandle, stream: StreamId) -> Option<u64> {
        self.connection(connection)?.consumed(stream)
    }

    /// How many messages the peer's application has taken, as far as this end was told.
    pub fn messages_consumed(&self, connection: ConnectionHandle) -> Option<u64> {
        Some(self.connection(connection)?.messages_out.consumed())
    }

    /// A connection as it is now; `None` when the handle names none.
    pub fn connection_stats(&self, connection: ConnectionHandle) -> Option<ConnectionStats> {
        let it = self.connection(connection)?;
        let [datagrams_dropped_sending, datagrams_dropped_receiving] = it.datagrams_dropped();
        Some(ConnectionStats {
            datagrams_dropped_sending,
            datagrams_dropped_receiving,
            receive_window: it.receive_credit.window(),
            unread_bytes: it.receive_credit.unread(),
        })
    }

    fn connection(&self, connection: ConnectionHandle) -> Option<&Connection> {
        self.tunnels.get(connection.peer.0 as usize)?.table.get(connection.key)
    }

    /// Whether everything sent on a connection has arrived at the peer's engine. Not that its application read it, see
    /// [`Endpoint::consumed`]; and unreliable datagrams do not count.
    pub fn is_delivered(&self, connection: ConnectionHandle) -> bool {
        self.connection(connection).is_none_or(Connection::is_delivered)
    }

    /// The port a connection is for; `None` when the handle names none.
    pub fn port(&self, connection: ConnectionHandle) -> Option<u16> {
        self.connection(connection).map(|it| it.port)
    }

    /// Whether a connection was accepted and is not over.
    pub fn is_open(&self, connection: ConnectionHandle) -> bool {
        self.connection(connection).is_some_and(|it| it.state == State::Open)
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

    /// What tunnels counted, those that are over included; what there is of them at one time means nothing here.
    pub fn tunnel_totals(&self) -> TunnelStats {
        let mut totals = self.stats.ended.clone();
        self.tunnels.iter().filter_map(Tunnel::stats).for_each(|stats| totals.count(&stats));
        totals
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
