//! `pilot doctor`: in words, what is as it should be, and what is not.

use std::process::Command;

use serde_json::Value;

use crate::daemon::Up;
use crate::scene::Scene;

/// Its exit code, and its checks: name, finding, words and fix.
fn doctor(mut command: Command, scene: &Scene) -> (Option<i32>, Vec<(String, String, String)>) {
    command.args(["doctor", "--json", "--config"]).arg(scene.path("a.toml"));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let events = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let checks = events.filter(|event| event["event"] == "check").map(|event| {
        let words = format!("{} {}", text(&event, "words"), text(&event, "fix"));
        (text(&event, "check"), text(&event, "finding"), words)
    });
    (output.status.code(), checks.collect())
}

fn pilot() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pilot"))
}

#[track_caller]
fn finds(checks: &[(String, String, String)], check: &str, finding: &str, words: &str) {
    let found = checks.iter().find(|(name, ..)| name == check).unwrap_or_else(|| panic!("no {check}: {checks:#?}"));
    assert!(found.1 == finding && found.2.contains(words), "{found:?}");
}

#[test]
fn a_node_that_runs_is_asked() {
    let scene = Scene::new();
    let (_a, b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let (code, checks) = doctor(pilot(), &scene);
    finds(&checks, "node", "good", "a.sock");
    finds(&checks, "datapath", "note", "UDP: no `interface` is configured");
    finds(&checks, "losses", "good", "left this host");
    finds(&checks, "peer b", "good", "it answers");
    assert_eq!(code, Some(0), "{checks:#?}");
    drop(b);
    let (code, checks) = doctor(pilot(), &scene);
    finds(&checks, "peer b", "bad", "does its firewall let UDP to its port through");
    assert_eq!(code, Some(1), "{checks:#?}");
}

#[test]
fn without_one_it_tries_out_how_it_would_run() {
    let scene = Scene::new();
    let (code, checks) = doctor(pilot(), &scene);
    finds(&checks, "node", "note", "none runs");
    finds(&checks, "listen", "good", "can be had");
    finds(&checks, "datapath", "note", "no `interface` is configured");
    assert_eq!(code, Some(0), "{checks:#?}");
    let own = std::fs::read_to_string(scene.path("a.toml")).unwrap();
    let with = |lines: &str| std::fs::write(scene.path("a.toml"), format!("{lines}\n{own}")).unwrap();
    with("interface = \"nowhere0\"\ndatapath = \"xdp\"");
    let (code, checks) = doctor(pilot(), &scene);
    finds(&checks, "interface", "bad", "nowhere0");
    finds(&checks, "datapath", "bad", "there is no interface `nowhere0`: `ip link` lists those there are");
    assert_eq!(code, Some(1), "{checks:#?}");
}

#[test]
fn rights_that_are_missing_are_named() {
    let name = "api::rights_that_are_missing_are_named";
    if !nix::unistd::geteuid().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("skipped: {name}: not root, or no setpriv");
        return;
    }
    let scene = Scene::new();
    let own = std::fs::read_to_string(scene.path("a.toml")).unwrap();
    std::fs::write(scene.path("a.toml"), format!("interface = \"lo\"\ndatapath = \"xdp\"\n{own}")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-net_raw,-bpf", env!("CARGO_BIN_EXE_pilot")]);
    let (code, checks) = doctor(command, &scene);
    finds(&checks, "rights", "bad", "CAP_NET_RAW, CAP_BPF");
    finds(&checks, "rights", "bad", "`setcap cap_net_raw,cap_bpf=ep`");
    assert!(!checks.iter().any(|(_, _, words)| words.contains("CAP_NET_ADMIN")), "{checks:#?}");
    assert_eq!(code, Some(1), "{checks:#?}");
}
