//! The streams of a connection: opened, written, read, given up, forgotten.

use std::collections::VecDeque;

use super::{Connection, tell_once};
use crate::error::{Code, OperationError, ProtocolViolation};
use crate::event::Event;
use crate::flow::Pace;
use crate::limits::{MAX_STREAMS, STREAM_CREDIT_BYTES, STREAM_LIMIT_STEP};
use crate::recovery::sent::SentFrame;
use crate::stream::recv::{Counted, Read, RecvStream};
use crate::stream::send::SendStream;
use crate::stream::{Direction, Stream, StreamId};

/// Streams of one direction that one end has opened, and how many it may open in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    opened: u64,
    pub(super) limit: u64,
    /// Of the peer's: the limit it was told, or will be in the next STREAM_LIMIT.
    told: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { opened: 0, limit: MAX_STREAMS, told: MAX_STREAMS }
    }
}

impl Allowance {
    /// Whether the peer should be told of a limit that has grown: when it is worth a frame, or the peer may soon wait for it.
    fn take_due(&mut self) -> bool {
        let due = self.limit >= self.told + STREAM_LIMIT_STEP
            || self.limit > self.told && self.told < self.opened + STREAM_LIMIT_STEP;
        if due {
            self.told = self.limit;
        }
        due
    }
}

impl Connection {
    // What the application does.

    pub(crate) fn open_stream(&mut self, direction: Direction) -> Result<StreamId, OperationError> {
        self.check()?;
        let allowance = &mut self.ours[direction as usize];
        if allowance.opened >= allowance.limit {
            return Err(OperationError::TooMany { what: "streams", allowed: allowance.limit });
        }
        let id = StreamId::new(allowance.opened, direction, self.is_opener);
        allowance.opened += 1;
        self.insert_stream(id);
        Ok(id)
    }

    fn insert_stream(&mut self, id: StreamId) {
        let ours = self.is_ours(id);
        let send = (ours || id.is_bidirectional()).then(|| SendStream::new(self.peer_stream_credit));
        let recv = (!ours || id.is_bidirectional()).then(|| RecvStream::new(STREAM_CREDIT_BYTES));
        self.streams.insert(id, Stream::new(send, recv));
    }

    fn is_ours(&self, id: StreamId) -> bool {
        id.is_by_opener() == self.is_opener
    }

    /// As [`Connection::check`], for a call about a stream. One that is gone was consumed.
    fn check_stream(&self, id: StreamId) -> Result<(), OperationError> {
        match self.check() {
            Err(OperationError::PeerRestarted { .. }) => {
                let stream = self.streams.get(&id).ok_or(OperationError::NoStream)?;
                let consumed_offset = stream.send.as_ref().map_or(0, SendStream::consumed);
                Err(OperationError::PeerRestarted { consumed_offset })
            }
            result => result,
        }
    }

    fn stream(&mut self, id: StreamId) -> Result<&mut Stream, OperationError> {
        self.streams.get_mut(&id).ok_or(OperationError::NoStream)
    }

    fn sending(&mut self, id: StreamId) -> Result<&mut SendStream, OperationError> {
        self.stream(id)?.send.as_mut().ok_or(OperationError::Finished)
    }

    /// Writes what fits into a send buffer of `capacity` bytes.
    pub(crate) fn write_stream_bytes(
        &mut self,
        id: StreamId,
        bytes: &[u8],
        capacity: usize,
    ) -> Result<usize, OperationError> {
        self.check_stream(id)?;
        let stream = self.streams.get_mut(&id).ok_or(OperationError::NoStream)?;
        let written = stream.send.as_mut().ok_or(OperationError::Finished)?.write(bytes, capacity)?;
        stream.write_blocked |= written < bytes.len();
        stream.queue(id, self.send_credit.left(), &mut self.sendable);
        if written == 0 && !bytes.is_empty() { Err(OperationError::Blocked) } else { Ok(written) }
    }

    pub(crate) fn finish(&mut self, id: StreamId) -> Result<(), OperationError> {
        self.check_stream(id)?;
        self.sending(id)?.finish()?;
        self.queue_stream(id);
        Ok(())
    }

    /// Gives up writing. Nothing, when all of it is delivered or was given up before.
    pub(crate) fn reset(&mut self, id: StreamId, code: u64) -> Result<(), OperationError> {
        self.check_stream(id)?;
        if self.sending(id)?.reset(code) {
            self.queue_stream(id);
        }
        Ok(())
    }

    /// Gives up reading. Nothing, when all of it was read or given up before.
    pub(crate) fn stop(&mut self, id: StreamId, code: u64) -> Result<(), OperationError> {
        self.check_stream(id)?;
        let recv = self.stream(id)?.recv.as_mut().ok_or(OperationError::NoStream)?;
        if let Some(discarded) = recv.stop(code) {
            self.discard(discarded);
            self.queue_stream(id);
            self.forget_if_over(id);
        }
        Ok(())
    }

