//! How tunnels come up, go down and come back, and what an attacker on the path cannot do.

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use common::{Pair, config, end, identity};
use pilot_engine::address::OverlayAddress;
use pilot_engine::{
    CloseReason, Code, DropReason, Ecn, Endpoint, Event, Instant, OperationError, PeerConfig, Received, RefuseCode,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn dropped(pair: &Pair, end: usize, reason: DropReason) -> u64 {
    pair.ends[end].endpoint.stats().dropped(reason)
}

fn echo_once(pair: &mut Pair, [ours, theirs]: [pilot_engine::ConnectionHandle; 2], text: &[u8]) {
    pair.ends[0].endpoint.send_message(pair.now, ours, text).unwrap();
    pair.run_until(60 * SECOND, |pair| pair.messages(1, theirs) == [text]);
}

/// Every kind of bad datagram is a drop with its reason, and the tunnel goes on (wire.md W1.1, W1.4, W1.5, W4.3, W4.4).
#[test]
fn bad_datagrams_are_counted_and_end_nothing() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"one");
    pair.run(SECOND);
    let data = pair.ends[0].sent.last().unwrap().clone();
    let initiation = pair.ends[0].sent[0].clone();
    assert_eq!(initiation.len(), 1200);

    assert_eq!(pair.deliver(1, &data), Received::Dropped(DropReason::Replay));
    for i in 0..data.len() {
        let mut bad = data.clone();
        bad[i] ^= 0x10;
        assert!(matches!(pair.deliver(1, &bad), Received::Dropped(_)), "byte {i}");
        assert!(matches!(pair.deliver(1, &data[..i]), Received::Dropped(_)), "cut to {i}");
    }
    for (first, reason) in [(0x40, DropReason::Version), (0x20, DropReason::Type), (0x3c, DropReason::Type)] {
        let mut bad = data.clone();
        bad[0] = first;
        assert_eq!(pair.deliver(1, &bad), Received::Dropped(reason));
    }
    assert!(dropped(&pair, 1, DropReason::Authentication) > 0);
    assert!(dropped(&pair, 1, DropReason::UnknownSession) > 0);
    assert!(dropped(&pair, 1, DropReason::Short) > 0);
    assert!(dropped(&pair, 1, DropReason::Length) > 0);
    // wire.md W3.5: a repeated initiation, also from elsewhere.
    assert_eq!(pair.deliver(1, &initiation), Received::Dropped(DropReason::StaleTimestamp));
    let mut bad = initiation.clone();
    bad[100] ^= 1;
    assert_eq!(pair.deliver(1, &bad), Received::Dropped(DropReason::Mac));
    // wire.md W1.3: what neither Noise nor the parameters cover, whatever mac1 says.
    for byte in [0, 4] {
        let mut bad = initiation.clone();
        bad[byte] ^= 1;
        assert_eq!(pair.deliver(1, &bad), Received::Dropped(DropReason::Header));
    }

    let sent = pair.ends[1].sent.len();
    pair.run(Duration::from_millis(1));
    let (answers, unknown) = (&pair.ends[1].sent[sent..], dropped(&pair, 1, DropReason::UnknownSession) as usize);
    assert!(
        answers.iter().all(|answer| answer.len() == 25 && answer[0] >> 2 & 7 == 5),
        "wire.md W4.9, and nothing else"
    );
    assert!(answers.len() <= unknown && answers.len() >= unknown / 2, "{} of {unknown}", answers.len());
    assert_eq!(dropped(&pair, 0, DropReason::Reset) as usize, answers.len(), "of no session of ours");
    echo_once(&mut pair, handles, b"two");
}

