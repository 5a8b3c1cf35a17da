//! A node that reads its configuration again, and one that is told to stop (local-protocol.md L2.5).

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use pilot_user::Node;
use pilot_user::api::{Code, Connection};
use serde_json::json;
use tokio::time::timeout;

use crate::daemon::Up;
use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);

#[track_caller]
fn refused(result: Result<Connection, pilot_user::api::Error>) -> (Code, Option<u64>) {
    result.map(|_| ()).map_err(|error| (error.code, error.peer_code)).expect_err("it connects")
}

/// L2.6: peers come, change and go while the node runs, each with a line for the record. A file that is wrong, or asks for what only a
/// restart changes, changes nothing, not even the rest of what it says.
#[tokio::test]
async fn a_configuration_is_read_again() {
    let scene = Scene::new();
    let file = scene.path("a.toml");
    let whole = fs::read_to_string(&file).unwrap();
    let (head, peer) = whole.split_at(whole.find("[[peers]]").unwrap());
    fs::write(&file, head).unwrap();
    let up = Up::start(&scene, "a");
    let (a, b) = (Node::attach(scene.path("a.sock")).await.unwrap(), scene.node("b"));
    assert_eq!(refused(a.connect("b", 7).await).0, Code::UnknownPeer);

    fs::write(&file, &whole).unwrap();
    up.signal(Signal::SIGHUP);
    let line = up.audit("peer_added");
    assert_eq!((&line["event"], &line["peer"]["name"]), (&json!("audit"), &json!("b")));
    assert!(line["unix_ms"].as_u64().unwrap() > 1_600_000_000_000 && line["peer"]["ports"].is_null(), "{line}");
    assert_eq!(up.audit("reloaded")["changes"], 1);
    let here = timeout(LONG, a.connect("b", 7)).await.unwrap().unwrap();
    here.send("one").await.unwrap();
    assert_eq!(timeout(LONG, here.receive()).await.unwrap().unwrap(), b"one");
    timeout(LONG, b.connect("a", 7)).await.unwrap().unwrap();

    // Rights: another port, from now on. What is connected stays so.
    fs::write(&file, format!("{head}{}", peer.replace("name = 'b'", "name = 'b'\nports = [9000]"))).unwrap();
    up.signal(Signal::SIGHUP);
    let line = up.audit("peer_changed");
    assert_eq!((&line["before"]["ports"], &line["peer"]["ports"]), (&json!(null), &json!([9000])));
    up.audit("reloaded");
    assert_eq!(refused(b.connect("a", 7).await), (Code::Refused, Some(2)));
    here.send("two").await.unwrap();
    assert_eq!(timeout(LONG, here.receive()).await.unwrap().unwrap(), b"two");

    // Nothing of these, although each would remove the peer, too.
    let moved = head.replace("listen = '127.0.0.1:", "listen = '127.0.0.2:");
    for (text, words) in [(&*moved, "only a restart"), ("identity = ", "config:"), ("", "identity")] {
        fs::write(&file, text).unwrap();
        up.signal(Signal::SIGHUP);
        let line = up.audit("reload_refused");
        assert!(line["why"].as_str().unwrap().contains(words), "{line}");
    }
    here.send("three").await.unwrap();
    assert_eq!(timeout(LONG, here.receive()).await.unwrap().unwrap(), b"three");

    fs::write(&file, head).unwrap();
    up.signal(Signal::SIGHUP);
    assert_eq!(up.audit("peer_removed")["peer"]["name"], "b");
    assert_eq!(timeout(LONG, here.closed()).await.unwrap().code, Code::ClosedHere);
    assert_eq!(refused(a.connect("b", 7).await).0, Code::UnknownPeer);
    // Added again, it is as it was at first.
    fs::write(&file, &whole).unwrap();
    up.signal(Signal::SIGHUP);
    up.audit("peer_added");
    timeout(LONG, a.connect("b", 7)).await.unwrap().unwrap();
}

/// L2.5: what is there may be brought to its end, nothing is begun, and who has nothing is let go at once.
#[tokio::test]
async fn a_node_that_is_told_to_stop_lets_its_applications_end() {
    let scene = Scene::with("[local]\ndrain_s = 600");
    let up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    let (busy, idle) = (Node::attach(&socket).await.unwrap(), Node::attach(&socket).await.unwrap());
    let b = scene.node("b");
    let mut listener = busy.listen(7000).await.unwrap();
    assert_eq!(up.audit("listening")["port"], 7000);
    let here = busy.connect("b", 7).await.unwrap();
    let mut events = busy.subscribe().await.unwrap();
    up.signal(Signal::SIGTERM);
    let line = up.audit("draining");
    assert_eq!((&line["applications"], &line["drain_ms"]), (&json!(2), &json!(600_000)));
    let told = loop {
        let event = timeout(LONG, events.next()).await.unwrap().unwrap();
        if event["event"] == "shutting_down" {
            break event;
        }
    };
    assert_eq!(told["drain_ms"], 600_000);
    assert_eq!(timeout(LONG, idle.closed()).await.unwrap().code, Code::ShuttingDown);
    assert_eq!(refused(busy.connect("b", 7).await).0, Code::ShuttingDown);
    assert_eq!(busy.listen(7001).await.err().unwrap().code, Code::ShuttingDown);
    assert_eq!(Node::attach(&socket).await.err().unwrap().code, Code::ShuttingDown);
    assert_eq!(refused(b.connect("a", 7000).await), (Code::Refused, Some(1)));
    for number in 0..100_u32 {
        here.send(number.to_be_bytes()).await.unwrap();
        assert_eq!(timeout(LONG, here.receive()).await.unwrap().unwrap(), number.to_be_bytes());
    }
    here.close(0, "").await.unwrap();
    assert_eq!(timeout(LONG, busy.closed()).await.unwrap().code, Code::ShuttingDown);
    assert!(timeout(LONG, listener.accept()).await.unwrap().is_err());
    assert_eq!(tokio::task::spawn_blocking(|| up.wait()).await.unwrap(), Some(0));
}

/// L2.5: who does not end what it has is ended.
#[tokio::test]
async fn a_node_that_is_told_to_stop_waits_no_longer_than_it_may() {
    let scene = Scene::with("[local]\ndrain_s = 1");
    let (up, _b) = (Up::start(&scene, "a"), scene.node("b"));
    let a = Node::attach(scene.path("a.sock")).await.unwrap();
    let here = a.connect("b", 7).await.unwrap();
    up.signal(Signal::SIGTERM);
    up.audit("draining");
    assert_eq!(timeout(LONG, here.closed()).await.unwrap().code, Code::ShuttingDown);
    assert_eq!(tokio::task::spawn_blocking(|| up.wait()).await.unwrap(), Some(0));
}
