//! What an authenticated peer may not do: frames sealed under the tunnel's own key.

use super::*;
use crate::codec::Writer;
use crate::config::PeerConfig;
use crate::crypto::reset::ResetToken;
use crate::error::OperationError;
use crate::error::{CloseReason, Code, RefuseCode};
use crate::event::ConnectionHandle;
use crate::frame;
use crate::identity::Identity;
use crate::limits::*;
use crate::stream::StreamId;
use crate::stream::recv::Read;
use std::time::Duration;

mod flood;
mod rest;

const NOW: Instant = Instant::from_nanos(1_000_000);

struct Pair {
    ends: [Endpoint; 2],
}

fn identity(n: u8) -> Identity {
    Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8 + 1], 4242))
}

impl Pair {
    /// A tunnel that end 0 began, with one accepted connection, id 0.
    fn connected() -> (Self, [ConnectionHandle; 2]) {
        let ends = [1, 2].map(|n| {
            let config = Config::new(identity(n), Default::default(), [n; 16], Duration::from_secs(1 << 30));
            Endpoint::new(config, [n; 32])
        });
        let mut pair = Self { ends };
        for n in 0..2 {
            let key = identity(2 - n as u8).public_key();
            pair.ends[n].add_peer(PeerConfig { key, address: Default::default(), endpoint: Some(address(1 - n)) });
        }
        let ours = pair.ends[0].connect(NOW, PeerId(0), 7).unwrap();
        pair.exchange();
        let theirs = pair.events(1).into_iter().find_map(|event| match event {
            Event::Offered { connection, port: 7 } => Some(connection),
            _ => None,
        });
        pair.ends[1].accept(NOW, theirs.unwrap()).unwrap();
        pair.exchange();
        assert!(pair.ends[0].is_open(ours));
        pair.events(0);
        (pair, [ours, theirs.unwrap()])
    }

    fn events(&mut self, end: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.ends[end].poll_event()).collect()
    }

    /// Delivers until both are silent.
    fn exchange(&mut self) {
        self.exchange_at(NOW);
    }

    fn exchange_at(&mut self, now: Instant) {
        let mut buffer = [0; 1500];
        loop {
            let mut any = false;
            for from in 0..2 {
                while let Some(transmit) = self.ends[from].poll_transmit(now, &mut buffer) {
                    any = true;
                    let (source, datagram) = (address(from), &buffer[..transmit.len]);
                    self.ends[1 - from].handle_datagram(now, source, address(1 - from), Ecn::NotEct, datagram);
                }
            }
            if !any {
                break;
            }
        }
        for end in &mut self.ends {
            let missed = end.run(NOW, PeerId(0), |tunnel, ctx| tunnel.poll_transmit(ctx, &mut buffer));
            assert!(missed.is_none(), "a tunnel that was taken for calm had something to send");
        }
    }

    /// Sends frames from end 0 to end 1 that end 0's engine would not send.
    fn inject(&mut self, frames: &[u8]) -> Received {
        let packet = self.ends[0].tunnels[0].seal_any(frames).unwrap();
        self.ends[1].handle_datagram(NOW, address(0), address(1), Ecn::NotEct, &packet)
    }
}