/// wire.md W3.4: a stranger gets silence; so does who has the right address and a wrong key.
#[test]
fn strangers_get_no_answer() {
    let mut pair = Pair::new();
    pair.ends[0] = end(3, 2, 33);
    pair.ends[0].endpoint.open_tunnel(pair.now, pair.ends[0].peer);
    pair.run(3 * SECOND);
    assert!(dropped(&pair, 1, DropReason::UnknownPeer) >= 3);
    assert!(pair.ends[1].sent.is_empty());
    assert!(pair.ends[1].events.is_empty());

    // Who believes that node 2 has another static key does not even get past mac1.
    let mut pair = Pair::new();
    let mut key = identity(2).public_key();
    key.static_key = identity(9).public_key().static_key;
    let mut endpoint = Endpoint::new(config(1, 5), [1; 32]);
    let address = OverlayAddress { network: 0, node: 2 };
    let peer = endpoint.add_peer(PeerConfig { key, address, endpoint: Some(pair.ends[1].address) });
    endpoint.open_tunnel(pair.now, peer);
    pair.ends[0].endpoint = endpoint;
    pair.run(SECOND);
    assert!(dropped(&pair, 1, DropReason::Mac) >= 2);
    assert!(pair.ends[1].sent.is_empty());
}

/// A captured packet, sent from elsewhere, moves nothing (reference weaknesses 3 and 4; wire.md W4.5).
#[test]
fn replays_from_elsewhere_move_no_endpoint() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"one");
    let elsewhere = "10.9.9.9:9".parse().unwrap();
    let local = pair.ends[1].address;
    for datagram in pair.ends[0].sent.clone() {
        let received = pair.ends[1].endpoint.handle_datagram(pair.now, elsewhere, local, Ecn::NotEct, &datagram);
        assert!(matches!(received, Received::Dropped(_)));
    }
    pair.ends[1].endpoint.send_message(pair.now, handles[1], b"x").unwrap();
    let mut buffer = [0; 1472];
    let transmit = pair.ends[1].endpoint.poll_transmit(pair.now, &mut buffer).unwrap();
    assert_eq!(transmit.destination, pair.ends[0].address);
}

/// wire.md W4.5: an authenticated packet from a new address moves the peer there.
#[test]
fn a_peer_that_moves_is_followed() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    pair.run(SECOND);
    pair.ends[0].address = "10.0.0.77:1000".parse().unwrap();
    echo_once(&mut pair, handles, b"from another place");
    pair.ends[1].endpoint.send_message(pair.now, handles[1], b"x").unwrap();
    let mut buffer = [0; 1472];
    let transmit = pair.ends[1].endpoint.poll_transmit(pair.now, &mut buffer).unwrap();
    assert_eq!(transmit.destination, pair.ends[0].address);
}

/// wire.md W3.11, W3.15: handshakes over a path that loses most of what it is given.
#[test]
fn a_handshake_survives_loss() {
    for seed in 0..30 {
        let mut pair = Pair::new();
        let mut random = common::Random(seed);
        pair.fate = Box::new(move |_| if random.chance(300) { vec![] } else { vec![Duration::ZERO] });
        let handles = pair.connected();
        echo_once(&mut pair, handles, b"through");
    }
}

/// wire.md W3.12: both begin at the same moment; one tunnel comes of it, and connections of both sides.
#[test]
fn crossing_initiations() {
    let mut pair = Pair::new();
    let now = pair.now;
    let handles = [0, 1].map(|n| {
        let peer = pair.ends[n].peer;
        pair.ends[n].endpoint.connect(now, peer, 7).unwrap()
    });
    let mut up = [false; 2];
    pair.run_until(SECOND, |pair| {
        for (n, end) in pair.ends.iter_mut().enumerate() {
            if let Some(Event::Offered { connection, .. }) = end.take(|e| matches!(e, Event::Offered { .. })) {
                end.endpoint.accept(pair.now, connection).unwrap();
            }
            up[n] |= end.take(|e| *e == Event::Connected { connection: handles[n] }).is_some();
        }
        up == [true; 2]
    });
    assert_eq!(pair.ends.each_ref().map(|end| end.endpoint.stats().handshakes), [1, 1]);
    let crossing: u64 = (0..2).map(|n| dropped(&pair, n, DropReason::Crossing)).sum();
    assert_eq!(crossing, 1);
}

