//! Bulk by a port of its own, that XDP never steers: a sender with segmentation offload towards a receiver with AF_XDP.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::pilot::Ended;
use crate::scene::{Draft, End, Scene};

/// The bulk port of b, and of a node with AF_XDP at a.
const BULK_PORT: u16 = 4300;

/// Counts packets, which may be super-packets, to b's bulk port, and drops them if so told.
fn watch(scene: &Scene) {
    scene.nft(
        End::B,
        &["add table inet test; \
        add counter inet test bulk; \
        add chain inet test input { type filter hook input priority 0; }; \
        add rule inet test input udp dport 4300 counter name bulk"],
    );
}

fn block(scene: &Scene) {
    scene.nft(End::B, &["add rule inet test input udp dport 4300 drop"]);
}

/// A receiver with AF_XDP.
fn receiver(scene: &Scene) -> Draft<'_> {
    scene.node("b", End::B).line(&format!("bulk_port = {BULK_PORT}")).peer("a", None).peer("c", None)
}

/// What a command said about the path that it sends over.
fn paths(ended: &Ended) -> Vec<(bool, String)> {
    let said = ended.said.iter().filter(|said| said.event["event"] == "sending");
    said.map(|said| {
        assert_eq!(said.event["peer"], "b");
        let why = said.event["why"].as_str().unwrap().to_owned();
        assert!(!why.is_empty());
        (said.event["bulk"].as_bool().unwrap(), why)
    })
    .collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a counter")
}

/// Sends a file with `a`, pings meanwhile from a node without AF_XDP, and returns what the sender said and b's counters.
fn transfer(scene: &Scene, a: Draft<'_>, len: usize) -> (Ended, Value) {
    let a = a.peer("b", Some(End::B.listen())).write();
    let c = scene.node("c", End::A).udp().listen("10.77.0.1:4400").peer("b", Some(End::B.listen())).write();
    let mut listen = scene.start(&receiver(scene).write(), &["listen", "--files", "received"]);
    let ready = listen.wait_for("ready").event["datapath"].clone();
    assert_eq!((&ready["kind"], &ready["bulk"]["port"]), (&"xdp".into(), &BULK_PORT.into()), "{ready}");
    assert!(!ready["bulk"]["why"].as_str().unwrap().is_empty(), "{ready}");
    let bytes = scene.file("file", len);
    let mut send = scene.start(&a, &["send", "file", "b"]);
    send.wait_for_progress(0);
    let ended = scene.run(&c, &["ping", "b", "--count", "500", "--interval", "0"]);
    assert_eq!(ended.success("ping")["lost"], 0, "{ended:#?}");
    let sent = send.end();
    assert_eq!(sent.success("send")["sha256_ok"], true, "{sent:#?}");
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let ended = listen.end_by(Signal::SIGTERM);
    (sent, ended.success("stats").clone())
}

/// From AF_XDP's side and from a node without it, as the configuration says and by rule: the file comes by the bulk port, in
/// super-packets; deltas come by AF_XDP meanwhile.
#[test]
fn a_file_goes_by_segmentation_offload_to_a_node_with_af_xdp() {
    for (usage, xdp) in [("always", true), ("auto", true), ("always", false), ("auto", false)] {
        let name =
            format!("bulk::a_file_goes_by_segmentation_offload: {usage}, {}", if xdp { "AF_XDP" } else { "UDP" });
        let Some(scene) = Scene::new(&name) else { return };
        watch(&scene);
        let a = scene.node("a", End::A).line(&format!("bulk = \"{usage}\""));
        let (sent, stats) = transfer(&scene, if xdp { a } else { a.udp() }, 64 << 20);
        let paths = paths(&sent);
        assert!(paths.first().is_some_and(|(bulk, _)| *bulk), "{name}: {paths:?}");
        let engine = &stats["engine"];
        let (bulk, packets) = (number(&engine["opened_from_bulk"]), scene.nft_packets(End::B, "bulk"));
        eprintln!("{name}: {paths:?}; {bulk} datagrams in {packets} packets; {}", sent.event("send"));
        assert!(bulk > 10_000, "{name}: {stats}");
        assert!(packets < bulk / 4, "{name}: {bulk} datagrams in {packets} packets");
        assert_eq!(engine["opened_from_bulk"], engine["rx_bulk"], "{name}: {stats}");
        // c's deltas, and a's too; none of either by the kernel.
        assert!(number(&engine["opened_from_xdp"]) >= 500, "{name}: {stats}");
        let datapath = &sent.event("send")["datapath"];
        assert_eq!(datapath["bulk"]["send"], usage, "{datapath}");
        assert_eq!(datapath["bulk"]["port"].is_null(), !xdp, "without AF_XDP there is no second port: {datapath}");
    }
}

