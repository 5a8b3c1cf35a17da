//! One application at one worker.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use pilot_engine::{ConnectionHandle, Endpoint, Instant, OperationError, PeerId, RefuseCode, StreamId};
use serde_json::json;

use super::super::limits::{CLIENT_GIVE_BACK_AFTER_BYTES, CLOSE_POLL, CONNECT_TIMEOUT, LINGER, MAX_CONNECTIONS};
use super::super::outbox::Outbox;
use super::super::protocol::{self, Code, Error, Id, Request, SESSION, ToApplication, ToNode, cost};
use super::super::switchboard::{ClientId, Switchboard};
use super::Context;
use super::connection::{Connection, State, Stream};
use super::flow::{Inbound, Outbound, Taken};
use super::ids::Ids;
use super::link::{Change, Link};
use crate::context::Follow;

/// See the module's head.
pub(super) struct Client {
    pub(super) id: ClientId,
    pub(super) outbox: Outbox,
    worker: u8,
    ids: Ids,
    pub(super) connections: HashMap<Id, Connection>,
    pub(super) streams: HashMap<Id, Stream>,
    /// To the owners of contexts that it follows or changes.
    pub(super) links: HashMap<Id, Link>,
    /// Of those the ones for changes, by the owner.
    pub(super) writers: BTreeMap<Option<PeerId>, Id>,
    /// Flows with data for which the outbox has no room, each once, in turn.
    pub(super) queue: VecDeque<Id>,
    /// Bytes that were taken and not yet given back to the application as a whole (L5.3).
    owed: u32,
    pub(super) is_subscribed: bool,
}

impl Client {
    pub(super) fn new(id: ClientId, outbox: Outbox, worker: u8) -> Self {
        Self {
            id,
            outbox,
            worker,
            ids: Ids::default(),
            connections: HashMap::new(),
            streams: HashMap::new(),
            links: HashMap::new(),
            writers: BTreeMap::new(),
            queue: VecDeque::new(),
            owed: 0,
            is_subscribed: false,
        }
    }

    pub(super) fn connection(&self, id: Id) -> Option<&Connection> {
        self.connections.get(&id)
    }

    pub(super) fn tell(&self, id: Id, event: protocol::Event) {
        self.outbox.put(ToApplication::Event(id, event));
    }

    /// L2.5: when the node stops, a session ends as soon as it has no connections.
    pub(super) fn end_if_drained(&self, board: &Switchboard) {
        if board.is_draining() && self.outbox.connections() == 0 {
            self.outbox.end(Error::stops());
        }
    }

    pub(super) fn answer(&self, request: u32, result: Result<serde_json::Value, Error>) {
        self.outbox.put(match result {
            Ok(value) => ToApplication::Result { request, value },
            Err(error) => ToApplication::Error { request, error },
        });
    }

    /// L2.3: the application is gone.
    pub(super) fn end(&mut self, ctx: &mut Context<'_>) {
        self.end_links(ctx);
        for (id, connection) in self.connections.drain() {
            ctx.owners.remove(&connection.handle);
            if let Some(at) = connection.timer {
                ctx.timers.remove(&(at, self.id, id));
            }
            match connection.state {
                State::Offered { .. } => {
                    let code = RefuseCode::NoListener as u64;
                    ctx.endpoint.refuse(ctx.now, connection.handle, code, "application is gone");
                }
                _ => ctx.endpoint.close(ctx.now, connection.handle, 0, "application is gone"),
            }
        }
    }

    // What the application says.

    pub(super) fn on_command(&mut self, ctx: &mut Context<'_>, what: ToNode) {
        match what {
            ToNode::Request { request, what } => {
                if let Err(error) = self.on_request(ctx, request, what) {
                    self.answer(request, Err(error));
                }
            }
            ToNode::Message(id, body) => self.on_message(ctx, id, body),
            ToNode::Data(id, body) => self.on_data(ctx, id, body),
            ToNode::Datagram(id, body) => {
                if let Some(connection) =
                    self.connections.get(&id).filter(|it| !matches!(it.state, State::Offered { .. }))
                {
                    // L5.5: too long for the path, or the connection is over: dropped, as on the way.
                    let _ = ctx.endpoint.send_datagram(ctx.now, connection.handle, &body);
                }
            }
            ToNode::Finish(id) => {
                if let Some(outbound) = self.streams.get_mut(&id).and_then(|stream| stream.outbound.as_mut()) {
                    outbound.is_finished = true;
                    self.flush_stream(ctx, id);
                }
            }
            ToNode::Credit(id, bytes) => self.on_credit(ctx, id, bytes),
            ToNode::Open { stream, connection, unidirectional } => {
                self.on_open(ctx, stream, connection, unidirectional)
            }
        }
    }

