//! One connection: a port, a lane of messages, one of unreliable datagrams, streams, and the credit they share.

mod lanes;
mod send;
mod streams;
pub(crate) mod table;

use std::collections::{BTreeMap, VecDeque};

use crate::codec::Reader;
use crate::datagram::DatagramQueue;
use crate::error::{CloseReason, Code, OperationError, ProtocolViolation};
use crate::event::{ConnectionHandle, Event};
use crate::flow::{Pace, ReceiveCredit, SendCredit};
use crate::frame::Part;
use crate::limits::{CONNECTION_CREDIT_BYTES, MAX_CONNECTION_CREDIT_BYTES};
use crate::message::{self, MessageReceiver, MessageSender};
use crate::recovery::sent::SentFrame;
use crate::stream::{Stream, StreamId};
use streams::Allowance;

/// Where a connection is in its table. The generation tells it from those that had the slot before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Where a connection is in its life. Only forward, but for `Opening`, which waits again when the peer restarts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Opened here; OPEN leaves when the tunnel is up.
    Waiting,
    /// OPEN was sent.
    Opening,
    /// OPEN was received; the application has not decided.
    Offered,
    Open,
    Closed(CloseReason),
}

/// What the peer is told of the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct End {
    pub(crate) refused: bool,
    pub(crate) code: u64,
    pub(crate) reason: String,
}

/// What the peer's handshake parameters allow this end to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerLimits {
    pub(crate) connection_credit: u64,
    pub(crate) stream_credit: u64,
    pub(crate) streams: u64,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) handle: ConnectionHandle,
    pub(crate) port: u16,
    pub(crate) is_opener: bool,
    /// The id on the wire; `None` while waiting.
    pub(crate) wire_id: Option<u64>,
    pub(crate) state: State,
    /// The application gave the handle back.
    pub(crate) released: bool,
    /// REFUSE or CLOSE_CONNECTION to be delivered; `None` again when it is acked.
    pub(crate) end: Option<End>,
    pub(crate) send_credit: SendCredit,
    pub(crate) receive_credit: ReceiveCredit,
    pub(crate) messages_out: MessageSender,
    pub(crate) messages_in: MessageReceiver,
    streams: BTreeMap<StreamId, Stream>,
    /// Streams with something to send, in turn.
    pub(crate) sendable: VecDeque<StreamId>,
    /// In the table's queue of connections with something for the lane to send.
    pub(crate) queued: [bool; Lane::ALL.len()],
    pub(crate) credit_queued: bool,
    pub(crate) messages_consumed_queued: bool,
    /// What the application takes is consumed when it says so, and not before (W5.16).
    is_consumed_later: bool,
    /// Messages that it took and has not said so of.
    messages_held: u64,
    messages_told: bool,
    messages_blocked: bool,
    pub(crate) datagrams_out: DatagramQueue,
    datagrams_in: DatagramQueue,
    datagrams_told: bool,
    /// Frames that became due, for the table to queue.
    due: Vec<SentFrame>,
    /// By direction: streams opened here, and how many the peer allows in all; streams the peer opened, and how many it may.
    ours: [Allowance; 2],
    theirs: [Allowance; 2],
    peer_stream_credit: u64,
}

/// What data is sent of, the first before the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    Messages,
    Datagrams,
    Streams,
}

impl Lane {
    pub(crate) const ALL: [Self; 3] = [Self::Messages, Self::Datagrams, Self::Streams];
}

// What limits::MAX_CONNECTIONS counts on: an idle one has nothing beside itself.
const _: () = assert!(size_of::<Connection>() <= 1024);

/// Tells of something that the application then looks at, unless that is what it is told of anyway.
fn tell_once(events: &mut VecDeque<Event>, event: Event) {
    if events.back() != Some(&event) {
        events.push_back(event);
    }
}

impl Connection {
    pub(crate) fn new(handle: ConnectionHandle, port: u16, is_opener: bool, state: State) -> Self {
        Self {
            handle,
            port,
            is_opener,
            wire_id: None,
            state,
            released: false,
            end: None,
            send_credit: SendCredit::default(),
            receive_credit: ReceiveCredit::new(CONNECTION_CREDIT_BYTES),
            messages_out: MessageSender::default(),
            messages_in: MessageReceiver::default(),
            streams: BTreeMap::new(),
            sendable: VecDeque::new(),
            queued: [false; Lane::ALL.len()],
            credit_queued: false,
            messages_consumed_queued: false,
            is_consumed_later: false,
            messages_held: 0,
            messages_told: false,
            messages_blocked: false,
            datagrams_out: DatagramQueue::default(),
            datagrams_in: DatagramQueue::default(),
            datagrams_told: false,
            due: Vec::new(),
            ours: Default::default(),
            theirs: Default::default(),
            peer_stream_credit: 0,
        }
    }

    /// It has this id on the wire from now on.
    pub(crate) fn set_wire_id(&mut self, id: u64) {
        self.wire_id = Some(id);
        self.messages_out.set_connection(id);
    }

