//! Paths: a peer that moves, the bulk path, session ids that are replaced.

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use common::{End, Pair};
use pilot_engine::limits::{
    AMPLIFICATION_LIMIT, BULK_IDLE, BULK_RETRY, BULK_SILENCE, MAX_PATH_CHALLENGES, MAX_SESSION_IDS, SESSION_ID_LINGER,
};
use pilot_engine::{BulkUse, Config, ConnectionHandle, Event, Read, TunnelStats};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const BULK_PORT: u16 = 4343;

fn both_bulk(usage: BulkUse) -> impl Fn(usize, &mut Config) {
    move |_, config| (config.bulk_port, config.bulk) = (Some(BULK_PORT), usage)
}

fn stats(pair: &Pair, end: usize) -> TunnelStats {
    pair.ends[end].endpoint.tunnel_stats(pair.ends[end].peer).unwrap()
}

/// The changes of path that an end has told of, in order.
fn told(pair: &mut Pair, end: usize) -> Vec<(bool, &'static str)> {
    let sending = |event: &Event| match event {
        Event::Sending { bulk, why, .. } => Some((*bulk, *why)),
        _ => None,
    };
    pair.ends[end].events.iter().filter_map(sending).collect()
}

/// Sends so many bytes on a new stream from end 0 to end 1, and looks at each step.
fn transfer(
    pair: &mut Pair,
    [ours, theirs]: [ConnectionHandle; 2],
    bytes: usize,
    mut look: impl FnMut(&mut Pair, usize),
) {
    let text: Vec<u8> = (0..bytes as u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    let (mut written, mut received) = (0, Vec::new());
    pair.run_until(120 * SECOND, |pair| {
        if written < text.len() {
            written += pair.ends[0].endpoint.write(pair.now, ours, stream, &text[written..]).unwrap_or(0);
        }
        let mut buffer = [0; 5000];
        while let Ok(Read::Bytes(n)) = pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut buffer) {
            received.extend_from_slice(&buffer[..n]);
        }
        look(pair, received.len());
        received.len() >= text.len()
    });
    assert!(received == text, "all of it, in order");
}

fn echo_once(pair: &mut Pair, [ours, theirs]: [ConnectionHandle; 2], text: &[u8]) {
    pair.ends[0].endpoint.send_message(pair.now, ours, text).unwrap();
    pair.run_until(60 * SECOND, |pair| pair.messages(1, theirs) == [text]);
}

/// The session id that the last data packet of an end was for.
fn named(pair: &Pair, end: usize) -> [u8; 4] {
    let data = pair.ends[end].sent.iter().rfind(|datagram| datagram[0] >> 2 & 7 == 4);
    data.unwrap()[1..5].try_into().unwrap()
}

// The bulk path

/// wire.md W6.8, W6.9, W6.10: there when data queues, back when none does, and nothing is overtaken on the way, whichever path
/// is the faster. The other direction, which carries acks alone, stays where it is.
#[test]
fn bulk_goes_there_and_back_without_reordering() {
    for (first, bulk) in [(0, 0), (2000, 0), (0, 500)] {
        let mut pair = Pair::with(both_bulk(BulkUse::Auto));
        pair.route = Box::new(move |source, _| {
            let slower = if source.port() == BULK_PORT { bulk } else { first };
            Some(Duration::from_micros(slower))
        });
        let handles = pair.connected();
        pair.run(SECOND);
        transfer(&mut pair, handles, 6_000_000, |_, _| {});
        assert_eq!(told(&mut pair, 0), [(true, "data has been queueing for several round trips")]);
        assert!(stats(&pair, 0).sending_bulk);
        pair.run(BULK_IDLE * 2);
        let back = (false, "nothing has been queueing for a while");
        assert_eq!(told(&mut pair, 0).last(), Some(&back));
        assert!(!stats(&pair, 0).sending_bulk);
        echo_once(&mut pair, handles, b"a message");
        transfer(&mut pair, handles, 6_000_000, |_, _| {});
        pair.run(SECOND);
        assert_eq!(told(&mut pair, 0).len(), 4, "and once more");
        assert_eq!(told(&mut pair, 1), []);
        for end in 0..2 {
            let stats = stats(&pair, end);
            assert_eq!((stats.lost_packets, stats.probe_timeouts), (0, 0), "{first}, {bulk}: end {end}");
            assert_eq!((stats.peer_moves, stats.path_switches), (0, [4, 0][end]));
        }
    }
}

