//! Several queues, a worker each: what arrives on another queue than its worker's is handed over, and nothing is lost.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::pilot::Ended;
use crate::scene::{Draft, End, Node, Scene};

/// Where nodes without AF_XDP listen: each port makes another flow, which a kernel sends on the queue that its hash names.
const PORTS: std::ops::Range<u16> = 4300..4332;

/// Node b serves both queues. Its first worker has the tunnels to its first and third peer, its second that to the second.
fn two_workers<'a>(scene: &'a Scene, peers: &[&str]) -> Draft<'a> {
    let b = scene.node("b", End::B).line("queues = [0, 1]");
    peers.iter().fold(b, |b, peer| b.peer(peer, None))
}

/// A node at a that has no AF_XDP, on a port of its own.
fn kernel_node(scene: &Scene, name: &str, port: u16) -> Node {
    scene.node(name, End::A).udp().listen(&format!("10.77.0.1:{port}")).peer("b", Some(End::B.listen())).write()
}

fn ping(scene: &Scene, node: &Node, count: u64) {
    let ended = scene.run(node, &["ping", "b", "--count", &count.to_string(), "--interval", "0"]);
    assert_eq!(ended.success("ping")["lost"], 0, "{ended:#?}");
}

/// Frames that the XDP program saw on each of b's queues.
fn seen_by_queue(scene: &Scene) -> [u64; 2] {
    let command = ["netns", "exec", &scene.namespace(End::B), "ethtool", "-S", "veth-b"];
    let output = Command::new("ip").args(command).output().expect("ip and ethtool, which these tests use");
    let text = String::from_utf8(output.stdout).expect("text");
    [0, 1].map(|queue| {
        let name = format!("rx_queue_{queue}_xdp_packets:");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&name));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    })
}

/// Everything that was handed over was taken over; per worker what it opened from AF_XDP.
#[track_caller]
fn nothing_lost(ended: &Ended) -> (u64, [u64; 2]) {
    let stats = ended.success("stats");
    let handoff = &stats["handoff"];
    assert_eq!((&handoff["dropped"], &handoff["taken_over"]), (&0.into(), &handoff["handed_over"]), "{stats}");
    let number = |value: &Value| value.as_u64().expect("a counter");
    let opened = [0, 1].map(|worker| number(&stats["workers"][worker]["opened_from_xdp"]));
    (number(&handoff["handed_over"]), opened)
}

/// Native by itself, because a generic program sees frames on other queues. Flows of kernel senders reach both queues, and
/// both workers open what is theirs, whichever queue it came by.
#[test]
fn two_queues_are_served_by_two_workers() {
    let Some(scene) = Scene::with_queues("workers::two_queues_are_served_by_two_workers", [2, 2]) else { return };
    let b = two_workers(&scene, &["u", "v"]).line("cores = [0, 1]").write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    let datapath = listen.wait_for("ready").event["datapath"].clone();
    assert_eq!((&datapath["kind"], &datapath["attach"]), (&"xdp".into(), &"native".into()), "{datapath}");
    let reason = datapath["reason"].as_str().unwrap();
    assert!(reason.contains("virtual device with several queues") && !reason.contains("UDP"), "{reason}");

    // Which queue a flow comes by is seen on the device. Each worker has one that comes by its own, and a stray.
    let mut found = [[false; 2]; 2];
    for port in PORTS {
        for (worker, name) in ["u", "v"].into_iter().enumerate() {
            let before = seen_by_queue(&scene);
            ping(&scene, &kernel_node(&scene, name, port), 100);
            let after = seen_by_queue(&scene);
            let queue = [0, 1].into_iter().find(|queue| after[*queue] >= before[*queue] + 100);
            let queue = queue.expect("a flow stays on its queue, and goes through the program");
            if !found[worker][queue] && queue != worker {
                // Most of the second worker's datagrams come by the first queue then, which is said.
                ping(&scene, &kernel_node(&scene, name, port), 5000);
            }
            found[worker][queue] = true;
        }
        if found == [[true; 2]; 2] {
            break;
        }
    }
    assert_eq!(found, [[true; 2]; 2], "every flow came by the same queue");
    let bytes = scene.file("file", 4 << 20);
    let sender = kernel_node(&scene, "v", 4400);
    assert_eq!(scene.run(&sender, &["send", "file", "b"]).success("send")["sha256_ok"], true);
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);

    let ended = listen.end_by(Signal::SIGTERM);
    let (handed_over, opened) = nothing_lost(&ended);
    assert!(handed_over >= 10_000, "{ended:#?}");
    assert!(opened.iter().all(|opened| *opened >= 5100), "{opened:?}");
    let stats = ended.event("stats");
    assert_eq!((&stats["workers"][1]["core"], &stats["workers"][1]["queue"]), (&1.into(), &1.into()));
    assert_eq!(stats["engine"]["opened_from_udp"], 0, "{stats}");
    let words = stats["detours"].to_string();
    assert!(words.contains("handed over"), "{words}");
}