    /// The tunnel is up: this is what the peer allows. Streams written while waiting get their credit, and their turn.
    pub(crate) fn set_peer_limits(&mut self, limits: &PeerLimits) {
        self.send_credit.raise(limits.connection_credit);
        self.peer_stream_credit = limits.stream_credit;
        self.ours.iter_mut().for_each(|allowance| allowance.limit = limits.streams);
        for send in self.streams.values_mut().filter_map(|stream| stream.send.as_mut()) {
            send.raise_credit(limits.stream_credit);
        }
        self.queue_all_streams();
    }

    /// Whether data may be sent: only once accepted (W5.7).
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Ends it. Whether that was news; the event is told then.
    pub(crate) fn close(&mut self, reason: CloseReason, events: &mut VecDeque<Event>) -> bool {
        if matches!(self.state, State::Closed(_)) {
            return false;
        }
        self.state = State::Closed(reason.clone());
        self.sendable.clear();
        if !self.released {
            if reason == CloseReason::PeerRestarted {
                self.tell_consumed(events);
            }
            events.push_back(Event::Closed { connection: self.handle, reason });
        }
        true
    }

    /// Whether it is in the queue of those with something for the lane to send.
    #[inline]
    pub(crate) fn has_turn(&self, lane: Lane) -> bool {
        self.queued[lane as usize]
    }

    /// Whether frames became due.
    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Neither the application nor the peer will ask for it again.
    pub(crate) fn is_over(&self) -> bool {
        self.released && self.end.is_none() && matches!(self.state, State::Closed(_))
    }

    #[inline]
    fn check(&self) -> Result<(), OperationError> {
        match &self.state {
            State::Closed(reason) => Err(self.why_over(reason)),
            _ => Ok(()),
        }
    }

    #[cold]
    fn why_over(&self, reason: &CloseReason) -> OperationError {
        match reason {
            CloseReason::PeerRestarted => {
                OperationError::PeerRestarted { consumed_offset: self.messages_out.consumed() }
            }
            reason => OperationError::Closed(reason.clone()),
        }
    }

    /// What a restarted peer's application had read of what was written here.
    fn tell_consumed(&self, events: &mut VecDeque<Event>) {
        let connection = self.handle;
        let streams =
            self.streams.iter().filter_map(|(id, stream)| Some((Some(*id), stream.send.as_ref()?.consumed())));
        let messages = std::iter::once((None, self.messages_out.consumed()));
        events.extend(streams.chain(messages).map(|(stream, consumed_offset)| Event::PeerRestarted {
            connection,
            stream,
            consumed_offset,
        }));
    }

    // What the application does.

    #[inline]
    pub(crate) fn send_message(&mut self, message: &[u8]) -> Result<(), OperationError> {
        self.check()?;
        if !self.messages_out.has_room(message.len()) {
            self.messages_blocked = true;
            return Err(OperationError::Blocked);
        }
        self.messages_out.push(message);
        Ok(())
    }

    /// Lends the next messages to `take`, as many as there are or `most`; how many those were.
    pub(crate) fn receive_messages(
        &mut self,
        most: u64,
        mut take: impl FnMut(&[u8]),
        pace: Pace,
        spare: &mut u64,
    ) -> Result<u64, OperationError> {
        let (mut taken, mut used) = (0, 0);
        while taken < most
            && let Some(message) = self.messages_in.take()
        {
            used += message::cost(message.len());
            taken += 1;
            take(message);
        }
        if taken > 0 {
            self.consume(used, 0, pace, spare);
            if self.is_consumed_later {
                self.messages_held += taken;
            } else {
                self.tell_messages_consumed();
            }
        }
        if taken < most {
            self.messages_told = false;
            self.on_drained();
        }
        if taken == 0 {
            self.check()?;
        }
        Ok(taken)
    }

    /// See [`crate::Endpoint::consume_later`].
    pub(crate) fn consume_later(&mut self) {
        self.is_consumed_later = true;
    }

    /// The application says that it has consumed messages of those that it took.
    pub(crate) fn consume_messages(&mut self, count: u64) {
        self.messages_held = self.messages_held.saturating_sub(count);
        self.tell_messages_consumed();
    }

    fn tell_messages_consumed(&mut self) {
        if !std::mem::replace(&mut self.messages_consumed_queued, true) {
            self.due.push(SentFrame::MessagesConsumed(self.handle.key));
        }
    }

    pub(crate) fn send_datagram(&mut self, datagram: &[u8]) -> Result<(), OperationError> {
        self.check()?;
        self.datagrams_out.push(datagram);
        Ok(())
    }

