//! What those get who have no tunnel: cookies under load, the versions spoken, and their share of handshakes.

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Pair, address, end, identity};
use pilot_engine::limits::{COOKIE_LIFETIME, HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SOURCE_PER_SECOND};
use pilot_engine::{CloseReason, Code, DropReason, Ecn, Event, Received, fuzzing};

const SECOND: Duration = Duration::from_secs(1);
const INITIATION_LEN: usize = 1200;
const COOKIE_LEN: usize = 65;

/// Nodes of which the second is under load, whatever comes.
fn loaded() -> Pair {
    Pair::with(|n, config| {
        if n == 1 {
            config.handshakes_per_second = 0;
        }
    })
}

fn kind(datagram: &[u8]) -> u8 {
    datagram[0] >> 2 & 7
}

fn mac2(initiation: &[u8]) -> &[u8] {
    &initiation[INITIATION_LEN - 16..]
}

/// Everything a node sends now.
fn sent_by(pair: &mut Pair, end: usize) -> Vec<Vec<u8>> {
    let mut buffer = [0; 1472];
    let node = &mut pair.ends[end].endpoint;
    std::iter::from_fn(|| node.poll_transmit(pair.now, &mut buffer).map(|sent| buffer[..sent.len].to_vec())).collect()
}

/// An initiation to node 2 of nothing but the right mac1, as anybody can make it who has its public key.
fn forged(n: u32, first_byte: u8) -> Vec<u8> {
    let mut datagram = vec![0x5a; INITIATION_LEN];
    datagram[0] = first_byte;
    datagram[1..5].fill(0);
    datagram[5..9].copy_from_slice(&n.to_be_bytes());
    datagram[9..13].copy_from_slice(&n.to_be_bytes());
    fuzzing::write_mac1(&identity(2).public_key().static_key, &mut datagram);
    datagram
}

/// A source that nobody has to have.
fn spoofed(n: u32) -> SocketAddr {
    SocketAddr::from((n.to_be_bytes(), 1024 + n as u16 % 1000))
}

fn deliver_from(pair: &mut Pair, source: SocketAddr, datagram: &[u8]) -> Received {
    pair.ends[1].endpoint.handle_datagram(pair.now, source, address(2), Ecn::NotEct, datagram)
}

