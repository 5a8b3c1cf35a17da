//! An application that knows what it must read: each end of a connection writes texts that the other can compute, and
//! compares every byte it reads.
//!
//! It acts on events and on nothing else, each once: an event that the engine fails to tell stops it for good. A
//! difference is a failed assertion, at the moment it is read.

use std::collections::{BTreeMap, BTreeSet};

use pilot_engine::{CloseReason, ConnectionHandle, Endpoint, Event, Instant, OperationError, PeerId, Read, StreamId};
use pilot_user::worker::Application;

use crate::introductions::Introductions;
use crate::plan::{Plan, Side, Text};
use crate::random::fill;

/// The port that oracles listen on.
pub const PORT: u16 = 4000;

/// A connection and how far its ends have come, as seen from one.
#[derive(Debug)]
struct Exchange {
    plan: Plan,
    connection: ConnectionHandle,
    is_opener: bool,
    /// Streams opened here, and by the peer, in both directions and in one.
    opened: [[u64; 2]; 2],
    /// What is written, and what is read.
    streams: BTreeMap<StreamId, [Text; 2]>,
    messages_sent: u64,
    messages_read: u64,
    /// Unreliable datagrams that came.
    datagrams: BTreeSet<u64>,
    /// What can be read and waits for the end of a nap.
    unread: BTreeSet<Readable>,
    /// Streams of which a read said that they were reset, before their event does.
    resets_read: BTreeSet<StreamId>,
    nap_ends: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Readable {
    Messages,
    Datagrams,
    Stream(StreamId),
}

/// See the module's head.
#[derive(Debug)]
pub struct Oracle {
    plan: Plan,
    /// Its place among the hosts, and those of its peers.
    host: usize,
    peers: BTreeMap<PeerId, usize>,
    /// To whom a connection is to be opened.
    to_open: Vec<PeerId>,
    /// Connections that there are when all that are to be are.
    expected: usize,
    exchanges: BTreeMap<ConnectionHandle, Exchange>,
    closed: Vec<CloseReason>,
    /// For each tunnel that came up: whether it continued the one before.
    tunnels: Vec<bool>,
    /// For each change of the path sent over: whether to the bulk path.
    sending: Vec<bool>,
    /// Who was asked who they are, and what came of it.
    pub(crate) introductions: Introductions,
}

impl Oracle {
    /// The application of a host with these peers, by their place among the hosts, of which it opens a connection to some, and
    /// opens it anew when it was closed; from `offered` others it gets one.
    pub fn new(plan: Plan, host: usize, peers: BTreeMap<PeerId, usize>, opens_to: Vec<PeerId>, offered: usize) -> Self {
        Self {
            plan,
            host,
            peers,
            expected: opens_to.len() + offered,
            to_open: opens_to,
            exchanges: BTreeMap::new(),
            closed: Vec::new(),
            tunnels: Vec::new(),
            sending: Vec::new(),
            introductions: Introductions::default(),
        }
    }

    /// Whether all is written, delivered and read, and nobody waits to hear who somebody is.
    pub fn is_done(&self, endpoint: &Endpoint) -> bool {
        self.exchanges.len() == self.expected
            && self.exchanges.values().all(|it| it.is_done(endpoint))
            && self.introductions.is_done()
    }

    /// Why connections were closed so far.
    pub fn closed(&self) -> &[CloseReason] {
        &self.closed
    }

    /// For each tunnel that came up so far: whether it continued the one before.
    pub fn tunnels(&self) -> &[bool] {
        &self.tunnels
    }

    /// Bytes of streams that were read so far, on the connections that are there.
    pub fn bytes_read(&self) -> u64 {
        self.exchanges.values().flat_map(|it| it.streams.values()).map(|[_, read]| read.done).sum()
    }

    /// For each change of the path sent over, so far: whether to the bulk path.
    pub fn sending(&self) -> &[bool] {
        &self.sending
    }

    /// The connections that are open, or were closed and not yet let go.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionHandle> {
        self.exchanges.keys().copied()
    }

