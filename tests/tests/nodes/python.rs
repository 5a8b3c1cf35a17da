//! The Python package against real nodes: its wheel, in a venv with nothing else, over loopback. It needs no rights.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};

use nix::sys::signal::Signal;

use crate::pilot::{self, Pilot};

const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/python");
/// Seconds for a program in Python, which takes a few. What is longer hangs: then it is ended.
const LIMIT: &str = "300";

/// Answers the program of the README.
const ANSWERER: &str = r#"
import asyncio
from pilot_agents import Node

async def main() -> None:
    async with Node.attach() as node, node.listen(7000) as listener:
        print("listening", flush=True)
        async with await listener.accept() as connection:
            async for message in connection:
                await connection.send(b"noted: " + message)

asyncio.run(main())
"#;

/// Holds the plan of the README's other program.
const HOLDER: &str = r#"
import asyncio
from pilot_agents import Node

async def main() -> None:
    async with Node.attach() as node:
        plan = await node.create_context("plan", {"anomalies": 47}, read=["a"], write=["a"])
        async with plan.follow() as copy:
            print(await copy.deltas(), flush=True)
            print(await copy.deltas(), flush=True)

asyncio.run(main())
"#;

/// The program that both READMEs show, of at most ten lines: connects to another node, sends a delta, gets an answer.
#[test]
fn the_program_of_the_readme_sends_a_delta_and_gets_an_answer() {
    let Some(place) = Place::new("the_program_of_the_readme_sends_a_delta_and_gets_an_answer") else { return };
    let [program, _] = programs(concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/python/README.md"));
    assert_eq!(program, programs(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))[0]);
    assert!(program.lines().count() <= 10, "{program}");
    let nodes = place.nodes();
    let mut answerer = place.python("b").args(["-c", ANSWERER]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(answerer.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");
    succeeds(&place.python("a").args(["-c", &program]).output().unwrap(), "noted: anomalies: 47 -> 48\n");
    assert!(answerer.wait().unwrap().success());
    end(nodes);
}

/// The other program of both: follows a plan that an agent at another node holds, and changes it.
#[test]
fn the_program_of_the_readme_shares_a_context() {
    let Some(place) = Place::new("the_program_of_the_readme_shares_a_context") else { return };
    let [_, program] = programs(concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/python/README.md"));
    assert_eq!(program, programs(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))[1]);
    assert!(program.lines().filter(|line| !line.is_empty()).count() <= 10, "{program}");
    let nodes = place.nodes();
    let mut holder = place.python("b").args(["-c", HOLDER]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), r#"{"anomalies":47}"#);
    let said = "{\"anomalies\":47}\n1 {\"merge\":{\"anomalies\":48}}\n";
    succeeds(&place.python("a").args(["-c", &program]).output().unwrap(), said);
    assert_eq!(lines.next().unwrap().unwrap(), r#"1 {"merge":{"anomalies":48}}"#);
    assert!(holder.wait().unwrap().success());
    end(nodes);
}

/// Messages, streams, calls, datagrams, errors, and one that does not read, through both daemons.
#[test]
fn all_that_the_package_does_works_between_two_nodes() {
    let Some(place) = Place::new("all_that_the_package_does_works_between_two_nodes") else { return };
    let nodes = place.nodes();
    let output = place.python("a").arg(format!("{PACKAGE}/tests/real.py")).args(place.sockets()).output().unwrap();
    succeeds(&output, "messages\nstreams\ncalls\nslow reader\ncontexts\nerrors\ndatagrams\nlooks\nends\n");
    end(nodes);
}

/// Killed under load, a node's application carries on with its next process, and nothing that the peer had consumed is
/// missing there (local-protocol.md L2.3, L4.2).
#[test]
fn a_sender_carries_on_when_its_node_was_killed() {
    let Some(place) = Place::new("a_sender_carries_on_when_its_node_was_killed") else { return };
    let [a, b] = place.nodes();
    let mut program = place.python("a");
    program.arg(format!("{PACKAGE}/tests/killed.py")).args(place.sockets()).stdout(Stdio::piped());
    let mut program = program.spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "sending");
    assert_eq!(a.end_by(Signal::SIGKILL).code, None);
    let a = place.up("a");
    assert_eq!(lines.next().unwrap().unwrap(), "nothing that was consumed is missing");
    assert!(program.wait().unwrap().success());
    end([a, b]);
}

/// local-protocol.md L3.9: a durable context's node is killed while it is written; its followers go on.
#[test]
fn a_durable_context_outlives_its_node() {
    let Some(place) = Place::new("a_durable_context_outlives_its_node") else { return };
    let [a, b] = place.nodes();
    let mut program = place.python("a");
    program.arg(format!("{PACKAGE}/tests/durable.py")).args(place.sockets()).stdout(Stdio::piped());
    let mut program = program.spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "writing");
    assert_eq!(a.end_by(Signal::SIGKILL).code, None);
    let a = place.up("a");
    assert_eq!(lines.next().unwrap().unwrap(), "nothing that was confirmed is missing");
    assert!(program.wait().unwrap().success());
    end([a, b]);
}

/// A directory with a venv that has the wheel, gone when dropped.
struct Place {
    directory: PathBuf,
}

impl Place {
    /// `None`, and a line on stderr, where Python cannot make a venv.
    fn new(test: &str) -> Option<Self> {
        let directory = std::env::temp_dir().join(format!("pilot-python-{}-{test}", process::id()));
        fs::create_dir(&directory).expect("a directory of this name is ours alone");
        let place = Self { directory };
        let venv = Command::new("python3").args(["-m", "venv", "venv"]).current_dir(&place.directory).output();
        if !venv.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: python::{test}: needs python3 with venv (package python3-venv)");
            return None;
        }
        place.pip(&["wheel", "--no-deps", "--wheel-dir", ".", PACKAGE]);
        let mut files = fs::read_dir(&place.directory).unwrap().map(|entry| entry.unwrap().path());
        let wheel = files.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
        place.pip(&["install", "--no-index", wheel.expect("pip makes a wheel").to_str().unwrap()]);
        Some(place)
    }

    fn pip(&self, arguments: &[&str]) {
        let mut pip = Command::new(self.directory.join("venv/bin/pip"));
        pip.args(["--quiet", "--disable-pip-version-check"]).args(arguments).current_dir(&self.directory);
        succeeds(&pip.output().unwrap(), "");
    }

    /// The venv's Python, as an application of a node; ended if it hangs.
    fn python(&self, node: &str) -> Command {
        let mut python = Command::new("timeout");
        python.args(["--kill-after=5", LIMIT]).arg(self.directory.join("venv/bin/python")).current_dir(&self.directory);
        python.env("PILOT_SOCKET", self.directory.join(node).with_extension("sock"));
        python.env("PYTHONDONTWRITEBYTECODE", "1");
        python
    }

    /// Nodes a and b, that know each other.
    fn nodes(&self) -> [Pilot; 2] {
        let keys = ["a", "b"].map(|name| {
            let mut keygen = Command::new(pilot::executable());
            let output = keygen.args(["keygen", "--out", &format!("{name}.key")]).current_dir(&self.directory).output();
            String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
        });
        // Free when asked for, and as good as never another's a moment later.
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let at = sockets.map(|socket| socket.local_addr().unwrap());
        [("a", "b", 0), ("b", "a", 1)].map(|(name, peer, own)| {
            let other = 1 - own;
            let text = format!(
                "identity = \"{name}.key\"\naddress = \"0:0000.0000.000{}\"\nlisten = \"{}\"\ndatapath = \"udp\"\n\
                 [[peers]]\nname = \"{peer}\"\naddress = \"0:0000.0000.000{}\"\nkey = \"{}\"\nendpoint = \"{}\"\n",
                own + 1,
                at[own],
                other + 1,
                keys[other],
                at[other]
            );
            fs::write(self.directory.join(name).with_extension("toml"), text).unwrap();
            self.up(name)
        })
    }

    fn up(&self, name: &str) -> Pilot {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(pilot::executable()).args(["up", "--json", "--config"]);
        command.arg(self.directory.join(name).with_extension("toml")).env_remove("RUST_LOG");
        let mut node = Pilot::start(command, &self.directory);
        node.wait_for("ready");
        node
    }

    fn sockets(&self) -> [PathBuf; 2] {
        ["a.sock", "b.sock"].map(|name| self.directory.join(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Ends nodes as an operator does: by themselves, when they have drained.
fn end(nodes: [Pilot; 2]) {
    for node in nodes {
        assert_eq!(node.end_by(Signal::SIGTERM).code, Some(0));
    }
}

fn succeeds(output: &Output, said: &str) {
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout) == said,
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The two blocks of Python in a document.
fn programs(document: impl AsRef<Path>) -> [String; 2] {
    let text = fs::read_to_string(document).unwrap();
    let blocks = text.split("```python\n").skip(1);
    let programs = blocks.map(|block| block.split_once("```").expect("fences are in pairs").0.to_owned());
    programs.collect::<Vec<_>>().try_into().expect("the document shows two programs")
}
