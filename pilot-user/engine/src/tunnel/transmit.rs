//! What a tunnel sends next: an answer, an initiation, a close, or a packet with whatever is queued.

use pilot_common::wire::{HEADER_LEN, Header, PacketType, TAG_LEN};

use super::mtu::Probe;
use super::path::PathFrame;
use super::{Context, Path, Tunnel};
use crate::codec::Writer;
use crate::connection::table::Table;
use crate::connection::{Connection, State};
use crate::crypto::aead::SealError;
use crate::crypto::reset::ResetToken;
use crate::error::{CloseReason, Code};
use crate::frame;
use crate::limits::MIN_DATAGRAM_BYTES;
use crate::recovery::ecn::Ecn;
use crate::recovery::sent::{SentFrame, SentFrames, SentPacket};
use crate::stream::StreamId;

/// What a packet was filled with.
struct Filled {
    ack_eliciting: bool,
    mtu_probe: bool,
    /// Bytes of frames.
    len: usize,
    /// Where it goes.
    path: Path,
    /// There may be more to send at once.
    more: bool,
}

/// A session id to tell the peer, and the token for it.
type NewId = (u32, ResetToken);

/// A datagram that was written.
pub(crate) struct Sent {
    /// Its bytes.
    pub(crate) len: usize,
    pub(crate) path: Path,
    pub(crate) ecn: Ecn,
    /// Whether there may be more to send now. Without, nothing has to be looked at again until something arrives, the
    /// application does something, or a deadline passes: it spares the search in vain before a single packet leaves.
    pub(crate) more: bool,
}

impl Sent {
    fn handshake(ctx: &mut Context<'_>, len: usize, path: Path) -> Self {
        ctx.stats.handshake_datagrams += 1;
        ctx.stats.handshake_bytes += len as u64;
        Self { len, path, ecn: Ecn::NotEct, more: true }
    }
}