    /// Appends the next unreliable datagram to `out`; `None`: nothing now.
    pub(crate) fn receive_datagram(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, OperationError> {
        let Some(datagram) = self.datagrams_in.first() else {
            self.datagrams_told = false;
            self.check()?;
            return Ok(None);
        };
        let length = datagram.len();
        out.extend_from_slice(datagram);
        self.datagrams_in.pop();
        Ok(Some(length))
    }

    /// Unreliable datagrams dropped for want of room: before they were sent, before they were received.
    pub(crate) fn datagrams_dropped(&self) -> [u64; 2] {
        [self.datagrams_out.dropped(), self.datagrams_in.dropped()]
    }

    /// Whether everything that was sent has arrived at the peer's engine.
    pub(crate) fn is_delivered(&self) -> bool {
        let streams = || self.streams.values().filter_map(|stream| stream.send.as_ref());
        self.messages_out.is_empty() && streams().all(|send| send.is_delivered())
    }

    /// Bytes of the connection's credit were consumed. Its window becomes at least as large as said, out of what the tunnel has
    /// to spare.
    fn consume(&mut self, bytes: u64, window: u64, pace: Pace, spare: &mut u64) {
        let before = self.receive_credit.window();
        let most = (before + *spare).min(MAX_CONNECTION_CREDIT_BYTES);
        self.receive_credit.widen(window.min(most));
        let due = self.receive_credit.on_consumed(bytes, pace, most);
        *spare -= self.receive_credit.window() - before;
        if due {
            self.tell_credit();
        }
    }

    /// All that arrived of a stream, or all messages, were read.
    fn on_drained(&mut self) {
        if self.receive_credit.on_drained() {
            self.tell_credit();
        }
    }

    fn tell_credit(&mut self) {
        if !std::mem::replace(&mut self.credit_queued, true) {
            self.due.push(SentFrame::Credit(self.handle.key));
        }
    }

    /// Messages that the application has consumed.
    pub(crate) fn messages_consumed(&self) -> u64 {
        self.messages_in.taken() - self.messages_held
    }

    /// Bytes by which its window has grown.
    pub(crate) fn grown(&self) -> u64 {
        self.receive_credit.window() - CONNECTION_CREDIT_BYTES
    }

    // What the peer does.

    /// MESSAGEs of this connection, which has this id, come next in a packet.
    pub(crate) fn on_messages(
        &mut self,
        id: u64,
        frames: &mut Reader<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        let counted = self.messages_in.on_messages(id, frames)?;
        self.on_message_bytes(counted, events)
    }

    pub(crate) fn on_message(
        &mut self,
        number: u16,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        let counted = self.messages_in.on_message(number, payload)?;
        self.on_message_bytes(counted, events)
    }

    pub(crate) fn on_message_part(
        &mut self,
        number: u16,
        part: Part<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        let counted = self.messages_in.on_part(number, part)?;
        self.on_message_bytes(counted, events)
    }

    fn on_message_bytes(&mut self, counted: u64, events: &mut VecDeque<Event>) -> Result<(), ProtocolViolation> {
        self.receive_credit
            .on_received(counted)
            .ok_or(ProtocolViolation::new(Code::CreditExceeded, "sent messages beyond the connection's credit"))?;
        if self.messages_in.is_readable() && !std::mem::replace(&mut self.messages_told, true) {
            events.push_back(Event::MessagesReadable { connection: self.handle });
        }
        Ok(())
    }

    pub(crate) fn on_messages_consumed(
        &mut self,
        number: u64,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if self.messages_out.on_consumed(number)? {
            tell_once(events, Event::MessagesConsumed { connection: self.handle });
        }
        Ok(())
    }

    pub(crate) fn on_datagram(&mut self, payload: &[u8], events: &mut VecDeque<Event>) {
        self.datagrams_in.push(payload);
        if !std::mem::replace(&mut self.datagrams_told, true) {
            events.push_back(Event::DatagramsReadable { connection: self.handle });
        }
    }

    pub(crate) fn on_credit(&mut self, limit: u64) {
        if self.send_credit.raise(limit) {
            self.queue_all_streams();
        }
    }

    // What became of what was sent.

    pub(crate) fn on_acked(&mut self, frame: &SentFrame, events: &mut VecDeque<Event>) {
        match *frame {
            SentFrame::Messages { start, bytes, count, .. } => {
                let freed = self.messages_out.on_acked(start, bytes, count);
                self.on_messages_acked(freed, events);
            }
            SentFrame::MessagePart { number, offset, length, .. } => {
                let part = u64::from(offset)..u64::from(offset) + u64::from(length);
                let freed = self.messages_out.on_part_acked(number, part);
                self.on_messages_acked(freed, events);
            }
            SentFrame::Stream { stream, .. } | SentFrame::ResetStream(_, stream) | SentFrame::StopStream(_, stream) => {
                self.on_stream_acked(StreamId(stream), frame, events)
            }
            SentFrame::End(_) => self.end = None,
            _ => {}
        }
    }

    fn on_messages_acked(&mut self, freed: bool, events: &mut VecDeque<Event>) {
        if freed && std::mem::take(&mut self.messages_blocked) {
            events.push_back(Event::MessagesWritable { connection: self.handle });
        }
    }

    pub(crate) fn on_lost(&mut self, frame: &SentFrame) {
        match *frame {
            SentFrame::Messages { start, bytes, .. } => self.messages_out.on_lost(start, bytes),
            SentFrame::MessagePart { number, offset, length, .. } => {
                let part = u64::from(offset)..u64::from(offset) + u64::from(length);
                self.messages_out.on_part_lost(number, part);
            }
            SentFrame::Stream { stream, .. } | SentFrame::ResetStream(_, stream) | SentFrame::StopStream(_, stream) => {
                self.on_stream_lost(StreamId(stream), frame)
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
