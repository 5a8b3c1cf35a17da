//! What scripts rely on: exit codes, names of errors, a hint with each; and what is generated from the arguments.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::daemon::Up;
use crate::scene::Scene;

/// Runs `pilot ARGUMENTS --json`: its exit code, the last line, and what it said on standard error.
fn pilot(arguments: &[&str]) -> (Option<i32>, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pilot")).args(arguments).arg("--json").output().unwrap();
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_str(&last).unwrap_or_default(), said)
}

/// Each fails with its exit code, the name of what is wrong where it has one, and a hint.
#[test]
fn errors_have_a_code_and_a_hint() {
    let scene = Scene::new();
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let (socket, none) = (path("a.sock"), path("none.sock"));
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    for (arguments, code, name, hint) in [
        (&["peers", "--socket", &none][..], 1, json!("shutting_down"), "pilot up"),
        (&["call", "nobody", "7000", "x", "--socket", &socket], 2, json!("unknown_peer"), "pilot peers"),
        (&["call", "b", "7000", "x", "--socket", &socket], 1, json!("refused"), "listen on that port"),
        (&["sub", "t", "b", "--socket", &socket], 1, json!("refused"), "listen on that port"),
        (&["pub", "t", "x", "--port", "7", "--socket", &socket], 2, json!("not_allowed"), "local.users"),
        (&["peers", "--config", &none], 2, json!(null), "README.md"),
        (&["ping", "b", "--config", &none], 2, json!(null), "README.md"),
    ] {
        let (exit, last, said) = pilot(arguments);
        assert_eq!((exit, &last["event"], &last["exit_code"]), (Some(code), &json!("error"), &json!(code)), "{last}");
        assert_eq!(last["code"], name, "{last}");
        assert!(last["hint"].as_str().unwrap().contains(hint) && said.contains("\nhint: "), "{last} {said}");
    }
    let (exit, _, said) = pilot(&["fly"]);
    assert!(exit == Some(2) && said.contains("--help"), "{said}");
    assert_eq!(pilot(&["--version"]).0, Some(0));
}

#[test]
fn completions_and_manual_pages_have_every_command() {
    let scene = Scene::new();
    let directory = scene.path("man");
    assert_eq!(pilot(&["man", directory.to_str().unwrap()]).0, Some(0));
    let page = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    assert!(page("pilot.1").contains("Exit codes"));
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_pilot")).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        for command in ["bench", "call", "connections", "ctx", "listen", "ping", "pub", "send", "sub", "up"] {
            assert!(script.contains(command), "{shell}: {command}");
            assert!(page(&format!("pilot-{command}.1")).contains("SYNOPSIS"), "{command}");
        }
    }
    let bash = Command::new(env!("CARGO_BIN_EXE_pilot")).args(["completions", "bash"]).output().unwrap();
    let file = scene.path("pilot.bash");
    std::fs::write(&file, bash.stdout).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&file).status().unwrap();
    assert!(checked.success());
}

/// `pub` and `sub` at two nodes, and `bench` from one to the other.
#[test]
fn a_topic_and_a_bench_from_the_command_line() {
    let scene = Scene::new();
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let program = Path::new(env!("CARGO_BIN_EXE_pilot"));
    let (here, there) = (scene.path("a.sock"), scene.path("b.sock"));
    let mut publisher = Command::new(program)
        .args(["pub", "builds", "--json", "--socket"])
        .arg(&here)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(publisher.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("publishing"), "{line}");
    let subscriber = Command::new(program)
        .args(["sub", "builds", "a", "--socket"])
        .arg(&there)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = publisher.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"47\n48\n").unwrap();
    drop(input);
    let output = subscriber.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stdout)), (Some(0), "47\n48\n"));
    assert!(publisher.wait().unwrap().success());

    let arguments =
        ["--count", "400", "--connections", "40", "--in-flight", "4", "--stalled", "1", "--bulk", "1000000"];
    let socket = here.to_str().unwrap();
    let (exit, last, said) = pilot(&[&["bench", "b", "--socket", socket][..], &arguments].concat());
    assert_eq!(
        (exit, &last["event"], &last["count"], &last["stalled"]),
        (Some(0), &json!("bench"), &json!(400), &json!(1)),
        "{said}"
    );
    assert!(last["p99_us"].as_f64() >= last["p50_us"].as_f64() && last["bulk_mb_s"].as_f64() > Some(0.0), "{last}");
}
