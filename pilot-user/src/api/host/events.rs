//! What an endpoint says of an application's connections, and what the application is given: as far as it has credit, and reads.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use pilot_engine::{CloseReason, ConnectionHandle, Event, OperationError, Read, RefuseCode};
use serde_json::json;

use super::super::limits::{FRAME_OVERHEAD_BYTES, LINGER, MAX_DATA_BYTES, MAX_MESSAGE_COST};
use super::super::protocol::{self, Consumed, Id, ToApplication, cost};
use super::super::switchboard::Peer;
use super::Context;
use super::client::Client;
use super::connection::{Connection, State, Stream, Waiting};
use super::flow::Inbound;

impl Client {
    pub(super) fn on_offered(
        &mut self,
        ctx: &mut Context<'_>,
        handle: ConnectionHandle,
        port: u16,
        peer: &Peer,
        waiting: Arc<AtomicUsize>,
    ) {
        let waiting = Waiting(waiting);
        if let Err(error) = self.check_room() {
            return ctx.endpoint.refuse(ctx.now, handle, RefuseCode::TooMany as u64, &error.words);
        }
        let id = self.insert(ctx, handle, false, State::Offered { _waiting: waiting }, None);
        let (peer, address) = (peer.name.clone(), peer.address.to_string());
        self.tell(id, protocol::Event::Incoming { peer, address, port });
    }

    pub(super) fn on_event(&mut self, ctx: &mut Context<'_>, id: Id, event: Event) {
        let Some(connection) = self.connections.get_mut(&id) else { return self.on_link_event(ctx, id, &event) };
        match event {
            Event::Connected { .. } => {
                if let State::Connecting { request } = connection.state {
                    connection.state = State::Open;
                    self.set_timer(ctx, id, None);
                    self.answer(request, Ok(json!({"connection": id})));
                    self.pump_messages(ctx, id);
                }
            }
            Event::MessagesReadable { .. } => {
                connection.inbound.is_readable = true;
                self.pump_messages(ctx, id);
            }
            Event::MessagesWritable { .. } => self.flush_messages(ctx, id),
            Event::DatagramsReadable { .. } => {
                connection.has_datagrams = true;
                self.pump_datagrams(ctx, id);
            }
            Event::MessagesConsumed { .. } => {
                let messages = ctx.endpoint.messages_consumed(connection.handle).unwrap_or_default();
                self.tell(id, protocol::Event::Consumed(Consumed::Messages(messages)));
            }
            Event::StreamOpened { stream, .. } => {
                let handle = connection.handle;
                let stream_id = self.fresh_id();
                let is_bidirectional = stream.is_bidirectional();
                self.insert_stream(stream_id, id, (handle, stream), true, is_bidirectional);
                self.tell(id, protocol::Event::Stream { stream: stream_id, unidirectional: !is_bidirectional });
            }
            Event::StreamReadable { stream, .. } | Event::StreamReset { stream, .. } => {
                if let Some(&id) = connection.streams.get(&stream)
                    && let Some(Stream { inbound: Some(inbound), .. }) = self.streams.get_mut(&id)
                {
                    inbound.is_readable = true;
                    self.pump_stream(ctx, id);
                }
            }
            Event::StreamWritable { stream, .. } => {
                if let Some(&id) = connection.streams.get(&stream) {
                    self.flush_stream(ctx, id);
                }
            }
            Event::StreamStopped { stream, code, .. } => {
                if let Some(&id) = connection.streams.get(&stream) {
                    self.tell(id, protocol::Event::Stopped { peer_code: code });
                    self.end_sending(id);
                }
            }
            Event::StreamConsumed { stream, .. } => {
                let (handle, stream_id) = (connection.handle, connection.streams.get(&stream).copied());
                if let Some((id, it)) = stream_id.and_then(|id| Some((id, self.streams.get(&id)?))) {
                    // One that the engine has forgotten was read to its end.
                    let bytes = ctx.endpoint.consumed(handle, stream).unwrap_or(it.sent);
                    let finished = it.outbound.as_ref().is_some_and(|it| it.is_finished && it.is_empty());
                    self.tell(id, protocol::Event::Consumed(Consumed::Bytes(bytes)));
                    if finished && bytes == it.sent {
                        self.end_sending(id);
                    }
                }
            }
            Event::PeerRestarted { stream, consumed_offset, .. } => {
                let of = stream.map_or(Some(id), |stream| connection.streams.get(&stream).copied());
                if let Some(of) = of {
                    self.tell(of, protocol::Event::Restarted { consumed: consumed_offset });
                }
            }
            Event::Closed { reason, .. } => self.on_closed(ctx, id, &reason),
            // Not of a connection, or not of one that is known.
            Event::Offered { .. } | Event::TunnelUp { .. } | Event::TunnelDown { .. } | Event::Sending { .. } => {}
        }
    }

