//! Faults other than loss: of the path, and of whole hosts. Each over the link in memory and over AF_XDP's loop.

use std::time::Duration;

use pilot_engine::{CloseReason, DropReason};
use pilot_tests::link::{Attachment, SimLink};
use pilot_tests::netem::{Bottleneck, Conditions, PerMille};
use pilot_tests::plan::Plan;
use pilot_tests::world::{Host, World};
use pilot_tests::xdp::XdpPort;

const SEEDS: std::ops::Range<u64> = 0..4;
const SECOND: Duration = Duration::from_secs(1);

/// A one-way delay at which transfers take long enough for faults to fall into them.
const SLOW: Conditions = Conditions { delay: Duration::from_millis(5), ..Conditions::GOOD };

fn plan(seed: u64) -> Plan {
    Plan { seed, streams: 3, stream_bytes: 300_000, messages: 1500, nap: Duration::ZERO }
}

fn dropped<A>(host: &Host<A>, reasons: &[DropReason]) -> u64 {
    reasons.iter().map(|reason| host.endpoint.stats().dropped(*reason)).sum()
}

/// All that was dropped by the engine.
fn all_dropped<A>(host: &Host<A>) -> u64 {
    dropped(host, &DropReason::ALL.map(|(reason, _)| reason))
}

/// Runs a transfer under some conditions to its end, then looks, then ends it.
fn under<A: Attachment>(conditions: Conditions, look: impl Fn(&World<A>)) {
    for seed in SEEDS {
        let mut world = World::<A>::new(seed, plan(seed));
        world.set_conditions(conditions);
        assert!(world.run_until(600 * SECOND, World::is_done), "not finished");
        for host in &world.hosts {
            assert_eq!(host.oracle.closed(), []);
        }
        look(&world);
        world.finish();
    }
}

/// Calls a function for either kind of link, in a test of its own each.
macro_rules! over_both_links {
    ($($name:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $name() { super::$name::<pilot_tests::link::SimLink>(); })*
        }
        mod over_af_xdp {
            $(#[test] fn $name() { super::$name::<pilot_tests::xdp::XdpPort>(); })*
        }
    };
}

over_both_links!(
    nothing_goes_wrong,
    duplicates_are_dropped,
    what_is_reordered_is_put_in_order,
    a_partition_of_ten_seconds_is_survived,
    a_restart_of_the_listener_is_noticed,
    a_restart_of_the_opener_is_noticed,
    a_reader_that_naps_is_waited_for,
    a_narrow_path_is_filled,
);

/// The measure of the others: a good path loses nothing, and so nothing is sent twice.
fn nothing_goes_wrong<A: Attachment>() {
    under::<A>(SLOW, |world| {
        for host in &world.hosts {
            let stats = host.endpoint.tunnel_stats(host.peer()).expect("the tunnel is up");
            assert_eq!((stats.lost_packets, stats.probe_timeouts, all_dropped(host)), (0, 0, 0));
        }
    });
}

/// wire.md W4.3.
fn duplicates_are_dropped<A: Attachment>() {
    let conditions = Conditions { duplicate: PerMille(300), behind: Duration::from_millis(1), ..SLOW };
    under::<A>(conditions, |world| {
        for (index, host) in world.hosts.iter().enumerate() {
            let duplicated = world.netem(1 - index).duplicated;
            assert!(duplicated > 50);
            // Data that came twice; of the handshake, either message may be among them, and what is still on its way.
            let replays = dropped(host, &[DropReason::Replay]);
            assert!(replays <= duplicated && replays + 4 >= duplicated, "{replays} of {duplicated}");
            assert_eq!(
                all_dropped(host) - replays,
                dropped(host, &[DropReason::StaleTimestamp, DropReason::NoAttempt, DropReason::UnknownSession])
            );
        }
    });
}

fn what_is_reordered_is_put_in_order<A: Attachment>() {
    let conditions = Conditions { reorder: PerMille(200), behind: Duration::from_millis(3), ..SLOW };
    under::<A>(conditions, |world| {
        for (index, host) in world.hosts.iter().enumerate() {
            assert!(world.netem(1 - index).reordered > 50);
            assert_eq!(all_dropped(host), 0, "late is not bad");
        }
    });
}

/// wire.md W1.4, W3.2, W4.4: any byte may be wrong, or any number of them missing; each such datagram is dropped under a
/// reason, and ends nothing.
#[test]
fn what_is_damaged_is_dropped_and_counted() {
    let damages = [
        Conditions { corrupt: PerMille(100), ..SLOW },
        Conditions { truncate: PerMille(100), ..SLOW },
        Conditions { corrupt: PerMille(100), truncate: PerMille(100), duplicate: PerMille(50), ..SLOW },
    ];
    for conditions in damages {
        under::<SimLink>(conditions, |world| {
            for (index, host) in world.hosts.iter().enumerate() {
                let netem = world.netem(1 - index);
                // A damaged session id is answered by a reset (wire.md W4.9), which is of no session.
                let resets = dropped(host, &[DropReason::Reset]);
                let (damaged, dropped) = (netem.corrupted + netem.truncated, all_dropped(host) - resets);
                assert!(resets <= world.hosts[1 - index].endpoint.stats().resets_sent + netem.duplicated);
                assert!(netem.corrupted + netem.truncated > 20);
                // Both may befall one packet, and a damaged one may still be on its way.
                let both = netem.corrupted.min(netem.truncated) + netem.duplicated;
                assert!(dropped + both + 2 >= damaged, "{dropped} dropped of {netem:?}");
                assert!(dropped <= damaged + 2 * netem.duplicated, "{dropped} dropped of {netem:?}");
            }
        });
    }
}

