//! Congestion control in virtual time: goodput by loss, round trip and controller, and shares of flows at one bottleneck,
//! as tables that are compared with those that are committed.
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is the test's")]

mod network;

use std::fmt::Write as _;
use std::time::Duration;

use network::{Network, Path};
use pilot_engine::ControllerKind::{self, Cubic, DelayTarget};
use pilot_engine::limits::{DEFAULT_PACKET_CREDIT, MAX_ACK_DELAY, TIMER_GRANULARITY};

const CONTROLLERS: [(ControllerKind, &str); 2] = [(DelayTarget, "delay target"), (Cubic, "CUBIC")];

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A path of so many Mb/s and this round trip, with a queue of a round trip, and no less than what a switch has.
fn path(megabits: u64, rtt: Duration) -> Path {
    Path {
        bits_per_second: megabits * 1_000_000,
        rtt,
        queue: rtt.max(ms(4)),
        mark_after: None,
        loss_per_mille: 0,
        packet_credit: DEFAULT_PACKET_CREDIT,
    }
}

/// Compares with the committed table. `PILOT_SNAPSHOT=write` writes it.
fn compare(name: &str, table: &str) {
    let file = format!("{}/tests/sim_congestion/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("PILOT_SNAPSHOT").is_some_and(|value| value == "write") {
        std::fs::write(&file, table).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(table, committed, "{file}: the left one is what came out; PILOT_SNAPSHOT=write writes it");
}

/// Percent of the bottleneck that one flow used, after it had found out about the path.
fn percent(path: Path, controller: ControllerKind, settle: Duration, time: Duration) -> u64 {
    let mut network = Network::new(1, path, &[controller]);
    network.run(settle);
    let before = network.received(0);
    network.run(time);
    let bits = u128::from(network.received(0) - before) * 8;
    (bits * 100_000 / (u128::from(path.bits_per_second) * time.as_millis())) as u64
}

/// wire.md W5.5
#[test]
fn goodput_by_loss_round_trip_and_controller() {
    let mut table = "Goodput in percent of the bottleneck, one flow.\n\n".to_owned();
    for (megabits, rtt, settle, time) in [
        (1000, Duration::from_micros(100), ms(100), ms(200)),
        (200, ms(10), ms(500), ms(1500)),
        (100, ms(50), ms(2000), ms(4000)),
    ] {
        writeln!(table, "{megabits} Mb/s, {rtt:?}").unwrap();
        writeln!(table, "{:>8}  {:>12}  {:>6}", "loss", CONTROLLERS[0].1, CONTROLLERS[1].1).unwrap();
        for loss_per_mille in [0, 1, 5, 10, 20, 50, 100] {
            let path = Path { loss_per_mille, ..path(megabits, rtt) };
            let goodput = CONTROLLERS.map(|(controller, _)| percent(path, controller, settle, time));
            let loss = format!("{}.{} %", loss_per_mille / 10, loss_per_mille % 10);
            writeln!(table, "{loss:>8}  {:>12}  {:>6}", goodput[0], goodput[1]).unwrap();
        }
        table.push('\n');
    }
    compare("goodput", &table);
}

/// One percent of loss without a queue is no congestion: on a rack's path and on a continent's.
#[test]
fn one_percent_of_loss_costs_little() {
    for (megabits, rtt, settle, time, least) in
        [(10_000, Duration::from_micros(100), ms(20), ms(40), 90), (1000, ms(50), ms(1500), ms(1500), 80)]
    {
        let goodput = [0, 10]
            .map(|loss_per_mille| percent(Path { loss_per_mille, ..path(megabits, rtt) }, DelayTarget, settle, time));
        assert!(goodput[0] >= 90, "{megabits} Mb/s, {rtt:?}: {goodput:?} percent");
        assert!(goodput[1] * 100 >= goodput[0] * least, "{megabits} Mb/s, {rtt:?}: {goodput:?} percent");
    }
}

/// wire.md W5.5, W5.6: at one percent of loss a flow never stands still for longer than three probe time-outs, of which each is
/// taken as short as it can be.
#[test]
fn one_percent_of_loss_stalls_nobody() {
    for (megabits, rtt, settle, time) in
        [(10_000, Duration::from_micros(100), ms(20), ms(100)), (1000, ms(50), ms(1500), ms(3000))]
    {
        for (controller, name) in CONTROLLERS {
            let path = Path { loss_per_mille: 10, ..path(megabits, rtt) };
            let mut network = Network::new(1, path, &[controller]);
            network.run(settle);
            network.take_longest_stall(0);
            network.run(time);
            let stall = network.take_longest_stall(0);
            let probe_timeout = network.stats(0).smoothed_rtt + TIMER_GRANULARITY + MAX_ACK_DELAY;
            assert!(stall <= 3 * probe_timeout, "{name}, {megabits} Mb/s, {rtt:?}: {stall:?}, {probe_timeout:?}");
        }
    }
}

/// wire.md W6.5, W6.11: what the receiver's ring absorbs bounds short paths, and long ones no more than a burst.
#[test]
fn goodput_by_loss_ring_and_controller() {
    let mut table =
        "Goodput in percent of the bottleneck, one flow, by the packets that the receiver's ring absorbs.\n\n"
            .to_owned();
    for (megabits, rtt, settle, time) in
        [(1000, Duration::from_micros(500), ms(100), ms(200)), (200, ms(10), ms(500), ms(1000))]
    {
        writeln!(table, "{megabits} Mb/s, {rtt:?}").unwrap();
        writeln!(table, "{:>8}  {:>6}  {:>12}  {:>6}", "loss", "ring", CONTROLLERS[0].1, CONTROLLERS[1].1).unwrap();
        for loss_per_mille in [0, 10, 20] {
            for packet_credit in [16, 128, 1024] {
                let path = Path { loss_per_mille, packet_credit, ..path(megabits, rtt) };
                let goodput = CONTROLLERS.map(|(controller, _)| percent(path, controller, settle, time));
                let loss = format!("{}.{} %", loss_per_mille / 10, loss_per_mille % 10);
                writeln!(table, "{loss:>8}  {packet_credit:>6}  {:>12}  {:>6}", goodput[0], goodput[1]).unwrap();
            }
        }
        table.push('\n');
    }
    compare("ring", &table);
}

/// Jain's index in thousandths of what flows received.
fn jain(shares: &[u64]) -> u64 {
    let sum: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    let squares: u128 = shares.iter().map(|share| u128::from(*share).pow(2)).sum();
    (sum * sum * 1000 / (shares.len() as u128 * squares.max(1))) as u64
}

/// What each flow received in percent of the bottleneck, after all had found out about each other.
fn shares(path: Path, controllers: &[ControllerKind], settle: Duration, time: Duration) -> Vec<u64> {
    let mut network = Network::new(1, path, controllers);
    network.run(settle);
    let before: Vec<u64> = (0..controllers.len()).map(|flow| network.received(flow)).collect();
    network.run(time);
    let bits = |flow: usize| u128::from(network.received(flow) - before[flow]) * 8;
    let share = |flow| (bits(flow) * 100_000 / (u128::from(path.bits_per_second) * time.as_millis())) as u64;
    (0..controllers.len()).map(share).collect()
}

#[test]
fn fairness_at_one_bottleneck() {
    let mut table = "Shares of flows in percent of the bottleneck, and Jain's index in thousandths.\n\n".to_owned();
    let marking = |path: Path| Path { mark_after: Some(path.queue / 4), ..path };
    let (rack, far) = (path(1000, Duration::from_micros(100)), path(100, ms(20)));
    for (what, path, settle, time) in [
        ("1000 Mb/s, 100 µs", rack, ms(2000), ms(1000)),
        ("1000 Mb/s, 100 µs, ECN", marking(rack), ms(2000), ms(1000)),
        ("100 Mb/s, 20 ms", far, ms(8000), ms(6000)),
        ("100 Mb/s, 20 ms, ECN", marking(far), ms(8000), ms(6000)),
    ] {
        writeln!(table, "{what}").unwrap();
        for (name, controllers) in [
            ("8 delay target", vec![DelayTarget; 8]),
            ("8 CUBIC", vec![Cubic; 8]),
            ("2 delay target, 2 CUBIC", vec![DelayTarget, DelayTarget, Cubic, Cubic]),
        ] {
            let shares = shares(path, &controllers, settle, time);
            assert!(controllers != [DelayTarget; 8] || jain(&shares) >= 950, "{what}: {shares:?}");
            writeln!(table, "{name:>24}: {:4}  {shares:?}", jain(&shares)).unwrap();
        }
        table.push('\n');
    }
    compare("fairness", &table);
}

/// What each end of one tunnel received in percent of its direction's bottleneck, where both send all they can.
fn both_ways(
    path: Path,
    controller: ControllerKind,
    receiver_faster_ppm: i32,
    settle: Duration,
    time: Duration,
) -> [u64; 2] {
    let mut network = Network::both_ways(1, path, controller);
    network.set_receiver_faster(receiver_faster_ppm);
    network.run(settle);
    let before = network.received_by_both();
    network.run(time);
    let after = network.received_by_both();
    [0, 1].map(|end| {
        let bits = u128::from(after[end] - before[end]) * 8;
        (bits * 100_000 / (u128::from(path.bits_per_second) * time.as_millis())) as u64
    })
}

/// wire.md W5.23: each direction has its own bottleneck, and one round trip has both queues in it. An end that took the other's queue
/// for its own would leave its direction half empty.
#[test]
fn both_directions_at_once() {
    let mut table = "Goodput in percent of each direction's bottleneck, one tunnel, both ends sending.\n\n".to_owned();
    for (megabits, rtt, settle, time) in [
        (40, ms(20), ms(4000), ms(10_000)),
        (1000, Duration::from_micros(100), ms(500), ms(1000)),
        (200, ms(10), ms(2000), ms(5000)),
        (100, ms(50), ms(5000), ms(15_000)),
    ] {
        for (controller, name) in CONTROLLERS {
            let percent = both_ways(path(megabits, rtt), controller, 0, settle, time);
            assert!(percent.iter().all(|percent| *percent >= 85), "{megabits} Mb/s, {rtt:?}, {name}: {percent:?}");
            writeln!(table, "{:>4} Mb/s, {rtt:>5?}  {name:>12}  {percent:?}", megabits).unwrap();
        }
    }
    compare("both_ways", &table);
}

/// wire.md W5.23: clocks differ by a fifth of a millisecond a second, more than any that is left to itself.
#[test]
fn both_directions_by_clocks_that_differ() {
    for faster_ppm in [-200, 200] {
        let percent = both_ways(path(200, ms(10)), DelayTarget, faster_ppm, ms(2000), ms(15_000));
        assert!(percent.iter().all(|percent| *percent >= 90), "{faster_ppm} ppm: {percent:?}");
    }
}

/// wire.md W5.21: marks keep the queue short, so that nothing has to be dropped.
#[test]
fn marks_come_before_drops() {
    let path = Path { mark_after: Some(ms(2)), queue: ms(40), ..path(100, ms(10)) };
    for (controller, name) in CONTROLLERS {
        let mut network = Network::new(1, path, &[controller]);
        network.run(ms(500));
        let before = network.bottleneck();
        network.run(ms(1500));
        let counters = network.bottleneck();
        let stats = network.stats(0);
        assert!(stats.ecn_ce > 0 && counters.marked > before.marked, "{name}: {counters:?}");
        assert_eq!(counters.overflowed, before.overflowed, "{name}");
        assert!(stats.smoothed_rtt < ms(30), "{name}: {stats:?}");
    }
}

/// wire.md W6.5, W6.11: a short path has no more in flight than the ring takes; a long one is not held back by it, and brings
/// no more than that within a millisecond.
#[test]
fn a_short_ring_bounds_bursts_and_not_long_paths() {
    let mut short = Network::new(1, path(10_000, Duration::from_micros(100)), &[Cubic]);
    short.run(ms(50));
    assert!(short.most_in_flight() <= 128, "{} packets", short.most_in_flight());
    let long = path(200, ms(50));
    let mut network = Network::new(1, long, &[DelayTarget]);
    network.run(ms(3000));
    assert!(network.most_in_flight() > 512, "{} packets", network.most_in_flight());
    assert!(network.most_in_a_millisecond() <= 128, "{} packets", network.most_in_a_millisecond());
    assert!(network.stats(0).paced > 0);
}
