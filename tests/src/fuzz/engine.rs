//! Two honest nodes, their applications and the path between them, in any order of doings. What is read is what was written,
//! in order; what a path that works again can deliver is delivered; then there is silence.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use arbitrary::Arbitrary;
use pilot_engine::{CloseReason, Code, ConnectionHandle, Event, OperationError, Read, StreamId};

use super::pair::{Pair, QUIET_DATAGRAMS, Sent};
use crate::random::{fill, mix};

/// Datagrams on the way to one node; of more, the oldest are lost.
const IN_FLIGHT_MAX: usize = 256;

#[derive(Arbitrary, Debug)]
enum Operation {
    Connect {
        end: bool,
    },
    /// Of a connection that was offered, the oldest is answered.
    Answer {
        end: bool,
        accept: bool,
    },
    Message {
        on: On,
        length: u16,
    },
    OpenStream {
        on: On,
    },
    Write {
        on: On,
        stream: u8,
        length: u16,
    },
    Finish {
        on: On,
        stream: u8,
    },
    ReceiveMessage {
        on: On,
    },
    ReadStream {
        on: On,
        stream: u8,
        length: u16,
    },
    Close {
        on: On,
    },
    CloseTunnel {
        end: bool,
    },
    /// The process is killed and started again.
    Restart {
        end: bool,
    },
    /// A node sends what it has, at most so many datagrams.
    Transmit {
        end: bool,
        count: u8,
    },
    /// One of those on the way to a node arrives, out of turn or damaged or not the last time.
    Arrive {
        end: bool,
        index: u8,
        twice: bool,
        damage: Option<(u16, u8)>,
    },
    /// Those at the front arrive.
    ArriveInOrder {
        end: bool,
        count: u8,
    },
    Lose {
        end: bool,
        index: u8,
    },
    /// Time passes, by powers of two.
    Wait {
        microseconds_log2: u8,
    },
    /// A node is seen behind other ports.
    Rebind {
        end: bool,
        ports_higher: u8,
    },
    ReplaceSessionId {
        end: bool,
    },
    OpenUnidirectional {
        on: On,
    },
    Reset {
        on: On,
        stream: u8,
    },
    Stop {
        on: On,
        stream: u8,
    },
    Datagram {
        on: On,
        length: u16,
    },
    ReceiveDatagram {
        on: On,
    },
}

/// One of a node's connections.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct On {
    end: bool,
    connection: u8,
}

/// What one end writes on one stream, or as messages.
#[derive(Default)]
struct Text {
    key: u64,
    written: u64,
    finished: bool,
    read: u64,
    ended: bool,
    /// The writer gave it up, the reader did.
    reset: bool,
    stopped: bool,
}

/// A connection as one end has it.
struct Connection {
    handle: ConnectionHandle,
    port: u16,
    accepted: bool,
    closed: bool,
    /// Its streams, in the order of their opening.
    streams: Vec<StreamId>,
    /// What the engine has said can be read, and was not read to where it says that there is no more.
    readable: BTreeSet<Option<StreamId>>,
}

/// The text of a stream, by the connection's port and the end that writes; every connection has a port of its own.
type Place = (u16, usize, StreamId);

struct World {
    pair: Pair,
    in_flight: [VecDeque<Sent>; 2],
    offered: [VecDeque<ConnectionHandle>; 2],
    connections: [Vec<Connection>; 2],
    /// Connections opened, which is also the next one's port.
    ports: u16,
    texts: BTreeMap<Place, Text>,
    /// Lengths of the messages sent by an end on a port, and how many of them were read.
    messages: BTreeMap<(u16, usize), (Vec<u16>, usize)>,
    /// Lengths of the unreliable datagrams sent by an end on a port, and those of them that were received.
    datagrams: BTreeMap<(u16, usize), (Vec<usize>, BTreeSet<usize>)>,
}

pub(super) fn run(input: &[u8]) {
    let mut world = World {
        pair: Pair::with_bulk(),
        in_flight: Default::default(),
        offered: Default::default(),
        connections: Default::default(),
        ports: 0,
        texts: BTreeMap::new(),
        messages: BTreeMap::new(),
        datagrams: BTreeMap::new(),
    };
    for operation in super::operations(input) {
        world.carry_out(operation);
        for end in 0..2 {
            while let Some(event) = world.pair.ends[end].endpoint.poll_event() {
                world.on_event(end, event);
            }
        }
    }
    world.finish();
}

