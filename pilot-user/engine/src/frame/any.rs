//! Every frame, of any values.

use super::*;
use crate::codec::Writer;
use crate::fuzzing;
use crate::limits::MAX_ACK_RANGES;
use crate::recovery::ecn::EcnCounts;
use crate::time::Instant;
use proptest::prelude::*;
use std::time::Duration;

/// Bytes that hold every frame made here, and what [`write_ack`] wants to have left.
const ROOM: usize = 1200;

/// As large as a varint can be, and as short as any.
fn varint() -> impl Strategy<Value = u64> {
    (0..=MAX_VARINT, 0u32..62).prop_map(|(value, shift)| value >> shift)
}

fn next(bytes: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    Frame::next(&mut Reader::new(bytes))
}

/// An ACK of ranges that lie `gaps` apart below `largest`, as far as there are numbers.
fn ack(largest: u64, delay: u64, ecn: Option<EcnCounts>, gaps: &[(u64, u64)]) -> Ack<'static> {
    let mut ranges = Vec::new();
    let mut end = Some(largest);
    for (length, gap) in gaps {
        let Some(largest) = end else { break };
        let smallest = largest.saturating_sub(*length);
        ranges.push((smallest, largest));
        end = smallest.checked_sub(2 + gap);
    }
    super::tests::ack(Duration::from_micros(delay), ecn, &ranges)
}

proptest! {
    /// wire.md §5, W1.6, W5.1: each reads as it was written; cut anywhere it is an error; without room for its last byte
    /// nothing is written.
    #[test]
    fn frames_round_trip_and_do_not_survive_truncation(
        (connection, stream, total, delay) in (varint(), varint(), varint(), varint()),
        arrival in any::<u64>(),
        (code, port, number, id, fin) in (varint(), any::<u16>(), any::<u16>(), any::<u32>(), any::<bool>()),
        reason in "\\PC{0,80}",
        payload in prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..200)],
        gaps in prop::collection::vec((0u64..1 << 20, 0u64..1 << 20), 1..=MAX_ACK_RANGES),
        data: PathData,
    ) {
        let (reason, payload) = (cut(&reason), payload.as_slice());
        let offset = total.min(MAX_VARINT - payload.len() as u64);
        // Parts begin at a multiple of the unit, and end at one or with their message.
        let at = total as usize / 2 / MESSAGE_PART_UNIT_BYTES * MESSAGE_PART_UNIT_BYTES;
        let unit = [number as u8; MESSAGE_PART_UNIT_BYTES];
        let inner = Part { total: at + unit.len() + payload.len(), offset: at, payload: &unit };
        let ending = if payload.is_empty() { &unit[..1] } else { payload };
        let last = Part { total: at + ending.len(), offset: at, payload: ending };
        let ecn = Some(EcnCounts { ect0: stream, ect1: code, ce: connection });
        let arrival = Some(ArrivalTime::at(Instant::from_nanos(arrival)));
        for frame in [
            Frame::Ping,
            Frame::Ack(ack(total, delay, None, &gaps)),
            Frame::Ack(ack(total, delay, ecn, &gaps)),
            Frame::Ack(Ack { arrival, ..ack(total, delay, None, &gaps) }),
            Frame::Ack(Ack { arrival, ..ack(total, delay, ecn, &gaps) }),
            Frame::AckFrequency { packets: total, arrivals: fin },
            Frame::Open { connection, port },
            Frame::Accept { connection },
            Frame::Refuse { connection, code, reason },
            Frame::CloseConnection { connection, code, reason },
            Frame::Close { code, reason },
            Frame::Credit { connection, total },
            Frame::StreamCredit { connection, stream, offset },
            Frame::ResetStream { connection, stream, code, length: total },
            Frame::StopStream { connection, stream, code },
            Frame::Consumed { connection, stream, offset },
            Frame::MessagesConsumed { connection, number: total },
            Frame::StreamLimit { connection, direction: Direction::Bidirectional, total },
            Frame::StreamLimit { connection, direction: Direction::Unidirectional, total },
            Frame::Datagram { connection, payload },
            Frame::MessagePart { connection, number, part: inner },
            Frame::MessagePart { connection, number, part: last },
            Frame::NewSessionId { id, token: ResetToken([number as u8; 16]) },
            Frame::PathChallenge { data },
            Frame::PathResponse { data },
            Frame::Message { connection, number, payload },
            Frame::Stream { connection, stream, offset, fin, payload },
        ] {
            let mut buffer = [0; ROOM];
            let mut writer = Writer::new(&mut buffer);
            prop_assert_eq!(fuzzing::write(&frame, &mut writer), Some(()), "{:?}", frame);
            let length = writer.len();
            prop_assert_eq!(next(&buffer[..length]), Ok(Some(frame.clone())));
            for cut in 1..length {
                prop_assert_eq!(next(&buffer[..cut]), Err(Code::FrameEncoding), "{:?} cut to {}", frame, cut);
            }
            // An ACK leaves out what does not fit.
            if !matches!(frame, Frame::Ack(_)) {
                let mut short = Writer::new(&mut buffer[..length - 1]);
                prop_assert_eq!(fuzzing::write(&frame, &mut short), None, "{:?}", frame);
                prop_assert_eq!(short.len(), 0);
            }
        }
    }

    /// wire.md W1.6: any bytes are frames, which say the same when they are written again, or an error.
    #[test]
    fn any_bytes_are_frames_or_an_error(
        frames in prop::collection::vec((prop_oneof![0u8..0x28, any::<u8>()], prop::collection::vec(0u8..0x50, 0..12)), 0..8),
        rest in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let bytes = frames.into_iter().flat_map(|(kind, fields)| [vec![kind], fields].concat());
        fuzzing::frames(&bytes.chain(rest).collect::<Vec<u8>>());
    }
}
