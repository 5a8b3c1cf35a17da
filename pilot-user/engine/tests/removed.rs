//! A peer that is removed while the node runs: a stranger from then on (`docs/wire.md` W3.4).
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use std::time::Duration;

use common::{Pair, address, config, identity};
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{CloseReason, Code, DropReason, Endpoint, Event, OperationError, PeerConfig};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_removed_peer_is_told_and_is_a_stranger_then() {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let removed = pair.ends[1].peer;
    pair.ends[1].endpoint.remove_peer(pair.now, removed);
    pair.run(SECOND);
    let closed = |event: &Event| matches!(event, Event::Closed { .. });
    let at_the_peer = pair.ends[0].take(closed);
    let told = Event::Closed {
        connection: ours,
        reason: CloseReason::TunnelClosed { code: Code::NoError as u64, reason: Code::NoError.to_string() },
    };
    assert_eq!(at_the_peer, Some(told));
    let here = Event::Closed { connection: theirs, reason: CloseReason::ClosedHere(Code::NoError) };
    assert_eq!(pair.ends[1].take(closed), Some(here));
    // Silence: neither a handshake nor what is left of the tunnel is answered.
    pair.run(10 * SECOND);
    let before = (pair.ends[1].sent.len(), pair.ends[1].endpoint.stats().dropped(DropReason::UnknownPeer));
    let peer = pair.ends[0].peer;
    pair.ends[0].endpoint.connect(pair.now, peer, 7).unwrap();
    pair.run(5 * SECOND);
    assert_eq!(pair.ends[1].sent.len(), before.0);
    assert!(pair.ends[1].endpoint.stats().dropped(DropReason::UnknownPeer) > before.1);
    assert_eq!(pair.ends[1].endpoint.connect(pair.now, removed, 7), Err(OperationError::UnknownPeer));

    let address = Some(address(1));
    let again = PeerConfig { key: identity(1).public_key(), address: OverlayAddress::default(), endpoint: address };
    let id = pair.ends[1].endpoint.add_peer(again);
    assert_ne!(id, removed);
    // The old id is nobody's, the new one's least of all.
    pair.ends[1].endpoint.remove_peer(pair.now, removed);
    pair.run(10 * SECOND);
    assert!(pair.ends[1].endpoint.is_up(id));
}

/// W3.37: a peer with a new static key is known again when it has called, and not before; then it can be called, too.
#[test]
fn a_peer_with_another_static_key_is_known_by_its_identity() {
    let mut pair = Pair::new();
    let peer = pair.ends[1].peer;
    // The same identity; before its process began, ours knew the key that it had.
    let mut rotated = config(1, 21);
    rotated.identity = Identity::from_secrets([1; 32], [77; 32]).unwrap();
    let (own, old) = (rotated.identity.public_key(), identity(1).public_key());
    assert!(own.identity == old.identity && own.static_key != old.static_key);
    let mut endpoint = Endpoint::new(rotated, [7; 32]);
    let known =
        PeerConfig { key: identity(2).public_key(), address: OverlayAddress::default(), endpoint: Some(address(2)) };
    pair.ends[0].peer = endpoint.add_peer(known);
    pair.ends[0].endpoint = endpoint;
    pair.ends[1].endpoint.connect(pair.now, peer, 7).unwrap();
    pair.run(2 * SECOND);
    assert!(pair.ends[0].sent.is_empty() && !pair.ends[1].endpoint.is_up(peer), "it gets no answer");
    let back = pair.ends[0].peer;
    pair.ends[0].endpoint.open_tunnel(pair.now, back);
    pair.run(2 * SECOND);
    assert!(pair.ends[0].endpoint.is_up(back) && pair.ends[1].endpoint.is_up(peer));
    let told = |pair: &mut Pair, is_up: bool| {
        let wanted = |event: &Event| match event {
            Event::TunnelUp { .. } => is_up,
            Event::TunnelDown { .. } => !is_up,
            _ => false,
        };
        pair.ends[1].take(wanted).is_some()
    };
    assert!(told(&mut pair, true));
    // By the key that was learned.
    for end in [0, 1] {
        while told(&mut pair, true) {}
        let (of_end, now) = (pair.ends[end].peer, pair.now);
        pair.ends[end].endpoint.close_tunnel(now, of_end, Code::NoError);
        pair.run(SECOND);
        assert!(told(&mut pair, false), "closed by end {end}");
        pair.ends[1].endpoint.open_tunnel(pair.now, peer);
        pair.run(2 * SECOND);
        assert!(told(&mut pair, true) && pair.ends[1].endpoint.is_up(peer), "called after end {end} had closed it");
    }
}

/// One that the node is calling is called no more.
#[test]
fn a_removed_peer_is_not_called() {
    let mut pair = Pair::new();
    let peer = pair.ends[0].peer;
    pair.fate = Box::new(|_| vec![]);
    let connection = pair.ends[0].endpoint.connect(pair.now, peer, 7).unwrap();
    pair.run(SECOND);
    pair.ends[0].endpoint.remove_peer(pair.now, peer);
    let sent = pair.ends[0].sent.len();
    pair.run(10 * SECOND);
    assert_eq!(pair.ends[0].sent.len(), sent);
    let over = Event::Closed { connection, reason: CloseReason::ClosedHere(Code::NoError) };
    assert!(pair.ends[0].take(|event| *event == over).is_some());
}
