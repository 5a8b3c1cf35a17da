//! Runs seeds of the simulation of everything on all cores: `cargo xtask sim`.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use pilot_tests::everything;
use pilot_tests::fired::Fired;

/// Seeds in which everything must fire. Of fewer, some rare mechanism may be missing by chance.
const ENOUGH_SEEDS: u64 = 1000;

/// How often progress is told, on a terminal and in a log.
const PROGRESS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(15)];

/// A seed that ran, and what fired; `None`: it failed.
type Outcome = (u64, Option<Fired>);

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [from, count] = numbers[..] else {
        eprintln!("usage: sim FROM COUNT");
        return ExitCode::from(2);
    };
    let started = Instant::now();
    let (fired, failed) = run_all(from, count);
    for (name, times) in fired.each() {
        println!("{times:>12}  {name}");
    }
    if let Some(seed) = failed {
        println!("seed {seed} failed; again: cargo xtask sim --from {seed} --seeds 1");
        return ExitCode::FAILURE;
    }
    let never = fired.never();
    if count >= ENOUGH_SEEDS && !never.is_empty() {
        println!("never fired in {count} seeds: {}", never.join(", "));
        return ExitCode::FAILURE;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{count} seeds passed in {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    ExitCode::SUCCESS
}

/// Runs seeds until all are through or one fails. What fired, and the least seed that failed.
fn run_all(from: u64, count: u64) -> (Fired, Option<u64>) {
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let (outcomes, results) = mpsc::channel::<Outcome>();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            let (outcomes, next, stop) = (outcomes.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - from >= count {
                        return;
                    }
                    let fired = std::panic::catch_unwind(|| everything::run(seed)).ok();
                    stop.fetch_or(fired.is_none(), Ordering::Relaxed);
                    // The receiver outlives all senders.
                    let _ = outcomes.send((seed, fired));
                }
            });
        }
        drop(outcomes);
        collect(from, count, &results)
    })
}

fn collect(from: u64, count: u64, results: &mpsc::Receiver<Outcome>) -> (Fired, Option<u64>) {
    let is_terminal = std::io::stderr().is_terminal();
    let every = PROGRESS[usize::from(!is_terminal)];
    let (mut fired, mut failed, mut done) = (Fired::default(), None, BTreeMap::new());
    let (started, mut told) = (Instant::now(), Instant::now());
    let mut through = from;
    loop {
        match results.recv_timeout(every) {
            Ok((seed, Some(more))) => {
                fired.add(&more);
                done.insert(seed, ());
            }
            Ok((seed, None)) => failed = Some(failed.map_or(seed, |least: u64| least.min(seed))),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        while done.remove(&through).is_some() {
            through += 1;
        }
        if told.elapsed() >= every {
            told = Instant::now();
            let (ran, seconds) = (through - from, started.elapsed().as_secs());
            let line = format!("{ran} of {count} seeds, {seconds} s; seed {through} is under way");
            if is_terminal {
                eprint!("\r{line}\x1b[K")
            } else {
                eprintln!("{line}")
            }
            let _ = std::io::stderr().flush();
        }
    }
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    (fired, failed)
}
