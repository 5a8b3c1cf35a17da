//! Nodes that are killed, stopped, interrupted and started again.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pilot_common::wire::{INITIATION_LEN, PacketType};

use crate::scene::{End, Scene};

/// Traffic after a restart is promised within a second, AF_XDP within three. The machine may be busy: five times that.
const TRAFFIC_WITHIN: Duration = Duration::from_secs(5);
const XDP_WITHIN: Duration = Duration::from_secs(15);

/// A bound for hangs.
const HANG: Duration = Duration::from_secs(20);

/// kill -9 leaves no XDP program; started again, the node has traffic and AF_XDP soon, and its peer is told why its
/// connection is over.
#[test]
fn a_killed_node_leaves_nothing_and_comes_back() {
    let Some(scene) = Scene::new("life::a_killed_node_leaves_nothing_and_comes_back") else { return };
    let a = scene.node("a", End::A).peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", Some(End::A.listen())).write();
    let mut first = scene.start(&b, &["listen", "--files", "received"]);
    assert_eq!(first.wait_for("ready").event["datapath"]["kind"], "xdp");
    let program = scene.xdp_program(End::B);
    assert!(program.is_some());
    let mut ping = scene.start(&a, &["ping", "b", "--count", "1000000", "--interval", "20"]);
    ping.wait_for_progress(10);

    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().code, None);
    assert_eq!(scene.xdp_program(End::B), None, "the program goes with the process");
    assert!(scene.xdp_program(End::A).is_some(), "and only that one");

    let started = Instant::now();
    let mut second = scene.start(&b, &["listen", "--files", "received"]);
    ping.wait_for("error");
    let told = started.elapsed();
    // Told by a reset, its peer ends before there is a tunnel to the new process; so a ping that was begun anew is the traffic.
    ping.end().failure(1, &["b: ", "restarted"]);
    let anew = scene.run(&a, &["ping", "b", "--count", "1", "--interval", "0"]);
    let traffic = started.elapsed();
    anew.success("ping");
    let ready = second.wait_for("ready");
    assert_eq!(ready.event["datapath"]["kind"], "xdp");
    let xdp = ready.at - started;
    eprintln!("after kill -9: traffic after {traffic:?}, the peer was told after {told:?}, AF_XDP after {xdp:?}");
    assert!(traffic < TRAFFIC_WITHIN && xdp < XDP_WITHIN, "traffic after {traffic:?}, AF_XDP after {xdp:?}");
    assert_ne!(scene.xdp_program(End::B), program, "a new one");
    assert_eq!(second.end_by(Signal::SIGTERM).code, Some(0));
}

/// A restarted node whose configuration does not say where its peer is: the peer finds out as soon as it sends, or is called
/// where it was.
#[test]
fn a_restart_is_noticed_without_being_told() {
    let Some(scene) = Scene::new("life::a_restart_is_noticed_without_being_told") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut first = scene.start(&b, &["up"]);
    first.wait_for("ready");
    let mut ping = scene.start(&a, &["ping", "b", "--count", "1000000", "--interval", "20"]);
    ping.wait_for_progress(10);
    first.end_by(Signal::SIGKILL);
    let started = Instant::now();
    let mut second = scene.start(&b, &["up"]);
    let told = ping.wait_for("error").at - started;
    ping.end().failure(1, &["b: ", "restarted"]);
    eprintln!("after kill -9 of a node that does not call: its peer knew after {told:?}");
    second.wait_for("ready");
    scene.run(&a, &["ping", "b", "--count", "1", "--interval", "0"]).success("ping");
}

/// A node that was called, killed, and started again calls where the peer was, although its configuration does not say.
#[test]
fn a_restarted_node_calls_the_peers_it_had() {
    let Some(scene) = Scene::new("life::a_restarted_node_calls_the_peers_it_had") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).udp().peer("a", None).write();
    let mut first = scene.start(&b, &["up"]);
    first.wait_for("ready");
    let caller = scene.start(&a, &["up"]);
    first.wait_for("tunnel_up");
    for node in [first, caller] {
        node.end_by(Signal::SIGKILL);
    }
    // In the caller's place is somebody who says nothing.
    let silent = scene.socket(End::A, End::A.listen());
    silent.set_read_timeout(Some(HANG)).unwrap();
    let _second = scene.start(&b, &["up"]);
    let mut datagram = [0; 2048];
    let length = silent.recv(&mut datagram).expect("it is called");
    assert_eq!((length, datagram[0] >> 2 & 7), (INITIATION_LEN, PacketType::Initiation as u8));
}

