//! Pilot's engine at both ends.

use std::hint::black_box;
use std::time::Duration;

use pilot_engine::{Aeads, ConnectionHandle, Ecn, Endpoint, Event, Instant, OperationError, Read, StreamId};

use crate::{MAX_DATAGRAM, nodes};

/// Bytes of the largest message that goes in one frame; what is larger goes on a stream here.
const MESSAGE: usize = 1024;

struct End {
    endpoint: Endpoint,
    connection: Option<ConnectionHandle>,
    stream: Option<StreamId>,
}

/// What is under way from an end: a datagram a buffer, and how long each is.
type Wire = (Vec<[u8; MAX_DATAGRAM as usize]>, Vec<(usize, Ecn)>);

pub(crate) struct Ends {
    ends: [End; 2],
    now: Instant,
    wire: [Wire; 2],
    /// What is read of a stream.
    out: Box<[u8; 2048]>,
}

impl Ends {
    pub(crate) fn new() -> Self {
        let end = |n: u32| {
            let mut config = nodes::config(n);
            config.max_datagram = MAX_DATAGRAM;
            config.aeads = Aeads::only(pilot_engine::Aead::Aes256Gcm);
            let mut endpoint = nodes::endpoint(n, config);
            let peer = endpoint.add_peer(nodes::known(1 - n, true));
            (End { endpoint, connection: None, stream: None }, peer)
        };
        let [(mut ours, peer), (theirs, _)] = [end(0), end(1)];
        let now = Instant::from_nanos(1);
        let connection = ours.endpoint.connect(now, peer, 7).expect("a known peer");
        ours.connection = Some(connection);
        let wire = [(), ()].map(|()| (vec![[0; MAX_DATAGRAM as usize]; 64], Vec::with_capacity(64)));
        let mut it = Self { ends: [ours, theirs], now, wire, out: Box::new([0; 2048]) };
        it.settle();
        let stream = it.ends[0].endpoint.open_stream(it.now, connection).expect("the first stream");
        it.ends[0].stream = Some(stream);
        it.settle();
        it
    }

    /// Until nothing is under way.
    fn settle(&mut self) {
        use crate::Pair as _;
        while self.flush(0) + self.flush(1) > 0 {
            self.receive(1);
            self.receive(0);
        }
    }

    fn read(&mut self, end: usize, connection: ConnectionHandle, stream: StreamId) -> usize {
        let mut length = 0;
        let out = &mut self.out;
        while let Ok(Read::Bytes(read)) = self.ends[end].endpoint.read(self.now, connection, stream, &mut out[..]) {
            length += read;
        }
        length
    }
}

impl crate::Pair for Ends {
    fn send(&mut self, end: usize, bytes: &[u8], times: usize) {
        let End { endpoint, connection, stream } = &mut self.ends[end];
        let sent = match (*connection, *stream) {
            (Some(connection), Some(stream)) if bytes.len() > MESSAGE => {
                (0..times).try_for_each(|_| endpoint.write(self.now, connection, stream, bytes).map(|_| ()))
            }
            (Some(connection), _) => {
                endpoint.send_messages(self.now, connection, |to| (0..times).try_for_each(|_| to.send(bytes))).flatten()
            }
            _ => Err(OperationError::NoConnection),
        };
        sent.expect("what was sent before was read");
        self.flush(end);
    }

    fn receive(&mut self, end: usize) -> usize {
        self.now += Duration::from_micros(1);
        let (buffers, under_way) = &mut self.wire[1 - end];
        for (buffer, (length, ecn)) in buffers.iter().zip(under_way.drain(..)) {
            let [to, from] = [end, 1 - end].map(|end| nodes::address(end as u32));
            self.ends[end].endpoint.handle_datagram(self.now, from, to, ecn, &buffer[..length]);
        }
        let mut length = 0;
        while let Some(event) = self.ends[end].endpoint.poll_event() {
            match event {
                Event::MessagesReadable { connection } => {
                    let End { endpoint, .. } = &mut self.ends[end];
                    let taken =
                        endpoint.receive_messages(self.now, connection, |message| length += black_box(message).len());
                    taken.expect("it is open");
                }
                Event::StreamReadable { connection, stream } | Event::StreamOpened { connection, stream } => {
                    length += self.read(end, connection, stream);
                }
                Event::Offered { connection, .. } => {
                    self.ends[end].connection = Some(connection);
                    self.ends[end].endpoint.accept(self.now, connection).expect("just offered");
                }
                _ => {}
            }
        }
        length
    }

    fn flush(&mut self, end: usize) -> usize {
        let (endpoint, now) = (&mut self.ends[end].endpoint, self.now);
        let (buffers, under_way) = &mut self.wire[end];
        let before = under_way.len();
        endpoint.handle_timeout(now);
        while endpoint.wants_transmit() {
            let Some(transmit) = endpoint.poll_transmit(now, &mut buffers[under_way.len()]) else { break };
            under_way.push((transmit.len, transmit.ecn));
            while endpoint.poll_effect().is_some() {}
        }
        endpoint.poll_timeout();
        under_way.len() - before
    }
}
