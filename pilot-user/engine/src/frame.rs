//! Frames: what a data packet carries (`docs/wire.md` §5).

use std::ops::Range;
use std::time::Duration;

use crate::byte_queue::ByteQueue;
use crate::codec::{MAX_VARINT, Reader, Writer, varint_len};
use crate::crypto::reset::{RESET_TOKEN_LEN, ResetToken};
use crate::error::Code;
use crate::limits::{MAX_ACK_RANGES, MAX_REASON_BYTES, MESSAGE_PART_UNIT_BYTES};
use crate::recovery::ecn::EcnCounts;
use crate::stream::Direction;

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const ACK_ECN: u8 = 0x03;
const OPEN: u8 = 0x04;
const ACCEPT: u8 = 0x05;
const REFUSE: u8 = 0x06;
const CLOSE_CONNECTION: u8 = 0x07;
const CLOSE: u8 = 0x08;
const CREDIT: u8 = 0x09;
const STREAM_CREDIT: u8 = 0x0a;
const RESET_STREAM: u8 = 0x0b;
const STOP_STREAM: u8 = 0x0c;
const CONSUMED: u8 = 0x10;
const MESSAGES_CONSUMED: u8 = 0x11;
const NEW_SESSION_ID: u8 = 0x0d;
const PATH_CHALLENGE: u8 = 0x0e;
const PATH_RESPONSE: u8 = 0x0f;
const STREAM_LIMIT: u8 = 0x12;
const ACK_FREQUENCY: u8 = 0x14;
const DATAGRAM: u8 = 0x18;
const MESSAGE: u8 = 0x1a;
const MESSAGE_PART: u8 = 0x1c;
const STREAM: u8 = 0x20;

/// In STREAM_LIMIT: it is about unidirectional streams.
const LIMIT_UNIDIRECTIONAL: u8 = 0x01;
/// In DATAGRAM, MESSAGE and MESSAGE_PART: a length comes before the bytes.
const WITH_LENGTH: u8 = 0x01;
const STREAM_FIN: u8 = 0x01;
const STREAM_LENGTH: u8 = 0x02;
const STREAM_OFFSET: u8 = 0x04;

/// Varints below have one byte.
const ONE_BYTE_VARINTS: u64 = 0x40;
/// Bytes of a MESSAGE before its bytes, where connection and length have one byte each.
const SHORT_MESSAGE_HEAD: usize = 5;
/// And at most.
const MESSAGE_HEAD_MOST: usize = 1 + 8 + 2 + 8;

/// What a PATH_CHALLENGE asks for and a PATH_RESPONSE repeats.
pub(crate) type PathData = [u8; 8];

