use super::ack::Ranges;
use super::*;
use crate::codec::{Writer, varint_len};
use crate::limits::MAX_ACK_RANGES;
use crate::recovery::ecn::EcnCounts;
use crate::time::Instant;
use proptest::prelude::*;
use std::time::Duration;

fn decode_all(bytes: &[u8]) -> Result<Vec<Frame<'_>>, FrameError> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(|| Frame::next(&mut reader).transpose()).collect()
}

fn written(write: impl FnOnce(&mut Writer<'_>) -> Option<()>) -> Vec<u8> {
    let mut buffer = [0; 1200];
    let mut writer = Writer::new(&mut buffer);
    write(&mut writer).unwrap();
    let length = writer.len();
    buffer[..length].to_vec()
}

/// Every frame that is written, with what it reads as.
fn samples() -> Vec<(Vec<u8>, Frame<'static>)> {
    let delay = Duration::from_micros(300);
    let ack = ack(delay, None, &[(9, 12), (3, 5), (0, 0)]);
    let newest_first = [(9, 12), (3, 5), (0, 0)];
    let ecn = Some(EcnCounts { ect0: 100, ect1: 0, ce: 1 << 40 });
    let arrival = Some(ArrivalTime::at(Instant::from_nanos(1_700_000_000_000_000_000)));
    vec![
        (written(write_ping), Frame::Ping),
        (
            written(|w| write_ack(w, delay, ecn, arrival, newest_first.into_iter())),
            Frame::Ack(Ack { ecn, arrival, ..ack.clone() }),
        ),
        (
            written(|w| write_ack(w, delay, None, arrival, newest_first.into_iter())),
            Frame::Ack(Ack { arrival, ..ack.clone() }),
        ),
        (written(|w| write_ack(w, delay, ecn, None, newest_first.into_iter())), Frame::Ack(Ack { ecn, ..ack.clone() })),
        (written(|w| write_ack(w, delay, None, None, newest_first.into_iter())), Frame::Ack(ack)),
        (written(|w| write_ack_frequency(w, 32, false)), Frame::AckFrequency { packets: 32, arrivals: false }),
        (written(|w| write_ack_frequency(w, 64, true)), Frame::AckFrequency { packets: 64, arrivals: true }),
        (written(|w| write_open(w, 64, 1001)), Frame::Open { connection: 64, port: 1001 }),
        (written(|w| write_accept(w, 1 << 40)), Frame::Accept { connection: 1 << 40 }),
        (written(|w| write_refuse(w, 2, 1, "no")), Frame::Refuse { connection: 2, code: 1, reason: "no" }),
        (
            written(|w| write_close_connection(w, 2, 0, "")),
            Frame::CloseConnection { connection: 2, code: 0, reason: "" },
        ),
        (written(|w| write_close(w, 10, "späť")), Frame::Close { code: 10, reason: "späť" }),
        (written(|w| write_credit(w, 3, 1 << 20)), Frame::Credit { connection: 3, total: 1 << 20 }),
        (
            written(|w| write_stream_credit(w, 3, 8, 1 << 30)),
            Frame::StreamCredit { connection: 3, stream: 8, offset: 1 << 30 },
        ),
        (
            written(|w| write_stream_limit(w, 3, Direction::Bidirectional, 129)),
            Frame::StreamLimit { connection: 3, direction: Direction::Bidirectional, total: 129 },
        ),
        (
            written(|w| write_stream_limit(w, 3, Direction::Unidirectional, 130)),
            Frame::StreamLimit { connection: 3, direction: Direction::Unidirectional, total: 130 },
        ),
        (
            written(|w| write_reset_stream(w, 3, 6, 404, 1 << 20)),
            Frame::ResetStream { connection: 3, stream: 6, code: 404, length: 1 << 20 },
        ),
        (
            written(|w| write_stop_stream(w, 3, 6, 1 << 61)),
            Frame::StopStream { connection: 3, stream: 6, code: 1 << 61 },
        ),
        (written(|w| write_consumed(w, 3, 6, 1 << 32)), Frame::Consumed { connection: 3, stream: 6, offset: 1 << 32 }),
        (written(|w| write_messages_consumed(w, 3, 70)), Frame::MessagesConsumed { connection: 3, number: 70 }),
        (
            written(|w| write_datagram(w, 9, b"one datagram")),
            Frame::Datagram { connection: 9, payload: b"one datagram" },
        ),
        (
            written(|w| write_message_part(w, 1, 8, 1100, 1088, b"a part of it")),
            Frame::MessagePart {
                connection: 1,
                number: 8,
                part: Part { total: 1100, offset: 1088, payload: b"a part of it" },
            },
        ),
        (
            written(|w| write_new_session_id(w, 0x0102_0304, &ResetToken([7; 16]))),
            Frame::NewSessionId { id: 0x0102_0304, token: ResetToken([7; 16]) },
        ),
        (written(|w| write_path_challenge(w, *b"12345678")), Frame::PathChallenge { data: *b"12345678" }),
        (written(|w| write_path_response(w, *b"87654321")), Frame::PathResponse { data: *b"87654321" }),
        (
            written(|w| write_message(w, 0, 7, b"one message")),
            Frame::Message { connection: 0, number: 7, payload: b"one message" },
        ),
        (
            written(|w| write_stream(w, 5, 4, 1000, true, 3).map(|room| room.copy_from_slice(b"end"))),
            Frame::Stream { connection: 5, stream: 4, offset: 1000, fin: true, payload: b"end" },
        ),
        (
            written(|w| write_stream(w, 5, 4, 0, false, 0).map(|_| ())),
            Frame::Stream { connection: 5, stream: 4, offset: 0, fin: false, payload: b"" },
        ),
    ]
}

/// An ACK of these ranges, newest first, in the words of RFC 9000 §19.3.1.
pub(super) fn ack(delay: Duration, ecn: Option<EcnCounts>, ranges: &[(u64, u64)]) -> Ack<'static> {
    let room = Box::leak(Box::new([0; 16 * MAX_ACK_RANGES]));
    let mut writer = Writer::new(room);
    for pair in ranges.windows(2) {
        let [(smallest, _), (next_smallest, next_largest)] = *pair else { unreachable!("two by two") };
        writer.varint(smallest - next_largest - 2).unwrap();
        writer.varint(next_largest - next_smallest).unwrap();
    }
    let length = writer.len();
    let ack = Ack {
        delay,
        ecn,
        arrival: None,
        ranges: Ranges { next: ranges[0], left: ranges.len(), further: Reader::new(&room[..length]) },
    };
    assert_eq!(ack.ranges().collect::<Vec<_>>(), ranges);
    ack
}

