//! Writing frames. Each function writes a whole one, or nothing and `None` when there is no room.

use super::{
    ACCEPT, ACK_FREQUENCY, CLOSE, CLOSE_CONNECTION, CONSUMED, CREDIT, DATAGRAM, LIMIT_UNIDIRECTIONAL, MESSAGE,
    MESSAGE_PART, MESSAGES_CONSUMED, NEW_SESSION_ID, OPEN, PATH_CHALLENGE, PATH_RESPONSE, PING, PathData, REFUSE,
    RESET_STREAM, STOP_STREAM, STREAM, STREAM_CREDIT, STREAM_LENGTH, STREAM_LIMIT, STREAM_OFFSET, WITH_ARRIVALS,
    WITH_LENGTH,
};
use crate::codec::{Reader, Writer, varint_len};
use crate::crypto::reset::{RESET_TOKEN_LEN, ResetToken};
use crate::limits::MAX_REASON_BYTES;
use crate::stream::Direction;

pub(crate) fn write_ping(writer: &mut Writer<'_>) -> Option<()> {
    writer.u8(PING)
}

pub(crate) fn write_ack_frequency(writer: &mut Writer<'_>, packets: u64, arrivals: bool) -> Option<()> {
    fields(writer, if arrivals { ACK_FREQUENCY | WITH_ARRIVALS } else { ACK_FREQUENCY }, [packets])
}

pub(crate) fn write_open(writer: &mut Writer<'_>, connection: u64, port: u16) -> Option<()> {
    let room = writer.room() >= 1 + varint_len(connection) + 2;
    room.then(|| {
        writer.u8(OPEN)?;
        writer.varint(connection)?;
        writer.u16(port)
    })?
}

pub(crate) fn write_accept(writer: &mut Writer<'_>, connection: u64) -> Option<()> {
    fields(writer, ACCEPT, [connection])
}

pub(crate) fn write_credit(writer: &mut Writer<'_>, connection: u64, total: u64) -> Option<()> {
    fields(writer, CREDIT, [connection, total])
}

pub(crate) fn write_stream_credit(writer: &mut Writer<'_>, connection: u64, stream: u64, offset: u64) -> Option<()> {
    fields(writer, STREAM_CREDIT, [connection, stream, offset])
}

pub(crate) fn write_reset_stream(
    writer: &mut Writer<'_>,
    connection: u64,
    stream: u64,
    code: u64,
    length: u64,
) -> Option<()> {
    fields(writer, RESET_STREAM, [connection, stream, code, length])
}

pub(crate) fn write_stop_stream(writer: &mut Writer<'_>, connection: u64, stream: u64, code: u64) -> Option<()> {
    fields(writer, STOP_STREAM, [connection, stream, code])
}

pub(crate) fn write_consumed(writer: &mut Writer<'_>, connection: u64, stream: u64, offset: u64) -> Option<()> {
    fields(writer, CONSUMED, [connection, stream, offset])
}

pub(crate) fn write_messages_consumed(writer: &mut Writer<'_>, connection: u64, number: u64) -> Option<()> {
    fields(writer, MESSAGES_CONSUMED, [connection, number])
}

pub(crate) fn write_stream_limit(
    writer: &mut Writer<'_>,
    connection: u64,
    direction: Direction,
    total: u64,
) -> Option<()> {
    let kind = match direction {
        Direction::Bidirectional => STREAM_LIMIT,
        Direction::Unidirectional => STREAM_LIMIT | LIMIT_UNIDIRECTIONAL,
    };
    fields(writer, kind, [connection, total])
}

/// Writes a DATAGRAM with its length.
pub(crate) fn write_datagram(writer: &mut Writer<'_>, connection: u64, payload: &[u8]) -> Option<()> {
    (writer.room() >= datagram_len(connection, payload.len())).then(|| {
        writer.u8(DATAGRAM | WITH_LENGTH)?;
        writer.varint(connection)?;
        writer.counted(payload)
    })?
}

/// Bytes that a MESSAGE_PART takes beside its payload of at most `length` bytes.
pub(crate) const fn message_part_overhead(connection: u64, total: usize, offset: usize, length: usize) -> usize {
    let position = varint_len(total as u64) + varint_len(offset as u64);
    1 + varint_len(connection) + 2 + position + varint_len(length as u64)
}

/// Writes a MESSAGE_PART with its length.
pub(crate) fn write_message_part(
    writer: &mut Writer<'_>,
    connection: u64,
    number: u16,
    total: usize,
    offset: usize,
    payload: &[u8],
) -> Option<()> {
    let length = payload.len();
    (writer.room() >= message_part_overhead(connection, total, offset, length) + length).then(|| {
        writer.u8(MESSAGE_PART | WITH_LENGTH)?;
        writer.varint(connection)?;
        writer.u16(number)?;
        writer.varint(total as u64)?;
        writer.varint(offset as u64)?;
        writer.varint(length as u64)?;
        writer.bytes(payload)
    })?
}

pub(crate) fn write_new_session_id(writer: &mut Writer<'_>, id: u32, token: &ResetToken) -> Option<()> {
    let mut frame = [NEW_SESSION_ID; 1 + 4 + RESET_TOKEN_LEN];
    frame[1..5].copy_from_slice(&id.to_be_bytes());
    frame[5..].copy_from_slice(&token.0);
    writer.bytes(&frame)
}