/// The address of a node's device is replaced while it talks: the tunnel goes on from the new one, by AF_XDP.
#[test]
fn a_node_whose_address_changes_goes_on() {
    const RECEIVED: &str = "pilot_datagrams_received_total{way=\"xdp\"}";
    let Some(scene) = Scene::new("life::a_node_whose_address_changes_goes_on") else { return };
    let a = scene.node("a", End::A).peer("b", None).write();
    let b = scene.node("b", End::B).listen("0.0.0.0:4242").peer("a", Some(End::A.listen())).write();
    let (mut at_a, mut at_b) = (scene.start(&a, &["up"]), scene.start(&b, &["up"]));
    for up in [&mut at_a, &mut at_b] {
        assert_eq!(up.wait_for("ready").event["datapath"]["kind"], "xdp");
    }
    let mut ping = scene.start(&b, &["ping", "a", "--count", "500", "--interval", "2"]);
    ping.wait_for_progress(50);
    scene.ip(End::B, &["address", "delete", "10.77.0.2/24", "dev", "veth-b"]);
    scene.ip(End::B, &["address", "add", "10.77.0.9/24", "dev", "veth-b"]);
    assert_eq!(ping.end().success("ping")["lost"], 0);
    let peers = scene.run(&a, &["peers"]);
    assert_eq!(peers.success("peers")["peers"][0]["endpoint"], "10.77.0.9:4242");
    let before = scene.metric(&b, RECEIVED);
    let ended = scene.run(&b, &["ping", "a", "--count", "500", "--interval", "0"]);
    assert_eq!(ended.success("ping")["lost"], 0);
    assert!(scene.metric(&b, RECEIVED) >= before + 450, "of 500 answers nearly all");
}

/// SIGTERM: counters, exit code 0, nothing attached; the peer is told.
#[test]
fn a_stopped_node_says_goodbye() {
    let Some(scene) = Scene::new("life::a_stopped_node_says_goodbye") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    listen.wait_for("ready");
    let mut ping = scene.start(&a, &["ping", "b", "--count", "1000000", "--interval", "20"]);
    let answered = ping.wait_for_progress(10);
    assert!(scene.xdp_program(End::B).is_some());

    let ended = listen.end_by(Signal::SIGTERM);
    assert_eq!(scene.xdp_program(End::B), None);
    let stats = ended.success("stats");
    assert_eq!(ended.said.last().map(|said| &said.event), Some(stats), "the counters come last");
    assert!(stats["engine"]["opened_from_xdp"].as_u64() >= Some(answered), "{stats}");
    assert!(stats["xdp"]["redirected"].as_u64() >= Some(answered), "{stats}");
    ping.end().failure(1, &["b: ", "shutting down"]);
}

/// SIGINT: exit code 130, nothing attached, nothing of the file at the receiver, which serves the next one.
#[test]
fn an_interrupted_send_leaves_no_part_of_a_file() {
    let Some(scene) = Scene::new("life::an_interrupted_send_leaves_no_part_of_a_file") else { return };
    let a = scene.node("a", End::A).peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    listen.wait_for("ready");
    // Sparse, and more than can be sent before the signal comes.
    let large = std::fs::File::create(scene.directory().join("large")).unwrap();
    large.set_len(1 << 40).unwrap();
    let mut send = scene.start(&a, &["send", "large", "b"]);
    send.wait_for_progress(1 << 20);
    assert!(scene.xdp_program(End::A).is_some());
    send.signal(Signal::SIGINT);
    send.end().failure(130, &["interrupted"]);
    assert_eq!(scene.xdp_program(End::A), None);

    listen.wait_for("tunnel_down");
    scene.file("small", 100_000);
    assert_eq!(scene.run(&a, &["send", "small", "b"]).success("send")["sha256_ok"], true);
    let received = std::fs::read_dir(scene.directory().join("received")).unwrap();
    let received: Vec<_> = received.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(received, ["small"], "no part of the large one");
    assert_eq!(listen.end_by(Signal::SIGTERM).code, Some(0));
}
