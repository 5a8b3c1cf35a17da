//! Tunnels at rest.

use super::*;

/// Both ends, after they were left alone until `now`.
fn left_alone(pair: &mut Pair, now: Instant) {
    for _ in 0..4 {
        for end in &mut pair.ends {
            end.poll_timeout();
            end.handle_timeout(now);
        }
        pair.exchange_at(now);
    }
}

fn is_at_rest(end: &mut Endpoint, now: Instant) -> bool {
    end.poll_timeout();
    end.handle_timeout(now);
    end.tunnels[0].is_at_rest_for_test()
}

/// Keys go to rest with their tunnel, and what does not open under them wakes nothing for good.
#[test]
fn a_tunnel_at_rest_stays_there_under_forged_packets() {
    let (mut pair, [ours, theirs]) = Pair::connected();
    pair.ends[0].close(NOW, ours, 0, "");
    pair.ends[1].close(NOW, theirs, 0, "");
    pair.exchange();
    let now = NOW + MAX_ACK_DELAY;
    left_alone(&mut pair, now);
    assert!(!is_at_rest(&mut pair.ends[1], now), "in use until just now");
    let now = now + REST_AFTER;
    left_alone(&mut pair, now);
    assert!(is_at_rest(&mut pair.ends[0], now) && is_at_rest(&mut pair.ends[1], now));

    let genuine = pair.ends[0].tunnels[0].seal_any(&[0x01]).unwrap();
    for epoch in 0..4 {
        let mut forged = genuine.clone();
        forged[0] = forged[0] & !0b11 | epoch;
        *forged.last_mut().unwrap() ^= 1;
        let received = pair.ends[1].handle_datagram(now, address(0), address(1), Ecn::NotEct, &forged);
        assert_eq!(received, Received::Dropped(DropReason::Authentication));
        assert!(is_at_rest(&mut pair.ends[1], now), "epoch {epoch}");
    }

    let received = pair.ends[1].handle_datagram(now, address(0), address(1), Ecn::NotEct, &genuine);
    assert_eq!(received, Received::Data);
    assert!(!is_at_rest(&mut pair.ends[1], now), "in use again");
    let now = now + MAX_ACK_DELAY;
    left_alone(&mut pair, now);
    let now = now + REST_AFTER;
    left_alone(&mut pair, now);
    assert!(is_at_rest(&mut pair.ends[0], now) && is_at_rest(&mut pair.ends[1], now));
}
