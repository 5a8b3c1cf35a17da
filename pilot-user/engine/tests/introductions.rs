//! Nodes that do not know each other's keys: introductions (wire.md §3.5), and what somebody between them can do.

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use std::time::Duration;

use common::{Pair, Random, address, config, identity};
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::PublicKey;
use pilot_engine::limits::{CONNECT_TIMEOUT, INTRODUCTIONS_PER_SOURCE_PER_SECOND, MAX_INTRODUCTIONS};
use pilot_engine::{DropReason, Ecn, Endpoint, Event, OperationError, PeerConfig, Received};

const MS: Duration = Duration::from_millis(1);
const COOKIE: u8 = 3;

/// Nodes 1 and 2, who have no peers, and of which those introduce themselves that are said to.
fn strangers(introductions: [bool; 2]) -> Pair {
    let mut pair = Pair::new();
    for (n, end) in pair.ends.iter_mut().enumerate() {
        let number = n as u8 + 1;
        let mut config = config(number, 10 + number);
        config.introductions = introductions[n];
        end.endpoint = Endpoint::new(config, [40 + number; 32]);
    }
    pair
}

fn key(number: u8) -> PublicKey {
    identity(number).public_key()
}

/// Lets a node talk to the other one, as its application does when it was introduced.
fn let_in(pair: &mut Pair, end: usize, key: PublicKey) {
    let number = 2 - end as u8;
    let overlay = OverlayAddress { network: 0, node: number.into() };
    let peer = PeerConfig { key, address: overlay, endpoint: Some(address(number)) };
    pair.ends[end].peer = pair.ends[end].endpoint.add_peer(peer);
}

/// Takes what an end was told of introductions: the other's key, whether it had asked, and whether it is accepted.
fn introduced(pair: &mut Pair, end: usize) -> Option<(PublicKey, bool, bool)> {
    match pair.ends[end].take(|event| matches!(event, Event::Introduced { .. }))? {
        Event::Introduced { key, address: overlay, remote, begun_here, accepted } => {
            let other = 2 - end as u8;
            assert_eq!((remote, overlay.node), (address(other), other.into()));
            Some((key, begun_here, accepted))
        }
        _ => None,
    }
}

fn kind(datagram: &[u8]) -> u8 {
    datagram[0] >> 2 & 7
}

fn sent(pair: &Pair, end: usize) -> Vec<u8> {
    pair.ends[end].sent.iter().map(|datagram| kind(datagram)).collect()
}

fn introduce(pair: &mut Pair, wanted: Option<u8>) {
    let wanted = wanted.map(|number| key(number).identity);
    pair.ends[0].endpoint.introduce(pair.now, address(2), wanted).unwrap();
}

/// wire.md W3.30 to W3.34: by cookie, then both know each other; a tunnel is there when both want it, and not before.
#[test]
fn strangers_are_introduced_and_then_let_in() {
    for wanted in [None, Some(2)] {
        let mut pair = strangers([true, true]);
        introduce(&mut pair, wanted);
        let before = pair.now;
        pair.run_until(Duration::from_secs(1), |pair| !pair.ends[0].events.is_empty());
        assert!(pair.now.since(before) < MS, "nothing was waited for");
        assert_eq!(introduced(&mut pair, 0), Some((key(2), true, false)));
        assert_eq!(introduced(&mut pair, 1), Some((key(1), false, false)));
        assert_eq!((sent(&pair, 0), sent(&pair, 1)), (vec![1, 1, 2], vec![COOKIE, 2, 2]));
        let bytes = |end: usize| pair.ends[end].sent.iter().map(Vec::len).collect::<Vec<_>>();
        assert!(bytes(0).iter().zip(bytes(1)).all(|(asked, answered)| answered < *asked), "no amplification");
        pair.run(Duration::from_secs(30));
        assert!(pair.ends.iter_mut().all(|end| end.endpoint.poll_timeout().is_none()), "and nothing is left of it");

        // The one that was asked has not let the other in.
        let_in(&mut pair, 0, key(2));
        pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
        pair.run(Duration::from_secs(5));
        assert!(!pair.ends[0].endpoint.is_up(pair.ends[0].peer));
        assert!(pair.ends[1].endpoint.stats().dropped(DropReason::UnknownPeer) > 0);
        let_in(&mut pair, 1, key(1));
        pair.ends.iter_mut().for_each(|end| end.events.clear());
        pair.connected();

        introduce(&mut pair, wanted);
        pair.run(100 * MS);
        assert_eq!(introduced(&mut pair, 0), Some((key(2), true, true)), "accepted by now");
        assert!(pair.ends[0].endpoint.is_up(pair.ends[0].peer), "the tunnel is not touched");
    }
}