/// One decoded frame; its bytes are lent by the packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame<'a> {
    Ping,
    Ack(Ack<'a>),
    AckFrequency { packets: u64 },
    Open { connection: u64, port: u16 },
    Accept { connection: u64 },
    Refuse { connection: u64, code: u64, reason: &'a str },
    CloseConnection { connection: u64, code: u64, reason: &'a str },
    Close { code: u64, reason: &'a str },
    Credit { connection: u64, total: u64 },
    StreamCredit { connection: u64, stream: u64, offset: u64 },
    ResetStream { connection: u64, stream: u64, code: u64, length: u64 },
    StopStream { connection: u64, stream: u64, code: u64 },
    Consumed { connection: u64, stream: u64, offset: u64 },
    MessagesConsumed { connection: u64, number: u64 },
    StreamLimit { connection: u64, direction: Direction, total: u64 },
    Datagram { connection: u64, payload: &'a [u8] },
    MessagePart { connection: u64, number: u16, part: Part<'a> },
    NewSessionId { id: u32, token: ResetToken },
    PathChallenge { data: PathData },
    PathResponse { data: PathData },
    Message { connection: u64, number: u16, payload: &'a [u8] },
    Stream { connection: u64, stream: u64, offset: u64, fin: bool, payload: &'a [u8] },
}

/// A part of a message (W5.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part<'a> {
    /// Bytes of the whole message.
    pub(crate) total: usize,
    pub(crate) offset: usize,
    pub(crate) payload: &'a [u8],
}

/// Which packets arrived. The ranges stay in the packet's bytes, which were checked: a copy of them would make every frame
/// half a kilobyte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ack<'a> {
    pub(crate) delay: Duration,
    pub(crate) ecn: Option<EcnCounts>,
    ranges: Ranges<'a>,
}

impl<'a> Ack<'a> {
    /// Newest first, each `(smallest, largest)`.
    pub(crate) fn ranges(&self) -> Ranges<'a> {
        self.ranges.clone()
    }

    pub(crate) fn largest(&self) -> u64 {
        self.ranges.next.1
    }
}

/// See [`Ack::ranges`].
#[derive(Clone, Debug)]
pub(crate) struct Ranges<'a> {
    next: (u64, u64),
    left: usize,
    further: Reader<'a>,
}

impl Iterator for Ranges<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        self.left = self.left.checked_sub(1)?;
        let range = self.next;
        if self.left > 0 {
            self.next = further_range(&mut self.further, range.0)?;
        }
        Some(range)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Ranges<'_> {}

/// By the ranges: a number can be written in more than one length.
impl PartialEq for Ranges<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.clone().eq(other.clone())
    }
}

impl Eq for Ranges<'_> {}

/// A frame that cannot be: the code to close the tunnel with (W5.1).
pub(crate) type FrameError = Code;

impl<'a> Frame<'a> {
    /// Takes the next frame; `Ok(None)` at the end of the packet.
    pub(crate) fn next(reader: &mut Reader<'a>) -> Result<Option<Self>, FrameError> {
        skip_padding(reader);
        match reader.u8() {
            Some(kind) => Self::body(kind, reader).map(Some),
            None => Ok(None),
        }
    }

    /// Whether the packet is to be acknowledged for it (W5.3).
    pub(crate) const fn is_ack_eliciting(&self) -> bool {
        !matches!(
            self,
            Self::Ack(_)
                | Self::Close { .. }
                | Self::PathChallenge { .. }
                | Self::PathResponse { .. }
                | Self::Consumed { .. }
                | Self::MessagesConsumed { .. }
        )
    }

    /// Whether it elicits an ack for the sake of a connection.
    pub(crate) const fn is_data(&self) -> bool {
        let of_the_tunnel = matches!(self, Self::Ping | Self::AckFrequency { .. } | Self::NewSessionId { .. });
        self.is_ack_eliciting() && !of_the_tunnel
    }

    fn body(kind: u8, reader: &mut Reader<'a>) -> Result<Self, FrameError> {
        let frame = match kind {
            PING => Some(Self::Ping),
            ACK | ACK_ECN => ack(kind, reader).map(Self::Ack),
            ACK_FREQUENCY => reader.varint().map(|packets| Self::AckFrequency { packets }),
            OPEN => open(reader),
            ACCEPT => reader.varint().map(|connection| Self::Accept { connection }),
            REFUSE => closing(reader).map(|(connection, code, reason)| Self::Refuse { connection, code, reason }),
            CLOSE_CONNECTION => {
                closing(reader).map(|(connection, code, reason)| Self::CloseConnection { connection, code, reason })
            }
            CLOSE => coded(reader).map(|(code, reason)| Self::Close { code, reason }),
            CREDIT => pair(reader).map(|(connection, total)| Self::Credit { connection, total }),
            STREAM_CREDIT => {
                triple(reader).map(|[connection, stream, offset]| Self::StreamCredit { connection, stream, offset })
            }
            RESET_STREAM => reset_stream(reader),
            STOP_STREAM => {
                triple(reader).map(|[connection, stream, code]| Self::StopStream { connection, stream, code })
            }
            CONSUMED => {
                triple(reader).map(|[connection, stream, offset]| Self::Consumed { connection, stream, offset })
            }
            MESSAGES_CONSUMED => pair(reader).map(|(connection, number)| Self::MessagesConsumed { connection, number }),
            _ if kind & !LIMIT_UNIDIRECTIONAL == STREAM_LIMIT => stream_limit(kind, reader),
            _ if kind & !WITH_LENGTH == DATAGRAM => datagram(kind, reader),
            _ if kind & !WITH_LENGTH == MESSAGE => message(kind, reader),
            _ if kind & !WITH_LENGTH == MESSAGE_PART => message_part(kind, reader),
            // 0 is nobody's id (W1.2).
            NEW_SESSION_ID => new_session_id(reader),
            PATH_CHALLENGE => reader.array().map(|data| Self::PathChallenge { data }),
            PATH_RESPONSE => reader.array().map(|data| Self::PathResponse { data }),
            _ if kind & !(STREAM_FIN | STREAM_LENGTH | STREAM_OFFSET) == STREAM => stream(kind, reader),
            _ => return Err(Code::UnknownFrame),
        };
        frame.ok_or(Code::FrameEncoding)
    }
}

/// Takes what is before the next frame.
pub(crate) fn skip_padding(reader: &mut Reader<'_>) {
    while reader.peek().first() == Some(&PADDING) {
        reader.u8();
    }
}

fn pair(reader: &mut Reader<'_>) -> Option<(u64, u64)> {
    Some((reader.varint()?, reader.varint()?))
}

fn open<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    Some(Frame::Open { connection: reader.varint()?, port: reader.u16()? })
}

