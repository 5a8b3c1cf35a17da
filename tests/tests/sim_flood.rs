//! A flood of forged handshakes, to a host whose computing takes time: its tunnels go on (wire.md W3.20).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pilot_engine::limits::HANDSHAKES_PER_SECOND;
use pilot_engine::{DropReason, fuzzing};
use pilot_tests::link::SimLink;
use pilot_tests::netem::Conditions;
use pilot_tests::plan::Plan;
use pilot_tests::world::{Cost, HostSetup, Setup, World};

/// Initiations in all, evenly over [`FLOOD_TIME`]: as many a second as a core sends over veth (`tests/nodes/flood.rs`).
const FORGED: u32 = 1_000_000;
const FLOOD_TIME: Duration = Duration::from_secs(10);
/// How often some of them arrive.
const TICK: Duration = Duration::from_micros(500);
/// Different ones; made before, because making one costs as much as refusing it.
const KINDS: u32 = 512;

/// What a core of a server computes.
const COST: Cost = Cost {
    // A whole handshake takes 530 µs of both ends' processors (snow 0.10, IKpsk2 with ML-KEM-512): two messages, each written once and
    // read once.
    handshake: Duration::from_micros(530 / 4),
    // A packet of 1400 bytes through a ring of AF_XDP in copy mode: 0.5 million a second.
    packet: Duration::from_micros(2),
    // mac1 and mac2 over 1200 bytes, and a cookie sealed: `engine/tests/flood.rs` refuses a million in 6.9 s, not optimized.
    drop: Duration::from_micros(7),
};

const BITS_PER_SECOND: u64 = 40_000_000;

fn world(seed: u64) -> World<SimLink> {
    // More than the time can carry.
    let plan = Plan { seed, streams: 1, stream_bytes: 1 << 30, messages: 0, nap: Duration::ZERO };
    let mut world = World::of(Setup {
        hosts: vec![HostSetup { cost: COST, ..HostSetup::default() }; 2],
        ..Setup::pair(seed, plan)
    });
    world.set_conditions(Conditions::slow(BITS_PER_SECOND));
    world.run(Duration::from_secs(1));
    world
}

/// Bytes that applications read while the time of a flood passes; `forge` is called at each tick.
fn goodput(world: &mut World<SimLink>, mut forge: impl FnMut(&mut World<SimLink>)) -> u64 {
    let read = |world: &World<SimLink>| world.hosts.iter().map(|host| host.oracle.bytes_read()).sum::<u64>();
    let before = read(world);
    for _ in 0..(FLOOD_TIME.as_nanos() / TICK.as_nanos()) as u32 {
        forge(world);
        world.run(TICK);
    }
    read(world) - before
}

/// wire.md W3.20: a million initiations with the right mac1, each from another address, which nobody has to have: those that
/// a worker reads before it is under load are all that cost Diffie-Hellmans, and tunnels keep nine tenths of their goodput.
#[test]
fn tunnels_keep_their_goodput_under_a_million_forged_initiations() {
    let seed = 1;
    println!("seed {seed}");
    let calm = goodput(&mut world(seed), |_| {});
    let mut world = world(seed);
    let static_key = world.hosts[1].public_key().static_key;
    let kinds = (0..KINDS).map(|n| {
        let mut datagram = [0x5a; 1200];
        datagram[..9].copy_from_slice(&[0x24, 0, 0, 0, 0, 0, 0, 0, 1]);
        datagram[9..13].copy_from_slice(&n.to_be_bytes());
        fuzzing::write_mac1(&static_key, &mut datagram);
        datagram
    });
    let kinds: Vec<[u8; 1200]> = kinds.collect();
    let at_once = (u128::from(FORGED) * TICK.as_nanos() / FLOOD_TIME.as_nanos()) as u32;
    let mut forged = 0;
    let flooded = goodput(&mut world, |world| {
        for _ in 0..at_once {
            forged += 1;
            let source = SocketAddr::from((Ipv4Addr::from_bits(0x0a80_0000 + forged), 4242));
            world.forge(source, 1, kinds[(forged % KINDS) as usize].to_vec());
        }
    });
    let host = &world.hosts[1];
    let dropped = |reason| host.endpoint.stats().dropped(reason);
    let (read, cookies) = (dropped(DropReason::HandshakeDecrypt), dropped(DropReason::NoCookie));
    println!(
        "{} % of {} Mbit/s with {forged} forged in {FLOOD_TIME:?}: {read} read, {cookies} answered by a cookie at most, {} without room",
        flooded * 100 / calm,
        calm * 8 / FLOOD_TIME.as_secs() / 1_000_000,
        host.refused(),
    );
    assert_eq!(forged, FORGED);
    assert!(calm * 8 > BITS_PER_SECOND * FLOOD_TIME.as_secs() * 8 / 10, "{calm} bytes: the path is not filled");
    assert!(flooded * 10 >= calm * 9, "{flooded} bytes of {calm}");
    // And what the rate allows while the first are read.
    assert!(read * 10 <= u64::from(HANDSHAKES_PER_SECOND) * 11, "{read} were read");
    assert!(host.endpoint.is_up(host.peer()));
}