/// The same to IP packets with their headers: what is no longer for us does not reach the ring, and a wrong address round an
/// authentic datagram misleads only until the next.
#[test]
fn damaged_headers_mislead_nobody_for_long() {
    let conditions = Conditions { corrupt: PerMille(100), truncate: PerMille(50), ..SLOW };
    under::<XdpPort>(conditions, |world| {
        for (index, host) in world.hosts.iter().enumerate() {
            let netem = world.netem(1 - index);
            assert!(netem.corrupted + netem.truncated > 20);
            assert!(all_dropped(host) + host.refused() > 20);
        }
    });
}

/// wire.md W3.14: both processes are the same, so connections continue. Either data comes through first when the partition
/// ends, or the handshake of an end that suspected the other.
fn a_partition_of_ten_seconds_is_survived<A: Attachment>() {
    let mut resumed = 0;
    for seed in 0..40 {
        let mut world = World::<A>::new(seed, plan(seed));
        world.set_conditions(SLOW);
        world.run(Duration::from_millis(40));
        assert!(!world.is_done() && world.hosts.iter().all(|host| host.oracle.tunnels() == [false]), "in the middle");
        world.set_conditions(Conditions::PARTITIONED);
        world.run(10 * SECOND + seed as u32 * Duration::from_millis(263));
        assert!(!world.is_done());
        world.set_conditions(SLOW);
        assert!(world.run_until(60 * SECOND, World::is_done), "nothing came through again");
        for host in &world.hosts {
            assert_eq!(host.oracle.closed(), [], "the connection continued");
            let later = &host.oracle.tunnels()[1..];
            assert!(later.iter().all(|resumed| *resumed));
            resumed += later.len();
        }
        world.finish();
    }
    assert!(resumed > 0, "no handshake resumed anything");
}

fn a_restart_of_the_listener_is_noticed<A: Attachment>() {
    restarted::<A>(1);
}

fn a_restart_of_the_opener_is_noticed<A: Attachment>() {
    restarted::<A>(0);
}

/// One host's process is replaced by another in the middle of a transfer: the other host's connection ends with that
/// reason, and a new one works.
fn restarted<A: Attachment>(restarted: usize) {
    for seed in SEEDS {
        let mut world = World::<A>::new(seed, plan(seed));
        world.set_conditions(SLOW);
        world.run(Duration::from_millis(40));
        assert!(!world.is_done() && world.hosts.iter().all(|host| host.oracle.tunnels() == [false]), "in the middle");
        world.restart(restarted);
        assert!(world.run_until(60 * SECOND, World::is_done), "no new connection");
        assert_eq!(world.hosts[restarted].oracle.closed(), []);
        assert_eq!(world.hosts[restarted].oracle.tunnels(), [false]);
        assert_eq!(world.hosts[1 - restarted].oracle.closed(), [CloseReason::PeerRestarted]);
        assert_eq!(world.hosts[1 - restarted].oracle.tunnels(), [false, false]);
        world.finish();
    }
}

/// wire.md W5.9, W5.10: whoever reads late is waited for, within the credit it gave.
fn a_reader_that_naps_is_waited_for<A: Attachment>() {
    for seed in SEEDS {
        // More than the credit of the connection, and of each stream.
        let nap = Duration::from_millis(700);
        let plan = Plan { seed, streams: 2, stream_bytes: 3 << 20, messages: 3000, nap };
        let mut world = World::<A>::new(seed, plan);
        world.set_conditions(Conditions { loss: PerMille(20), ..SLOW });
        assert!(world.run_until(600 * SECOND, World::is_done), "not finished");
        for host in &world.hosts {
            assert_eq!(host.oracle.closed(), []);
        }
        world.finish();
    }
}

/// 20 Mb/s with a short queue, together a fifth of the packets that the peer lets be in flight: the window adapts.
fn a_narrow_path_is_filled<A: Attachment>() {
    let bottleneck = Bottleneck { bits_per_second: 20_000_000, queue: Duration::from_millis(5), mark_after: None };
    let jitter = Duration::from_micros(500);
    under::<A>(Conditions { bottleneck: Some(bottleneck), jitter, ..SLOW }, |world| {
        for (index, host) in world.hosts.iter().enumerate() {
            assert_eq!(all_dropped(host), 0);
            let netem = world.netem(index);
            assert!(netem.overflowed > 0 && netem.overflowed * 10 < netem.sent, "{netem:?}");
        }
    });
}
