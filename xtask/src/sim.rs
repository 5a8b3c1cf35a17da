//! `cargo xtask sim`: seeds of the simulation of everything at once, on all cores.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // A profile of its own: as fast as a release, with the checks of a debug build in our code.
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--quiet", "--profile", "sim", "--package", "pilot-tests", "--bin", "sim", "--"])
        .args([args.from.to_string(), args.seeds.to_string()])
        .current_dir(crate::workspace())
        .status()
        .context("running cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
