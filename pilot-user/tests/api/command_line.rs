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

/// `ping` and `send` use the node that runs with their configuration, and files come to one that says where to.
#[test]
fn commands_use_the_node_of_the_host() {
    let scene = Scene::with("files = 'in'");
    let path = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    let config = path("a.toml");
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let ping = ["ping", "b", "--count", "3", "--interval", "1", "--config", &config];
    let (exit, last, said) = pilot(&ping);
    assert_eq!((exit, &last["event"], &last["attached"]), (Some(0), &json!("ping"), &json!(true)), "{said}");
    assert_eq!((&last["count"], &last["lost"]), (&json!(3), &json!(0)), "{last}");
    assert!(last["p99_us"].as_f64() >= last["p50_us"].as_f64() && last["p50_us"].as_f64() > Some(0.0), "{last}");
    let (exit, last, said) = pilot(&[&ping[..], &["--aead", "aes-256-gcm"]].concat());
    assert!(exit == Some(2) && said.contains("which runs, has its own choice"), "{last}");
    let (exit, last, _) = pilot(&["ping", "c", "--config", &config]);
    assert_eq!((exit, &last["code"]), (Some(2), &json!("unknown_peer")), "{last}");

    // More than all credit on the way, so that one who is refused cannot wait until it has written all.
    let bytes: Vec<u8> = (0..8_000_000_u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    for (name, bytes) in [("large", &bytes[..]), ("empty", &[])] {
        std::fs::write(scene.path(name), bytes).unwrap();
        let (exit, last, said) = pilot(&["send", &path(name), "b", "--config", &config]);
        assert_eq!(
            (exit, &last["attached"], &last["sha256_ok"]),
            (Some(0), &json!(true), &json!(true)),
            "{last} {said}"
        );
        assert_eq!(last["bytes"], bytes.len());
        assert!(std::fs::read(scene.path("in").join(name)).unwrap() == bytes);
    }
    let (exit, last, _) = pilot(&["send", &path("large"), "b", "--config", &config]);
    assert!(
        exit == Some(1) && last["error"].as_str().unwrap().contains("b refused the file: there is a file"),
        "{last}"
    );
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

    let arguments = [
        "--count",
        "400",
        "--connections",
        "40",
        "--in-flight",
        "4",
        "--stalled",
        "1",
        "--rounds",
        "2",
        "--bulk",
        "1000000",
    ];
    let socket = here.to_str().unwrap();
    let (exit, last, said) = pilot(&[&["bench", "b", "--socket", socket][..], &arguments].concat());
    assert_eq!(
        (exit, &last["event"], &last["count"], &last["stalled"]),
        (Some(0), &json!("bench"), &json!(400), &json!(1)),
        "{said}"
    );
    assert!(last["p99_us"].as_f64() >= last["p50_us"].as_f64() && last["bulk_mb_s"].as_f64() > Some(0.0), "{last}");
    let without = &last["without_stalled"];
    assert!(
        without["p99_us"].as_f64() >= without["p50_us"].as_f64() && without["p50_us"].as_f64() > Some(0.0),
        "{last}"
    );
    let added = &without["p99_added_us"];
    assert_eq!((added["rounds"].as_array().map(Vec::len), &added["max"]), (Some(2), &added["rounds"][1]), "{last}");
}