/// AF_XDP with two queues at both ends. The worker that has the tunnel is the first at a and the second at b, so that
/// everything makes a detour at both, also a file.
#[test]
fn strays_between_two_nodes_with_af_xdp_are_handed_over() {
    let Some(scene) = Scene::with_queues("workers::strays_between_two_nodes_with_af_xdp_are_handed_over", [2, 2])
    else {
        return;
    };
    let a = scene.node("a", End::A).line("queues = [0, 1]").line("bulk = \"never\"").peer("b", Some(End::B.listen()));
    let a = a.write();
    let b = two_workers(&scene, &["u", "a"]).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");
    // Until the kernel has told b's owner of the tunnel where a is, it answers over UDP, by whichever queue the kernel takes.
    let ping = |count: &str| scene.run(&a, &["ping", "b", "--count", count, "--interval", "0"]).success("ping").clone();
    let told = (0..100).any(|_| ping("100")["handoff"]["taken_over"].as_u64() >= Some(100));
    assert!(told, "the owner goes on answering over UDP");
    let pinged = ping("2000");
    assert_eq!((&pinged["lost"], &pinged["datapath"]["attach"]), (&0.into(), &"native".into()), "{pinged}");
    assert!(pinged["handoff"]["taken_over"].as_u64() >= Some(2000), "{pinged}");
    let bytes = scene.file("file", 16 << 20);
    let ended = scene.run(&a, &["send", "file", "b"]);
    let sent = ended.success("send");
    assert_eq!((&sent["sha256_ok"], &sent["handoff"]["dropped"]), (&true.into(), &0.into()), "{sent}");
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let (handed_over, opened) = nothing_lost(&listen.end_by(Signal::SIGTERM));
    assert!(handed_over >= 10_000 && opened[1] >= 10_000 && opened[0] == 0, "{handed_over} {opened:?}");
}

/// wire.md W3.16: two lanes between nodes of two queues are a tunnel for each worker at both ends, and what each sends comes by the
/// queue of the worker that has it there: nothing makes a detour.
#[test]
fn lanes_have_a_worker_and_a_queue_each() {
    let Some(scene) = Scene::with_queues("workers::lanes_have_a_worker_and_a_queue_each", [2, 2]) else { return };
    let node = |name, end, peer, at: End| {
        let node = scene.node(name, end).line("queues = [0, 1]").line("bulk = \"never\"");
        let node = node.peer(peer, Some(at.listen())).write();
        // Its last lines are about the peer.
        let text = fs::read_to_string(&node.config).unwrap();
        fs::write(&node.config, text + "lanes = 2\n").unwrap();
        node
    };
    let (a, b) = (node("a", End::A, "b", End::B), node("b", End::B, "a", End::A));
    let [up_a, up_b] = [&a, &b].map(|node| {
        let mut up = scene.start(node, &["up"]);
        let datapath = up.wait_for("ready").event["datapath"].clone();
        assert_eq!((&datapath["kind"], &datapath["attach"]), (&"xdp".into(), &"native".into()), "{datapath}");
        up
    });
    // Connections take the lanes in turn, and messages the connections: two under way in each lane, that may share a datagram.
    let arguments = ["bench", "b", "--connections", "4", "--in-flight", "4", "--count", "4000", "--bulk", "0"];
    assert_eq!(scene.run(&a, &arguments).success("bench")["count"], 4000);
    let peers = scene.run(&a, &["peers"]).success("peers")["peers"].clone();
    for lane in [0, 1] {
        let row = ["lane", "worker", "up"].map(|name| &peers[lane][name]);
        assert_eq!(row, [&Value::from(lane), &Value::from(lane), &true.into()], "{peers}");
    }
    for up in [up_a, up_b] {
        let (handed_over, opened) = nothing_lost(&up.end_by(Signal::SIGTERM));
        assert!(opened.iter().all(|opened| *opened >= 1000), "{opened:?}");
        assert!(handed_over < 100, "{handed_over} of {opened:?} came by the other queue");
    }
}

