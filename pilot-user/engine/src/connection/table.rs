//! The connections of one tunnel, and which of them have something to send.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::{Connection, End, Key, Lane, PeerLimits, State};
use crate::error::{CloseReason, Code, OperationError, ProtocolViolation, RefuseCode};
use crate::event::{ConnectionHandle, Event, PeerId};
use crate::flow::Pace;
use crate::limits::{CONNECTION_CREDIT_BYTES, MAX_CONNECTIONS, TUNNEL_CREDIT_BYTES};
use crate::range_set::RangeSet;
use crate::recovery::sent::SentFrame;
use crate::stream::StreamId;
use crate::stream::recv::Read;

#[derive(Debug)]
pub(crate) struct Table {
    peer: PeerId,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections that are not closed.
    live: usize,
    /// Looked up, never iterated: its order is not that of anything. A fast hash will do, because ids are used in order: a peer
    /// cannot make them collide.
    by_wire_id: HashMap<u64, Key, FixedState>,
    /// Connections this end opened in the tunnel. Their ids are `2 n + parity`.
    opened: u64,
    /// 0 for the tunnel's initiator, 1 for its responder.
    parity: u64,
    /// Which of the peer's connections it has opened, by `id / 2`.
    peer_opened: RangeSet,
    limits: Option<PeerLimits>,
    /// Connections with something to send, by lane: each once, in turn.
    pub(super) with: [VecDeque<Key>; Lane::ALL.len()],
    /// Packets in a row in which there was no room for what a lane had to send.
    pub(super) passed_over: [u8; Lane::ALL.len()],
    /// Frames other than data to be sent.
    pub(crate) control: VecDeque<SentFrame>,
    /// CONSUMED and MESSAGES_CONSUMED, which go with what else is sent (W5.16).
    pub(super) lazy: VecDeque<SentFrame>,
    /// Bytes by which the windows of connections may still grow.
    spare: u64,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Table {
    pub(crate) fn new(peer: PeerId) -> Self {
        Self {
            peer,
            slots: Vec::new(),
            free: Vec::new(),
            live: 0,
            by_wire_id: HashMap::default(),
            opened: 0,
            parity: 0,
            peer_opened: RangeSet::default(),
            limits: None,
            with: Default::default(),
            passed_over: Default::default(),
            control: VecDeque::new(),
            lazy: VecDeque::new(),
            spare: TUNNEL_CREDIT_BYTES,
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Connection> {
        let slot = self.slots.get(key.slot as usize).filter(|slot| slot.generation == key.generation)?;
        slot.connection.as_deref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation)?;
        slot.connection.as_deref_mut()
    }

    /// How many connections there are, over ones that the application has not given back included.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        let mut connections = self.slots.iter().filter_map(|slot| slot.connection.as_deref());
        connections.any(|connection| connection.state == State::Waiting)
    }

    /// Whether there are connections that are not closed.
    pub(crate) fn has_live(&self) -> bool {
        self.live > 0
    }

    fn keys(&self) -> Vec<Key> {
        let key = |(slot, it): (usize, &Slot)| {
            it.connection.as_ref().map(|_| Key { slot: slot as u32, generation: it.generation })
        };
        self.slots.iter().enumerate().filter_map(key).collect()
    }

    fn insert(&mut self, port: u16, is_opener: bool, state: State) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let at = &mut self.slots[slot as usize];
        let key = Key { slot, generation: at.generation };
        let handle = ConnectionHandle { peer: self.peer, key };
        at.connection = Some(Box::new(Connection::new(handle, port, is_opener, state)));
        self.live += 1;
        key
    }

    /// Gives room back that nothing needs now.
    pub(crate) fn rest(&mut self) {
        self.slots.shrink_to_fit();
        self.free.shrink_to_fit();
        self.peer_opened.rest();
        self.by_wire_id.shrink_to_fit();
        self.with.iter_mut().for_each(VecDeque::shrink_to_fit);
        self.control.shrink_to_fit();
        self.lazy.shrink_to_fit();
    }

    /// Closes a connection and tells the application, unless it is closed already. Whether it was not.
    pub(crate) fn shut(&mut self, key: Key, reason: CloseReason, events: &mut VecDeque<Event>) -> bool {
        let news = self.get_mut(key).is_some_and(|connection| connection.close(reason, events));
        self.live -= usize::from(news);
        self.free_if_over(key);
        news
    }

