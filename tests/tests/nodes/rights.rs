//! A node without privileges, and one with those alone that AF_XDP takes.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::pilot;
use crate::scene::{End, Scene};

/// nobody, on every Linux.
const NOBODY: u32 = 65_534;

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF (linux/capability.h).
const ALL: u64 = (1 << 12) | (1 << 13) | (1 << 14) | (1 << 38) | (1 << 39);

/// With exactly the capabilities that the documentation names a node that is not root has AF_XDP; its workers keep none of them.
#[test]
fn a_node_with_five_capabilities_has_af_xdp() {
    let Some(scene) = Scene::new("rights::a_node_with_five_capabilities_has_af_xdp") else { return };
    let a = scene.node("a", End::A).peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let program = copy_for_nobody(&scene);
    let nobody = NOBODY.to_string();
    let those = "-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";
    let [inheritable, ambient, bounding] =
        ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}={those}"));
    let who = ["--reuid", &nobody, "--regid", &nobody, "--clear-groups"];
    let rights = [&who[..], &[inheritable.as_str(), ambient.as_str(), bounding.as_str()]].concat();
    let mut up = scene.start_as(&b, &program, &rights, &["up"]);
    let datapath = &up.wait_for("ready").event["datapath"];
    assert_eq!(datapath["kind"], "xdp", "{datapath}");
    let (mut workers, mut others) = (Vec::new(), 0);
    for thread in std::fs::read_dir(format!("/proc/{}/task", up.id())).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let may = u64::from_str_radix(&of("CapPrm:"), 16).unwrap() | u64::from_str_radix(&of("CapAmb:"), 16).unwrap();
        match of("Name:").as_str() {
            "pilot-worker" => workers.push(may),
            _ => others += usize::from(may == ALL),
        }
    }
    assert_eq!(workers, [0], "what runs on packets has no right");
    assert!(others > 0, "what attaches again has them");
    let ended = scene.run(&a, &["ping", "b", "--count", "100", "--interval", "0"]);
    assert_eq!(ended.success("ping")["lost"], 0);
    // Attached again after the device was down, by what kept the right to.
    scene.ip(End::B, &["link", "set", "veth-b", "down"]);
    up.wait_until("datapath", |said| said["datapath"]["kind"] == "udp");
    scene.ip(End::B, &["link", "set", "veth-b", "up"]);
    up.wait_until("datapath", |said| said["datapath"]["kind"] == "xdp");
    let stats = up.end_by(Signal::SIGTERM);
    assert!(stats.success("stats")["engine"]["opened_from_xdp"].as_u64() >= Some(100));
}

/// A copy of the program, because the way to the built one may be closed to others; and the scene's directory with b's key.
fn copy_for_nobody(scene: &Scene) -> PathBuf {
    let program = scene.directory().join("pilot");
    std::fs::copy(pilot::executable(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in [scene.directory(), &scene.directory().join("b.key")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    program
}

/// Without any right a node runs over UDP and says why; it serves pings and files.
#[test]
fn an_unprivileged_node_runs_over_udp_and_says_why() {
    let Some(scene) = Scene::new("rights::an_unprivileged_node_runs_over_udp_and_says_why") else { return };
    let a = scene.node("a", End::A).peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let program = copy_for_nobody(&scene);
    let nobody = NOBODY.to_string();
    let rights = ["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    let mut listen = scene.start_as(&b, &program, &rights, &["listen", "--files", "received"]);
    let ready = listen.wait_for("ready");
    let datapath = &ready.event["datapath"];
    assert_eq!((&datapath["kind"], &datapath["mode"]), (&"udp".into(), &serde_json::Value::Null));
    let reason = datapath["reason"].as_str().unwrap();
    assert!(reason.contains("privilege") && reason.contains("setcap"), "{reason}");
    assert_eq!(scene.xdp_program(End::B), None);

    scene.run(&a, &["ping", "b", "--count", "100", "--interval", "0"]).success("ping");
    scene.file("file", 1 << 20);
    assert_eq!(scene.run(&a, &["send", "file", "b"]).success("send")["sha256_ok"], true);
    let ended = listen.end_by(Signal::SIGTERM);
    let stats = ended.success("stats");
    assert!(stats["engine"]["opened_from_udp"].as_u64() >= Some(100), "{stats}");
    assert_eq!(stats["engine"]["opened_from_xdp"], 0);
}
