use super::*;
use crate::codec::{Reader, Writer};
use crate::error::{Code, ProtocolViolation};
use crate::frame::Part as FramePart;
use crate::limits::{MAX_MESSAGE_BYTES, MESSAGE_WINDOW, WHOLE_MESSAGE_BYTES};
use proptest::prelude::*;

fn take(receiver: &mut MessageReceiver) -> Option<Vec<u8>> {
    receiver.take().map(<[u8]>::to_vec)
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
    let part = |offset: usize, end: usize| FramePart { total: 3000, offset, payload: &message[offset..end] };
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
    assert_eq!(code(receiver.on_part(2, FramePart { total: 3001, ..part(0, 1024) })), Code::ConnectionState);
    assert_eq!(code(receiver.on_message(2, b"")), Code::ConnectionState);
    assert_eq!(
        code(receiver.on_part(3, FramePart { total: MAX_MESSAGE_BYTES + 1, ..part(0, 64) })),
        Code::LimitExceeded
    );
    assert_eq!(code(receiver.on_part(3, FramePart { total: 1024, ..part(0, 64) })), Code::LimitExceeded);
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
    let range = |sender: &MessageSender, credit| sender.next_part(credit).map(|part| part.range);
    let send = |sender: &mut MessageSender, end| {
        let mut part = sender.next_part(cost(3000)).unwrap();
        assert_eq!((part.number, part.total), (0, 3000));
        part.range.end = end;
        assert_eq!(sender.part(&part), vec![1; part.range.len()]);
        sender.on_part_sent(&part)
    };
    assert!(!sender.wants_to_send(cost(3000) - 1));
    assert_eq!(range(&sender, cost(3000) - 1), None);
    assert_eq!(range(&sender, cost(3000)), Some(0..3000));
    assert_eq!(send(&mut sender, 1024), cost(3000));
    assert_eq!(range(&sender, 0), Some(1024..3000), "it has its credit");
    assert!(sender.wants_to_send(0));
    sender.on_part_lost(0, 0..1024);
    assert_eq!(send(&mut sender, 512), 0, "what was lost comes first");
    assert_eq!(range(&sender, 0), Some(512..1024));
    assert_eq!(send(&mut sender, 1024), 0);
    assert_eq!(send(&mut sender, 3000), 0);
    assert!(!sender.wants_to_send(cost(5) - 1));
    sender.on_part_lost(0, 0..1024);
    assert_eq!(range(&sender, 0), Some(0..1024));
    assert!(!sender.on_part_acked(0, 0..1024));
    sender.on_part_lost(0, 0..1024);
    assert!(!sender.wants_to_send(0), "a late loss of what was acked");
    assert!(sender.on_part_acked(0, 1024..3000));
    assert!(sender.wants_to_send(cost(5)));
    assert_eq!(range(&sender, cost(5)), None, "the next one is whole");
    let mut packet = [0; 100];
    assert_eq!(
        sender.write_run(cost(5), &mut Writer::new(&mut packet)).map(|run| (run.count, run.cost)),
        Some((1, cost(5)))
    );
}

/// wire.md W5.11: what is acked behind a message that is not keeps it, and is not sent again with it.
#[test]
fn acks_in_disorder() {
    let mut sender = MessageSender::default();
    (0..4u8).for_each(|n| sender.push(&[n; 20]));
    let write = |sender: &mut MessageSender, room: usize| {
        let mut packet = vec![0; room];
        let mut w = Writer::new(&mut packet);
        let run = sender.write_run(u64::MAX, &mut w).unwrap();
        let mut reader = Reader::new(&packet[..run.bytes as usize]);
        let numbers = std::iter::from_fn(|| crate::frame::next_message(&mut reader, 0)).map(|(number, _)| number);
        (numbers.collect::<Vec<_>>(), run)
    };
    let runs = [30, 50, 30].map(|room| write(&mut sender, room).1);
    assert_eq!(runs.each_ref().map(|run| run.count), [1, 2, 1]);
    assert!(!sender.on_acked(runs[1].start, runs[1].bytes, runs[1].count), "nothing came free");
    runs.iter().for_each(|run| sender.on_lost(run.start, run.bytes));
    assert_eq!(write(&mut sender, 200).0, [0]);
    assert_eq!(write(&mut sender, 200).0, [3]);
    assert!(!sender.wants_to_send(u64::MAX));
    assert!(sender.on_acked(runs[0].start, runs[0].bytes, runs[0].count));
    assert!(sender.on_consumed(3) == Ok(true) && !sender.is_empty());
    assert!(sender.on_acked(runs[2].start, runs[2].bytes, runs[2].count));
    assert!(sender.is_empty() && sender.on_consumed(4) == Ok(true));
    sender.push(b"next");
    assert_eq!(write(&mut sender, 200).0, [4]);
}

