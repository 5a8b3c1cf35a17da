//! Streams in one direction and in both, closed by halves, given up by either end; what was consumed, and how windows grow.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helper: a failure is the test's")]
#![allow(clippy::needless_range_loop, reason = "an end is a number, of several lists")]

mod common;

use common::{Pair, Random};
use pilot_engine::limits::{CONNECTION_CREDIT_BYTES, MAX_CONNECTION_CREDIT_BYTES, MAX_STREAMS, STREAM_CREDIT_BYTES};
use pilot_engine::{ConnectionHandle, Event, OperationError, Read, StreamId};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Reads all there is: the bytes, and whether the end was read.
fn read(pair: &mut Pair, end: usize, connection: ConnectionHandle, stream: StreamId) -> (Vec<u8>, bool) {
    let (mut all, mut buffer) = (Vec::new(), [0; 5000]);
    loop {
        match pair.ends[end].endpoint.read(pair.now, connection, stream, &mut buffer) {
            Ok(Read::Bytes(n)) => all.extend_from_slice(&buffer[..n]),
            Ok(Read::End) => return (all, true),
            Ok(Read::Blocked) => return (all, false),
            Err(error) => panic!("{error}"),
        }
    }
}

fn opened(pair: &mut Pair, end: usize) -> StreamId {
    match pair.ends[end].take(|event| matches!(event, Event::StreamOpened { .. })) {
        Some(Event::StreamOpened { stream, .. }) => stream,
        other => panic!("{other:?}"),
    }
}

/// wire.md W5.17
#[test]
fn a_unidirectional_stream_has_one_writer() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let now = pair.now;
    let stream = pair.ends[0].endpoint.open_unidirectional(now, ours).unwrap();
    assert!(!stream.is_bidirectional());
    pair.ends[0].endpoint.write(now, ours, stream, b"one way").unwrap();
    pair.ends[0].endpoint.finish(now, ours, stream).unwrap();
    pair.run(SECOND);
    assert_eq!(opened(&mut pair, 1), stream);
    assert_eq!(pair.ends[1].endpoint.write(pair.now, theirs, stream, b"back"), Err(OperationError::Finished));
    assert_eq!(read(&mut pair, 1, theirs, stream), (b"one way".to_vec(), true));
    pair.run(SECOND);
    // Both ends have forgotten it.
    for (end, connection) in [(0, ours), (1, theirs)] {
        let read = pair.ends[end].endpoint.read(pair.now, connection, stream, &mut [0]);
        assert_eq!(read, Err(OperationError::NoStream), "end {end}");
    }
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), None);
}

/// Either half may end first, or both at once; each way all that was written is read, and the stream is forgotten after both.
#[test]
fn halves_close_in_any_order() {
    for order in [[0, 1], [1, 0]] {
        for together in [false, true] {
            let mut pair = Pair::new();
            let connections = pair.connected();
            let stream = pair.ends[0].endpoint.open_stream(pair.now, connections[0]).unwrap();
            pair.ends[0].endpoint.write(pair.now, connections[0], stream, b"hello").unwrap();
            pair.run(SECOND);
            for end in order {
                pair.ends[end].endpoint.write(pair.now, connections[end], stream, &[end as u8; 3000]).unwrap();
                pair.ends[end].endpoint.finish(pair.now, connections[end], stream).unwrap();
                if !together {
                    pair.run(SECOND);
                }
            }
            pair.run(SECOND);
            assert_eq!(read(&mut pair, 0, connections[0], stream), (vec![1; 3000], true));
            let text = [&b"hello"[..], &[0; 3000]].concat();
            assert_eq!(read(&mut pair, 1, connections[1], stream), (text, true));
            pair.run(SECOND);
            for end in 0..2 {
                let write = pair.ends[end].endpoint.write(pair.now, connections[end], stream, b"x");
                assert_eq!(write, Err(OperationError::NoStream));
            }
        }
    }
}

