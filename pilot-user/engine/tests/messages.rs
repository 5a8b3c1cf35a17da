//! Messages of any size, and unreliable datagrams.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helper: a failure is the test's")]

mod common;

use common::{Pair, Random};
use pilot_engine::limits::{BULK_IDLE, DATAGRAM_BUFFER_BYTES, MAX_MESSAGE_BYTES, WHOLE_MESSAGE_BYTES};
use pilot_engine::{BulkUse, ConnectionHandle, Event, OperationError, Read};
use std::collections::BTreeSet;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn message(n: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (n ^ at ^ (at >> 8)) as u8).collect()
}

fn datagrams(pair: &mut Pair, end: usize, connection: ConnectionHandle) -> Vec<Vec<u8>> {
    let (mut all, mut datagram) = (Vec::new(), Vec::new());
    while let Ok(Some(_)) = pair.ends[end].endpoint.receive_datagram(pair.now, connection, &mut datagram) {
        all.push(std::mem::take(&mut datagram));
    }
    all
}

/// wire.md W5.11, W5.13: of any size around each border, whole, once, in order, on paths that lose, repeat and reorder.
#[test]
fn messages_of_any_size_survive_a_bad_path() {
    let sizes = [
        0,
        1,
        WHOLE_MESSAGE_BYTES,
        WHOLE_MESSAGE_BYTES + 1,
        1088,
        1089,
        5000,
        MAX_MESSAGE_BYTES - 1,
        MAX_MESSAGE_BYTES,
    ];
    for seed in 0..12 {
        let mut pair = Pair::new();
        let mut random = Random(seed);
        let per_mille = [0, 100, 300][seed as usize % 3];
        let [ours, theirs] = pair.connected();
        pair.fate = Box::new(move |_| {
            let copies = if random.chance(per_mille) { 0 } else { 1 + usize::from(random.chance(50)) };
            (0..copies).map(|_| Duration::from_micros(random.next() % 200)).collect()
        });
        let mut random = Random(seed + 7);
        let messages: Vec<Vec<u8>> = (0..60)
            .map(|n| match random.next() {
                size if size % 2 == 0 => message(n, sizes[size as usize / 2 % sizes.len()]),
                size => message(n, size as usize / 2 % 3000),
            })
            .collect();
        let (mut sent, mut received) = (0, Vec::new());
        pair.run_until(600 * SECOND, |pair| {
            while sent < messages.len() && pair.ends[0].endpoint.send_message(pair.now, ours, &messages[sent]).is_ok() {
                sent += 1;
            }
            received.extend(pair.messages(1, theirs));
            received.len() >= messages.len()
        });
        assert!(received == messages, "seed {seed}");
        pair.fate = Box::new(|_| vec![Duration::ZERO]);
        pair.run(12 * SECOND);
        assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(60), "seed {seed}");
        assert!(pair.ends[0].take(|event| matches!(event, Event::MessagesConsumed { .. })).is_some());
    }
    let mut pair = Pair::new();
    let [ours, _] = pair.connected();
    let refused = pair.ends[0].endpoint.send_message(pair.now, ours, &vec![0; MAX_MESSAGE_BYTES + 1]);
    let (given, allowed) = (MAX_MESSAGE_BYTES + 1, MAX_MESSAGE_BYTES);
    assert_eq!(refused, Err(OperationError::TooLong { what: "a message", given, allowed }));
    let many = pair.ends[0].endpoint.send_messages(pair.now, ours, |to| to.send(&vec![0; MAX_MESSAGE_BYTES + 1]));
    assert_eq!(many, Ok(refused));
    pair.ends[0].endpoint.close(pair.now, ours, 0, "");
    pair.run(SECOND);
    let gone = pair.ends[0].endpoint.send_messages(pair.now, ours, |to| to.send(b"x"));
    assert_eq!(gone, Err(OperationError::NoConnection));
}