#[test]
fn refusal_and_close_carry_code_and_reason() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    let refused = pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 9).unwrap();
    pair.run_until(SECOND, |pair| {
        if let Some(Event::Offered { connection, .. }) = pair.ends[1].take(|e| matches!(e, Event::Offered { .. })) {
            pair.ends[1].endpoint.refuse(pair.now, connection, RefuseCode::NoListener as u64, "nobody listens on 9");
        }
        let reason = CloseReason::Refused { code: 1, reason: "nobody listens on 9".into() };
        pair.ends[0].take(|e| *e == Event::Closed { connection: refused, reason: reason.clone() }).is_some()
    });
    let reason = CloseReason::Refused { code: 1, reason: "nobody listens on 9".into() };
    let error = pair.ends[0].endpoint.send_message(pair.now, refused, b"x");
    assert_eq!(error, Err(OperationError::Closed(reason)), "every later call says why");
    pair.ends[0].endpoint.close(pair.now, refused, 0, "");
    assert_eq!(pair.ends[0].endpoint.send_message(pair.now, refused, b"x"), Err(OperationError::NoConnection));

    // What was delivered before the end can still be read (reference weakness 6: the end overtook data).
    pair.ends[0].endpoint.send_message(pair.now, handles[0], b"last words").unwrap();
    pair.run_until(SECOND, |pair| pair.ends[0].endpoint.is_delivered(handles[0]));
    pair.ends[0].endpoint.close(pair.now, handles[0], 42, "done");
    let closed = |e: &Event| matches!(e, Event::Closed { reason: CloseReason::ByPeer { code: 42, .. }, .. });
    pair.run_until(SECOND, |pair| pair.ends[1].take(closed).is_some());
    assert_eq!(pair.messages(1, handles[1]), [b"last words"]);
}

/// wire.md W3.14: a process that is another one now. Connections end with that reason, and new ones work at once.
#[test]
fn a_restarted_peer_is_noticed() {
    for restarted in 0..2 {
        let mut pair = Pair::new();
        let handles = pair.connected();
        echo_once(&mut pair, handles, b"one");
        let address = pair.ends[restarted].address;
        pair.ends[restarted] = match restarted {
            0 => end(1, 2, 101),
            _ => end(2, 1, 102),
        };
        assert_eq!(pair.ends[restarted].address, address);
        let other = 1 - restarted;
        // The one that is left finds out by itself, when it wants something.
        pair.ends[other].endpoint.send_message(pair.now, handles[other], b"hello?").unwrap();
        let gone = Event::Closed { connection: handles[other], reason: CloseReason::PeerRestarted };
        let before = pair.now;
        pair.run_until(5 * SECOND, |pair| pair.ends[other].take(|e| *e == gone).is_some());
        assert!(pair.now.since(before) < 2 * SECOND);
        let handles = pair.connected();
        echo_once(&mut pair, handles, b"two");
    }
}

/// wire.md W3.14: the path is dead for 20 s; the same processes continue where they were.
#[test]
fn a_dead_path_that_comes_back_resumes() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"one");
    pair.fate = Box::new(|_| vec![]);
    for n in 0..100u8 {
        pair.ends[0].endpoint.send_message(pair.now, handles[0], &[n]).unwrap();
        pair.run(Duration::from_millis(200));
    }
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    let mut received = Vec::new();
    pair.run_until(10 * SECOND, |pair| {
        received.extend(pair.messages(1, handles[1]));
        received.len() == 100
    });
    assert!(received.iter().enumerate().all(|(n, message)| *message == [n as u8]));
    assert!(pair.ends[0].take(|e| matches!(e, Event::TunnelDown { .. })).is_none());
}

