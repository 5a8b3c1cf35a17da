//! Applications of which only a half is there: that stop within a frame, or shut down one direction of their socket.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use pilot_user::Node;
use serde_json::json;
use tokio::time::timeout;

use crate::daemon::{LONG, Raw, Up};
use crate::scene::Scene;

/// Half a frame: it says that ten bytes come, and gives three.
const HALF: &[u8] = &[0, 0, 0, 10, 0x10, 0, 0];

/// A session that listens on a port, holds a context's following, and has begun a frame.
fn half_a_frame(socket: &Path, port: u16) -> UnixStream {
    let mut raw = Raw::hello(socket);
    raw.request(2, &json!({"op": "listen", "port": port}));
    assert_eq!(raw.frame().unwrap().2, json!({"port": port}));
    raw.request(3, &json!({"op": "context_follow", "name": "plan"}));
    assert_eq!(raw.frame().unwrap().0, 0x02);
    raw.0.write_all(HALF).unwrap();
    raw.0
}

/// Waits until something is so; only a hang fails.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// L1.2: before hello, they are told and let go.
#[tokio::test]
async fn before_hello_they_are_let_go() {
    let scene = Scene::new();
    let up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    let before = up.descriptors();
    let silent: Vec<Raw> = (0..50).map(|_| Raw::new(&socket)).collect();
    for raw in &silent {
        (&raw.0).write_all(HALF).unwrap();
    }
    // Nobody is held up by them.
    drop(timeout(LONG, Node::attach(&socket)).await.unwrap().unwrap());
    let told = tokio::task::spawn_blocking(|| silent.into_iter().for_each(|raw| raw.ends_with("timed_out")));
    told.await.unwrap();
    // What will write no hello is gone at once.
    for _ in 0..50 {
        let mut raw = Raw::new(&socket);
        raw.0.write_all(HALF).unwrap();
        raw.0.shutdown(Shutdown::Write).unwrap();
        assert!(raw.frame().is_none());
    }
    until("descriptors are given back", async || up.descriptors() <= before).await;
}

/// L2.3: with one direction of its socket, an application is gone, and so is what it had; an application that says nothing keeps it.
#[tokio::test]
async fn with_one_direction_they_are_gone() {
    let scene = Scene::new();
    let up = Up::start(&scene, "a");
    let socket = scene.path("a.sock");
    let node = Node::attach(&socket).await.unwrap();
    let plan = pilot_user::context::Document::empty(pilot_user::context::Kind::Json);
    let plan = node.create_context("plan", &plan, Default::default()).await.unwrap();
    let before = up.descriptors();
    let silent = half_a_frame(&socket, 7000);
    let gone: Vec<UnixStream> = [Shutdown::Write, Shutdown::Read, Shutdown::Both]
        .into_iter()
        .zip(7001..)
        .map(|(how, port)| {
            let stream = half_a_frame(&socket, port);
            stream.shutdown(how).unwrap();
            stream
        })
        .collect();
    // Who only does not read is found out by the first frame that is for it.
    plan.change(&pilot_user::context::Change::merge(b"{}").unwrap()).await.unwrap();
    for port in 7001..7004 {
        until("its port is free", async || node.listen(port).await.is_ok()).await;
    }
    until("descriptors are given back", async || up.descriptors() <= before + 1).await;
    assert_eq!(node.listen(7000).await.err().unwrap().code, pilot_user::api::Code::PortInUse, "that one is only slow");
    drop(silent);
    until("and that one", async || node.listen(7000).await.is_ok()).await;
    drop(gone);
}
