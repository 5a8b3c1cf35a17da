//! `pilot introduce`: an operator asks a node at work who it is (wire.md §3.5).

use std::fs;
use std::process::{Command, Output};

use pilot_user::identity_file;
use serde_json::{Value, json};

use crate::daemon::{Raw, Up};
use crate::scene::Scene;

fn public_key(scene: &Scene, name: &str) -> String {
    identity_file::read(&scene.path(&format!("{name}.key"))).unwrap().public_key().to_string()
}

/// What node a says of whoever is where its configuration says that b is.
fn introduce(scene: &Scene, more: &[&str]) -> Output {
    let config = fs::read_to_string(scene.path("a.toml")).unwrap();
    let endpoint = config.lines().find_map(|line| line.strip_prefix("endpoint = ")).unwrap().trim_matches('\'');
    let pilot = env!("CARGO_BIN_EXE_pilot");
    Command::new(pilot)
        .args(["--json", "introduce", endpoint, "--config"])
        .arg(scene.path("a.toml"))
        .args(more)
        .output()
        .unwrap()
}

#[tokio::test]
async fn an_operator_asks_who_is_there() {
    let scene = Scene::with("introductions = true");
    for is_peer in [true, false] {
        let own = fs::read_to_string(scene.path("b.toml")).unwrap();
        if !is_peer {
            fs::write(scene.path("b.toml"), own.split("[[peers]]").next().unwrap()).unwrap();
        }
        let b = scene.node("b");
        let key = public_key(&scene, "b");
        let output = introduce(&scene, &["--key", &key]);
        assert!(output.status.success(), "{output:?}");
        let event: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&event["event"], &event["key"]), (&"introduced".into(), &key.into()), "{event}");
        assert_eq!((&event["address"], &event["accepted"]), (&"0:0000.0000.0002".into(), &is_peer.into()), "{event}");
        b.close().await;
    }
}

/// local-protocol.md L3.10: the node that runs asks, from its own port; a stranger that asks at its socket learns nothing.
#[test]
fn the_node_that_runs_asks() {
    let scene = Scene::with("introductions = true");
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let key = public_key(&scene, "b");
    let output = introduce(&scene, &["--key", &key]);
    assert!(output.status.success(), "{output:?}");
    let event: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&event["key"], &event["accepted"]), (&key.into(), &true.into()), "{event}");
    let other = introduce(&scene, &["--key", &public_key(&scene, "a")]);
    let event: Value = serde_json::from_slice(&other.stdout).unwrap();
    assert_eq!((other.status.code(), &event["code"]), (Some(1), &"timed_out".into()), "{event}");
    let mut raw = Raw::hello(&scene.path("a.sock"));
    raw.request(2, &json!({"op": "introduce", "endpoint": "127.0.0.1:1", "key": "nobody"}));
    let (kind, _, refused) = raw.frame().unwrap();
    assert_eq!((kind, &refused["code"]), (0x03, &json!("malformed")), "{refused}");
}

#[test]
fn it_is_off_by_default() {
    let output = introduce(&Scene::new(), &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let words = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("`introductions`"), "{words}");
}