fn closing<'a>(reader: &mut Reader<'a>) -> Option<(u64, u64, &'a str)> {
    let connection = reader.varint()?;
    let (code, reason) = coded(reader)?;
    Some((connection, code, reason))
}

fn coded<'a>(reader: &mut Reader<'a>) -> Option<(u64, &'a str)> {
    let code = reader.varint()?;
    let reason = reader.counted().filter(|reason| reason.len() <= MAX_REASON_BYTES)?;
    Some((code, std::str::from_utf8(reason).ok()?))
}

fn new_session_id<'a>(reader: &mut Reader<'_>) -> Option<Frame<'a>> {
    let id = reader.u32().filter(|id| *id != 0)?;
    Some(Frame::NewSessionId { id, token: ResetToken(reader.array()?) })
}

fn triple(reader: &mut Reader<'_>) -> Option<[u64; 3]> {
    Some([reader.varint()?, reader.varint()?, reader.varint()?])
}

fn reset_stream<'a>(reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let [connection, stream, code] = triple(reader)?;
    Some(Frame::ResetStream { connection, stream, code, length: reader.varint()? })
}

fn stream_limit<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let direction = if kind & LIMIT_UNIDIRECTIONAL == 0 { Direction::Bidirectional } else { Direction::Unidirectional };
    let (connection, total) = pair(reader)?;
    Some(Frame::StreamLimit { connection, direction, total })
}

fn payload<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    if kind & WITH_LENGTH == 0 { Some(reader.rest()) } else { reader.counted() }
}

fn datagram<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    Some(Frame::Datagram { connection: reader.varint()?, payload: payload(kind, reader)? })
}

fn message<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let (connection, number) = (reader.varint()?, reader.u16()?);
    Some(Frame::Message { connection, number, payload: payload(kind, reader)? })
}

/// W5.13: a part lies within its message, and begins and ends at the message's end or a multiple of the unit.
fn message_part<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let (connection, number) = (reader.varint()?, reader.u16()?);
    let (total, offset) = (usize::try_from(reader.varint()?).ok()?, usize::try_from(reader.varint()?).ok()?);
    let payload = payload(kind, reader)?;
    let end = offset.checked_add(payload.len()).filter(|end| *end <= total && !payload.is_empty())?;
    let aligned = |at: usize| at.is_multiple_of(MESSAGE_PART_UNIT_BYTES);
    (aligned(offset) && (aligned(end) || end == total)).then_some(())?;
    Some(Frame::MessagePart { connection, number, part: Part { total, offset, payload } })
}