/// wire.md W5.18: the code arrives, what was not delivered does not, and the other direction goes on.
#[test]
fn a_reset_ends_one_direction() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, b"half of it").unwrap();
    pair.run(SECOND);
    pair.ends[0].endpoint.reset(pair.now, ours, stream, 404).unwrap();
    assert_eq!(pair.ends[0].endpoint.write(pair.now, ours, stream, b"more"), Err(OperationError::Finished));
    pair.run(SECOND);
    let told = Event::StreamReset { connection: theirs, stream, code: 404 };
    assert!(pair.ends[1].take(|event| *event == told).is_some());
    let read_it = |pair: &mut Pair| pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut [0; 100]);
    assert_eq!(read_it(&mut pair), Err(OperationError::StreamReset { code: 404 }));
    pair.ends[1].endpoint.write(pair.now, theirs, stream, b"and yet").unwrap();
    pair.ends[1].endpoint.finish(pair.now, theirs, stream).unwrap();
    pair.run(SECOND);
    assert_eq!(read(&mut pair, 0, ours, stream), (b"and yet".to_vec(), true));
    pair.run(SECOND);
    assert_eq!(read_it(&mut pair), Err(OperationError::NoStream));
    assert!(pair.ends[0].endpoint.is_delivered(ours));
    // What arrived whole before its reset is read whole, when nothing of it was missing.
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, b"all of it").unwrap();
    pair.ends[0].endpoint.finish(pair.now, ours, stream).unwrap();
    pair.run(SECOND);
    pair.ends[0].endpoint.reset(pair.now, ours, stream, 1).unwrap();
    pair.run(SECOND);
    assert_eq!(read(&mut pair, 1, theirs, stream), (b"all of it".to_vec(), true));
}

/// wire.md W5.18: a reader that stops makes the writer give up, wherever it was.
#[test]
fn a_stop_is_answered_by_a_reset() {
    for (written, finish) in [(10, false), (10, true), (3_000_000, false)] {
        let mut pair = Pair::new();
        let [ours, theirs] = pair.connected();
        let stream = pair.ends[0].endpoint.open_unidirectional(pair.now, ours).unwrap();
        let text = vec![5; written];
        let taken = pair.ends[0].endpoint.write(pair.now, ours, stream, &text).unwrap();
        if finish {
            pair.ends[0].endpoint.finish(pair.now, ours, stream).unwrap();
        }
        pair.run(SECOND);
        pair.ends[1].endpoint.stop(pair.now, theirs, stream, 9).unwrap();
        assert_eq!(
            pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut [0]),
            Err(OperationError::NoStream),
            "it reads no more"
        );
        pair.run(SECOND);
        let told = Event::StreamStopped { connection: ours, stream, code: 9 };
        assert!(pair.ends[0].take(|event| *event == told).is_some(), "{written} {finish}");
        assert!(pair.ends[1].take(|event| matches!(event, Event::StreamReset { .. })).is_none(), "it knows");
        let again = pair.ends[0].endpoint.write(pair.now, ours, stream, b"x");
        assert_eq!(again, Err(OperationError::NoStream), "{taken} bytes were taken, and all is over");
        assert!(pair.ends[0].endpoint.is_delivered(ours));
    }
}

/// wire.md W5.17: streams of one direction do not use up the other's; and those that end make room, however few.
#[test]
fn limits_are_by_direction_and_move_on() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let open = |pair: &mut Pair, one_way: bool| match one_way {
        true => pair.ends[0].endpoint.open_unidirectional(pair.now, ours),
        false => pair.ends[0].endpoint.open_stream(pair.now, ours),
    };
    let streams: Vec<StreamId> = (0..MAX_STREAMS).map(|_| open(&mut pair, true).unwrap()).collect();
    assert_eq!(open(&mut pair, true), Err(OperationError::TooMany { what: "streams", allowed: MAX_STREAMS }));
    open(&mut pair, false).unwrap();
    for stream in &streams {
        pair.ends[0].endpoint.write(pair.now, ours, *stream, b"x").unwrap();
    }
    pair.run(SECOND);
    // All but one stay open for good.
    let mut short = streams[0];
    for _ in 0..3 * MAX_STREAMS {
        pair.ends[0].endpoint.finish(pair.now, ours, short).unwrap();
        pair.run(SECOND);
        assert_eq!(read(&mut pair, 1, theirs, short), (b"x".to_vec(), true));
        pair.run(SECOND);
        short = open(&mut pair, true).unwrap();
        pair.ends[0].endpoint.write(pair.now, ours, short, b"x").unwrap();
    }
}

