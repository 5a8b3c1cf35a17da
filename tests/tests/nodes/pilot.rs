//! The real `pilot`, as processes that end with the test, and what they say.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::scene::{End, Node, Scene};

/// The longest silence of a process that something is expected of. A connection that cannot be had is given up after
/// 20 s, and the machine may be busy; longer only makes a failing test slower.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The `pilot` of this workspace, in this test's profile. `CARGO_BIN_EXE_pilot` exists only in tests of the package that
/// has the binary; so cargo is asked to build it, once, and to say where it is.
pub(crate) fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--package", "pilot-user", "--bin", "pilot", "--message-format=json-render-diagnostics"]);
        if !cfg!(feature = "aws-lc") {
            // Where this test has no C compiler, that has none either.
            cargo.args(["--no-default-features", "--features", "rustcrypto"]);
        }
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs, as it ran this test");
        assert!(output.status.success(), "building pilot: {}", String::from_utf8_lossy(&output.stderr));
        let executable = String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        });
        executable.expect("cargo names the executable it built")
    })
}

/// A line of a process, and when it came.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) at: Instant,
    pub(crate) event: Value,
}

impl Said {
    fn is(&self, event: &str) -> bool {
        self.event["event"] == event
    }
}

/// A running `pilot`. Dropping it kills it.
pub(crate) struct Pilot {
    process: process::Child,
    lines: Receiver<Said>,
    heard: Vec<Said>,
    /// How many of those heard were waited for already.
    waited: usize,
    log: PathBuf,
}

/// A `pilot` that has ended, with all it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) said: Vec<Said>,
    pub(crate) stderr: String,
}

impl Scene {
    /// Starts `pilot ARGUMENTS --json --config …` at the node's end.
    pub(crate) fn start(&self, node: &Node, arguments: &[&str]) -> Pilot {
        self.start_as(node, executable(), &[], arguments)
    }

    /// As [`Scene::start`], another copy of the program and with more words for `setpriv`.
    pub(crate) fn start_as(&self, node: &Node, program: &Path, rights: &[&str], arguments: &[&str]) -> Pilot {
        let mut command = self.command(node.end, rights, program);
        command.args(arguments).arg("--json").arg("--config").arg(&node.config);
        Pilot::start(command, self.directory())
    }

    /// Runs `pilot ARGUMENTS --json --config …` at the node's end, until it ends by itself.
    pub(crate) fn run(&self, node: &Node, arguments: &[&str]) -> Ended {
        self.start(node, arguments).end()
    }

    /// A metric of the node that runs at an end: its name, and its labels if it has some.
    pub(crate) fn metric(&self, node: &Node, name: &str) -> u64 {
        let ended = self.run(node, &["metrics"]);
        let text = ended.success("metrics")["text"].as_str().unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Runs `pilot ARGUMENTS --json`, which needs no node, until it ends.
    pub(crate) fn bare(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(End::A, &[], executable());
        command.args(arguments).arg("--json");
        Pilot::start(command, self.directory()).end()
    }

    /// In an end's namespace, with its own /sys; killed when the test's thread ends, however it does (the setting
    /// survives the exec). Each of these words execs the next: the child's id is the program's.
    fn command(&self, end: End, rights: &[&str], program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(end), "setpriv", "--pdeathsig", "KILL"]).args(rights);
        command.arg(program).current_dir(self.directory()).env_remove("RUST_LOG");
        command
    }
}

impl Pilot {
    /// Starts a command that is a `pilot`; what it logs goes into a file of this directory.
    pub(crate) fn start(mut command: Command, directory: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let log = directory.join(format!("{}.log", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let log_file = File::create(&log).expect("the scene's directory is writable");
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = process.stdout.take().expect("a piped child has a standard output");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // What is no JSON is kept as it is, for the test to fail on.
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(Said { at: Instant::now(), event }).is_err() {
                    return;
                }
            }
        });
        Self { process, lines, heard: Vec::new(), waited: 0, log }
    }

    /// Waits for the next line that is such an event.
    pub(crate) fn wait_for(&mut self, event: &str) -> &Said {
        self.wait_until(event, |_| true)
    }

    /// Waits for the next line that is such an event and about which `is` says yes.
    pub(crate) fn wait_until(&mut self, event: &str, is: impl Fn(&Value) -> bool) -> &Said {
        loop {
            while self.waited < self.heard.len() {
                self.waited += 1;
                let said = &self.heard[self.waited - 1];
                if said.is(event) && is(&said.event) {
                    return &self.heard[self.waited - 1];
                }
            }
            match self.lines.recv_timeout(SILENCE_MAX) {
                Ok(said) => self.heard.push(said),
                Err(error) => {
                    let log = fs::read_to_string(&self.log).unwrap_or_default();
                    panic!("waiting for {event}: {error}; said so far: {:#?}\n{log}", self.heard)
                }
            }
        }
    }

    /// Waits until its log has these words.
    pub(crate) fn wait_for_log(&self, words: &str) {
        let began = Instant::now();
        loop {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            if log.contains(words) {
                return;
            }
            assert!(began.elapsed() < SILENCE_MAX, "waiting for {words:?} in: {log}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a command has so many messages answered, or bytes sent.
    pub(crate) fn wait_for_progress(&mut self, done: u64) -> u64 {
        let at_least = |event: &Value| event["done"].as_u64().is_some_and(|so_far| so_far >= done);
        self.wait_until("progress", at_least).event["done"].as_u64().unwrap_or_default()
    }

    /// Its process id, which is not another's as long as this is there.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It is not reaped yet, so the id is still its own.
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).expect("the process is ours");
    }

    /// Ends it with a signal.
    pub(crate) fn end_by(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.end()
    }

    /// Waits until it ends.
    pub(crate) fn end(mut self) -> Ended {
        let mut said = std::mem::take(&mut self.heard);
        loop {
            match self.lines.recv_timeout(SILENCE_MAX) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it neither ends nor says anything; said so far: {said:#?}"),
            }
        }
        let status = self.process.wait().expect("a child of ours");
        let stderr = fs::read_to_string(&self.log).unwrap_or_default();
        assert!(status.signal() != Some(Signal::SIGABRT as i32) && !stderr.contains("panicked"), "{said:#?}\n{stderr}");
        Ended { code: status.code(), said, stderr }
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Ended {
    /// Its last event of this kind.
    #[track_caller]
    pub(crate) fn event(&self, event: &str) -> &Value {
        let found = self.said.iter().rev().find(|said| said.is(event));
        &found.unwrap_or_else(|| panic!("no {event} in {self:#?}")).event
    }

    /// It ended well; its last event of this kind.
    #[track_caller]
    pub(crate) fn success(&self, event: &str) -> &Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.event(event)
    }

    /// It ended with this code and an error that has each of these words, told on both outputs.
    #[track_caller]
    pub(crate) fn failure(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let event = self.event("error");
        let error = event["error"].as_str().unwrap_or_default();
        assert_eq!(event["exit_code"], code);
        assert!(self.stderr.contains(error), "{self:#?}");
        assert!(error.matches("os error").count() <= 1, "said twice: {error}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
}
