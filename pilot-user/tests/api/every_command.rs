//! Every command of `pilot`, by a table: its exit codes, JSON alone where it is asked for, and a hint with what went wrong.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pilot_user::Node;
use pilot_user::context::{Document, Kind, Rights};
use serde_json::{Value, json};

use crate::daemon::Up;
use crate::scene::Scene;

/// A command, how it is used well and ends with which event, and how it fails, with which exit code.
struct Row<'a> {
    command: &'static [&'static str],
    good: Vec<&'a str>,
    event: &'static str,
    /// It runs until it is told to stop, and this event says that it is there.
    until: Option<&'static str>,
    bad: Vec<(Vec<&'a str>, i32)>,
}

fn row<'a>(
    command: &'static [&'static str],
    good: &[&'a str],
    event: &'static str,
    bad: &[(&[&'a str], i32)],
) -> Row<'a> {
    let bad = bad.iter().map(|(arguments, code)| (arguments.to_vec(), *code)).collect();
    Row { command, good: good.to_vec(), event, until: None, bad }
}

/// One that runs until it is told to stop.
fn long<'a>(command: &'static [&'static str], good: &[&'a str], bad: &[(&[&'a str], i32)]) -> Row<'a> {
    Row { until: Some("ready"), ..row(command, good, "stats", bad) }
}

fn start(arguments: &[&[&str]]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilot"));
    command.args(arguments.concat()).arg("--json").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What it said, each line an event; and its exit code.
fn end(child: Child, what: &dyn std::fmt::Debug) -> (Option<i32>, Vec<Value>) {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let events =
        said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{what:?}: {line}")));
    let events: Vec<Value> = events.collect();
    assert!(events.iter().all(|event| event["event"].is_string()), "{what:?}: {events:?}");
    (output.status.code(), events)
}

/// The names of commands, as `--help` has them.
fn commands(of: &[&str]) -> BTreeSet<String> {
    let help = Command::new(env!("CARGO_BIN_EXE_pilot")).args(of).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let list = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap().lines();
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|name| *name != "help").map(|name| [of, &[name]].concat().join(" ")).collect()
}

/// At node b: a context, and an application that answers calls. In a thread of its own, as an application is.
fn applications(scene: &Scene) {
    let socket = scene.path("b.sock");
    let (there, is_there) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::attach(socket).await.unwrap();
            let everyone = Rights { read: vec!["*".into()], write: vec!["*".into()] };
            let plan = Document::decode(Kind::Json, b"{}").unwrap();
            node.create_context("plan", &plan, everyone).await.unwrap();
            let mut listener = node.listen(7000).await.unwrap();
            there.send(()).unwrap();
            while let Ok(connection) = listener.accept().await {
                while let Ok(mut call) = connection.next_call().await {
                    let (request, _) = call.request().await.unwrap();
                    call.respond(request).await.unwrap();
                }
            }
        });
    });
    is_there.recv().unwrap();
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_command_has_its_exit_codes_json_and_hints() {
    let scene = Scene::with("introductions = true\nfiles = 'in'");
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    applications(&scene);
    // A node that nobody runs and that nobody can reach; and one whose peer is nowhere.
    let text = std::fs::read_to_string(scene.path("a.toml")).unwrap();
    let (general, peer) = text.split_once("[[peers]]").unwrap();
    let endpoint =
        peer.lines().find_map(|line| line.strip_prefix("endpoint = '")).unwrap().trim_end_matches('\'').to_owned();
    let general = general.replace("'a.key'", "'l.key'");
    let listen = general.lines().find(|line| line.starts_with("listen")).unwrap().to_owned();
    let general = general.replace(&listen, "listen = '127.0.0.1:0'");
    let peer: String =
        peer.lines().filter(|line| !line.starts_with("endpoint")).map(|line| format!("{line}\n")).collect();
    std::fs::write(scene.path("l.toml"), format!("{general}[[peers]]{peer}")).unwrap();
    std::fs::write(scene.path("file"), "anomalies: 48").unwrap();
    let names =
        ["a.toml", "l.toml", "none", "l.key", "new.key", "file", "contexts.toml", "a.sock", "b.sock", "man"].map(path);
    let [config, lonely, none, key, new, file, contexts, a, b, man] = names.each_ref().map(String::as_str);
    let in_file = format!("{file}/man");
    let (config, lonely) = (&["--config", config][..], &["--config", lonely][..]);
    let (endpoint, in_file) = (endpoint.as_str(), in_file.as_str());
    let (at_a, at_b, gone) = (["--socket", a], ["--socket", b], ["--socket", none]);
    macro_rules! args {
        ($($part:expr),*) => { [$(&$part[..]),*].concat().as_slice() };
    }
    let nowhere = args!(["b"], lonely).to_vec();
    let nowhere = &nowhere[..];
    let rows = [
        row(&["keygen"], &["--out", key], "keygen", &[(&["--out", key], 2), (&["--rotate", none], 2), (&[], 2)]),
        row(&["keygen"], &["--rotate", key], "keygen", &[(&["--rotate", key, "--out", new], 2)]),
        row(&["completions"], &["bash"], "completions", &[(&["nosh"], 2)]),
        row(&["man"], &[man], "man", &[(&[in_file], 1)]),
        long(&["up"], lonely, &[(&["--config", none], 2), (config, 1), (&[], 2)]),
        long(&["listen"], lonely, &[(&["--config", none], 2), (config, 1)]),
        row(
            &["ping"],
            args!(["b", "--count", "1"], config),
            "ping",
            &[(args!(["c"], config), 2), (args!(["b", "--count", "0"], config), 2), (nowhere, 1)],
        ),
        row(
            &["send"],
            args!([file, "b"], config),
            "send",
            &[(args!([none, "b"], config), 2), (args!([file, "c"], config), 2), (args!([file], nowhere), 1)],
        ),
        row(&["doctor"], config, "check", &[(&["--config", none], 2), (&[], 2)]),
        row(&["doctor"], lonely, "check", &[]),
        row(&["introduce"], args!([endpoint], lonely), "introduced", &[(args!(["here"], lonely), 2)]),
        row(&["introduce"], args!([endpoint], config), "introduced", &[(args!(["here"], config), 2)]),
        row(&["peers"], &at_a[..], "peers", &[(&gone[..], 1), (&[], 2), (args!(at_a, config), 2)]),
        row(&["metrics"], &at_a[..], "metrics", &[(&gone[..], 1), (&[], 2)]),
        row(&["connections"], config, "connections", &[(&gone[..], 1), (&[], 2)]),
        row(
            &["bench"],
            args!(["b", "--count", "10", "--bulk", "1000"], config),
            "bench",
            &[(args!(["b", "--in-flight", "2"], at_a), 2), (args!(["b"], gone), 1), (args!(["c"], at_a), 2)],
        ),
        row(
            &["pub"],
            args!(["t", "x", "--subscribers", "0"], at_a),
            "published",
            &[(args!(["t", "x", "--port", "7"], at_a), 2), (args!(["t", "x"], gone), 1)],
        ),
        row(
            &["sub"],
            args!(["t", "b", "--count", "1"], at_a),
            "message",
            &[(args!(["t", "c"], at_a), 2), (args!(["t", "b", "--port", "9"], at_a), 1), (args!(["t", "b"], gone), 1)],
        ),
        row(
            &["call"],
            args!(["b", "7000", "x"], at_a),
            "response",
            &[
                (args!(["b", "7001", "x"], at_a), 1),
                (args!(["c", "7000", "x"], at_a), 2),
                (args!(["b", "x", "x"], at_a), 2),
            ],
        ),
        row(&["ctx", "create"], &[contexts, "plan", "--read", "b"], "context_created", &[(&[contexts, "plan"], 2)]),
        long(&["ctx", "serve"], args!([contexts], lonely), &[(args!([none], lonely), 2)]),
        Row { event: "served", ..long(&["ctx", "serve"], args!([contexts], config), &[(args!([none], config), 2)]) },
        row(
            &["ctx", "delete"],
            &[contexts, "plan"],
            "context_deleted",
            &[(&[contexts, "plan"], 2), (&[none, "plan"], 2)],
        ),
        row(
            &["ctx", "set"],
            args!(["plan", "b", "--text", "{}"], config),
            "context_changed",
            &[(args!(["none", "b", "--text", "{}"], config), 1), (args!(["plan", "c", "--text", "{}"], config), 2)],
        ),
        row(
            &["ctx", "patch"],
            args!(["plan", "b", "--merge", "{}"], config),
            "context_changed",
            &[(args!(["plan", "b", "--append", "x"], config), 1), (args!(["plan", "b", "--merge", "{"], config), 2)],
        ),
        row(
            &["ctx", "show"],
            args!(["plan", "b"], config),
            "context",
            &[(args!(["none", "b"], config), 1), (args!(["plan", "c"], config), 2), (args!(["plan"], nowhere), 1)],
        ),
        row(
            &["ctx", "follow"],
            args!(["plan", "b", "--count", "0"], config),
            "context",
            &[(args!(["none", "b", "--count", "0"], config), 1), (args!(["plan", "c"], config), 2)],
        ),
    ];
    let tested: BTreeSet<String> = rows.iter().map(|row| row.command.join(" ")).collect();
    let mut all = commands(&[]);
    all.remove("ctx");
    all.extend(commands(&["ctx"]));
    assert_eq!(tested, all, "each command has a row");
    for Row { command, good, event, until, bad } in rows {
        // Somebody has to publish what is subscribed to.
        let publisher = (command == ["sub"]).then(|| start(&[&["pub", "t", "hello"], &at_b]));
        if let Some(publisher) = &publisher {
            assert!(publisher.id() > 0);
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        let mut child = start(&[command, &good]);
        let (code, events) = match until {
            None => end(child, &command),
            Some(until) => {
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                let is_it = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|said| said["event"] == until);
                let _ = lines
                    .by_ref()
                    .map_while(Result::ok)
                    .find(|line| is_it(line))
                    .unwrap_or_else(|| panic!("{command:?}"));
                kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
                let rest = lines.map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap()).collect();
                (child.wait().unwrap().code(), rest)
            }
        };
        let last = events.last().cloned().unwrap_or_default();
        assert_eq!((code, &last["event"]), (Some(0), &json!(event)), "{command:?} {good:?}: {last}");
        publisher.into_iter().for_each(|publisher| assert_eq!(end(publisher, &"pub").0, Some(0)));
        for (arguments, wanted) in bad {
            let (code, events) = end(start(&[command, &arguments]), &(command, &arguments));
            let last = events.last().cloned().unwrap_or_default();
            let what = format!("{command:?} {arguments:?}: {last}");
            assert_eq!(
                (code, &last["event"], &last["exit_code"]),
                (Some(wanted), &json!("error"), &json!(wanted)),
                "{what}"
            );
            assert!(last["error"].as_str().is_some_and(|words| !words.is_empty()), "{what}");
            // What the system said of a file, or the peer of what it was asked, is all there is to say.
            assert!(last["hint"].is_string() || command == ["man"], "{what}");
        }
    }
}