    pub(crate) fn read(
        &mut self,
        id: StreamId,
        out: &mut [u8],
        pace: Pace,
        spare: &mut u64,
    ) -> Result<Read, OperationError> {
        let key = self.handle.key;
        let Some(stream) = self.streams.get_mut(&id) else {
            self.check_stream(id)?;
            return Err(OperationError::NoStream);
        };
        let recv = stream.recv.as_mut().ok_or(OperationError::NoStream)?;
        let (read, credit_due) = match recv.read(out, pace) {
            Ok(read) => read,
            Err(error) => {
                self.forget_if_over(id);
                return Err(error);
            }
        };
        if credit_due && !std::mem::replace(&mut stream.credit_queued, true) {
            self.due.push(SentFrame::StreamCredit(key, id.0));
        }
        match read {
            Read::Bytes(length) => {
                if self.is_consumed_later {
                    recv.hold(length as u64);
                } else if !std::mem::replace(&mut stream.consumed_queued, true) {
                    self.due.push(SentFrame::Consumed(key, id.0));
                }
                // Twice the stream's window, as at the beginning: one stalled stream must not stop the others.
                let window = 2 * recv.window();
                self.consume(length as u64, window, pace, spare);
            }
            Read::Blocked => {
                stream.readable_told = false;
                self.on_drained();
                self.check_stream(id)?;
            }
            Read::End => {
                self.on_drained();
                self.tell_all_consumed(id);
            }
        }
        Ok(read)
    }

    /// The application says that it has consumed bytes of those that it read.
    pub(crate) fn consume_bytes(&mut self, id: StreamId, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        // What was stopped or reset is over in another way.
        let Some(recv) = stream.recv.as_mut().filter(|recv| recv.needs_consumed()) else { return };
        recv.consume(bytes);
        if recv.is_over() {
            self.tell_all_consumed(id);
        } else if !std::mem::replace(&mut stream.consumed_queued, true) {
            self.due.push(SentFrame::Consumed(self.handle.key, id.0));
        }
    }

    /// A stream was read to its end: once all of it is consumed, that is told at once (W5.16).
    fn tell_all_consumed(&mut self, id: StreamId) {
        let recv = self.streams.get(&id).and_then(|stream| stream.recv.as_ref());
        if let Some(recv) = recv.filter(|recv| recv.is_over()) {
            self.due.push(SentFrame::AllConsumed(self.handle.key, id.0, recv.consumed()));
            self.forget_if_over(id);
        }
    }

    /// Below which offset the peer's application has read a stream.
    pub(crate) fn consumed(&self, id: StreamId) -> Option<u64> {
        self.streams.get(&id)?.send.as_ref().map(SendStream::consumed)
    }

    // What the peer does.

    pub(crate) fn on_stream(
        &mut self,
        id: u64,
        offset: u64,
        fin: bool,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        self.on_arrival(id, events, |recv| recv.on_piece(offset, payload, fin))
    }

    pub(crate) fn on_reset_stream(
        &mut self,
        id: u64,
        code: u64,
        length: u64,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        self.on_arrival(id, events, |recv| recv.on_reset(code, length))
    }

    /// Something arrived for the receiving half of a stream.
    fn on_arrival(
        &mut self,
        id: u64,
        events: &mut VecDeque<Event>,
        run: impl FnOnce(&mut RecvStream) -> Result<Counted, ProtocolViolation>,
    ) -> Result<(), ProtocolViolation> {
        let id = self.known_stream(id, events)?;
        if self.is_ours(id) && !id.is_bidirectional() {
            return Err(ProtocolViolation::new(Code::StreamState, "wrote on a stream that is ours alone"));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(()); // over, and this is a repetition
        };
        let Some(recv) = &mut stream.recv else { return Ok(()) };
        let was_reset = recv.reset_code().is_some();
        let counted = run(recv)?;
        if recv.is_readable() && !std::mem::replace(&mut stream.readable_told, true) {
            events.push_back(Event::StreamReadable { connection: self.handle, stream: id });
        }
        if !was_reset && let Some(code) = recv.reset_code() {
            events.push_back(Event::StreamReset { connection: self.handle, stream: id, code });
        }
        let is_done = recv.is_over();
        self.receive_credit
            .on_received(counted.received)
            .ok_or(ProtocolViolation::new(Code::CreditExceeded, "sent stream bytes beyond the connection's credit"))?;
        if counted.discarded > 0 {
            self.discard(counted.discarded);
        }
        if is_done {
            self.forget_if_over(id);
        }
        Ok(())
    }

    /// Something arrived for the sending half of a stream; `None`: it is over, and this is late.
    fn sender_of(&mut self, id: u64, events: &mut VecDeque<Event>) -> Result<Option<StreamId>, ProtocolViolation> {
        let id = self.known_stream(id, events)?;
        if !self.is_ours(id) && !id.is_bidirectional() {
            return Err(ProtocolViolation::new(Code::StreamState, "answered on a stream that is the peer's alone"));
        }
        Ok(self.streams.contains_key(&id).then_some(id))
    }