fn stream<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Frame<'a>> {
    let (connection, stream) = pair(reader)?;
    let offset = if kind & STREAM_OFFSET == 0 { 0 } else { reader.varint()? };
    let payload = if kind & STREAM_LENGTH == 0 { reader.rest() } else { reader.counted()? };
    // No byte lies beyond what a varint can say.
    offset.checked_add(payload.len() as u64).filter(|end| *end <= MAX_VARINT)?;
    Some(Frame::Stream { connection, stream, offset, fin: kind & STREAM_FIN != 0, payload })
}

/// RFC 9000 §19.3, at most [`MAX_ACK_RANGES`] ranges (W5.4).
fn ack<'a>(kind: u8, reader: &mut Reader<'a>) -> Option<Ack<'a>> {
    let largest = reader.varint()?;
    let delay = Duration::from_micros(reader.varint()?);
    let more = usize::try_from(reader.varint()?).ok().filter(|more| *more < MAX_ACK_RANGES)?;
    let mut smallest = largest.checked_sub(reader.varint()?)?;
    let (first, all) = ((smallest, largest), *reader);
    for _ in 0..more {
        smallest = further_range(reader, smallest)?.0;
    }
    let ranges = Ranges { next: first, left: more + 1, further: all.before(reader) };
    let ecn = if kind == ACK_ECN { Some(ecn_counts(reader)?) } else { None };
    Some(Ack { delay, ecn, ranges })
}

/// The range below the one that begins at `smallest`.
fn further_range(reader: &mut Reader<'_>, smallest: u64) -> Option<(u64, u64)> {
    let largest = smallest.checked_sub(reader.varint()?)?.checked_sub(2)?;
    Some((largest.checked_sub(reader.varint()?)?, largest))
}

fn ecn_counts(reader: &mut Reader<'_>) -> Option<EcnCounts> {
    Some(EcnCounts { ect0: reader.varint()?, ect1: reader.varint()?, ce: reader.varint()? })
}

// Writing. Each function writes a whole frame, or nothing and `None` when there is no room.

pub(crate) fn write_ping(writer: &mut Writer<'_>) -> Option<()> {
    writer.u8(PING)
}

/// Writes an ACK of inclusive ranges, newest first; of those that do not fit, the oldest are left out. With counts it is an
/// ACK_ECN.
pub(crate) fn write_ack(
    writer: &mut Writer<'_>,
    delay: Duration,
    ecn: Option<EcnCounts>,
    mut newest_first: impl ExactSizeIterator<Item = (u64, u64)>,
) -> Option<()> {
    /// Bytes of the largest further range.
    const RANGE_BYTES: usize = 16;
    let more = newest_first.len().checked_sub(1)?.min(MAX_ACK_RANGES - 1);
    let (mut smallest, largest) = newest_first.next()?;
    let micros = u64::try_from(delay.as_micros()).unwrap_or(MAX_VARINT).min(MAX_VARINT);
    let counts = ecn.map_or(0, |EcnCounts { ect0, ect1, ce }| [ect0, ect1, ce].map(varint_len).iter().sum());
    let head = 1 + varint_len(largest) + varint_len(micros) + 1 + varint_len(largest - smallest) + counts;
    let more = more.min(writer.room().checked_sub(head)? / RANGE_BYTES);
    writer.u8(if ecn.is_some() { ACK_ECN } else { ACK })?;
    writer.varint(largest)?;
    writer.varint(micros)?;
    writer.varint(more as u64)?;
    writer.varint(largest - smallest)?;
    for (next_smallest, next_largest) in newest_first.take(more) {
        writer.varint(smallest - next_largest - 2)?;
        writer.varint(next_largest - next_smallest)?;
        smallest = next_smallest;
    }
    if let Some(EcnCounts { ect0, ect1, ce }) = ecn {
        [ect0, ect1, ce].into_iter().try_for_each(|count| writer.varint(count))?;
    }
    Some(())
}

