//! A peer that is authentic and hostile: its packets open, and carry any bytes as frames.

use std::time::Duration;

use arbitrary::Arbitrary;
use pilot_engine::{Event, Read, fuzzing};

use super::pair::{End, Pair, QUIET_DATAGRAMS};

/// The broken node; the honest one is the other.
const BROKEN: usize = 0;
const HONEST: usize = 1;

/// Datagrams that a node whose data nobody acks sends in the second after a handshake: six pauses that double, and then one every 64
/// of the shortest probe time-outs, of 1.6 ms over a path without delay (wire.md W5.6).
const PROBES_A_SECOND: usize = 16;

#[derive(Arbitrary, Debug)]
enum Operation {
    /// The frames, in one packet.
    Frames(Frames),
    /// The honest node's application writes to all that is open, on a stream and in a message.
    Write { length: u16 },
    /// It opens a connection.
    Connect,
    /// The broken node's engine, which is honest, answers what it got, and both go on.
    Settle,
    /// Time passes, by powers of two.
    Wait { microseconds_log2: u8 },
}

/// As many bytes as the input says, up to what a datagram carries. (The derived way to read a `Vec` costs the fuzzer a byte for
/// each byte.)
#[derive(Debug)]
struct Frames(Vec<u8>);

impl<'a> Arbitrary<'a> for Frames {
    fn arbitrary(input: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        let length = usize::from(u16::arbitrary(input)?).min(1400).min(input.len());
        Ok(Self(input.bytes(length)?.to_vec()))
    }
}

pub(super) fn run(input: &[u8]) {
    let mut pair = Pair::new();
    let _ = pair.ends[BROKEN].endpoint.connect(pair.now, pair.ends[BROKEN].peer, 7);
    let mut connections = Vec::new();
    pair.settle(Duration::from_millis(1), |pair, end, event| accept(pair, end, event, &mut connections));
    for operation in super::operations(input) {
        match operation {
            Operation::Frames(Frames(frames)) if !frames.is_empty() => {
                let End { endpoint, peer, .. } = &mut pair.ends[BROKEN];
                if let Some(packet) = fuzzing::seal(endpoint, *peer, &frames) {
                    pair.deliver(HONEST, &packet);
                }
            }
            Operation::Frames(_) => {}
            Operation::Write { length } => {
                let bytes = vec![7; usize::from(length)];
                let (honest, now) = (&mut pair.ends[HONEST].endpoint, pair.now);
                for connection in &connections {
                    let _ = honest.send_message(now, *connection, &bytes);
                    if let Ok(stream) = honest.open_stream(now, *connection) {
                        let _ = honest.write(now, *connection, stream, &bytes);
                    }
                }
            }
            Operation::Connect => {
                let peer = pair.ends[HONEST].peer;
                connections.extend(pair.ends[HONEST].endpoint.connect(pair.now, peer, 8));
            }
            Operation::Settle => {
                pair.settle(Duration::from_millis(5), |pair, end, event| accept(pair, end, event, &mut connections));
            }
            Operation::Wait { microseconds_log2 } => pair.pass(Duration::from_micros(1 << (microseconds_log2 % 26))),
        }
        while let Some(event) = pair.ends[HONEST].endpoint.poll_event() {
            accept(&mut pair, HONEST, event, &mut connections);
        }
    }
    // Whatever it was told, it falls silent, but for keep-alives of both, once the other does. The broken node does not, where it said
    // that its session id is one that it does not have: then each of its probes has one answer, and with each of its handshakes the
    // honest node tries anew what was never acked.
    pair.settle(Duration::from_secs(100), |pair, end, event| accept(pair, end, event, &mut connections));
    let handshakes = |pair: &Pair| pair.ends[HONEST].endpoint.stats().handshakes as usize;
    let before = handshakes(&pair);
    let sent = pair.settle(Duration::from_secs(60), |pair, end, event| accept(pair, end, event, &mut connections));
    let answers = sent[BROKEN] + (handshakes(&pair) - before) * PROBES_A_SECOND;
    let is_silent = sent[BROKEN] <= QUIET_DATAGRAMS / 2;
    let allowed = QUIET_DATAGRAMS / 2 + if is_silent { 0 } else { answers };
    assert!(sent[HONEST] <= allowed, "{sent:?} datagrams in a minute without anything to say");
}

/// An application that accepts, and reads all there is.
fn accept(pair: &mut Pair, end: usize, event: Event, connections: &mut Vec<pilot_engine::ConnectionHandle>) {
    let (endpoint, now) = (&mut pair.ends[end].endpoint, pair.now);
    match event {
        Event::Offered { connection, .. } => {
            let _ = endpoint.accept(now, connection);
            if end == HONEST {
                connections.push(connection);
            }
        }
        Event::MessagesReadable { connection } => {
            let mut messages = Vec::new();
            while let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut messages) {}
        }
        Event::StreamReadable { connection, stream } => {
            let mut bytes = [0; 4096];
            while let Ok(Read::Bytes(_)) = endpoint.read(now, connection, stream, &mut bytes) {}
        }
        Event::Closed { connection, .. } => {
            connections.retain(|it| *it != connection || end != HONEST);
            endpoint.close(now, connection, 0, "");
        }
        _ => {}
    }
}