#[test]
fn numbers_far_apart() {
    for next in [0u64, 1, 40_000, 65_535, 65_536, 1 << 40] {
        for delta in [-(MESSAGE_WINDOW as i64), -1, 0, 1, MESSAGE_WINDOW as i64 - 1] {
            let Some(number) = next.checked_add_signed(delta) else { continue };
            assert_eq!(nearest(number as u16, next), number);
        }
    }
}

proptest! {
    /// Sender to receiver with loss, repetition and late acks, whole and in parts, of connections with short ids and long ones:
    /// every message once, in order; both ends count the same credit.
    #[test]
    fn survives_loss(
        fates in prop::collection::vec((0u8..6, 1usize..30), 0..300),
        count in 1usize..80,
        id in prop::sample::select(vec![0u64, 63, 64, 1 << 20]),
    ) {
        let (mut sender, mut receiver) = (MessageSender::default(), MessageReceiver::default());
        let length = |n: usize| if n % 7 == 3 { 1025 + 97 * n } else { n * 5 % 89 };
        let messages: Vec<Vec<u8>> = (0..count).map(|n| (0..length(n)).map(|at| (n + at) as u8).collect()).collect();
        messages[..count / 2].iter().for_each(|m| sender.push(m));
        sender.set_connection(id);
        messages[count / 2..].iter().for_each(|m| sender.push(m));
        let (mut fates, mut out, mut credit, mut late) = (fates.into_iter(), Vec::new(), [0, 0], Vec::new());
        while sender.wants_to_send(u64::MAX) {
            let (fate, units) = fates.next().unwrap_or((0, 16));
            let arrives = fate != 3;
            let mut packet = vec![0; 100 + 64 * units];
            let mut writer = Writer::new(&mut packet);
            let sent = if let Some(run) = sender.write_run(u64::MAX, &mut writer) {
                prop_assert!(run.count > 0);
                credit[0] += run.cost;
                let length = writer.len();
                prop_assert_eq!(length, run.bytes as usize);
                let mut reader = Reader::new(&packet[..length]);
                if arrives {
                    credit[1] += receiver.on_messages(id, &mut reader).unwrap();
                    prop_assert!(reader.is_empty());
                }
                Sent::Run(run)
            } else {
                let mut next = sender.next_part(u64::MAX).unwrap();
                next.range.end = next.range.end.min(next.range.start + 64 * units);
                let (number, offset) = (next.number, next.range.start);
                let payload = sender.part(&next).to_vec();
                prop_assert_eq!(payload.len(), next.range.len());
                credit[0] += sender.on_part_sent(&next);
                if arrives {
                    let part = FramePart { total: next.total, offset, payload: &payload };
                    credit[1] += receiver.on_part(number as u16, part).unwrap();
                }
                Sent::Part(number, wide(&next.range))
            };
            match fate {
                0 => sent.acked(&mut sender),
                1 => { sent.acked(&mut sender); sent.lost(&mut sender); }
                2 | 3 => sent.lost(&mut sender),
                // Taken for lost, and acked when another copy has left.
                4 => { sent.lost(&mut sender); late.push(sent); }
                _ => late.push(sent),
            }
            if units % 3 == 0 && let Some(sent) = late.pop() {
                sent.acked(&mut sender);
            }
            while let Some(message) = take(&mut receiver) {
                out.push(message);
            }
        }
        late.iter().for_each(|sent| sent.acked(&mut sender));
        prop_assert!(sender.is_empty() && sender.parted.is_empty() && receiver.parted.is_empty());
        prop_assert!(out == messages);
        prop_assert_eq!(credit[0], credit[1]);
    }
}

/// What a packet of the property above carried.
enum Sent {
    Run(Run),
    Part(u64, Range<u64>),
}

impl Sent {
    fn acked(&self, sender: &mut MessageSender) {
        match self {
            Self::Run(run) => sender.on_acked(run.start, run.bytes, run.count),
            Self::Part(number, part) => sender.on_part_acked(*number, part.clone()),
        };
    }

    fn lost(&self, sender: &mut MessageSender) {
        match self {
            Self::Run(run) => sender.on_lost(run.start, run.bytes),
            Self::Part(number, part) => sender.on_part_lost(*number, part.clone()),
        }
    }
}
