//! New keys for a living tunnel (`docs/wire.md` W4.6, W4.7).

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use common::{Pair, Random};
use pilot_engine::limits::{REJECT_AFTER_TIME, REKEY_AFTER_TIME};
use pilot_engine::{ConnectionHandle, DropReason, Event, Received};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(100);

fn kind(datagram: &[u8]) -> u8 {
    datagram[0] >> 2 & 7
}

fn epoch(datagram: &[u8]) -> u8 {
    datagram[0] & 3
}

fn is_data(datagram: &[u8]) -> bool {
    kind(datagram) == 4
}

fn rekeys(pair: &Pair) -> [u64; 2] {
    pair.ends.each_ref().map(|end| end.endpoint.tunnel_stats(end.peer).map_or(0, |stats| stats.rekeys))
}

fn send(pair: &mut Pair, from: usize, handles: [ConnectionHandle; 2], text: &[u8]) {
    pair.ends[from].endpoint.send_message(pair.now, handles[from], text).unwrap();
}

fn echo_once(pair: &mut Pair, handles: [ConnectionHandle; 2], text: &[u8]) {
    send(pair, 0, handles, text);
    pair.run_until(60 * SECOND, |pair| pair.messages(1, handles[1]) == [text]);
}

/// A pair whose tunnels rekey every 100 ms, and a connection.
fn quick() -> (Pair, [ConnectionHandle; 2]) {
    let mut pair = Pair::with(|_, config| config.rekey_after = INTERVAL);
    let handles = pair.connected();
    (pair, handles)
}

/// Sends a message each way every 2 ms for a while; all arrive in order, and nothing ends.
fn converse(pair: &mut Pair, handles: [ConnectionHandle; 2], messages: u32) {
    let mut received: [Vec<Vec<u8>>; 2] = Default::default();
    for n in 0..messages {
        for from in 0..2 {
            send(pair, from, handles, &n.to_be_bytes());
        }
        pair.run(Duration::from_millis(2));
        for to in 0..2 {
            received[to].extend(pair.messages(to, handles[to]));
        }
    }
    pair.run_until(60 * SECOND, |pair| {
        for to in 0..2 {
            received[to].extend(pair.messages(to, handles[to]));
        }
        received.iter().all(|all| all.len() == messages as usize)
    });
    for all in received {
        assert!(all.iter().zip(0u32..).all(|(message, n)| *message == n.to_be_bytes()));
    }
    assert!(pair.ends.iter_mut().all(|end| end.take(|e| matches!(e, Event::TunnelDown { .. })).is_none()));
}

/// wire.md W4.7, W4.2: every 100 ms, with numbers, ids and connections going on, and without anything dropped.
#[test]
fn keys_are_replaced_while_data_flows() {
    let (mut pair, handles) = quick();
    converse(&mut pair, handles, 1000);
    for rekeys in rekeys(&pair) {
        assert!((19..=21).contains(&rekeys), "{rekeys} in 2 s");
    }
    for end in &mut pair.ends {
        let dropped: u64 = DropReason::ALL.iter().map(|(reason, _)| end.endpoint.stats().dropped(*reason)).sum();
        assert_eq!(dropped, 0);
        assert_eq!(end.endpoint.tunnel_stats(end.peer).unwrap().lost_packets, 0);
        // One session id, numbers that only grow, and every epoch in its turn.
        let data: Vec<_> = end.sent.iter().filter(|datagram| is_data(datagram)).collect();
        assert!(data.windows(2).all(|two| two[0][1..5] == two[1][1..5] && two[0][5..9] < two[1][5..9]));
        let turns: Vec<u8> =
            data.windows(2).filter(|two| epoch(two[0]) != epoch(two[1])).map(|two| epoch(two[1])).collect();
        assert!(turns.iter().zip(1u8..).all(|(epoch, n)| *epoch == n % 4), "{turns:?}");
        // The application hears of the tunnel once, and never again.
        assert!(end.take(|e| matches!(e, Event::TunnelUp { .. })).is_some());
        assert!(end.take(|e| matches!(e, Event::TunnelUp { .. })).is_none());
    }
}