/// wire.md W6.8: the ports of either end will do; where there are none there is no such path.
#[test]
fn the_ports_of_the_bulk_path() {
    let (p, g) = (4242, BULK_PORT);
    for (ports, expected) in [
        ([Some(g); 2], Some((g, g))),
        ([Some(g), None], Some((g, p))),
        ([None, Some(g)], Some((p, g))),
        ([None; 2], None),
    ] {
        let mut pair = Pair::with(move |end, config| (config.bulk_port, config.bulk) = (ports[end], BulkUse::Always));
        let used = Rc::new(Cell::new(None));
        let seen = Rc::clone(&used);
        pair.route = Box::new(move |source, destination| {
            if source.ip() == common::address(1).ip() && (source.port(), destination.port()) != (p, p) {
                seen.set(Some((source.port(), destination.port())));
            }
            Some(Duration::ZERO)
        });
        let handles = pair.connected();
        transfer(&mut pair, handles, 1_000_000, |_, _| {});
        assert_eq!(used.get(), expected, "{ports:?}");
        assert_eq!(stats(&pair, 0).sending_bulk, expected.is_some(), "{ports:?}");
        for end in 0..2 {
            assert_eq!(stats(&pair, end).peer_moves, 0, "{ports:?}: what comes over it moves nobody");
            assert_eq!(stats(&pair, end).lost_packets, 0);
        }
    }
}

/// wire.md W6.8, W6.9: whoever does not want to does not, and answers who does; messages that come a few at a time never do.
#[test]
fn never_is_never_and_few_messages_are_not_bulk() {
    let mut pair = Pair::with(|end, config| {
        (config.bulk_port, config.bulk) = (Some(BULK_PORT), [BulkUse::Never, BulkUse::Auto][end]);
    });
    let handles = pair.connected();
    transfer(&mut pair, handles, 4_000_000, |_, _| {});
    for n in 0..2000 {
        // A burst that is several packets, back to back with the next.
        let [ours, theirs] = handles;
        let sends = 1 + n % 100;
        (0..sends).for_each(|_| pair.ends[1].endpoint.send_message(pair.now, theirs, &[7; 100]).unwrap());
        let mut arrived = 0;
        pair.run_until(60 * SECOND, |pair| {
            arrived += pair.messages(0, ours).len();
            arrived == sends
        });
    }
    assert_eq!((told(&mut pair, 0), told(&mut pair, 1)), (vec![], vec![]));
}

/// wire.md W6.5: what is in flight to the peer's bulk port is bounded by what that absorbs, and by what its first port does where the
/// bulk path leads there.
#[test]
fn the_bulk_port_has_a_packet_credit_of_its_own() {
    const FIRST: u64 = 16;
    const BULK: u64 = 200;
    for (has_port, limit) in [(true, BULK), (false, FIRST)] {
        let mut pair = Pair::with(move |end, config| {
            both_bulk(BulkUse::Auto)(end, config);
            config.bulk_port = config.bulk_port.filter(|_| end == 0 || has_port);
            (config.packet_credit, config.bulk_packet_credit) = (FIRST as u32, BULK as u32);
        });
        let handles = pair.connected();
        let mut most = [0; 2];
        transfer(&mut pair, handles, 8_000_000, |pair, _| {
            let now = stats(pair, 0);
            let most = &mut most[usize::from(now.sending_bulk)];
            *most = (*most).max(now.bytes_in_flight.div_ceil(1472));
        });
        assert!(most[0] <= FIRST && most[1] <= limit && most[1] > limit * 9 / 10, "{has_port}: {most:?}");
    }
}

