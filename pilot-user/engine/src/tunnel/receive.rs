//! A data packet: opened, then its frames one after the other.

use std::collections::VecDeque;

use pilot_common::wire::Header;

use super::mtu::Mtu;
use super::{Context, Path, Tunnel};
use crate::codec::Reader;
use crate::connection::table::Table;
use crate::connection::{Connection, State};
use crate::crypto::keys::Slot;
use crate::error::{CloseReason, Code, ProtocolViolation};
use crate::event::Event;
use crate::frame::{self, Frame, PathData};
use crate::limits::{KEY_LINGER_TIMEOUTS, TUNNEL_UNREAD_BYTES, UNREAD_LOOK_PACKETS};
use crate::packet::decode_number;
use crate::recovery::Fate;
use crate::recovery::ack::Acks;
use crate::recovery::ecn::Ecn;
use crate::recovery::sent::SentFrame;
use crate::stats::DropReason;
use crate::time::Instant;

/// How a packet came.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    number: u64,
    path: &'a Path,
    ecn: Ecn,
    /// Of the datagram.
    bytes: usize,
}

impl Tunnel {
    /// Handles a data packet for one of this tunnel's sessions. `scratch` is where its frames are opened into. An error is
    /// for the caller to count: nothing that is not authentic, or not new, changes the tunnel (W4.4).
    pub(crate) fn on_data(
        &mut self,
        ctx: &mut Context<'_>,
        header: Header,
        datagram: &[u8],
        path: &Path,
        ecn: Ecn,
        scratch: &mut [u8],
    ) -> Result<(), DropReason> {
        let is_fresh = self.fresh.as_ref().is_some_and(|fresh| fresh.local.contains(header.receiver));
        let session = if is_fresh { self.fresh.as_mut() } else { self.session.as_mut() };
        let session = session.filter(|session| session.local.contains(header.receiver));
        let session = session.ok_or(DropReason::UnknownSession)?;
        // A new tunnel counts from 0.
        let transport = self.transport.as_ref().filter(|_| !is_fresh);
        let number = decode_number(header.word, transport.map_or(0, |transport| transport.next_received));
        if transport.is_some_and(|transport| !transport.replay.check(number)) {
            return Err(DropReason::Replay);
        }
        let opened = session.keys.open(header.epoch, number, datagram, scratch);
        let Some((length, slot)) = opened else {
            // What anybody can forge does not wake a tunnel: its keys were expanded for this packet alone.
            if transport.is_some_and(|transport| transport.is_resting) {
                session.keys.rest();
            }
            return Err(DropReason::Authentication);
        };
        ctx.stats.opened += 1;
        if is_fresh {
            self.confirm_fresh(ctx);
        } else if slot == Slot::Next {
            self.confirm(ctx);
        }
        let (Some(transport), Some(session)) = (&mut self.transport, &mut self.session) else {
            return Err(DropReason::UnknownSession);
        };
        transport.replay.mark(number);
        transport.last_received = ctx.now;
        transport.is_resting = false;
        transport.awaiting_since = None;
        transport.stats.received_packets += 1;
        let look_for_unread = transport.stats.received_packets.is_multiple_of(UNREAD_LOOK_PACKETS);
        transport.stats.received_bytes += datagram.len() as u64;
        session.local.on_used(ctx.now, header.receiver);
        if slot == Slot::Current && !session.keys.is_confirmed() {
            session.keys.on_confirmed(ctx.now, transport.recovery.pto() * KEY_LINGER_TIMEOUTS);
        }
        let newest = number >= transport.next_received;
        transport.next_received = transport.next_received.max(number + 1);
        let (paths, recovery) = (&mut transport.paths, &mut transport.recovery);
        paths.on_received(ctx.now, path, datagram.len(), newest, recovery, ctx.events);
        self.on_heard(ctx);
        if let Some(closing) = &mut self.closing {
            closing.due = closing.packets_left > 0;
            return Ok(());
        }
        if look_for_unread {
            self.table.end_unread(TUNNEL_UNREAD_BYTES, ctx.events);
        }
        match self.on_frames(ctx, Arrival { number, path, ecn, bytes: datagram.len() }, &scratch[..length]) {
            Ok(()) => {}
            Err(violation) => {
                tracing::warn!(peer = %self.config.address, %violation, "the peer broke the protocol; tunnel closed");
                self.close(ctx, violation.code, CloseReason::ProtocolViolation(violation));
            }
        }
        Ok(())
    }