    fn on_closed(&mut self, ctx: &mut Context<'_>, id: Id, reason: &CloseReason) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match std::mem::replace(&mut connection.state, State::Ended(reason.into())) {
            State::Connecting { request } => {
                self.release(ctx, id, 0, "");
                self.answer(request, Err(reason.into()));
            }
            State::Closing { request, .. } => {
                self.release(ctx, id, 0, "");
                self.answer(request, Ok(json!({})));
            }
            State::Offered { .. } | State::Open | State::Ended(_) => {
                // What had arrived is still to be read, and all say so when there is no more.
                connection.inbound.is_readable = true;
                let streams: Vec<Id> = connection.streams.values().copied().collect();
                self.set_timer(ctx, id, Some(ctx.now + LINGER));
                for stream in streams {
                    if let Some(Stream { inbound: Some(inbound), .. }) = self.streams.get_mut(&stream) {
                        inbound.is_readable = true;
                        self.pump_stream(ctx, stream);
                    }
                }
                self.pump_datagrams(ctx, id);
                self.pump_messages(ctx, id);
            }
        }
    }

    // What the application is given.

    /// Goes on with what waited for room in the outbox. Whether nothing waits any more.
    pub(super) fn on_room(&mut self, ctx: &mut Context<'_>) -> bool {
        while !self.queue.is_empty() && self.outbox.has_room() {
            let Some(id) = self.queue.pop_front() else { break };
            self.inbound(id).into_iter().for_each(|inbound| inbound.is_queued = false);
            self.pump(ctx, id);
        }
        self.queue.is_empty()
    }

    pub(super) fn inbound(&mut self, id: Id) -> Option<&mut Inbound> {
        if let Some(connection) = self.connections.get_mut(&id) {
            return Some(&mut connection.inbound);
        }
        match self.streams.get_mut(&id) {
            Some(stream) => stream.inbound.as_mut(),
            None => self.links.get_mut(&id)?.inbound(),
        }
    }

    pub(super) fn pump(&mut self, ctx: &mut Context<'_>, id: Id) {
        if self.connections.contains_key(&id) {
            self.pump_messages(ctx, id);
        } else if self.streams.contains_key(&id) {
            self.pump_stream(ctx, id);
        } else {
            self.pump_link(ctx, id);
        }
    }

    /// A flow goes on when the outbox has room ([`Client::on_room`]).
    pub(super) fn wait_for_room(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(inbound) = self.inbound(id) else { return };
        if !std::mem::replace(&mut inbound.is_queued, true) {
            self.queue.push_back(id);
            ctx.starving.insert(self.id);
        }
    }

    /// Messages, as long as there are any, credit for the largest, and room.
    pub(super) fn pump_messages(&mut self, ctx: &mut Context<'_>, id: Id) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let Connection { inbound, handle, state, .. } = connection;
            if !inbound.is_readable || matches!(state, State::Offered { .. } | State::Connecting { .. }) {
                break;
            }
            if inbound.credit() < MAX_MESSAGE_COST {
                return;
            }
            if !self.outbox.has_room() {
                return self.wait_for_room(ctx, id);
            }
            let mut body = Vec::new();
            if let Ok(Some(_)) = ctx.endpoint.receive_message(ctx.now, *handle, &mut body) {
                inbound.spend(cost(&body));
                self.outbox.put(ToApplication::Message(id, body));
            } else {
                inbound.is_readable = false;
            }
        }
        self.release_if_read(ctx, id);
    }

    /// Datagrams that find no room are dropped, as the engine does (L5.5).
    fn pump_datagrams(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        while std::mem::take(&mut connection.has_datagrams) {
            let mut body = Vec::new();
            if let Ok(Some(_)) = ctx.endpoint.receive_datagram(ctx.now, connection.handle, &mut body) {
                connection.has_datagrams = true;
                if self.outbox.has_room() {
                    self.outbox.put(ToApplication::Datagram(id, body));
                }
            }
        }
    }

    /// A stream's bytes, likewise, to its end.
    fn pump_stream(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(connection) = self.streams.get(&id).map(|stream| stream.connection) else { return };
        while let Some(Stream { handle, stream, inbound: Some(inbound), .. }) = self.streams.get_mut(&id) {
            if !inbound.is_readable {
                break;
            }
            if inbound.credit() <= FRAME_OVERHEAD_BYTES {
                return;
            }
            if !self.outbox.has_room() {
                return self.wait_for_room(ctx, id);
            }
            let room = MAX_DATA_BYTES.min((inbound.credit() - FRAME_OVERHEAD_BYTES) as usize);
            if ctx.scratch.len() < MAX_DATA_BYTES {
                ctx.scratch.resize(MAX_DATA_BYTES, 0);
            }
            match ctx.endpoint.read(ctx.now, *handle, *stream, &mut ctx.scratch[..room]) {
                Ok(Read::Bytes(length)) => {
                    let body = ctx.scratch[..length].to_vec();
                    inbound.spend(cost(&body));
                    self.outbox.put(ToApplication::Data(id, body));
                }
                Ok(Read::Blocked) => inbound.is_readable = false,
                Ok(Read::End) => {
                    self.outbox.put(ToApplication::Finish(id));
                    self.end_receiving(id);
                }
                Err(OperationError::StreamReset { code }) => {
                    self.tell(id, protocol::Event::Reset { peer_code: code });
                    self.end_receiving(id);
                }
                Err(_) => inbound.is_readable = false,
            }
        }
        self.release_if_read(ctx, connection);
    }
}
