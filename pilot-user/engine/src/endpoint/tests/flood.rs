//! How much is computed for initiations that nobody makes in good faith.

use super::*;
use crate::crypto::mac::Mac1Key;
use crate::crypto::primitives::count::DIFFIE_HELLMANS;

const FORGED: u32 = 1_000_000;

fn diffie_hellmans(run: impl FnOnce()) -> u64 {
    let before = DIFFIE_HELLMANS.get();
    run();
    DIFFIE_HELLMANS.get() - before
}

fn source(n: u32) -> SocketAddr {
    SocketAddr::from((n.to_be_bytes(), 4242))
}

/// wire.md W3.2, W3.20: none under load, and none at any time without the right mac1; each that is read costs one at least.
#[test]
fn a_million_forged_initiations_cost_no_diffie_hellman() {
    let (mut pair, _) = Pair::connected();
    let own = identity(2).public_key();
    let mut datagram = [0x5a; 1200];
    datagram[..9].copy_from_slice(&[0x24, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut deliver = |n: u32, datagram: &[u8]| {
        pair.ends[1].handle_datagram(NOW, source(n), address(1), Ecn::NotEct, datagram);
    };
    let wrong = diffie_hellmans(|| (0..1000).for_each(|n| deliver(n, &datagram)));
    assert_eq!(wrong, 0);
    Mac1Key::to(&own.static_key).write(&mut datagram);
    // One initiation made the tunnel.
    let before = u64::from(HANDSHAKES_PER_SECOND) - 1;
    assert_eq!(diffie_hellmans(|| (0..HANDSHAKES_PER_SECOND).for_each(|n| deliver(n, &datagram))), before);
    assert_eq!(diffie_hellmans(|| (0..FORGED).for_each(|n| deliver(n, &datagram))), 0);
}
