//! Paths in the simulator: the bulk path under faults, hosts that move, and a relay (wire.md W4.5, W4.8, W6.4, W6.7 to
//! W6.10). Over the link in memory, which has a second port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pilot_engine::limits::{AMPLIFICATION_LIMIT, KEEP_ALIVE};
use pilot_engine::{BulkUse, TunnelStats};
use pilot_tests::link::SimLink;
use pilot_tests::netem::{Bottleneck, Conditions, PerMille};
use pilot_tests::plan::Plan;
use pilot_tests::world::{Bulk, World};

const SEEDS: std::ops::Range<u64> = 0..8;
const SECOND: Duration = Duration::from_secs(1);
const AUTO: Bulk = Bulk { port: true, usage: BulkUse::Auto };

/// A one-way delay at which transfers take long enough for switches to fall into them.
const FAR: Conditions = Conditions { delay: Duration::from_millis(1), ..Conditions::GOOD };

fn plan(seed: u64) -> Plan {
    Plan { seed, streams: 3, stream_bytes: 2_000_000, messages: 3000, nap: Duration::ZERO }
}

fn world(seed: u64, conditions: Conditions) -> World<SimLink> {
    let mut world = World::with_bulk(seed, plan(seed), [AUTO; 2]);
    world.set_conditions(conditions);
    world
}

fn stats(world: &World<SimLink>, host: usize) -> TunnelStats {
    let host = &world.hosts[host];
    host.endpoint.tunnel_stats(host.peer()).expect("the tunnel is up")
}

fn is_over_bulk(world: &World<SimLink>) -> bool {
    (0..2).any(|host| stats(world, host).sending_bulk)
}

/// Goes on to the end of the transfer, through which the connection was one.
fn done(world: &mut World<SimLink>) {
    assert!(world.run_until(600 * SECOND, World::is_done), "not finished");
    assert!(world.hosts.iter().all(|host| host.oracle.closed().is_empty()));
}

/// wire.md W6.9: in a clean world nothing is overtaken, lost or sent twice, though the paths are not equally fast.
#[test]
fn switching_reorders_nothing() {
    for (seed, (first, bulk)) in (0..).zip([(1000, 1000), (1000, 600), (1000, 100), (100, 1000)].repeat(3)) {
        let after = |micros| Conditions { delay: Duration::from_micros(micros), ..Conditions::GOOD };
        // A queue, in which packets of the first path can be overtaken for long.
        let bottleneck = Bottleneck { bits_per_second: 200_000_000, queue: SECOND, mark_after: None };
        let mut world = world(seed, Conditions { bottleneck: Some(bottleneck), ..after(first) });
        world.set_bulk_conditions(after(bulk));
        done(&mut world);
        world.run(SECOND);
        for host in 0..2 {
            let stats = stats(&world, host);
            assert_eq!(world.hosts[host].oracle.sending(), [true, false], "there and back");
            let disorder = (stats.lost_packets, stats.probe_timeouts, stats.peer_moves);
            assert_eq!(disorder, (0, 0, 0), "{first}, {bulk}: {host}");
        }
        world.finish();
    }
}

#[test]
fn switching_survives_loss_and_reordering() {
    let bad = Conditions { loss: PerMille(30), reorder: PerMille(100), behind: Duration::from_millis(3), ..FAR };
    let mut switched = 0;
    for seed in SEEDS {
        let mut world = world(seed, bad);
        done(&mut world);
        switched += (0..2).map(|host| stats(&world, host).path_switches).sum::<u64>();
        world.finish();
    }
    assert!(switched > 0, "the bulk path was used");
}

/// wire.md W6.10: in the middle of bulk that path becomes a black hole.
#[test]
fn a_black_hole_is_left() {
    for seed in SEEDS {
        let mut world = world(seed, FAR);
        assert!(world.run_until(60 * SECOND, |world| world.hosts.iter().all(|host| host.endpoint.is_up(host.peer()))));
        assert!(world.run_until(60 * SECOND, is_over_bulk), "bulk began");
        world.run(Duration::from_millis(seed));
        world.set_bulk_conditions(Conditions::PARTITIONED);
        done(&mut world);
        assert!(world.hosts.iter().any(|host| host.oracle.sending() == [true, false]));
        assert!(!is_over_bulk(&world));
        assert!(world.hosts.iter().all(|host| host.oracle.tunnels() == [false]), "not even a handshake was needed");
        world.finish();
    }
}

/// wire.md W4.5, W4.8, W6.4: either host gets another address or other ports in the middle, and again, also while it sends
/// bulk.
#[test]
fn a_host_that_moves_is_followed() {
    for seed in SEEDS {
        let plan = Plan { stream_bytes: 8_000_000, ..plan(seed) };
        let mut world = World::with_bulk(seed, plan, [AUTO; 2]);
        // Else the transfer would be over before the last move, as its rate doubles with each round trip.
        let queue = Duration::from_millis(20);
        let bottleneck = Bottleneck { bits_per_second: 1_000_000_000, queue, mark_after: None };
        world.set_conditions(Conditions { bottleneck: Some(bottleneck), ..FAR });
        let moved = seed as usize % 2;
        let places: [(IpAddr, u16); 3] =
            [([10, 0, 0, 1 + moved as u8].into(), 1000), ([192, 0, 2, 9].into(), 0), ([192, 0, 2, 10].into(), 7000)];
        for (n, (ip, ports_higher)) in places.into_iter().enumerate() {
            world.run(Duration::from_millis(25 + seed));
            assert!(!world.is_done(), "in the middle");
            world.rebind(moved, ip, ports_higher);
            // By what it sends next: that is a keep-alive, if it only waits.
            let noticed = |world: &World<SimLink>| stats(world, 1 - moved).peer_moves > n as u64;
            assert!(world.run_until(2 * KEEP_ALIVE, noticed), "host {moved} moved to {ip}");
        }
        done(&mut world);
        let follower = stats(&world, 1 - moved);
        assert_eq!((follower.peer_moves, follower.unproven_paths), (3, 0), "each was proven");
        assert!(world.hosts.iter().all(|host| host.oracle.tunnels()[1..].iter().all(|resumed| *resumed)));
        world.finish();
    }
}

/// wire.md W6.4: all that a host sends comes first from somewhere else. What goes there is bounded, and the transfer goes on.
#[test]
fn a_relay_is_no_amplifier() {
    for seed in SEEDS {
        let mut world = World::<SimLink>::new(seed, plan(seed));
        world.set_conditions(Conditions { delay: Duration::from_millis(5), ..Conditions::GOOD });
        let elsewhere: SocketAddr = ([203, 0, 113, 1], 53).into();
        world.run(Duration::from_millis(40 + seed));
        assert!(!world.is_done(), "in the middle");
        world.relay(Some((seed as usize % 2, elsewhere)));
        world.run(Duration::from_millis(100));
        let (sent, came) = world.relayed().expect("it is there");
        assert!(sent > 0 && came > 0 && came <= AMPLIFICATION_LIMIT * sent, "{came} bytes for {sent}");
        world.relay(None);
        done(&mut world);
        world.finish();
    }
}
