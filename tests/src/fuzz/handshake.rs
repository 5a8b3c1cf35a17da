//! Hostile bytes at two nodes that shake hands, for a tunnel or to learn each other's keys: afterwards they still can.

use std::time::Duration;

use arbitrary::Arbitrary;
use pilot_common::wire::{HEADER_LEN, VERSION};
use pilot_engine::{DropReason, Event, Received, fuzzing};

use super::pair::{DATAGRAM_BYTES, Pair, address, public_key};

/// Bytes of a mac1 and a mac2, which end a handshake message.
const MACS_LEN: usize = 32;

/// Datagrams kept to be sent again, damaged or not.
const RECORDED_MAX: usize = 32;

/// Those messages of an introduction that are longer carry a KEM's key or ciphertext, and have the mac1 that is for nobody
/// known (wire.md W3.30).
const FOR_NOBODY_LEN: usize = 600;

/// What the nodes shake hands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Tunnel,
    Introduction,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    /// A node wants a tunnel, or to know who the other is.
    Open { end: bool },
    /// What a node sends is recorded, and delivered or not.
    Transmit { end: bool, lost: bool },
    /// A recorded datagram again, to either end, with a few bytes changed and cut or padded.
    Again { to: bool, index: u8, at: [u16; 3], mask: [u8; 3], longer: i16, mac1: bool },
    /// A datagram of the given type, of nothing but the given bytes, over and over.
    Made { to: bool, kind: u8, receiver: Receiver, length: u16, bytes: [u8; 8], mac1: bool },
    /// Time passes, by powers of two.
    Wait { microseconds_log2: u8 },
}

#[derive(Arbitrary, Debug)]
enum Receiver {
    /// Any session id.
    Any(u32),
    /// The sender's id, or the receiver's, in a recorded datagram.
    Recorded { index: u8, word: bool },
}

/// The same twice: where initiations are read, and where the second node wants a cookie for each.
pub(super) fn run(input: &[u8]) {
    shake_hands(input, Pair::new(), Purpose::Tunnel);
    shake_hands(input, Pair::with_load([false, true]), Purpose::Tunnel);
}

/// Between nodes that tell who they are.
pub(super) fn introduce(input: &[u8]) {
    shake_hands(input, Pair::with_introductions(), Purpose::Introduction);
}

fn shake_hands(input: &[u8], mut pair: Pair, purpose: Purpose) {
    let mut recorded: Vec<Vec<u8>> = Vec::new();
    for operation in super::operations(input) {
        match operation {
            Operation::Open { end } => purpose.begin(&mut pair, end.into()),
            Operation::Transmit { end, lost } => {
                let end = usize::from(end);
                if let Some(datagram) = pair.transmit(end) {
                    if !lost {
                        pair.deliver(1 - end, &datagram);
                    }
                    if recorded.len() < RECORDED_MAX {
                        recorded.push(datagram);
                    }
                }
            }
            Operation::Again { to, index, at, mask, longer, mac1 } => {
                let Some(original) = pick(&recorded, index) else { continue };
                let mut datagram = original.clone();
                let length = datagram.len().saturating_add_signed(longer.into()).min(DATAGRAM_BYTES);
                datagram.resize(length, 0);
                for (at, mask) in at.into_iter().zip(mask) {
                    let length = datagram.len().max(1);
                    if let Some(byte) = datagram.get_mut(usize::from(at) % length) {
                        *byte ^= mask;
                    }
                }
                deliver(&mut pair, to.into(), datagram, mac1.then_some(purpose), original);
            }
            Operation::Made { to, kind, receiver, length, bytes, mac1 } => {
                let receiver = match receiver {
                    Receiver::Any(id) => id.to_be_bytes(),
                    Receiver::Recorded { index, word } => {
                        let at = if word { 5 } else { 1 };
                        let id = pick(&recorded, index).and_then(|datagram| datagram.get(at..at + 4));
                        id.and_then(|id| id.try_into().ok()).unwrap_or_default()
                    }
                };
                let mut datagram: Vec<u8> = bytes.into_iter().cycle().take(usize::from(length) % 1600).collect();
                if datagram.len() >= HEADER_LEN {
                    datagram[0] = VERSION << 5 | kind & 0x1f;
                    datagram[1..5].copy_from_slice(&receiver);
                }
                deliver(&mut pair, to.into(), datagram, mac1.then_some(purpose), &[]);
            }
            Operation::Wait { microseconds_log2 } => pair.pass(Duration::from_micros(1 << (microseconds_log2 % 26))),
        }
        for (end, node) in pair.ends.iter_mut().enumerate() {
            while let Some(event) = node.endpoint.poll_event() {
                is_introduced(end, &event);
            }
        }
    }
    // A tunnel that one end alone has left is over after its idle time-out.
    pair.settle(Duration::from_secs(300), |_, end, event| _ = is_introduced(end, &event));
    purpose.begin(&mut pair, 0);
    let mut introduced = [false; 2];
    pair.settle(Duration::from_secs(20), |_, end, event| introduced[end] |= is_introduced(end, &event));
    let can = match purpose {
        Purpose::Tunnel => pair.ends.iter().all(|end| end.endpoint.is_up(end.peer)),
        Purpose::Introduction => introduced == [true; 2],
    };
    assert!(can, "they can no longer shake hands");
}