    /// Frees the slot of a connection that is over.
    pub(crate) fn free_if_over(&mut self, key: Key) {
        if let Some(connection) = self.get(key).filter(|connection| connection.is_over()) {
            self.spare += connection.grown();
            let slot = &mut self.slots[key.slot as usize];
            slot.generation = slot.generation.wrapping_add(1);
            if let Some(id) = slot.connection.take().and_then(|connection| connection.wire_id) {
                self.by_wire_id.remove(&id);
            }
            self.free.push(key.slot);
        }
    }

    // Opening

    /// Opens a connection to the peer's port; OPEN leaves at once if the tunnel is up, else when it is.
    pub(crate) fn open(&mut self, port: u16) -> Result<ConnectionHandle, OperationError> {
        if self.len() >= MAX_CONNECTIONS {
            return Err(OperationError::TooMany { what: "connections", allowed: MAX_CONNECTIONS as u64 });
        }
        let key = self.insert(port, true, State::Waiting);
        self.start(key);
        Ok(ConnectionHandle { peer: self.peer, key })
    }

    fn start(&mut self, key: Key) {
        let Some(limits) = self.limits else { return };
        let id = 2 * self.opened + self.parity;
        if let Some(connection) = self.get_mut(key).filter(|connection| connection.state == State::Waiting) {
            connection.state = State::Opening;
            connection.set_wire_id(id);
            connection.set_peer_limits(&limits);
            self.opened += 1;
            self.by_wire_id.insert(id, key);
            self.control.push_back(SentFrame::Open(key));
        }
    }

    /// A tunnel is up, new to both ends: connections of the one before end, those that wait are opened.
    pub(crate) fn on_tunnel_up(&mut self, is_initiator: bool, limits: PeerLimits, events: &mut VecDeque<Event>) {
        self.on_tunnel_down(&CloseReason::PeerRestarted, events);
        self.parity = u64::from(!is_initiator);
        self.limits = Some(limits);
        self.keys().into_iter().for_each(|key| self.start(key));
    }

    /// The tunnel is over: so are its connections, except those whose OPEN was not answered, which wait again.
    pub(crate) fn on_tunnel_down(&mut self, reason: &CloseReason, events: &mut VecDeque<Event>) {
        self.limits = None;
        self.opened = 0;
        self.peer_opened.clear();
        self.by_wire_id.clear();
        self.with.iter_mut().for_each(VecDeque::clear);
        self.control.clear();
        self.lazy.clear();
        for key in self.keys() {
            let Some(connection) = self.get_mut(key) else { continue };
            connection.wire_id = None;
            connection.end = None;
            connection.queued = Default::default();
            match connection.state {
                State::Opening => connection.state = State::Waiting,
                State::Waiting => {}
                _ => {
                    self.shut(key, reason.clone(), events);
                }
            }
        }
    }

    /// Ends the connections that wait for a tunnel which does not come.
    pub(crate) fn give_up_waiting(&mut self, reason: &CloseReason, events: &mut VecDeque<Event>) {
        for key in self.keys() {
            if self.get(key).is_some_and(|connection| connection.state == State::Waiting) {
                self.shut(key, reason.clone(), events);
            }
        }
    }

    /// The peer opens a connection (W5.7).
    pub(crate) fn on_open(
        &mut self,
        id: u64,
        port: u16,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if !self.note_peer_id(id)? {
            return Ok(()); // a repetition, or its end came before it
        }
        let Some(limits) = self.limits else { return Ok(()) };
        let full = self.len() >= MAX_CONNECTIONS;
        let key = self.insert(port, false, State::Offered);
        self.by_wire_id.insert(id, key);
        if let Some(connection) = self.get_mut(key) {
            connection.set_wire_id(id);
            connection.set_peer_limits(&limits);
            events.push_back(Event::Offered { connection: connection.handle, port });
        }
        if full {
            events.pop_back();
            self.refuse(key, RefuseCode::TooMany as u64, "too many connections");
        }
        Ok(())
    }