/// A firewall that was not told about the bulk port, from the beginning or from the middle of a transfer on: the file arrives
/// by the first path, and it is said.
#[test]
fn a_blocked_bulk_port_is_left() {
    let Some(scene) = Scene::new("bulk::a_blocked_bulk_port_is_left, from the beginning") else { return };
    watch(&scene);
    block(&scene);
    let (sent, stats) = transfer(&scene, scene.node("a", End::A).line("bulk = \"always\""), 32 << 20);
    assert_eq!(paths(&sent), vec![], "it was never taken");
    assert_eq!(stats["engine"]["rx_bulk"], 0, "{stats}");
    assert!(scene.nft_packets(End::B, "bulk") > 0, "it was tried");
    drop(scene);

    let Some(scene) = Scene::new("bulk::a_blocked_bulk_port_is_left, in the middle") else { return };
    watch(&scene);
    let a = scene.node("a", End::A).line("bulk = \"always\"").peer("b", Some(End::B.listen())).write();
    let mut listen = scene.start(&receiver(&scene).write(), &["listen", "--files", "received"]);
    listen.wait_for("ready");
    let bytes = scene.file("file", 512 << 20);
    let mut send = scene.start(&a, &["send", "file", "b"]);
    assert_eq!(send.wait_for("sending").event["bulk"], true);
    send.wait_for_progress(16 << 20);
    block(&scene);
    let left = send.wait_for("sending").event.clone();
    assert_eq!(left["bulk"], false, "{left}");
    let sent = send.end();
    assert_eq!(sent.success("send")["sha256_ok"], true, "{sent:#?}");
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let stats = listen.end_by(Signal::SIGTERM).success("stats").clone();
    let engine = &stats["engine"];
    assert!(number(&engine["opened_from_bulk"]) > 0 && number(&engine["opened_from_xdp"]) > 1000, "{engine}");
}

/// `bulk = "never"` has no second port, and sends the first way alone.
#[test]
fn never_means_no_second_port() {
    let Some(scene) = Scene::new("bulk::never_means_no_second_port") else { return };
    watch(&scene);
    let (sent, stats) = transfer(&scene, scene.node("a", End::A).line("bulk = \"never\""), 8 << 20);
    assert_eq!(paths(&sent), vec![]);
    assert_eq!(stats["engine"]["rx_bulk"], 0, "{stats}");
    assert_eq!(scene.nft_packets(End::B, "bulk"), 0);
    let datapath = &sent.event("send")["datapath"];
    assert_eq!((&datapath["bulk"]["send"], &datapath["bulk"]["port"]), (&"never".into(), &Value::Null), "{datapath}");
}

/// Without one in the configuration, the port is the next one if that is free, or else any.
#[test]
fn the_bulk_port_is_the_next_one_if_it_is_free() {
    let Some(scene) = Scene::new("bulk::the_bulk_port_is_the_next_one_if_it_is_free") else { return };
    let port = |node| {
        let mut up = scene.start(node, &["up"]);
        let port = up.wait_for("ready").event["datapath"]["bulk"]["port"].as_u64();
        assert_eq!(up.end_by(Signal::SIGTERM).code, Some(0));
        port
    };
    let b = scene.node("b", End::B).write();
    assert_eq!(port(&b), Some(4243));
    let taken = scene.socket(End::B, "10.77.0.2:4243");
    let chosen = port(&b);
    assert!(chosen.is_some_and(|port| ![0, 4242, 4243].contains(&port)), "{chosen:?}");
    let fixed = scene.node("b", End::B).line("bulk_port = 4243").write();
    scene.run(&fixed, &["up"]).failure(1, &["`bulk_port` 4243", "Address already in use"]);
    drop(taken);
    assert_eq!(port(&fixed), Some(4243));
}
