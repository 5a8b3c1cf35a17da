//! Data between two endpoints: everything once, in order, whole, over good and bad paths.

mod common;

use common::{Pair, Random};
use pilot_engine::{Event, Read};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_delta_is_echoed_and_costs_at_most_50_bytes() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    let delta = *b"anomalies: 47 -> 48";
    assert_eq!(delta.len(), 19);
    let before = pair.ends[0].sent.len();
    for _ in 0..1000 {
        pair.ends[0].endpoint.send_message(pair.now, ours, &delta).unwrap();
        pair.run_until(SECOND, |pair| {
            for message in pair.messages(1, theirs) {
                pair.ends[1].endpoint.send_message(pair.now, theirs, &message).unwrap();
            }
            pair.messages(0, ours) == [delta]
        });
    }
    let sizes: Vec<usize> = pair.ends[0].sent[before..].iter().map(Vec::len).collect();
    assert_eq!(sizes.len(), 1000, "a packet for a delta, and none for its ack");
    // 9 + 16 around type, connection, number and delta; every seventh carries an ack too.
    assert_eq!(sizes.iter().filter(|size| **size == 9 + 16 + 4 + 19).count() / 5, 171);
    assert!(sizes.iter().sum::<usize>() <= 1000 * 50);
}

/// wire.md W5.3: a node that sends what it has before its application asks again, as one does that waits for the answer,
/// makes no packet for an ack either.
#[test]
fn request_and_reply_are_two_packets() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    let before = [0, 1].map(|end| pair.ends[end].sent.len());
    for _ in 0..1000 {
        pair.ends[0].endpoint.send_message(pair.now, ours, b"request").unwrap();
        pair.run_until(SECOND, |pair| !pair.messages(1, theirs).is_empty());
        pair.ends[1].endpoint.send_message(pair.now, theirs, b"reply").unwrap();
        pair.run_until(SECOND, |pair| !pair.messages(0, ours).is_empty());
        pair.run(Duration::from_micros(1));
    }
    assert_eq!([0, 1].map(|end| pair.ends[end].sent.len() - before[end]), [1000; 2]);
}

/// wire.md W5.3: where requests are far apart, the reply takes the ack along, and only the reply's own has a packet.
#[test]
fn rare_requests_and_replies_are_three_packets() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    pair.run(SECOND);
    let before = [0, 1].map(|end| pair.ends[end].sent.len());
    for _ in 0..100 {
        pair.ends[0].endpoint.send_message(pair.now, ours, b"request").unwrap();
        pair.run_until(SECOND, |pair| !pair.messages(1, theirs).is_empty());
        pair.ends[1].endpoint.send_message(pair.now, theirs, b"reply").unwrap();
        pair.run_until(SECOND, |pair| !pair.messages(0, ours).is_empty());
        pair.run(Duration::from_millis(5));
    }
    assert_eq!([0, 1].map(|end| pair.ends[end].sent.len() - before[end]), [200, 100]);
}