/// wire.md W4.7: over a path that loses, repeats and reorders.
#[test]
fn keys_are_replaced_on_a_bad_path() {
    let mut total = 0;
    for seed in 0..20 {
        println!("seed {seed}");
        let (mut pair, handles) = quick();
        let mut random = Random(seed);
        pair.fate = Box::new(move |_| {
            let late = |random: &mut Random| Duration::from_micros(random.next() % 3000);
            match random.next() % 10 {
                0..2 => vec![],
                2 => vec![late(&mut random), late(&mut random)],
                3..6 => vec![late(&mut random)],
                _ => vec![Duration::ZERO],
            }
        });
        converse(&mut pair, handles, 1000);
        let rekeys = rekeys(&pair)[0];
        assert!(rekeys >= 1);
        total += rekeys;
    }
    assert!(total >= 120, "{total}");
}

/// wire.md W3.9, W4.7: the responder seals with the new key only after it opened a packet under it; until then both go on with
/// the one before, whatever becomes of the new one.
#[test]
fn a_responder_waits_for_proof_of_a_new_key() {
    let (mut pair, handles) = quick();
    echo_once(&mut pair, handles, b"one");
    // Nothing of the initiator's arrives under another key than the first.
    pair.fate = Box::new(|datagram| match is_data(datagram) && epoch(datagram) != 0 {
        true => vec![],
        false => vec![Duration::ZERO],
    });
    for n in 0..200u8 {
        send(&mut pair, 1, handles, &[n]);
        pair.run(Duration::from_millis(2));
    }
    assert_eq!(rekeys(&pair)[1], 0);
    assert!(rekeys(&pair)[0] >= 1);
    assert!(pair.ends[1].sent.iter().all(|datagram| epoch(datagram) == 0));
    let opened = pair.messages(0, handles[0]).len();
    assert!(opened > 100, "the key before opens them, as far as they leave without acks: {opened}");
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    pair.run(2 * SECOND);
    assert_eq!(opened + pair.messages(0, handles[0]).len(), 200);
    converse(&mut pair, handles, 100);
    assert!(rekeys(&pair)[1] >= 1);
}

/// wire.md W3.12, W4.7: both ends want a new key at the same moment, after so many packets.
#[test]
fn crossing_rekeys_and_packets() {
    let mut crossing = 0;
    for seed in 0..20 {
        println!("seed {seed}");
        let mut pair = Pair::with(|_, config| config.rekey_after_packets = 40);
        let mut random = Random(seed);
        if seed > 0 {
            pair.fate = Box::new(move |datagram| match is_data(datagram) {
                true => vec![Duration::ZERO],
                // Handshakes are lost, or late by more than it takes to send 40 packets.
                false => {
                    if random.chance(200) {
                        vec![]
                    } else {
                        vec![Duration::from_millis(random.next() % 100)]
                    }
                }
            });
        }
        let handles = pair.connected();
        converse(&mut pair, handles, 1000);
        let [a, b] = rekeys(&pair);
        assert!(a.min(b) >= if seed == 0 { 20 } else { 1 }, "{a} {b}");
        crossing += pair.ends.iter().map(|end| end.endpoint.stats().dropped(DropReason::Crossing)).sum::<u64>();
    }
    assert!(crossing > 10, "{crossing}");
}