impl World {
    fn carry_out(&mut self, operation: Operation) {
        let now = self.pair.now;
        match operation {
            Operation::Connect { end } => {
                let end = usize::from(end);
                let node = &mut self.pair.ends[end];
                if let Ok(handle) = node.endpoint.connect(now, node.peer, self.ports) {
                    self.connections[end].push(Connection::new(handle, self.ports));
                    self.ports += 1;
                }
            }
            Operation::Answer { end, accept } => self.answer(end.into(), accept),
            Operation::Message { on, length } => self.with(on, |world, end, it| {
                let (sent, _) = world.messages.entry((it.port, end)).or_default();
                let mut message = vec![0; length.into()];
                fill(message_key(it.port, end, sent.len()), 0, &mut message);
                if world.pair.ends[end].endpoint.send_message(now, it.handle, &message).is_ok() {
                    sent.push(message.len() as u16);
                }
            }),
            Operation::OpenStream { on } => self.with(on, |world, end, it| {
                if let Ok(stream) = world.pair.ends[end].endpoint.open_stream(now, it.handle) {
                    world.begin_stream(it, stream, end);
                }
            }),
            Operation::OpenUnidirectional { on } => self.with(on, |world, end, it| {
                if let Ok(stream) = world.pair.ends[end].endpoint.open_unidirectional(now, it.handle) {
                    world.begin_stream(it, stream, end);
                }
            }),
            Operation::Reset { on, stream } => self.with(on, |world, end, it| {
                let Some(stream) = it.stream(stream) else { return };
                let done = world.pair.ends[end].endpoint.reset(now, it.handle, stream, stream_code(stream));
                if let Some(text) = world.texts.get_mut(&(it.port, end, stream)) {
                    text.reset |= done.is_ok();
                }
            }),
            Operation::Stop { on, stream } => self.with(on, |world, end, it| {
                let Some(stream) = it.stream(stream) else { return };
                let done = world.pair.ends[end].endpoint.stop(now, it.handle, stream, stream_code(stream));
                if let Some(text) = world.texts.get_mut(&(it.port, 1 - end, stream)) {
                    text.stopped |= done.is_ok();
                }
            }),
            Operation::Datagram { on, length } => self.with(on, |world, end, it| {
                let (sent, _) = world.datagrams.entry((it.port, end)).or_default();
                let datagram = datagram(it.port, end, sent.len(), usize::from(length) % 1500);
                match world.pair.ends[end].endpoint.send_datagram(now, it.handle, &datagram) {
                    Ok(()) => sent.push(datagram.len()),
                    Err(error) => assert!(is_expected(&error), "send_datagram: {error}"),
                }
            }),
            Operation::ReceiveDatagram { on } => self.with(on, |world, end, it| world.receive_datagrams(end, it)),
            Operation::Write { on, stream, length } => self.with(on, |world, end, it| {
                let Some(stream) = it.stream(stream) else { return };
                let Some(text) = world.texts.get_mut(&(it.port, end, stream)) else { return };
                let mut bytes = vec![0; length.into()];
                fill(text.key, text.written, &mut bytes);
                match world.pair.ends[end].endpoint.write(now, it.handle, stream, &bytes) {
                    Ok(taken) => {
                        assert!(!text.finished, "written behind the end");
                        text.written += taken as u64;
                    }
                    Err(error) => assert!(is_expected(&error), "write: {error}"),
                }
            }),
            Operation::Finish { on, stream } => self.with(on, |world, end, it| {
                let Some(stream) = it.stream(stream) else { return };
                if let Some(text) = world.texts.get_mut(&(it.port, end, stream)) {
                    text.finished |= world.pair.ends[end].endpoint.finish(now, it.handle, stream).is_ok();
                }
            }),
            Operation::ReceiveMessage { on } => self.with(on, |world, end, it| {
                world.receive_message(end, it);
            }),
            Operation::ReadStream { on, stream, length } => self.with(on, |world, end, it| {
                if let Some(stream) = it.stream(stream) {
                    world.read_stream(end, it, stream, length.into());
                }
            }),
            Operation::Close { on } => {
                let connections = &mut self.connections[usize::from(on.end)];
                if !connections.is_empty() {
                    let it = connections.swap_remove(usize::from(on.connection) % connections.len());
                    self.pair.ends[usize::from(on.end)].endpoint.close(now, it.handle, 0, "");
                }
            }
            Operation::CloseTunnel { end } => {
                let node = &mut self.pair.ends[usize::from(end)];
                node.endpoint.close_tunnel(now, node.peer, Code::ShuttingDown);
            }
            Operation::Restart { end } => {
                let end = usize::from(end);
                self.pair.restart(end);
                self.offered[end].clear();
                self.connections[end].clear();
            }
            Operation::Transmit { end, count } => {
                let end = usize::from(end);
                for _ in 0..count {
                    let Some(datagram) = self.pair.send(end) else { break };
                    let path = &mut self.in_flight[1 - end];
                    path.push_back(datagram);
                    if path.len() > IN_FLIGHT_MAX {
                        path.pop_front();
                    }
                }
            }
            Operation::Arrive { end, index, twice, damage } => {
                let end = usize::from(end);
                let path = &mut self.in_flight[end];
                if path.is_empty() {
                    return;
                }
                let index = usize::from(index) % path.len();
                let kept = if twice { path.get(index).cloned() } else { path.remove(index) };
                let Some(mut datagram) = kept else { return };
                if let Some((at, mask)) = damage {
                    let at = usize::from(at) % datagram.bytes.len();
                    datagram.bytes[at] ^= mask;
                }
                self.pair.arrive(end, &datagram);
            }
            Operation::ArriveInOrder { end, count } => {
                let end = usize::from(end);
                for _ in 0..count {
                    let Some(datagram) = self.in_flight[end].pop_front() else { break };
                    self.pair.arrive(end, &datagram);
                }
            }
            Operation::Lose { end, index } => {
                let path = &mut self.in_flight[usize::from(end)];
                path.remove(usize::from(index) % path.len().max(1));
            }
            Operation::Wait { microseconds_log2 } => {
                self.pair.pass(Duration::from_micros(1 << (microseconds_log2 % 26)));
            }
            Operation::Rebind { end, ports_higher } => self.pair.rebind(end.into(), ports_higher.into()),
            Operation::ReplaceSessionId { end } => {
                let node = &mut self.pair.ends[usize::from(end)];
                node.endpoint.replace_session_id(now, node.peer);
            }
        }
    }