    fn on_frames(
        &mut self,
        ctx: &mut Context<'_>,
        arrival: Arrival<'_>,
        frames: &[u8],
    ) -> Result<(), ProtocolViolation> {
        let mut reader = Reader::new(frames);
        let (mut ack_eliciting, mut has_data) = (false, false);
        loop {
            frame::skip_padding(&mut reader);
            let ahead = reader;
            let frame = match Frame::next(&mut reader) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(code) => return Err(ProtocolViolation::new(code, "sent a frame that cannot be read")),
            };
            ack_eliciting |= frame.is_ack_eliciting();
            has_data |= frame.is_data();
            if let Frame::Close { code, reason } = frame {
                self.on_down(ctx, CloseReason::TunnelClosed { code, reason: reason.to_owned() });
                self.drop_session(ctx);
                return Ok(());
            }
            if let (Frame::AckFrequency { packets, arrivals }, Some(transport)) = (&frame, &mut self.transport) {
                transport.acks.on_frequency(arrival.number, *packets, *arrivals);
            }
            // The last of a packet is taken as it was read, those before it all at once.
            if let Frame::Message { connection, .. } = frame
                && !reader.is_empty()
            {
                reader = ahead;
                self.on_messages(ctx, connection, &mut reader)?;
                continue;
            }
            self.on_frame(ctx, arrival, frame)?;
        }
        if has_data && let Some(session) = &mut self.session {
            session.keys.on_data();
        }
        if let Some(transport) = &mut self.transport {
            transport.acks.on_received(ctx.now, arrival.number, ack_eliciting, arrival.ecn);
            // An ack may have been the last that was waited for.
            transport.paths.choose(ctx.now, false, &mut transport.recovery, ctx.events);
        }
        Ok(())
    }

    fn on_frame(
        &mut self,
        ctx: &mut Context<'_>,
        arrival: Arrival<'_>,
        frame: Frame<'_>,
    ) -> Result<(), ProtocolViolation> {
        let (table, events) = (&mut self.table, &mut *ctx.events);
        match frame {
            Frame::Ack(ack) => {
                let Some(transport) = &mut self.transport else { return Ok(()) };
                let (acks, mtu) = (&mut transport.acks, &mut transport.paths.sending_mut().mtu);
                let apply = |fate| apply(ctx.now, fate, table, acks, mtu, events);
                if let Some(rtt) = transport.recovery.on_ack(ctx.now, &ack, apply)? {
                    ctx.stats.rtt.count(rtt);
                }
                transport.recovery.set_datagram(mtu.current());
            }
            Frame::Open { connection, port } => table.on_open(connection, port, events)?,
            Frame::Accept { connection } => {
                if let Some(connection) = table.by_wire_id(connection)? {
                    accepted(connection, events);
                    let key = connection.handle.key;
                    table.queue(key);
                }
            }
            Frame::Refuse { connection, code, reason } => {
                if let Some(key) = table.by_wire_id(connection)?.map(|connection| connection.handle.key) {
                    table.shut(key, CloseReason::Refused { code, reason: reason.to_owned() }, events);
                }
            }
            Frame::CloseConnection { connection, code, reason } => {
                table.on_end(connection, CloseReason::ByPeer { code, reason: reason.to_owned() }, events)?;
            }
            Frame::Credit { connection, total } => {
                with(table, connection, events, |connection, _| {
                    connection.on_credit(total);
                    Ok(())
                })?;
            }
            Frame::StreamCredit { connection, stream, offset } => {
                with(table, connection, events, |connection, events| {
                    connection.on_stream_credit(stream, offset, events)
                })?;
            }
            Frame::StreamLimit { connection, direction, total } => {
                with(table, connection, events, |connection, _| {
                    connection.on_stream_limit(direction, total);
                    Ok(())
                })?;
            }
            Frame::ResetStream { connection, stream, code, length } => {
                with(table, connection, events, |connection, events| {
                    connection.on_reset_stream(stream, code, length, events)
                })?;
            }
            Frame::StopStream { connection, stream, code } => {
                with(table, connection, events, |connection, events| connection.on_stop_stream(stream, code, events))?;
            }
            Frame::Consumed { connection, stream, offset } => {
                with(table, connection, events, |connection, events| connection.on_consumed(stream, offset, events))?;
            }
            Frame::MessagesConsumed { connection, number } => {
                with(table, connection, events, |connection, events| connection.on_messages_consumed(number, events))?;
            }
            Frame::Datagram { connection, payload } => {
                deliver(table, connection, events, |connection, events| {
                    connection.on_datagram(payload, events);
                    Ok(())
                })?;
            }
            Frame::Message { connection, number, payload } => {
                deliver(table, connection, events, |connection, events| {
                    connection.on_message(number, payload, events)
                })?;
            }
            Frame::MessagePart { connection, number, part } => {
                deliver(table, connection, events, |connection, events| {
                    connection.on_message_part(number, part, events)
                })?;
            }
            Frame::Stream { connection, stream, offset, fin, payload } => {
                with(table, connection, events, |connection, events| {
                    connection.on_stream(stream, offset, fin, payload, events)
                })?;
            }
            Frame::NewSessionId { id, token } => {
                if let Some(session) = &mut self.session
                    && session.remote_id_from.is_none_or(|number| number < arrival.number)
                {
                    ctx.sessions.remove_remote(session.remote_id, self.peer);
                    ctx.sessions.insert_remote(id, self.peer);
                    (session.remote_id, session.remote_id_from) = (id, Some(arrival.number));
                    session.remote_token = Some(token);
                }
            }
            Frame::PathChallenge { data } => {
                if let Some(transport) = &mut self.transport {
                    transport.paths.on_challenge(*arrival.path, data, arrival.bytes);
                }
            }
            Frame::PathResponse { data } => self.on_path_response(ctx, data),
            // The last two by who called.
            Frame::Ping | Frame::AckFrequency { .. } | Frame::Close { .. } => {}
        }
        Ok(())
    }

    /// A message, and those of the same connection that follow it.
    fn on_messages(
        &mut self,
        ctx: &mut Context<'_>,
        id: u64,
        reader: &mut Reader<'_>,
    ) -> Result<(), ProtocolViolation> {
        let mut is_taken = false;
        deliver(&mut self.table, id, ctx.events, |connection, events| {
            is_taken = true;
            connection.on_messages(id, reader, events)
        })?;
        // Of a connection that is over.
        while !is_taken && frame::next_message(reader, id).is_some() {}
        Ok(())
    }
}

