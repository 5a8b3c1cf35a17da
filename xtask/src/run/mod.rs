//! `cargo xtask run`: two nodes, one tunnel, deltas and a file over it, then three agents and a document, and what happened.
//!
//! ```text
//!   keys and configurations ─► b: pilot listen ─► a: pilot ping ─► a: pilot send ─► b ends ─► plain UDP echo
//!                                                                                  ─► agents ─► report
//! ```
//!
//! Everything is owned by values on this stack: however the story ends, dropping them ends the children first, then
//! deletes the namespaces and the directory.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

mod agents;
pub(crate) mod file;
pub(crate) mod pilot;
pub(crate) mod progress;
mod report;
pub(crate) mod scene;

use self::pilot::{Datapath, Engine, Key, Line, Sending, Xdp};
use self::progress::{Progress, Say};
use self::report::{Findings, Report};
use self::scene::{Directory, End};
use crate::process::{self, Child, Event, next_event};
use crate::udp_echo::RoundTrips;

/// A delta as an agent sends it.
const DELTA: &str = "anomalies: 47 -> 48";
/// The longest silence, in seconds, of all children together. They report progress several times a second; a node's
/// start and its close are each allowed a few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `auto`: over AF_XDP between two namespaces, as root; `udp`: over UDP on loopback, which needs no privileges
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    datapath: Choice,
    /// Print one JSON object at the end; everything else goes to standard error
    #[arg(long)]
    json: bool,
    /// How many deltas to send, one after the other
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Size of the file to send, in bytes
    #[arg(long, default_value_t = 64 << 20)]
    bytes: u64,
    /// Use this `pilot` instead of building it
    #[arg(long, hide = true)]
    pilot: Option<PathBuf>,
    /// Build `pilot` and run it with these arguments, nothing else
    #[arg(last = true)]
    pilot_args: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    Auto,
    Udp,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let say = Say { json: args.json };
    let pilot = match &args.pilot {
        Some(pilot) => pilot.clone(),
        None => build("pilot-user", "pilot")?,
    };
    if !args.pilot_args.is_empty() {
        return Err(Command::new(&pilot).args(&args.pilot_args).exec()).context("running pilot");
    }
    let mut choice = args.datapath;
    if choice == Choice::Auto && !geteuid().is_root() {
        if sudo_works() {
            return Err(as_root(args, &pilot).exec()).context("running sudo");
        }
        say.line("Not root, and `sudo -n -E` does not work here: the same over UDP on loopback, without AF_XDP.");
        choice = Choice::Udp;
    }
    process::catch_signals()?;
    scene::remove_stale()?;
    let (report, mut failures) = play(args, choice, &pilot, &say)?;
    failures.extend(report.failures(args.count.into(), args.bytes));
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("\n{report}");
    }
    for failure in &failures {
        eprintln!("failed: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The whole story. Its failures are those that only show while it plays; the report knows the others.
fn play(args: &Args, choice: Choice, pilot: &Path, say: &Say) -> Result<(Report, Vec<String>)> {
    let directory = Directory::new()?;
    let ends = match choice {
        Choice::Auto => scene::veth_pair(["a", "b"])?,
        Choice::Udp => scene::loopback()?,
    };
    configure(choice == Choice::Udp, pilot, directory.path(), &ends)?;
    let original = directory.path().join("file");
    let sha256 = file::generate(&original, args.bytes)?;

    let mut stage = Stage::open(pilot, directory.path(), &ends)?;
    let [a, b] = ends.each_ref().map(|end| end.address);
    say.line(&format!("Node b listens on {b}, node a is {a}."));
    let mut failures = Vec::new();

    let count = args.count.to_string();
    let ping = ["ping", "b", "--count", &count, "--payload", DELTA, "--interval", "0"];
    let Line::Ping(ping) = stage.ask_a(&ping, Progress::new("deltas", args.count.into(), say), &mut failures)? else {
        bail!("pilot ping did not end with its result");
    };
    let send = ["send", &original.to_string_lossy(), "b"];
    let Line::Send(sent) = stage.ask_a(&send, Progress::new("bytes", args.bytes, say), &mut failures)? else {
        bail!("pilot send did not end with its result");
    };
    let paths = std::mem::take(&mut stage.paths);
    let Heard { datapath, file, stats } = stage.close()?;
    let received = file.context("node b received no file")?;
    let (xdp, engine) = stats.context("node b ended without its counters")?;
    let sha256 = [sha256, file::sha256(&received)?];

    let clean_pair;
    let echo_ends = match choice {
        Choice::Auto => {
            clean_pair = scene::veth_pair(["c", "d"])?;
            &clean_pair
        }
        Choice::Udp => &ends,
    };
    let echo = udp_echo(directory.path(), echo_ends, args.count)?;
    let datapath_b = datapath.context("node b never said how it moves datagrams")?;
    say.line("Three agents write a document together.");
    let agents_ends = match choice {
        Choice::Auto => scene::star(agents::AGENTS)?,
        Choice::Udp => scene::loopback()?,
    };
    let context = agents::play(pilot, directory.path(), &agents_ends)?;
    Ok((Findings { datapath_b, ping, sent, paths, sha256, xdp, engine, echo, context }.into(), failures))
}

/// Makes both identities and both configurations: a knows where b is, b learns where a is.
pub(crate) fn configure(is_udp: bool, pilot: &Path, directory: &Path, ends: &[End; 2]) -> Result<()> {
    let names = ["a", "b"];
    let keys = names.map(|name| keygen(pilot, directory, name));
    let [a, b] = keys;
    let keys = [a?, b?];
    for (own, peer) in [(0, 1), (1, 0)] {
        let end = &ends[own];
        let config = NodeConfig {
            name: names[own],
            number: own + 1,
            end,
            listen: end.address,
            is_udp,
            peers: vec![(names[peer], peer + 1, &keys[peer], (own == 0).then(|| ends[peer].address))],
        };
        config.write(directory)?;
    }
    Ok(())
}

/// Makes a node's identity; its public key.
fn keygen(pilot: &Path, directory: &Path, name: &str) -> Result<String> {
    let out = directory.join(format!("{name}.key"));
    let output = process::command(&pilot.to_string_lossy())
        .args(["keygen", "--json", "--out"])
        .arg(&out)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", pilot.display()))?;
    if !output.status.success() {
        bail!("pilot keygen: {}", output.status);
    }
    let key: Key = serde_json::from_slice(&output.stdout).context("reading what pilot keygen said")?;
    Ok(key.public_key)
}

/// A node's configuration.
struct NodeConfig<'a> {
    name: &'a str,
    /// Of its overlay address.
    number: usize,
    end: &'a End,
    listen: SocketAddr,
    /// Over UDP, and on whichever device; else what it chooses, on its end's.
    is_udp: bool,
    /// Name, number, public key, and where it is, if that is known.
    peers: Vec<(&'a str, usize, &'a str, Option<SocketAddr>)>,
}

impl NodeConfig<'_> {
    fn write(&self, directory: &Path) -> Result<()> {
        let Self { name, number, end, listen, is_udp, peers } = self;
        let interface = end.interface.as_ref().filter(|_| !is_udp);
        let interface = interface.map_or(String::new(), |device| format!("interface = \"{device}\"\n"));
        let mut text = format!(
            "identity = \"{name}.key\"\n\
             address = \"0:0000.0000.{number:04x}\"\n\
             {interface}\
             listen = \"{listen}\"\n\
             datapath = \"{datapath}\"\n\
             queues = [0]\n\
             cores = [{core}]\n\
             allow_from = [\"{allow_from}\"]\n",
            datapath = if *is_udp { "udp" } else { "auto" },
            core = end.core,
            allow_from = end.allow_from(),
        );
        for (peer, number, key, at) in peers {
            let endpoint = at.map_or(String::new(), |at| format!("endpoint = \"{at}\"\n"));
            text += &format!(
                "\n[[peers]]\nname = \"{peer}\"\naddress = \"0:0000.0000.{number:04x}\"\nkey = \"{key}\"\n{endpoint}"
            );
        }
        let path = directory.join(format!("{name}.toml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// What node b has said so far.
#[derive(Default)]
struct Heard {
    datapath: Option<Datapath>,
    file: Option<PathBuf>,
    stats: Option<(Option<Xdp>, Engine)>,
}

/// Node b running, and a's commands.
struct Stage<'a> {
    b: Child,
    heard: Heard,
    /// What the last command of a said about the path it sends over.
    paths: Vec<Sending>,
    pilot: &'a Path,
    directory: &'a Path,
    ends: &'a [End; 2],
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl<'a> Stage<'a> {
    /// Starts node b and waits until it can be reached.
    fn open(pilot: &'a Path, directory: &'a Path, ends: &'a [End; 2]) -> Result<Self> {
        let (sender, events) = mpsc::channel();
        let mut command = ends[1].command(pilot)?;
        command.args(["listen", "--json", "--config"]).arg(directory.join("b.toml"));
        command.arg("--files").arg(directory.join("received"));
        let b = Child::start("b", command, directory, &sender)?;
        let mut stage = Self { b, heard: Heard::default(), paths: Vec::new(), pilot, directory, ends, sender, events };
        while stage.heard.datapath.is_none() {
            let event = next_event(&stage.events, SILENCE_MAX)?;
            stage.hear_b(event.line)?;
        }
        Ok(stage)
    }

    /// Takes a line of node b, which is to run until [`Stage::close`].
    fn hear_b(&mut self, line: Option<String>) -> Result<()> {
        let Some(line) = line else { return Err(self.b.post_mortem()) };
        match Line::parse(&line)? {
            Line::Ready { datapath } | Line::Datapath { datapath } => self.heard.datapath = Some(datapath),
            Line::File { path } => self.heard.file = Some(path),
            Line::Stats { xdp, engine } => self.heard.stats = Some((xdp, engine)),
            _ => {}
        }
        Ok(())
    }

    /// Runs one command of node a to its end. Returns its last object; when it ended in failure nevertheless, says so
    /// in `failures`.
    fn ask_a(&mut self, arguments: &[&str], progress: Progress<'_>, failures: &mut Vec<String>) -> Result<Line> {
        let mut command = self.ends[0].command(self.pilot)?;
        command.args(arguments).args(["--json", "--config"]).arg(self.directory.join("a.toml"));
        let mut a = Child::start("a", command, self.directory, &self.sender)?;
        let mut last = None;
        self.paths.clear();
        loop {
            let event = next_event(&self.events, SILENCE_MAX)?;
            match event.line {
                line if event.from == "b" => self.hear_b(line)?,
                Some(line) => match Line::parse(&line)? {
                    Line::Progress { done } => progress.at(done),
                    Line::Sending(sending) => self.paths.push(sending),
                    result @ (Line::Ping(_) | Line::Send(_)) => last = Some(result),
                    _ => {}
                },
                None => {
                    let status = a.wait()?;
                    let Some(result) = last else { return Err(a.post_mortem()) };
                    if !status.success() {
                        failures.push(format!("pilot {}: {status}", arguments[0]));
                    }
                    return Ok(result);
                }
            }
        }
    }

    /// Ends node b and returns all it said.
    fn close(mut self) -> Result<Heard> {
        self.b.terminate();
        while let Some(line) = next_event(&self.events, SILENCE_MAX)?.line {
            self.hear_b(Some(line))?;
        }
        if !self.b.wait()?.success() {
            return Err(self.b.post_mortem());
        }
        Ok(self.heard)
    }
}

/// The plain echo between `ends`, each side on the core where its pilot was.
fn udp_echo(directory: &Path, ends: &[End; 2], count: u32) -> Result<RoundTrips> {
    let xtask = std::env::current_exe()?;
    let (sender, events) = mpsc::channel();
    let start = |name, end: &End, arguments: &[&str]| {
        let mut command = end.command(&xtask)?;
        command.args(["udp-echo", "--core", &end.core.to_string()]).args(arguments);
        Child::start(name, command, directory, &sender)
    };
    let [asker, server] = ends;
    let address = server.address.to_string();
    let mut serving = start("echo server", server, &["serve", &address])?;
    if next_event(&events, SILENCE_MAX)?.line.is_none() {
        return Err(serving.post_mortem());
    }
    let mut asking = start("echo asker", asker, &["ask", &address, &count.to_string()])?;
    let event = next_event(&events, SILENCE_MAX)?;
    match event.line {
        Some(line) => serde_json::from_str(&line).with_context(|| format!("the echo said {line:?}")),
        None if event.from == "echo server" => Err(serving.post_mortem()),
        None => Err(asking.post_mortem()),
    }
}

/// Builds a program in release and returns its path, wherever cargo puts it.
pub(crate) fn build(package: &str, program: &str) -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--package", package, "--bin", program])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(crate::workspace())
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("building {program}: {}", output.status);
    }
    let executable = String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    executable.context("cargo named no executable")
}

pub(crate) fn sudo_works() -> bool {
    Command::new("sudo")
        .args(["-n", "-E", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// This run, as root, with the `pilot` that was built without.
fn as_root(args: &Args, pilot: &Path) -> Command {
    let mut command = Command::new("sudo");
    command.args(["-n", "-E"]).arg(std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()));
    command.arg("run").arg("--pilot").arg(pilot);
    command.args(["--count", &args.count.to_string(), "--bytes", &args.bytes.to_string()]);
    command.args(args.json.then_some("--json"));
    command
}