    /// Does something with one of a node's connections, if it has any.
    fn with(&mut self, on: On, run: impl FnOnce(&mut Self, usize, &mut Connection)) {
        let end = usize::from(on.end);
        if self.connections[end].is_empty() {
            return;
        }
        let index = usize::from(on.connection) % self.connections[end].len();
        let mut it = self.connections[end].swap_remove(index);
        run(self, end, &mut it);
        self.connections[end].push(it);
    }

    /// Does something with the connection that an event is of.
    fn with_handle(&mut self, end: usize, handle: ConnectionHandle, run: impl FnOnce(&mut Self, &mut Connection)) {
        let Some(index) = self.connections[end].iter().position(|it| it.handle == handle) else {
            // An event may have been waiting when its connection was closed here, or not been answered yet.
            return;
        };
        let mut it = self.connections[end].swap_remove(index);
        run(self, &mut it);
        self.connections[end].push(it);
    }

    fn on_event(&mut self, end: usize, event: Event) {
        match event {
            Event::TunnelUp { .. }
            | Event::PeerRestarted { .. }
            | Event::Sending { .. }
            | Event::MessagesWritable { .. }
            | Event::StreamWritable { .. }
            | Event::Introduced { .. }
            | Event::NotIntroduced { .. } => {}
            Event::MessagesConsumed { connection } => self.with_handle(end, connection, |world, it| {
                let (_, read) = world.messages.get(&(it.port, end)).expect("there were messages");
                let consumed = world.pair.ends[end].endpoint.messages_consumed(connection);
                assert!(consumed.is_none_or(|consumed| consumed <= *read as u64), "{consumed:?} of {read} consumed");
            }),
            Event::StreamConsumed { connection, stream } => self.with_handle(end, connection, |world, it| {
                let text = &world.texts[&(it.port, end, stream)];
                let (read, consumed) = (text.read, world.pair.ends[end].endpoint.consumed(connection, stream));
                assert!(
                    consumed.is_none_or(|consumed| consumed <= read),
                    "{stream:?}: {consumed:?} of {read} consumed"
                );
            }),
            Event::DatagramsReadable { connection } => {
                self.with_handle(end, connection, |world, it| world.receive_datagrams(end, it));
            }
            Event::StreamReset { connection, stream, code } => self.with_handle(end, connection, |world, it| {
                assert_eq!(code, stream_code(stream));
                let text = &world.texts[&(it.port, 1 - end, stream)];
                assert!(text.reset || text.stopped, "{stream:?} was not given up");
                it.readable.insert(Some(stream));
            }),
            Event::StreamStopped { connection, stream, code } => self.with_handle(end, connection, |world, it| {
                assert_eq!(code, stream_code(stream));
                assert!(world.texts[&(it.port, end, stream)].stopped, "{stream:?} was not stopped");
            }),
            Event::TunnelDown { reason, .. } => assert!(is_possible(&reason), "the tunnel is down: {reason}"),
            Event::Offered { connection, .. } => self.offered[end].push_back(connection),
            Event::Connected { connection } => self.with_handle(end, connection, |_, it| it.accepted = true),
            Event::MessagesReadable { connection } => self.with_handle(end, connection, |_, it| {
                it.readable.insert(None);
            }),
            Event::StreamReadable { connection, stream } => self.with_handle(end, connection, |_, it| {
                assert!(it.streams.contains(&stream), "{stream:?} was never opened");
                it.readable.insert(Some(stream));
            }),
            Event::StreamOpened { connection, stream } => {
                self.with_handle(end, connection, |world, it| world.begin_stream(it, stream, 1 - end));
            }
            Event::Closed { connection, reason } => {
                assert!(is_possible(&reason), "the connection is closed: {reason}");
                self.offered[end].retain(|it| *it != connection);
                self.with_handle(end, connection, |_, it| it.closed = true);
            }
        }
    }