/// wire.md W3.30: nothing comes of it, not even an answer, unless both ends have it on; and what is sent for a tunnel is never
/// answered so, nor the other way round.
#[test]
fn off_is_silence() {
    let mut pair = strangers([true, false]);
    introduce(&mut pair, None);
    pair.run(CONNECT_TIMEOUT + MS);
    assert_eq!(sent(&pair, 1), [0; 0]);
    let openings = pair.ends[0].sent.len() as u64;
    assert_eq!(pair.ends[1].endpoint.stats().dropped(DropReason::Mac), openings);
    assert_eq!(pair.ends[0].events, [Event::NotIntroduced { remote: address(2) }]);
    assert!(openings >= 6 && pair.ends[0].endpoint.poll_timeout().is_none(), "{openings}");

    let mut pair = strangers([false, true]);
    let refused = pair.ends[0].endpoint.introduce(pair.now, address(2), None);
    assert_eq!(refused, Err(OperationError::IntroductionsOff));
    // Whom the peer does not let in asks for a tunnel in vain, and says nothing of itself to who answers introductions.
    let_in(&mut pair, 0, key(2));
    pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
    pair.run(CONNECT_TIMEOUT + MS);
    assert_eq!(sent(&pair, 1), [0; 0]);
    assert!(sent(&pair, 0).iter().all(|kind| *kind == 1));
    assert!(!pair.ends[1].events.iter().any(|event| matches!(event, Event::Introduced { .. })));
}

/// wire.md W3.35: whatever is lost, repeated or late, both are introduced in the end, each as who it is.
#[test]
fn introductions_survive_a_bad_path() {
    for seed in 0..40 {
        let mut pair = strangers([true, true]);
        let mut random = Random(seed);
        pair.delay = 20 * MS;
        pair.fate = Box::new(move |_| match random.next() % 10 {
            0..3 => vec![],
            3 => vec![Duration::ZERO, 30 * MS],
            4 => vec![300 * MS],
            _ => vec![Duration::ZERO],
        });
        introduce(&mut pair, Some(2));
        pair.run(CONNECT_TIMEOUT + MS);
        let ours = introduced(&mut pair, 0).unwrap_or_else(|| panic!("seed {seed}: {:?}", pair.ends[0].events));
        assert_eq!(ours, (key(2), true, false), "seed {seed}");
        assert_eq!(introduced(&mut pair, 1), Some((key(1), false, false)), "seed {seed}");
        assert_eq!(introduced(&mut pair, 0), None, "seed {seed}: told once");
        while let Some(again) = introduced(&mut pair, 1) {
            assert_eq!(again.0, key(1), "seed {seed}");
        }
    }
}

/// wire.md W3.31: somebody in the middle is seen as who it is, and as nobody else; not at all where somebody is wanted.
#[test]
fn who_is_in_the_middle_cannot_be_anybody_else() {
    for wanted in [None, Some(2)] {
        let mut pair = strangers([true, true]);
        // Node 3 takes node 2's place.
        let mut config = config(3, 13);
        config.introductions = true;
        pair.ends[1].endpoint = Endpoint::new(config, [43; 32]);
        introduce(&mut pair, wanted);
        pair.run(CONNECT_TIMEOUT + MS);
        match wanted {
            None => {
                let told = pair.ends[0].events.iter();
                let keys: Vec<_> = told
                    .filter_map(|event| match event {
                        Event::Introduced { key, .. } => Some(*key),
                        _ => None,
                    })
                    .collect();
                assert_eq!(keys, [key(3)]);
            }
            Some(_) => {
                assert_eq!(pair.ends[0].events, [Event::NotIntroduced { remote: address(2) }]);
                assert!(pair.ends[0].endpoint.stats().dropped(DropReason::Certificate) > 0);
                assert_eq!(pair.ends[1].events, [], "and node 1 did not say who it is");
                assert!(sent(&pair, 0).iter().all(|kind| *kind == 1), "{:?}", sent(&pair, 0));
            }
        }
    }
}

