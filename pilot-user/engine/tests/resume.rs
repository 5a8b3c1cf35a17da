//! What becomes of streams and messages when the path, or a process, is gone and comes back (`docs/wire.md` W3.14, W4.9).

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use common::{End, Pair, end};
use pilot_engine::limits::MAX_RESETS_PER_SECOND;
use pilot_engine::{
    CloseReason, ConnectionHandle, DropReason, Ecn, Event, OperationError, PeerConfig, Read, Received, StreamId,
};
use std::net::SocketAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn kind(datagram: &[u8]) -> u8 {
    datagram[0] >> 2 & 7
}

/// A stream that one end writes to, and messages beside it. The reader keeps what it read.
struct Exchange {
    pair: Pair,
    handles: [ConnectionHandle; 2],
    writer: usize,
    stream: StreamId,
    written: u64,
    read: u64,
    messages_sent: u64,
    messages_read: u64,
}

impl Exchange {
    fn new(writer: usize) -> Self {
        let mut pair = Pair::new();
        let handles = pair.connected();
        let stream = pair.ends[writer].endpoint.open_stream(pair.now, handles[writer]).unwrap();
        Self { pair, handles, writer, stream, written: 0, read: 0, messages_sent: 0, messages_read: 0 }
    }

    fn byte(offset: u64) -> u8 {
        (offset * 7 % 251) as u8
    }

    /// Writes 1000 bytes and a message.
    fn write(&mut self) {
        let (end, handle) = (&mut self.pair.ends[self.writer].endpoint, self.handles[self.writer]);
        let bytes: Vec<u8> = (self.written..self.written + 1000).map(Self::byte).collect();
        assert_eq!(end.write(self.pair.now, handle, self.stream, &bytes), Ok(1000));
        self.written += 1000;
        end.send_message(self.pair.now, handle, &self.messages_sent.to_be_bytes()).unwrap();
        self.messages_sent += 1;
    }

    /// Reads up to so many bytes, and as many messages as there are, each of which must be the next.
    fn read(&mut self, bytes: usize) {
        let (reader, mut buffer) = (1 - self.writer, vec![0; bytes]);
        let result =
            self.pair.ends[reader].endpoint.read(self.pair.now, self.handles[reader], self.stream, &mut buffer);
        if let Ok(Read::Bytes(length)) = result {
            assert!(buffer[..length].iter().zip(self.read..).all(|(byte, offset)| *byte == Self::byte(offset)));
            self.read += length as u64;
        }
        for message in self.pair.messages(reader, self.handles[reader]) {
            assert_eq!(message, self.messages_read.to_be_bytes());
            self.messages_read += 1;
        }
    }

    /// Writes and reads for a while, and leaves some of it unread.
    fn go_on(&mut self) {
        for n in 0..40 {
            self.write();
            self.pair.run(Duration::from_millis(3));
            self.read(if n < 30 { 900 } else { 0 });
        }
    }

    /// A process is another one now, which knows nothing. Returns what there was.
    fn restart(&mut self, which: usize) -> End {
        let (own, other) = if which == 0 { (1, 2) } else { (2, 1) };
        std::mem::replace(&mut self.pair.ends[which], end(own, other, 100 + own))
    }

    /// What the writer is told of the peer's restart, by event and by later calls: bytes and messages. Waits for it.
    fn told_consumed(&mut self) -> [u64; 2] {
        let (writer, handle, stream) = (self.writer, self.handles[self.writer], self.stream);
        let gone = Event::Closed { connection: handle, reason: CloseReason::PeerRestarted };
        self.pair.run_until(5 * SECOND, |pair| pair.ends[writer].events.contains(&gone));
        let end = &mut self.pair.ends[writer];
        let told = [Some(stream), None].map(|of| {
            let told = |event: &Event| matches!(event, Event::PeerRestarted { connection, stream, .. } if *connection == handle && *stream == of);
            let consumed = end.take(told).and_then(|event| match event {
                Event::PeerRestarted { consumed_offset, .. } => Some(consumed_offset),
                _ => None,
            });
            assert!(end.take(told).is_none(), "told once");
            consumed.expect("told")
        });
        for _ in 0..2 {
            let now = self.pair.now;
            let [of_stream, of_messages] =
                told.map(|consumed_offset| OperationError::PeerRestarted { consumed_offset });
            assert_eq!(end.endpoint.write(now, handle, stream, b"x"), Err(of_stream.clone()));
            assert_eq!(end.endpoint.finish(now, handle, stream), Err(of_stream.clone()));
            assert_eq!(end.endpoint.read(now, handle, stream, &mut [0]), Err(of_stream));
            assert_eq!(end.endpoint.send_message(now, handle, b"x"), Err(of_messages.clone()));
            assert_eq!(end.endpoint.receive_message(now, handle, &mut Vec::new()), Err(of_messages));
        }
        told
    }
}

