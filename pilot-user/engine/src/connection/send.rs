//! What a connection puts into a packet: messages, unreliable datagrams, a piece of one stream after the other.

use super::{Connection, Key, Lane};
use crate::codec::Writer;
use crate::frame;
use crate::limits::{MESSAGE_PART_UNIT_BYTES, WHOLE_MESSAGE_BYTES};
use crate::message::{Part, Run};
use crate::recovery::sent::{SentFrame, SentFrames};
use crate::stream::{Signal, StreamId};

impl Connection {
    /// Puts a stream in the queue if it has something that may be sent.
    pub(super) fn queue_stream(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.queue(id, self.send_credit.left(), &mut self.sendable);
        }
    }

    /// There is more connection credit: any stream may have waited for it.
    pub(super) fn queue_all_streams(&mut self) {
        let credit = self.send_credit.left();
        for (id, stream) in &mut self.streams {
            stream.queue(*id, credit, &mut self.sendable);
        }
    }

    /// Whether there is something for a lane to send.
    #[inline]
    pub(super) fn has(&self, lane: Lane) -> bool {
        self.is_open()
            && match lane {
                Lane::Messages => self.messages_out.wants_to_send(self.send_credit.left()),
                Lane::Datagrams => !self.datagrams_out.is_empty(),
                Lane::Streams => !self.sendable.is_empty(),
            }
    }

    /// Writes what a lane has while it fits; where the last frame of a message begins, if any was written.
    pub(super) fn write(&mut self, lane: Lane, key: Key, w: &mut Writer<'_>, sent: &mut SentFrames) -> Option<usize> {
        let id = self.wire_id.filter(|_| self.is_open())?;
        match lane {
            Lane::Messages => return self.write_messages(id, key, w, sent),
            Lane::Datagrams => self.write_datagrams(id, w),
            Lane::Streams => while self.write_stream(id, key, w, sent) {},
        }
        None
    }

    fn write_messages(&mut self, id: u64, key: Key, w: &mut Writer<'_>, sent: &mut SentFrames) -> Option<usize> {
        let mut last = None;
        loop {
            let credit = self.send_credit.left();
            // Nearly all.
            if let Some(run) = self.messages_out.write_run(credit, w) {
                if run.count == 0 {
                    return last;
                }
                note_messages(sent, key, &run);
                self.send_credit.take(run.cost);
                last = Some(run.last);
                if self.messages_out.is_sent() {
                    return last;
                }
                continue;
            }
            let Some(next) = self.messages_out.next_part(credit) else { return last };
            let start = w.len();
            if self.write_part(id, key, next, w, sent).is_none() {
                return last;
            }
            last = Some(start);
        }
    }

    /// Writes a part of a message. `None`: no room.
    fn write_part(
        &mut self,
        id: u64,
        key: Key,
        mut next: Part,
        w: &mut Writer<'_>,
        sent: &mut SentFrames,
    ) -> Option<()> {
        let (number, offset) = (next.number, next.range.start);
        let overhead = frame::message_part_overhead(id, next.total, offset, w.room());
        let length = part_length(next.range.len(), w.room().saturating_sub(overhead))?;
        next.range.end = offset + length;
        // The low 16 bits of the number (W5.11).
        frame::write_message_part(w, id, number as u16, next.total, offset, self.messages_out.part(&next))?;
        // At most MAX_MESSAGE_BYTES.
        let (offset, length) = (offset as u32, length as u32);
        sent.push(SentFrame::MessagePart { connection: key, number, offset, length });
        self.send_credit.take(self.messages_out.on_part_sent(&next));
        Some(())
    }

    fn write_datagrams(&mut self, id: u64, w: &mut Writer<'_>) {
        while let Some(payload) = self.datagrams_out.first() {
            if frame::write_datagram(w, id, payload).is_some() {
                self.datagrams_out.pop();
            } else if frame::datagram_len(id, payload.len()) > w.len() + w.room() {
                // No packet is large enough: the path carries less than when it was queued.
                self.datagrams_out.drop_first();
            } else {
                return;
            }
        }
    }

    /// Writes a frame of the stream whose turn it is. Whether one was written.
    fn write_stream(&mut self, id: u64, key: Key, w: &mut Writer<'_>, sent: &mut SentFrames) -> bool {
        /// Bytes. A smaller piece is left to the next packet, unless it is all there is.
        const LEAST_ROOM_BYTES: usize = 64;
        while let Some(stream_id) = self.sendable.pop_front() {
            let credit = self.send_credit.left();
            let Some(stream) = self.streams.get_mut(&stream_id) else { continue };
            let overhead = frame::stream_overhead(id, stream_id.0, crate::codec::MAX_VARINT, w.room());
            // Enough for a signal, too.
            let Some(room) = w.room().checked_sub(overhead).filter(|room| *room >= LEAST_ROOM_BYTES) else {
                self.sendable.push_front(stream_id);
                return false;
            };
            stream.queued = false;
            if let Some(signal) = stream.signal() {
                let _room_was_checked = match signal {
                    Signal::Stop { code } => frame::write_stop_stream(w, id, stream_id.0, code),
                    Signal::Reset { code, length } => frame::write_reset_stream(w, id, stream_id.0, code, length),
                };
                stream.on_signal_sent(signal);
                sent.push(signal.sent(key, stream_id));
                stream.queue(stream_id, credit, &mut self.sendable);
                return true;
            }
            let Some(send) = &mut stream.send else { continue };
            let Some(piece) = send.piece(room, credit) else { continue };
            // The room was checked above for the longest head, so that the piece fits.
            if let Some(out) = frame::write_stream(w, id, stream_id.0, piece.offset, piece.fin, piece.length) {
                send.copy(piece.offset, out);
            }
            self.send_credit.take(piece.fresh);
            sent.push(SentFrame::Stream {
                connection: key,
                stream: stream_id.0,
                offset: piece.offset,
                length: piece.length as u32,
                fin: piece.fin,
            });
            stream.queue(stream_id, self.send_credit.left(), &mut self.sendable);
            return true;
        }
        false
    }
}

/// Whole messages were written. Those in a row are one entry of what was sent, however many.
fn note_messages(sent: &mut SentFrames, key: Key, run: &Run) {
    match sent.last_mut() {
        Some(SentFrame::Messages { connection, start, bytes, count })
            if *connection == key && *start + u64::from(*bytes) == run.start =>
        {
            *bytes += run.bytes;
            *count += run.count;
        }
        _ => sent.push(SentFrame::Messages { connection: key, start: run.start, bytes: run.bytes, count: run.count }),
    }
}

/// How much of `left` bytes of a message goes where there is so much room; `None`: too little to be worth a frame (W5.13).
fn part_length(left: usize, room: usize) -> Option<usize> {
    /// Bytes. A smaller part is left to the next packet, unless it is the last.
    const LEAST_BYTES: usize = WHOLE_MESSAGE_BYTES / 4;
    if left <= room {
        return Some(left);
    }
    Some(room - room % MESSAGE_PART_UNIT_BYTES).filter(|length| *length >= LEAST_BYTES)
}
