//! `xtask run` reports what happened and takes down what it set up, however it ends. The nodes here are shell scripts:
//! what is tested is the story and the scene, not Pilot.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

/// Nodes that start, say their process ids to `$NODES`, and then do nothing until they are ended.
const NODES_THAT_WAIT: &str = r#"#!/bin/sh
case $1 in
keygen) echo '{"public_key":"key","identity":"file"}' ;;
listen)
    echo '{"event":"ready","datapath":{"kind":"udp","mode":null,"attach":null,"reason":"a script"},"listen":"-"}'
    echo $$ >"$NODES/b"
    exec sleep 1000 ;;
*)
    echo $$ >"$NODES/a"
    exec sleep 1000 ;;
esac
"#;

/// Nodes that say what Pilot's say, and carry the file through a directory; `$ADDED` is added to it on its way.
const NODES_THAT_ANSWER: &str = r#"#!/bin/sh
datapath='"datapath":{"kind":"udp","mode":null,"attach":null,"reason":"a script"}'
case $1 in
keygen) echo '{"public_key":"key","identity":"file"}' ;;
listen)
    trap 'echo "{\"event\":\"stats\",\"xdp\":null,\"engine\":{\"opened_from_xdp\":0,\"opened_from_udp\":7,\"opened_from_bulk\":0,\"rx_ring\":0,\"rx_bulk\":0}}"; exit' TERM
    echo "{\"event\":\"ready\",$datapath,\"listen\":\"-\"}"
    until [ -f "$NODES/sent" ]; do sleep 0.01; done
    echo "{\"event\":\"file\",\"path\":\"$NODES/received\"}"
    touch "$NODES/told"
    while :; do sleep 0.01; done ;;
ping)
    echo '{"event":"progress","done":5}'
    echo "{\"event\":\"ping\",\"count\":10,\"lost\":0,\"payload_bytes\":19,\"wire_bytes\":48,\"wire_bytes_mean\":49.5,\"handshake_us\":600,\"p50_us\":9,
\"p99_us\":13,\"aead\":\"none\",$datapath,\"retransmitted\":0}" | tr -d '\n'
    echo ;;
send)
    { cat "$2"; printf '%s' "$ADDED"; } >"$NODES/received"
    touch "$NODES/sent"
    until [ -f "$NODES/told" ]; do sleep 0.01; done
    echo "{\"event\":\"send\",\"bytes\":100000,\"gbit_s\":1,\"sha256_ok\":true,\"retransmitted\":0,
\"sha256\":\"$(sha256sum "$2" | cut -d' ' -f1)\"}" | tr -d '\n'
    echo ;;
ctx)
    case $2 in
    create) echo '{"event":"context_created"}' ;;
    serve)
        echo "{\"event\":\"ready\",$datapath,\"listen\":\"-\"}"
        trap exit TERM
        while :; do sleep 0.01; done ;;
    follow)
        trap exit TERM
        echo '{"event":"context","version":0}'
        echo '{"event":"tokens","given_tokens":100,"given_bytes":500}'
        version=0
        while :; do
            now=$(cat "$NODES/version" 2>/dev/null || echo 0)
            while [ "$version" -lt "$now" ]; do
                version=$((version + 1))
                echo "{\"event\":\"change\",\"version\":$version}"
                echo "{\"event\":\"tokens\",\"given_tokens\":$((100 + version * 2)),\"given_bytes\":$((500 + version * 3))}"
            done
            sleep 0.01
        done ;;
    patch)
        version=$(($(cat "$NODES/version" 2>/dev/null || echo 0) + 1))
        echo $version >"$NODES/version.new"
        mv "$NODES/version.new" "$NODES/version"
        echo "{\"event\":\"context_changed\",\"version\":$version}" ;;
    esac ;;
esac
"#;

/// A run whose nodes wait, and where its traces would be.
struct Run {
    xtask: Child,
    directory: PathBuf,
    nodes: [i32; 2],
}

impl Run {
    /// Starts it and waits until both nodes run. As root it has namespaces.
    fn start(test: &str) -> Self {
        let (directory, mut command) = prepare(test, NODES_THAT_WAIT);
        let xtask =
            command.stdout(Stdio::null()).stderr(fs::File::create(directory.join("stderr")).unwrap()).spawn().unwrap();
        let nodes = ["a", "b"].map(|name| {
            let path = directory.join(name);
            eventually(name, || fs::read_to_string(&path).ok()?.trim().parse().ok())
        });
        let run = Self { xtask, directory, nodes };
        assert_eq!(run.namespaces().len(), if geteuid().is_root() { 2 } else { 0 });
        assert_eq!(run.directories().len(), 1);
        run
    }

    fn namespaces(&self) -> Vec<String> {
        names_in(Path::new("/run/netns"), &format!("pilot-run-{}-", self.xtask.id()))
    }

    fn directories(&self) -> Vec<String> {
        names_in(&self.directory, "pilot-run-")
    }