/// wire.md W3.14: the path is dead for a minute; the same processes go on where they were.
#[test]
fn path_dead_for_a_minute() {
    for writer in 0..2 {
        let mut it = Exchange::new(writer);
        it.go_on();
        it.pair.fate = Box::new(|_| vec![]);
        for _ in 0..60 {
            it.write();
            it.pair.run(SECOND);
        }
        it.pair.fate = Box::new(|_| vec![Duration::ZERO]);
        let back = it.pair.now;
        while (it.read, it.messages_read) != (it.written, it.messages_sent) {
            assert!(it.pair.now.since(back) < 10 * SECOND, "{} of {}", it.read, it.written);
            it.pair.run(Duration::from_millis(10));
            it.read(4000);
        }
        let resumed: u64 = it.pair.ends.iter().map(|e| e.endpoint.tunnel_stats(e.peer).unwrap().resumptions).sum();
        let told = |e: &Event| matches!(e, Event::TunnelUp { resumed: true, .. });
        let events = it.pair.ends.iter().flat_map(|end| &end.events).filter(|e| told(e)).count();
        assert_eq!(events as u64, resumed);
        assert!(it.pair.ends.iter().all(|end| !end.events.iter().any(|e| matches!(e, Event::TunnelDown { .. }))));
    }
}

/// wire.md W3.14, W5.16: one process is another one. The other's stream and messages end with what the first's application is
/// known to have read: all that it had reported, and nothing that it had not read.
fn restarted(which: usize) {
    let mut it = Exchange::new(1 - which);
    it.go_on();
    let (writer, handle) = (it.writer, it.handles[it.writer]);
    let reported = [
        it.pair.ends[writer].endpoint.consumed(handle, it.stream).unwrap(),
        it.pair.ends[writer].endpoint.messages_consumed(handle).unwrap(),
    ];
    assert!(reported[0] > 20_000 && reported[1] > 20, "{reported:?}");
    assert!(it.read < it.written, "some was delivered and not read");
    it.restart(which);
    // It wants something: with what it sends it finds out.
    it.write();
    let began = it.pair.now;
    let told = it.told_consumed();
    assert!(it.pair.now.since(began) < SECOND / 10, "by the reset, and not by silence");
    assert!(told[0] >= reported[0] && told[0] <= it.read, "{told:?}, read {}", it.read);
    assert!(told[1] >= reported[1] && told[1] <= it.messages_read, "{told:?}, read {}", it.messages_read);
    it.pair.run_until(SECOND, |pair| pair.ends.iter().all(|end| end.endpoint.is_up(end.peer)));
    assert_eq!(it.pair.ends[writer].endpoint.stats().resets_received, 1);
    it.handles = it.pair.connected();
}

#[test]
fn client_restarted() {
    restarted(0);
}

#[test]
fn server_restarted() {
    restarted(1);
}

/// A process that is told where the last one met its peer calls there, and needs no address in its configuration.
#[test]
fn a_remembered_address_is_called() {
    let mut it = Exchange::new(0);
    // Nothing is on its way that would make the other end call.
    it.pair.run(SECOND);
    let peer = it.pair.ends[0].peer;
    let last = it.pair.ends[0].endpoint.last_address(peer);
    assert_eq!(last, Some(it.pair.ends[1].address));
    it.restart(0);
    it.pair.ends[0].endpoint.add_peer(PeerConfig {
        key: common::identity(2).public_key(),
        address: Default::default(),
        endpoint: None,
    });
    assert_eq!(it.pair.ends[0].endpoint.last_address(peer), None);
    it.pair.ends[0].endpoint.open_tunnel(it.pair.now, peer);
    it.pair.run(SECOND);
    assert!(!it.pair.ends[0].endpoint.is_up(peer), "nobody to call");
    it.pair.ends[0].endpoint.remember_address(peer, last.unwrap());
    it.pair.ends[0].endpoint.open_tunnel(it.pair.now, peer);
    it.pair.run_until(SECOND, |pair| pair.ends[0].endpoint.is_up(peer));
}

