//! Many connections of one application, and one of them that is not read (local-protocol.md L2.2, L2.4, L5.5).

use std::collections::BTreeMap;
use std::time::Duration;

use pilot_user::Node;
use pilot_user::api::Connection;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::daemon::{Raw, Up};
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

/// L5.1, L5.5: one that is not read is given its own credit and no byte more; each of the others has all of its own.
#[tokio::test]
async fn a_connection_that_is_not_read_takes_nothing_of_the_others() {
    const OTHERS: usize = 20;
    // Of 1,000 bytes each. A node gives one as long as there is credit for the largest.
    const MOST: usize = ((256 << 10) - (64 << 10) - 64) / 1064 + 1;
    const MESSAGES: usize = MOST - 1;
    let scene = Scene::new();
    let _up = Up::start(&scene, "a");
    let b = scene.node("b");
    let mut raw = Raw::hello(&scene.path("a.sock"));
    raw.request(2, &json!({"op": "listen", "port": 7000}));
    assert_eq!(raw.frame().unwrap().2, json!({"port": 7000}));
    // An application that gives no credit back for anything, and says what it was given.
    let reading = tokio::task::spawn_blocking(move || {
        let (mut given, mut requests) = (BTreeMap::new(), 2);
        let of_others = |given: &BTreeMap<u32, usize>| given.values().filter(|count| **count == MESSAGES).count();
        while of_others(&given) < OTHERS {
            let (kind, id, body) = raw.frame().unwrap();
            match kind {
                0x04 if body["event"] == "incoming" => {
                    requests += 1;
                    raw.request(requests, &json!({"op": "accept", "connection": id}));
                }
                0x10 => *given.entry(id).or_insert(0) += 1,
                _ => {}
            }
        }
        given
    });
    let stalled = b.connect("a", 7000).await.unwrap();
    let sent = timeout(Duration::from_secs(1), async { while stalled.send([7; 1000]).await.is_ok() {} }).await;
    assert!(sent.is_err(), "it is held up, and not over");
    let mut others = JoinSet::new();
    for _ in 0..OTHERS {
        let b = b.clone();
        others.spawn(async move {
            let connection = b.connect("a", 7000).await.unwrap();
            for _ in 0..MESSAGES {
                connection.send([8; 1000]).await.unwrap();
            }
            connection
        });
    }
    let _others = timeout(LONG, others.join_all()).await.unwrap();
    let given = timeout(LONG, reading).await.unwrap().unwrap();
    assert_eq!(given.len(), OTHERS + 1);
    let of_stalled: Vec<_> = given.into_values().filter(|count| *count != MESSAGES).collect();
    assert_eq!(of_stalled, [MOST], "all that it had credit for, and then nothing");
}
