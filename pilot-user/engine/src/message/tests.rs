use super::*;
use crate::codec::{Reader, Writer};
use crate::error::{Code, ProtocolViolation};
use crate::frame::{self, Part};
use crate::limits::{MAX_MESSAGE_BYTES, MESSAGE_WINDOW, WHOLE_MESSAGE_BYTES};
use proptest::prelude::*;

fn take(receiver: &mut MessageReceiver) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    receiver.take(&mut out).map(|_| out)
}

/// wire.md W5.11
#[test]
fn whole_once_and_in_order() {
    let mut receiver = MessageReceiver::default();
    assert_eq!(receiver.on_message(1, b"b"), Ok(cost(1)));
    assert_eq!(receiver.on_message(1, b"b"), Ok(0));
    assert_eq!(take(&mut receiver), None);
    assert_eq!(receiver.on_message(0, b""), Ok(cost(0)));
    assert_eq!(receiver.on_message(0, b""), Ok(0));
    assert_eq!(take(&mut receiver), Some(b"".to_vec()));
    assert_eq!(take(&mut receiver), Some(b"b".to_vec()));
    assert_eq!(receiver.on_message(1, b"b"), Ok(0), "taken already");
    assert_eq!(receiver.taken(), 2);
}

/// wire.md W5.9, W5.13: parts in any order are a message when all are there, which counts whole and once.
#[test]
fn parts_make_a_message() {
    let mut receiver = MessageReceiver::default();
    let message: Vec<u8> = (0..3000u16).map(|n| n as u8).collect();
    let part = |offset: usize, end: usize| Part { total: 3000, offset, payload: &message[offset..end] };
    assert_eq!(receiver.on_part(1, part(2048, 3000)), Ok(cost(3000)));
    assert_eq!(receiver.on_part(1, part(0, 1024)), Ok(0));
    assert_eq!(receiver.on_part(1, part(0, 1024)), Ok(0), "again");
    assert_eq!(receiver.on_message(0, b"a"), Ok(cost(1)));
    assert_eq!(take(&mut receiver), Some(b"a".to_vec()));
    assert_eq!(take(&mut receiver), None, "a part is missing");
    assert_eq!(receiver.on_part(1, part(1024, 2048)), Ok(0));
    assert!(take(&mut receiver) == Some(message.clone()));
    assert_eq!(receiver.on_part(1, part(1024, 2048)), Ok(0), "taken already");
    let code = |result: Result<u64, ProtocolViolation>| result.unwrap_err().code;
    assert_eq!(receiver.on_part(2, part(0, 1024)), Ok(cost(3000)));
    assert_eq!(code(receiver.on_part(2, Part { total: 3001, ..part(0, 1024) })), Code::ConnectionState);
    assert_eq!(code(receiver.on_message(2, b"")), Code::ConnectionState);
    assert_eq!(code(receiver.on_part(3, Part { total: MAX_MESSAGE_BYTES + 1, ..part(0, 64) })), Code::LimitExceeded);
    assert_eq!(code(receiver.on_part(3, Part { total: 1024, ..part(0, 64) })), Code::LimitExceeded);
}

/// wire.md W5.11, W5.13
#[test]
fn bounds() {
    let mut receiver = MessageReceiver::default();
    let code = |result: Result<u64, ProtocolViolation>| result.unwrap_err().code;
    assert_eq!(code(receiver.on_message(0, &[0; WHOLE_MESSAGE_BYTES + 1])), Code::LimitExceeded);
    assert_eq!(code(receiver.on_message(MESSAGE_WINDOW as u16, b"")), Code::LimitExceeded);
    assert_eq!(code(receiver.on_message(u16::MAX, b"")), Code::LimitExceeded, "before the first");
    assert_eq!(receiver.on_message(MESSAGE_WINDOW as u16 - 1, b""), Ok(cost(0)));

    let mut sender = MessageSender::default();
    let sent = (0..)
        .take_while(|_| {
            sender.has_room(1) && {
                sender.push(b"x");
                true
            }
        })
        .count();
    assert_eq!(sent as u64, MESSAGE_WINDOW);
}