    /// Waits for the end; returns the exit code, or the signal's number negated, and what was said.
    fn end(&mut self) -> (i32, String) {
        let status = self.xtask.wait().unwrap();
        let said = fs::read_to_string(self.directory.join("stderr")).unwrap();
        (status.code().or(status.signal().map(|signal| -signal)).unwrap(), said)
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.namespaces(), Vec::<String>::new());
        assert_eq!(self.directories(), Vec::<String>::new());
        for node in self.nodes {
            assert!(!is_running(node), "node {node} still runs");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A directory of the test's own, and the command that runs xtask there with `nodes` as its pilot.
fn prepare(test: &str, nodes: &str) -> (PathBuf, Command) {
    let directory = std::env::temp_dir().join(format!("xtask-{test}-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let pilot = directory.join("pilot");
    fs::write(&pilot, nodes).unwrap();
    fs::set_permissions(&pilot, fs::Permissions::from_mode(0o755)).unwrap();
    let datapath = if geteuid().is_root() { "auto" } else { "udp" };
    let mut command = Command::new(XTASK);
    command.args(["run", "--count", "10", "--bytes", "100000", "--datapath", datapath, "--pilot"]).arg(&pilot);
    command.env("TMPDIR", &directory).env("NODES", &directory);
    (directory, command)
}

fn names_in(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Whether a process runs: a zombie, which only waits to be reaped, does not.
fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// What `look` finds, looked for until it is there. The bound is for a hang, far beyond what it takes.
fn eventually<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(signal: Signal, pid: i32) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn a_run_prints_its_object_and_fails_when_the_file_differs() {
    for (added, code) in [("", 0), ("x", 1)] {
        let (directory, mut command) = prepare(&format!("story-{code}"), NODES_THAT_ANSWER);
        let output = command.arg("--json").env("ADDED", added).output().unwrap();
        let left = names_in(&directory, "pilot-run-");
        fs::remove_dir_all(&directory).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(said.contains("failed: the file that arrived is not the one that was sent"), code == 1, "{said}");
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["bulk"]["sha256_ok"], code == 0);
        assert_eq!(object["engine"]["opened_from_udp"], 7);
        // The plain echo ran, as root between namespaces of its own.
        assert!(object["udp_echo"]["p50_us"].as_f64().unwrap() > 0.0);
        // The document to two agents; then three contributions and five updates, each to the two that did not write it.
        let context = &object["context"];
        assert_eq!(context["hops"].as_array().unwrap().len(), 2 + 2 * (3 + 5), "{context}");
        assert_eq!((context["messages"].as_u64(), context["tokens"].as_u64()), (Some(18), Some(2 * 100 + 16 * 2)));
        assert_eq!(context["payload_bytes"], 2 * 500 + 16 * 3);
        // Nothing but neighbours, in namespaces; over loopback, nothing is counted.
        assert_eq!(context["wire_bytes"].is_u64(), geteuid().is_root(), "{context}");
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut run = Run::start(&format!("interrupted-{signal}"));
        send(signal, run.xtask.id().cast_signed());
        assert_eq!(run.end(), (130, "error: interrupted\n".to_owned()));
        run.assert_nothing_is_left();
    }
}

#[test]
fn a_run_whose_node_is_killed_ends_and_says_which() {
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let mut run = Run::start(&format!("node-{name}-killed"));
        send(Signal::SIGKILL, run.nodes[index]);
        assert_eq!(run.end(), (1, format!("error: {name} ended: signal: 9 (SIGKILL)\n")));
        run.assert_nothing_is_left();
    }
}

#[test]
fn a_killed_run_takes_its_nodes_along_and_the_next_one_cleans_up() {
    let mut killed = Run::start("killed");
    send(Signal::SIGKILL, killed.xtask.id().cast_signed());
    assert_eq!(killed.end().0, -9);
    for node in killed.nodes {
        eventually("the node's end", || (!is_running(node)).then_some(()));
    }
    // The next run sees the same temporary directory; it ends early, for `false` makes no keys.
    let next = Command::new(XTASK)
        .args(["run", "--datapath", "udp", "--pilot", "false"])
        .env("TMPDIR", &killed.directory)
        .output()
        .unwrap();
    assert_eq!(next.status.code(), Some(1));
    killed.assert_nothing_is_left();
}

#[test]
fn the_plain_echo_answers() {
    let listen = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = Command::new(XTASK).args(["udp-echo", "serve", &listen]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut ready).unwrap();
    let asked = Command::new(XTASK).args(["udp-echo", "ask", &listen, "100"]).output().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(ready, "ready\n");
    let found: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(found["count"], 100);
    assert!(found["p50_us"].as_f64().unwrap() <= found["p99_us"].as_f64().unwrap());

    let nobody = Command::new(XTASK).args(["udp-echo", "ask", &listen, "100"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
}