/// wire.md W5.11, W6.9: an application that sends without end takes to the bulk path, and returns after; every message arrives once and
/// in order, one at a time or lent in a row, and nothing is lost on the way to and fro.
#[test]
fn messages_without_end_take_the_bulk_path() {
    let mut pair = Pair::with(|_, config| (config.bulk_port, config.bulk) = (Some(4343), BulkUse::Auto));
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    let (mut sent, mut received, mut went) = (0u32, 0u32, false);
    for _ in 0..2 {
        let end = sent + 200_000;
        pair.run_until(60 * SECOND, |pair| {
            let writing = pair.ends[0].endpoint.send_messages(pair.now, ours, |to| {
                while sent < end && to.send(&message(sent as usize, 19)).is_ok() {
                    sent += 1;
                }
            });
            assert_eq!(writing, Ok(()));
            let mut number = received;
            let mut take = |bytes: &[u8]| {
                assert_eq!(bytes, message(number as usize, 19));
                number += 1;
            };
            let mut one = Vec::new();
            if let Ok(Some(_)) = pair.ends[1].endpoint.receive_message(pair.now, theirs, &mut one) {
                take(&one);
            }
            let taken = pair.ends[1].endpoint.receive_messages(pair.now, theirs, take).unwrap();
            assert_eq!(u64::from(number - received), taken + u64::from(!one.is_empty()));
            received = number;
            went |= pair.ends[0].endpoint.tunnel_stats(pair.ends[0].peer).unwrap().sending_bulk;
            received == end
        });
        assert!(std::mem::take(&mut went), "by the bulk path");
        pair.run(2 * BULK_IDLE);
        let stats = pair.ends[0].endpoint.tunnel_stats(pair.ends[0].peer).unwrap();
        assert!(!stats.sending_bulk, "and back");
        assert_eq!((stats.lost_packets, stats.probe_timeouts), (0, 0));
    }
    assert_eq!(pair.ends[0].endpoint.messages_consumed(ours), Some(u64::from(sent)));
}

/// wire.md W5.13: streams that take all the credit there is do not keep a large message waiting for ever.
#[test]
fn a_large_message_gets_through_bulk() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let streams: Vec<_> = (0..4).map(|_| pair.ends[0].endpoint.open_unidirectional(pair.now, ours).unwrap()).collect();
    let (text, mut buffer, mut took) = (vec![1; 1 << 20], vec![0; 1 << 16], 0);
    let large = message(1, MAX_MESSAGE_BYTES);
    for _ in 0..20 {
        pair.ends[0].endpoint.send_message(pair.now, ours, &large).unwrap();
        pair.run_until(SECOND, |pair| {
            for stream in &streams {
                let _ = pair.ends[0].endpoint.write(pair.now, ours, *stream, &text);
                while let Ok(Read::Bytes(_)) = pair.ends[1].endpoint.read(pair.now, theirs, *stream, &mut buffer) {}
            }
            let messages = pair.messages(1, theirs);
            assert!(messages.iter().all(|message| *message == large));
            took += messages.len();
            !messages.is_empty()
        });
    }
    assert_eq!(took, 20);
}

/// wire.md W5.19: whole, at most once, and those that were lost stay lost.
#[test]
fn datagrams_arrive_whole_or_not_at_all() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    let mut random = Random(5);
    pair.fate = Box::new(move |_| {
        let copies = if random.chance(200) { 0 } else { 1 + usize::from(random.chance(200)) };
        (0..copies).map(|_| Duration::from_micros(random.next() % 300)).collect()
    });
    let largest = pair.ends[0].endpoint.max_datagram(ours);
    let datagram = |n: usize| [&(n as u32).to_be_bytes()[..], &message(n, n * 37 % (largest - 3))].concat();
    let mut received = BTreeSet::new();
    let mut arrived = |pair: &mut Pair| {
        for got in datagrams(pair, 1, theirs) {
            let n = u32::from_be_bytes(*got.first_chunk().unwrap());
            assert!(got == datagram(n as usize), "datagram {n} is another one");
            assert!(received.insert(n), "datagram {n} came twice");
        }
        received.len()
    };
    for n in 0..1000 {
        pair.ends[0].endpoint.send_datagram(pair.now, ours, &datagram(n)).unwrap();
        pair.run(Duration::from_micros(100));
        arrived(&mut pair);
    }
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    pair.run(5 * SECOND);
    let arrived = arrived(&mut pair);
    // Where the congestion window was too small for them, the oldest were not sent at all.
    let dropped = pair.ends[0].endpoint.connection_stats(ours).unwrap().datagrams_dropped_sending as usize;
    let sent = 1000 - dropped;
    assert!(sent > 500 && (sent * 7 / 10..sent * 9 / 10).contains(&arrived), "{arrived} of {sent} arrived");
    assert!(pair.ends[1].take(|event| matches!(event, Event::DatagramsReadable { .. })).is_some());
    // The path's MTU was probed for by then, because there were datagrams.
    let largest = pair.ends[0].endpoint.max_datagram(ours);
    let too_long = pair.ends[0].endpoint.send_datagram(pair.now, ours, &vec![0; largest + 1]);
    assert_eq!(too_long, Err(OperationError::TooLong { what: "a datagram", given: largest + 1, allowed: largest }));
}