/// Resets and stops from either end, at any time, on a path that loses: each stream ends at both ends, nothing is told twice, and
/// then it is quiet (wire.md W5.15).
#[test]
fn giving_up_survives_a_bad_path() {
    for seed in 0..30 {
        let mut pair = Pair::new();
        let mut random = Random(seed);
        let connections = pair.connected();
        pair.fate = Box::new(move |_| match random.chance(300) {
            true => vec![],
            false => vec![Duration::from_micros(if random.chance(200) { random.next() % 500 } else { 0 })],
        });
        let mut random = Random(seed + 99);
        let streams: Vec<(usize, StreamId)> = (0..20)
            .map(|n| {
                let (end, endpoint) = (n % 2, &mut pair.ends[n % 2].endpoint);
                let stream = match n % 4 {
                    0 | 1 => endpoint.open_stream(pair.now, connections[end]),
                    _ => endpoint.open_unidirectional(pair.now, connections[end]),
                };
                (end, stream.unwrap())
            })
            .collect();
        for _ in 0..400 {
            let (opener, stream) = streams[random.next() as usize % streams.len()];
            let end = random.next() as usize % 2;
            let (endpoint, connection) = (&mut pair.ends[end].endpoint, connections[end]);
            // Not yet opened, or of the other's direction, or over: each is an error, and nothing more.
            let _ = match random.next() % 16 {
                0 => endpoint.reset(pair.now, connection, stream, opener as u64),
                1 => endpoint.stop(pair.now, connection, stream, opener as u64),
                2 => endpoint.finish(pair.now, connection, stream),
                3..9 => endpoint.write(pair.now, connection, stream, &[7; 5000]).map(|_| ()),
                _ => endpoint.read(pair.now, connection, stream, &mut [0; 9000]).map(|_| ()),
            };
            if random.chance(500) {
                pair.run(Duration::from_micros(random.next() % 1000));
            }
        }
        for (opener, stream) in &streams {
            for end in 0..2 {
                let (endpoint, connection) = (&mut pair.ends[end].endpoint, connections[end]);
                let _ = endpoint.finish(pair.now, connection, *stream);
                if end == *opener {
                    let _ = endpoint.write(pair.now, connection, *stream, b"");
                }
            }
        }
        pair.run_until(120 * SECOND, |pair| {
            // All of them, whatever is with the first: what is not read holds credit.
            let mut left = 0;
            for (_, stream) in &streams {
                for end in 0..2 {
                    let (endpoint, connection) = (&mut pair.ends[end].endpoint, connections[end]);
                    let _ = endpoint.finish(pair.now, connection, *stream);
                    while let Ok(Read::Bytes(_)) = endpoint.read(pair.now, connection, *stream, &mut [0; 9000]) {}
                    let is_over = endpoint.write(pair.now, connection, *stream, b"") == Err(OperationError::NoStream);
                    left += u32::from(!is_over);
                }
            }
            left == 0
        });
        for end in &pair.ends {
            for (_, stream) in &streams {
                let told = |event: &&Event| matches!(event, Event::StreamReset { stream: s, .. } | Event::StreamStopped { stream: s, .. } if s == stream);
                let resets = end.events.iter().filter(told).count();
                assert!(resets <= 2, "seed {seed}: {stream:?} was given up {resets} times");
            }
        }
        pair.fate = Box::new(|_| vec![Duration::ZERO]);
        pair.run(20 * SECOND);
        let sent = [0, 1].map(|end| pair.ends[end].sent.len());
        pair.run(25 * SECOND);
        for (end, before) in sent.into_iter().enumerate() {
            assert!(pair.ends[end].sent.len() - before <= 10, "seed {seed}");
        }
    }
}

