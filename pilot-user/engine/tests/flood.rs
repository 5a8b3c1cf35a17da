//! What a forged handshake costs under load. A binary of its own: its allocations are counted.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::identity::Identity;
use pilot_engine::{Config, DropReason, Ecn, Endpoint, Instant, Received, fuzzing};

const FORGED: u32 = 1_000_000;
/// Different ones; made before, because making one costs as much as refusing it.
const KINDS: u32 = 4096;
/// What a worker receives in a pass.
const BATCH: u32 = 64;

/// wire.md W3.20: a million forged initiations with the right mac1, from a million sources, allocate nothing; half of them carry
/// a mac2 that no cookie made.
#[test]
fn a_million_forged_initiations_allocate_nothing() {
    let identity = Identity::from_secrets([2; 32], [102; 32]).expect("any 32 bytes are a secret");
    let static_key = identity.public_key().static_key;
    let mut config = Config::new(identity, Default::default(), [2; 16], Duration::from_secs(1 << 30));
    config.handshakes_per_second = 0;
    let mut endpoint = Endpoint::new(config, [2; 32]);
    let forged: Vec<[u8; 1200]> = (0..KINDS)
        .map(|n| {
            let mut datagram = [0x5a; 1200];
            datagram[..9].copy_from_slice(&[0x24, 0, 0, 0, 0, 0, 0, 0, 1]);
            datagram[9..13].copy_from_slice(&n.to_be_bytes());
            fuzzing::write_mac1(&static_key, &mut datagram);
            datagram[1184..].fill(n as u8 % 2);
            datagram
        })
        .collect();
    let destination = SocketAddr::from(([10, 0, 0, 2], 4242));
    let (mut replies, mut buffer) = (0, [0; 1472]);
    let allocations = allocation_counter::measure(|| {
        for n in 0..FORGED {
            let now = Instant::from_nanos(1 + u64::from(n) * 1000);
            let source = SocketAddr::from((n.to_be_bytes(), 4242));
            let datagram = &forged[(n % KINDS) as usize];
            let received = endpoint.handle_datagram(now, source, destination, Ecn::NotEct, datagram);
            assert_eq!(received, Received::Dropped(DropReason::NoCookie));
            if n % BATCH == BATCH - 1 {
                while let Some(transmit) = endpoint.poll_transmit(now, &mut buffer) {
                    assert!(transmit.len == 65 && transmit.destination.port() == 4242);
                    replies += 1;
                }
                assert_eq!(endpoint.poll_timeout(), None);
            }
        }
    });
    assert_eq!(allocations.count_total, 0);
    assert_eq!(replies, FORGED);
    assert_eq!(endpoint.stats().dropped(DropReason::NoCookie), u64::from(FORGED));
}