/// Both processes are others: there is nothing to go on with, and nothing in the way of what is new.
#[test]
fn both_restarted() {
    let mut it = Exchange::new(0);
    it.go_on();
    let late = it.restart(0).sent;
    it.restart(1);
    let handles = it.pair.connected();
    for datagram in late {
        assert!(matches!(it.pair.deliver(1, &datagram), Received::Dropped(_)));
    }
    it.pair.ends[0].endpoint.send_message(it.pair.now, handles[0], b"anew").unwrap();
    it.pair.run_until(SECOND, |pair| pair.messages(1, handles[1]) == [b"anew"]);
    it.pair.run(SECOND);
    for end in &it.pair.ends {
        assert!(end.events.iter().all(|e| !matches!(e, Event::TunnelDown { .. } | Event::PeerRestarted { .. })));
    }
}

/// wire.md W4.9: also after the session id was replaced, whose token came with it.
#[test]
fn a_reset_is_for_the_newest_session_id() {
    let mut it = Exchange::new(0);
    it.go_on();
    let peer = it.pair.ends[1].peer;
    assert!(it.pair.ends[1].endpoint.replace_session_id(it.pair.now, peer));
    it.go_on();
    it.restart(1);
    it.write();
    it.told_consumed();
    it.pair.run_until(SECOND, |pair| pair.ends[0].endpoint.is_up(pair.ends[0].peer));
    assert_eq!(it.pair.ends[0].endpoint.stats().resets_received, 1);
}

/// wire.md W4.9: no token but the peer's ends anything, and a token is of no use for another tunnel, nor twice.
#[test]
fn only_the_peers_token_ends_a_tunnel() {
    let mut it = Exchange::new(0);
    it.go_on();
    let data = it.pair.ends[0].sent.last().unwrap().clone();
    it.restart(1);
    assert_eq!(it.pair.deliver(1, &data), Received::Dropped(DropReason::UnknownSession));
    let mut buffer = [0; 1472];
    let length = it.pair.ends[1].endpoint.poll_transmit(it.pair.now, &mut buffer).unwrap().len;
    let reset = buffer[..length].to_vec();
    assert!(length < data.len() && kind(&reset) == 5 && reset[1..5] == data[1..5]);
    for at in 0..reset.len() {
        for bit in 0..8 {
            let mut bad = reset.clone();
            bad[at] ^= 1 << bit;
            // Of the word nothing is said.
            if !(5..9).contains(&at) {
                assert!(matches!(it.pair.deliver(0, &bad), Received::Dropped(_)), "byte {at}");
            }
        }
    }
    // Who asks from another peer's address gets another one, and a stranger none.
    let other = PeerConfig {
        key: common::identity(3).public_key(),
        address: Default::default(),
        endpoint: Some("10.9.9.9:1".parse().unwrap()),
    };
    it.pair.ends[1].endpoint.add_peer(other);
    let (elsewhere, local) = ("10.9.9.9:4242".parse().unwrap(), it.pair.ends[1].address);
    it.pair.ends[1].endpoint.handle_datagram(it.pair.now, elsewhere, local, Ecn::NotEct, &data);
    let length = it.pair.ends[1].endpoint.poll_transmit(it.pair.now, &mut buffer).unwrap().len;
    assert_eq!(it.pair.deliver(0, &buffer[..length]), Received::Dropped(DropReason::Reset));
    it.pair.ends[1].endpoint.handle_datagram(it.pair.now, "10.9.9.10:4242".parse().unwrap(), local, Ecn::NotEct, &data);
    assert!(it.pair.ends[1].endpoint.poll_transmit(it.pair.now, &mut buffer).is_none());
    assert!(it.pair.ends[0].endpoint.is_up(it.pair.ends[0].peer));

    assert_eq!(it.pair.deliver(0, &reset), Received::Handshake);
    it.handles = it.pair.connected();
    assert_eq!(it.pair.deliver(0, &reset), Received::Dropped(DropReason::Reset), "not twice");
    assert!(it.pair.ends[0].endpoint.is_up(it.pair.ends[0].peer));
}