    fn on_request(&mut self, ctx: &mut Context<'_>, request: u32, what: Request) -> Result<(), Error> {
        match what {
            Request::Connect { peer, port, timeout_ms } => {
                self.check_room()?;
                let peer = ctx.board.lane_of(self.worker, &peer)?;
                let handle = ctx.endpoint.connect(ctx.now, peer.id, port).map_err(|error| Error::from(&error))?;
                let wait = timeout_ms.map_or(CONNECT_TIMEOUT, Duration::from_millis);
                self.insert(ctx, handle, true, State::Connecting { request }, Some(ctx.now + wait));
            }
            Request::Accept { connection: id } => {
                let connection = self.offered(id)?;
                connection.state = State::Open;
                // An error means that it is closed already, which its own event tells.
                let _ = ctx.endpoint.accept(ctx.now, connection.handle);
                self.answer(request, Ok(json!({})));
                self.pump_messages(ctx, id);
            }
            Request::Refuse { connection: id, code, reason } => {
                let handle = self.offered(id)?.handle;
                self.forget(ctx, id);
                ctx.endpoint.refuse(ctx.now, handle, code, &reason);
                self.answer(request, Ok(json!({})));
            }
            Request::Close { connection: id, code, reason } => {
                let connection = self.connections.get_mut(&id).ok_or_else(|| Error::no_such("connection", id))?;
                match connection.state {
                    State::Open => {
                        let until = ctx.now + LINGER;
                        connection.state = State::Closing { request, code, reason, until };
                        self.close_when_delivered(ctx, id);
                    }
                    State::Ended(_) => {
                        self.release(ctx, id, 0, "");
                        self.answer(request, Ok(json!({})));
                    }
                    State::Connecting { .. } | State::Offered { .. } | State::Closing { .. } => {
                        return Err(Error::no_such("open connection", id));
                    }
                }
            }
            Request::Stats { connection: Some(id) } => {
                let stats = self.connections.get(&id).and_then(|it| ctx.endpoint.connection_stats(it.handle));
                let stats = stats.ok_or_else(|| Error::no_such("connection", id))?;
                let value = json!({
                    "receive_window": stats.receive_window,
                    "unread_bytes": stats.unread_bytes,
                    "datagrams_dropped_sending": stats.datagrams_dropped_sending,
                    "datagrams_dropped_receiving": stats.datagrams_dropped_receiving,
                });
                self.answer(request, Ok(value));
            }
            Request::Reset { stream: id, code } => {
                let stream = self.streams.get_mut(&id).ok_or_else(|| Error::no_such("stream", id))?;
                // An error means that it is over, and that nobody needs to be told.
                let _ = ctx.endpoint.reset(ctx.now, stream.handle, stream.stream, code);
                self.end_sending(id);
                self.answer(request, Ok(json!({})));
            }
            Request::Stop { stream: id, code } => {
                let stream = self.streams.get_mut(&id).ok_or_else(|| Error::no_such("stream", id))?;
                let _ = ctx.endpoint.stop(ctx.now, stream.handle, stream.stream, code);
                self.end_receiving(id);
                self.answer(request, Ok(json!({})));
            }
            Request::Subscribe => self.is_subscribed = true,
            Request::Introduce { endpoint, key } => self.on_introduce(ctx, request, endpoint, key)?,
            Request::ContextCreate(new) => self.on_context_create(ctx, request, new)?,
            Request::ContextDelete { name } => self.on_context_delete(ctx, request, &name)?,
            Request::ContextChange { peer, name, change, if_stamp } => {
                self.on_context_change(ctx, Change::new(request, name, change.0, if_stamp), peer)?;
            }
            Request::ContextFollow { peer, name, filter, latest } => {
                self.on_context_follow(ctx, request, peer, Follow { name, filter, latest })?;
            }
            Request::ContextUnfollow { following } => self.on_context_unfollow(ctx, request, following)?,
            // The switchboard's, or answered by all workers together.
            Request::Hello { .. } | Request::Listen { .. } | Request::Unlisten { .. } => {}
            Request::Peers | Request::Connections | Request::Stats { connection: None } => {}
        }
        Ok(())
    }