/// wire.md W6.10: a bulk path that becomes a black hole is left at once, and not tried again for a while that grows.
#[test]
fn a_bulk_path_that_dies_is_left() {
    let mut pair = Pair::with(both_bulk(BulkUse::Auto));
    let dead = Rc::new(Cell::new(false));
    let is_dead = Rc::clone(&dead);
    pair.route = Box::new(move |source, _| (!is_dead.get() || source.port() != BULK_PORT).then_some(Duration::ZERO));
    let handles = pair.connected();
    let mut cut = None;
    transfer(&mut pair, handles, 8_000_000, |pair, received| {
        if received > 4_000_000 && cut.is_none() {
            assert!(stats(pair, 0).sending_bulk, "it is under way");
            (cut, _) = (Some(pair.now), dead.set(true));
        }
    });
    let why = "nothing is heard any more over the bulk path";
    assert_eq!(told(&mut pair, 0).last(), Some(&(false, why)));
    let left_after = pair.now.since(cut.unwrap());
    assert!(left_after < SECOND, "{left_after:?}");

    // Tried again after a pause, in vain; data does not wait for it.
    let before = told(&mut pair, 0).len();
    pair.run(BULK_RETRY);
    let timeouts = stats(&pair, 0).probe_timeouts;
    transfer(&mut pair, handles, 8_000_000, |_, _| {});
    pair.run(2 * SECOND);
    assert_eq!((told(&mut pair, 0).len(), stats(&pair, 0).probe_timeouts), (before, timeouts));
    // Then the path is there again, but it is too early; and then it is not.
    dead.set(false);
    pair.run(BULK_RETRY);
    transfer(&mut pair, handles, 4_000_000, |_, _| {});
    assert_eq!(told(&mut pair, 0).len(), before, "the second pause is longer");
    pair.run(BULK_RETRY);
    transfer(&mut pair, handles, 4_000_000, |_, _| {});
    assert_eq!(told(&mut pair, 0).len(), before + 1);
    assert!(stats(&pair, 0).sending_bulk);
}

/// wire.md W6.10: a receiver that is not run for a moment is not a black hole.
#[test]
fn a_pause_does_not_end_bulk() {
    let mut pair = Pair::with(both_bulk(BulkUse::Auto));
    let paused = Rc::new(Cell::new(false));
    let is_paused = Rc::clone(&paused);
    pair.route = Box::new(move |_, _| (!is_paused.get()).then_some(Duration::ZERO));
    let handles = pair.connected();
    let (mut since, mut timeouts) = (None, 0);
    transfer(&mut pair, handles, 8_000_000, |pair, received| {
        if received > 4_000_000 && since.is_none() {
            assert!(stats(pair, 0).sending_bulk, "it is under way");
            (since, timeouts, _) = (Some(pair.now), stats(pair, 0).probe_timeouts, paused.set(true));
        }
        if since.is_some_and(|since| pair.now.since(since) >= BULK_SILENCE * 2 / 5) {
            paused.set(false);
        }
    });
    assert!(stats(&pair, 0).probe_timeouts >= timeouts + 3, "long enough for three of them");
    assert_eq!(told(&mut pair, 0).len(), 1, "{:?}", told(&mut pair, 0));
}

/// wire.md W6.7: a few challenges, each in a datagram that a path must carry, and then no more.
#[test]
fn a_bulk_path_that_nobody_answers_is_given_up() {
    let mut pair = Pair::with(both_bulk(BulkUse::Always));
    let sent = Rc::new(Cell::new(0));
    let count = Rc::clone(&sent);
    pair.route = Box::new(move |source, _| {
        count.set(count.get() + u32::from(source.port() == BULK_PORT && source.ip() == common::address(1).ip()));
        (source.port() != BULK_PORT).then_some(Duration::ZERO)
    });
    let handles = pair.connected();
    for _ in 0..50 {
        echo_once(&mut pair, handles, b"goes on");
        pair.run(100 * MILLISECOND);
    }
    assert_eq!(sent.get(), MAX_PATH_CHALLENGES);
    assert_eq!(stats(&pair, 0).lost_packets, 0, "nothing was risked on it");
}

// A peer that moves

/// wire.md W4.5, W6.4, W4.8: it is followed, asked, and given a new session id, by which it sends from then on.
#[test]
fn a_peer_that_moves_is_asked_and_gets_a_new_id() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    for message in [&b"for a round trip"[..], &[1; 10_000], &[2; 10_000]] {
        pair.ends[1].endpoint.send_message(pair.now, handles[1], message).unwrap();
        pair.run(SECOND);
        assert_eq!(pair.messages(0, handles[0]), [message]);
    }
    let (old, rtt) = (named(&pair, 0), stats(&pair, 1).min_rtt);
    pair.ends[0].address = "10.0.0.1:1000".parse().unwrap();
    echo_once(&mut pair, handles, b"from another port");
    pair.run(SECOND);
    echo_once(&mut pair, handles, b"proven");
    assert_ne!(named(&pair, 0), old);
    assert_eq!((stats(&pair, 1).peer_moves, stats(&pair, 1).unproven_paths), (1, 0));
    assert_eq!(
        (stats(&pair, 1).min_rtt, stats(&pair, 1).max_datagram),
        (rtt, 1472),
        "the same path behind another port"
    );
    pair.run(SESSION_ID_LINGER);
    echo_once(&mut pair, handles, b"the old id is gone");
}