/// wire.md W5.9: a message that credit does not allow whole is not begun; one that was begun goes on. A part is sent again
/// when it was lost, and not when another copy of it had arrived.
#[test]
fn credit_and_loss_of_what_goes_in_parts() {
    let mut sender = MessageSender::default();
    sender.push(&[1; 3000]);
    sender.push(b"small");
    let part = |range| Some(Outgoing { number: 0, total: 3000, range });
    assert_eq!(sender.peek(cost(3000) - 1), None);
    assert_eq!(sender.peek(cost(3000)), part(0..3000));
    assert_eq!(sender.on_sent(&part(0..1024).unwrap()), cost(3000));
    assert_eq!(sender.peek(0), part(1024..3000), "it has its credit");
    assert_eq!(sender.on_sent(&part(1024..3000).unwrap()), 0);
    assert_eq!(sender.peek(cost(5) - 1), None);
    sender.on_part_lost(0, 0..1024);
    assert_eq!(sender.peek(0), part(0..1024));
    assert!(!sender.on_part_acked(0, 0..1024));
    sender.on_part_lost(0, 0..1024);
    assert_eq!(sender.peek(0), None, "a late loss of what was acked");
    assert!(sender.on_part_acked(0, 1024..3000));
    assert_eq!(sender.peek(cost(5)).map(|next| next.number), Some(1));
}

#[test]
fn numbers_far_apart() {
    for next in [0u64, 1, 40_000, 65_535, 65_536, 1 << 40] {
        for delta in [-4096i64, -1, 0, 1, 4095] {
            let Some(number) = next.checked_add_signed(delta) else { continue };
            assert_eq!(nearest(number as u16, next), number);
        }
    }
}

proptest! {
    /// Sender to receiver with loss, repetition and late acks, whole and in parts: every message once, in order; both ends
    /// count the same credit.
    #[test]
    fn survives_loss(fates in prop::collection::vec((0u8..4, 1usize..30), 0..300), count in 1usize..80) {
        let (mut sender, mut receiver) = (MessageSender::default(), MessageReceiver::default());
        let length = |n: usize| if n % 7 == 3 { 1025 + 97 * n } else { n % 23 };
        let messages: Vec<Vec<u8>> = (0..count).map(|n| (0..length(n)).map(|at| (n + at) as u8).collect()).collect();
        messages.iter().for_each(|m| sender.push(m));
        let (mut fates, mut out, mut credit) = (fates.into_iter(), Vec::new(), [0, 0]);
        while sender.peek(u64::MAX).is_some() {
            let (fate, units) = fates.next().unwrap_or((0, 16));
            let mut packet = vec![0; 64 * units];
            let mut writer = Writer::new(&mut packet);
            if let Some(run) = sender.write_fresh(0, u64::MAX, &mut writer) {
                prop_assert!(run.count > 0);
                credit[0] += run.cost;
                let length = writer.len();
                let mut reader = Reader::new(&packet[..length]);
                while let Some((number, payload)) = frame::next_message(&mut reader, 0).filter(|_| fate < 3) {
                    credit[1] += receiver.on_message(number, payload).unwrap();
                }
                prop_assert!(fate == 3 || reader.is_empty());
                let (acked, lost) = (fate < 2, fate > 0);
                acked.then(|| sender.on_acked(run.first, run.count));
                lost.then(|| sender.on_lost(run.first, run.count));
            } else {
                let Some(mut next) = sender.peek(u64::MAX) else { break };
                if !next.is_whole() {
                    next.range.end = next.range.end.min(next.range.start + 64 * units);
                }
                let (number, offset) = (next.number, next.range.start);
                let payload = sender.payload(number, next.range.clone()).to_vec();
                prop_assert_eq!(payload.len(), next.range.len());
                credit[0] += sender.on_sent(&next);
                let part = wide(&next.range);
                if fate < 3 {
                    credit[1] += match next.is_whole() {
                        true => receiver.on_message(number as u16, &payload).unwrap(),
                        false => receiver.on_part(number as u16, Part { total: next.total, offset, payload: &payload }).unwrap(),
                    };
                }
                let acked = |sender: &mut MessageSender| match next.is_whole() {
                    true => sender.on_acked(number, 1),
                    false => sender.on_part_acked(number, part.clone()),
                };
                let lost = |sender: &mut MessageSender| match next.is_whole() {
                    true => sender.on_lost(number, 1),
                    false => sender.on_part_lost(number, part.clone()),
                };
                match fate {
                    0 => { acked(&mut sender); }
                    1 => { acked(&mut sender); lost(&mut sender); }
                    _ => lost(&mut sender),
                }
            }
            while let Some(message) = take(&mut receiver) {
                out.push(message);
            }
        }
        prop_assert!(sender.is_empty() && sender.parted.is_empty() && receiver.parted.is_empty());
        prop_assert!(out == messages);
        prop_assert_eq!(credit[0], credit[1]);
    }
}
