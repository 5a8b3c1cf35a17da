//! New keys under full load (wire.md W4.7): nothing is lost and nothing stands still.

use std::time::Duration;

use pilot_tests::link::SimLink;
use pilot_tests::netem::{Conditions, PerMille};
use pilot_tests::plan::Plan;
use pilot_tests::world::{HostSetup, Rekey, Setup, World};

const INTERVAL: Duration = Duration::from_millis(100);

const BITS_PER_SECOND: u64 = 40_000_000;

fn world(seed: u64, plan: Plan, rekey: Rekey) -> World<SimLink> {
    World::of(Setup { hosts: vec![HostSetup { rekey, ..HostSetup::default() }; 2], ..Setup::pair(seed, plan) })
}

fn rekeys(world: &World<SimLink>) -> [u64; 2] {
    [0, 1].map(|n| {
        let host = &world.hosts[n];
        host.endpoint.tunnel_stats(host.peer()).map_or(0, |stats| stats.rekeys)
    })
}

/// Every 100 ms for a minute under full load: no byte is lost, and nothing stands still for longer than a round trip and
/// the handshake.
#[test]
fn every_100_ms_for_a_minute_under_full_load() {
    let seed = 1;
    // More than a minute can carry.
    let plan = Plan { seed, streams: 1, stream_bytes: 1 << 28, messages: 0, nap: Duration::ZERO };
    let mut world = world(seed, plan, Rekey { after: Some(INTERVAL), after_packets: None });
    world.set_conditions(Conditions::slow(BITS_PER_SECOND));
    world.run(Duration::from_secs(1));
    let (began, mut last, mut progress) = (world.now(), world.now(), [0; 2]);
    let start = [0, 1].map(|n| world.hosts[n].oracle.bytes_read());
    let (mut longest, mut round_trip) = (Duration::ZERO, Duration::ZERO);
    while world.now().since(began) < Duration::from_secs(60) {
        world.run(Duration::from_micros(500));
        for host in &world.hosts {
            let stats = host.endpoint.tunnel_stats(host.peer()).expect("the tunnel is up");
            round_trip = round_trip.max(stats.smoothed_rtt);
        }
        let read = [0, 1].map(|n| world.hosts[n].oracle.bytes_read());
        if read[0] > progress[0] && read[1] > progress[1] {
            (progress, last) = (read, world.now());
        }
        longest = longest.max(world.now().since(last));
    }
    // A handshake is a round trip, as computing takes no time here.
    let handshake = round_trip;
    let allowed = round_trip + handshake;
    assert!(longest <= allowed, "stood still for {longest:?}, of {allowed:?} allowed");
    for (host, rekeys) in world.hosts.iter().zip(rekeys(&world)) {
        assert!((550..=600).contains(&rekeys), "{rekeys} in a minute");
        let stats = host.endpoint.tunnel_stats(host.peer()).expect("the tunnel is up");
        // Of the slower direction a probe may be sent now and then: its round trip grows with the other's queue.
        assert_eq!(stats.lost_packets, 0);
        assert_eq!((host.oracle.closed(), host.oracle.tunnels()), (&[][..], &[false][..]));
    }
    let full = BITS_PER_SECOND / 8 * 60 * 8 / 10;
    assert!((0..2).all(|n| progress[n] - start[n] > full), "full load is {full} and more: {progress:?}");
    println!("{longest:?} at most, of {allowed:?}; {:?} rekeys; {progress:?} bytes", rekeys(&world));
    // To the last byte.
    world.finish();
}

/// The same with all that a path can do, and with both ends asking for new keys: everything arrives.
#[test]
fn through_loss_reordering_and_duplication() {
    let mut total = 0;
    for seed in 0..20 {
        let plan = Plan { seed, streams: 3, stream_bytes: 300_000, messages: 1500, nap: Duration::ZERO };
        // On odd seeds handshakes of both ends cross.
        let after_packets = (seed % 2 == 1).then_some(100);
        let mut world = world(seed, plan, Rekey { after: Some(INTERVAL), after_packets });
        world.set_conditions(Conditions {
            delay: Duration::from_millis(5),
            loss: PerMille(50),
            duplicate: PerMille(50),
            reorder: PerMille(100),
            behind: Duration::from_millis(3),
            ..Conditions::GOOD
        });
        assert!(world.run_until(Duration::from_secs(600), World::is_done), "not finished");
        for host in &world.hosts {
            assert_eq!(host.oracle.closed(), []);
        }
        total += rekeys(&world)[0];
        world.finish();
    }
    assert!(total > 60, "{total} rekeys");
}
