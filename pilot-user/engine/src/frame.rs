//! Frames: what a data packet carries (`docs/wire.md` §5).

mod ack;
mod messages;
mod write;

use crate::codec::{MAX_VARINT, Reader};
use crate::crypto::reset::ResetToken;
use crate::error::Code;
use crate::limits::{MAX_REASON_BYTES, MESSAGE_PART_UNIT_BYTES};
use crate::stream::Direction;

pub(crate) use ack::{Ack, ArrivalTime, write_ack};
pub(crate) use messages::*;
pub(crate) use write::*;

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
/// Without ECN counts or with them, as ACK and ACK_ECN.
const ACK_ARRIVAL: u8 = 0x16;
const DATAGRAM: u8 = 0x18;
const MESSAGE: u8 = 0x1a;
const MESSAGE_PART: u8 = 0x1c;
const STREAM: u8 = 0x20;

/// In ACK_ARRIVAL: ECN counts follow.
const WITH_ECN: u8 = 0x01;
/// In ACK_FREQUENCY: times of arrival are asked for.
const WITH_ARRIVALS: u8 = 0x01;
/// In STREAM_LIMIT: it is about unidirectional streams.
const LIMIT_UNIDIRECTIONAL: u8 = 0x01;
/// In DATAGRAM, MESSAGE and MESSAGE_PART: a length comes before the bytes.
const WITH_LENGTH: u8 = 0x01;
const STREAM_FIN: u8 = 0x01;
const STREAM_LENGTH: u8 = 0x02;
const STREAM_OFFSET: u8 = 0x04;

/// What a PATH_CHALLENGE asks for and a PATH_RESPONSE repeats.
pub(crate) type PathData = [u8; 8];

/// One decoded frame; its bytes are lent by the packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame<'a> {
    Ping,
    Ack(Ack<'a>),
    AckFrequency { packets: u64, arrivals: bool },
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

/// A frame that cannot be: the code to close the tunnel with (W5.1).
pub(crate) type FrameError = Code;

impl<'a> Frame<'a> {
    /// Takes the next frame; `Ok(None)` at the end of the packet.
    pub(crate) fn next(reader: &mut Reader<'a>) -> Result<Option<Self>, FrameError> {
        skip_padding(reader);
        match reader.u8() {
            Some(kind) => Self::body(kind, reader),
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

    fn body(kind: u8, reader: &mut Reader<'a>) -> Result<Option<Self>, FrameError> {
        let frame = match kind {
            PING => Some(Self::Ping),
            ACK | ACK_ECN => ack::ack(kind == ACK_ECN, false, reader).map(Self::Ack),
            _ if kind & !WITH_ECN == ACK_ARRIVAL => ack::ack(kind & WITH_ECN != 0, true, reader).map(Self::Ack),
            _ if kind & !WITH_ARRIVALS == ACK_FREQUENCY => {
                reader.varint().map(|packets| Self::AckFrequency { packets, arrivals: kind & WITH_ARRIVALS != 0 })
            }
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
        if frame.is_some() { Ok(frame) } else { Err(Code::FrameEncoding) }
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

/// A MESSAGE of this connection, if the next frame is one.
pub(crate) fn next_message<'a>(reader: &mut Reader<'a>, connection: u64) -> Option<(u16, &'a [u8])> {
    let mut ahead = *reader;
    let kind = ahead.u8().filter(|kind| kind & !WITH_LENGTH == MESSAGE)?;
    ahead.varint().filter(|id| *id == connection)?;
    let message = (ahead.u16()?, payload(kind, &mut ahead)?);
    *reader = ahead;
    Some(message)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod any;