    fn exchange(&mut self, connection: ConnectionHandle) -> &mut Exchange {
        let found = self.exchanges.get_mut(&connection);
        found.unwrap_or_else(|| unreachable!("an event of no connection of ours"))
    }

    fn begin(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle, is_opener: bool) {
        let other = self.peers[&connection.peer()];
        let (opener, acceptor) = if is_opener { (self.host, other) } else { (other, self.host) };
        let mut it = Exchange {
            plan: self.plan.between(opener, acceptor),
            connection,
            is_opener,
            opened: [[0; 2]; 2],
            streams: BTreeMap::new(),
            messages_sent: 0,
            messages_read: 0,
            datagrams: BTreeSet::new(),
            unread: BTreeSet::new(),
            resets_read: BTreeSet::new(),
            nap_ends: None,
        };
        // At once: what is written before the tunnel is up, or the connection accepted, leaves then.
        it.send_messages(endpoint, now);
        for n in 0..2 * self.plan.streams {
            let opened = match n % 2 {
                0 => endpoint.open_stream(now, connection),
                _ => endpoint.open_unidirectional(now, connection),
            };
            let Ok(stream) = opened else { break };
            it.on_stream(stream, true);
            it.write(endpoint, now, stream);
        }
        self.exchanges.insert(connection, it);
    }
}

impl Application for Oracle {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        match event {
            Event::TunnelUp { resumed, .. } => self.tunnels.push(resumed),
            Event::TunnelDown { .. } | Event::Connected { .. } => {}
            Event::Introduced { .. } | Event::NotIntroduced { .. } => self.introductions.on_event(&event),
            Event::Sending { bulk, .. } => self.sending.push(bulk),
            Event::StreamConsumed { .. } | Event::MessagesConsumed { .. } | Event::PeerRestarted { .. } => {}
            Event::DatagramsReadable { connection } => {
                self.exchange(connection).on_readable(endpoint, now, Readable::Datagrams);
            }
            Event::StreamReset { connection, stream, code } => {
                self.exchange(connection).on_given_up(stream, code, Side::Writer);
                // Who was told by a read before the event is not told again, and the stream may be forgotten.
                if !self.exchange(connection).resets_read.remove(&stream) {
                    let read = endpoint.read(now, connection, stream, &mut [0]);
                    assert_eq!(read, Err(OperationError::StreamReset { code }), "{stream:?}");
                }
            }
            Event::StreamStopped { connection, stream, code } => {
                self.exchange(connection).on_given_up(stream, code, Side::Reader);
            }
            Event::Offered { connection, port } => {
                assert_eq!(port, PORT);
                let same = |it: &Exchange| !it.is_opener && it.connection.peer() == connection.peer();
                assert!(!self.exchanges.values().any(same), "the peer opened a second connection");
                endpoint.accept(now, connection).expect("it was just offered");
                self.begin(endpoint, now, connection, false);
            }
            Event::Closed { connection, reason } => {
                // All that a network, and hosts that end, can do to nodes that are honest.
                let possible = matches!(reason, CloseReason::PeerRestarted | CloseReason::TimedOut);
                assert!(possible, "the connection was closed: {reason}");
                // What had arrived can still be read, and must be right.
                let it = self.exchange(connection);
                it.read_all(endpoint, now);
                if it.is_opener {
                    self.to_open.push(connection.peer());
                }
                self.exchanges.remove(&connection);
                endpoint.close(now, connection, 0, "");
                self.closed.push(reason);
            }
            Event::MessagesWritable { connection } => self.exchange(connection).send_messages(endpoint, now),
            Event::StreamOpened { connection, stream } => {
                let it = self.exchange(connection);
                it.on_stream(stream, false);
                it.write(endpoint, now, stream);
            }
            Event::StreamWritable { connection, stream } => self.exchange(connection).write(endpoint, now, stream),
            Event::MessagesReadable { connection } => {
                self.exchange(connection).on_readable(endpoint, now, Readable::Messages);
            }
            Event::StreamReadable { connection, stream } => {
                self.exchange(connection).on_readable(endpoint, now, Readable::Stream(stream));
            }
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let mut did = false;
        for it in self.exchanges.values_mut().filter(|it| it.nap_ends.is_some_and(|at| at <= now)) {
            it.read_all(endpoint, now);
            did = true;
        }
        for peer in std::mem::take(&mut self.to_open) {
            let connection = endpoint.connect(now, peer, PORT).expect("the peer has an endpoint");
            self.begin(endpoint, now, connection, true);
            did = true;
        }
        did
    }