/// Streams both ways over a path that loses, repeats, delays and damages: the bytes arrive, in order, and then it is quiet.
#[test]
fn streams_survive_a_bad_path() {
    for seed in 0..20 {
        let mut pair = Pair::new();
        let mut random = Random(seed);
        let per_mille = [0, 50, 150, 300][seed as usize % 4];
        pair.fate = Box::new(move |datagram| {
            if random.chance(10) {
                let at = random.next() as usize % datagram.len();
                datagram[at] ^= 1 << (random.next() % 8);
            }
            let copies = if random.chance(per_mille) { 0 } else { 1 + usize::from(random.chance(20)) };
            (0..copies)
                .map(|_| Duration::from_micros(if random.chance(100) { random.next() % 500 } else { 0 }))
                .collect()
        });
        let [ours, theirs] = pair.connected();
        let mut random = Random(seed + 1000);
        let text: Vec<u8> = (0..300_000).map(|_| random.next() as u8).collect();
        let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
        let (mut written, mut back, mut received, mut returned) = (0, 0, Vec::new(), Vec::new());
        let mut finished = [false; 2];
        pair.run_until(600 * SECOND, |pair| {
            let now = pair.now;
            let [a, b] = &mut pair.ends;
            if written < text.len() {
                written += a.endpoint.write(now, ours, stream, &text[written..]).unwrap_or(0);
                if written == text.len() {
                    a.endpoint.finish(now, ours, stream).unwrap();
                }
            }
            let mut buffer = [0; 5000];
            while let Ok(Read::Bytes(n)) = b.endpoint.read(now, theirs, stream, &mut buffer) {
                received.extend_from_slice(&buffer[..n]);
            }
            if back < received.len() {
                back += b.endpoint.write(now, theirs, stream, &received[back..]).unwrap_or(0);
                if back == text.len() {
                    b.endpoint.finish(now, theirs, stream).unwrap();
                    finished[1] = true;
                }
            }
            loop {
                match a.endpoint.read(now, ours, stream, &mut buffer) {
                    Ok(Read::Bytes(n)) => returned.extend_from_slice(&buffer[..n]),
                    Ok(Read::End) => {
                        finished[0] = true;
                        break;
                    }
                    _ => break,
                }
            }
            finished == [true; 2]
        });
        assert!(received == text && returned == text, "seed {seed}");
        // wire.md W5.15: at rest, only keep-alives.
        pair.fate = Box::new(|_| vec![Duration::ZERO]);
        pair.run(20 * SECOND);
        let sent = [0, 1].map(|end| pair.ends[end].sent.len());
        pair.run(25 * SECOND);
        for (end, before) in sent.into_iter().enumerate() {
            let at_rest = pair.ends[end].sent.len() - before;
            assert!(at_rest <= 10, "seed {seed}: end {end} sent {at_rest} datagrams in 25 s at rest");
        }
    }
}

#[test]
fn messages_survive_a_bad_path() {
    for seed in 0..20 {
        let mut pair = Pair::new();
        let mut random = Random(seed);
        pair.fate = Box::new(move |_| {
            let copies = if random.chance(200) { 0 } else { 1 + usize::from(random.chance(50)) };
            (0..copies).map(|_| Duration::from_micros(random.next() % 200)).collect()
        });
        let [ours, theirs] = pair.connected();
        let mut random = Random(seed + 1);
        let messages: Vec<Vec<u8>> =
            (0..10_000u32).map(|n| [&n.to_be_bytes()[..], &vec![7; random.next() as usize % 100]].concat()).collect();
        let (mut sent, mut received) = (0, Vec::new());
        pair.run_until(600 * SECOND, |pair| {
            while sent < messages.len() && pair.ends[0].endpoint.send_message(pair.now, ours, &messages[sent]).is_ok() {
                sent += 1;
            }
            received.extend(pair.messages(1, theirs));
            received.len() >= messages.len()
        });
        assert!(received == messages, "seed {seed}");
    }
}

/// wire.md W5.9: a reader that stops holds its own connection back, and no other.
#[test]
fn a_reader_that_stops_delays_nobody_else() {
    let mut pair = Pair::new();
    let [slow, slow_theirs] = pair.connected();
    let [fast, fast_theirs] = pair.connected();
    let stream = pair.ends[0].endpoint.open_stream(pair.now, slow).unwrap();
    let mut written = 0;
    for _ in 0..100 {
        while let Ok(n) = pair.ends[0].endpoint.write(pair.now, slow, stream, &[5; 50_000]) {
            written += n;
        }
        pair.run(Duration::from_millis(10));
    }
    // Its stream's credit and the sender's buffer, which is twice what may be in flight, and not a byte more.
    use pilot_engine::limits::{DEFAULT_PACKET_CREDIT, STREAM_CREDIT_BYTES, STREAM_SEND_BUFFER_BYTES};
    let buffer = (2 * DEFAULT_PACKET_CREDIT as usize * 1472).max(STREAM_SEND_BUFFER_BYTES);
    assert_eq!(written, STREAM_CREDIT_BYTES as usize + buffer);
    let before = pair.now;
    pair.ends[0].endpoint.send_message(pair.now, fast, b"hello").unwrap();
    pair.run_until(SECOND, |pair| pair.messages(1, fast_theirs) == [b"hello"]);
    assert_eq!(pair.now.since(before), pair.delay);

    let mut read = 0;
    pair.run_until(60 * SECOND, |pair| {
        let mut buffer = [0; 10_000];
        while let Ok(Read::Bytes(n)) = pair.ends[1].endpoint.read(pair.now, slow_theirs, stream, &mut buffer) {
            read += n;
        }
        read == written
    });
    assert!(pair.ends[0].take(|e| matches!(e, Event::StreamWritable { .. })).is_some());
}

