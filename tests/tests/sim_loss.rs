//! Loss: everything arrives once, in order, whole, over the link in memory and over AF_XDP's loop.

use std::time::Duration;

use pilot_tests::link::{Attachment, SimLink};
use pilot_tests::netem::{Conditions, PerMille};
use pilot_tests::plan::Plan;
use pilot_tests::world::World;
use pilot_tests::xdp::XdpPort;

const SEEDS: std::ops::Range<u64> = 0..4;

/// A bulk stream and 10,000 messages each way, at a loss of so many packets in a hundred each way.
fn everything_arrives<A: Attachment>(loss_percent: u16) {
    for seed in SEEDS {
        let plan = Plan { seed, streams: 1, stream_bytes: 2 << 20, messages: 10_000, nap: Duration::ZERO };
        let mut world = World::<A>::new(seed, plan);
        world.set_conditions(Conditions { loss: PerMille::percent(loss_percent), ..Conditions::GOOD });
        assert!(world.run_until(Duration::from_secs(600), World::is_done), "not finished");
        for (index, host) in world.hosts.iter().enumerate() {
            let netem = world.netem(index);
            assert!(netem.lost * 100 > netem.sent * u64::from(loss_percent) / 2, "there was loss: {netem:?}");
            assert_eq!(host.oracle.closed(), []);
            assert!(host.oracle.tunnels()[1..].iter().all(|resumed| *resumed), "one tunnel carried it all");
        }
        world.finish();
    }
}

#[test]
fn five_percent_in_memory() {
    everything_arrives::<SimLink>(5);
}

#[test]
fn five_percent_over_af_xdp() {
    everything_arrives::<XdpPort>(5);
}

#[test]
fn twenty_percent_in_memory() {
    everything_arrives::<SimLink>(20);
}

#[test]
fn twenty_percent_over_af_xdp() {
    everything_arrives::<XdpPort>(20);
}