    fn answer(&mut self, end: usize, accept: bool) {
        let Some(handle) = self.offered[end].pop_front() else { return };
        let (endpoint, now) = (&mut self.pair.ends[end].endpoint, self.pair.now);
        let Some(port) = endpoint.port(handle) else { return };
        if !accept {
            endpoint.refuse(now, handle, 1, "");
        } else if endpoint.accept(now, handle).is_ok() {
            self.connections[end].push(Connection { accepted: true, ..Connection::new(handle, port) });
            // Where the tunnel ended before its opener heard of an acceptance, it is opened anew: what was written to it went with
            // the first, of which its writer was told.
            self.messages.remove(&(port, end));
            self.datagrams.remove(&(port, end));
            for (_, text) in self.texts.range_mut((port, end, StreamId(0))..=(port, end, StreamId(u64::MAX))) {
                (text.written, text.finished, text.reset) = (0, false, false);
            }
        }
    }

    fn begin_stream(&mut self, it: &mut Connection, stream: StreamId, opener: usize) {
        assert!(!it.streams.contains(&stream), "{stream:?} is opened twice");
        it.streams.push(stream);
        for end in (0..2).filter(|end| stream.is_bidirectional() || *end == opener) {
            let key = mix(self.texts.len() as u64);
            self.texts.entry((it.port, end, stream)).or_insert(Text { key, ..Text::default() });
        }
    }

    /// Whether there was a message.
    fn receive_message(&mut self, end: usize, it: &mut Connection) -> bool {
        let mut message = Vec::new();
        let received = self.pair.ends[end].endpoint.receive_message(self.pair.now, it.handle, &mut message);
        if !matches!(received, Ok(Some(_))) {
            it.readable.remove(&None);
            return false;
        }
        let writer = 1 - end;
        let (sent, read) = self.messages.entry((it.port, writer)).or_default();
        assert_eq!(sent.get(*read).copied().map(usize::from), Some(message.len()), "message {read}");
        let mut expected = vec![0; message.len()];
        fill(message_key(it.port, writer, *read), 0, &mut expected);
        assert!(message == expected, "message {read} is another one");
        *read += 1;
        true
    }

    fn receive_datagrams(&mut self, end: usize, it: &mut Connection) {
        let mut bytes = Vec::new();
        while let Ok(Some(_)) = self.pair.ends[end].endpoint.receive_datagram(self.pair.now, it.handle, &mut bytes) {
            let number = bytes.first_chunk().map_or(0, |number| u32::from_be_bytes(*number)) as usize;
            let (sent, received) = self.datagrams.get_mut(&(it.port, 1 - end)).expect("there were datagrams");
            assert!(sent.get(number) == Some(&bytes.len()), "datagram {number} has another length");
            assert!(bytes == datagram(it.port, 1 - end, number, bytes.len()), "datagram {number} is another one");
            assert!(received.insert(number), "datagram {number} came twice");
            bytes.clear();
        }
    }

