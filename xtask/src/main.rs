//! Builds, runs and tests Pilot: `cargo xtask --help`. Knows Pilot only by its command and its files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

mod bench;
mod ebpf;
mod mutants;
mod process;
mod run;
mod sim;
mod test;
mod tidy;
mod udp_echo;
mod zero_copy;

/// Exit code of a command that a signal ended: 128 and SIGINT's number, as shells say it.
const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Pilot")]
enum Task {
    /// Run two nodes and send deltas and a file from one to the other; with `-- ARGS`, run `pilot ARGS`
    Run(run::Args),
    /// Measure Pilot beside its peers: as a transport, and what three agents cost over each
    Bench(bench::Args),
    /// Run every test, the privileged ones too when root, and name each that was skipped
    Test(test::Args),
    /// Simulate everything at once, by seed, on all cores
    Sim(sim::Args),
    /// Make deliberate faults in a copy of the tree, each of which the tests must catch
    Mutants(mutants::Args),
    /// Build the XDP program into the object that is committed
    Ebpf {
        /// Only compare: fail when the sources give other bytes than those committed
        #[arg(long)]
        check: bool,
    },
    /// Check file sizes, the direction of dependencies, and that requirements are cited
    Tidy,
    /// The plain UDP echo that `run` compares with
    #[command(hide = true)]
    UdpEcho(udp_echo::Args),
    /// Run a program that ends when process PARENT does
    #[command(hide = true)]
    Tied {
        parent: u32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Run(args) => run::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Mutants(args) => mutants::run(&args),
        Task::Ebpf { check } => ebpf::run(check).map(|()| ExitCode::SUCCESS),
        Task::Tidy => tidy::run().map(|()| ExitCode::SUCCESS),
        Task::UdpEcho(args) => udp_echo::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Tied { parent, command } => process::become_tied(parent, &command).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if error.is::<process::Interrupted>() { INTERRUPTED.into() } else { ExitCode::FAILURE }
    })
}

/// The workspace's root folder.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
