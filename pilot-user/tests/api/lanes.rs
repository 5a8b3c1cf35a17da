//! Several tunnels between two nodes of two workers each (wire.md W3.16).

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::scene::Scene;

/// Only for hangs.
const LONG: Duration = Duration::from_secs(60);

/// Both configurations end with the other one as their peer.
fn with_lanes(scene: &Scene, lanes: [u8; 2]) {
    for (name, lanes) in ["a.toml", "b.toml"].into_iter().zip(lanes) {
        let text = fs::read_to_string(scene.path(name)).unwrap();
        fs::write(scene.path(name), format!("{text}lanes = {lanes}\n")).unwrap();
    }
}

/// A member of each.
fn members(list: &Value, name: &str) -> Vec<Value> {
    list.as_array().unwrap().iter().map(|it| it[name].clone()).collect()
}

#[tokio::test]
async fn connections_take_a_peers_lanes_in_turn_each_on_its_worker() {
    let scene = Scene::with("queues = [0, 1]");
    with_lanes(&scene, [2, 2]);
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut listener = b.listen(7000).await.unwrap();
    let mut connections = Vec::new();
    for number in 0..4_u8 {
        let (here, there) = tokio::join!(timeout(LONG, a.connect("b", 7000)), timeout(LONG, listener.accept()));
        let (here, there) = (here.unwrap().unwrap(), there.unwrap().unwrap());
        here.send([number]).await.unwrap();
        assert_eq!(timeout(LONG, there.receive()).await.unwrap().unwrap(), [number]);
        there.send([number; 2]).await.unwrap();
        assert_eq!(timeout(LONG, here.receive()).await.unwrap().unwrap(), [number; 2]);
        connections.push((here, there));
    }
    for node in [&a, &b] {
        assert_eq!(members(&json!(node.connections().await.unwrap()), "lane"), [0, 0, 1, 1]);
        let peers = json!(node.peers().await.unwrap());
        let rows = ["lane", "worker", "up", "connections"].map(|name| members(&peers, name));
        let expected = [vec![0, 1], vec![0, 1]].map(|row| row.into_iter().map(Value::from).collect::<Vec<_>>());
        assert_eq!(
            rows,
            [expected[0].clone(), expected[1].clone(), vec![true.into(); 2], vec![2.into(); 2]],
            "{peers}"
        );
    }
}

/// More lanes than workers: the rest are for the other end's sake, and nobody is kept from connecting.
#[tokio::test]
async fn more_lanes_than_workers_share_them() {
    let scene = Scene::new();
    with_lanes(&scene, [3, 3]);
    let (a, b) = (scene.node("a"), scene.node("b"));
    let mut listener = b.listen(7000).await.unwrap();
    for _ in 0..4 {
        let (here, there) = tokio::join!(timeout(LONG, a.connect("b", 7000)), timeout(LONG, listener.accept()));
        assert!(here.unwrap().is_ok() && there.unwrap().is_ok());
    }
    assert_eq!(members(&json!(a.peers().await.unwrap()), "lane"), [0, 1, 2]);
}