    /// Whether there was anything.
    fn read_stream(&mut self, end: usize, it: &mut Connection, stream: StreamId, length: usize) -> bool {
        let Some(text) = self.texts.get_mut(&(it.port, 1 - end, stream)) else { return false };
        let (mut bytes, mut expected) = (vec![0; length], vec![0; length]);
        match self.pair.ends[end].endpoint.read(self.pair.now, it.handle, stream, &mut bytes) {
            Ok(Read::Bytes(length)) => {
                fill(text.key, text.read, &mut expected);
                assert!(bytes[..length] == expected[..length], "{stream:?} has other bytes from {} on", text.read);
                text.read += length as u64;
                assert!(text.read <= text.written, "{stream:?} has more than was written");
                return true;
            }
            Ok(Read::End) => {
                assert!(text.finished && text.read == text.written, "{stream:?} ended early");
                text.ended = true;
            }
            Ok(Read::Blocked) => {}
            Err(OperationError::StreamReset { .. }) => {
                assert!(text.reset || text.stopped, "{stream:?} was not given up")
            }
            Err(error) => assert!(is_expected(&error), "read: {error}"),
        }
        it.readable.remove(&Some(stream));
        false
    }

    /// The path works again, and the applications read what they are told of.
    fn finish(&mut self) {
        self.in_flight = Default::default();
        // The longest timers are the idle time-out, 90 s, and as long again for the end that hears of it last.
        for _ in 0..220 {
            let mut events = Vec::new();
            self.pair.settle(Duration::from_secs(1), |_, end, event| events.push((end, event)));
            events.into_iter().for_each(|(end, event)| self.on_event(end, event));
            for end in 0..2 {
                while !self.offered[end].is_empty() {
                    self.answer(end, true);
                }
                for mut it in std::mem::take(&mut self.connections[end]) {
                    while let Some(what) = it.readable.first().copied() {
                        match what {
                            None => while self.receive_message(end, &mut it) {},
                            Some(stream) => while self.read_stream(end, &mut it, stream, 4096) {},
                        }
                    }
                    if it.closed {
                        self.pair.ends[end].endpoint.close(self.pair.now, it.handle, 0, "");
                    } else {
                        self.connections[end].push(it);
                    }
                }
            }
        }
        for end in 0..2 {
            for it in &self.connections[end] {
                assert!(it.accepted, "port {}: neither accepted nor closed", it.port);
                let other = self.connections[1 - end].iter().any(|other| other.port == it.port);
                assert!(other, "port {}: open at node {end}, and gone at the other", it.port);
                assert!(self.pair.ends[end].endpoint.is_delivered(it.handle), "port {}: not delivered", it.port);
                if let Some((sent, read)) = self.messages.get(&(it.port, end)) {
                    assert_eq!(sent.len(), *read, "port {}: messages of node {end}", it.port);
                }
                for stream in &it.streams {
                    let text = self.texts.get(&(it.port, end, *stream));
                    let Some(text) = text.filter(|text| !text.reset && !text.stopped) else { continue };
                    assert_eq!(text.read, text.written, "port {}: {stream:?} of node {end}", it.port);
                    assert_eq!(text.ended, text.finished, "port {}: the end of {stream:?} of node {end}", it.port);
                }
            }
        }
        let sent: usize = self.pair.settle(Duration::from_secs(60), |_, _, _| {}).iter().sum();
        assert!(sent <= QUIET_DATAGRAMS, "{sent} datagrams in a minute without anything to say");
    }
}

impl Connection {
    fn new(handle: ConnectionHandle, port: u16) -> Self {
        let (streams, readable) = (Vec::new(), BTreeSet::new());
        Self { handle, port, accepted: false, closed: false, streams, readable }
    }

    fn stream(&self, index: u8) -> Option<StreamId> {
        self.streams.get(usize::from(index) % self.streams.len().max(1)).copied()
    }
}

/// The code with which either end gives a stream up.
fn stream_code(stream: StreamId) -> u64 {
    if stream.is_bidirectional() { 1000 } else { 2000 }
}

/// Its number, and then what can be computed from it.
fn datagram(port: u16, end: usize, number: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length.max(4)];
    fill(mix(message_key(port, end, number)), 0, &mut bytes);
    bytes[..4].copy_from_slice(&(number as u32).to_be_bytes());
    bytes
}

fn message_key(port: u16, end: usize, number: usize) -> u64 {
    mix(mix(u64::from(port) << 1 | end as u64) ^ number as u64)
}

/// What two honest nodes can come to.
fn is_possible(reason: &CloseReason) -> bool {
    match reason {
        CloseReason::ProtocolViolation(_) => false,
        CloseReason::TunnelClosed { code, .. } => *code == Code::ShuttingDown as u64 || *code == Code::NoError as u64,
        _ => true,
    }
}

fn is_expected(error: &OperationError) -> bool {
    !matches!(error, OperationError::UnknownPeer | OperationError::NoConnection)
}