impl Purpose {
    fn begin(self, pair: &mut Pair, end: usize) {
        let peer = pair.ends[end].peer;
        let endpoint = &mut pair.ends[end].endpoint;
        match self {
            Self::Tunnel => endpoint.open_tunnel(pair.now, peer),
            Self::Introduction => {
                // Node 1 knows whom it wants.
                let wanted = (end == 1).then(|| public_key(0).identity);
                let begun = endpoint.introduce(pair.now, address(1 - end), wanted);
                assert_eq!(begun, Ok(()), "there is but one at a time");
            }
        }
    }

    /// The static key that mac1 is made with.
    fn mac1_key(self, to: usize, length: usize) -> [u8; 32] {
        if self == Self::Introduction && length > FOR_NOBODY_LEN { [0; 32] } else { public_key(to).static_key }
    }
}

/// Whether an event says who the other node is, which it then says truly.
fn is_introduced(end: usize, event: &Event) -> bool {
    let Event::Introduced { key, .. } = event else { return false };
    assert_eq!(*key, public_key(1 - end), "node {end} was told of somebody who is not there");
    true
}

fn pick(recorded: &[Vec<u8>], index: u8) -> Option<&Vec<u8>> {
    recorded.get(usize::from(index) % recorded.len().max(1))
}

/// Whether all is the same that proves who sent it: mac2 proves no more than where it came from (wire.md W3.21).
fn same_but_mac2(datagram: &[u8], original: &[u8]) -> bool {
    let covered = original.len().saturating_sub(MACS_LEN / 2);
    datagram.len() == original.len() && datagram[..covered] == original[..covered]
}

/// A datagram that no node made must be dropped, or prove nothing (wire.md W3.2, W3.10, W4.4).
fn deliver(pair: &mut Pair, to: usize, mut datagram: Vec<u8>, mac1: Option<Purpose>, original: &[u8]) {
    if let Some(purpose) = mac1.filter(|_| datagram.len() >= MACS_LEN) {
        fuzzing::write_mac1(&purpose.mac1_key(to, datagram.len()), &mut datagram);
    }
    // Only now: where nothing but mac1 was changed, it is whole again.
    let genuine = same_but_mac2(&datagram, original);
    let received = pair.deliver(to, &datagram);
    let proves_nothing = matches!(received, Received::Dropped(_) | Received::Unproven);
    assert!(genuine || proves_nothing, "{received:?} of a forged datagram");
    if datagram.len() < HEADER_LEN {
        assert_eq!(received, Received::Dropped(DropReason::Short));
    }
}