/// wire.md §5, W1.6, W5.1: each reads as it was written; cut anywhere, it is an error, never something else.
#[test]
fn frames_round_trip_and_do_not_survive_truncation() {
    for (bytes, frame) in samples() {
        assert_eq!(decode_all(&bytes), Ok(vec![frame.clone()]));
        for cut in 1..bytes.len() {
            assert_eq!(decode_all(&bytes[..cut]), Err(Code::FrameEncoding), "{frame:?} cut to {cut}");
        }
    }
    let together: Vec<u8> = samples().into_iter().flat_map(|(bytes, _)| [bytes, vec![PADDING; 3]].concat()).collect();
    let frames: Vec<Frame<'_>> = samples().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(decode_all(&together), Ok(frames), "one behind the other, with padding");
}

/// Room that is too small by a byte is refused, and nothing is written.
#[test]
fn a_frame_is_written_whole_or_not_at_all() {
    for length in 0..40 {
        let mut buffer = [0xee; 40];
        let mut writer = Writer::new(&mut buffer[..length]);
        let fits = write_message(&mut writer, 0, 7, &[1; 20]).is_some();
        assert_eq!((fits, writer.len()), (length >= 25, if length >= 25 { 25 } else { 0 }));
        let mut writer = Writer::new(&mut buffer[..length]);
        let fits = write_close(&mut writer, 1, "reason").is_some();
        assert_eq!((fits, writer.len()), (length >= 9, if length >= 9 { 9 } else { 0 }));
    }
}

#[test]
fn a_last_message_says_the_same_without_its_length() {
    for payload in [&b""[..], &[5; 19], &[6; 63], &[7; 64], &[8; 1000]] {
        for connection in [0, 63, 64, 20_000] {
            let mut bytes = written(|w| write_message(w, connection, 9, payload));
            let saved = elide_message_length(&mut bytes);
            assert_eq!(saved, varint_len(payload.len() as u64));
            bytes.truncate(bytes.len() - saved);
            assert_eq!(decode_all(&bytes), Ok(vec![Frame::Message { connection, number: 9, payload }]));
        }
    }
    let mut delta = written(|w| write_message(w, 0, 9, &[1; 19]));
    assert_eq!(delta.len() - elide_message_length(&mut delta) + 9 + 16, 48, "what a 19-byte delta costs");
}