/// Keys are renewed under way by a second handshake; nothing is lost. (The first form of what rekey will do.)
#[test]
fn a_second_handshake_continues_the_tunnel() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"one");
    // Lets nothing of the responder through until it is suspected, then everything.
    let mut until = 8;
    pair.fate = Box::new(move |d| {
        let response = d[0] >> 2 & 7 == 2;
        if !response && until > 0 && d.len() < 100 {
            until -= 1;
            return vec![];
        }
        vec![Duration::ZERO]
    });
    pair.ends[0].endpoint.send_message(pair.now, handles[0], b"two").unwrap();
    pair.run_until(10 * SECOND, |pair| pair.messages(1, handles[1]) == [b"two"]);
    echo_once(&mut pair, handles, b"three");
}

/// wire.md W6.3
#[test]
fn silence_ends_a_tunnel_with_its_reason() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    pair.run(100 * SECOND);
    assert!(pair.ends[0].endpoint.is_open(handles[0]), "keep-alives hold it (wire.md W6.2)");
    pair.fate = Box::new(|_| vec![]);
    let gone = Event::Closed { connection: handles[0], reason: CloseReason::TimedOut };
    pair.run_until(100 * SECOND, |pair| pair.ends[0].take(|e| *e == gone).is_some());
    // And a peer that never answers ends `connect`.
    let mut pair = Pair::new();
    pair.fate = Box::new(|_| vec![]);
    let ours = pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
    let gone = Event::Closed { connection: ours, reason: CloseReason::TimedOut };
    pair.run_until(30 * SECOND, |pair| pair.ends[0].take(|e| *e == gone).is_some());
}

#[test]
fn closing_the_tunnel_tells_the_peer() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    pair.ends[0].endpoint.close_tunnel(pair.now, pair.ends[0].peer, Code::ShuttingDown);
    let told = |e: &Event| matches!(e, Event::Closed { connection, reason: CloseReason::TunnelClosed { code: 10, .. } } if *connection == handles[1]);
    pair.run_until(SECOND, |pair| pair.ends[1].take(told).is_some());
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"again");
}

/// Without an address there is nobody to call; the peer can call us.
#[test]
fn no_endpoint_is_said_at_once() {
    let mut endpoint = Endpoint::new(config(1, 1), [0; 32]);
    let address = OverlayAddress { network: 0, node: 2 };
    let peer = endpoint.add_peer(PeerConfig { key: identity(2).public_key(), address, endpoint: None });
    let result = endpoint.connect(Instant::from_nanos(5), peer, 7);
    assert_eq!(result, Err(OperationError::Closed(CloseReason::NoEndpoint)));
    assert_eq!(endpoint.poll_transmit(Instant::from_nanos(5), &mut [0; 1472]), None);
}

/// wire.md W3.9: the responder sends data on a new key only after it opened a packet under it.
#[test]
fn a_responder_waits_for_proof() {
    let mut pair = Pair::new();
    // Handshakes get through, and no data.
    pair.fate = Box::new(|datagram| if datagram[0] >> 2 & 7 == 4 { vec![] } else { vec![Duration::ZERO] });
    pair.ends[0].endpoint.open_tunnel(pair.now, pair.ends[0].peer);
    pair.run(SECOND / 10);
    assert!(pair.ends[0].endpoint.is_up(pair.ends[0].peer));
    assert!(!pair.ends[1].endpoint.is_up(pair.ends[1].peer));
    pair.ends[1].endpoint.connect(pair.now, pair.ends[1].peer, 7).unwrap();
    pair.run(SECOND / 10);
    assert!(pair.ends[1].sent.iter().all(|datagram| datagram[0] >> 2 & 7 == 2), "responses alone");
}

