//! The inside of the engine for fuzz targets, and for nobody else.
//!
//! Behind the AEAD and mac1 no mutation of bytes ever arrives: a fuzzer guesses no tag. So the decoders are called
//! directly here, and an honest end can be made to seal what it would never send.

use crate::codec::{Reader, Writer};
use crate::crypto::kem;
use crate::crypto::mac::Mac1Key;
use crate::crypto::parameters::{Parameters, encapsulation_key};
use crate::crypto::rng::SeededRng;
use crate::endpoint::Endpoint;
use crate::event::PeerId;
use crate::frame::{self, Frame, FrameError};
use crate::limits::MAX_ACK_RANGES;

/// Bytes by which frames may be longer when written again: the length field that a last frame can do without.
const LENGTH_BYTES: usize = 8;

/// Bytes that [`frame::write_ack`] wants to have left before it writes all ranges.
const ACK_BYTES: usize = 26 + 16 * MAX_ACK_RANGES;

/// Reads `bytes` as the frames of a packet. Each frame read is written again and must then read as the same.
///
/// # Panics
/// When it does not.
pub fn frames(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut buffer = vec![0; bytes.len() + LENGTH_BYTES + ACK_BYTES];
    while let Ok(Some(frame)) = Frame::next(&mut reader) {
        let mut writer = Writer::new(&mut buffer);
        assert!(write(&frame, &mut writer).is_some(), "cannot be written: {frame:?}");
        let length = writer.len();
        let mut again = Reader::new(&buffer[..length]);
        let first: Result<_, FrameError> = Frame::next(&mut again);
        assert_eq!(first, Ok(Some(frame)), "written as {:02x?}", &buffer[..length]);
        assert!(again.is_empty(), "more was written than is read");
    }
}

pub(crate) fn write(frame: &Frame<'_>, writer: &mut Writer<'_>) -> Option<()> {
    match *frame {
        Frame::Ping => frame::write_ping(writer),
        Frame::Ack(ref ack) => frame::write_ack(writer, ack.delay, ack.ecn, ack.arrival, ack.ranges()),
        Frame::AckFrequency { packets, arrivals } => frame::write_ack_frequency(writer, packets, arrivals),
        Frame::Open { connection, port } => frame::write_open(writer, connection, port),
        Frame::Accept { connection } => frame::write_accept(writer, connection),
        Frame::Refuse { connection, code, reason } => frame::write_refuse(writer, connection, code, reason),
        Frame::CloseConnection { connection, code, reason } => {
            frame::write_close_connection(writer, connection, code, reason)
        }
        Frame::Close { code, reason } => frame::write_close(writer, code, reason),
        Frame::Credit { connection, total } => frame::write_credit(writer, connection, total),
        Frame::StreamCredit { connection, stream, offset } => {
            frame::write_stream_credit(writer, connection, stream, offset)
        }
        Frame::ResetStream { connection, stream, code, length } => {
            frame::write_reset_stream(writer, connection, stream, code, length)
        }
        Frame::StopStream { connection, stream, code } => frame::write_stop_stream(writer, connection, stream, code),
        Frame::Consumed { connection, stream, offset } => frame::write_consumed(writer, connection, stream, offset),
        Frame::MessagesConsumed { connection, number } => frame::write_messages_consumed(writer, connection, number),
        Frame::StreamLimit { connection, direction, total } => {
            frame::write_stream_limit(writer, connection, direction, total)
        }
        Frame::Datagram { connection, payload } => frame::write_datagram(writer, connection, payload),
        Frame::MessagePart { connection, number, part: frame::Part { total, offset, payload } } => {
            frame::write_message_part(writer, connection, number, total, offset, payload)
        }
        Frame::NewSessionId { id, ref token } => frame::write_new_session_id(writer, id, token),
        Frame::PathChallenge { data } => frame::write_path_challenge(writer, data),
        Frame::PathResponse { data } => frame::write_path_response(writer, data),
        Frame::Message { connection, number, payload } => frame::write_message(writer, connection, number, payload),
        Frame::Stream { connection, stream, offset, fin, payload } => {
            frame::write_stream(writer, connection, stream, offset, fin, payload.len())
                .map(|room| room.copy_from_slice(payload))
        }
    }
}

/// Reads `payload` as handshake parameters, which any stranger can send who knows the node's public key. What is read is
/// written again and must then read as the same. With an encapsulation key, what it is encapsulated to is the same each time.
///
/// # Panics
/// When it does not.
pub fn parameters(payload: &[u8]) {
    if let Some(key) = encapsulation_key(payload) {
        let encapsulated = || kem::encapsulate(key, &mut SeededRng::new([1; 32])).map(|(ciphertext, _)| ciphertext);
        assert_eq!(encapsulated(), encapsulated());
    }
    let Some(parameters) = Parameters::decode(payload) else { return };
    // Not longer than what was read, but for those that were left out.
    let mut buffer = vec![0; payload.len() + 512];
    let mut writer = Writer::new(&mut buffer);
    assert!(parameters.encode(&mut writer).is_some(), "cannot be written: {parameters:?}");
    let length = writer.len();
    assert_eq!(Parameters::decode(&buffer[..length]), Some(parameters));
}

/// Makes the mac1 of a handshake message right for the owner of `static_key`.
pub fn write_mac1(static_key: &[u8; 32], message: &mut [u8]) {
    if message.len() >= 2 * crate::crypto::mac::MAC_LEN {
        Mac1Key::to(static_key).write(message);
    }
}

/// A data packet to `peer` with any bytes as its frames, under the tunnel's key and the next packet number. `None`: no
/// tunnel is up.
pub fn seal(endpoint: &mut Endpoint, peer: PeerId, frames: &[u8]) -> Option<Vec<u8>> {
    endpoint.tunnel_mut(peer)?.seal_any(frames)
}