impl Tunnel {
    fn on_path_response(&mut self, ctx: &mut Context<'_>, data: PathData) {
        let Some(transport) = &mut self.transport else { return };
        if transport.paths.on_response(ctx.now, data, &mut transport.recovery) {
            if let Some(path) = transport.paths.last_proven() {
                self.set_last_path(path, ctx.addresses);
            }
            // The old id was seen at both places (RFC 9000 §9.5).
            self.replace_session_id(ctx);
        }
    }
}

/// Runs `handle` on the connection a frame is for; nothing if it is closed (W5.8). Then there may be something to send on it.
fn with(
    table: &mut Table,
    id: u64,
    events: &mut VecDeque<Event>,
    handle: impl FnOnce(&mut Connection, &mut VecDeque<Event>) -> Result<(), ProtocolViolation>,
) -> Result<(), ProtocolViolation> {
    let Some((connection, _)) = receiver(table, id, events)? else { return Ok(()) };
    handle(connection, events)?;
    let key = connection.handle.key;
    table.queue(key);
    Ok(())
}

/// The same with what a message or datagram brings, which gives this end nothing to send.
fn deliver(
    table: &mut Table,
    id: u64,
    events: &mut VecDeque<Event>,
    handle: impl FnOnce(&mut Connection, &mut VecDeque<Event>) -> Result<(), ProtocolViolation>,
) -> Result<(), ProtocolViolation> {
    let Some((connection, is_accepted)) = receiver(table, id, events)? else { return Ok(()) };
    handle(connection, events)?;
    if is_accepted {
        let key = connection.handle.key;
        table.queue(key);
    }
    Ok(())
}

/// The connection a frame is for, unless it is closed, and whether it was accepted by this: data on a connection that was
/// opened here says so, even if ACCEPT itself is late.
fn receiver<'t>(
    table: &'t mut Table,
    id: u64,
    events: &mut VecDeque<Event>,
) -> Result<Option<(&'t mut Connection, bool)>, ProtocolViolation> {
    let Some(connection) = table.by_wire_id(id)? else { return Ok(None) };
    let is_accepted = connection.state == State::Opening;
    match connection.state {
        State::Closed(_) => return Ok(None),
        State::Offered => {
            return Err(ProtocolViolation::new(Code::ConnectionState, "sent data before its connection was accepted"));
        }
        State::Opening => accepted(connection, events),
        State::Waiting | State::Open => {}
    }
    Ok(Some((connection, is_accepted)))
}

fn accepted(connection: &mut Connection, events: &mut VecDeque<Event>) {
    if connection.state == State::Opening {
        connection.state = State::Open;
        events.push_back(Event::Connected { connection: connection.handle });
    }
}

/// What became of a sent frame or path MTU probe, told to whom it concerns.
pub(super) fn apply(
    now: Instant,
    fate: Fate,
    table: &mut Table,
    acks: &mut Acks,
    mtu: &mut Mtu,
    events: &mut VecDeque<Event>,
) {
    match fate {
        Fate::Acked(SentFrame::Ack { largest }) => acks.on_ack_acked(largest),
        Fate::Acked(frame) => table.on_acked(&frame, events),
        // What it carried is queued again, for a packet with a new number (W5.2).
        Fate::Lost(frame) => table.on_lost(frame),
        Fate::MtuProbe { bytes, arrived } => mtu.on_probe_fate(now, bytes, arrived),
    }
}