    fn deadline(&self) -> Option<Instant> {
        self.exchanges.values().filter_map(|it| it.nap_ends).min()
    }
}

impl Exchange {
    fn is_done(&self, endpoint: &Endpoint) -> bool {
        let streams = self.streams.values().flatten().filter(|text| text.ended).count() as u64;
        streams == 8 * self.plan.streams
            && (self.messages_sent, self.messages_read) == (self.plan.messages, self.plan.messages)
            && endpoint.is_delivered(self.connection)
    }

    fn on_stream(&mut self, stream: StreamId, ours: bool) {
        let plan = self.plan;
        let both_ways = stream.is_bidirectional();
        let opened = &mut self.opened[usize::from(!ours)][usize::from(!both_ways)];
        let opened_by_opener = ours == self.is_opener;
        let text = |by_opener| plan.stream(by_opener, opened_by_opener, *opened, both_ways);
        let texts = [text(self.is_opener), text(!self.is_opener)];
        *opened += 1;
        assert!(*opened <= plan.streams && self.streams.insert(stream, texts).is_none(), "a stream too many");
    }

    fn send_messages(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let plan = self.plan;
        while self.messages_sent < plan.messages {
            let message = plan.message(self.is_opener, self.messages_sent);
            match endpoint.send_message(now, self.connection, &message) {
                Ok(()) => {
                    let datagram = plan.datagram(self.is_opener, self.messages_sent);
                    self.messages_sent += 1;
                    endpoint.send_datagram(now, self.connection, &datagram).expect("every path carries it");
                }
                Err(OperationError::Blocked | OperationError::Closed(_) | OperationError::PeerRestarted { .. }) => {
                    return;
                }
                Err(error) => unreachable!("send_message: {error}"),
            }
        }
    }

    fn write(&mut self, endpoint: &mut Endpoint, now: Instant, stream: StreamId) {
        let Some([text, _]) = self.streams.get_mut(&stream) else { unreachable!("a stream that was never opened") };
        let mut buffer = [0; 4096];
        while text.done < text.length {
            if text.ended {
                return; // given up by its reader
            }
            if text.given_up == Some(Side::Writer) && text.done >= text.length / 2 {
                text.ended = endpoint.reset(now, self.connection, stream, text.code()).is_ok();
                return;
            }
            let piece = text.piece(&mut buffer);
            fill(text.key, text.done, piece);
            match endpoint.write(now, self.connection, stream, piece) {
                Ok(written) => {
                    text.done += written as u64;
                    if written < piece.len() {
                        return;
                    }
                }
                Err(OperationError::Blocked | OperationError::Closed(_) | OperationError::PeerRestarted { .. }) => {
                    return;
                }
                // The event that says so is still behind the one that is handled.
                Err(OperationError::StreamStopped { code }) => {
                    assert!(
                        text.given_up == Some(Side::Reader) && code == text.code(),
                        "{stream:?} was given up by nobody"
                    );
                    return;
                }
                Err(error) => unreachable!("write: {error}"),
            }
        }
        if !text.ended {
            text.ended = endpoint.finish(now, self.connection, stream).is_ok();
        }
    }

