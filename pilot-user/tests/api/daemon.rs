//! A daemon, as `pilot up` is, and applications at its socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pilot_user::Node;
use pilot_user::api::Code;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::scene::Scene;

/// Only for hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A `pilot up`. Dropped, it is killed.
pub(crate) struct Up {
    child: Child,
    /// What it says from the line on that says that it is ready.
    events: Receiver<Value>,
}

impl Up {
    /// Starts one and waits until it is ready.
    pub(crate) fn start(scene: &Scene, name: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilot"));
        command.args(["up", "--json", "--config"]).arg(scene.path(&format!("{name}.toml")));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
        let ready = lines.by_ref().any(|event| event["event"] == "ready");
        // It goes on saying things, and would be ended by a pipe that nobody reads.
        let (said, events) = channel();
        std::thread::spawn(move || lines.for_each(|event| _ = said.send(event)));
        let up = Self { child, events };
        assert!(ready, "it ended before it was ready");
        up
    }

    /// Waits for a line for the record.
    #[track_caller]
    pub(crate) fn audit(&self, change: &str) -> Value {
        loop {
            let event = self.events.recv_timeout(LONG).unwrap_or_else(|_| panic!("no line says {change}"));
            if event["change"] == change {
                return event;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end; its exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A session that says what no library would.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn new(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    pub(crate) fn hello(socket: &Path) -> Self {
        let mut raw = Self::new(socket);
        raw.request(1, &json!({"op": "hello", "version": 1}));
        let (kind, id, body) = raw.frame().unwrap();
        assert_eq!((kind, id, &body["version"]), (0x02, 1, &json!(1)));
        assert_eq!(body["limits"]["frame_bytes"], 1 << 20);
        raw
    }

    pub(crate) fn say(&mut self, kind: u8, id: u32, body: &[u8]) {
        let length = (body.len() as u32 + 5).to_be_bytes();
        let frame = [&length[..], &[kind], &id.to_be_bytes(), body].concat();
        // The node may have ended the session already.
        let _ = self.0.write_all(&frame);
    }

    pub(crate) fn request(&mut self, id: u32, what: &Value) {
        self.say(0x01, id, what.to_string().as_bytes());
    }

    /// The next frame with a JSON body; `None`: the session is over.
    pub(crate) fn frame(&mut self) -> Option<(u8, u32, Value)> {
        let (kind, id, body) = self.bytes()?;
        Some((kind, id, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// The next frame; `None`: the session is over.
    pub(crate) fn bytes(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let [a, b, c, d, kind, e, f, g, h] = head;
        let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize - 5];
        self.0.read_exact(&mut body).ok()?;
        Some((kind, u32::from_be_bytes([e, f, g, h]), body))
    }

    /// L1.1: the session ends with this code.
    #[track_caller]
    pub(crate) fn ends_with(mut self, code: &str) {
        let (kind, id, body) = self.frame().expect("it is told why");
        assert_eq!((kind, id, &body["code"]), (0x03, 0, &json!(code)), "{body}");
        assert!(self.frame().is_none(), "that is the last frame");
    }
}

/// L2.1, L6.1: the same nouns, through the socket, to a node of this process.
#[tokio::test]
async fn an_application_uses_the_node_of_its_host() {
    let scene = Scene::new();
    let _up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (a, b) = (Node::attach(&socket).await.unwrap(), scene.node("b"));
    let mut listener = b.listen(7000).await.unwrap();
    let (here, there) = tokio::join!(a.connect("b", 7000), listener.accept());
    let (here, there) = (here.unwrap(), there.unwrap());
    for number in 0..1000_u32 {
        here.send(number.to_be_bytes()).await.unwrap();
        assert_eq!(there.receive().await.unwrap(), number.to_be_bytes());
    }
    let large = vec![3; 65_536];
    for _ in 0..100 {
        there.send(&large).await.unwrap();
        assert_eq!(here.receive().await.unwrap(), large);
    }
    let answered = tokio::spawn(async move {
        let mut call = there.next_call().await.unwrap();
        let (request, _) = call.request().await.unwrap();
        call.respond(request).await.unwrap();
        there
    });
    assert_eq!(timeout(LONG, here.call(&vec![9; 1 << 20], None)).await.unwrap().unwrap().len(), 1 << 20);
    let there = answered.await.unwrap();
    // L3.4: the other way round, and a second application of the same node.
    let second = Node::attach(&socket).await.unwrap();
    let mut listener = second.listen(7001).await.unwrap();
    assert_eq!(a.listen(7001).await.err().unwrap().code, Code::PortInUse);
    let (from_b, at_a) = tokio::join!(b.connect("a", 7001), listener.accept());
    let (from_b, at_a) = (from_b.unwrap(), at_a.unwrap());
    assert_eq!(a.connections().await.unwrap().as_array().unwrap().len(), 2);
    // L2.3: an application that is gone has nothing any more.
    drop((second, listener, at_a));
    let why = timeout(LONG, from_b.closed()).await.unwrap();
    assert_eq!(why.code, Code::Closed, "{why}");
    here.close(0, "").await.unwrap();
    assert_eq!(there.closed().await.peer_code, Some(0));
}

/// L1.1, L1.2, L1.3, L1.4, L1.5, L3.1, L5.4: each ends its own session or none, with words, and the node goes on.
#[tokio::test]
async fn what_is_malformed_ends_its_own_session() {
    let scene = Scene::new();
    let _up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    let mut raw = Raw::new(&socket);
    raw.say(0x10, 1, b"no hello");
    raw.ends_with("malformed");
    let mut raw = Raw::new(&socket);
    raw.request(1, &json!({"op": "hello", "version": 2}));
    assert_eq!(raw.frame().unwrap().2["code"], "version");
    let mut raw = Raw::new(&socket);
    raw.0.write_all(&vec![b'x'; 1 << 20]).ok();
    raw.ends_with("malformed");
    for (kind, id, body) in [(0x77, 1, &b""[..]), (0x02, 1, b"{}"), (0x12, 1, b""), (0x01, 0, b"{}"), (0x01, 5, b"{")] {
        let mut raw = Raw::hello(&socket);
        raw.say(kind, id, body);
        raw.ends_with("malformed");
    }
    // A stream's id that is none of the application's (L1.4).
    let mut raw = Raw::hello(&socket);
    raw.say(0x15, 0x200, &[0, 0, 2, 0, 0]);
    raw.ends_with("malformed");
    // L3.1, L1.3: only the request fails.
    let mut raw = Raw::hello(&socket);
    for (what, code) in [
        (json!({"op": "fly"}), "unknown_op"),
        (json!({"op": "connect"}), "malformed"),
        (json!({"op": "connect", "peer": "nobody", "port": 1}), "unknown_peer"),
        (json!({"op": "accept", "connection": 512}), "no_such"),
        (json!({"op": "close", "connection": 513}), "no_such"),
        (json!({"op": "unlisten", "port": 9000}), "no_such"),
    ] {
        raw.request(9, &what);
        let (kind, id, body) = raw.frame().unwrap();
        assert_eq!((kind, id, &body["code"]), (0x03, 9, &json!(code)), "{what}: {body}");
    }
    // L1.5, L5.3: for nothing, and its cost comes back: twice the session's 16 MiB are sent so, none of them without credit.
    const CREDIT: usize = 16 << 20;
    const COST: usize = 65_536 + 64;
    let (mut sent, mut returned) = (0, 0);
    while sent < 2 * CREDIT {
        if sent + COST - returned <= CREDIT {
            raw.say(0x10, 0x200, &[0; 65_536]);
            sent += COST;
        } else {
            let (kind, id, body) = raw.bytes().unwrap();
            assert_eq!((kind, id), (0x14, 0));
            returned += u32::from_be_bytes(body.try_into().unwrap()) as usize;
        }
    }
    raw.request(10, &json!({"op": "peers"}));
    let (_, id, answer) = std::iter::from_fn(|| raw.frame()).find(|(kind, ..)| *kind != 0x14).unwrap();
    assert_eq!((id, &answer["peers"][0]["name"]), (10, &json!("b")), "{answer}");
    let b = scene.node("b");
    // L3.5: sent before it is accepted.
    let mut raw = Raw::hello(&socket);
    raw.request(2, &json!({"op": "listen", "port": 7100}));
    assert_eq!(raw.frame().unwrap().2, json!({"port": 7100}));
    let early = tokio::spawn(async move {
        let refused = b.connect("a", 7100).await.err().unwrap();
        (b, refused)
    });
    let raw = tokio::task::spawn_blocking(move || {
        let (kind, connection, event) = raw.frame().unwrap();
        assert_eq!((kind, &event["event"], &event["peer"]), (0x04, &json!("incoming"), &json!("b")));
        raw.say(0x10, connection, b"early");
        raw.ends_with("credit");
    });
    raw.await.unwrap();
    let (b, refused) = early.await.unwrap();
    assert_eq!(refused.code, Code::Refused);
    // A connection, and more than its credit (L5.4).
    let mut listener = b.listen(7000).await.unwrap();
    let raw = tokio::task::spawn_blocking(move || {
        let mut raw = Raw::hello(&socket);
        raw.request(2, &json!({"op": "connect", "peer": "b", "port": 7000}));
        let connection = raw.frame().unwrap().2["connection"].as_u64().unwrap() as u32;
        raw.say(0x14, connection, &1_u32.to_be_bytes());
        raw.ends_with("malformed");
        let mut raw = Raw::hello(&socket);
        raw.request(2, &json!({"op": "connect", "peer": "b", "port": 7000}));
        let connection = raw.frame().unwrap().2["connection"].as_u64().unwrap() as u32;
        for _ in 0..200 {
            raw.say(0x10, connection, &[0; 65_536]);
        }
        while let Some((kind, _, body)) = raw.frame() {
            if kind == 0x03 {
                return body["code"].as_str().unwrap().to_owned();
            }
        }
        String::new()
    });
    let connections = [listener.accept().await.unwrap(), listener.accept().await.unwrap()];
    assert_eq!(raw.await.unwrap(), "credit");
    drop(connections);
}

/// L2.2: many at once, half of whom say nothing, stop nobody.
#[tokio::test]
async fn two_thousand_applications_at_once() {
    const APPLICATIONS: usize = 2000;
    let scene = Scene::new();
    let _up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    let mut all = Vec::new();
    for number in 0..APPLICATIONS {
        all.push(if number % 2 == 0 { Raw::new(&socket) } else { Raw::hello(&socket) });
    }
    let node = timeout(LONG, Node::attach(&socket)).await.unwrap().unwrap();
    assert_eq!(node.peers().await.unwrap()[0]["name"], "b");
    for raw in all.iter_mut().skip(1).step_by(2) {
        raw.request(2, &json!({"op": "connections"}));
        assert_eq!(raw.frame().unwrap().2, json!({"connections": [], "more": 0}));
    }
    // L1.2: who says nothing is told, and let go.
    all.swap_remove(0).ends_with("timed_out");
}

/// A node that is killed ends its applications with one clear error, and the next one takes its socket over.
#[tokio::test]
async fn a_killed_node_is_told_to_its_applications() {
    let scene = Scene::new();
    let up = Up::start(&scene, "a");
    let (node, b) = (Node::attach(scene.path("a.sock")).await.unwrap(), scene.node("b"));
    let mut listener = b.listen(7000).await.unwrap();
    let (here, _there) = tokio::join!(node.connect("b", 7000), listener.accept());
    let here = here.unwrap();
    let sender = here.clone();
    let load = tokio::spawn(async move {
        loop {
            if let Err(error) = sender.send([0; 100]).await {
                return error;
            }
        }
    });
    drop(up);
    assert_eq!(timeout(LONG, load).await.unwrap().unwrap().code, Code::ShuttingDown);
    assert_eq!(timeout(LONG, node.closed()).await.unwrap().code, Code::ShuttingDown);
    assert_eq!(here.receive().await.unwrap_err().code, Code::ShuttingDown);
    let none = Node::attach(scene.path("a.sock")).await.err().unwrap();
    assert!(none.words.contains("pilot up"), "{none}");
    let _up = Up::start(&scene, "a");
    let node = Node::attach(scene.path("a.sock")).await.unwrap();
    let (here, there) = tokio::join!(node.connect("b", 7000), listener.accept());
    here.unwrap().send("again").await.unwrap();
    assert_eq!(timeout(LONG, there.unwrap().receive()).await.unwrap().unwrap(), b"again");
}

/// An example, built by the same command as this test in CI, so that no dependency is built again with other features.
pub(crate) fn example(name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    if cfg!(feature = "aws-lc") {
        cargo.args(["build", "--quiet", "--workspace", "--exclude", "pilot-ebpf", "--exclude", "pilot-benches"]);
    } else {
        // Where this test has no C compiler, that has none either.
        cargo.args([
            "build",
            "--quiet",
            "--package",
            "pilot-user",
            "--no-default-features",
            "--features",
            "rustcrypto",
        ]);
    }
    assert!(cargo.args(["--example", name]).status().unwrap().success());
    Path::new(env!("CARGO_BIN_EXE_pilot")).with_file_name("examples").join(name)
}

/// The program of the README, against another node's echo service.
#[test]
fn the_example_sends_a_delta_and_prints_the_answer() {
    let scene = Scene::new();
    let _up = Up::start(&scene, "b");
    let ask = example("ask");
    let output = Command::new(ask).arg(scene.path("a.toml")).arg("b").output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "anomalies: 47 -> 48\n", "{words}");
    assert!(output.status.success(), "{words}");
    let lines = include_str!("../../examples/ask.rs").lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 15, "{lines} lines");
}

/// Runs `pilot ARGUMENTS --json` as a user, if one is named; its exit code and its last line.
pub(crate) fn pilot(program: &Path, uid: Option<u32>, arguments: &[&str]) -> (Option<i32>, Value) {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    command.args(arguments).arg("--json");
    if let Some(uid) = uid {
        command.uid(uid);
    }
    let output = command.output().unwrap();
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    (output.status.code(), serde_json::from_str(&last).unwrap_or_default())
}

#[test]
fn commands_use_the_node_of_the_host() {
    let scene = Scene::new();
    let program = Path::new(env!("CARGO_BIN_EXE_pilot"));
    let (config, socket) = (scene.path("a.toml"), scene.path("a.sock"));
    let (config, socket) = (config.to_str().unwrap(), socket.to_str().unwrap());
    let (code, none) = pilot(program, None, &["peers", "--socket", socket]);
    assert!(code == Some(1) && none["error"].as_str().unwrap().contains("pilot up"), "{none}");
    let _up = Up::start(&scene, "a");
    let (code, peers) = pilot(program, None, &["peers", "--config", config]);
    assert_eq!((code, &peers["peers"][0]["name"]), (Some(0), &json!("b")));
    let (code, none) = pilot(program, None, &["connections", "--socket", socket]);
    assert_eq!((code, &none["connections"]), (Some(0), &json!([])));
    let (code, unknown) = pilot(program, None, &["call", "nobody", "7000", "hello", "--socket", socket]);
    assert!(code == Some(2) && unknown["error"].as_str().unwrap().contains("configured: b"), "{unknown}");
}

/// L2.1, L3.10.
#[test]
fn other_users_may_do_what_the_configuration_says() {
    let name = "api::other_users_may_do_what_the_configuration_says";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {name}: not root");
        return;
    }
    let scene = Scene::with("introductions = true\n[local]\nusers = [{ uid = 65534, ports = [7000] }]");
    // Where another user can read it.
    let program = scene.path("pilot");
    std::fs::copy(env!("CARGO_BIN_EXE_pilot"), &program).unwrap();
    let up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    let socket = socket.to_str().unwrap();
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(pilot(&program, Some(65534), &["peers", "--socket", socket]).0, Some(0));
    let came = up.audit("application_came");
    assert_eq!((&came["uid"], &came["name"]), (&json!(65534), &json!("pilot")), "{came}");
    let mut long = Raw::new(socket.as_ref());
    long.request(1, &json!({"op": "hello", "version": 1, "name": "n".repeat(65)}));
    assert_eq!(up.audit("application_came")["name"], "n".repeat(64));
    let (code, refused) = pilot(&program, Some(65534), &["call", "b", "7001", "hello", "--socket", socket]);
    assert!(code == Some(2) && refused["error"].as_str().unwrap().contains("allowed for this user: 7000"), "{refused}");
    let config = scene.path("a.toml");
    let introduce = ["introduce", "127.0.0.1:1", "--config", config.to_str().unwrap()];
    let (_, refused) = pilot(&program, Some(65534), &introduce);
    assert!(refused["error"].as_str().unwrap().contains("is for the node's own user"), "{refused}");
    let (code, refused) = pilot(&program, Some(65533), &["peers", "--socket", socket]);
    assert!(code == Some(2) && refused["error"].as_str().unwrap().contains("user 65533 may not"), "{refused}");
}
