//! The links and the control thread: over rings in memory, over loopback, and as root over veth pairs in namespaces.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a failure here is a failed test")]

mod bulk;
mod control;
mod group;
mod handoff;
mod netlink;
mod netns;
mod pair;
mod program;
mod udp;
mod xdp;

use std::net::SocketAddr;

use pilot_common::wire::{Header, PacketType};
use pilot_user::link::{Ecn, Envelope, Link, Received, Slot, Trust, Via};

/// A received datagram, kept.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Kept {
    source: SocketAddr,
    destination: SocketAddr,
    ecn: Ecn,
    via: Via,
    payload: Vec<u8>,
}

/// Keeps every datagram, and answers with `trust`.
fn keep(into: &mut Vec<Kept>, trust: Trust) -> impl FnMut(Received<'_>) -> Trust {
    move |received| {
        let Received { source, destination, ecn, via, payload } = received;
        into.push(Kept { source, destination, ecn, via, payload: payload.to_vec() });
        trust
    }
}

/// A data packet of wire version 1, as far as links look at it, of `len` bytes with a number in it.
/// The session that all datagrams are for.
const SESSION: u32 = 1;

fn data(number: u32, len: usize) -> Vec<u8> {
    let header = Header { packet_type: PacketType::Data, epoch: 0, receiver: SESSION, word: number };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(len, number as u8);
    bytes
}

/// Commits a datagram, or says that there was no room.
fn send(link: &mut impl Link, destination: SocketAddr, payload: &[u8]) -> bool {
    let Some(mut slot) = link.slot() else { return false };
    slot.payload()[..payload.len()].copy_from_slice(payload);
    slot.commit(&Envelope { destination, source: None, ecn: Ecn::NotEct, len: payload.len() });
    true
}

/// Receives until there are `count` datagrams. Gives up, and fails the test, when nothing arrives for a long time.
fn receive(link: &mut impl Link, count: usize) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut idle = 0;
    while kept.len() < count {
        if link.recv(64, keep(&mut kept, Trust::Authentic)).unwrap() == 0 {
            idle += 1;
            assert!(idle < 100, "{} of {count} datagrams arrived", kept.len());
            link.wait(Some(std::time::Duration::from_millis(100))).unwrap();
        }
    }
    kept
}
