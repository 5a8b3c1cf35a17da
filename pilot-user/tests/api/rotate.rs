//! `pilot keygen --rotate`: the same node with another static key, to peers that know the one before (wire.md W3.37).

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pilot_user::api::Code;
use pilot_user::{Node, identity_file};
use tokio::time::timeout;

use crate::daemon::{LONG, Up};
use crate::scene::Scene;

#[tokio::test]
async fn a_node_with_a_new_static_key_is_known_again() {
    let scene = Scene::new();
    let (up_a, up_b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let key = scene.path("b.key");
    let before = identity_file::read(&key).unwrap().public_key();
    let output = Command::new(env!("CARGO_BIN_EXE_pilot")).args(["keygen", "--rotate"]).arg(&key).output().unwrap();
    let after = identity_file::read(&key).unwrap().public_key();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), after.to_string());
    assert!(before.identity == after.identity && before.static_key != after.static_key);

    // The node calls, because it has the endpoint; then it can be called, too.
    drop(up_b);
    let _up_b = Up::start(&scene, "b");
    let a = Node::attach(scene.path("a.sock")).await.unwrap();
    let b = Node::attach(scene.path("b.sock")).await.unwrap();
    for node in [(&b, "a"), (&a, "b")] {
        let echo = timeout(LONG, node.0.connect(node.1, 7)).await.unwrap().unwrap();
        echo.send("there").await.unwrap();
        assert_eq!(echo.receive().await.unwrap(), b"there");
    }

    // A peer that was restarted knows what its configuration says, until that says something else.
    drop((a, up_a));
    let config = fs::read_to_string(scene.path("a.toml")).unwrap();
    assert!(config.contains(&before.to_string()));
    let up_a = Up::start(&scene, "a");
    fs::write(scene.path("a.toml"), config.replace(&before.to_string(), &after.to_string())).unwrap();
    up_a.signal(Signal::SIGHUP);
    let line = up_a.audit("peer_changed");
    assert_eq!(line["peer"]["key"], after.to_string(), "{line}");
    let a = Node::attach(scene.path("a.sock")).await.unwrap();
    let echo = loop {
        match timeout(LONG, a.connect("b", 7)).await.unwrap() {
            Ok(echo) => break echo,
            // What was on its way to the process before.
            Err(error) => assert!(matches!(error.code, Code::PeerRestarted | Code::Closed), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    echo.send("again").await.unwrap();
    assert_eq!(echo.receive().await.unwrap(), b"again");
}
