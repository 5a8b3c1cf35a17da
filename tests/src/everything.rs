//! Everything at once, by seed: hosts of all kinds, conditions that change, partitions, moves, restarts, plans of any shape.

use std::time::Duration;

use pilot_engine::{BulkUse, ControllerKind};

use crate::fired::Fired;
use crate::link::{Attachment, HEADERS, SimLink};
use crate::netem::{Bottleneck, Bursts, Conditions, OnEcn, PerMille};
use crate::plan::Plan;
use crate::random::Random;
use crate::world::{Bulk, Clock, Cost, HostSetup, Rekey, Setup, World};
use crate::xdp::XdpPort;

/// Most hosts of one run.
const HOSTS_MAX: u64 = 5;

/// Most changes of conditions in one run.
const CHANGES_MAX: u64 = 6;

/// One in so many seeds runs over AF_XDP's link, which has no second port.
const OVER_XDP: u64 = 4;

/// Runs a seed to its end.
///
/// # Panics
/// When an oracle finds something.
pub fn run(seed: u64) -> Fired {
    if seed.is_multiple_of(OVER_XDP) { run_over::<XdpPort>(seed, false) } else { run_over::<SimLink>(seed, true) }
}

fn run_over<A: Attachment>(seed: u64, has_bulk: bool) -> Fired {
    let mut random = Random::new(seed).fork();
    let setup = setup(seed, has_bulk, &mut random);
    let connections = setup.connections.clone();
    let mut world = World::<A>::of(setup);
    let mut fired = Fired::default();
    FAULTS.into_iter().for_each(|fault| fired.count(fault, 0));
    for _ in 0..random.below(CHANGES_MAX + 1) {
        change(&mut world, has_bulk, &mut random, &mut fired);
        if has_bulk {
            introduce(&mut world, &connections, &mut random);
        }
        world.run(Duration::from_micros(random.of_any_size(26)));
    }
    world.relay(None);
    // Where others are configured to find them. Who only opens connections may stay where it is.
    connections.iter().for_each(|(_, to)| world.rebind_home(*to));
    world.settle();
    for host in &world.hosts {
        fired.add(&Fired::of_paths(&host.netem()));
        fired.add(&Fired::of_process(host));
    }
    world.end();
    fired
}

/// Faults of whole hosts and paths. Those of packets are counted by the paths.
const FAULTS: [&str; 7] = [
    "partition of all",
    "partition of a pair",
    "process restart",
    "bulk path dead",
    "NAT rebinding",
    "relay from elsewhere",
    "other conditions",
];

/// One fault.
fn change<A: Attachment>(world: &mut World<A>, has_bulk: bool, random: &mut Random, fired: &mut Fired) {
    let [one, other] = [(); 2].map(|()| random.below(world.hosts.len() as u64) as usize);
    let fault = match random.below(13) {
        0 => {
            world.set_conditions(Conditions::PARTITIONED);
            0
        }
        1 | 2 => {
            world.set_conditions_between(one, other, Conditions::PARTITIONED);
            world.set_conditions_between(other, one, Conditions::PARTITIONED);
            1
        }
        3 => {
            // What it counted would be forgotten with it.
            fired.add(&Fired::of_process(&world.hosts[one]));
            world.restart(one);
            2
        }
        4 if has_bulk => {
            world.set_bulk_conditions(Conditions::PARTITIONED);
            3
        }
        5 | 6 if has_bulk => {
            world.rebind(one, [192, 0, 2, 8 * one as u8 + random.below(3) as u8].into(), random.below(3) as u16);
            4
        }
        7 if has_bulk => {
            world.relay(Some((one, ([203, 0, 113, 1], 53).into())));
            5
        }
        8 | 9 => {
            world.set_conditions_between(one, other, conditions(random));
            6
        }
        _ => {
            world.set_conditions(conditions(random));
            6
        }
    };
    fired.count(FAULTS[fault], 1);
}

/// Sometimes a host that opens a connection to another asks there who that is, and sometimes whether it is somebody else.
fn introduce<A: Attachment>(world: &mut World<A>, connections: &[(usize, usize)], random: &mut Random) {
    let (from, whom) = connections[random.below(connections.len() as u64) as usize];
    match random.below(8) {
        0 => world.introduce(from, whom, None),
        1 => world.introduce(from, whom, Some(whom)),
        2 => world.introduce(from, whom, Some(random.below(world.hosts.len() as u64) as usize)),
        _ => {}
    }
}

