//! `cargo xtask test`: every test of the workspace, counted, with each skipped one named.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::zero_copy::{self, Nic};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Fail when a test was skipped
    #[arg(long)]
    deny_skips: bool,
    /// Run two nodes over emulated NICs with zero-copy AF_XDP instead, in a guest whose programs are downloaded, and nothing else
    #[arg(long, value_enum, value_name = "NIC", num_args = 0..=1, default_missing_value = "virtio")]
    zero_copy: Option<Nic>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(nic) = args.zero_copy {
        return zero_copy::run(nic);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--workspace", "--exclude", "pilot-ebpf", "--exclude", "pilot-benches", "--no-fail-fast"])
        .args(&args.filter)
        // The harness keeps what a passing test prints to itself, skips included, unless told otherwise.
        .args(["--", "--show-output"])
        .current_dir(crate::workspace())
        .stdout(Stdio::piped())
        .spawn()
        .context("running cargo")?;
    let output = cargo.stdout.take().context("a piped child has a standard output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what cargo test prints")?;
        if tally.take(&line) {
            println!("{line}");
        }
    }
    let status = cargo.wait()?;
    println!();
    for skip in &tally.skips {
        println!("skipped: {skip}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed(), tally.failed, tally.skips.len());
    if !status.success() && tally.failed == 0 {
        eprintln!("failed: cargo test: {status} (a build failed, or a test program ended before its count)");
    }
    let skips_denied = args.deny_skips && !tally.skips.is_empty();
    if skips_denied {
        eprintln!("failed: {} tests were skipped, and --deny-skips allows none", tally.skips.len());
    }
    Ok(if status.success() && !skips_denied { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the test programs' output adds up to.
#[derive(Debug, Default)]
struct Tally {
    /// Tests that returned without failing, those that skipped themselves included.
    returned: usize,
    failed: usize,
    /// `NAME: WHY` of each test that skipped itself or is ignored.
    skips: Vec<String>,
    /// How many of the skips are of tests that returned.
    skipped_themselves: usize,
    /// In the part of the output that repeats what passing tests printed.
    in_successes: bool,
}

impl Tally {
    fn passed(&self) -> usize {
        self.returned.saturating_sub(self.skipped_themselves)
    }

    /// Counts a line; whether it is worth showing.
    fn take(&mut self, line: &str) -> bool {
        if let Some(skip) = line.strip_prefix("skipped: ") {
            self.skips.push(skip.to_owned());
            self.skipped_themselves += 1;
            return true;
        }
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.returned += count(rest, "passed");
            self.failed += count(rest, "failed");
            self.in_successes = false;
        } else if let Some((name, why)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored")) {
            let why = why.strip_prefix(", ").unwrap_or("ignored");
            self.skips.push(format!("{name}: {why}"));
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        }
        !self.in_successes
    }
}

/// The number before `what` in `ok. 12 passed; 0 failed; …`.
fn count(result: &str, what: &str) -> usize {
    let words: Vec<&str> = result.split([' ', ';']).collect();
    words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 4 tests
test a::plain ... ok
test a::privileged ... ok
test a::slow ... ignored, takes an hour
test a::unexplained ... ignored
test a::broken ... FAILED

successes:

---- a::plain stdout ----
chatter

---- a::privileged stdout ----
skipped: a::privileged: not root

successes:
    a::plain

failures:

---- a::broken stdout ----
the reason

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    #[test]
    fn every_test_is_counted_once_and_every_skip_named() {
        let mut tally = Tally::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| tally.take(line)).collect();
        assert_eq!((tally.passed(), tally.failed), (6, 1));
        assert_eq!(tally.skips, ["a::slow: takes an hour", "a::unexplained: ignored", "a::privileged: not root"]);
        assert!(!shown.contains(&"chatter"), "of a test that passed");
        assert!(shown.contains(&"the reason"), "of a test that failed");
    }
}
