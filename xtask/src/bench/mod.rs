//! `cargo xtask bench`: Pilot beside its peers. Builds their programs (package `pilot-benches`), makes namespaces for them, runs
//! each system once in every round, so that what changes on the machine meanwhile meets all of them, and writes what came of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use nix::unistd::geteuid;
use serde_json::{Value, json};

mod chart;
mod context;
mod promises;
mod readme;
mod report;
mod scene;
mod transport;

use self::report::Report;
use self::scene::{Fabric, Pair};
use crate::process::{self, Child, next_event};
use crate::run::progress::{Progress, Say};
use crate::run::scene::{Directory, remove_stale};
use crate::run::{build, sudo_works};

/// Rounds, each of one run of every system; and those of `--quick`.
const ROUNDS: u32 = 7;
const QUICK_ROUNDS: u32 = 3;
/// The longest silence of a run: it says nothing but its result, and waits at most 20 s for any part of it.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter runs
    #[arg(long)]
    quick: bool,
    /// Only this
    #[arg(long, value_enum, value_name = "NAME")]
    only: Option<Suite>,
    /// Where to write report.json, report.html and raw.json
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Run nothing: write the README's tables from report.json in DIR
    #[arg(long, conflicts_with_all = ["quick", "only"])]
    readme: bool,
    /// Use this program of `pilot-benches` instead of building it
    #[arg(long, hide = true)]
    program: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Suite {
    /// What three agents cost who work on a document, and who follows rare changes
    Context,
    /// Round trips of 19 bytes
    Echo,
    /// Messages of 19 bytes on one connection
    Messages,
    /// Throughput, at three sizes of frames
    Bulk,
    /// Whole handshakes
    Handshakes,
    /// Connections at rest
    Idle,
    /// An echo on each of up to 10,000 tunnels
    Tunnels,
}

/// A run of one system, as it is made once in every round.
struct Run {
    name: &'static str,
    /// What the bench's program is told, beside where it is.
    words: Vec<String>,
    place: Place,
}

/// Where a run takes place. `steered`: XDP programs are attached there; others run where there never was one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    Fabric {
        steered: bool,
    },
    Pair {
        steered: bool,
        mtu: u32,
    },
    /// In memory.
    Nowhere,
}

/// A place that was made.
enum Made {
    Fabric(Fabric),
    Pair(Pair),
    Nothing,
}

impl Place {
    fn make(self) -> Result<Made> {
        let name = |steered| if steered { "steered" } else { "clean" };
        Ok(match self {
            Self::Fabric { steered } => Made::Fabric(Fabric::new(name(steered))?),
            Self::Pair { steered, mtu } => Made::Pair(Pair::new(&format!("{}-{mtu}", name(steered)), mtu)?),
            Self::Nowhere => Made::Nothing,
        })
    }
}