/// wire.md W5.16: delivered is what the peer's engine has, consumed what its application has read.
#[test]
fn consumed_is_not_delivered() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, &[3; 1000]).unwrap();
    pair.ends[0].endpoint.send_message(pair.now, ours, b"one").unwrap();
    pair.ends[0].endpoint.send_message(pair.now, ours, b"two").unwrap();
    pair.run(25 * SECOND);
    let is_told = |pair: &mut Pair, what: &Event| pair.ends[0].take(|event| event == what).is_some();
    let (bytes, messages) =
        (Event::StreamConsumed { connection: ours, stream }, Event::MessagesConsumed { connection: ours });
    assert!(pair.ends[0].endpoint.is_delivered(ours));
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), Some(0));
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(0));
    assert!(!is_told(&mut pair, &bytes) && !is_told(&mut pair, &messages));

    let read_some = pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut [0; 600]);
    assert_eq!(read_some, Ok(Read::Bytes(600)));
    assert_eq!(pair.messages(1, theirs).len(), 2);
    // At the latest with the keep-alive, and without one packet more.
    pair.run(11 * SECOND);
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), Some(600));
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(2));
    assert!(is_told(&mut pair, &bytes) && is_told(&mut pair, &messages));

    assert_eq!(read(&mut pair, 1, theirs, stream).0.len(), 400);
    pair.run(11 * SECOND);
    assert!(is_told(&mut pair, &bytes));
    // The end is told at once.
    pair.ends[0].endpoint.finish(pair.now, ours, stream).unwrap();
    pair.ends[1].endpoint.finish(pair.now, theirs, stream).unwrap();
    pair.run(Duration::from_millis(10));
    assert!(read(&mut pair, 0, ours, stream).1);
    assert!(read(&mut pair, 1, theirs, stream).1);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), None, "it is over");
    let stream = pair.ends[0].endpoint.open_unidirectional(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, &[3; 1000]).unwrap();
    pair.ends[0].endpoint.finish(pair.now, ours, stream).unwrap();
    pair.run(SECOND);
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), Some(0), "there until it is consumed");
    assert!(read(&mut pair, 1, theirs, stream).1);
    pair.run(Duration::from_millis(10));
    assert!(is_told(&mut pair, &Event::StreamConsumed { connection: ours, stream }));
    assert_eq!(pair.ends[0].endpoint.consumed(ours, stream), None);
}

/// wire.md W5.16: what a lost ack-only packet said is said again.
#[test]
fn consumption_is_told_after_a_loss() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    let lossy = Rc::new(Cell::new(false));
    let is_lossy = Rc::clone(&lossy);
    pair.fate = Box::new(move |_| if is_lossy.get() { vec![] } else { vec![Duration::ZERO] });
    pair.ends[0].endpoint.send_message(pair.now, ours, b"once").unwrap();
    pair.run_until(SECOND, |pair| pair.messages(1, theirs).len() == 1);
    let before = pair.ends[1].sent.len();
    lossy.set(true);
    pair.run(Duration::from_millis(20));
    assert!(pair.ends[1].sent.len() > before, "the ack was sent");
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(0));
    lossy.set(false);
    pair.run(12 * SECOND);
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(1));
}

/// wire.md W5.16: a delta and its echo take no more packets because their consumption is told.
#[test]
fn consumption_takes_no_packets_of_its_own() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    for (rounds, pause) in [(100, Duration::ZERO), (100, Duration::from_millis(20))] {
        let before = [0, 1].map(|end| pair.ends[end].sent.len());
        for _ in 0..rounds {
            pair.ends[0].endpoint.send_message(pair.now, ours, b"anomalies: 47 -> 48").unwrap();
            pair.run_until(SECOND, |pair| {
                for message in pair.messages(1, theirs) {
                    pair.ends[1].endpoint.send_message(pair.now, theirs, &message).unwrap();
                }
                !pair.messages(0, ours).is_empty()
            });
            if !pause.is_zero() {
                pair.run(pause);
            }
        }
        // A packet each, and where there is a pause one for the ack.
        let most = if pause.is_zero() { rounds } else { 2 * rounds };
        for end in 0..2 {
            let sent = pair.ends[end].sent.len() - before[end];
            assert!(sent <= most + most / 50, "end {end} sent {sent} datagrams for {rounds} deltas");
        }
        let consumed = pair.ends[0].endpoint.messages_consumed(ours).unwrap();
        pair.run(12 * SECOND);
        assert!(pair.ends[0].endpoint.messages_consumed(ours).unwrap() >= consumed);
    }
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(200));
    assert_eq!(pair.ends[1].endpoint.messages_consumed(theirs), Some(200));
}

