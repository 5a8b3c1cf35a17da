//! `pilot ctx serve` where a node runs: that one holds the contexts of the file.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pilot_user::Node;
use pilot_user::api::Code;
use serde_json::Value;
use tokio::time::timeout;

use crate::daemon::{Up, pilot};
use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_node_that_runs_holds_the_contexts_of_a_file() {
    let scene = Scene::new();
    let (a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (file, config) = (path("contexts.toml"), path("a.toml"));
    let program = env!("CARGO_BIN_EXE_pilot");
    let run = |arguments: &[&str]| {
        assert_eq!(pilot(program.as_ref(), None, arguments).0, Some(0), "{arguments:?}");
    };
    run(&["ctx", "create", &file, "plan", "--read", "b", "--write", "b"]);
    run(&["ctx", "create", &file, "notes", "--kind", "text", "--read", "b", "--durable"]);
    run(&["ctx", "create", &file, "log", "--kind", "log", "--read", "b"]);
    let serve = || {
        let mut command = Command::new(program);
        command.args(["ctx", "serve", &file, "--json", "--config", &config]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let ready: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        assert_eq!(ready["event"], "ready", "{ready}");
        (child, lines, ready)
    };
    let (mut child, mut lines, ready) = serve();
    assert_eq!(ready["contexts"], serde_json::json!(["plan", "notes", "log"]));
    let b = Node::attach(scene.path("b.sock")).await.unwrap();
    let mut log = b.context("log", "a").follow().await.unwrap();
    let plan = b.context("plan", "a").follow().await.unwrap();
    run(&["ctx", "delete", &file, "log"]);
    let ended = timeout(LONG, log.next()).await.unwrap();
    assert_eq!(ended.err().map(|error| error.code), Some(Code::Context), "it was deleted");
    let deleted: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert_eq!((&deleted["event"], &deleted["name"]), (&"context_deleted".into(), &"log".into()));
    drop(plan);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // What is not durable ended with the command; the other the node keeps, and serves on.
    let gone = b.context("plan", "a").follow().await;
    assert_eq!(gone.err().map(|error| error.code), Some(Code::Context));
    b.context("notes", "a").follow().await.unwrap();
    let (mut child, ..) = serve();
    b.context("plan", "a").follow().await.unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // As durable as the file says: it outlives the node.
    drop(a);
    let _a = Up::start(&scene, "a");
    let a = Node::attach(scene.path("a.sock")).await.unwrap();
    a.context("notes", None).follow().await.unwrap();
    let gone = a.context("plan", None).follow().await;
    assert_eq!(gone.err().map(|error| error.code), Some(Code::Context));
}