/// RFC 9000 §9.4, wire.md W6.7: another address is another path, of which nothing is known.
#[test]
fn another_address_is_another_path() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    transfer(&mut pair, handles, 2_000_000, |_, _| {});
    let [ours, theirs] = handles;
    // End 1 has something to measure.
    for _ in 0..50 {
        pair.ends[1].endpoint.send_message(pair.now, theirs, &[1; 900]).unwrap();
        pair.run(MILLISECOND);
    }
    assert_eq!(pair.messages(0, ours).len(), 50);
    let before = stats(&pair, 1);
    assert_eq!(before.min_rtt, 2 * pair.delay);
    pair.ends[0].address = "10.0.0.77:4242".parse().unwrap();
    pair.route = Box::new(|_, _| Some(5 * MILLISECOND));
    echo_once(&mut pair, handles, b"from another address");
    pair.run(20 * MILLISECOND);
    let after = stats(&pair, 1);
    assert_eq!(after.peer_moves, 1);
    assert_eq!(after.min_rtt, 2 * (pair.delay + 5 * MILLISECOND), "of the challenge");
}

/// wire.md W6.4: who relays what is authentic from an address of its own gets at most three times what came from there; then
/// the peer is where it was, and all that was known of that path is known again.
#[test]
fn a_relay_gets_three_times_and_no_more() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    let [ours, theirs] = handles;
    transfer(&mut pair, handles, 2_000_000, |_, _| {});
    pair.run(SECOND);
    let elsewhere: SocketAddr = "10.6.6.6:666".parse().unwrap();
    let (here, home) = (pair.ends[0].address, pair.ends[1].address);
    let known = stats(&pair, 0);
    // End 1 says something once; the relay is faster.
    pair.ends[1].endpoint.send_message(pair.now, theirs, &[5; 100]).unwrap();
    let mut buffer = [0; 1472];
    let sent = pair.ends[1].endpoint.poll_transmit(pair.now, &mut buffer).unwrap();
    let relayed = buffer[..sent.len].to_vec();
    pair.arrive(elsewhere, here, relayed.clone());
    assert_eq!(pair.messages(0, ours).len(), 1);
    // Of the peer itself nothing is heard until it has been given up there. End 0 has a lot to say, and does not know yet.
    let given_up = Rc::new(Cell::new(false));
    let is_given_up = Rc::clone(&given_up);
    pair.route = Box::new(move |source, _| (source != home || is_given_up.get()).then_some(Duration::ZERO));
    let stream = pair.ends[0].endpoint.open_stream(pair.now, ours).unwrap();
    pair.ends[0].endpoint.write(pair.now, ours, stream, &[9; 200_000]).unwrap();
    pair.run_until(10 * SECOND, |pair| stats(pair, 0).unproven_paths == 1);
    assert_eq!((stats(&pair, 0).peer_moves, stats(&pair, 0).max_datagram), (1, known.max_datagram));
    assert_eq!(stats(&pair, 0).congestion_window, known.congestion_window);
    given_up.set(true);
    pair.run(3 * SECOND);
    assert!(pair.strays.iter().all(|(destination, _)| *destination == elsewhere));
    let strays: usize = pair.strays.iter().map(|(_, datagram)| datagram.len()).sum();
    assert!(strays > 0 && strays as u64 <= AMPLIFICATION_LIMIT * relayed.len() as u64, "{strays} bytes");
    let mut read = 0;
    let mut room = [0; 5000];
    while let Ok(Read::Bytes(n)) = pair.ends[1].endpoint.read(pair.now, theirs, stream, &mut room) {
        read += n;
    }
    assert_eq!(read, 200_000, "at home, after all");
}

/// wire.md W6.4: the true peer's next packet is enough to have it back, and no id is spent on it.
#[test]
fn a_packet_from_home_ends_it() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    let [ours, theirs] = handles;
    pair.run(SECOND);
    let (elsewhere, there) = ("10.6.6.6:666".parse().unwrap(), pair.ends[1].address);
    let id = named(&pair, 0);
    for _ in 0..20 {
        pair.ends[0].endpoint.send_message(pair.now, ours, b"relayed").unwrap();
        let mut buffer = [0; 1472];
        let sent = pair.ends[0].endpoint.poll_transmit(pair.now, &mut buffer).unwrap();
        pair.arrive(elsewhere, there, buffer[..sent.len].to_vec());
        assert_eq!(pair.messages(1, theirs).len(), 1);
        echo_once(&mut pair, handles, b"from home");
        pair.ends[1].endpoint.send_message(pair.now, theirs, b"back").unwrap();
        pair.run(MILLISECOND);
        assert_eq!(pair.messages(0, ours), [b"back"]);
    }
    assert_eq!((stats(&pair, 1).peer_moves, stats(&pair, 1).unproven_paths), (40, 0));
    assert_eq!(named(&pair, 0), id);
}

