//! Contexts that a daemon keeps on its disk for its applications (local-protocol.md L3.9, context.md C5.1, C5.2).

use std::time::Duration;

use pilot_user::api::{Code, Context};
use pilot_user::context::{Change, Document, Kind, Rights};
use pilot_user::{Following, Node};
use serde_json::json;
use tokio::time::timeout;

use crate::daemon::{LONG, Raw, Up};
use crate::scene::Scene;

/// Time to write in, before the daemon is killed; the disk takes some of it for each version.
const A_WHILE: Duration = Duration::from_millis(300);

fn everyone() -> Rights {
    Rights { read: vec!["*".into()], write: vec!["*".into()] }
}

async fn create(node: &Node, name: &str) -> Context {
    node.create_durable_context(name, &Document::empty(Kind::Log), everyone()).await.unwrap()
}

/// Appends numbers from one on until the node is gone; the first that was not confirmed.
async fn append(context: &Context, mut number: u64) -> u64 {
    loop {
        match context.change(&Change::Append(format!("{number};").into())).await {
            Ok(_) => number += 1,
            Err(error) => {
                assert_eq!(error.code, Code::ShuttingDown, "{error}");
                return number;
            }
        }
    }
}

/// The numbers of a log: each once, in order. How many.
fn count(log: &str) -> u64 {
    let numbers: Vec<u64> = log.split_terminator(';').map(|number| number.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{log}");
    numbers.len() as u64
}

/// Reads until a version.
async fn until(following: &mut Following, version: u64) -> usize {
    let mut wholes = 0;
    while following.stamp().version < version {
        let update = timeout(LONG, following.next()).await.unwrap().unwrap();
        wholes += usize::from(update.change.is_none());
    }
    wholes
}

/// L3.9: killed while an application writes, and started again: what was confirmed is there, each once. A peer's follower goes on by
/// changes alone, and one of the daemon's own applications with the next daemon.
#[tokio::test]
async fn what_was_announced_is_there_after_kill_9() {
    let scene = Scene::new();
    let mut up = Up::start(&scene, "b");
    let (a, b) = (scene.node("a"), Node::attach_and_reconnect(scene.path("b.sock")).await.unwrap());
    let log = create(&b, "log").await;
    let volatile = b.create_context("volatile", &Document::empty(Kind::Log), everyone()).await.unwrap();
    let mut own = log.follow().await.unwrap();
    let mut of_peer = timeout(LONG, a.context("log", "b").follow()).await.unwrap().unwrap();
    let (mut next, first) = (0, of_peer.stamp());
    for _ in 0..3 {
        let writing = tokio::spawn({
            let log = log.clone();
            async move { append(&log, next).await }
        });
        tokio::time::sleep(A_WHILE).await;
        drop(up);
        let confirmed = timeout(LONG, writing).await.unwrap().unwrap();
        assert!(confirmed > next, "nothing was written meanwhile");
        up = Up::start(&scene, "b");
        let now = timeout(LONG, log.follow()).await.unwrap().unwrap();
        // The last may have been made without its writer having heard of it.
        next = count(&now.render());
        assert!(next == confirmed || next == confirmed + 1, "{next}, confirmed {confirmed}");
        assert_eq!((now.stamp().incarnation, now.stamp().version), (first.incarnation, next));
    }
    assert_eq!(until(&mut of_peer, next).await, 0, "only changes, through three lives of the owner");
    until(&mut own, next).await;
    assert_eq!((count(&of_peer.render()), count(&own.render())), (next, next));
    log.change(&Change::Append(format!("{next};").into())).await.unwrap();
    for following in [&mut of_peer, &mut own] {
        until(following, next + 1).await;
        assert_eq!(count(&following.render()), next + 1);
    }
    let gone = volatile.follow().await.err().unwrap();
    assert_eq!((gone.code, gone.peer_code), (Code::Context, Some(1)), "{gone}");
}

/// L3.9, C1.4: what was deleted is not there again; rights stay what they were; another of the name is another.
#[tokio::test]
async fn what_was_deleted_stays_so_and_rights_stay() {
    let scene = Scene::new();
    let up = Up::start(&scene, "b");
    assert!(!scene.path("b.contexts").exists(), "not before there is something to keep");
    let (a, b) = (scene.node("a"), Node::attach_and_reconnect(scene.path("b.sock")).await.unwrap());
    let (gone, again) = (create(&b, "gone").await, create(&b, "again").await);
    let read_only = Rights { read: vec!["a".into()], write: Vec::new() };
    let document = Document::decode(Kind::Json, br#"{"anomalies": 47}"#).unwrap();
    b.create_durable_context("plan", &document, read_only).await.unwrap();
    let taken = b.create_durable_context("plan", &document, everyone()).await.err().unwrap();
    assert_eq!((taken.code, taken.peer_code), (Code::Context, Some(3)), "{taken}");
    let first = again.follow().await.unwrap().stamp();
    gone.delete().await.unwrap();
    again.delete().await.unwrap();
    let again = create(&b, "again").await;
    drop(up);
    timeout(LONG, b.closed()).await.unwrap();
    let _up = Up::start(&scene, "b");
    assert_ne!(again.follow().await.unwrap().stamp().incarnation, first.incarnation);
    let over = b.context("gone", None).follow().await.err().unwrap();
    assert_eq!((over.code, over.peer_code), (Code::Context, Some(1)), "{over}");
    let plan = a.context("plan", "b");
    // The tunnel comes up again.
    let copy = timeout(LONG, plan.follow()).await.unwrap().unwrap();
    assert_eq!(copy.render(), r#"{"anomalies":47}"#);
    let refused = plan.change(&Change::Merge(json!({"anomalies": 48}))).await.unwrap_err();
    assert_eq!((refused.code, refused.peer_code), (Code::Context, Some(2)), "{refused}");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(scene.path("b.contexts")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for its owner alone");
}

/// L3.9: a disk that does not take it is told of, the name is free again, and the node goes on.
#[test]
fn a_disk_that_fails_is_told_of() {
    let scene = Scene::new();
    let _up = Up::start(&scene, "b");
    std::fs::create_dir(scene.path("b.contexts")).unwrap();
    let mut raw = Raw::hello(&scene.path("b.sock"));
    let create = json!({"op": "context_create", "name": "x", "kind": "log", "document": "", "durable": true});
    for request in 2..4 {
        raw.request(request, &create);
        let (kind, id, body) = raw.frame().unwrap();
        assert_eq!(
            (kind, id, &body["code"], &body["peer_code"]),
            (0x03, request, &json!("context"), &json!(9)),
            "{body}"
        );
        assert!(body["words"].as_str().unwrap().contains("b.contexts"), "{body}");
    }
    std::fs::remove_dir(scene.path("b.contexts")).unwrap();
    raw.request(4, &create);
    assert_eq!(raw.frame().unwrap().0, 0x02);
    // Without waiting for an answer: its name is taken, or free, in the order that was asked for.
    let name = |op: &str| json!({"op": op, "name": "x"});
    raw.request(5, &name("context_delete"));
    raw.request(6, &name("context_delete"));
    let (mut answers, mut frame) = (Vec::new(), || raw.frame().unwrap());
    answers.extend([frame(), frame()].map(|(kind, id, _)| (id, kind)));
    answers.sort_unstable();
    assert_eq!(answers, [(5, 0x02), (6, 0x03)]);
}