/// wire.md W6.1, W6.6: the largest of the steps is found that the path carries, up to the size that both ends take, once there is data
/// that fills it, or an unreliable datagram; by padding alone only where data would not do.
#[test]
fn datagrams_grow_only_as_far_as_the_path_carries() {
    let large: &[u8] = &[1; 50_000];
    for (carries, messages, padding, expected) in [
        (1500, vec![large], 0, 1472),
        (1450, vec![large], 2, 1400),
        (1399, vec![large], 2, 1200),
        // Two of them do not fit into the next step.
        (1500, vec![&[1; 1000][..]; 20], 2, 1472),
        (1500, vec![&[1; 19][..]], 0, 1200),
    ] {
        let mut pair = Pair::new();
        let is_lost = Rc::new(Cell::new(0));
        let lost = Rc::clone(&is_lost);
        pair.fate = Box::new(move |d| match d.len() > carries {
            true => {
                lost.set(lost.get() + 1);
                vec![]
            }
            false => vec![Duration::ZERO],
        });
        let [ours, theirs] = pair.connected();
        for message in &messages {
            pair.ends[0].endpoint.send_message(pair.now, ours, message).unwrap();
        }
        pair.run(5 * SECOND);
        assert_eq!(pair.messages(1, theirs), messages);
        let stats = |pair: &Pair, end: usize| pair.ends[end].endpoint.tunnel_stats(pair.ends[end].peer).unwrap();
        let found = stats(&pair, 0);
        assert_eq!((found.max_datagram, found.mtu_probes), (expected, padding), "{carries}");
        assert_eq!(stats(&pair, 1).max_datagram, 1200, "{carries}: it had nothing to say");
        assert_eq!(is_lost.get(), if carries < 1472 { 3 } else { 0 }, "{carries}");
        pair.ends[1].endpoint.send_datagram(pair.now, theirs, b"as long as may be").unwrap();
        pair.run(5 * SECOND);
        assert_eq!(
            stats(&pair, 1).max_datagram,
            [1200, 1400, 1472][usize::from(carries >= 1400) + usize::from(carries >= 1472)]
        );
        assert!(pair.ends[0].endpoint.is_open(ours));
    }
}

/// wire.md W6.6: a path that becomes narrower is a black hole for large datagrams until the sender makes them smaller; one
/// that was only cut off has its size back at once, in the middle of bulk.
#[test]
fn bulk_goes_on_when_the_path_becomes_narrower() {
    for (outage, expected) in [(None, 1400), (Some(Duration::from_millis(500)), 1472)] {
        let mut pair = Pair::new();
        let [ours, theirs] = pair.connected();
        pair.run(SECOND);
        let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
        let narrow = Rc::new(Cell::new(false));
        let is_narrow = Rc::clone(&narrow);
        pair.fate = Box::new(move |d| match outage {
            _ if !is_narrow.get() => vec![Duration::ZERO],
            None if d.len() <= 1400 => vec![Duration::ZERO],
            _ => vec![],
        });
        let text: Vec<u8> = (0..4_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
        let (mut written, mut received, mut cut) = (0, Vec::new(), None);
        pair.run_until(60 * SECOND, |pair| {
            let now = pair.now;
            if received.len() > 1_000_000 && cut.is_none() {
                cut = Some(now);
                narrow.set(true);
            }
            if let (Some(cut), Some(outage)) = (cut, outage)
                && now.since(cut) > outage
            {
                narrow.set(false);
            }
            written += pair.ends[0].endpoint.write(now, ours, stream, &text[written..]).unwrap_or(0);
            let mut buffer = [0; 5000];
            while let Ok(Read::Bytes(n)) = pair.ends[1].endpoint.read(now, theirs, stream, &mut buffer) {
                received.extend_from_slice(&buffer[..n]);
            }
            if received.len() < text.len() {
                return false;
            }
            assert!(received == text);
            assert_eq!(pair.ends[0].endpoint.tunnel_stats(pair.ends[0].peer).unwrap().max_datagram, expected);
            true
        });
        assert!(cut.is_some(), "it was in the middle");
    }
}