    /// The other end gave a stream up.
    fn on_given_up(&mut self, stream: StreamId, code: u64, by: Side) {
        let Some(texts) = self.streams.get_mut(&stream) else { unreachable!("a stream that was never opened") };
        let text = &mut texts[usize::from(by == Side::Writer)];
        assert!(text.given_up == Some(by) && code == text.code(), "{stream:?} was given up by nobody");
        // Its reader may do so when it was written to its end.
        assert!(!text.ended || by == Side::Reader, "{stream:?} was given up after its end");
        text.ended = true;
        self.unread.remove(&Readable::Stream(stream));
    }

    fn on_readable(&mut self, endpoint: &mut Endpoint, now: Instant, what: Readable) {
        if self.plan.nap.is_zero() {
            return self.read(endpoint, now, what);
        }
        self.unread.insert(what);
        self.nap_ends.get_or_insert(now + self.plan.nap);
    }

    fn read_all(&mut self, endpoint: &mut Endpoint, now: Instant) {
        self.nap_ends = None;
        for what in std::mem::take(&mut self.unread) {
            self.read(endpoint, now, what);
        }
    }

    fn read(&mut self, endpoint: &mut Endpoint, now: Instant, what: Readable) {
        match what {
            Readable::Messages => self.read_messages(endpoint, now),
            Readable::Datagrams => self.read_datagrams(endpoint, now),
            Readable::Stream(stream) => self.read_stream(endpoint, now, stream),
        }
    }

    fn read_messages(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let plan = self.plan;
        let mut message = Vec::new();
        while let Ok(Some(length)) = endpoint.receive_message(now, self.connection, &mut message) {
            let number = self.messages_read;
            assert!(number < plan.messages, "a message too many");
            let expected = plan.message(!self.is_opener, number);
            assert!(length == message.len() && message == expected, "message {number} is another one");
            self.messages_read += 1;
            message.clear();
        }
    }

    fn read_datagrams(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let plan = self.plan;
        let mut datagram = Vec::new();
        while let Ok(Some(length)) = endpoint.receive_datagram(now, self.connection, &mut datagram) {
            let number = datagram.first_chunk().map_or(u64::MAX, |number| u64::from_be_bytes(*number));
            assert!(number < plan.messages && length == datagram.len(), "datagram {number} was never sent");
            assert!(datagram == plan.datagram(!self.is_opener, number), "datagram {number} is another one");
            assert!(self.datagrams.insert(number), "datagram {number} came twice");
            datagram.clear();
        }
    }

    fn read_stream(&mut self, endpoint: &mut Endpoint, now: Instant, stream: StreamId) {
        let Some([_, text]) = self.streams.get_mut(&stream) else { unreachable!("a stream that was never opened") };
        let (mut buffer, mut expected) = ([0; 4096], [0; 4096]);
        loop {
            assert!(!text.ended, "{stream:?} can be read again after its end");
            if text.given_up == Some(Side::Reader) && text.done >= text.length / 2 {
                text.ended = endpoint.stop(now, self.connection, stream, text.code()).is_ok();
                return;
            }
            match endpoint.read(now, self.connection, stream, text.piece_to_read(&mut buffer)) {
                Ok(Read::Bytes(length)) => {
                    let expected = &mut expected[..length];
                    fill(text.key, text.done, expected);
                    let offset = text.done;
                    text.done += length as u64;
                    assert!(text.done <= text.length, "{stream:?} has {} bytes, not {}", text.done, text.length);
                    assert!(buffer[..length] == *expected, "{stream:?} has other bytes from offset {offset} on");
                }
                Ok(Read::End) => {
                    assert_eq!(text.done, text.length, "{stream:?} ended early");
                    text.ended = true;
                    return;
                }
                // A reset has its event, with the code.
                Ok(Read::Blocked) => return,
                Err(OperationError::Closed(_) | OperationError::PeerRestarted { .. }) => return,
                Err(OperationError::StreamReset { code }) => {
                    assert!(
                        text.given_up == Some(Side::Writer) && code == text.code(),
                        "{stream:?} was reset by nobody"
                    );
                    self.resets_read.insert(stream);
                    return;
                }
                Err(error) => unreachable!("read: {error}"),
            }
        }
    }
}
