//! A node without privileges.

use std::os::unix::fs::{PermissionsExt as _, chown};

use nix::sys::signal::Signal;

use crate::pilot;
use crate::scene::{End, Scene};

/// nobody, on every Linux.
const NOBODY: u32 = 65_534;

/// Without any right a node runs over UDP and says why; it serves pings and files.
#[test]
fn an_unprivileged_node_runs_over_udp_and_says_why() {
    let Some(scene) = Scene::new("rights::an_unprivileged_node_runs_over_udp_and_says_why") else { return };
    let a = scene.node("a", End::A).peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    // A copy, because the way to the built one may be closed to others.
    let program = scene.directory().join("pilot");
    std::fs::copy(pilot::executable(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in [scene.directory(), &scene.directory().join("b.key")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
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