    /// The peer ended a connection. If that comes before the OPEN, which was late or lost, there never is a connection.
    pub(crate) fn on_end(
        &mut self,
        id: u64,
        reason: CloseReason,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if id % 2 != self.parity && self.note_peer_id(id)? {
            return Ok(());
        }
        if let Some(key) = self.by_wire_id(id)?.map(|connection| connection.handle.key) {
            self.shut(key, reason, events);
        }
        Ok(())
    }

    /// Notes that the peer used one of its ids. Whether for the first time.
    fn note_peer_id(&mut self, id: u64) -> Result<bool, ProtocolViolation> {
        if id % 2 == self.parity {
            return Err(ProtocolViolation::new(Code::ConnectionState, "opened a connection with one of our ids"));
        }
        let index = id / 2;
        if self.peer_opened.contains(index) {
            return Ok(false);
        }
        // Bounds how many gaps the peer can leave.
        let first_missing = self.peer_opened.first().filter(|first| first.start == 0).map_or(0, |first| first.end);
        if index - first_missing.min(index) > 2 * MAX_CONNECTIONS as u64 {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "left connection ids out"));
        }
        self.peer_opened.insert(index..index + 1);
        Ok(true)
    }

    /// The connection a frame is for; `None`: it is closed, and the frame is late (W5.8).
    pub(crate) fn by_wire_id(&mut self, id: u64) -> Result<Option<&mut Connection>, ProtocolViolation> {
        if let Some(key) = self.by_wire_id.get(&id) {
            return Ok(self.get_mut(*key));
        }
        let was_open = if id % 2 == self.parity { id / 2 < self.opened } else { self.peer_opened.contains(id / 2) };
        if was_open {
            Ok(None)
        } else {
            Err(ProtocolViolation::new(Code::ConnectionState, "used a connection that was never opened"))
        }
    }

    // The application's decisions

    pub(crate) fn accept(&mut self, key: Key) -> Result<(), OperationError> {
        let connection = self.get_mut(key).ok_or(OperationError::NoConnection)?;
        match &connection.state {
            State::Offered => connection.state = State::Open,
            State::Closed(reason) => return Err(OperationError::Closed(reason.clone())),
            _ => return Ok(()),
        }
        self.control.push_back(SentFrame::Accept(key));
        Ok(())
    }

    pub(crate) fn refuse(&mut self, key: Key, code: u64, reason: &str) {
        self.end(key, End { refused: true, code, reason: reason.to_owned() });
    }

    pub(crate) fn close(&mut self, key: Key, code: u64, reason: &str) {
        self.end(key, End { refused: false, code, reason: reason.to_owned() });
    }

    /// Gives the handle back and tells the peer, where it does not know.
    fn end(&mut self, key: Key, end: End) {
        let Some(connection) = self.get_mut(key) else { return };
        connection.released = true;
        // Set before `shut`, which would free it; and only where the peer does not know.
        if connection.wire_id.is_some() && !matches!(connection.state, State::Closed(_)) {
            connection.end = Some(end);
            self.control.push_back(SentFrame::End(key));
        }
        self.shut(key, CloseReason::ClosedHere(Code::NoError), &mut VecDeque::new());
    }

    /// W5.22: with more than `most` bytes unread, ends the connections that have most of them, until it is no more.
    pub(crate) fn end_unread(&mut self, most: u64, events: &mut VecDeque<Event>) {
        // So few have no credit for it, but for what their windows have grown by.
        if self.len() as u64 <= most / CONNECTION_CREDIT_BYTES {
            return;
        }
        let open = self.slots.iter().filter_map(|slot| slot.connection.as_deref()).filter(|it| it.is_open());
        let mut unread: Vec<(u64, Key)> = open.map(|it| (it.receive_credit.unread(), it.handle.key)).collect();
        let mut sum: u64 = unread.iter().map(|(bytes, _)| bytes).sum();
        if sum <= most {
            return;
        }
        unread.sort_unstable_by(|one, other| other.cmp(one));
        for (bytes, key) in unread {
            if sum <= most {
                break;
            }
            sum -= bytes;
            if let Some(connection) = self.get_mut(key) {
                let reason = "its application does not read".to_owned();
                connection.end = Some(End { refused: false, code: Code::LimitExceeded as u64, reason });
                self.control.push_back(SentFrame::End(key));
            }
            self.shut(key, CloseReason::NotRead, events);
        }
    }

    // Queues

    /// Puts a connection in the queues of those with something to send.
    pub(crate) fn queue(&mut self, key: Key) {
        let slot = self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation);
        let Some(connection) = slot.and_then(|slot| slot.connection.as_deref_mut()) else { return };
        // Usually there are none, and this is asked for every message.
        if connection.has_due() {
            sort_due(connection, &mut self.lazy, &mut self.control);
        }
        for lane in Lane::ALL {
            if !connection.queued[lane as usize] && connection.has(lane) {
                connection.queued[lane as usize] = true;
                self.with[lane as usize].push_back(key);
            }
        }
    }

    /// Queues the frames of a connection that became due.
    fn queue_due(&mut self, key: Key) {
        let slot = self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation);
        let Some(connection) = slot.and_then(|slot| slot.connection.as_deref_mut()) else { return };
        sort_due(connection, &mut self.lazy, &mut self.control);
    }

    // Reading, which gives the peer credit

    pub(crate) fn receive_messages(
        &mut self,
        key: Key,
        most: u64,
        take: impl FnMut(&[u8]),
        pace: Pace,
    ) -> Result<u64, OperationError> {
        self.reading(key, |connection, spare| connection.receive_messages(most, take, pace, spare))
    }

    pub(crate) fn read(
        &mut self,
        key: Key,
        stream: StreamId,
        out: &mut [u8],
        pace: Pace,
    ) -> Result<Read, OperationError> {
        self.reading(key, |connection, spare| connection.read(stream, out, pace, spare))
    }

    /// Runs what an application says that it has consumed.
    pub(crate) fn consume(&mut self, key: Key, run: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.get_mut(key) {
            run(connection);
        }
        self.queue_due(key);
    }

    /// Whether there is something to tell of what was consumed.
    pub(crate) fn has_consumed(&self) -> bool {
        !self.lazy.is_empty()
    }

    fn reading<R>(
        &mut self,
        key: Key,
        run: impl FnOnce(&mut Connection, &mut u64) -> Result<R, OperationError>,
    ) -> Result<R, OperationError> {
        let mut spare = self.spare;
        let connection = self.get_mut(key).ok_or(OperationError::NoConnection)?;
        let result = run(connection, &mut spare);
        let has_due = connection.has_due();
        self.spare = spare;
        if has_due {
            self.queue_due(key);
        }
        result
    }

    // What became of what was sent

    pub(crate) fn on_acked(&mut self, frame: &SentFrame, events: &mut VecDeque<Event>) {
        if let Some(key) = frame.connection()
            && let Some(connection) = self.get_mut(key)
        {
            connection.on_acked(frame, events);
            // Seldom, and asked for every frame.
            let (has_due, is_over) = (connection.has_due(), connection.is_over());
            if has_due {
                self.queue_due(key);
            }
            if is_over {
                self.free_if_over(key);
            }
        }
    }

    pub(crate) fn on_lost(&mut self, frame: SentFrame) {
        match frame {
            SentFrame::Ack { .. } | SentFrame::Ping | SentFrame::AckFrequency => {}
            SentFrame::Messages { connection, .. }
            | SentFrame::MessagePart { connection, .. }
            | SentFrame::Stream { connection, .. }
            | SentFrame::ResetStream(connection, _)
            | SentFrame::StopStream(connection, _) => {
                if let Some(it) = self.get_mut(connection) {
                    it.on_lost(&frame);
                    self.queue(connection);
                }
            }
            SentFrame::MessagesConsumed(_) | SentFrame::Consumed(..) => {
                if self.set_consumed_queued(&frame, true) {
                    self.lazy.push_back(frame);
                    // Something for them to go with.
                    self.control.push_back(SentFrame::Ping);
                }
            }
            // Sent again with what is true then.
            _ => self.control.push_back(frame),
        }
    }
}

/// Queues the frames of a connection that became due, by what they go with.
fn sort_due(connection: &mut Connection, lazy: &mut VecDeque<SentFrame>, control: &mut VecDeque<SentFrame>) {
    for frame in connection.due.drain(..) {
        match frame {
            SentFrame::MessagesConsumed(_) | SentFrame::Consumed(..) => lazy.push_back(frame),
            _ => control.push_back(frame),
        }
    }
}