    pub(crate) fn on_stream_credit(
        &mut self,
        id: u64,
        limit: u64,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if let Some(id) = self.sender_of(id, events)?
            && let Ok(send) = self.sending(id)
            && send.raise_credit(limit)
        {
            self.queue_stream(id);
        }
        Ok(())
    }

    pub(crate) fn on_stop_stream(
        &mut self,
        id: u64,
        code: u64,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if let Some(id) = self.sender_of(id, events)?
            && let Ok(send) = self.sending(id)
            && send.on_stop(code)
        {
            events.push_back(Event::StreamStopped { connection: self.handle, stream: id, code });
            self.queue_stream(id);
            self.forget_if_over(id);
        }
        Ok(())
    }

    pub(crate) fn on_consumed(
        &mut self,
        id: u64,
        offset: u64,
        events: &mut VecDeque<Event>,
    ) -> Result<(), ProtocolViolation> {
        if let Some(id) = self.sender_of(id, events)?
            && let Ok(send) = self.sending(id)
            && send.on_consumed(offset)?
        {
            tell_once(events, Event::StreamConsumed { connection: self.handle, stream: id });
            self.forget_if_over(id);
        }
        Ok(())
    }

    pub(crate) fn on_stream_limit(&mut self, direction: Direction, limit: u64) {
        let ours = &mut self.ours[direction as usize];
        ours.limit = ours.limit.max(limit);
    }

    /// W5.17: the stream that a frame of the peer is for: one of ours that was opened, or one of its own. The first frame of one of its
    /// own opens it, and those before it that are still on their way.
    fn known_stream(&mut self, id: u64, events: &mut VecDeque<Event>) -> Result<StreamId, ProtocolViolation> {
        let id = StreamId(id);
        let at = id.direction() as usize;
        if self.is_ours(id) {
            if id.index() >= self.ours[at].opened {
                return Err(ProtocolViolation::new(Code::StreamState, "used a stream that was never opened"));
            }
            return Ok(id);
        }
        if id.index() < self.theirs[at].opened {
            return Ok(id);
        }
        if id.index() >= self.theirs[at].limit {
            return Err(ProtocolViolation::new(Code::LimitExceeded, "opened too many streams"));
        }
        while self.theirs[at].opened <= id.index() {
            let opened = StreamId::new(self.theirs[at].opened, id.direction(), !self.is_opener);
            self.theirs[at].opened += 1;
            self.insert_stream(opened);
            events.push_back(Event::StreamOpened { connection: self.handle, stream: opened });
        }
        self.tell_stream_limit(id.direction());
        Ok(id)
    }

    fn tell_stream_limit(&mut self, direction: Direction) {
        if self.theirs[direction as usize].take_due() {
            self.due.push(SentFrame::StreamLimit(self.handle.key, direction));
        }
    }

    /// Bytes arrived that nobody will read.
    fn discard(&mut self, bytes: u64) {
        // Says nothing about how fast the application reads.
        let pace = Pace { now: crate::Instant::ORIGIN, rtt: None };
        self.consume(bytes, 0, pace, &mut 0);
    }

    fn forget_if_over(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.streams.remove(&id);
            if !self.is_ours(id) {
                self.theirs[id.direction() as usize].limit += 1;
                self.tell_stream_limit(id.direction());
            }
        }
    }

    pub(super) fn on_stream_acked(&mut self, id: StreamId, frame: &SentFrame, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let freed = stream.on_acked(frame);
        if freed && stream.write_blocked && stream.send.as_ref().is_some_and(SendStream::has_room) {
            stream.write_blocked = false;
            events.push_back(Event::StreamWritable { connection: self.handle, stream: id });
        }
        if stream.is_over() {
            self.forget_if_over(id);
        }
    }

    pub(super) fn on_stream_lost(&mut self, id: StreamId, frame: &SentFrame) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.on_lost(frame);
            self.queue_stream(id);
        }
    }

    // Credit and consumption, as the frames that say so are written.

    /// What a STREAM_LIMIT says.
    pub(crate) fn stream_limit(&self, direction: Direction) -> u64 {
        self.theirs[direction as usize].told
    }

    /// The offset for a STREAM_CREDIT; `None`: the stream needs none any more.
    pub(crate) fn stream_credit(&mut self, id: StreamId) -> Option<u64> {
        let stream = self.streams.get_mut(&id)?;
        stream.credit_queued = false;
        stream.recv.as_ref().filter(|recv| recv.needs_credit()).map(RecvStream::credit_limit)
    }

    /// The offset for a CONSUMED; `None`: there is an AllConsumed in its place, or nothing to say any more.
    pub(crate) fn stream_consumed(&self, id: StreamId) -> Option<u64> {
        let recv = self.streams.get(&id)?.recv.as_ref()?;
        recv.needs_consumed().then(|| recv.consumed())
    }

    /// A CONSUMED was queued, or left. Whether it was not before.
    pub(crate) fn set_consumed_queued(&mut self, id: StreamId, queued: bool) -> bool {
        let stream = self.streams.get_mut(&id);
        stream.is_some_and(|stream| std::mem::replace(&mut stream.consumed_queued, queued) != queued)
    }
}