/// Without AF_XDP the kernel gives each datagram to the worker whose session it names: only the first of a handshake, which
/// names none, may be handed over.
#[test]
fn two_workers_share_a_udp_port() {
    let Some(scene) = Scene::new("workers::two_workers_share_a_udp_port") else { return };
    let b = two_workers(&scene, &["u", "v"]).udp().write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "udp");
    for port in PORTS.take(8) {
        for name in ["u", "v"] {
            ping(&scene, &kernel_node(&scene, name, port), 200);
        }
    }
    let bytes = scene.file("file", 4 << 20);
    let sender = kernel_node(&scene, "v", 4400);
    assert_eq!(scene.run(&sender, &["send", "file", "b"]).success("send")["sha256_ok"], true);
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let ended = listen.end_by(Signal::SIGTERM);
    let (handed_over, _) = nothing_lost(&ended);
    assert!(handed_over < 100, "17 handshakes, some begun more than once: {ended:#?}");
    let stats = ended.event("stats");
    for worker in [0, 1] {
        assert!(stats["workers"][worker]["opened_from_udp"].as_u64() >= Some(1600), "{stats}");
    }
    assert_eq!(stats["detours"], Value::Array(vec![]));
}

/// One of the queues is not there: the other has AF_XDP all the same, and the reason says both.
#[test]
fn a_queue_that_cannot_be_had_is_said_and_the_others_serve() {
    let Some(scene) = Scene::with_queues("workers::a_queue_that_cannot_be_had_is_said_and_the_others_serve", [2, 2])
    else {
        return;
    };
    let b = scene.node("b", End::B).line("queues = [0, 5]").peer("u", None).peer("v", None).write();
    let mut up = scene.start(&b, &["up"]);
    let datapath = up.wait_for("ready").event["datapath"].clone();
    assert_eq!(datapath["kind"], "xdp", "{datapath}");
    let reason = datapath["reason"].as_str().unwrap();
    for words in ["queue 5 goes over UDP", "has 2 receive queues, and queue 5", "of which 1 is served"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    for port in PORTS.take(4) {
        for name in ["u", "v"] {
            ping(&scene, &kernel_node(&scene, name, port), 100);
        }
    }
    nothing_lost(&up.end_by(Signal::SIGTERM));
}

/// A device that refuses native mode has generic for several queues too, unless native was asked for.
#[test]
fn several_queues_without_native_mode_are_generic_and_it_is_said() {
    let Some(scene) = Scene::with_queues("workers::several_queues_without_native_mode_are_generic", [4, 2]) else {
        return;
    };
    let b = two_workers(&scene, &["u", "v"]).write();
    let mut up = scene.start(&b, &["up"]);
    let datapath = up.wait_for("ready").event["datapath"].clone();
    assert_eq!((&datapath["kind"], &datapath["attach"]), (&"xdp".into(), &"generic".into()), "{datapath}");
    let reason = datapath["reason"].as_str().unwrap();
    assert!(reason.contains("native was refused") && reason.contains("ethtool -L veth-b rx"), "{reason}");
    for port in PORTS.take(4) {
        for name in ["u", "v"] {
            ping(&scene, &kernel_node(&scene, name, port), 100);
        }
    }
    nothing_lost(&up.end_by(Signal::SIGTERM));
}
