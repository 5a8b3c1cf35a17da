//! Everything at once, by seed: the first of those that `cargo xtask sim` runs.

use pilot_tests::everything;

/// Enough to meet most pairs of faults, and few enough for every run of the tests.
const SEEDS: std::ops::Range<u64> = 0..200;

#[test]
fn everything_at_once() {
    for seed in SEEDS {
        everything::run(seed);
    }
}

/// A seed is all there is to a run.
#[test]
fn a_run_can_be_repeated() {
    for seed in SEEDS.take(20) {
        assert_eq!(everything::run(seed), everything::run(seed), "seed {seed}");
    }
}
