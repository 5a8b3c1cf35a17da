//! Frames longer than Ethernet's, on devices that carry them.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene::{Draft, End, Scene};

const FILE_BYTES: usize = 24 << 20;

fn scene(test: &str, mtu: u32) -> Option<Scene> {
    let scene = Scene::new(test)?;
    for end in [End::A, End::B] {
        scene.ip(end, &["link", "set", end.interface(), "mtu", &mtu.to_string()]);
    }
    Some(scene)
}

/// Sends a file from a to b, and returns what a said of it, and b's counters.
fn transfer(scene: &Scene, a: Draft<'_>, b: Draft<'_>) -> (Value, Value) {
    let a = a.peer("b", Some(End::B.listen())).write();
    let mut listen = scene.start(&b.peer("a", None).write(), &["listen", "--files", "received"]);
    listen.wait_for("ready");
    let bytes = scene.file("file", FILE_BYTES);
    let ended = scene.run(&a, &["send", "file", "b"]);
    let send = ended.success("send").clone();
    assert_eq!(send["sha256_ok"], true, "{send}");
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let ended = listen.end_by(Signal::SIGTERM);
    (send, ended.success("stats").clone())
}

/// wire.md W6.6: datagrams grow to what both devices carry, through AF_XDP in either mode: 3400 bytes in one chunk of packet memory,
/// jumbo frames in several.
#[test]
fn large_datagrams_go_through_af_xdp() {
    for (mtu, attach, largest) in
        [(3428, "auto", 3400), (3428, "native", 3400), (9000, "auto", 8972), (9000, "native", 8972)]
    {
        let name = format!("mtu::large_datagrams_go_through_af_xdp: {mtu}, {attach}");
        let Some(scene) = scene(&name, mtu) else { return };
        let node = |name, end| {
            let lines = format!("attach = \"{attach}\"\nbulk = \"never\"");
            scene.node(name, end).line(&lines)
        };
        let (send, stats) = transfer(&scene, node("a", End::A), node("b", End::B));
        assert_eq!(send["max_datagram"], largest, "{name}: {send}");
        let reason = send["datapath"]["reason"].as_str().unwrap();
        assert_eq!(send["datapath"]["kind"], "xdp", "{name}: {reason}");
        assert_eq!(reason.contains("several chunks of packet memory"), mtu == 9000, "{name}: {reason}");
        let packets = send["packets"].as_u64().unwrap();
        let least = FILE_BYTES as u64 / largest as u64;
        assert!((least..2 * least).contains(&packets), "{name}: {packets} packets: {send}");
        let opened = stats["engine"]["opened_from_xdp"].as_u64().unwrap();
        assert!(opened >= least && opened * 100 > packets * 95, "{name}: {opened} of {packets}: {stats}");
    }
}

/// A sender with segmentation offload and without AF_XDP, and jumbo frames: until its datagrams have grown, several fit one frame of
/// the receiver's, whose generic program would take them for one.
#[test]
fn a_super_packet_is_never_taken_for_a_datagram() {
    let Some(scene) = scene("mtu::a_super_packet_is_never_taken_for_a_datagram", 9000) else { return };
    let (send, stats) = transfer(&scene, scene.node("a", End::A).udp(), scene.node("b", End::B));
    assert_eq!(stats["engine"]["dropped"]["authentication"], 0, "{send}\n{stats}");
    assert!(stats["engine"]["opened_from_xdp"].as_u64() > Some(0), "{stats}");
}