/// wire.md W4.9: a flood of unknown ids is answered up to a bound, by less than it has, and a reset by nothing.
#[test]
fn resets_are_few_small_and_not_answered() {
    let mut pair = Pair::new();
    let mut buffer = [0; 1472];
    for second in 1..4 {
        let mut sent = 0;
        for n in 0..3 * MAX_RESETS_PER_SECOND {
            let mut data = vec![0; 26];
            data[0] = 1 << 5 | 4 << 2;
            data[2..5].copy_from_slice(&(n + 1).to_be_bytes()[1..]);
            assert_eq!(pair.deliver(1, &data), Received::Dropped(DropReason::UnknownSession));
            while let Some(transmit) = pair.ends[1].endpoint.poll_transmit(pair.now, &mut buffer) {
                sent += 1;
                assert!(transmit.len < data.len());
                let reset = buffer[..transmit.len].to_vec();
                assert_eq!(pair.deliver(0, &reset), Received::Dropped(DropReason::Reset));
            }
        }
        assert_eq!(sent, MAX_RESETS_PER_SECOND);
        assert!(pair.ends[0].endpoint.poll_transmit(pair.now, &mut buffer).is_none());
        assert_eq!(pair.ends[1].endpoint.stats().resets_sent, u64::from(second * MAX_RESETS_PER_SECOND));
        pair.run(SECOND);
    }
    // An id of another worker is not ours to answer for.
    let data = [&[1 << 5 | 4 << 2, 9][..], &[1; 24]].concat();
    pair.deliver(1, &data);
    assert!(pair.ends[1].endpoint.poll_transmit(pair.now, &mut buffer).is_none());
}

/// wire.md W4.9: resets go where a peer is by configuration, where it was before the restart, and where it was met; a stranger
/// does not learn that anybody is there.
#[test]
fn strangers_get_no_reset() {
    let data = [&[1 << 5 | 4 << 2, 0, 0, 0, 1][..], &[1; 30]].concat();
    let (local, [configured, remembered, met, stranger]) = (common::address(2), [1, 2, 3, 4].map(|n| [10, 1, 1, n]));
    let resets_to = |end: &mut End, now| {
        let sources = [configured, remembered, met, stranger].map(|ip| SocketAddr::from((ip, 999)));
        sources.map(|source| {
            end.endpoint.handle_datagram(now, source, local, Ecn::NotEct, &data);
            let sent = end.endpoint.poll_transmit(now, &mut [0; 1472]);
            assert!(sent.is_none_or(|sent| sent.destination == source && sent.len == 25));
            sent.is_some()
        })
    };
    let mut pair = Pair::new();
    let now = pair.now;
    let end = &mut pair.ends[1];
    assert_eq!(resets_to(end, now), [false; 4]);
    let peer = |n, endpoint: Option<[u8; 4]>| PeerConfig {
        key: common::identity(n).public_key(),
        address: Default::default(),
        endpoint: endpoint.map(|ip| SocketAddr::from((ip, 4242))),
    };
    let known = end.endpoint.add_peer(peer(1, Some(configured)));
    assert_eq!(resets_to(end, now), [true, false, false, false]);
    end.endpoint.remember_address(known, SocketAddr::from((remembered, 4242)));
    assert_eq!(resets_to(end, now), [true, true, false, false]);
    // It calls from another place, and is there from then on.
    pair.ends[0].address = SocketAddr::from((met, 4242));
    pair.connected();
    pair.run(SECOND);
    let now = pair.now;
    assert_eq!(resets_to(&mut pair.ends[1], now), [true, false, true, false]);
    // By another configuration, on which the lanes agree.
    pair.ends[1].endpoint.add_lane(known, 1);
    pair.ends[1].endpoint.add_peer(peer(1, None));
    assert_eq!(resets_to(&mut pair.ends[1], now), [false, false, true, false]);
}