pub(crate) fn write_ack_frequency(writer: &mut Writer<'_>, packets: u64) -> Option<()> {
    fields(writer, ACK_FREQUENCY, [packets])
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

/// Appends what [`write_message`] writes.
#[inline]
pub(crate) fn push_message(out: &mut ByteQueue, connection: u64, number: u16, payload: &[u8]) {
    let [high, low] = number.to_be_bytes();
    if connection < ONE_BYTE_VARINTS && (payload.len() as u64) < ONE_BYTE_VARINTS {
        // Nearly all: a head of one size.
        return out.push([&[MESSAGE | WITH_LENGTH, connection as u8, high, low, payload.len() as u8], payload]);
    }
    let mut head = [0; MESSAGE_HEAD_MOST];
    let mut writer = Writer::new(&mut head);
    // It has room for all, and no id or length is above what a varint can say.
    let _ = writer.u8(MESSAGE | WITH_LENGTH);
    let _ = writer.varint(connection);
    let _ = writer.u16(number);
    let _ = writer.varint(payload.len() as u64);
    let length = writer.len();
    out.push([&head[..length], payload]);
}

/// A MESSAGE of this connection, if the next frame is one.
pub(crate) fn next_message<'a>(reader: &mut Reader<'a>, connection: u64) -> Option<(u16, &'a [u8])> {
    let mut ahead = *reader;
    let kind = ahead.u8().filter(|kind| kind & !WITH_LENGTH == MESSAGE)?;
    ahead.varint().filter(|id| *id == connection)?;
    let message = (ahead.u16()?, payload(kind, &mut ahead)?);
    *reader = ahead;
    Some(message)
}

/// Where the bytes of a MESSAGE with its length are, at the beginning of these; `None`: something else is there, or nothing.
#[inline]
pub(crate) fn message_at(bytes: &[u8]) -> Option<Range<usize>> {
    if let [kind, connection, _, _, length, ..] = *bytes
        && kind == MESSAGE | WITH_LENGTH
        && u64::from(connection) < ONE_BYTE_VARINTS
        && u64::from(length) < ONE_BYTE_VARINTS
    {
        // Nearly all.
        return Some(SHORT_MESSAGE_HEAD..SHORT_MESSAGE_HEAD + usize::from(length));
    }
    let mut reader = Reader::new(bytes);
    reader.u8().filter(|kind| *kind == MESSAGE | WITH_LENGTH)?;
    reader.varint()?;
    reader.u16()?;
    let length = usize::try_from(reader.varint()?).ok()?;
    let head = bytes.len() - reader.left();
    Some(head..head.checked_add(length)?)
}

/// MESSAGEs one behind the other.
#[derive(Default)]
pub(crate) struct InOrder {
    pub(crate) count: u32,
    /// Of all of them, and of what they carry.
    pub(crate) bytes: usize,
    pub(crate) payload: u64,
}

/// Those at the beginning of these bytes that are of this connection, have numbers in a row from `next` on, and short heads.
pub(crate) fn messages_in_order(bytes: &[u8], connection: u64, next: u16) -> InOrder {
    let mut all = InOrder::default();
    if connection >= ONE_BYTE_VARINTS {
        return all;
    }
    while let Some([kind, id, high, low, length]) = bytes.get(all.bytes..).and_then(|rest| rest.first_chunk()).copied()
    {
        let number = next.wrapping_add(all.count as u16);
        let head = [MESSAGE | WITH_LENGTH, connection as u8, (number >> 8) as u8, number as u8];
        let end = all.bytes + SHORT_MESSAGE_HEAD + usize::from(length);
        if [kind, id, high, low] != head || u64::from(length) >= ONE_BYTE_VARINTS || end > bytes.len() {
            break;
        }
        all.bytes = end;
        all.count += 1;
    }
    all.payload = (all.bytes - SHORT_MESSAGE_HEAD * all.count as usize) as u64;
    all
}

/// The number of the MESSAGE at the beginning of these bytes, of this connection and with its length.
pub(crate) fn message_number(bytes: &[u8], connection: u64) -> Option<u16> {
    let at = 1 + varint_len(connection);
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
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

#[cfg(test)]
mod tests;

#[cfg(test)]
mod any;