impl Tunnel {
    /// Writes the next datagram into `datagram`. `None`: nothing to send now.
    pub(crate) fn poll_transmit(&mut self, ctx: &mut Context<'_>, datagram: &mut [u8]) -> Option<Sent> {
        if self.answer.is_some()
            && let Some((len, path)) = self.respond(ctx, datagram)
        {
            return Some(Sent::handshake(ctx, len, path));
        }
        self.rekey_if_due(ctx);
        if self.next_try.is_some_and(|at| at <= ctx.now)
            && let Some((len, path)) = self.initiate(ctx, datagram)
        {
            return Some(Sent::handshake(ctx, len, path));
        }
        if self.session.as_ref().is_none_or(|session| session.keys.is_used_up()) {
            return None; // until a rekey succeeds (W4.6)
        }
        let mut frames = SentFrames::new();
        let filled = self.fill(ctx, datagram, &mut frames)?;
        let (transport, session) = (self.transport.as_mut()?, self.session.as_mut()?);
        let number = transport.recovery.next_number();
        let header = Header {
            packet_type: PacketType::Data,
            epoch: session.keys.epoch_bits(),
            receiver: session.remote_id,
            word: number as u32, // the low 32 bits (W4.2)
        };
        let length = HEADER_LEN + filled.len + TAG_LEN;
        let packet = datagram.get_mut(..length)?;
        packet[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        let path = filled.path;
        match session.keys.seal(number, packet) {
            Ok(()) => {}
            Err(SealError::Exhausted | SealError::Refused) => {
                // Nothing can be sealed any more, not even a CLOSE.
                self.on_down(ctx, CloseReason::ClosedHere(Code::KeyExhausted));
                self.drop_session(ctx);
                return None;
            }
        }
        if frames.iter().any(|frame| frame.connection().is_some()) {
            session.keys.on_data();
        }
        ctx.stats.sealed += 1;
        transport.last_sent = ctx.now;
        transport.is_resting = false;
        transport.stats.sent_packets += 1;
        transport.stats.sent_bytes += length as u64;
        transport.paths.on_sent(&path, length);
        let ecn = if filled.ack_eliciting { transport.recovery.ecn() } else { Ecn::NotEct };
        if filled.ack_eliciting {
            transport.awaiting_since.get_or_insert(ctx.now);
            transport.recovery.on_sent(SentPacket {
                sent: ctx.now,
                bytes: length as u16, // at most MAX_DATAGRAM_BYTES
                mtu_probe: filled.mtu_probe,
                ect: ecn == Ecn::Ect0,
                frames,
            });
        } else {
            transport.recovery.on_sent_unacked();
        }
        Some(Sent { len: length, path, ecn, more: filled.more })
    }

    /// Fills the room between header and tag, with frames of which these are remembered. `None`: nothing to send, or not now.
    fn fill(&mut self, ctx: &mut Context<'_>, datagram: &mut [u8], frames: &mut SentFrames) -> Option<Filled> {
        // W4.6: data waits for a new key; what keeps the tunnel alive does not.
        let is_too_old = self.session.as_ref().is_some_and(|session| session.keys.is_too_old(ctx.now));
        let is_held = is_too_old && self.has_data_to_send();
        let transport = self.transport.as_mut()?;
        let (paths, recovery) = (&mut transport.paths, &mut transport.recovery);
        if let Some(closing) = &mut self.closing {
            let path = paths.sending().path;
            let end = packet_end(MIN_DATAGRAM_BYTES, paths.allowance()?, datagram.len())?;
            if !std::mem::take(&mut closing.due) {
                return None;
            }
            closing.packets_left -= 1;
            let mut w = Writer::new(datagram.get_mut(HEADER_LEN..end)?);
            frame::write_close(&mut w, closing.code, &closing.reason)?;
            return Some(Filled { len: w.len(), ..Filled::nothing(path) });
        }
        let table = &mut self.table;
        let has_data = table.has_data() && !is_held;
        let wants =
            has_data || if is_held { table.control.contains(&SentFrame::Ping) } else { !table.control.is_empty() };
        // Before the frames of paths: a challenge that it asks for is due at once, and data may be held back by pacing.
        paths.choose(ctx.now, has_data, recovery, ctx.events);
        if let Some(frame) = paths.next_frame(ctx.now, ctx.rng, recovery) {
            return fill_path_frame(&frame, datagram);
        }
        let allowance = paths.allowance()?;
        let (path, is_proven, mtu) = (paths.sending().path, paths.sending().is_proven, &paths.sending().mtu);
        // What confirms the key goes first, and while nothing arrives, what is known to.
        let probes = is_proven && recovery.was_heard() && recovery.timeouts_in_a_row() == 0;
        let probe = mtu.probe(ctx.now, has_data).filter(|it| usize::from(it.bytes) <= datagram.len());
        let padding = probe.filter(|it| it.is_padding && is_proven);
        // Data that makes a packet longer than what is known to arrive makes it a probe (W6.6).
        let stretched = probe.filter(|it| !it.is_padding && probes).map(|it| it.bytes);
        let current = mtu.current();
        let end = packet_end(stretched.unwrap_or(current), allowance, datagram.len())?;
        let ack_due = transport.acks.is_due(ctx.now);
        let asks = wants || padding.is_some() || recovery.probe_due();
        let is_draining = paths.is_draining() && !recovery.probe_due();
        let may_send = asks && !is_draining && recovery.may_send(ctx.now);
        if !may_send && !is_draining && table.has_bulk() {
            paths.on_queueing(ctx.now, 0, recovery);
        }
        if !may_send && !ack_due {
            return None;
        }
        let mut w = Writer::new(datagram.get_mut(HEADER_LEN..end)?);
        let carries_ack =
            ack_due || may_send && has_data && transport.acks.rides_along(ctx.now, !recovery.has_unacked());
        if carries_ack && let Some(largest) = transport.acks.write(ctx.now, &mut w) {
            frames.push(SentFrame::Ack { largest });
        }
        // What was consumed goes with what is sent anyway (W5.16).
        let in_company = !frames.is_empty() || !table.control.is_empty() || recovery.probe_due();
        let consumed = in_company.then(|| table.write_consumed(&mut w)).filter(|consumed| !consumed.is_empty());
        let before = w.len();
        // Bulk leaves no gap for a probe.
        let probe_first = padding.is_some() && probes;
        if may_send && !probe_first {
            if wants
                && let Some(wish) = recovery.acks_to_ask()
                && frame::write_ack_frequency(&mut w, wish.after.into(), wish.arrivals).is_some()
            {
                frames.push(SentFrame::AckFrequency);
            }
            let new_id = self.session.as_ref().and_then(|session| session.local.to_tell());
            let new_id = new_id.map(|id| (id, ctx.reset_key.token(id, path.remote.ip())));
            if !is_held {
                fill_queued(table, new_id, &mut w, frames);
            } else if wants {
                frame::write_ping(&mut w)?;
                frames.push(SentFrame::Ping);
                table.control.retain(|frame| *frame != SentFrame::Ping);
            }
            if w.len() == before && recovery.probe_due() {
                frame::write_ping(&mut w)?;
                frames.push(SentFrame::Ping);
            }
            if table.has_bulk() {
                paths.on_queueing(ctx.now, w.len() - before, recovery);
            }
        }
        let (len, ack_eliciting) = (w.len(), w.len() > before);
        if let Some(consumed) = consumed {
            table.on_consumed_written(consumed, ack_eliciting, frames);
        }
        let all_sent = table.control.is_empty() && !table.has_data();
        let more = !all_sent || padding.is_some() || recovery.probe_due();
        match (padding, stretched) {
            (Some(Probe { bytes, .. }), _) if may_send && !ack_eliciting => {
                let len = fill_probe(datagram, len, bytes)?;
                paths.sending_mut().mtu.on_probe_sent();
                transport.stats.mtu_probes += 1;
                transport.stats.mtu_probe_bytes += u64::from(bytes);
                Some(Filled { ack_eliciting: true, mtu_probe: true, len, path, more: true })
            }
            (_, Some(bytes)) if HEADER_LEN + len + TAG_LEN > usize::from(current) => {
                let len = lengthen(datagram, len, bytes)?;
                paths.sending_mut().mtu.on_probe_sent();
                Some(Filled { ack_eliciting, mtu_probe: true, len, path, more })
            }
            _ if len == 0 => None,
            _ => {
                if stretched.is_some() && may_send && !all_sent {
                    // What is next is too long for this step, and several of it may not be for a later one.
                    paths.sending_mut().mtu.want();
                }
                if !ack_eliciting {
                    transport.stats.ack_packets += 1;
                    transport.stats.ack_bytes += (HEADER_LEN + len + TAG_LEN) as u64;
                }
                Some(Filled { ack_eliciting, mtu_probe: false, len, path, more })
            }
        }
    }
}

impl Filled {
    /// A packet to be filled, of which nobody is to tell whether it arrived.
    fn nothing(path: Path) -> Self {
        Self { ack_eliciting: false, mtu_probe: false, len: 0, path, more: true }
    }
}

/// Where the frames of a packet of at most this size end.
fn packet_end(mtu: u16, allowance: usize, available: usize) -> Option<usize> {
    usize::from(mtu).min(allowance).min(available).checked_sub(TAG_LEN)
}

/// A PATH_CHALLENGE or PATH_RESPONSE, and padding. It asks for no ack: one that was lost is not congestion of the path that
/// data takes, and has a time-out of its own.
fn fill_path_frame(path_frame: &PathFrame, datagram: &mut [u8]) -> Option<Filled> {
    let end = packet_end(path_frame.datagram, usize::MAX, datagram.len())?;
    let body = datagram.get_mut(HEADER_LEN..end)?;
    body.fill(0); // PADDING
    let mut w = Writer::new(body);
    match path_frame.is_response {
        true => frame::write_path_response(&mut w, path_frame.data)?,
        false => frame::write_path_challenge(&mut w, path_frame.data)?,
    }
    Some(Filled { len: end - HEADER_LEN, ..Filled::nothing(path_frame.path) })
}

/// A path MTU probe: PING and padding up to the size, behind an ACK if there is one. Returns how many bytes of frames that
/// makes.
fn fill_probe(datagram: &mut [u8], len: usize, size: u16) -> Option<usize> {
    let padded = usize::from(size) - HEADER_LEN - TAG_LEN;
    let body = datagram.get_mut(HEADER_LEN + len..HEADER_LEN + padded)?;
    body.fill(0); // PADDING
    frame::write_ping(&mut Writer::new(body))?;
    Some(padded)
}

/// Makes frames fill a packet of this size, by padding before them: the last may reach to the end. Returns how many bytes of frames
/// that makes.
fn lengthen(datagram: &mut [u8], len: usize, size: u16) -> Option<usize> {
    let padded = usize::from(size) - HEADER_LEN - TAG_LEN;
    let body = datagram.get_mut(HEADER_LEN..HEADER_LEN + padded)?;
    body.copy_within(..len, padded - len);
    body[..padded - len].fill(0); // PADDING
    Some(padded)
}

/// Control frames, then the lanes: whatever is queued and fits (no timer waits for more).
fn fill_queued(table: &mut Table, new_id: Option<NewId>, w: &mut Writer<'_>, sent: &mut SentFrames) {
    while let Some(control) = table.control.front().copied() {
        let before = w.len();
        if write_control(table, new_id, w, &control).is_none() {
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
fn write_control(table: &mut Table, new_id: Option<NewId>, w: &mut Writer<'_>, control: &SentFrame) -> Option<()> {
    let Some(key) = control.connection() else {
        return match (control, new_id) {
            (SentFrame::NewSessionId, Some((id, token))) => frame::write_new_session_id(w, id, &token),
            (SentFrame::NewSessionId, None) => Some(()),
            _ => frame::write_ping(w),
        };
    };
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
        let epoch = session.keys.epoch_bits();
        let header = Header { packet_type: PacketType::Data, epoch, receiver: session.remote_id, word: number as u32 };
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
        let keys = &mut self.session.as_mut().unwrap().keys;
        let (length, _) = keys.open(header.epoch, number, packet, &mut frames).unwrap();
        frames[..length].to_vec()
    }
}
