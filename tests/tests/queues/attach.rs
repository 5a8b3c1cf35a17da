//! Native and generic, as asked for and as the device has it.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::scene::{End, Scene};

/// Native on both ends of a pair with one queue: deltas and a file go through AF_XDP, and it is said why.
#[test]
fn native_as_the_configuration_says() {
    let Some(scene) = Scene::new("attach::native_as_the_configuration_says") else { return };
    let a = scene.node("a", End::A).line("attach = \"native\"").peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).line("attach = \"native\"").peer("a", None).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    let datapath = listen.wait_for("ready").event["datapath"].clone();
    assert_eq!((&datapath["kind"], &datapath["attach"]), (&"xdp".into(), &"native".into()), "{datapath}");
    let reason = datapath["reason"].as_str().unwrap();
    assert!(reason.contains("`attach = \"native\"`") && reason.contains("segmentation offload"), "{reason}");

    let ended = scene.run(&a, &["ping", "b", "--count", "1000", "--interval", "0"]);
    let ping = ended.success("ping");
    assert_eq!((&ping["lost"], &ping["datapath"]["attach"]), (&0.into(), &"native".into()), "{ping}");
    assert!(ping["opened_from_xdp"].as_u64() >= Some(1000), "{ping}");
    let bytes = scene.file("file", 4 << 20);
    assert_eq!(scene.run(&a, &["send", "file", "b"]).success("send")["sha256_ok"], true);
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let ended = listen.end_by(Signal::SIGTERM);
    assert!(ended.success("stats")["engine"]["opened_from_xdp"].as_u64() >= Some(1000), "{ended:#?}");
}

/// A pair whose other end may send on more queues than this end receives on has no native mode (ENOSPC). Asked for, it is not
/// replaced by generic; and it is used as soon as it can be had.
#[test]
fn native_that_the_device_refuses_is_udp_with_a_reason() {
    let Some(scene) = Scene::with_queues("attach::native_that_the_device_refuses_is_udp_with_a_reason", [2, 1]) else {
        return;
    };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).line("attach = \"native\"").peer("a", None).write();
    let mut up = scene.start(&b, &["up"]);
    let datapath = up.wait_for("ready").event["datapath"].clone();
    assert_eq!(datapath["kind"], "udp", "{datapath}");
    let reason = datapath["reason"].as_str().unwrap();
    for words in ["veth-b refused an XDP program in Native mode", "fewer receive queues than its peer", "ethtool -L"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    assert_eq!(scene.xdp_program(End::B), None, "nor in generic mode");
    let ping = ["ping", "b", "--count", "100", "--interval", "0"];
    scene.run(&a, &ping).success("ping");

    let fewer = ["netns", "exec", &scene.namespace(End::A), "ethtool", "-L", "veth-a", "tx", "1"];
    assert!(Command::new("ip").args(fewer).status().expect("ip and ethtool, which these tests use").success());
    let datapath = &up.wait_for("datapath").event["datapath"];
    assert_eq!((&datapath["kind"], &datapath["attach"]), (&"xdp".into(), &"native".into()), "{datapath}");
    scene.run(&a, &ping).success("ping");
    let ended = up.end_by(Signal::SIGTERM);
    assert!(ended.success("stats")["engine"]["opened_from_xdp"].as_u64() >= Some(100), "{ended:#?}");
}

/// More queues than the configuration names: what arrives on them is not lost, and the operator is told.
#[test]
fn queues_that_nobody_serves_are_said() {
    let Some(scene) = Scene::with_queues("attach::queues_that_nobody_serves_are_said", [2, 2]) else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut up = scene.start(&b, &["up"]);
    let datapath = up.wait_for("ready").event["datapath"].clone();
    assert_eq!((&datapath["kind"], &datapath["attach"]), (&"xdp".into(), &"generic".into()), "{datapath}");
    let reason = datapath["reason"].as_str().unwrap();
    for words in ["veth-b has 2 receive queues of which 1 is served", "goes over UDP", "`queues`"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    let ended = scene.run(&a, &["ping", "b", "--count", "100", "--interval", "0"]);
    assert_eq!(ended.success("ping")["lost"], 0);
    assert_eq!(up.end_by(Signal::SIGTERM).code, Some(0));
}
