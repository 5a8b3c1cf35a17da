//! Configurations and interfaces that are not right: what the command says, and its exit code.

use std::fs;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::scene::{End, Scene};

/// An interface that is missing, down or without an address keeps nobody from UDP, and is said in words.
#[test]
fn without_its_interface_a_node_runs_over_udp_and_says_why() {
    let Some(scene) = Scene::new("setup::without_its_interface_a_node_runs_over_udp_and_says_why") else { return };
    let missing = scene.node("m", End::B).listen("127.0.0.1:4242").interface(Some("nope"));
    let missing = missing.line("datapath = \"xdp\"").write();
    let mut up = scene.start(&missing, &["up"]);
    let datapath = &up.wait_for("ready").event["datapath"];
    assert_eq!(datapath["kind"], "udp");
    let reason = datapath["reason"].as_str().unwrap();
    assert!(reason.contains("there is no interface `nope`") && reason.contains("ip link"), "{reason}");
    let ended = up.end_by(Signal::SIGTERM);
    ended.success("stats");
    assert!(
        ended.stderr.contains("WARN") && ended.stderr.contains("nope"),
        "asked for, so worth a warning: {ended:#?}"
    );

    scene.ip(End::B, &["link", "set", "veth-b", "down"]);
    let down = scene.node("b", End::B).listen("0.0.0.0:4242").peer("a", None).write();
    let mut up = scene.start(&down, &["up"]);
    let datapath = &up.wait_for("ready").event["datapath"];
    assert_eq!(datapath["kind"], "udp");
    assert_eq!(datapath["reason"], "veth-b is down: `ip link set veth-b up`");
    scene.ip(End::B, &["link", "set", "veth-b", "up"]);
    assert_eq!(up.wait_for("datapath").event["datapath"]["kind"], "xdp", "it helps at once");
    let a = scene.node("a", End::A).peer("b", Some(End::B.listen())).write();
    scene.run(&a, &["ping", "b", "--count", "10", "--interval", "0"]).success("ping");
    assert_eq!(up.end_by(Signal::SIGTERM).code, Some(0));

    scene.ip(End::B, &["address", "flush", "dev", "veth-b"]);
    let mut up = scene.start(&down, &["up"]);
    assert_eq!(
        up.wait_for("ready").event["datapath"]["kind"],
        "xdp",
        "without an address there is just nobody to talk to"
    );
    assert_eq!(up.end_by(Signal::SIGTERM).code, Some(0));
    let homeless = scene.node("b", End::B).write();
    scene.run(&homeless, &["up"]).failure(1, &["cannot listen on 10.77.0.2:4242", "Cannot assign requested address"]);
}

/// A command waits for AF_XDP a few seconds and no longer.
#[test]
fn a_command_without_its_interface_begins_over_udp() {
    let Some(scene) = Scene::new("setup::a_command_without_its_interface_begins_over_udp") else { return };
    let a = scene.node("a", End::A).interface(Some("nope")).peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut up = scene.start(&b, &["up"]);
    up.wait_for("ready");
    let started = Instant::now();
    let ended = scene.run(&a, &["ping", "b", "--count", "10", "--interval", "0"]);
    let datapath = &ended.success("ping")["datapath"];
    assert_eq!(datapath["kind"], "udp");
    assert!(datapath["reason"].as_str().unwrap().contains("there is no interface `nope`"), "{datapath}");
    eprintln!("a ping without its interface took {:?}", started.elapsed());
}

/// The port is somebody else's.
#[test]
fn a_port_in_use_is_named() {
    let Some(scene) = Scene::new("setup::a_port_in_use_is_named") else { return };
    let _other = scene.socket(End::B, End::B.listen());
    let b = scene.node("b", End::B).write();
    scene.run(&b, &["up"]).failure(1, &["cannot listen on 10.77.0.2:4242", "Address already in use"]);
    assert_eq!(scene.xdp_program(End::B), None);
}

/// Another XDP program on the device is left alone, and named.
#[test]
fn two_nodes_on_one_device_do_not_fight() {
    let Some(scene) = Scene::new("setup::two_nodes_on_one_device_do_not_fight") else { return };
    let b = scene.node("b", End::B).peer("a", None).write();
    let second = scene.node("s", End::B).listen("10.77.0.2:4343").peer("a", None).write();
    let mut first = scene.start(&b, &["up"]);
    first.wait_for("ready");
    let program = scene.xdp_program(End::B).unwrap();
    let mut up = scene.start(&second, &["up"]);
    let datapath = &up.wait_for("ready").event["datapath"];
    let reason = datapath["reason"].as_str().unwrap();
    assert_eq!(datapath["kind"], "udp");
    assert!(
        reason.contains("veth-b has another XDP program") && reason.contains(&format!("(id {program})")),
        "{reason}"
    );
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).peer("s", Some("10.77.0.2:4343")).write();
    for name in ["b", "s"] {
        scene.run(&a, &["ping", name, "--count", "10", "--interval", "0"]).success("ping");
    }
    assert_eq!(first.end_by(Signal::SIGTERM).code, Some(0));
    assert_eq!(up.wait_for("datapath").event["datapath"]["kind"], "xdp", "its turn");
    assert_eq!(up.end_by(Signal::SIGTERM).code, Some(0));
}

/// Exit code 2, and the field, what was given and what is allowed in words. (That every field is checked, config/tests.rs shows.)
#[test]
fn configuration_errors_name_field_given_and_allowed() {
    let Some(scene) = Scene::new("setup::configuration_errors_name_field_given_and_allowed") else { return };
    let up = ["up"];
    let b = scene.node("b", End::B).line("datapaths = \"xdp\"").write();
    scene.run(&b, &up).failure(2, &["config", "unknown field", "`datapaths`", "`datapath`"]);
    let b = scene.node("b", End::B).line("datapath = \"fast\"").write();
    scene.run(&b, &up).failure(2, &["config", "fast", "`auto`", "`xdp`", "`udp`"]);
    let b = scene.node("b", End::B).line("queues = [0, 1, 0]").write();
    scene.run(&b, &up).failure(2, &["`queues`", "given [0, 1, 0]", "each queue once"]);
    let b = scene.node("b", End::B).line("bulk_port = 4242").write();
    scene.run(&b, &up).failure(2, &["`bulk_port`", "given 4242", "a port other than 4242"]);
    let b = scene.node("b", End::B).interface(None).line("datapath = \"xdp\"").write();
    scene.run(&b, &up).failure(2, &["`interface`", "given nothing", "device"]);
    let b = scene.node("b", End::B).peer_with_key("a", "pilot1-x", None).write();
    scene.run(&b, &up).failure(2, &["`peers.a.key`", "pilot1-x", "pilot keygen"]);
    let b = scene.node("b", End::B).listen("10.77.0.2").write();
    scene.run(&b, &up).failure(2, &["`listen`", "\"10.77.0.2\"", "192.0.2.1:4242"]);

    fs::remove_file(&b.config).unwrap();
    scene.run(&b, &up).failure(2, &["cannot read config file", "b.toml", "No such file"]);
    let b = scene.node("b", End::B).line("cores = [100000]").write();
    scene.run(&b, &up).failure(2, &["100000"]);
    let b = scene.node("b", End::B).write();
    fs::remove_file(scene.directory().join("b.key")).unwrap();
    scene.run(&b, &up).failure(2, &["identity file", "b.key", "No such file"]);
}