/// Sends on a stream for `time` over a path of that delay, to a reader that pauses so long between reads of everything. Returns
/// what was read, and the datagrams of the reader.
fn bulk(pair: &mut Pair, connections: [ConnectionHandle; 2], time: Duration, nap: Duration) -> (usize, usize) {
    let stream = pair.ends[0].endpoint.open_unidirectional(pair.now, connections[0]).unwrap();
    let (text, mut buffer) = (vec![1; 1 << 20], vec![0; 1 << 20]);
    let (until, mut read, before) = (pair.now + time, 0, pair.ends[1].sent.len());
    let mut wake = pair.now;
    while pair.now < until {
        while pair.ends[0].endpoint.write(pair.now, connections[0], stream, &text).is_ok() {}
        if pair.now >= wake {
            while let Ok(Read::Bytes(n)) = pair.ends[1].endpoint.read(pair.now, connections[1], stream, &mut buffer) {
                read += n;
            }
            wake = pair.now + nap;
        }
        if !pair.step(wake.max(pair.now + Duration::from_micros(1))) {
            pair.now = wake.max(pair.now + Duration::from_micros(1));
        }
    }
    let _ = pair.ends[0].endpoint.reset(pair.now, connections[0], stream, 0);
    pair.run(SECOND);
    (read, pair.ends[1].sent.len() - before)
}

/// The window of a connection that is read as fast as its bytes arrive grows with the path, up to its bound; that of a reader
/// slower than the path does not.
#[test]
fn windows_follow_the_bandwidth_delay_product() {
    let grown = |delay: Duration, nap: Duration| {
        let mut pair = Pair::new();
        pair.delay = delay;
        let connections = pair.connected();
        let (read, datagrams) = bulk(&mut pair, connections, 200 * delay, nap);
        let window = pair.ends[1].endpoint.connection_stats(connections[1]).unwrap().receive_window;
        (window, read, datagrams)
    };
    let (window, read, _) = grown(Duration::from_millis(25), Duration::ZERO);
    assert!(window > CONNECTION_CREDIT_BYTES, "{window}");
    assert!(window <= MAX_CONNECTION_CREDIT_BYTES);
    assert!(read as u64 > 20 * CONNECTION_CREDIT_BYTES, "{read}");
    let slow = grown(Duration::from_millis(1), Duration::from_millis(30));
    assert_eq!(slow.0, CONNECTION_CREDIT_BYTES, "a reader that naps");
}

/// wire.md W5.10: a reader of bulk tells of credit by few datagrams, most of which are acks.
#[test]
fn credit_does_not_storm() {
    let mut pair = Pair::new();
    let connections = pair.connected();
    let before = pair.ends[0].sent.len();
    let (read, datagrams) = bulk(&mut pair, connections, Duration::from_millis(50), Duration::ZERO);
    let data = pair.ends[0].sent.len() - before;
    assert!(read as u64 > 10 * STREAM_CREDIT_BYTES, "{read}");
    // An ack for every eight packets, and a few more.
    assert!(datagrams <= data / 6, "{datagrams} for {data}");
}

/// wire.md W5.10: three streams want more than the connection's credit, and only the first is read: it is read to its end.
#[test]
fn what_is_not_read_starves_nothing_else() {
    const LENGTH: usize = 200_000;
    assert!(3 * LENGTH as u64 > CONNECTION_CREDIT_BYTES && (LENGTH as u64) < STREAM_CREDIT_BYTES);
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let streams = [0; 3].map(|_| pair.ends[0].endpoint.open_unidirectional(pair.now, ours).unwrap());
    let (mut written, mut got) = ([0; 3], 0);
    for _ in 0..20 {
        for (stream, written) in streams.iter().zip(&mut written) {
            let now = pair.now;
            while *written < LENGTH {
                let rest = vec![7; LENGTH - *written];
                let Ok(taken) = pair.ends[0].endpoint.write(now, ours, *stream, &rest) else { break };
                *written += taken;
                if *written == LENGTH {
                    pair.ends[0].endpoint.finish(now, ours, *stream).unwrap();
                }
            }
        }
        pair.run(SECOND);
        let (bytes, ended) = read(&mut pair, 1, theirs, streams[0]);
        got += bytes.len();
        if ended {
            assert_eq!(got, LENGTH);
            return;
        }
    }
    panic!("{got} of {LENGTH} bytes were read");
}