/// wire.md W4.5: a response that comes from elsewhere proves where the initiation went, and moves nobody. Else whoever is
/// faster than the peer with copies of its responses would have each key's confirmation, which tells the peer that there is a
/// tunnel, and with that no tunnel comes up.
#[test]
fn responses_from_elsewhere_keep_no_tunnel_down() {
    let mut pair = Pair::new();
    pair.ends[0].endpoint.open_tunnel(pair.now, pair.ends[0].peer);
    let (home, there) = (pair.ends[0].address, pair.ends[1].address);
    let elsewhere: SocketAddr = "10.6.6.6:666".parse().unwrap();
    let mut copies = Vec::new();
    let copied = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&copied);
    pair.fate = Box::new(move |datagram| {
        if datagram[0] >> 2 & 7 != 2 {
            return vec![Duration::ZERO];
        }
        seen.borrow_mut().push(datagram.clone());
        vec![]
    });
    let until = pair.now + 10 * SECOND;
    while pair.step(until) {
        for response in copied.borrow_mut().drain(..) {
            pair.arrive(elsewhere, home, response.clone());
            pair.arrive(there, home, response.clone());
            copies.push(response);
        }
    }
    assert!(!copies.is_empty());
    for end in 0..2 {
        let up = pair.ends[end].take(|event| matches!(event, Event::TunnelUp { resumed: false, .. }));
        assert!(up.is_some() && pair.ends[end].endpoint.is_up(pair.ends[end].peer), "end {end}");
    }
    assert_eq!((copies.len(), pair.strays.len()), (1, 0), "nothing goes there: {:?}", pair.strays);
    assert_eq!(stats(&pair, 0).peer_moves, 0);
    let handles = pair.connected();
    echo_once(&mut pair, handles, b"at home");
}

// Session ids

/// wire.md W4.8: replaced under load and loss, in both directions, as often as may be; nothing is lost, and old ids end.
#[test]
fn session_ids_are_replaced_under_way() {
    for seed in 0..20 {
        let mut pair = Pair::new();
        let handles = pair.connected();
        let mut random = common::Random(seed);
        pair.fate = Box::new(move |_| match random.chance(200) {
            true => vec![],
            false => vec![Duration::from_micros(random.next() % 300)],
        });
        let mut names = std::collections::BTreeSet::new();
        for n in 0..60u8 {
            for end in 0..2 {
                let End { endpoint, peer, .. } = &mut pair.ends[end];
                endpoint.replace_session_id(pair.now, *peer);
            }
            echo_once(&mut pair, handles, &[n; 50]);
            names.insert(named(&pair, 0));
            pair.run(Duration::from_millis(400));
        }
        assert!(names.len() > 3, "seed {seed}: {}", names.len());
    }
}

/// wire.md W4.8: ids are bounded, and those before are unknown once the peer has left them for a while.
#[test]
fn ids_are_bounded_and_old_ones_end() {
    let mut pair = Pair::new();
    let handles = pair.connected();
    pair.run(SECOND);
    let peer = pair.ends[1].peer;
    // Nothing gets through, so that no new id is taken.
    pair.fate = Box::new(|_| vec![]);
    let drawn = (0..20).filter(|_| pair.ends[1].endpoint.replace_session_id(pair.now, peer)).count();
    assert_eq!(drawn, MAX_SESSION_IDS - 1);
    // A packet under the old id, late.
    pair.ends[0].endpoint.send_message(pair.now, handles[0], b"late").unwrap();
    let mut buffer = [0; 1472];
    let len = pair.ends[0].endpoint.poll_transmit(pair.now, &mut buffer).unwrap().len;
    let late = buffer[..len].to_vec();
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    pair.run(SECOND);
    let received = pair.deliver(1, &late);
    assert_eq!(received, pilot_engine::Received::Data, "still known");
    pair.ends[0].endpoint.send_message(pair.now, handles[0], b"x").unwrap();
    pair.run(SESSION_ID_LINGER);
    let gone = pilot_engine::Received::Dropped(pilot_engine::DropReason::UnknownSession);
    assert_eq!(pair.deliver(1, &late), gone);
    assert!(pair.ends[1].endpoint.replace_session_id(pair.now, peer));
    echo_once(&mut pair, handles, b"on");
}

