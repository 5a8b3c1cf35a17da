//! What is consumed later than it is taken (`docs/wire.md` W5.16): an application in another process has it first.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::Pair;
use pilot_engine::{ConnectionHandle, Event, Read, StreamId};

const SECOND: Duration = Duration::from_secs(1);
/// A round trip and an ACK's delay, well below any keep-alive.
const SOON: Duration = Duration::from_millis(10);

#[test]
fn what_is_taken_is_not_consumed_until_that_is_said() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.ends[1].endpoint.consume_later(theirs);
    for message in [b"one", b"two"] {
        pair.ends[0].endpoint.send_message(pair.now, ours, message).unwrap();
    }
    pair.run(SECOND);
    assert_eq!(pair.messages(1, theirs).len(), 2);
    pair.run(25 * SECOND);
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(0), "not with the keep-alive either");
    pair.ends[1].endpoint.consume_messages(pair.now, theirs, 1);
    pair.run(SOON);
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(1), "by a packet of its own");
    // More than was taken is no more than all.
    pair.ends[1].endpoint.consume_messages(pair.now, theirs, 5);
    pair.run(SOON);
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(2));
    assert!(pair.ends[0].take(|event| *event == Event::MessagesConsumed { connection: ours }).is_some());
    // With the ACK that is owed, no packet is made for it.
    pair.ends[0].endpoint.send_message(pair.now, ours, b"three").unwrap();
    pair.run_until(SECOND, |pair| pair.messages(1, theirs).len() == 1);
    let before = pair.ends[1].sent.len();
    pair.ends[1].endpoint.consume_messages(pair.now, theirs, 1);
    pair.run(SOON);
    assert_eq!((pair.ends[0].endpoint.messages_consumed(ours), pair.ends[1].sent.len()), (Some(3), before + 1));
}

/// Two nodes, their connection, and a stream of 900 bytes that is finished and has arrived where what is read is consumed later.
fn written() -> (Pair, [ConnectionHandle; 2], StreamId) {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.ends[1].endpoint.consume_later(theirs);
    let stream = pair.ends[0].endpoint.open_unidirectional(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, &[7; 900]).unwrap();
    pair.ends[0].endpoint.finish(pair.now, ours, stream).unwrap();
    pair.run(SECOND);
    (pair, [ours, theirs], stream)
}

#[test]
fn a_stream_is_there_until_its_end_is_consumed() {
    let (mut pair, [ours, theirs], stream) = written();
    let read = |pair: &mut Pair| pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut [0; 600]);
    assert_eq!((read(&mut pair), read(&mut pair)), (Ok(Read::Bytes(600)), Ok(Read::Bytes(300))));
    assert_eq!(read(&mut pair), Ok(Read::End));
    pair.run(25 * SECOND);
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), Some(0));
    pair.ends[1].endpoint.consume_bytes(pair.now, theirs, stream, 600);
    pair.run(SOON);
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), Some(600));
    pair.ends[1].endpoint.consume_bytes(pair.now, theirs, stream, 300);
    pair.run(SOON);
    assert!(pair.ends[0].take(|event| matches!(event, Event::StreamConsumed { .. })).is_some());
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), None, "it is over at both ends");
    assert!(read(&mut pair).is_err());
}

/// W5.18: what was read to its end and then given up is over, and was not consumed.
#[test]
fn what_is_given_up_before_it_is_consumed_is_over() {
    let (mut pair, [ours, theirs], stream) = written();
    let mut out = [0; 1000];
    assert_eq!(pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut out), Ok(Read::Bytes(900)));
    assert_eq!(pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut out), Ok(Read::End));
    pair.ends[1].endpoint.stop(pair.now, theirs, stream, 4).unwrap();
    pair.ends[1].endpoint.consume_bytes(pair.now, theirs, stream, 900);
    pair.run(SECOND);
    assert!(pair.ends[0].take(|event| matches!(event, Event::StreamStopped { code: 4, .. })).is_some());
    assert!(pair.ends[0].take(|event| matches!(event, Event::StreamConsumed { .. })).is_none());
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), None);
    assert!(pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut out).is_err());
}

#[test]
fn what_was_lost_is_said_again() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.ends[1].endpoint.consume_later(theirs);
    pair.ends[0].endpoint.send_message(pair.now, ours, b"once").unwrap();
    pair.run(SECOND);
    assert_eq!(pair.messages(1, theirs).len(), 1);
    let lossy = Rc::new(Cell::new(true));
    let is_lossy = Rc::clone(&lossy);
    pair.fate = Box::new(move |_| if is_lossy.get() { vec![] } else { vec![Duration::ZERO] });
    pair.ends[1].endpoint.consume_messages(pair.now, theirs, 1);
    pair.run(Duration::from_micros(10));
    lossy.set(false);
    pair.run(5 * SECOND);
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(1));
}

/// W5.16: who writes without end is told how far the reader is, although there is always more.
#[test]
fn what_is_consumed_is_told_while_more_is_under_way() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.ends[1].endpoint.consume_later(theirs);
    let stream = pair.ends[0].endpoint.open_unidirectional(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, &[7; 900]).unwrap();
    for message in [b"one", b"two", b"six"] {
        pair.ends[0].endpoint.send_message(pair.now, ours, message).unwrap();
    }
    pair.run(SECOND);
    assert_eq!(pair.messages(1, theirs).len(), 3);
    assert_eq!(pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut [0; 900]), Ok(Read::Bytes(900)));
    pair.ends[1].endpoint.consume_messages(pair.now, theirs, 2);
    pair.ends[1].endpoint.consume_bytes(pair.now, theirs, stream, 600);
    pair.run(SOON);
    let told = [Event::MessagesConsumed { connection: ours }, Event::StreamConsumed { connection: ours, stream }];
    assert!(told.iter().all(|told| pair.ends[0].take(|event| event == told).is_some()));
    let endpoint = &pair.ends[0].endpoint;
    assert_eq!((endpoint.messages_consumed(ours), endpoint.consumed(ours, stream)), (Some(2), Some(600)));
}
