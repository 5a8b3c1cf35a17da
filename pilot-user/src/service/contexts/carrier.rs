//! How the messages of contexts travel over a connection: as its messages, and those that are too long over a stream each,
//! whose place among the messages a short one keeps (`docs/context.md` C2.7). One is held while there is no room; nothing
//! else is queued.

use std::collections::BTreeSet;

use pilot_engine::codec::{Reader, put_varint};
use pilot_engine::limits::MAX_MESSAGE_BYTES;
use pilot_engine::{ConnectionHandle, Endpoint, Instant, OperationError, Read, StreamId};

use crate::context::Violation;
use crate::context::limits::MAX_LONG_MESSAGE_BYTES;

/// Bytes asked for of a stream at once.
const PIECE_BYTES: usize = 64 << 10;

/// The first byte of the message that keeps a stream's place; the stream's id follows.
const STREAMED: u8 = 0x00;

/// One end of a connection.
#[derive(Debug, Default)]
pub(super) struct Carrier {
    outgoing: Option<Outgoing>,
    /// The peer's streams that have begun, and were not read.
    begun: BTreeSet<StreamId>,
    /// The stream whose turn it is, and what was read of it.
    incoming: Option<(StreamId, Vec<u8>)>,
}

#[derive(Debug)]
struct Outgoing {
    message: Vec<u8>,
    /// Of one that goes over a stream: which, whether its place was taken, and how much of it the stream took.
    stream: Option<StreamId>,
    placed: bool,
    taken: usize,
}

impl Carrier {
    /// Something happened on a stream.
    pub(super) fn on_stream(&mut self, stream: StreamId) {
        self.begun.insert(stream);
    }

    /// Sends a message; only after [`Carrier::flush`] said that there is room. Whether there is room for more. What did not
    /// leave at once is held, and leaves an empty buffer; what did is the usual, and allocates nothing.
    #[inline]
    pub(super) fn send(
        &mut self,
        endpoint: &mut Endpoint,
        now: Instant,
        connection: ConnectionHandle,
        message: &mut Vec<u8>,
    ) -> bool {
        if message.len() <= MAX_MESSAGE_BYTES && endpoint.send_message(now, connection, message).is_ok() {
            return true;
        }
        self.outgoing = Some(Outgoing { message: std::mem::take(message), stream: None, placed: false, taken: 0 });
        self.flush(endpoint, now, connection)
    }

    /// Sends what is held, which is seldom anything. Whether there is room for more.
    #[inline]
    pub(super) fn flush(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) -> bool {
        self.outgoing.is_none() || self.flush_held(endpoint, now, connection)
    }

    fn flush_held(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) -> bool {
        let Some(mut outgoing) = self.outgoing.take() else { return true };
        let sent = if outgoing.message.len() > MAX_MESSAGE_BYTES {
            outgoing.write(endpoint, now, connection)
        } else {
            endpoint.send_message(now, connection, &outgoing.message)
        };
        if sent.is_err() {
            // No room, which an event tells of; or the connection is over, which its own event tells.
            self.outgoing = Some(outgoing);
        }
        sent.is_ok()
    }

    /// Puts the next message of the peer into `out`, in place of what is there. `false`: there is none now.
    ///
    /// # Errors
    /// The peer sends one that is longer than any can be, or gives it up.
    pub(super) fn receive(
        &mut self,
        endpoint: &mut Endpoint,
        now: Instant,
        connection: ConnectionHandle,
        out: &mut Vec<u8>,
    ) -> Result<bool, Violation> {
        out.clear();
        if self.incoming.is_none() {
            let Ok(Some(_)) = endpoint.receive_message(now, connection, out) else { return Ok(false) };
            if out.first() != Some(&STREAMED) {
                return Ok(true);
            }
            let stream = Reader::new(&out[1..]).varint().ok_or(Violation("a place that is no stream's"))?;
            self.incoming = Some((StreamId(stream), Vec::new()));
            out.clear();
        }
        let Some((stream, read)) = &mut self.incoming else { return Ok(false) };
        // Its place may come before anything of it.
        while self.begun.contains(stream) {
            let length = read.len();
            if length > MAX_LONG_MESSAGE_BYTES {
                return Err(Violation("a message that is longer than a document can be"));
            }
            read.resize(length + PIECE_BYTES, 0);
            let more = endpoint.read(now, connection, *stream, &mut read[length..]);
            read.truncate(length + if let Ok(Read::Bytes(more)) = more { more } else { 0 });
            match more {
                Ok(Read::Bytes(_)) => {}
                Ok(Read::Blocked) => return Ok(false),
                Ok(Read::End) => {
                    std::mem::swap(out, read);
                    self.begun.remove(stream);
                    self.incoming = None;
                    return Ok(true);
                }
                Err(OperationError::Closed(_)) => return Ok(false),
                Err(_) => return Err(Violation("a message was given up half way")),
            }
        }
        Ok(false)
    }
}

impl Outgoing {
    /// Writes as much as the stream takes; an error when something is left.
    fn write(
        &mut self,
        endpoint: &mut Endpoint,
        now: Instant,
        connection: ConnectionHandle,
    ) -> Result<(), OperationError> {
        let stream = match self.stream {
            Some(stream) => stream,
            None => endpoint.open_unidirectional(now, connection)?,
        };
        self.stream = Some(stream);
        if !self.placed {
            let mut place = vec![STREAMED];
            put_varint(&mut place, stream.0);
            endpoint.send_message(now, connection, &place)?;
            self.placed = true;
        }
        while self.taken < self.message.len() {
            self.taken += endpoint.write(now, connection, stream, &self.message[self.taken..])?;
        }
        endpoint.finish(now, connection, stream)
    }
}