/// wire.md W1.2, W1.3
#[test]
fn session_ids_name_the_worker_and_epochs_are_zero_in_handshakes() {
    let mut seen = std::collections::BTreeSet::new();
    for boot in 0..50 {
        let mut config = config(1, boot);
        config.worker = 9;
        let mut endpoint = Endpoint::new(config, [boot; 32]);
        let address = OverlayAddress { network: 0, node: 2 };
        let peer = endpoint.add_peer(PeerConfig {
            key: identity(2).public_key(),
            address,
            endpoint: Some(common::address(2)),
        });
        endpoint.open_tunnel(Instant::from_nanos(1), peer);
        let mut datagram = [0; 1472];
        let sent = endpoint.poll_transmit(Instant::from_nanos(1), &mut datagram).unwrap();
        assert_eq!(sent.len, 1200, "wire.md W3.1");
        assert_eq!(datagram[0], 1 << 5 | 1 << 2);
        assert_eq!(datagram[1..5], [0; 4]);
        assert_eq!(datagram[5], 9);
        assert!(seen.insert(datagram[5..9].to_vec()), "drawn from the seed");
    }
}

/// wire.md W5.7: what is written at once leaves when the peer has accepted, and not before.
#[test]
fn data_waits_for_acceptance() {
    let mut pair = Pair::new();
    let ours = pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
    pair.ends[0].endpoint.send_message(pair.now, ours, b"early").unwrap();
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    assert_eq!(pair.ends[0].endpoint.write(pair.now, ours, stream, b"early too"), Ok(9));
    pair.run(SECOND);
    let offered = pair.ends[1].take(|e| matches!(e, Event::Offered { .. }));
    let Some(Event::Offered { connection, .. }) = offered else { panic!("{offered:?}") };
    assert_eq!(pair.messages(1, connection), Vec::<Vec<u8>>::new());
    pair.ends[1].endpoint.accept(pair.now, connection).unwrap();
    pair.run(SECOND);
    assert_eq!(pair.messages(1, connection), [b"early"]);
    let mut buffer = [0; 20];
    let read = pair.ends[1].endpoint.read(pair.now, connection, stream, &mut buffer);
    assert_eq!(read, Ok(pilot_engine::Read::Bytes(9)));
}

/// wire.md W3.14: the peer agrees to continue what has just ended here. Neither may take the other's word for a tunnel
/// that only one of them has.
#[test]
fn what_ended_during_a_handshake_is_not_continued() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"one");
    let kind = |datagram: &[u8]| datagram[0] >> 2 & 7;
    // No data gets through, so that a handshake begins; its response takes its time.
    pair.fate = Box::new(move |datagram| match kind(datagram) {
        4 => vec![],
        2 => vec![SECOND / 10], // before the initiation is repeated
        _ => vec![Duration::ZERO],
    });
    pair.ends[0].endpoint.send_message(pair.now, handles[0], b"lost").unwrap();
    pair.run_until(5 * SECOND, |pair| kind(pair.ends[1].sent.last().unwrap()) == 2);
    pair.ends[0].endpoint.close_tunnel(pair.now, pair.ends[0].peer, Code::NoError);
    pair.run(SECOND / 5);
    assert!(!pair.ends[0].endpoint.is_up(pair.ends[0].peer));
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"two");
    let violated = |e: &Event| matches!(e, Event::TunnelDown { reason: CloseReason::ProtocolViolation(_), .. });
    assert!(pair.ends.iter().all(|end| !end.events.iter().any(violated)));
}

/// What was waiting for the tunnel that ends waits for the next one, which is there already: no initiation follows the
/// response at once. (Found by simulation: a handshake every round trip.)
#[test]
fn a_handshake_that_ends_a_tunnel_asks_for_no_other() {
    let mut pair = Pair::new();
    let kind = |datagram: &[u8]| datagram[0] >> 2 & 7;
    pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
    // Nothing confirms the key, so that the peer never has the tunnel that we have.
    pair.fate = Box::new(move |datagram| if kind(datagram) == 4 { vec![] } else { vec![Duration::ZERO] });
    pair.run(10 * SECOND);
    let initiations = pair.ends[0].sent.iter().filter(|datagram| kind(datagram) == 1).count();
    assert!((5..=11).contains(&initiations), "{initiations} initiations; one a second is right");
}