fn setup(seed: u64, has_bulk: bool, random: &mut Random) -> Setup {
    let hosts: Vec<HostSetup> = (0..2 + random.below(2) * random.below(HOSTS_MAX - 1))
        .map(|_| HostSetup {
            bulk: if has_bulk { bulk(random) } else { Bulk::default() },
            clock: clock(random),
            cost: cost(random),
            controller: [ControllerKind::DelayTarget, ControllerKind::Cubic][random.below(2) as usize],
            rekey: rekey(random),
            // Over AF_XDP, whose link cannot answer a stranger, that is the other socket's affair.
            asks_for_cookies: has_bulk && random.below(4) == 0,
            introductions: has_bulk && random.below(2) == 0,
        })
        .collect();
    let all = (0..hosts.len()).flat_map(|from| (0..hosts.len()).map(move |to| (from, to)));
    // Over AF_XDP a host knows from the beginning only where those are that come later.
    let may = |(from, to): &(usize, usize)| from < to || from > to && has_bulk;
    let others: Vec<_> = all.filter(|pair| may(pair) && *pair != (0, 1)).collect();
    let more = others.into_iter().filter(|_| random.below(3) == 0);
    let connections: Vec<_> = [(0, 1)].into_iter().chain(more).collect();
    // As much in all, however many connections there are.
    let share = connections.len().ilog2();
    let large = 3 * u64::from(random.below(8) == 0);
    let plan = Plan {
        seed,
        streams: random.below(5),
        stream_bytes: random.of_any_size(18 + large) >> share,
        messages: random.of_any_size(11 + large) >> share,
        nap: Duration::from_micros(random.below(2) * random.below(20_000)),
    };
    Setup { seed, plan, hosts, connections }
}

/// Each fault is there in some runs and absent in others, so that each is seen alone too.
fn sometimes(random: &mut Random, most: u64) -> u64 {
    random.below(2) * random.below(most)
}

fn bulk(random: &mut Random) -> Bulk {
    let usage = [BulkUse::Never, BulkUse::Auto, BulkUse::Always][random.below(3) as usize];
    Bulk { port: random.below(3) > 0, usage }
}

/// Up to a percent fast or slow, and a day off.
fn clock(random: &mut Random) -> Clock {
    let either =
        |random: &mut Random, most: u64| sometimes(random, 2 * most) as i32 - most as i32 * random.below(2) as i32;
    Clock { faster_ppm: either(random, 10_000), ahead_s: either(random, 86_400) }
}

/// Half of the hosts as usual, which is more than most runs last; the others all the time, but at rest not so often that keys
/// are most of what is sent then.
fn rekey(random: &mut Random) -> Rekey {
    let often = random.below(2) == 0;
    let after = often.then(|| Duration::from_millis(100 << random.below(8)));
    let after_packets = often.then(|| 1 << (6 + random.below(9)));
    Rekey { after, after_packets }
}

/// Half of the hosts take no time; of the others, some are slower than their links.
fn cost(random: &mut Random) -> Cost {
    if random.below(2) == 0 {
        return Cost::default();
    }
    let slow = 1u64 << random.below(5);
    let times = |nanos| Duration::from_nanos(nanos * slow);
    Cost { handshake: times(250_000), packet: times(400), drop: times(100) }
}

fn conditions(random: &mut Random) -> Conditions {
    let mut per_mille = |most| PerMille(sometimes(random, most) as u16);
    let (loss, duplicate, reorder) = (per_mille(300), per_mille(200), per_mille(300));
    let (corrupt, truncate) = (per_mille(100), per_mille(100));
    let bottleneck = Bottleneck {
        bits_per_second: 1_000_000 << random.below(10),
        queue: Duration::from_micros(100 + random.below(50_000)),
        mark_after: (random.below(2) == 0).then(|| Duration::from_micros(random.below(10_000))),
    };
    // Ill at most three tenths of the time.
    let end = 20 + random.below(200);
    let begin = 1 + random.below(end * 3 / 7);
    let bursts = Bursts { begin: PerMille(begin as u16), end: PerMille(end as u16), loss: PerMille(1000) };
    Conditions {
        delay: Duration::from_micros(10 << random.below(13)),
        jitter: Duration::from_micros(sometimes(random, 2000)),
        behind: Duration::from_micros(1 + random.below(5000)),
        loss,
        bursts: (loss == PerMille(0) && random.below(3) == 0).then_some(bursts),
        duplicate,
        reorder,
        corrupt,
        truncate,
        bottleneck: (random.below(3) == 0).then_some(bottleneck),
        largest: if random.below(4) == 0 { 1200 + HEADERS + random.below(300) as usize } else { usize::MAX },
        ecn: [OnEcn::Keeps, OnEcn::Keeps, OnEcn::Erases, OnEcn::Drops][random.below(4) as usize],
    }
}
