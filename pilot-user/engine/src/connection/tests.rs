//! Windows of a tunnel's connections together, and whose turn it is to send.

use super::table::Table;
use super::*;
use crate::event::PeerId;
use crate::limits::TUNNEL_CREDIT_BYTES;
use crate::time::Instant;
use std::time::Duration;

const LIMITS: PeerLimits = PeerLimits { connection_credit: 1 << 40, stream_credit: 1 << 40, streams: 100 };

fn table() -> Table {
    let mut table = Table::new(PeerId(0));
    table.on_tunnel_up(true, LIMITS, &mut VecDeque::new());
    table
}

fn opened(table: &mut Table) -> Key {
    let key = table.open(7).unwrap().key;
    table.get_mut(key).unwrap().state = State::Open;
    key
}

/// Messages arrive and are taken as fast as credit allows, for a while. The window after.
fn take_fast(table: &mut Table, key: Key) -> u64 {
    let pace = Pace { now: Instant::from_nanos(1), rtt: Some(Duration::from_secs(1)) };
    let mut number = table.get(key).unwrap().messages_consumed() as u16;
    for _ in 0..200_000 {
        let connection = table.get_mut(key).unwrap();
        let mut message = [0; 1020];
        let mut w = crate::codec::Writer::new(&mut message);
        crate::frame::write_message(&mut w, 0, number, &[0; 1000]).unwrap();
        let length = w.len();
        connection.on_messages(0, &mut crate::codec::Reader::new(&message[..length]), &mut VecDeque::new()).unwrap();
        number = number.wrapping_add(1);
        table.receive_messages(key, 1, |_| {}, pace).unwrap();
    }
    table.get(key).unwrap().receive_credit.window()
}

/// What a peer can make a tunnel hold is bounded, however many of its connections were read fast; one that is over makes room for
/// others.
#[test]
fn windows_grow_out_of_what_the_tunnel_has_to_spare() {
    let mut table = table();
    let keys: Vec<Key> = (0..5).map(|_| opened(&mut table)).collect();
    let windows: Vec<u64> = keys.iter().map(|key| take_fast(&mut table, *key)).collect();
    assert_eq!(windows[..2], [MAX_CONNECTION_CREDIT_BYTES; 2]);
    let grown: u64 = windows.iter().map(|window| window - CONNECTION_CREDIT_BYTES).sum();
    assert_eq!(grown, TUNNEL_CREDIT_BYTES, "{windows:?}");
    assert_eq!(windows[4], CONNECTION_CREDIT_BYTES);
    table.close(keys[0], 0, "");
    table.on_acked(&SentFrame::End(keys[0]), &mut VecDeque::new());
    assert!(table.get(keys[0]).is_none());
    let key = opened(&mut table);
    assert_eq!(take_fast(&mut table, key), windows[0]);
}

/// What packets of one size are made of while lanes never run dry, as bytes of (messages, datagrams, streams), by connection.
fn shares(connections: &[[bool; 3]], packets: usize) -> Vec<[usize; 3]> {
    let mut table = table();
    let keys: Vec<Key> = connections.iter().map(|_| opened(&mut table)).collect();
    let mut bytes = vec![[0; 3]; connections.len()];
    for _ in 0..packets {
        for (key, lanes) in keys.iter().zip(connections) {
            let connection = table.get_mut(*key).unwrap();
            if lanes[0] {
                while connection.send_message(&[0; 500]).is_ok() {}
            }
            if lanes[1] && connection.datagrams_out.is_empty() {
                (0..10).for_each(|_| connection.send_datagram(&[0; 500]).unwrap());
            }
            if lanes[2] {
                let stream = StreamId::new(0, crate::stream::Direction::Bidirectional, true);
                if connection.streams.is_empty() {
                    connection.open_stream(crate::stream::Direction::Bidirectional).unwrap();
                }
                let _ = connection.write_stream_bytes(stream, &[0; 3000], 9000);
            }
            table.queue(*key);
        }
        let (mut buffer, mut sent) = ([0; 1175], Default::default());
        let mut writer = crate::codec::Writer::new(&mut buffer);
        table.write_lanes(&mut writer, &mut sent);
        let length = writer.len();
        let mut reader = crate::codec::Reader::new(&buffer[..length]);
        while let Some(frame) = crate::frame::Frame::next(&mut reader).unwrap() {
            let (connection, lane, length) = match frame {
                crate::frame::Frame::Message { connection, payload, .. } => (connection, 0, payload.len()),
                crate::frame::Frame::Datagram { connection, payload } => (connection, 1, payload.len()),
                crate::frame::Frame::Stream { connection, payload, .. } => (connection, 2, payload.len()),
                other => panic!("{other:?}"),
            };
            bytes[connection as usize / 2][lane] += length;
        }
        // Everything arrives at once.
        sent.iter().for_each(|frame| table.on_acked(frame, &mut VecDeque::new()));
    }
    bytes
}

/// wire.md W5.20: small messages are ahead of bulk, which waits for one packet in eight and not for ever.
#[test]
fn no_lane_starves() {
    let share = |bytes: &[usize; 3], lane: usize| 100 * bytes[lane] / bytes.iter().sum::<usize>();
    let both = shares(&[[true, false, true]], 800)[0];
    assert!((85..=92).contains(&share(&both, 0)), "messages and a stream: {both:?}");
    assert!(both[2] > 0);
    let all = shares(&[[true; 3]], 800)[0];
    assert!((65..=80).contains(&share(&all, 0)), "all three: {all:?}");
    assert!(share(&all, 1) >= 10 && share(&all, 2) >= 10, "all three: {all:?}");
    // In connections of their own they share as in one.
    let apart = shares(&[[true, false, false], [false, true, false], [false, false, true]], 800);
    let apart: [usize; 3] = std::array::from_fn(|n| apart[n][n]);
    assert!(share(&apart, 0) >= 65 && share(&apart, 1) >= 10 && share(&apart, 2) >= 10, "{apart:?}");
}

/// Connections share a lane evenly, whatever each has waiting.
#[test]
fn connections_take_turns() {
    for lane in 0..3 {
        let mut lanes = [false; 3];
        lanes[lane] = true;
        let bytes: Vec<usize> = shares(&[lanes; 4], 800).iter().map(|bytes| bytes[lane]).collect();
        let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
        assert!(*least > 0 && most - least <= most / 20, "lane {lane}: {bytes:?}");
    }
}

/// Streams of a connection take turns, a piece each; a new one does not wait for those that are long.
#[test]
fn streams_take_turns() {
    let mut table = table();
    let key = opened(&mut table);
    let connection = table.get_mut(key).unwrap();
    let streams: Vec<StreamId> =
        (0..5).map(|_| connection.open_stream(crate::stream::Direction::Unidirectional).unwrap()).collect();
    for stream in &streams {
        connection.write_stream_bytes(*stream, &[0; 100_000], 100_000).unwrap();
    }
    table.queue(key);
    let mut bytes = std::collections::BTreeMap::new();
    for _ in 0..100 {
        let (mut buffer, mut sent) = ([0; 1175], crate::recovery::sent::SentFrames::new());
        table.write_lanes(&mut crate::codec::Writer::new(&mut buffer), &mut sent);
        for frame in sent {
            if let SentFrame::Stream { stream, length, .. } = frame {
                *bytes.entry(stream).or_insert(0) += length;
            }
        }
    }
    let (least, most) = (bytes.values().min().unwrap(), bytes.values().max().unwrap());
    assert_eq!(bytes.len(), 5);
    assert!(most - least <= 1200, "{bytes:?}");
}
