//! What a tunnel sends next: an answer, an initiation, a close, or a packet with whatever is queued.

use pilot_common::wire::{HEADER_LEN, Header, PacketType, TAG_LEN};

use super::{Context, Path, Transport, Tunnel};
use crate::codec::Writer;
use crate::connection::table::Table;
use crate::connection::{Connection, State};
use crate::crypto::aead::SealError;
use crate::error::{CloseReason, Code};
use crate::frame;
use crate::recovery::sent::{SentFrame, SentFrames, SentPacket};
use crate::stream::StreamId;

/// What a packet was filled with.
struct Filled {
    frames: SentFrames,
    ack_eliciting: bool,
    mtu_probe: bool,
    /// Bytes of frames.
    len: usize,
}

impl Tunnel {
    /// Writes the next datagram into `datagram`; its length and where it goes. `None`: nothing to send now.
    pub(crate) fn poll_transmit(&mut self, ctx: &mut Context<'_>, datagram: &mut [u8]) -> Option<(usize, Path)> {
        if self.answer.is_some()
            && let Some(sent) = self.respond(ctx, datagram)
        {
            return Some(sent);
        }
        if self.next_try.is_some_and(|at| at <= ctx.now)
            && let Some(sent) = self.initiate(ctx, datagram)
        {
            return Some(sent);
        }
        let filled = self.fill(ctx, datagram)?;
        let (transport, session) = (self.transport.as_mut()?, self.session.as_mut()?);
        let number = transport.recovery.next_number();
        let header = Header {
            packet_type: PacketType::Data,
            epoch: 0,
            receiver: session.remote_id,
            word: number as u32, // the low 32 bits (W4.2)
        };
        let length = HEADER_LEN + filled.len + TAG_LEN;
        let packet = datagram.get_mut(..length)?;
        packet[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        let path = session.path;
        match session.keys.seal(number, packet) {
            Ok(()) => {}
            Err(SealError::Exhausted | SealError::Refused) => {
                // Nothing can be sealed any more, not even a CLOSE.
                self.on_down(ctx, CloseReason::ClosedHere(Code::KeyExhausted));
                self.drop_session(ctx);
                return None;
            }
        }
        ctx.stats.sealed += 1;
        transport.last_sent = ctx.now;
        transport.stats.sent_packets += 1;
        transport.stats.sent_bytes += length as u64;
        if filled.ack_eliciting {
            transport.awaiting_since.get_or_insert(ctx.now);
            transport.recovery.on_sent(SentPacket {
                sent: ctx.now,
                bytes: length as u16, // at most MAX_DATAGRAM_BYTES
                mtu_probe: filled.mtu_probe,
                frames: filled.frames,
            });
        } else {
            transport.recovery.on_sent_unacked();
        }
        Some((length, path))
    }

    /// Fills the room between header and tag. `None`: nothing to send, or not now.
    fn fill(&mut self, ctx: &mut Context<'_>, datagram: &mut [u8]) -> Option<Filled> {
        let transport = self.transport.as_mut()?;
        let room = |size: usize, available: usize| size.min(available).checked_sub(TAG_LEN);
        let end = room(usize::from(transport.mtu.current()), datagram.len())?;
        if let Some(closing) = &mut self.closing {
            if !std::mem::take(&mut closing.due) {
                return None;
            }
            closing.packets_left -= 1;
            let mut w = Writer::new(datagram.get_mut(HEADER_LEN..end)?);
            frame::write_close(&mut w, closing.code, &closing.reason)?;
            return Some(Filled { frames: SentFrames::new(), ack_eliciting: false, mtu_probe: false, len: w.len() });
        }
        let table = &mut self.table;
        let wants = table.wants_to_send();
        let mtu_probe = transport.mtu.probe().filter(|size| usize::from(*size) <= datagram.len());
        let ack_due = transport.acks.is_due(ctx.now);
        let may_send =
            (wants || mtu_probe.is_some() || transport.recovery.probe_due()) && transport.recovery.may_send();
        if !may_send && !ack_due {
            return None;
        }
        let mut frames = SentFrames::new();
        let mut w = Writer::new(datagram.get_mut(HEADER_LEN..end)?);
        if ack_due && let Some(largest) = transport.acks.write(ctx.now, &mut w) {
            frames.push(SentFrame::Ack { largest });
        }
        // What was consumed goes with what is sent anyway (W5.16).
        let in_company = !frames.is_empty() || !table.control.is_empty() || transport.recovery.probe_due();
        let consumed = if in_company { table.write_consumed(&mut w) } else { SentFrames::new() };
        let before = w.len();
        // While nothing arrives, data has the next try.
        let probe_first =
            mtu_probe.is_some() && transport.mtu.is_urgent() && transport.recovery.timeouts_in_a_row() == 0;
        if may_send && !probe_first {
            fill_queued(table, &mut w, &mut frames);
            if w.len() == before && transport.recovery.probe_due() {
                frame::write_ping(&mut w)?;
                frames.push(SentFrame::Ping);
            }
        }
        let (len, ack_eliciting) = (w.len(), w.len() > before);
        table.on_consumed_written(consumed, ack_eliciting, &mut frames);
        match mtu_probe {
            Some(size) if may_send && !ack_eliciting => fill_probe(transport, datagram, len, size, frames),
            _ if len == 0 => None,
            _ => Some(Filled { frames, ack_eliciting, mtu_probe: false, len }),
        }
    }
}

/// A path MTU probe: PING and padding up to the size, behind an ACK if there is one.
fn fill_probe(
    transport: &mut Transport,
    datagram: &mut [u8],
    len: usize,
    size: u16,
    frames: SentFrames,
) -> Option<Filled> {
    let padded = usize::from(size) - HEADER_LEN - TAG_LEN;
    let body = datagram.get_mut(HEADER_LEN + len..HEADER_LEN + padded)?;
    body.fill(0); // PADDING
    frame::write_ping(&mut Writer::new(body))?;
    transport.mtu.on_probe_sent();
    Some(Filled { frames, ack_eliciting: true, mtu_probe: true, len: padded })
}

/// Control frames, then the lanes: whatever is queued and fits (no timer waits for more).
fn fill_queued(table: &mut Table, w: &mut Writer<'_>, sent: &mut SentFrames) {
    while let Some(control) = table.control.front().cloned() {
        let before = w.len();
        if write_control(table, w, &control).is_none() {
            return; // no room: the next packet
        }
        table.control.pop_front();
        if w.len() > before {
            sent.push(control);
        }
    }
    table.write_lanes(w, sent);
}

/// Writes a control frame with what is true now; `Some` without writing when it has become pointless.
fn write_control(table: &mut Table, w: &mut Writer<'_>, control: &SentFrame) -> Option<()> {
    let Some(key) = control.connection() else { return frame::write_ping(w) };
    let Some(connection) = table.get_mut(key) else { return Some(()) };
    let Some(id) = connection.wire_id else { return Some(()) };
    match control {
        SentFrame::Open(_) if connection.state == State::Opening => frame::write_open(w, id, connection.port),
        SentFrame::Accept(_) if connection.is_open() => frame::write_accept(w, id),
        SentFrame::End(_) => write_end(connection, w, id),
        SentFrame::Credit(_) if connection.is_open() => {
            connection.credit_queued = false;
            frame::write_credit(w, id, connection.receive_credit.limit())
        }
        SentFrame::StreamCredit(_, stream) if connection.is_open() => match connection.stream_credit(StreamId(*stream))
        {
            Some(offset) => frame::write_stream_credit(w, id, *stream, offset),
            None => Some(()),
        },
        SentFrame::StreamLimit(_, direction) if connection.is_open() => {
            frame::write_stream_limit(w, id, *direction, connection.stream_limit(*direction))
        }
        SentFrame::AllConsumed(_, stream, length) if connection.is_open() => {
            // CONSUMED elicits no ack, and this is the last one of its stream.
            frame::write_ping(w)?;
            frame::write_consumed(w, id, *stream, *length)
        }
        _ => Some(()),
    }
}

fn write_end(connection: &Connection, w: &mut Writer<'_>, id: u64) -> Option<()> {
    match &connection.end {
        Some(end) if end.refused => frame::write_refuse(w, id, end.code, &end.reason),
        Some(end) => frame::write_close_connection(w, id, end.code, &end.reason),
        None => Some(()),
    }
}

impl Tunnel {
    /// A packet with any frames, also those that this end would not send: by it tests and [`crate::fuzzing`] play a broken
    /// peer. `None`: the tunnel is not up.
    pub(crate) fn seal_any(&mut self, frames: &[u8]) -> Option<Vec<u8>> {
        let (transport, session) = (self.transport.as_mut()?, self.session.as_mut()?);
        let number = transport.recovery.next_number();
        transport.recovery.on_sent_unacked();
        let header =
            Header { packet_type: PacketType::Data, epoch: 0, receiver: session.remote_id, word: number as u32 };
        let mut packet = [&header.to_bytes()[..], frames, &[0; TAG_LEN]].concat();
        session.keys.seal(number, &mut packet).ok()?;
        Some(packet)
    }
}

#[cfg(test)]
impl Tunnel {
    /// The frames of a packet that came from the peer.
    pub(crate) fn open_for_test(&mut self, packet: &[u8]) -> Vec<u8> {
        let header = Header::parse(packet).unwrap();
        let next = self.transport.as_ref().unwrap().next_received;
        let number = crate::packet::decode_number(header.word, next);
        let mut frames = vec![0; packet.len()];
        let length = self.session.as_ref().unwrap().keys.open(number, packet, &mut frames).unwrap();
        frames[..length].to_vec()
    }
}
