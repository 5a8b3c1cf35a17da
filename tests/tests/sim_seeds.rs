//! Everything at once, by seed: conditions that change, partitions, restarts, plans of any shape. A run that fails prints
//! its seed; `PILOT_SIM_SEEDS=from..to` runs those seeds instead of the usual ones.

use std::ops::Range;
use std::time::Duration;

use pilot_engine::BulkUse;
use pilot_tests::link::{Attachment, SimLink};
use pilot_tests::netem::{Bottleneck, Conditions, PerMille};
use pilot_tests::oracle::Plan;
use pilot_tests::random::Random;
use pilot_tests::world::{Bulk, World};
use pilot_tests::xdp::XdpPort;

/// Enough to meet most pairs of faults, and few enough for every run of the tests.
const USUAL_SEEDS: Range<u64> = 0..200;

/// Most changes of conditions in one run.
const CHANGES_MAX: u64 = 6;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("PILOT_SIM_SEEDS") else { return USUAL_SEEDS };
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.expect("PILOT_SIM_SEEDS must be FROM..TO, for example 0..1000")
}

fn plan(seed: u64, random: &mut Random) -> Plan {
    Plan {
        seed,
        streams: random.below(5),
        stream_bytes: random.of_any_size(18),
        messages: random.of_any_size(11),
        nap: Duration::from_micros(random.below(2) * random.below(20_000)),
    }
}

fn conditions(random: &mut Random) -> Conditions {
    // Each fault is there in some runs and absent in others, so that each is seen alone too.
    let sometimes = |random: &mut Random, most: u64| random.below(2) * random.below(most);
    let mut per_mille = |most| PerMille(sometimes(random, most) as u16);
    let (loss, duplicate, reorder) = (per_mille(300), per_mille(200), per_mille(300));
    let (corrupt, truncate) = (per_mille(100), per_mille(100));
    let bottleneck = Bottleneck {
        bits_per_second: 1_000_000 << random.below(10),
        queue: Duration::from_micros(100 + random.below(50_000)),
        mark_after: None,
    };
    Conditions {
        delay: Duration::from_micros(10 << random.below(13)),
        jitter: Duration::from_micros(sometimes(random, 2000)),
        behind: Duration::from_micros(1 + random.below(5000)),
        loss,
        duplicate,
        reorder,
        corrupt,
        truncate,
        bottleneck: (random.below(3) == 0).then_some(bottleneck),
    }
}

fn bulk(random: &mut Random) -> Bulk {
    let usage = [BulkUse::Never, BulkUse::Auto, BulkUse::Always][random.below(3) as usize];
    Bulk { port: random.below(3) > 0, usage }
}

/// `paths`: the link has second ports, and the host that opens the connection may move. (The other is where its peer is
/// configured to find it.)
fn everything<A: Attachment>(paths: bool) {
    for seed in seeds() {
        let mut random = Random::new(seed).fork();
        let mut moves = Random::new(!seed).fork();
        let ports = if paths { [0; 2].map(|_| bulk(&mut moves)) } else { [Bulk::default(); 2] };
        let mut world = World::<A>::with_bulk(seed, plan(seed, &mut random), ports);
        for _ in 0..random.below(CHANGES_MAX + 1) {
            match random.below(8) {
                0 => world.set_conditions(Conditions::PARTITIONED),
                1 => world.restart(random.below(2) as usize),
                _ => world.set_conditions(conditions(&mut random)),
            }
            match if paths { moves.below(6) } else { u64::MAX } {
                0 => world.set_bulk_conditions(Conditions::PARTITIONED),
                1 => world.set_bulk_conditions(conditions(&mut moves)),
                2 => world.rebind(0, [192, 0, 2, moves.below(3) as u8].into(), moves.below(3) as u16),
                _ => {}
            }
            world.run(Duration::from_micros(random.of_any_size(24)));
        }
        world.finish();
    }
}

#[test]
fn everything_in_memory() {
    everything::<SimLink>(true);
}

#[test]
fn everything_over_af_xdp() {
    everything::<XdpPort>(false);
}

/// A seed is all there is to a run.
#[test]
fn a_run_can_be_repeated() {
    for seed in seeds().take(5) {
        let runs: [_; 2] = std::array::from_fn(|_| {
            let mut random = Random::new(seed).fork();
            let mut world = World::<XdpPort>::new(seed, plan(seed, &mut random));
            world.set_conditions(conditions(&mut random));
            world.run(Duration::from_secs(2));
            [0, 1].map(|host| (world.netem(host), world.hosts[host].endpoint.stats().opened))
        });
        assert_eq!(runs[0], runs[1]);
    }
}
