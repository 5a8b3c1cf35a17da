//! `cargo xtask mutants`: deliberate faults, each of which the tests must catch. They are made in a copy of the tree.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::process::{catch_signals, check_interrupt};

const FAULTS: &str = "tests/mutants/mutants.toml";
/// For building the tests of a fault. Lower: a busy machine fails it. Higher: a compiler that hangs is noticed later.
const BUILD_WITHIN: Duration = Duration::from_secs(900);
/// For running them, which takes seconds without a fault: one that makes them hang is caught by that.
const RUN_WITHIN: Duration = Duration::from_secs(120);
/// How often a child is looked at.
const TICK: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the faults whose name contains this
    filter: Option<String>,
}

#[derive(Deserialize)]
struct Faults {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
struct Mutant {
    name: String,
    /// Of `docs/wire.md`, that it breaks.
    requirement: String,
    file: PathBuf,
    find: String,
    replace: String,
    /// Arguments of `cargo test`.
    tests: String,
}

/// What the tests made of a fault.
enum Outcome {
    CaughtBy(String),
    Survived,
    Unfit(String),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    catch_signals()?;
    let root = crate::workspace();
    let text = fs::read_to_string(root.join(FAULTS)).with_context(|| format!("cannot read {FAULTS}"))?;
    let Faults { mut mutant } = toml::from_str(&text).with_context(|| format!("cannot understand {FAULTS}"))?;
    mutant.retain(|it| args.filter.as_ref().is_none_or(|filter| it.name.contains(filter)));
    ensure!(!mutant.is_empty(), "no fault has such a name");
    let scratch = target(&root).join("mutants");
    let copy = Copy { tree: scratch.join("tree"), target: scratch.join("target"), output: scratch.join("output") };
    copy.bring_up_to_date(&root)?;
    for tests in mutant.iter().map(|it| it.tests.as_str()).collect::<BTreeSet<_>>() {
        match copy.test(tests)? {
            Outcome::Survived => {}
            Outcome::CaughtBy(what) | Outcome::Unfit(what) => bail!("cargo test {tests}, without a fault: {what}"),
        }
    }
    let mut missed = 0;
    println!("{:<48} {:<6} caught by", "fault", "breaks");
    for it in &mutant {
        let started = Instant::now();
        let (verdict, is_missed) = match copy.outcome(it)? {
            Outcome::CaughtBy(what) => (what, false),
            Outcome::Survived => (format!("NOTHING in {}", it.tests), true),
            Outcome::Unfit(why) => (format!("UNFIT: {why}"), true),
        };
        missed += u32::from(is_missed);
        println!("{:<48} {:<6} {verdict} ({} s)", it.name, it.requirement, started.elapsed().as_secs());
    }
    println!("{} of {} faults caught", mutant.len() - missed as usize, mutant.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// A copy of the tree with a target directory of its own, both kept from run to run.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
    output: PathBuf,
}

impl Copy {
    /// Writes only what differs, so that little is built anew.
    fn bring_up_to_date(&self, root: &Path) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = git.output().context("cannot run git")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let names = String::from_utf8(listed.stdout)?;
        let names: BTreeSet<&str> = names.split_terminator('\0').filter(|name| root.join(name).is_file()).collect();
        for name in &names {
            let to = self.tree.join(name);
            let bytes = fs::read(root.join(name)).with_context(|| format!("cannot read {name}"))?;
            if fs::read(&to).is_ok_and(|old| old == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&self.tree))?;
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        self.remove_others(&self.tree, &names)
    }

    /// A file that is gone from the tree may still be found by cargo.
    fn remove_others(&self, folder: &Path, names: &BTreeSet<&str>) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(&self.tree)?.to_string_lossy().into_owned();
            if path.is_dir() {
                self.remove_others(&path, names)?;
            } else if !names.contains(name.as_str()) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// What the tests make of a fault. The file is as it was after.
    fn outcome(&self, it: &Mutant) -> Result<Outcome> {
        let file = self.tree.join(&it.file);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Outcome::Unfit(format!("there is no {}", it.file.display())));
            }
            text => text.with_context(|| format!("cannot read {}", file.display()))?,
        };
        match text.matches(&it.find).count() {
            1 => {}
            times => return Ok(Outcome::Unfit(format!("what it replaces occurs {times} times"))),
        }
        fs::write(&file, text.replacen(&it.find, &it.replace, 1))?;
        let outcome = self.test(&it.tests);
        fs::write(&file, text)?;
        outcome
    }

    fn test(&self, tests: &str) -> Result<Outcome> {
        let Some(built) = self.cargo(tests, &["--no-run"], BUILD_WITHIN)? else {
            return Ok(Outcome::Unfit(format!("not built within {} s", BUILD_WITHIN.as_secs())));
        };
        if !built.success() {
            return Ok(Outcome::Unfit(format!("it does not build, see {}", self.output.display())));
        }
        let Some(ran) = self.cargo(tests, &[], RUN_WITHIN)? else {
            return Ok(Outcome::CaughtBy(format!("{tests}: not done within {} s", RUN_WITHIN.as_secs())));
        };
        if ran.success() {
            return Ok(Outcome::Survived);
        }
        let output = fs::read(&self.output)?;
        let output = String::from_utf8_lossy(&output);
        let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
        let first = output.lines().find_map(failed).unwrap_or_else(|| format!("{tests}: {ran}"));
        Ok(Outcome::CaughtBy(first))
    }

    /// Runs `cargo test` in a process group of its own. `None`: it took too long, and was ended.
    fn cargo(&self, tests: &str, more: &[&str], within: Duration) -> Result<Option<ExitStatus>> {
        let output = File::create(&self.output)?;
        let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["test", "--profile", "sim"])
            .args(tests.split_whitespace())
            .args(more)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUST_BACKTRACE", "0")
            .current_dir(&self.tree)
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .context("running cargo")?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            let interrupted = check_interrupt();
            if started.elapsed() > within || interrupted.is_err() {
                // It is not reaped yet, so the group is still its own.
                killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).context("ending cargo")?;
                child.wait()?;
                return interrupted.map(|()| None);
            }
            thread::sleep(TICK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `cargo xtask mutants` would say of each after an hour, in a moment.
    #[test]
    fn every_fault_applies() {
        let root = crate::workspace();
        let Faults { mutant } = toml::from_str(&fs::read_to_string(root.join(FAULTS)).unwrap()).unwrap();
        for it in mutant {
            let text = fs::read_to_string(root.join(&it.file)).unwrap();
            assert_eq!(text.matches(&it.find).count(), 1, "{}", it.name);
        }
    }
}
