//! What a connection puts into a packet: messages, then a piece of one stream after the other.

use super::{Connection, Key};
use crate::codec::Writer;
use crate::frame;
use crate::message;
use crate::recovery::sent::{SentFrame, SentFrames};
use crate::stream::StreamId;

impl Connection {
    /// Puts a stream in the queue if it has something that may be sent.
    pub(super) fn queue_stream(&mut self, id: StreamId) {
        let credit = self.send_credit.left();
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
            && stream.send.wants_to_send(credit)
        {
            stream.queued = true;
            self.sendable.push_back(id);
        }
    }

    /// There is more connection credit: any stream may have waited for it.
    pub(super) fn queue_all_streams(&mut self) {
        let credit = self.send_credit.left();
        for (id, stream) in &mut self.streams {
            if !stream.queued && stream.send.wants_to_send(credit) {
                stream.queued = true;
                self.sendable.push_back(*id);
            }
        }
    }

    pub(crate) fn has_messages_to_send(&self) -> bool {
        self.is_open() && self.messages_out.peek(self.send_credit.left()).is_some()
    }

    pub(crate) fn has_streams_to_send(&self) -> bool {
        self.is_open() && !self.sendable.is_empty()
    }

    /// Writes messages while they fit; where the last one begins, if any was written.
    pub(crate) fn write_messages(&mut self, key: Key, w: &mut Writer<'_>, sent: &mut SentFrames) -> Option<usize> {
        let wire_id = self.wire_id.filter(|_| self.is_open())?;
        let mut last = None;
        while let Some((number, length)) = self.messages_out.peek(self.send_credit.left()) {
            let start = w.len();
            // The low 16 bits of the number (W5.11).
            if frame::write_message(w, wire_id, number as u16, self.messages_out.payload(number)).is_none() {
                break;
            }
            if self.messages_out.on_sent(number) {
                self.send_credit.take(message::cost(length));
            }
            sent.push(SentFrame::Message { connection: key, number });
            last = Some(start);
        }
        last
    }

    /// Writes a piece of the stream whose turn it is. Whether one was written.
    pub(crate) fn write_stream(&mut self, key: Key, w: &mut Writer<'_>, sent: &mut SentFrames) -> bool {
        /// Bytes. A smaller piece is left to the next packet, unless it is all there is.
        const LEAST_ROOM_BYTES: usize = 64;
        let Some(wire_id) = self.wire_id.filter(|_| self.is_open()) else { return false };
        while let Some(id) = self.sendable.pop_front() {
            let credit = self.send_credit.left();
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let overhead = frame::stream_overhead(wire_id, id.0, crate::codec::MAX_VARINT, w.room());
            let Some(room) = w.room().checked_sub(overhead).filter(|room| *room >= LEAST_ROOM_BYTES) else {
                self.sendable.push_front(id);
                return false;
            };
            stream.queued = false;
            let Some(piece) = stream.send.piece(room, credit) else { continue };
            // The room was checked above for the longest head, so that the piece fits.
            if let Some(out) = frame::write_stream(w, wire_id, id.0, piece.offset, piece.fin, piece.length) {
                stream.send.copy(piece.offset, out);
            }
            self.send_credit.take(piece.fresh);
            sent.push(SentFrame::Stream {
                connection: key,
                stream: id.0,
                offset: piece.offset,
                length: piece.length as u32,
                fin: piece.fin,
            });
            self.queue_stream(id);
            return true;
        }
        false
    }
}
