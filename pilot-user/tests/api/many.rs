//! Many connections of one application, and one of them that is not read (local-protocol.md L2.2, L2.4, L5.5).

use std::time::Duration;

use pilot_user::Node;
use pilot_user::api::Connection;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::daemon::Up;
use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(120);
const CONNECTIONS: usize = 10_000;
const ECHO_PORT: u16 = 7;

async fn open(node: &Node) -> Vec<Connection> {
    let mut opening = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let node = node.clone();
        opening.spawn(async move { node.connect("b", ECHO_PORT).await.unwrap() });
    }
    timeout(LONG, opening.join_all()).await.unwrap()
}

/// Every connection's echo comes back, while one has asked for more of them than it may have waiting and reads none.
#[tokio::test]
async fn ten_thousand_connections_and_one_that_does_not_read() {
    let scene = Scene::new();
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let node = Node::attach(scene.path("a.sock")).await.unwrap();
    let mut all = open(&node).await;
    let stalled = all.pop().unwrap();
    let asking = {
        let stalled = stalled.clone();
        tokio::spawn(async move {
            let mut sent = 0_u64;
            while timeout(Duration::from_secs(1), stalled.send([7; 4096])).await.is_ok() {
                sent += 1;
            }
            sent
        })
    };
    // Both directions are full: what the engines and the node hold for it is bounded.
    let sent = timeout(LONG, asking).await.unwrap().unwrap();
    assert!(sent > 64, "{sent}");
    for round in 0..3_u32 {
        let mut asked = JoinSet::new();
        for (at, connection) in all.iter().cloned().enumerate() {
            let message = [round.to_be_bytes(), (at as u32).to_be_bytes()].concat();
            asked.spawn(async move {
                connection.send(&message).await.unwrap();
                connection.receive().await.unwrap() == message
            });
        }
        let answered = timeout(LONG, asked.join_all()).await.unwrap();
        assert_eq!(answered.iter().filter(|is_own| **is_own).count(), CONNECTIONS - 1);
    }
    assert_eq!(node.connections().await.unwrap().as_array().unwrap().len(), 1024, "the beginning of the list");
    assert_eq!(node.peers().await.unwrap()[0]["connections"], CONNECTIONS);
    for _ in 0..sent {
        assert_eq!(timeout(LONG, stalled.receive()).await.unwrap().unwrap(), [7; 4096], "it goes on where it was");
    }
}