/// wire.md W3.20, W3.21: a cookie costs one round trip, once, and is then sent along for as long as it is good.
#[test]
fn under_load_a_cookie_comes_first() {
    let mut pair = loaded();
    let before = pair.now;
    pair.connected();
    assert!(pair.now.since(before) < SECOND / 100, "repeated at once");
    let handshake = |pair: &Pair, end: usize| -> Vec<Vec<u8>> {
        pair.ends[end].sent.iter().filter(|datagram| kind(datagram) < 4).cloned().collect()
    };
    let [ours, theirs] = [0, 1].map(|end| handshake(&pair, end));
    assert_eq!(ours.iter().map(|datagram| kind(datagram)).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(theirs.iter().map(|datagram| kind(datagram)).collect::<Vec<_>>(), [3, 2]);
    assert_eq!((mac2(&ours[0]), theirs[0].len()), (&[0; 16][..], COOKIE_LEN));
    assert_ne!(mac2(&ours[1]), [0; 16]);
    assert_ne!(ours[0][9..41], ours[1][9..41], "another ephemeral key (W3.11)");
    assert_eq!(pair.ends[1].endpoint.stats().dropped(DropReason::NoCookie), 1);

    let reconnect_after = |pair: &mut Pair, pause| {
        pair.ends[0].endpoint.close_tunnel(pair.now, pair.ends[0].peer, Code::NoError);
        pair.run(pause);
        pair.ends[0].events.clear();
        pair.ends[1].events.clear();
        pair.connected();
        handshake(pair, 1).len()
    };
    assert_eq!(reconnect_after(&mut pair, 6 * SECOND), 3, "no other cookie");
    assert_eq!(reconnect_after(&mut pair, 2 * COOKIE_LIFETIME), 5, "it is over");
}

/// A cookie reply that was damaged, or is for another attempt, is dropped, and brings no initiation about.
#[test]
fn cookies_are_for_the_initiation_that_they_answer() {
    let mut pair = loaded();
    pair.ends[0].endpoint.open_tunnel(pair.now, pair.ends[0].peer);
    let first = sent_by(&mut pair, 0).remove(0);
    pair.deliver(1, &first);
    let reply = sent_by(&mut pair, 1).remove(0);
    for at in 0..COOKIE_LEN {
        let mut bad = reply.clone();
        bad[at] ^= 1;
        assert!(matches!(pair.deliver(0, &bad), Received::Dropped(_)), "byte {at}");
    }
    pair.run(SECOND / 2); // It was repeated, with another ephemeral key.
    assert_eq!(pair.deliver(0, &reply), Received::Dropped(DropReason::NoAttempt));
}

/// Who is on the way and answers each initiation with a cookie that is worth nothing gets two for one, not a storm. (Here a
/// NAT that sends every datagram from another port.)
#[test]
fn useless_cookies_bring_one_repetition_each() {
    let mut pair = loaded();
    pair.route = Box::new(|_, _| None);
    pair.ends[0].endpoint.open_tunnel(pair.now, pair.ends[0].peer);
    let until = pair.now + SECOND;
    let mut initiations = 0;
    while pair.now < until {
        for initiation in sent_by(&mut pair, 0) {
            initiations += 1;
            deliver_from(&mut pair, spoofed(initiations), &initiation);
        }
        for reply in sent_by(&mut pair, 1) {
            assert_eq!(pair.deliver(0, &reply), Received::Unproven);
        }
        pair.now += SECOND / 1000;
        pair.ends[0].endpoint.poll_timeout();
        pair.ends[0].endpoint.handle_timeout(pair.now);
    }
    assert_eq!(initiations, 6, "at 0, 0.25 and 0.75 s, and each once again");
}

/// wire.md W3.20: the load that any number of sources make, none of which has to exist, ends nobody's handshakes.
#[test]
fn a_flood_keeps_nobody_out() {
    let mut pair = Pair::new();
    for n in 0..20_000 {
        let received = deliver_from(&mut pair, spoofed(n), &forged(n, 0x24));
        let reason = if n < HANDSHAKES_PER_SECOND { DropReason::HandshakeDecrypt } else { DropReason::NoCookie };
        assert_eq!(received, Received::Dropped(reason));
    }
    // 64 cookies were made, for those who asked first; whoever is told none asks again.
    let replies = sent_by(&mut pair, 1);
    assert!(replies.len() == 64 && replies.iter().all(|reply| reply.len() == COOKIE_LEN));
    let source = pair.ends[0].address;
    for n in 0..1000 {
        deliver_from(&mut pair, source, &forged(n, 0x24));
    }
    sent_by(&mut pair, 1);
    let before = pair.now;
    let handles = pair.connected();
    assert!(pair.now.since(before) < SECOND / 100);
    pair.ends[0].endpoint.send_message(pair.now, handles[0], b"through").unwrap();
    pair.run_until(SECOND, |pair| pair.messages(1, handles[1]) == [b"through"]);

    // From another address as well, while it goes on.
    pair.ends[0] = end(1, 2, 99);
    pair.ends[0].address = "192.0.2.7:999".parse().unwrap();
    for n in 0..1000 {
        deliver_from(&mut pair, spoofed(n), &forged(n, 0x24));
    }
    sent_by(&mut pair, 1);
    pair.connected();
    // When nobody floods any more, no cookies are asked for.
    pair.run(3 * SECOND);
    let dropped = pair.ends[1].endpoint.stats().dropped(DropReason::NoCookie);
    pair.ends[0] = end(1, 2, 100);
    pair.connected();
    assert_eq!(pair.ends[1].endpoint.stats().dropped(DropReason::NoCookie), dropped);
}

/// wire.md W3.22: a source that is proven gets its share under load, and no other loses by it.
#[test]
fn a_source_has_its_share_of_handshakes() {
    let mut pair = loaded();
    pair.connected();
    let initiation = pair.ends[0].sent.iter().rfind(|datagram| kind(datagram) == 1).unwrap().clone();
    let source = pair.ends[0].address;
    let read = (0..200).filter(|_| {
        // A replay; what it is found to be costs a Diffie-Hellman.
        deliver_from(&mut pair, source, &initiation) == Received::Dropped(DropReason::StaleTimestamp)
    });
    assert_eq!(read.count() as u32, HANDSHAKES_PER_SOURCE_PER_SECOND - 1, "one was used before");
    assert!(pair.ends[1].endpoint.stats().dropped(DropReason::SourceLimit) > 100);
    pair.ends[0] = end(1, 2, 99);
    pair.ends[0].address = "192.0.2.7:999".parse().unwrap();
    pair.connected();
}

/// wire.md W3.10: an initiation of another version with the right mac1 gets the versions spoken, shorter and not too often.
#[test]
fn other_versions_are_told_ours() {
    let mut pair = Pair::new();
    let version_2 = 2 << 5 | 1 << 2;
    let initiation = forged(0x0102_0304, version_2);
    for n in 0..1000 {
        let mut other = initiation.clone();
        other[1199] = n as u8; // mac2 is nobody's business
        let received = deliver_from(&mut pair, spoofed(n), &other);
        assert_eq!(received, Received::Dropped(DropReason::Version));
    }
    let answers = sent_by(&mut pair, 1);
    assert_eq!(answers.len(), 10);
    let mac1 = &initiation[1168..1184];
    assert!(answers.iter().all(|answer| *answer == [&[0x0c, 1, 2, 3, 4, 0, 0, 0, 0], mac1, &[0b10]].concat()));

    pair.run(SECOND);
    let mut wrong_mac = initiation.clone();
    wrong_mac[1170] ^= 1;
    for bad in [&wrong_mac[..], &initiation[..1199], &forged(1, 2 << 5 | 4 << 2), &answers[0]] {
        deliver_from(&mut pair, spoofed(1), bad);
    }
    assert_eq!(sent_by(&mut pair, 1), Vec::<Vec<u8>>::new(), "none of these asks");
}

/// wire.md W3.10: the initiator says what was the matter, when nothing else came; a word that anybody on the way could have
/// said ends nothing.
#[test]
fn a_peer_of_another_version_is_named() {
    for upgraded in [false, true] {
        let mut pair = Pair::new();
        pair.route = Box::new(|_, _| None);
        let ours = pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
        let initiation = sent_by(&mut pair, 0).remove(0);
        let answer = |mac1: &[u8], versions| [&[0x0c], &initiation[5..9], &[0; 4], mac1, &[versions]].concat();
        let mac1 = &initiation[1168..1184];
        for bad in [answer(&[9; 16], 0b1100), answer(mac1, 0b1110)] {
            assert_eq!(pair.deliver(0, &bad), Received::Dropped(DropReason::NoAttempt));
        }
        assert_eq!(pair.deliver(0, &answer(mac1, 0b1100)), Received::Unproven);
        if upgraded {
            pair.route = Box::new(|_, _| Some(Duration::ZERO));
            pair.run(SECOND);
            assert!(pair.ends[0].endpoint.is_up(pair.ends[0].peer));
            continue;
        }
        let closed = |event: &Event| matches!(event, Event::Closed { connection, .. } if *connection == ours);
        pair.run_until(30 * SECOND, |pair| pair.ends[0].events.iter().any(closed));
        let Some(Event::Closed { reason, .. }) = pair.ends[0].take(closed) else { unreachable!("it was there") };
        assert!(matches!(reason, CloseReason::OtherVersion { .. }));
        let words = "the peer speaks version 2, 3 of the wire protocol and this node version 1: upgrade one of them";
        assert_eq!(reason.to_string(), words);
    }
}