/// wire.md W5.4
#[test]
fn acks_are_bounded() {
    let many = written(|w| {
        write_ack(
            w,
            Duration::ZERO,
            None,
            None,
            (0..100u32).map(|n| (u64::from(1000 - 2 * n), u64::from(1000 - 2 * n))),
        )
    });
    match decode_all(&many).unwrap().as_slice() {
        [Frame::Ack(ack)] => assert_eq!((ack.ranges().len(), ack.largest()), (MAX_ACK_RANGES, 1000)),
        other => panic!("{other:?}"),
    }
    // 33 ranges, and ranges below zero.
    let mut too_many = vec![ACK, 0x43, 0xe8, 0, 32, 0];
    too_many.extend([0; 64]);
    assert_eq!(decode_all(&too_many), Err(Code::FrameEncoding));
    assert_eq!(decode_all(&[ACK, 5, 0, 0, 6]), Err(Code::FrameEncoding));
    assert_eq!(decode_all(&[ACK, 5, 0, 1, 4, 0, 0]), Err(Code::FrameEncoding));
}

/// wire.md W5.23: whatever the clocks show, and wherever they wrap, one time less another is what lies between.
#[test]
fn times_of_arrival_wrap() {
    let at = |micros: i64| Instant::from_nanos(micros as u64 * 1000);
    let second = 1_000_000;
    for (ahead, sent) in [(0, 5), (7, 5), (0, 1073), (400, 1073), (-400, 5000), (9, 100_000)] {
        let (ahead, sent) = (ahead * second, sent * second);
        let first = ArrivalTime::at(at(sent + ahead)).since(at(sent), 0);
        assert_eq!(first, ahead, "{sent} µs");
        // Half an hour later.
        let sent = sent + 1800 * second;
        assert_eq!(ArrivalTime::at(at(sent + ahead + 2500)).since(at(sent), first), ahead + 2500, "{sent} µs");
    }
}

/// wire.md W5.1, W5.14
#[test]
fn what_cannot_be_is_refused() {
    for kind in [0x1e, 0x1f, 0x28, 0x3f, 0xff] {
        assert_eq!(decode_all(&[kind, 0, 0, 0, 0]), Err(Code::UnknownFrame), "{kind:#x}");
    }
    let late = [&[ACK_ARRIVAL, 5, 0, 0, 0][..], &(ArrivalTime::MODULUS | 3 << 62).to_be_bytes()].concat();
    assert_eq!(decode_all(&late), Err(Code::FrameEncoding), "wire.md W5.23: a time that is not modulo");
    assert_eq!(decode_all(&[NEW_SESSION_ID, 0, 0, 0, 0]), Err(Code::FrameEncoding), "wire.md W1.2: nobody's id");
    assert_eq!(decode_all(&[CLOSE, 0, 2, 0xff, 0xff]), Err(Code::FrameEncoding), "a reason that is not UTF-8");
    let mut long = vec![CLOSE, 0, 0x41, 0x01];
    long.extend([b'x'; 257]);
    assert_eq!(decode_all(&long), Err(Code::FrameEncoding), "a reason of 257 bytes");
    let far = [&[STREAM | STREAM_OFFSET, 0, 0][..], &[0xff; 8], &[1]].concat();
    assert_eq!(decode_all(&far), Err(Code::FrameEncoding), "a byte beyond what an offset can say");
    // wire.md W5.13: outside of its message, empty, and not at a multiple of the unit.
    for (total, offset, length) in [(2000, 1984, 17), (64, 128, 1), (2000, 64, 0), (2000, 63, 64), (2000, 64, 63)] {
        let part = written(|w| write_message_part(w, 0, 1, total, offset, &vec![0; length]));
        assert_eq!(decode_all(&part), Err(Code::FrameEncoding), "{length} of {total} bytes from {offset} on");
    }
    assert_eq!(cut(&"ä".repeat(200)).len(), 256);
    assert_eq!(cut(&format!("x{}", "ä".repeat(200))).len(), 255, "never through a character");
}

/// wire.md W4.8, W6.4: these bytes are what other implementations send and read.
#[test]
fn vectors_of_path_frames() {
    let new_id = written(|w| write_new_session_id(w, 0x0900_00ff, &ResetToken([7; 16])));
    assert_eq!(new_id, [&[0x0d, 9, 0, 0, 0xff][..], &[7; 16]].concat());
    assert_eq!(written(|w| write_path_challenge(w, [7; 8])), [0x0e, 7, 7, 7, 7, 7, 7, 7, 7]);
    assert_eq!(written(|w| write_path_response(w, [7; 8])), [0x0f, 7, 7, 7, 7, 7, 7, 7, 7]);
}

proptest! {
    /// Real frames, damaged.
    #[test]
    fn damaged_frames_are_frames_or_an_error(which in 0usize..samples().len(), at in any::<prop::sample::Index>(), value: u8) {
        let mut bytes = samples().swap_remove(which).0;
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = decode_all(&bytes);
    }
}
