//! One connection: a port, a lane of messages, streams, and the credit they share.

pub(crate) mod send;
pub(crate) mod table;

use std::collections::{BTreeMap, VecDeque};

use crate::error::{CloseReason, Code, OperationError, ProtocolViolation};
use crate::event::{ConnectionHandle, Event};
use crate::flow::{ReceiveCredit, SendCredit};
use crate::limits::{CONNECTION_CREDIT_BYTES, MAX_STREAMS, STREAM_CREDIT_BYTES};
use crate::message::{self, MessageReceiver, MessageSender};
use crate::recovery::sent::SentFrame;
use crate::stream::{Stream, StreamId};

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
    /// In the table's queues of connections with messages, with stream bytes to send.
    pub(crate) messages_queued: bool,
    pub(crate) streams_queued: bool,
    pub(crate) credit_queued: bool,
    stream_limit_queued: bool,
    messages_told: bool,
    messages_blocked: bool,
    /// Streams opened here, and how many the peer allows in all.
    opened: u64,
    open_limit: u64,
    peer_stream_credit: u64,
    /// Streams the peer opened, and how many it may open in all.
    peer_opened: u64,
    peer_limit: u64,
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
            messages_queued: false,
            streams_queued: false,
            credit_queued: false,
            stream_limit_queued: false,
            messages_told: false,
            messages_blocked: false,
            opened: 0,
            open_limit: MAX_STREAMS,
            peer_stream_credit: 0,
            peer_opened: 0,
            peer_limit: MAX_STREAMS,
        }
    }

    /// The tunnel is up: this is what the peer allows. Streams written while waiting get their credit, and their turn.
    pub(crate) fn set_peer_limits(&mut self, limits: &PeerLimits) {
        self.send_credit.raise(limits.connection_credit);
        self.peer_stream_credit = limits.stream_credit;
        self.open_limit = limits.streams;
        for stream in self.streams.values_mut() {
            stream.send.raise_credit(limits.stream_credit);
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
            events.push_back(Event::Closed { connection: self.handle, reason });
        }
        true
    }

    /// Neither the application nor the peer will ask for it again.
    pub(crate) fn is_over(&self) -> bool {
        self.released && self.end.is_none() && matches!(self.state, State::Closed(_))
    }

    fn check(&self) -> Result<(), OperationError> {
        match &self.state {
            State::Closed(reason) => Err(OperationError::Closed(reason.clone())),
            _ => Ok(()),
        }
    }

    // What the application does.

    pub(crate) fn send_message(&mut self, message: &[u8]) -> Result<(), OperationError> {
        self.check()?;
        if !self.messages_out.has_room(message.len()) {
            self.messages_blocked = true;
            return Err(OperationError::Blocked);
        }
        self.messages_out.push(message);
        Ok(())
    }

    /// Appends the next message to `out`; `None`: nothing now. Whether the peer should be told of more credit.
    pub(crate) fn receive_message(&mut self, out: &mut Vec<u8>) -> Result<(Option<usize>, bool), OperationError> {
        match self.messages_in.take(out) {
            Some(length) => Ok((Some(length), self.receive_credit.on_consumed(message::cost(length)))),
            None => {
                self.messages_told = false;
                self.check()?;
                Ok((None, false))
            }
        }
    }

    pub(crate) fn open_stream(&mut self) -> Result<StreamId, OperationError> {
        self.check()?;
        if self.opened >= self.open_limit {
            return Err(OperationError::TooMany { what: "streams", allowed: self.open_limit });
        }
        let id = StreamId::bidirectional(self.opened, self.is_opener);
        self.opened += 1;
        self.streams.insert(id, Stream::new(self.peer_stream_credit, STREAM_CREDIT_BYTES));
        Ok(id)
    }

    fn stream(&mut self, id: StreamId) -> Result<&mut Stream, OperationError> {
        self.streams.get_mut(&id).ok_or(OperationError::NoStream)
    }

    pub(crate) fn write(&mut self, id: StreamId, bytes: &[u8]) -> Result<usize, OperationError> {
        self.check()?;
        let stream = self.stream(id)?;
        let written = stream.send.write(bytes).ok_or(OperationError::Finished)?;
        stream.write_blocked |= written < bytes.len();
        self.queue_stream(id);
        if written == 0 && !bytes.is_empty() { Err(OperationError::Blocked) } else { Ok(written) }
    }

    pub(crate) fn finish(&mut self, id: StreamId) -> Result<(), OperationError> {
        self.check()?;
        if !self.stream(id)?.send.finish() {
            return Err(OperationError::Finished);
        }
        self.queue_stream(id);
        Ok(())
    }

    /// Reads from a stream; what credit frames the peer should get: the stream's, the connection's.
    pub(crate) fn read(
        &mut self,
        id: StreamId,
        out: &mut [u8],
    ) -> Result<(crate::stream::recv::Read, bool, bool), OperationError> {
        use crate::stream::recv::Read;
        let Some(stream) = self.streams.get_mut(&id) else {
            self.check()?;
            return Err(OperationError::NoStream);
        };
        let (read, stream_credit) = stream.recv.read(out);
        let consumed = match read {
            Read::Bytes(length) => length as u64,
            Read::Blocked => {
                stream.readable_told = false;
                self.check()?;
                0
            }
            Read::End => {
                self.forget_if_over(id);
                0
            }
        };
        let connection_credit = consumed > 0 && self.receive_credit.on_consumed(consumed);
        Ok((read, stream_credit, connection_credit))
    }

    /// Whether everything that was sent has arrived at the peer's engine.
    pub(crate) fn is_delivered(&self) -> bool {
        self.messages_out.is_empty() && self.streams.values().all(|stream| stream.send.is_delivered())
    }

    // What the peer does.

    pub(crate) fn on_message(
        &mut self,
        number: u16,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if self.messages_in.on_message(number, payload)? {
            self.receive_credit
                .on_received(message::cost(payload.len()))
                .ok_or(ProtocolViolation::new(Code::CreditExceeded, "sent messages beyond the connection's credit"))?;
        }
        if self.messages_in.is_readable() && !self.messages_told {
            self.messages_told = true;
            events.push_back(Event::MessagesReadable { connection: self.handle });
        }
        Ok(())
    }

    pub(crate) fn on_stream(
        &mut self,
        id: u64,
        offset: u64,
        fin: bool,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        let id = self.known_stream(id)?;
        self.open_up_to(id, events)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(()); // over, and this is a repetition
        };
        let grown = stream.recv.on_piece(offset, payload, fin)?;
        if stream.recv.is_readable() && !std::mem::replace(&mut stream.readable_told, true) {
            events.push_back(Event::StreamReadable { connection: self.handle, stream: id });
        }
        self.receive_credit
            .on_received(grown)
            .ok_or(ProtocolViolation::new(Code::CreditExceeded, "sent stream bytes beyond the connection's credit"))?;
        Ok(())
    }

    pub(crate) fn on_stream_credit(&mut self, id: u64, limit: u64) -> Result<(), ProtocolViolation> {
        let id = self.known_stream(id)?;
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.send.raise_credit(limit)
        {
            self.queue_stream(id);
        }
        Ok(())
    }

    pub(crate) fn on_credit(&mut self, limit: u64) {
        if self.send_credit.raise(limit) {
            self.queue_all_streams();
        }
    }

    pub(crate) fn on_stream_limit(&mut self, limit: u64) {
        self.open_limit = self.open_limit.max(limit);
    }

    /// A stream that can be: of a kind that this version has, and opened here if it is one of ours.
    fn known_stream(&self, id: u64) -> Result<StreamId, ProtocolViolation> {
        let id = StreamId(id);
        let ours = id.is_by_opener() == self.is_opener;
        if !id.is_bidirectional() || ours && id.index() >= self.opened {
            return Err(ProtocolViolation::new(Code::StreamState, "used a stream that was never opened"));
        }
        Ok(id)
    }

    /// The peer's first frame of a stream opens it, and those before it that are still on their way.
    fn open_up_to(&mut self, id: StreamId, events: &mut VecDeque<Event>) -> Result<(), ProtocolViolation> {
        if id.is_by_opener() == self.is_opener {
            return Ok(());
        }
        if id.index() >= self.peer_limit {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "opened too many streams"));
        }
        while self.peer_opened <= id.index() {
            let id = StreamId::bidirectional(self.peer_opened, !self.is_opener);
            self.peer_opened += 1;
            self.streams.insert(id, Stream::new(self.peer_stream_credit, STREAM_CREDIT_BYTES));
            events.push_back(Event::StreamOpened { connection: self.handle, stream: id });
        }
        Ok(())
    }

    fn forget_if_over(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.streams.remove(&id);
            if id.is_by_opener() != self.is_opener {
                self.peer_limit += 1;
                self.stream_limit_queued = true;
            }
        }
    }

    /// The STREAM_LIMIT to send, if one is due.
    pub(crate) fn take_stream_limit(&mut self) -> Option<u64> {
        std::mem::take(&mut self.stream_limit_queued).then_some(self.peer_limit)
    }

    pub(crate) fn stream_limit(&self) -> u64 {
        self.peer_limit
    }

    /// The offset for a STREAM_CREDIT; `None`: the stream needs none any more.
    pub(crate) fn stream_credit(&mut self, id: StreamId) -> Option<u64> {
        let stream = self.streams.get_mut(&id)?;
        stream.credit_queued = false;
        (!stream.recv.has_ended()).then(|| stream.recv.credit_limit())
    }

    /// Marks a STREAM_CREDIT as queued. Whether it was not.
    pub(crate) fn queue_stream_credit(&mut self, id: StreamId) -> bool {
        self.streams.get_mut(&id).is_some_and(|stream| !std::mem::replace(&mut stream.credit_queued, true))
    }

    // What became of what was sent.

    pub(crate) fn on_acked(&mut self, frame: &SentFrame, events: &mut VecDeque<Event>) {
        match *frame {
            SentFrame::Message { number, .. } => {
                let freed = self.messages_out.on_acked(number);
                if freed && std::mem::take(&mut self.messages_blocked) {
                    events.push_back(Event::MessagesWritable { connection: self.handle });
                }
            }
            SentFrame::Stream { stream: id, offset, length, fin, .. } => {
                let id = StreamId(id);
                let Some(stream) = self.streams.get_mut(&id) else { return };
                let freed = stream.send.on_acked(offset, length, fin);
                if freed && stream.send.has_room() && std::mem::take(&mut stream.write_blocked) {
                    events.push_back(Event::StreamWritable { connection: self.handle, stream: id });
                }
                self.forget_if_over(id);
            }
            SentFrame::End(_) => self.end = None,
            _ => {}
        }
    }

    pub(crate) fn on_lost(&mut self, frame: &SentFrame) {
        match *frame {
            SentFrame::Message { number, .. } => self.messages_out.on_lost(number),
            SentFrame::Stream { stream, offset, length, fin, .. } => {
                let id = StreamId(stream);
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.send.on_lost(offset, length, fin);
                    self.queue_stream(id);
                }
            }
            _ => {}
        }
    }
}