/// wire.md W3.31, W3.33: what was changed on the way, or is repeated, makes nobody known, and does not keep the genuine from it.
#[test]
fn what_is_forged_or_repeated_makes_nobody_known() {
    for seed in 0..20 {
        let mut pair = strangers([true, true]);
        let mut random = Random(seed);
        introduce(&mut pair, None);
        let mut seen: [Vec<Vec<u8>>; 2] = Default::default();
        for _ in 0..40 {
            // Everything that was sent so far, from anywhere and changed, before the genuine goes on.
            for (from, seen) in seen.iter_mut().enumerate() {
                seen.clone_from(&pair.ends[from].sent);
                for datagram in seen.clone() {
                    let mut bad = datagram;
                    let at = random.next() as usize % (bad.len() - 16);
                    bad[at] ^= 1 << (random.next() % 8);
                    let mine = pair.ends[1 - from].endpoint.handle_datagram(
                        pair.now,
                        address(1 + from as u8),
                        address(2 - from as u8),
                        Ecn::NotEct,
                        &bad,
                    );
                    assert!(matches!(mine, Received::Dropped(_)), "seed {seed}: {mine:?}, byte {at}");
                }
            }
            pair.step(pair.now + MS);
        }
        assert_eq!(introduced(&mut pair, 0).map(|told| told.0), Some(key(2)), "seed {seed}");
        assert_eq!(introduced(&mut pair, 1).map(|told| told.0), Some(key(1)), "seed {seed}");
        pair.ends.iter_mut().for_each(|end| end.events.clear());
        for (from, seen) in seen.iter().enumerate() {
            for datagram in seen {
                let received = pair.deliver(1 - from, datagram);
                // The opening and the proof may have been lost on the way back, and are answered again, as they were or anew.
                let is_answered = from == 0 && received == Received::Unproven;
                assert!(matches!(received, Received::Dropped(_)) || is_answered, "seed {seed}: {received:?}");
            }
        }
        pair.run(Duration::from_secs(10));
        let told = [0, 1].map(|end| introduced(&mut pair, end));
        assert_eq!(told, [None, None], "seed {seed}: by what was repeated");
    }
}

/// wire.md W3.34: strangers get cookies, and those that have one a few answers a second; of what waits for a proof there is little.
#[test]
fn strangers_cost_little() {
    let mut pair = strangers([true, true]);
    let flood = |pair: &mut Pair, n: u16| {
        // Openings of its own from many ports of one host, as whoever controls it can make them.
        let source = std::net::SocketAddr::from(([10, 0, 0, 1], 10_000 + n));
        pair.ends[0].endpoint.introduce(pair.now, address(2), None).unwrap();
        let mut buffer = [0; 1472];
        let length = pair.ends[0].endpoint.poll_transmit(pair.now, &mut buffer).unwrap().len;
        let (now, to) = (pair.now, address(2));
        let first = pair.ends[1].endpoint.handle_datagram(now, source, to, Ecn::NotEct, &buffer[..length]);
        assert_eq!(first, Received::Dropped(DropReason::NoCookie));
        let length = pair.ends[1].endpoint.poll_transmit(now, &mut buffer).unwrap().len;
        pair.ends[0].endpoint.handle_datagram(now, to, source, Ecn::NotEct, &buffer[..length]);
        let length = pair.ends[0].endpoint.poll_transmit(now, &mut buffer).unwrap().len;
        pair.ends[1].endpoint.handle_datagram(now, source, to, Ecn::NotEct, &buffer[..length])
    };
    let answered = (0..200).filter(|n| flood(&mut pair, *n) == Received::Unproven).count();
    assert_eq!(answered, INTRODUCTIONS_PER_SOURCE_PER_SECOND as usize);
    assert_eq!(pair.ends[1].endpoint.stats().dropped(DropReason::SourceLimit), 200 - answered as u64);
    let mut datagrams = 0;
    while pair.ends[1].endpoint.poll_transmit(pair.now, &mut [0; 1472]).is_some() {
        datagrams += 1;
    }
    assert_eq!(datagrams, answered);

    let endpoint = &mut pair.ends[0].endpoint;
    let begun = (0..=255).filter(|n| endpoint.introduce(pair.now, address(*n), None).is_ok()).count();
    assert_eq!(begun, MAX_INTRODUCTIONS);
    let refused = OperationError::TooMany { what: "introductions", allowed: MAX_INTRODUCTIONS as u64 };
    assert_eq!(endpoint.introduce(pair.now, ([10, 1, 1, 1], 5).into(), None), Err(refused));
}

/// wire.md W3.36: a static key that was replaced becomes known so, and the tunnel begins with it.
#[test]
fn a_replaced_static_key_becomes_known() {
    let mut pair = strangers([true, true]);
    let stale = PublicKey { static_key: key(9).static_key, ..key(2) };
    let_in(&mut pair, 0, stale);
    let_in(&mut pair, 1, key(1));
    pair.ends[0].endpoint.connect(pair.now, pair.ends[0].peer, 7).unwrap();
    pair.run(Duration::from_secs(3));
    assert!(!pair.ends[0].endpoint.is_up(pair.ends[0].peer));
    introduce(&mut pair, Some(2));
    pair.run(100 * MS);
    let (fresh, ..) = introduced(&mut pair, 0).unwrap();
    assert_eq!(fresh, key(2));
    let_in(&mut pair, 0, fresh);
    pair.run(Duration::from_secs(5));
    assert!(pair.ends[0].endpoint.is_up(pair.ends[0].peer));
}