pub(crate) fn write_path_challenge(writer: &mut Writer<'_>, data: PathData) -> Option<()> {
    path_frame(writer, PATH_CHALLENGE, data)
}

pub(crate) fn write_path_response(writer: &mut Writer<'_>, data: PathData) -> Option<()> {
    path_frame(writer, PATH_RESPONSE, data)
}

fn path_frame(writer: &mut Writer<'_>, kind: u8, data: PathData) -> Option<()> {
    (writer.room() > data.len()).then(|| {
        writer.u8(kind)?;
        writer.bytes(&data)
    })?
}

pub(crate) fn write_refuse(writer: &mut Writer<'_>, connection: u64, code: u64, reason: &str) -> Option<()> {
    reasoned(writer, REFUSE, Some(connection), code, reason)
}

pub(crate) fn write_close_connection(writer: &mut Writer<'_>, connection: u64, code: u64, reason: &str) -> Option<()> {
    reasoned(writer, CLOSE_CONNECTION, Some(connection), code, reason)
}

pub(crate) fn write_close(writer: &mut Writer<'_>, code: u64, reason: &str) -> Option<()> {
    reasoned(writer, CLOSE, None, code, reason)
}

/// Writes a MESSAGE with its length, so that more may follow.
pub(crate) fn write_message(writer: &mut Writer<'_>, connection: u64, number: u16, payload: &[u8]) -> Option<()> {
    (writer.room() >= message_len(connection, payload.len())).then(|| {
        writer.u8(MESSAGE | WITH_LENGTH)?;
        writer.varint(connection)?;
        writer.u16(number)?;
        writer.counted(payload)
    })?
}

/// Takes the length field out of a packet's last MESSAGE, which reaches to the end without it: a 19-byte delta pays for
/// each byte. `frame` is that frame, whole; returns how many bytes it is shorter by.
pub(crate) fn elide_message_length(frame: &mut [u8]) -> usize {
    let mut reader = Reader::new(frame);
    let (kind, _connection, _number) = (reader.u8(), reader.varint(), reader.u16());
    let behind = reader.rest().len();
    let length_at = frame.len() - behind;
    let saved = varint_len(Reader::new(&frame[length_at..]).varint().unwrap_or(0));
    if kind != Some(MESSAGE | WITH_LENGTH) || behind < saved {
        return 0;
    }
    frame[0] = MESSAGE;
    frame.copy_within(length_at + saved.., length_at);
    saved
}

/// Bytes of a DATAGRAM with its length.
pub(crate) const fn datagram_len(connection: u64, length: usize) -> usize {
    1 + varint_len(connection) + varint_len(length as u64) + length
}

/// Bytes of a MESSAGE with its length.
pub(crate) const fn message_len(connection: u64, length: usize) -> usize {
    1 + varint_len(connection) + 2 + varint_len(length as u64) + length
}

/// Bytes that a STREAM takes beside its payload of at most `length` bytes.
pub(crate) const fn stream_overhead(connection: u64, stream: u64, offset: u64, length: usize) -> usize {
    let offset_len = if offset == 0 { 0 } else { varint_len(offset) };
    1 + varint_len(connection) + varint_len(stream) + offset_len + varint_len(length as u64)
}

/// Writes the head of a STREAM with its length and lends the room for its payload.
pub(crate) fn write_stream<'w>(
    writer: &'w mut Writer<'_>,
    connection: u64,
    stream: u64,
    offset: u64,
    fin: bool,
    length: usize,
) -> Option<&'w mut [u8]> {
    if writer.room() < stream_overhead(connection, stream, offset, length) + length {
        return None;
    }
    let offset_bit = if offset == 0 { 0 } else { STREAM_OFFSET };
    writer.u8(STREAM | STREAM_LENGTH | offset_bit | u8::from(fin))?;
    writer.varint(connection)?;
    writer.varint(stream)?;
    if offset != 0 {
        writer.varint(offset)?;
    }
    writer.varint(length as u64)?;
    writer.take(length)
}

fn fields<const N: usize>(writer: &mut Writer<'_>, kind: u8, values: [u64; N]) -> Option<()> {
    let size: usize = 1 + values.iter().map(|value| varint_len(*value)).sum::<usize>();
    (writer.room() >= size).then(|| {
        writer.u8(kind)?;
        values.iter().try_for_each(|value| writer.varint(*value))
    })?
}

fn reasoned(writer: &mut Writer<'_>, kind: u8, connection: Option<u64>, code: u64, reason: &str) -> Option<()> {
    let reason = cut(reason);
    let size = 1 + connection.map_or(0, varint_len) + varint_len(code) + varint_len(reason.len() as u64) + reason.len();
    (writer.room() >= size).then(|| {
        writer.u8(kind)?;
        connection.map_or(Some(()), |connection| writer.varint(connection))?;
        writer.varint(code)?;
        writer.counted(reason.as_bytes())
    })?
}

/// The longest beginning of a reason that may be sent (W5.14).
pub(crate) fn cut(reason: &str) -> &str {
    let end = (0..=MAX_REASON_BYTES.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
    &reason[..end]
}