/// wire.md W5.19: what waits is bounded at either end, and the newest are kept.
#[test]
fn the_oldest_datagrams_are_dropped_and_counted() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let fitting = DATAGRAM_BUFFER_BYTES / (1000 + 16);
    let count = fitting + 100;
    // Before anything could be sent.
    for n in 0..count {
        pair.ends[0].endpoint.send_datagram(pair.now, ours, &[n as u8; 1000]).unwrap();
    }
    pair.run(SECOND);
    let got = datagrams(&mut pair, 1, theirs);
    assert!(got == (count - fitting..count).map(|n| vec![n as u8; 1000]).collect::<Vec<_>>());
    assert_eq!(pair.ends[0].endpoint.connection_stats(ours).unwrap().datagrams_dropped_sending, 100);
    // Sent, and not received.
    let count = fitting + 300;
    for n in 0..count {
        pair.ends[0].endpoint.send_datagram(pair.now, ours, &[n as u8; 1000]).unwrap();
        pair.run(Duration::from_millis(1));
    }
    let got = datagrams(&mut pair, 1, theirs);
    assert!(got == (count - fitting..count).map(|n| vec![n as u8; 1000]).collect::<Vec<_>>());
    assert_eq!(pair.ends[1].endpoint.connection_stats(theirs).unwrap().datagrams_dropped_receiving, 300);
    // They used no credit: messages and streams have all of it.
    for n in 0..200 {
        pair.ends[0].endpoint.send_message(pair.now, ours, &[n; 1000]).unwrap();
    }
    pair.run(SECOND);
    assert_eq!(pair.messages(1, theirs).len(), 200);
}

/// A datagram for which the path has become too narrow is dropped, and those behind it are sent.
#[test]
fn a_datagram_that_fits_no_packet_any_more_blocks_nobody() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    // From the first on, it is found out how long they may be.
    pair.ends[0].endpoint.send_datagram(pair.now, ours, b"first").unwrap();
    pair.run(SECOND);
    let largest = pair.ends[0].endpoint.max_datagram(ours);
    assert!(largest > 1300);
    // Everything is lost until the sender takes the path to be narrow (W6.6).
    pair.fate = Box::new(|_| vec![]);
    pair.ends[0].endpoint.send_message(pair.now, ours, b"lost").unwrap();
    let narrow = |pair: &mut Pair| pair.ends[0].endpoint.max_datagram(ours) < 1200;
    let mut queued = false;
    pair.run_until(20 * SECOND, |pair| {
        if !queued && pair.ends[0].endpoint.tunnel_stats(pair.ends[0].peer).unwrap().probe_timeouts == 2 {
            // The window is full, so that they wait.
            for _ in 0..60 {
                pair.ends[0].endpoint.send_datagram(pair.now, ours, &vec![1; largest]).unwrap();
            }
            pair.ends[0].endpoint.send_datagram(pair.now, ours, b"small").unwrap();
            queued = true;
        }
        narrow(pair)
    });
    pair.fate = Box::new(|d| if d.len() > 1200 { vec![] } else { vec![Duration::ZERO] });
    pair.run_until(20 * SECOND, |pair| datagrams(pair, 1, theirs).contains(&b"small".to_vec()));
    assert!(pair.ends[0].endpoint.connection_stats(ours).unwrap().datagrams_dropped_sending > 0);
}

/// wire.md W5.1: what an application sends is never looked into, whatever it begins with: another protocol's words, each of our
/// own frame types, or what was sent before.
#[test]
fn data_that_looks_like_frames_is_data() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    let words = [&b"SACK\x01\0\0\0\x05\0\0\0\x09"[..], b"SACK", b"FIN", b"\0\0\0\0PING"].map(<[u8]>::to_vec);
    let frames = (0..=u8::MAX).map(|frame_type| [&[frame_type][..], &[0; 12]].concat());
    let texts: Vec<Vec<u8>> = words.into_iter().chain(frames).collect();
    for text in &texts {
        pair.ends[0].endpoint.send_message(pair.now, ours, text).unwrap();
        assert_eq!(pair.ends[0].endpoint.write(pair.now, ours, stream, text).unwrap(), text.len());
    }
    pair.run(SECOND);
    assert_eq!(pair.messages(1, theirs), texts);
    let mut read = vec![0; 1 << 16];
    let Ok(Read::Bytes(length)) = pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut read) else {
        panic!("nothing to read");
    };
    assert_eq!(read[..length], texts.concat());
    let closed = |e: &Event| matches!(e, Event::Closed { .. } | Event::TunnelDown { .. });
    assert!(pair.ends.iter().all(|end| !end.events.iter().any(closed)));
}
