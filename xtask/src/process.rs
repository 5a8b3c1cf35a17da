//! Child processes that never outlive us, and what they say as one stream of events.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

/// How long a child has, in seconds, to end by itself after SIGTERM: a node closes its tunnels and detaches its XDP
/// program. Shorter cuts that off; longer makes Ctrl-C feel stuck when a child hangs.
const GRACE: Duration = Duration::from_secs(3);
/// How often, in milliseconds, waits look at the interrupt flag: below what a person notices, above what costs.
const TICK: Duration = Duration::from_millis(50);
/// How many lines of a child's log an error shows: the last error and what led to it, less than a screen.
const LAST_WORDS: usize = 20;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The run was ended by SIGINT, SIGTERM or SIGHUP.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From here on a signal to end only raises a flag, so that what was set up is taken down in order.
pub(crate) fn catch_signals() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("catching signals")
}

/// An error once a signal to end has come. Whatever takes long calls it now and then.
pub(crate) fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}

/// A line of a child's standard output; `None` when there will be no more.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) from: &'static str,
    pub(crate) line: Option<String>,
}

/// The next event of any child, or an error when none comes within `silence`, or a signal to end does.
pub(crate) fn next_event(events: &Receiver<Event>, silence: Duration) -> Result<Event> {
    let start = Instant::now();
    loop {
        check_interrupt()?;
        match events.recv_timeout(TICK) {
            Ok(event) => return Ok(event),
            Err(RecvTimeoutError::Timeout) if start.elapsed() < silence => {}
            Err(RecvTimeoutError::Timeout) => bail!("no child said anything for {} s", silence.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("no child is left"),
        }
    }
}

/// A running child. Dropping it ends it: SIGTERM, then SIGKILL.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    process: process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command`; lines of its standard output go to `events`, its standard error to a file in `log_dir`.
    ///
    /// To be called from the main thread: Linux sends the death signal of [`tied`] when the *thread* ends that
    /// started the child.
    pub(crate) fn start(
        name: &'static str,
        mut command: Command,
        log_dir: &Path,
        events: &Sender<Event>,
    ) -> Result<Self> {
        let log = log_dir.join(format!("{name}.log"));
        let log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        let output = process.stdout.take().context("a piped child has a standard output")?;
        let events = events.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if events.send(Event { from: name, line: Some(line) }).is_err() {
                    return;
                }
            }
            // The receiver may be gone: then nobody waits for this child.
            let _ = events.send(Event { from: name, line: None });
        });
        Ok(Self { name, process, log })
    }

    /// Asks the child to end.
    pub(crate) fn terminate(&self) {
        // It may have ended by itself; it is not reaped yet, so the id is still its own.
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM);
    }

    /// Waits until the child has ended; an error when it has not within the grace time.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("{} did not end within {} s", self.name, GRACE.as_secs())
    }

    /// Why the child, whose output has ended, ended: its exit status and the end of its log.
    pub(crate) fn post_mortem(&mut self) -> anyhow::Error {
        let ended = match self.wait() {
            Ok(status) => format!("{} ended: {status}", self.name),
            Err(error) => error.to_string(),
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n  ");
        if last.is_empty() { anyhow!(ended) } else { anyhow!("{ended}\n  {last}") }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        self.terminate();
        if self.wait().is_err() {
            // The process may end in between: there is nothing more to do then.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A command in a process group of its own, so that Ctrl-C on the terminal reaches us alone and we decide the order.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null());
    command
}

/// The words before a program that make it end with us, even when we are killed: this program's own `tied`.
pub(crate) fn tied() -> Result<[String; 3]> {
    let xtask = std::env::current_exe().context("finding our own executable")?;
    let xtask = xtask.into_os_string().into_string().map_err(|path| anyhow!("{path:?} is not UTF-8"))?;
    Ok([xtask, "tied".to_owned(), process::id().to_string()])
}

/// `xtask tied PARENT PROGRAM ARGS`: becomes PROGRAM, which gets SIGTERM when process PARENT ends. The setting
/// survives the exec. (`Command::pre_exec` would do it without this detour, but is unsafe.)
pub(crate) fn become_tied(parent: u32, words: &[String]) -> Result<()> {
    let [program, arguments @ ..] = words else { bail!("tied: a program is needed") };
    prctl::set_pdeathsig(Signal::SIGTERM).context("setting the death signal")?;
    // The parent may have gone before the setting took hold.
    if getppid() != Pid::from_raw(parent.cast_signed()) {
        bail!("process {parent}, to which {program} was tied, has ended");
    }
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("running {program}"))
}