/// wire.md W3.12: when neither end's initiations were answered for long, both are. One key comes of it.
#[test]
fn crossing_rekeys_that_are_both_answered() {
    let mut pair = Pair::with(|_, config| config.rekey_after_packets = 40);
    pair.delay = Duration::from_millis(20);
    let handles = pair.connected();
    // Until both have tried five times; the sixth initiations cross.
    let blocked = Rc::new(Cell::new(true));
    let is_blocked = Rc::clone(&blocked);
    pair.fate = Box::new(move |datagram| match is_blocked.get() && !is_data(datagram) {
        true => vec![],
        false => vec![Duration::ZERO],
    });
    converse(&mut pair, handles, 2500);
    let responses =
        |pair: &Pair| pair.ends.each_ref().map(|end| end.sent.iter().filter(|datagram| kind(datagram) == 2).count());
    assert_eq!(rekeys(&pair), [0, 0]);
    let before = responses(&pair);
    blocked.set(false);
    pair.run_until(10 * SECOND, |pair| responses(pair).iter().zip(before).all(|(now, before)| *now > before));
    converse(&mut pair, handles, 100);
    assert!(rekeys(&pair).iter().all(|rekeys| *rekeys >= 1));
    assert_eq!(pair.ends.each_ref().map(|end| end.endpoint.stats().dropped(DropReason::Authentication)), [0, 0]);
}

/// wire.md W4.7: a tunnel that only keeps itself alive keeps its key; the next send replaces it first.
#[test]
fn an_idle_tunnel_rekeys_on_the_next_send() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    pair.run(2 * SECOND);
    let mut before = rekeys(&pair);
    pair.run(REKEY_AFTER_TIME);
    // The connection's opening was data; from then on there is none.
    assert_eq!(rekeys(&pair), [1, 1]);
    before = [1, 1].max(before);
    pair.run(10 * REJECT_AFTER_TIME);
    assert_eq!(rekeys(&pair), before);
    for from in [1, 0] {
        let (sent, began) = (pair.ends[from].sent.len(), pair.now);
        send(&mut pair, from, handles, b"awake");
        pair.run_until(SECOND, |pair| pair.messages(1 - from, handles[1 - from]) == [b"awake"]);
        assert!(pair.now.since(began) <= pair.delay * 3, "one round trip and the message");
        assert_eq!(kind(&pair.ends[from].sent[sent]), 1, "the handshake goes first");
        before = before.map(|rekeys| rekeys + 1);
        assert_eq!(rekeys(&pair), before);
        pair.run(REKEY_AFTER_TIME + SECOND);
        before = before.map(|rekeys| rekeys + 1);
        pair.run(REJECT_AFTER_TIME);
        assert_eq!(rekeys(&pair), before);
    }
}

/// wire.md W4.6: a rekey that does not succeed leaves the key until its limit; then data waits, and the tunnel stays.
#[test]
fn data_waits_when_the_key_is_too_old() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    let began = pair.now;
    pair.fate = Box::new(|datagram| if is_data(datagram) { vec![Duration::ZERO] } else { vec![] });
    let mut got = 0;
    while pair.now.since(began) < 2 * REJECT_AFTER_TIME {
        if pair.now.since(began) < REJECT_AFTER_TIME + SECOND {
            send(&mut pair, 0, handles, b"x");
        }
        pair.run(SECOND);
        got += pair.messages(1, handles[1]).len();
    }
    assert!(got >= REJECT_AFTER_TIME.as_secs() as usize - 1, "{got}");
    assert!(got <= REJECT_AFTER_TIME.as_secs() as usize + 1, "{got}: sealed by a key that is too old");
    assert!(pair.ends.iter().all(|end| end.endpoint.is_up(end.peer)));
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    pair.run(6 * SECOND);
    assert!(!pair.messages(1, handles[1]).is_empty(), "what had waited");
    echo_once(&mut pair, handles, b"on");
}

/// wire.md W3.5, W3.15, W4.3: nothing that was sent before, of any epoch, changes anything.
#[test]
fn replays_of_old_messages_change_nothing() {
    let (mut pair, handles) = quick();
    converse(&mut pair, handles, 300);
    let before = rekeys(&pair);
    assert!(before[0] >= 5);
    let sent = pair.ends.each_ref().map(|end| end.sent.clone());
    for (from, sent) in sent.iter().enumerate() {
        for datagram in sent {
            assert!(matches!(pair.deliver(1 - from, datagram), Received::Dropped(_)));
        }
    }
    assert_eq!(rekeys(&pair), before);
    converse(&mut pair, handles, 300);
    assert!(rekeys(&pair)[0] > before[0]);
}