impl Made {
    fn namespaces(&self) -> Vec<&str> {
        match self {
            Self::Fabric(fabric) => fabric.names(),
            Self::Pair(pair) => pair.names(),
            Self::Nothing => Vec::new(),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.readme {
        return readme::rewrite(&crate::workspace().join("README.md"), &args.out).map(|()| ExitCode::SUCCESS);
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build("pilot-benches", "fabric")?,
    };
    if !geteuid().is_root() {
        if sudo_works() {
            return as_root(args, &program);
        }
        bail!("network namespaces need root, and `sudo -n -E` does not work here");
    }
    process::catch_signals()?;
    remove_stale()?;
    fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let rounds = if args.quick { QUICK_ROUNDS } else { ROUNDS };
    let suites: Vec<Suite> =
        Suite::value_variants().iter().copied().filter(|it| args.only.is_none_or(|only| only == *it)).collect();
    let mut raw = Vec::new();
    for suite in &suites {
        let runs = match suite {
            Suite::Context => context::runs(args.quick),
            suite => transport::runs(*suite, args.quick),
        };
        let (runs, skipped) =
            transport::installed(runs, |program| Command::new(program).arg("--version").output().is_ok());
        skipped.iter().for_each(|line| println!("{line}"));
        raw.extend(measure(&program, *suite, &runs, rounds)?);
    }
    write(&args.out, "raw.json", &serde_json::to_string(&raw)?)?;
    let report = report(&raw, &suites, &args.out, args.only.is_some())?;
    write(&args.out, "report.json", &serde_json::to_string_pretty(&report)?)?;
    write(&args.out, "report.html", &chart::page(&report)?)?;
    readme::tables(&report).iter().for_each(|(_, table)| println!("{table}"));
    let lines = promises::lines(&report);
    if !lines.is_empty() {
        println!("{}\n", promises::table(&lines));
    }
    println!("{}: report.json, report.html, raw.json", args.out.display());
    // What is counted must hold on any machine. Times are of this one: the table says which of them hold.
    let failures = if suites.contains(&Suite::Context) { context::failures(&report) } else { Vec::new() };
    failures.iter().for_each(|failure| eprintln!("failed: {failure}"));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of it; and where only one suite was run, of the others what the report in `out` has.
fn report(raw: &[Value], suites: &[Suite], out: &Path, completes: bool) -> Result<Report> {
    let mut rows = context::rows(raw)?;
    rows.extend(transport::rows(raw)?);
    let mut assumptions = Vec::new();
    if suites.contains(&Suite::Context) {
        assumptions.extend(context::ASSUMPTIONS);
    }
    if suites.iter().any(|suite| *suite != Suite::Context) {
        assumptions.extend(transport::ASSUMPTIONS);
    }
    let mut report = Report::new(rows, machine(raw), &assumptions);
    report.curves = transport::curves(raw)?;
    let before = fs::read_to_string(out.join("report.json")).ok().filter(|_| completes);
    if let Some(before) = before.and_then(|text| serde_json::from_str(&text).ok()) {
        report.complete(before);
    }
    Ok(report)
}

/// This command, as root, with the program that was built without.
fn as_root(args: &Args, program: &Path) -> Result<ExitCode> {
    let mut command = Command::new("sudo");
    command.args(["-n", "-E"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    if args.program.is_none() {
        command.arg("--program").arg(program);
    }
    let status = command.status();
    let code = status.context("running sudo")?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Makes every run of a suite once in each round: what each said, in order.
fn measure(program: &Path, suite: Suite, runs: &[Run], rounds: u32) -> Result<Vec<Value>> {
    let directory = Directory::new()?;
    let mut places = BTreeMap::new();
    for run in runs {
        if let Entry::Vacant(none) = places.entry(run.place) {
            none.insert(run.place.make()?);
        }
    }
    let say = Say { json: false };
    let what = suite.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let progress = Progress::new(&what, u64::from(rounds) * runs.len() as u64, &say);
    let mut raw = Vec::new();
    for round in 0..rounds {
        for run in runs {
            let files = directory.path().join(raw.len().to_string());
            fs::create_dir(&files)?;
            let mut result = once(program, run, &places[&run.place].namespaces(), &files)
                .with_context(|| format!("{}, round {}", run.words.join(" "), round + 1))?;
            result["bench"] = json!(run.words[0]);
            result["suite"] = json!(what);
            raw.push(result);
            progress.at(raw.len() as u64);
        }
    }
    Ok(raw)
}

fn once(program: &Path, run: &Run, namespaces: &[&str], files: &Path) -> Result<Value> {
    let [tied, words @ ..] = process::tied()?;
    let mut command = process::command(&tied);
    command.args(words).arg(program).args(&run.words);
    if !namespaces.is_empty() {
        command.arg("--namespaces").arg(namespaces.join(",")).arg("--directory").arg(files);
    }
    let (sender, events) = mpsc::channel();
    let mut child = Child::start("fabric", command, files, &sender)?;
    let Some(line) = next_event(&events, SILENCE_MAX)?.line else { return Err(child.post_mortem()) };
    let result = serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))?;
    if !child.wait()?.success() {
        return Err(child.post_mortem());
    }
    Ok(result)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// Where it was measured, and over what.
fn machine(raw: &[Value]) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(crate::workspace()).output();
    let pilot = raw.iter().find(|run| run["system"] == "pilot").map(|run| &run["notes"]);
    // What each system said of itself, once a suite: its tuning, datapath, attach mode, AEAD.
    let mut systems = serde_json::Map::new();
    for run in raw.iter().filter(|run| run["bench"] == "transport") {
        let [suite, system, mtu] =
            [&run["suite"], &run["system"], &run["load"]["mtu"]].map(|it| it.to_string().replace('"', ""));
        let said = json!({"near": run["near"], "far": run["far"]});
        systems.entry(format!("{system}, {suite}, MTU {mtu}")).or_insert(said);
    }
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "context_mtu": crate::run::scene::MTU.parse::<u32>().ok(),
        "commit": commit.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        "pilot_datapath": pilot.map(|notes| &notes["datapath"]),
        "pilot_aead": pilot.map(|notes| &notes["aead"]),
        "systems": systems,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn who_asks_for_what_there_is_not_is_told_what_there_is() {
        let error = Command::try_parse_from(["bench", "--only", "telepathy"]).err().unwrap().to_string();
        assert!(error.contains("telepathy") && error.contains("possible values: context"), "{error}");
        let error = Command::try_parse_from(["bench", "--readme", "--quick"]).err().unwrap().to_string();
        assert!(error.contains("--readme") && error.contains("--quick"), "{error}");
        let args = Command::try_parse_from(["bench", "--only", "context", "--quick"]).unwrap().args;
        assert_eq!((args.only, args.quick), (Some(Suite::Context), true));
    }

    /// What is measured with is not tuned after measuring.
    #[test]
    fn the_corpus_is_what_it_was_before_the_first_measurement() {
        let files = ["document.md", "researcher.md", "writer.md", "reviewer.md", "facts.json", "updates.jsonl"];
        let mut hash = Sha256::new();
        for file in files {
            hash.update(fs::read(crate::workspace().join("benches/corpus").join(file)).unwrap());
        }
        let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "e62f1be94731fc525d9c53339c10a31acaccea287868f9f8194e6c9a15dd74fc");
    }
}