fn bytes(write: impl FnOnce(&mut Writer<'_>) -> Option<()>) -> Vec<u8> {
    let mut buffer = [0; 1400];
    let mut writer = Writer::new(&mut buffer);
    write(&mut writer).unwrap();
    let length = writer.len();
    buffer[..length].to_vec()
}

fn stream(connection: u64, id: u64, offset: u64, fin: bool, length: usize) -> Vec<u8> {
    bytes(|w| frame::write_stream(w, connection, id, offset, fin, length).map(|_| ()))
}

/// wire.md W5.1, W5.4, W5.8, W5.9, W5.11, W5.12: each closes the tunnel with its code, and says so to the application.
#[test]
fn violations_close_the_tunnel_with_their_code() {
    let message = |connection, number, length: usize| {
        let payload = vec![0; length];
        bytes(move |w| frame::write_message(w, connection, number, &payload))
    };
    let reset = |id, length| bytes(move |w| frame::write_reset_stream(w, 0, id, 7, length));
    let part = |number, total| bytes(move |w| frame::write_message_part(w, 0, number, total, 0, &[0; 64]));
    let table: [(&str, Vec<u8>, Code); 24] = [
        ("an unknown frame", vec![0x3e], Code::UnknownFrame),
        ("a cut frame", vec![0x04, 0], Code::FrameEncoding),
        ("an ack of what was not sent", vec![0x02, 0x40, 99, 0, 0, 0], Code::AckOfUnsent),
        ("an id of ours", bytes(|w| frame::write_open(w, 1, 7)), Code::ConnectionState),
        ("ids left out", bytes(|w| frame::write_open(w, 1 << 20, 7)), Code::LimitExceeded),
        ("a connection never opened", message(2, 0, 1), Code::ConnectionState),
        ("our connection never opened", bytes(|w| frame::write_accept(w, 1)), Code::ConnectionState),
        ("a message beyond the window", message(0, MESSAGE_WINDOW as u16, 1), Code::LimitExceeded),
        ("a message too long", message(0, 0, WHOLE_MESSAGE_BYTES + 1), Code::LimitExceeded),
        ("a stream beyond its credit", stream(0, 0, STREAM_CREDIT_BYTES, false, 1), Code::CreditExceeded),
        ("a unidirectional stream of ours never opened", stream(0, 3, 0, false, 1), Code::StreamState),
        ("a reset of a stream of ours never opened", reset(1, 0), Code::StreamState),
        ("an end that a reset moves", [stream(0, 0, 0, false, 5), reset(0, 4)].concat(), Code::StreamState),
        ("a reset beyond its stream's credit", reset(0, STREAM_CREDIT_BYTES + 1), Code::CreditExceeded),
        ("a stop of what they alone write", bytes(|w| frame::write_stop_stream(w, 0, 2, 1)), Code::StreamState),
        ("credit for what they alone write", bytes(|w| frame::write_stream_credit(w, 0, 2, 9)), Code::StreamState),
        ("consumed what was not sent", bytes(|w| frame::write_consumed(w, 0, 0, 1)), Code::StreamState),
        ("took what was not sent", bytes(|w| frame::write_messages_consumed(w, 0, 1)), Code::ConnectionState),
        ("too many unidirectional streams", stream(0, MAX_STREAMS << 2 | 2, 0, false, 1), Code::LimitExceeded),
        ("a message in parts too long", part(0, MAX_MESSAGE_BYTES + 1), Code::LimitExceeded),
        ("a stream of ours never opened", stream(0, 1, 0, false, 1), Code::StreamState),
        ("too many streams", stream(0, MAX_STREAMS << 2, 0, false, 1), Code::LimitExceeded),
        ("an end that moves", [stream(0, 0, 0, true, 5), stream(0, 0, 0, true, 4)].concat(), Code::StreamState),
        (
            "credit for a stream of ours never opened",
            bytes(|w| frame::write_stream_credit(w, 0, 1, 9)),
            Code::StreamState,
        ),
    ];
    for (what, frames, code) in table {
        let (mut pair, [ours, theirs]) = Pair::connected();
        assert_eq!(pair.inject(&frames), Received::Data, "{what}: it was authentic");
        let closed = pair.events(1).into_iter().find_map(|event| match event {
            Event::Closed { connection, reason: CloseReason::ProtocolViolation(violation) } if connection == theirs => {
                Some(violation.code)
            }
            _ => None,
        });
        assert_eq!(closed, Some(code), "{what}");
        pair.exchange();
        let told = pair.events(0).into_iter().find_map(|event| match event {
            Event::Closed { connection, reason: CloseReason::TunnelClosed { code, .. } } if connection == ours => {
                Some(code)
            }
            _ => None,
        });
        assert_eq!(told, Some(code as u64), "{what}: the peer is told");
    }
}

/// wire.md W5.17: on a unidirectional stream only the end that opened it writes.
#[test]
fn one_end_writes_on_a_unidirectional_stream() {
    let (mut pair, [_, theirs]) = Pair::connected();
    let id = pair.ends[1].open_unidirectional(NOW, theirs).unwrap();
    assert_eq!(id.0, 3);
    assert_eq!(pair.ends[1].read(NOW, theirs, id, &mut [0; 9]), Err(OperationError::NoStream));
    pair.ends[1].write(NOW, theirs, id, b"ours").unwrap();
    pair.exchange();
    pair.inject(&bytes(|w| frame::write_stop_stream(w, 0, 3, 1)));
    assert!(pair.ends[1].is_up(PeerId(0)));
    pair.inject(&stream(0, 3, 0, false, 1));
    assert!(!pair.ends[1].is_up(PeerId(0)));

    let (mut pair, [_, theirs]) = Pair::connected();
    pair.inject(&stream(0, 2, 0, false, 1));
    let id = StreamId(2);
    assert_eq!(pair.ends[1].write(NOW, theirs, id, b"x"), Err(OperationError::Finished));
    assert_eq!(pair.ends[1].read(NOW, theirs, id, &mut [1; 9]), Ok(Read::Bytes(1)));
}

/// wire.md W5.9, W5.17 (RFC 9000 §4.5): what is lost of a stream that was reset, or stopped, counts against the connection's
/// credit once, and is as good as read.
#[test]
fn what_is_given_up_gives_its_credit_back() {
    let (mut pair, [_, theirs]) = Pair::connected();
    let whole = STREAM_CREDIT_BYTES;
    // Far more than the connection's credit, in all.
    for id in 0..8u64 {
        let id = id << 2;
        pair.inject(&stream(0, id, 0, false, 100));
        match id % 8 {
            0 => {
                pair.inject(&bytes(|w| frame::write_reset_stream(w, 0, id, 7, whole)));
                // Late, and repeated.
                pair.inject(&stream(0, id, 50, false, 1000));
                pair.inject(&bytes(|w| frame::write_reset_stream(w, 0, id, 7, whole)));
                let read = pair.ends[1].read(NOW, theirs, StreamId(id), &mut [0; 9]);
                assert_eq!(read, Err(OperationError::StreamReset { code: 7 }));
            }
            _ => {
                pair.ends[1].stop(NOW, theirs, StreamId(id), 1).unwrap();
                pair.inject(&stream(0, id, whole - 1000, true, 1000));
            }
        }
        assert!(pair.ends[1].is_up(PeerId(0)), "stream {id}");
    }
    let left = CONNECTION_CREDIT_BYTES / 2;
    pair.inject(&bytes(|w| frame::write_reset_stream(w, 0, 8 << 2, 7, left)));
    assert!(pair.ends[1].is_up(PeerId(0)));
}

/// What may come late or twice is no violation (wire.md W5.8, W5.10).
#[test]
fn late_and_repeated_frames_are_ignored() {
    let (mut pair, [_, theirs]) = Pair::connected();
    let open = bytes(|w| frame::write_open(w, 0, 7));
    pair.inject(&open);
    pair.inject(&bytes(|w| frame::write_credit(w, 0, 1)));
    pair.inject(&stream(0, 0, 0, true, 5));
    pair.inject(&stream(0, 0, 0, true, 5));
    pair.ends[1].close(NOW, theirs, 0, "");
    pair.inject(&stream(0, 0, 0, true, 5));
    pair.inject(&open);
    assert!(pair.ends[1].is_up(PeerId(0)));
}

/// wire.md W5.8: who opens a connection may end it before it is accepted, and the end may arrive first.
#[test]
fn an_end_before_its_open_makes_it_void() {
    let (mut pair, [_, theirs]) = Pair::connected();
    pair.inject(&bytes(|w| frame::write_close_connection(w, 2, 0, "")));
    pair.inject(&bytes(|w| frame::write_open(w, 2, 7)));
    assert!(pair.ends[1].is_open(theirs));
    assert_eq!(pair.events(1), []);
    pair.inject(&bytes(|w| frame::write_open(w, 4, 7)));
    assert!(matches!(pair.events(1)[..], [Event::Offered { port: 7, .. }]));
}

/// wire.md W5.9: streams share their connection's credit; all of it may be used, and not a byte more.
#[test]
fn connection_credit_holds_over_streams() {
    for with_reset in [false, true] {
        let (mut pair, _) = Pair::connected();
        let window = CONNECTION_CREDIT_BYTES / STREAM_CREDIT_BYTES;
        // What is reset gives back what it took, and no more.
        let first = if with_reset { window } else { 0 };
        for id in 0..first {
            pair.inject(&bytes(|w| frame::write_reset_stream(w, 0, id << 2, 7, STREAM_CREDIT_BYTES)));
        }
        for id in first..first + window {
            pair.inject(&stream(0, id << 2, STREAM_CREDIT_BYTES - 1, false, 1));
            assert!(pair.ends[1].is_up(PeerId(0)));
        }
        pair.inject(&stream(0, (first + window) << 2, 0, false, 1));
        let violation = |event: &Event| matches!(event, Event::TunnelDown { reason: CloseReason::ProtocolViolation(v), .. } if v.code == Code::CreditExceeded);
        assert!(pair.events(1).iter().any(violation));
    }
}

/// More connections than there may be are refused, and those that are there go on.
#[test]
fn connections_are_bounded() {
    let (mut pair, [ours, theirs]) = Pair::connected();
    for id in 1..=MAX_CONNECTIONS as u64 {
        pair.inject(&bytes(|w| frame::write_open(w, 2 * id, 7)));
    }
    let offered = pair.events(1).iter().filter(|event| matches!(event, Event::Offered { .. })).count();
    assert_eq!(offered, MAX_CONNECTIONS - 1);
    assert!(pair.ends[1].is_open(theirs) && pair.ends[0].is_open(ours));
    let refused = bytes(|w| {
        frame::write_refuse(w, 2 * MAX_CONNECTIONS as u64, RefuseCode::TooMany as u64, "too many connections")
    });
    let mut sent = Vec::new();
    let mut buffer = [0; 1500];
    while let Some(transmit) = pair.ends[1].poll_transmit(NOW, &mut buffer) {
        sent.extend(pair.ends[0].tunnels[0].open_for_test(&buffer[..transmit.len]));
    }
    assert!(sent.windows(refused.len()).any(|window| window == refused));
}

/// wire.md W5.22: where more is unread than there is room for, those end that have most of it, and both ends hear of it.
#[test]
fn what_nobody_reads_ends_its_connection() {
    let (mut pair, [_, theirs]) = Pair::connected();
    let mut all = vec![theirs];
    for id in 1..5 {
        pair.inject(&bytes(|w| frame::write_open(w, 2 * id, 7)));
        let offered = pair.events(1).into_iter().find_map(|event| match event {
            Event::Offered { connection, .. } => Some(connection),
            _ => None,
        });
        all.extend(offered);
        pair.ends[1].accept(NOW, all[id as usize]).unwrap();
    }
    for (id, length) in [(0, 100), (1, 900), (2, 300), (3, 800), (4, 0)] {
        pair.inject(&stream(2 * id, 0, 0, false, length));
    }
    let end_unread = |pair: &mut Pair, most| {
        let mut events = std::collections::VecDeque::new();
        pair.ends[1].tunnels[0].table.end_unread(most, &mut events);
        events.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(end_unread(&mut pair, 2100), []);
    let closed = |at: usize| Event::Closed { connection: all[at], reason: CloseReason::NotRead };
    assert_eq!(end_unread(&mut pair, 500), [closed(1), closed(3)]);
    assert!([0, 2, 4].iter().all(|at| pair.ends[1].is_open(all[*at])));
    let told = bytes(|w| frame::write_close_connection(w, 2, 8, "its application does not read"));
    let mut sent = Vec::new();
    let mut buffer = [0; 1500];
    while let Some(transmit) = pair.ends[1].poll_transmit(NOW, &mut buffer) {
        sent.extend(pair.ends[0].tunnels[0].open_for_test(&buffer[..transmit.len]));
    }
    assert!(sent.windows(told.len()).any(|window| window == told));
}

/// wire.md W4.8: of two ids the one that was sent later counts, whichever arrives first.
#[test]
fn a_late_session_id_does_not_replace_a_newer_one() {
    let (mut pair, [_, theirs]) = Pair::connected();
    let [older, newer] = [5, 6].map(|id| {
        let frames = bytes(|w| frame::write_new_session_id(w, id, &ResetToken([0; 16])));
        pair.ends[0].tunnels[0].seal_any(&frames).unwrap()
    });
    for packet in [newer, older] {
        assert_eq!(pair.ends[1].handle_datagram(NOW, address(0), address(1), Ecn::NotEct, &packet), Received::Data);
    }
    pair.ends[1].send_message(NOW, theirs, b"x").unwrap();
    let mut buffer = [0; 1500];
    pair.ends[1].poll_transmit(NOW, &mut buffer).unwrap();
    assert_eq!(buffer[1..5], [0, 0, 0, 6]);
}