// The link

/// What could not arrive is sent again at once when the link works again, not after the pause that silence has led to.
#[test]
fn a_link_that_is_back_is_used_at_once() {
    let delivered_after = |is_told: bool| {
        let mut pair = Pair::with(|_, _| {});
        let [ours, theirs] = pair.connected();
        pair.run(SECOND);
        let works = std::mem::replace(&mut pair.fate, Box::new(|_| vec![]));
        pair.ends[0].endpoint.send_message(pair.now, ours, b"47 -> 48").unwrap();
        pair.run(700 * MILLISECOND);
        pair.fate = works;
        let back = pair.now;
        if is_told {
            pair.ends[0].endpoint.on_link_changed(back, false);
        }
        pair.run_until(60 * SECOND, |pair| pair.messages(1, theirs) == [b"47 -> 48"]);
        pair.now.since(back)
    };
    let (told, untold) = (delivered_after(true), delivered_after(false));
    assert!(told <= MILLISECOND && untold > 10 * told, "{told:?} and {untold:?}");
}

/// Where a driver is zero-copy nothing beside it is faster: `Auto` does without the bulk path, and returns from it.
#[test]
fn zero_copy_needs_no_bulk_path() {
    let mut pair = Pair::with(both_bulk(BulkUse::Auto));
    let handles = pair.connected();
    let now = pair.now;
    pair.ends[0].endpoint.on_link_changed(now, true);
    transfer(&mut pair, handles, 8 << 20, |_, _| {});
    assert_eq!(told(&mut pair, 0), []);

    let now = pair.now;
    pair.ends[0].endpoint.on_link_changed(now, false);
    let mut is_told = false;
    transfer(&mut pair, handles, 8 << 20, |pair, received| {
        if received > 4 << 20 && !std::mem::replace(&mut is_told, true) {
            assert!(stats(pair, 0).sending_bulk);
            let now = pair.now;
            pair.ends[0].endpoint.on_link_changed(now, true);
        }
    });
    assert!(!stats(&pair, 0).sending_bulk);
    let ways: Vec<bool> = told(&mut pair, 0).into_iter().map(|(bulk, _)| bulk).collect();
    assert_eq!(ways, [true, false]);
}

/// wire.md W4.5: what was sent before the move and arrives after it is authentic, but old.
#[test]
fn a_late_packet_from_the_old_address_moves_nobody() {
    let mut pair = Pair::new();
    let [ours, _] = pair.connected();
    let (home, there) = (pair.ends[0].address, pair.ends[1].address);
    pair.fate = Box::new(|_| vec![]);
    pair.ends[0].endpoint.send_message(pair.now, ours, b"late").unwrap();
    pair.run(Duration::ZERO);
    let late = pair.ends[0].sent.last().unwrap().clone();
    pair.fate = Box::new(|_| vec![Duration::ZERO]);
    pair.ends[0].address = "10.0.0.9:4242".parse().unwrap();
    pair.ends[0].endpoint.send_message(pair.now, ours, b"new").unwrap();
    pair.run(Duration::from_millis(100));
    assert_eq!(stats(&pair, 1).peer_moves, 1);
    pair.arrive(home, there, late);
    assert_eq!(stats(&pair, 1).peer_moves, 1);
}

/// wire.md W6.7: a PATH_RESPONSE proves a path only if it says what a challenge said.
#[test]
fn a_response_to_no_challenge_proves_nothing() {
    let mut pair = Pair::new();
    pair.connected();
    pair.run(SECOND); // probes of the path's MTU
    let (there, elsewhere) = (pair.ends[1].address, "10.6.6.6:666".parse().unwrap());
    let (ping, response) = ([0x01], [0x0f, 1, 2, 3, 4, 5, 6, 7, 8]);
    for frames in [&ping[..], &response] {
        let end = &mut pair.ends[0];
        let packet = pilot_engine::fuzzing::seal(&mut end.endpoint, end.peer, frames).unwrap();
        pair.arrive(elsewhere, there, packet);
        pair.run(Duration::from_millis(10));
        assert_eq!(stats(&pair, 1).peer_moves, 1);
    }
    pair.run(5 * SECOND);
    assert_eq!(stats(&pair, 1).unproven_paths, 1, "it was given up");
}