    fn offered(&mut self, id: Id) -> Result<&mut Connection, Error> {
        let offered = self.connections.get_mut(&id).filter(|it| matches!(it.state, State::Offered { .. }));
        offered.ok_or_else(|| Error::no_such("connection that is offered,", id))
    }

    /// L2.2.
    pub(super) fn check_room(&self) -> Result<(), Error> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(Error::new(Code::TooMany, format!("an application has {MAX_CONNECTIONS} connections at most")));
        }
        Ok(())
    }

    fn on_message(&mut self, ctx: &mut Context<'_>, id: Id, body: Vec<u8>) {
        let cost = cost(&body);
        let Some(connection) = self.connections.get_mut(&id) else { return self.give_back(cost) };
        // L3.5: nothing before it is accepted.
        if matches!(connection.state, State::Offered { .. }) || !connection.outbound.try_spend(cost) {
            return self.violation(id);
        }
        let (handle, was_empty) = (connection.handle, connection.outbound.is_empty());
        let through = connection.outbound.put(body, |body| message_taken(ctx.endpoint, ctx.now, handle, body));
        *ctx.credit_stalls += u64::from(was_empty && !connection.outbound.is_empty());
        self.after_messages(ctx, id, through);
    }

    pub(super) fn flush_messages(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let handle = connection.handle;
        let through = connection.outbound.flush(|body| message_taken(ctx.endpoint, ctx.now, handle, body));
        self.after_messages(ctx, id, through);
    }

    fn after_messages(&mut self, ctx: &mut Context<'_>, id: Id, through: u32) {
        if let Some(due) = self.connections.get_mut(&id).and_then(|connection| connection.outbound.due()) {
            self.outbox.put(ToApplication::Credit(id, due));
        }
        self.give_back(through);
        if matches!(self.connections.get(&id), Some(Connection { state: State::Closing { .. }, .. })) {
            self.close_when_delivered(ctx, id);
        }
    }

    fn on_data(&mut self, ctx: &mut Context<'_>, id: Id, body: Vec<u8>) {
        let cost = cost(&body);
        let outbound = self.streams.get_mut(&id).and_then(|stream| {
            stream.sent += body.len() as u64;
            stream.outbound.as_mut()
        });
        let Some(outbound) = outbound.filter(|it| !it.is_finished) else { return self.give_back(cost) };
        if !outbound.try_spend(cost) {
            return self.violation(id);
        }
        let was_empty = outbound.is_empty();
        outbound.put(body, |_| Taken::Nothing);
        if was_empty {
            self.flush_stream(ctx, id);
            let waits =
                self.streams.get(&id).and_then(|stream| stream.outbound.as_ref()).is_some_and(|it| !it.is_empty());
            *ctx.credit_stalls += u64::from(waits);
        }
    }

    /// Writes what is held of a stream, and then its end.
    pub(super) fn flush_stream(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(Stream { handle, stream, outbound: Some(outbound), .. }) = self.streams.get_mut(&id) else { return };
        let through = outbound.flush(|body| match ctx.endpoint.write(ctx.now, *handle, *stream, body) {
            Ok(length) => Taken::Part(length),
            Err(OperationError::Blocked) => Taken::Nothing,
            // Over, which its own event tells.
            Err(_) => Taken::Whole,
        });
        if outbound.is_finished && outbound.is_empty() {
            // An error means that it was finished before, or is over.
            let _ = ctx.endpoint.finish(ctx.now, *handle, *stream);
        }
        if let Some(due) = outbound.due() {
            self.outbox.put(ToApplication::Credit(id, due));
        }
        self.give_back(through);
    }

    fn on_credit(&mut self, ctx: &mut Context<'_>, id: Id, bytes: u32) {
        let Some(inbound) = self.inbound(id) else { return };
        let Some(read) = inbound.give_back(bytes) else {
            let words = format!("CREDIT for {}: given {bytes} bytes, which is more than was sent", id.0);
            return self.outbox.end(Error::malformed(words));
        };
        let is_over = inbound.is_over();
        // L4.2: only now has the peer's application read it, in the peer's words.
        if let Some(connection) = self.connections.get(&id) {
            ctx.endpoint.consume_messages(ctx.now, connection.handle, read.bodies);
        } else if let Some(Stream { handle, stream, .. }) = self.streams.get(&id) {
            ctx.endpoint.consume_bytes(ctx.now, *handle, *stream, read.bytes);
        }
        if is_over {
            self.end_receiving(id);
        }
        self.pump(ctx, id);
    }

    fn on_open(&mut self, ctx: &mut Context<'_>, id: Id, connection: Id, unidirectional: bool) {
        let is_free = id.is_by_application() && id.worker() == self.worker && !self.streams.contains_key(&id);
        if !is_free {
            let words =
                format!("OPEN: given id {}, allowed: with bit 8, the connection's bits 0 to 7, and not in use", id.0);
            return self.outbox.end(Error::malformed(words));
        }
        let opened = match self.connections.get(&connection) {
            Some(it) if matches!(it.state, State::Open) => {
                let opened = if unidirectional {
                    ctx.endpoint.open_unidirectional(ctx.now, it.handle)
                } else {
                    ctx.endpoint.open_stream(ctx.now, it.handle)
                };
                opened.map(|stream| (it.handle, stream)).map_err(|error| Error::from(&error))
            }
            _ => Err(Error::no_such("open connection", connection)),
        };
        match opened {
            Ok((handle, stream)) => self.insert_stream(id, connection, (handle, stream), !unidirectional, true),
            Err(error) => self.tell(id, protocol::Event::Closed(error)),
        }
    }

    /// L5.4.
    fn violation(&mut self, id: Id) {
        let words = format!("{} was sent more than there was credit for, or before it was accepted", id.0);
        self.outbox.end(Error::new(Code::Credit, words));
    }

    /// L5.3: what was taken, or dropped, of the application's own credit.
    fn give_back(&mut self, bytes: u32) {
        self.owed += bytes;
        if self.owed >= CLIENT_GIVE_BACK_AFTER_BYTES {
            self.outbox.put(ToApplication::Credit(SESSION, std::mem::take(&mut self.owed)));
        }
    }

    // Connections and streams.

    pub(super) fn fresh_id(&mut self) -> Id {
        let Self { ids, connections, streams, links, .. } = self;
        let is_taken = |id| connections.contains_key(&id) || streams.contains_key(&id) || links.contains_key(&id);
        ids.next(self.worker, false, is_taken)
    }

    pub(super) fn insert(
        &mut self,
        ctx: &mut Context<'_>,
        handle: ConnectionHandle,
        opened_here: bool,
        state: State,
        deadline: Option<Instant>,
    ) -> Id {
        let id = self.fresh_id();
        ctx.owners.insert(handle, (self.id, id));
        // L4.2: when the application gives credit back.
        ctx.endpoint.consume_later(handle);
        self.connections.insert(id, Connection::new(handle, opened_here, state));
        self.set_timer(ctx, id, deadline);
        id
    }

    pub(super) fn insert_stream(
        &mut self,
        id: Id,
        connection: Id,
        stream: (ConnectionHandle, StreamId),
        reads: bool,
        writes: bool,
    ) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.streams.insert(stream.1, id);
        }
        let (inbound, outbound) = (reads.then(Inbound::default), writes.then(Outbound::default));
        let (handle, stream) = stream;
        self.streams.insert(id, Stream { connection, handle, stream, inbound, outbound, sent: 0 });
    }

    pub(super) fn set_timer(&mut self, ctx: &mut Context<'_>, id: Id, at: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut connection.timer, at) {
            ctx.timers.remove(&(before, self.id, id));
        }
        ctx.timers.extend(at.map(|at| (at, self.id, id)));
    }

    /// The time has come that was set for a connection.
    pub(super) fn on_timer(&mut self, ctx: &mut Context<'_>, id: Id) {
        if self.links.contains_key(&id) {
            return self.on_link_timer(ctx, id);
        }
        self.set_timer(ctx, id, None);
        match self.connections.get(&id).map(|connection| &connection.state) {
            Some(State::Connecting { request }) => {
                let request = *request;
                self.release(ctx, id, 0, "gave up waiting");
                self.answer(request, Err(Error::new(Code::TimedOut, "the peer has not accepted in time")));
            }
            Some(State::Closing { .. }) => self.close_when_delivered(ctx, id),
            Some(State::Ended(error)) => {
                let error = error.clone();
                self.release(ctx, id, 0, "");
                self.tell(id, protocol::Event::Closed(error));
            }
            Some(State::Offered { .. } | State::Open) | None => {}
        }
    }

    /// Closes a connection as its application has asked, once everything has arrived or the time is over.
    fn close_when_delivered(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(connection) = self.connections.get(&id) else { return };
        let State::Closing { request, code, ref reason, until } = connection.state else { return };
        let mut streams = connection.streams.values().filter_map(|id| self.streams.get(id)?.outbound.as_ref());
        let is_with_engine = connection.outbound.is_empty() && streams.all(Outbound::is_empty);
        if ctx.now < until && !(is_with_engine && ctx.endpoint.is_delivered(connection.handle)) {
            return self.set_timer(ctx, id, Some(until.min(ctx.now + CLOSE_POLL)));
        }
        let reason = reason.clone();
        self.release(ctx, id, code, &reason);
        self.answer(request, Ok(json!({})));
    }

    /// L4.1: tells the application that a connection is over, when it has been given all that had arrived.
    pub(super) fn release_if_read(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(Connection { state: State::Ended(error), inbound, streams, .. }) = self.connections.get(&id) else {
            return;
        };
        let mut halves = streams.values().filter_map(|id| self.streams.get(id)?.inbound.as_ref());
        if inbound.is_readable || halves.any(|inbound| inbound.is_readable) {
            return;
        }
        let error = error.clone();
        self.release(ctx, id, 0, "");
        self.tell(id, protocol::Event::Closed(error));
    }

    /// Closes a connection for good: its ids name nothing any more.
    pub(super) fn release(&mut self, ctx: &mut Context<'_>, id: Id, code: u64, reason: &str) {
        let Some(handle) = self.connections.get(&id).map(|connection| connection.handle) else { return };
        self.forget(ctx, id);
        ctx.endpoint.close(ctx.now, handle, code, reason);
    }

    fn forget(&mut self, ctx: &mut Context<'_>, id: Id) {
        self.set_timer(ctx, id, None);
        let Some(mut connection) = self.connections.remove(&id) else { return };
        ctx.owners.remove(&connection.handle);
        let mut held = connection.outbound.give_up();
        for stream in connection.streams.values().filter_map(|id| self.streams.remove(id)) {
            held += stream.outbound.map_or(0, |mut outbound| outbound.give_up());
        }
        self.give_back(held);
    }

    /// A stream's half is over: what is still held for it is given up.
    pub(super) fn end_sending(&mut self, id: Id) {
        if let Some(mut outbound) = self.streams.get_mut(&id).and_then(|stream| stream.outbound.take()) {
            self.give_back(outbound.give_up());
            self.drop_stream_if_over(id);
        }
    }

    pub(super) fn end_receiving(&mut self, id: Id) {
        if self.streams.get_mut(&id).and_then(|stream| stream.inbound.take()).is_some() {
            self.drop_stream_if_over(id);
        }
    }

    fn drop_stream_if_over(&mut self, id: Id) {
        if let Some(Stream { inbound: None, outbound: None, connection, stream, .. }) = self.streams.get(&id) {
            if let Some(connection) = self.connections.get_mut(connection) {
                connection.streams.remove(stream);
            }
            self.streams.remove(&id);
        }
    }
}

/// Hands a message to the engine.
fn message_taken(endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle, body: &[u8]) -> Taken {
    match endpoint.send_message(now, connection, body) {
        Err(OperationError::Blocked) => Taken::Nothing,
        // Or the connection is over, which its own event tells.
        Ok(()) | Err(_) => Taken::Whole,
    }
}
