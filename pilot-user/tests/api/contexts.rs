//! Shared contexts as programs use them: of a node of this process and of a daemon's, by one and the same code.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use pilot_user::api::{Code, Interest};
use pilot_user::context::{Change, Document, Kind, Rights};
use pilot_user::{Following, Node};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::daemon::{LONG, Raw, Up, example, pilot};
use crate::scene::Scene;

/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(200);

fn document(kind: Kind, bytes: impl AsRef<[u8]>) -> Document {
    Document::decode(kind, bytes.as_ref()).unwrap()
}

fn rights(read: &[&str], write: &[&str]) -> Rights {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Rights { read: names(read), write: names(write) }
}

fn merge(patch: &Value) -> Change {
    Change::Merge(patch.clone())
}

fn bytes(document: &Document) -> Vec<u8> {
    let mut out = Vec::new();
    document.encode(&mut out);
    out
}

/// A node named a: of this process, or a daemon's.
async fn node_a(scene: &Scene, attached: bool) -> (Node, Option<Up>) {
    if !attached {
        return (scene.node("a"), None);
    }
    let up = Up::start(scene, "a");
    (Node::attach(scene.path("a.sock")).await.unwrap(), Some(up))
}

/// Reads until a version.
async fn until(following: &mut Following, version: u64) -> usize {
    let mut updates = 0;
    while following.stamp().version < version {
        timeout(LONG, following.next()).await.unwrap().unwrap();
        updates += 1;
    }
    updates
}

/// L3.6, L3.7, L3.8: a peer's contexts and the node's own, from both ends.
async fn contexts_are_shared(attached: bool) {
    let scene = Scene::new();
    let ((a, _up), b) = (node_a(&scene, attached).await, scene.node("b"));
    let plan = document(Kind::Json, br#"{"anomalies": 47, "tasks": ["watch"]}"#);
    let at_b = b.create_context("plan", &plan, rights(&["a"], &["a"])).await.unwrap();
    let mut own = at_b.follow().await.unwrap();
    let at_a = a.context("plan", "b");
    let mut copy = timeout(LONG, at_a.follow()).await.unwrap().unwrap();
    assert_eq!((copy.stamp().version, copy.render().as_str()), (0, r#"{"anomalies":47,"tasks":["watch"]}"#));
    let first = copy.stamp();
    let stamp = at_a.change(&merge(&json!({"anomalies": 48}))).await.unwrap();
    assert_eq!((stamp.incarnation, stamp.version), (first.incarnation, 1));
    assert_eq!(copy.deltas().await.unwrap(), r#"1 {"merge":{"anomalies":48}}"#);
    assert_eq!((copy.stamp(), copy.render().as_str()), (stamp, r#"{"anomalies":48,"tasks":["watch"]}"#));
    let change = Change::patch(br#"[{"op": "add", "path": "/tasks/-", "value": "tell"}]"#).unwrap();
    let stamp = at_b.change_if(stamp, &change).await.unwrap();
    for following in [&mut own, &mut copy] {
        until(following, 2).await;
        assert_eq!(
            (following.stamp(), following.render().as_str()),
            (stamp, r#"{"anomalies":48,"tasks":["watch","tell"]}"#)
        );
    }
    // context.md C2.5: whatever is refused, and nothing has changed.
    for context in [&at_a, &at_b] {
        let conflict = context.change_if(first, &merge(&json!({}))).await.unwrap_err();
        assert_eq!((conflict.code, conflict.peer_code), (Code::Context, Some(3)), "{conflict}");
        let unfit = context.change(&Change::Append(b"x".to_vec())).await.unwrap_err();
        assert_eq!((unfit.code, unfit.peer_code), (Code::Context, Some(4)), "{unfit}");
    }
    let there = b.create_context("plan", &plan, Rights::default()).await.err().unwrap();
    assert_eq!((there.code, there.peer_code), (Code::Context, Some(3)), "{there}");
    let read_only = b.create_context("read", &plan, rights(&["*"], &[])).await.unwrap();
    let refused = a.context("read", "b").change(&merge(&json!({}))).await.unwrap_err();
    assert_eq!((refused.code, refused.peer_code), (Code::Context, Some(2)), "{refused}");
    let unknown = a.context("none", "b").follow().await.err().unwrap();
    assert_eq!((unknown.code, unknown.peer_code), (Code::Context, Some(1)), "{unknown}");
    assert_eq!(a.context("plan", "nobody").follow().await.err().unwrap().code, Code::UnknownPeer);
    let nobody = b.create_context("x", &plan, rights(&["nobody"], &[])).await.err().unwrap();
    assert_eq!(nobody.code, Code::UnknownPeer);
    // A part, and nothing of what lies beside it.
    let interest = Interest { filter: Some("/anomalies".into()), latest: false };
    let mut part = a.context("plan", "b").follow_with(interest).await.unwrap();
    assert_eq!(part.render(), "48");
    at_a.change(&merge(&json!({"tasks": null}))).await.unwrap();
    at_a.change(&merge(&json!({"anomalies": 49}))).await.unwrap();
    assert_eq!((part.next().await.unwrap().stamp.version, part.render().as_str()), (4, "49"));
    // C1.4.
    assert_eq!(at_a.delete().await.unwrap_err().code, Code::NotAllowed, "it is the peer's");
    at_b.delete().await.unwrap();
    for mut following in [own, copy, part] {
        let over = loop {
            if let Err(over) = timeout(LONG, following.next()).await.unwrap() {
                break over;
            }
        };
        assert_eq!((over.code, over.peer_code), (Code::Context, Some(1)), "{over}");
        assert_eq!(following.next().await.unwrap_err(), over, "and says so again");
    }
    b.create_context("plan", &plan, Rights::default()).await.unwrap();
    drop(read_only);
}

#[tokio::test]
async fn contexts_are_shared_between_nodes_of_this_process() {
    contexts_are_shared(false).await;
}

#[tokio::test]
async fn contexts_are_shared_through_a_daemon() {
    contexts_are_shared(true).await;
}

/// local-protocol.md §3: every kind, every change of it, in both directions through the socket; and documents longer than a frame, a
/// credit and a connection's message.
#[tokio::test]
async fn every_kind_goes_through_the_socket() {
    let scene = Scene::new();
    let ((a, _up), b) = (node_a(&scene, true).await, scene.node("b"));
    for (kind, first, changes, last) in [
        (
            Kind::Json,
            br#"{"a":1.5}"#.to_vec(),
            vec![Change::Replace(br#"["x"]"#.to_vec()), merge(&json!({"b": null, "c": "ä"}))],
            r#"{"c":"ä"}"#.as_bytes().to_vec(),
        ),
        (
            Kind::Text,
            b"42".to_vec(),
            vec![
                Change::Replace(b"[1]".to_vec()),
                Change::Append("ä".into()),
                Change::Edit { offset: 1, removed: 1, inserted: "one".into() },
            ],
            "[one]ä".into(),
        ),
        (
            Kind::Log,
            b"".to_vec(),
            vec![Change::Append(b"one\n".to_vec()), Change::Append(b"two\n".to_vec())],
            b"one\ntwo\n".to_vec(),
        ),
        (
            Kind::Bytes,
            vec![0, 0xff],
            vec![
                Change::Replace(vec![0xfe; 3]),
                Change::Append(b"text".to_vec()),
                Change::Write { offset: 1, bytes: vec![0xc3, 0x28] },
            ],
            [&[0xfe, 0xc3, 0x28][..], b"text"].concat(),
        ),
    ] {
        let at_a = a.create_context("it", &document(kind, &first), rights(&["b"], &["b"])).await.unwrap();
        let at_b = b.context("it", "a");
        let (mut here, mut there) =
            (at_a.follow().await.unwrap(), timeout(LONG, at_b.follow()).await.unwrap().unwrap());
        assert_eq!((bytes(here.document()), bytes(there.document())), (first.clone(), first));
        for (number, change) in changes.iter().enumerate() {
            // In turn by the owner's application and by the peer's.
            let writer = if number % 2 == 0 { &at_a } else { &at_b };
            writer.change(change).await.unwrap();
            for following in [&mut here, &mut there] {
                let update = timeout(LONG, following.next()).await.unwrap().unwrap();
                assert_eq!((update.stamp.version, update.change.as_ref()), (number as u64 + 1, Some(change)));
            }
        }
        assert_eq!((bytes(here.document()), bytes(there.document())), (last.clone(), last));
        drop((here, there));
        at_a.delete().await.unwrap();
    }
    let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
    let at_b = b.create_context("large", &document(Kind::Bytes, &large), rights(&["a"], &["a"])).await.unwrap();
    let mut copy = timeout(LONG, a.context("large", "b").follow()).await.unwrap().unwrap();
    assert!(bytes(copy.document()) == large);
    at_b.change(&Change::Append(large.clone())).await.unwrap();
    until(&mut copy, 1).await;
    assert!(bytes(copy.document()) == [&large[..], &large].concat());
    let too_long = a.context("large", "b").change(&Change::Append(large)).await.unwrap_err();
    assert_eq!(too_long.code, Code::TooLong, "{too_long}");
    a.context("large", "b").change(&Change::Append(vec![0xff; 500_000])).await.unwrap();
    until(&mut copy, 2).await;
}

/// L5.6: who does not read is sent no more and holds nobody up; read again, it ends at the owner's document.
#[tokio::test]
async fn a_slow_follower_hurts_only_itself() {
    const CHANGES: u64 = 6000;
    let scene = Scene::new();
    let ((a, _up), b) = (node_a(&scene, true).await, scene.node("b"));
    let at_b = b.create_context("plan", &document(Kind::Json, "{}"), rights(&["a"], &["a"])).await.unwrap();
    let at_a = a.context("plan", "b");
    let (mut slow, mut quick) = (at_a.follow().await.unwrap(), at_a.follow().await.unwrap());
    let mut latest = at_a.follow_with(Interest { filter: None, latest: true }).await.unwrap();
    let mut raw = Raw::hello(&scene.path("a.sock"));
    raw.request(2, &json!({"op": "context_follow", "peer": "b", "name": "plan"}));
    let writing = tokio::spawn(async move {
        for number in 0..CHANGES {
            at_b.change(&merge(&json!({"last": number, "padding": "x".repeat(1000)}))).await.unwrap();
        }
        at_b
    });
    assert_eq!(until(&mut quick, CHANGES).await as u64, CHANGES, "each of them");
    let at_b = timeout(LONG, writing).await.unwrap().unwrap();
    // Nor does a slow one hold up the others of its application, and its changes.
    at_a.change(&merge(&json!({"last": CHANGES}))).await.unwrap();
    until(&mut quick, CHANGES + 1).await;
    // The socket's own application that reads nothing: half of a megabyte at most was sent to it.
    let (mut parts, mut changed) = (0, 0);
    let following = loop {
        let (kind, id, body) = raw.frame().unwrap();
        if kind == 0x02 {
            break body["following"].as_u64().unwrap() as u32;
        }
        assert_ne!(kind, 0x03, "{id}: {body}");
    };
    let raw = tokio::task::spawn_blocking(move || {
        raw.request(3, &json!({"op": "peers"}));
        loop {
            let (kind, id, body) = raw.frame().unwrap();
            match kind {
                0x16 if id == following => parts += 1,
                0x04 if id == following => changed += u64::from(body["event"] == "changed"),
                _ => break,
            }
        }
        (raw, parts, changed)
    });
    let (mut raw, parts, changed) = raw.await.unwrap();
    assert!(parts > 100 && changed < 300, "{parts} PARTs of {changed} changes within the credit");
    assert_eq!(changed + 1, parts, "none is half there");
    raw.request(4, &json!({"op": "context_unfollow", "following": following}));
    assert_eq!(raw.frame().unwrap().0, 0x02);
    // What was missed, as long as the owner has it (C3.2), or the document.
    let updates = until(&mut slow, CHANGES + 1).await as u64;
    assert!(updates <= CHANGES + 1 && slow.render() == quick.render(), "{updates}");
    let updates = until(&mut latest, CHANGES + 1).await as u64;
    assert!(updates < CHANGES / 2 && latest.render() == quick.render(), "{updates} of {CHANGES}");
    at_b.change(&merge(&json!({"last": "one"}))).await.unwrap();
    for following in [&mut slow, &mut quick, &mut latest] {
        until(following, CHANGES + 2).await;
        assert_eq!(following.document().as_json().unwrap()["last"], "one");
    }
}

/// L2.3, L3.7: a daemon that is killed ends its applications' followings with one clear error; those of its peers go on by themselves when
/// it is there again.
#[tokio::test]
async fn followings_through_a_daemon_that_is_killed() {
    let scene = Scene::new();
    let ((a, up), b) = (node_a(&scene, true).await, scene.node("b"));
    let text = |text: &str| document(Kind::Text, text);
    let at_a = a.create_context("of a", &text("first life"), rights(&["*"], &["*"])).await.unwrap();
    let at_b = b.create_context("of b", &text("b"), rights(&["*"], &["*"])).await.unwrap();
    let mut own = at_a.follow().await.unwrap();
    let mut remote = timeout(LONG, a.context("of b", "b").follow()).await.unwrap().unwrap();
    let mut of_peer = timeout(LONG, b.context("of a", "a").follow()).await.unwrap().unwrap();
    at_b.change(&Change::Append(b"!".to_vec())).await.unwrap();
    until(&mut remote, 1).await;
    drop(up);
    for following in [&mut own, &mut remote] {
        for _ in 0..2 {
            let over = timeout(LONG, following.next()).await.unwrap().unwrap_err();
            assert_eq!(over.code, Code::ShuttingDown, "{over}");
        }
    }
    assert_eq!(at_a.change(&Change::Append(b"x".to_vec())).await.unwrap_err().code, Code::ShuttingDown);
    let late = timeout(A_WHILE, of_peer.next()).await;
    assert!(late.is_err() && of_peer.render() == "first life", "{late:?}");

    let (a, _up) = node_a(&scene, true).await;
    a.create_context("of a", &text("second life"), rights(&["*"], &["*"])).await.unwrap();
    let before = of_peer.stamp();
    let update = timeout(LONG, of_peer.next()).await.unwrap();
    // Between the two lives there was no such context; who asked just then was told so.
    match update {
        Ok(update) => assert!(update.change.is_none() && update.stamp.incarnation != before.incarnation),
        Err(over) => {
            assert_eq!((over.code, over.peer_code), (Code::Context, Some(1)), "{over}");
            of_peer = timeout(LONG, b.context("of a", "a").follow()).await.unwrap().unwrap();
        }
    }
    assert_eq!(of_peer.render(), "second life");
    let remote = timeout(LONG, a.context("of b", "b").follow()).await.unwrap().unwrap();
    assert_eq!((remote.stamp().version, remote.render().as_str()), (1, "b!"));
}

/// L3.1, L1.1, L1.5: what is wrong with a request is its answer; what is no frame of an application's ends the session.
#[tokio::test]
async fn what_is_malformed_about_contexts_is_said() {
    let scene = Scene::new();
    let _up = Up::start(&scene, "a");
    let mut raw = Raw::hello(&scene.path("a.sock"));
    let long = "x".repeat(129);
    let create = |name: &str, kind: &str, document: Value| json!({"op": "context_create", "name": name, "kind": kind, "document": document});
    let change = |change: Value| json!({"op": "context_change", "name": "plan", "change": change});
    raw.request(8, &create("plan", "json", json!({})));
    assert_eq!(raw.frame().unwrap().0, 0x02);
    for (what, code, words) in [
        (json!({"op": "context_create", "name": "x"}), "malformed", "kind"),
        (create("x", "yaml", json!({})), "malformed", "yaml"),
        (create("x", "text", json!({})), "malformed", "a string"),
        (create("x", "bytes", json!("!")), "malformed", "base64"),
        (create("", "json", json!({})), "malformed", "1 to 128"),
        (create(&long, "json", json!({})), "malformed", "1 to 128"),
        (create("a\nb", "json", json!({})), "malformed", "control"),
        (create("plan", "json", json!({})), "context", "already"),
        (
            json!({"op": "context_create", "name": "x", "kind": "log", "document": "", "read": "b"}),
            "malformed",
            "context_create",
        ),
        (json!({"op": "context_delete", "name": "x"}), "context", "no context `x`"),
        (json!({"op": "context_delete"}), "malformed", "name"),
        (change(json!({})), "malformed", "context_change"),
        (change(json!({"burn": 1})), "malformed", "context_change"),
        (change(json!({"append": 7})), "malformed", "a string"),
        (change(json!({"append": "!", "as": "base64"})), "malformed", "base64"),
        (change(json!({"replace": 1, "as": "hex"})), "malformed", "hex"),
        (change(json!({"patch": [{"op": "burn", "path": ""}]})), "malformed", "context_change"),
        (change(json!({"values": [["", 1]]})), "context", "values are made by owners"),
        (json!({"op": "context_change", "name": "", "change": {"merge": {}}}), "malformed", "1 to 128"),
        (
            json!({"op": "context_change", "name": "plan", "change": {"merge": {}}, "if_stamp": 7}),
            "malformed",
            "expected a string",
        ),
        (
            json!({"op": "context_change", "name": "plan", "change": {"merge": {}}, "if_stamp": "7"}),
            "malformed",
            "INCARNATION",
        ),
        (
            json!({"op": "context_change", "name": "plan", "change": {"merge": {}}, "if_stamp": "7:0"}),
            "context",
            "earlier life",
        ),
        (json!({"op": "context_follow", "name": "plan", "filter": "x"}), "malformed", "JSON pointer"),
        (
            json!({"op": "context_follow", "name": "plan", "filter": format!("/{}", "x".repeat(1024))}),
            "malformed",
            "1024",
        ),
        (json!({"op": "context_follow", "name": "none"}), "context", "no context `none`"),
        (json!({"op": "context_follow", "peer": "nobody", "name": "plan"}), "unknown_peer", "configured: b"),
        (json!({"op": "context_unfollow", "following": 512}), "no_such", "512"),
        (json!({"op": "context_unfollow", "following": 513}), "no_such", "513"),
    ] {
        raw.request(9, &what);
        let (kind, id, body) = raw.frame().unwrap();
        assert_eq!((kind, id, &body["code"]), (0x03, 9, &json!(code)), "{what}: {body}");
        assert!(body["words"].as_str().unwrap().contains(words), "{what}: {words:?} is not in {body}");
    }
    raw.request(10, &json!({"op": "context_follow", "name": "plan", "latest": true}));
    let (_, _, body) = raw.frame().unwrap();
    let following = body["following"].as_u64().unwrap() as u32;
    let (kind, id, whole) = raw.frame().unwrap();
    assert_eq!((kind, id, &whole["event"], &whole["bytes"]), (0x04, following, &json!("whole"), &json!(2)));
    assert_eq!(raw.frame(), Some((0x16, following, json!({}))));
    // L5.2: 64 of the event, and 66 of the PART are owed.
    raw.say(0x14, following, &130_u32.to_be_bytes());
    raw.request(11, &json!({"op": "context_unfollow", "following": following}));
    assert_eq!(raw.frame().unwrap().0, 0x02);
    // L1.5: it names nothing any more.
    raw.say(0x14, following, &130_u32.to_be_bytes());
    raw.request(12, &json!({"op": "context_follow", "name": "plan"}));
    let following = raw.frame().unwrap().2["following"].as_u64().unwrap() as u32;
    assert_eq!((raw.frame().unwrap().0, raw.frame().unwrap().0), (0x04, 0x16));
    raw.say(0x14, following, &131_u32.to_be_bytes());
    raw.ends_with("malformed");
    let mut raw = Raw::hello(&scene.path("a.sock"));
    raw.say(0x16, following, b"a part");
    raw.ends_with("malformed");
    // Contexts outlive the session that made them (L2.3), and others may be held.
    let mut raw = Raw::hello(&scene.path("a.sock"));
    raw.request(2, &create("plan", "json", json!({})));
    assert_eq!(raw.frame().unwrap().2["code"], "context");
}

/// L2.1: another user does what the configuration says, by name and by right.
#[test]
fn other_users_use_the_contexts_that_they_may() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: contexts::other_users_use_the_contexts_that_they_may: not root");
        return;
    }
    let scene =
        Scene::with("[local]\nusers = [{ uid = 65534, contexts = { change = ['plan'], follow = ['pl*', 'notes'] } }]");
    // Where another user can run it.
    let program = scene.path("pilot");
    std::fs::copy(env!("CARGO_BIN_EXE_pilot"), &program).unwrap();
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let mut at_b = Raw::hello(&scene.path("b.sock"));
    for name in ["plan", "notes", "secret"] {
        let what = json!({"op": "context_create", "name": name, "kind": "json", "document": {}, "read": ["a"], "write": ["a"]});
        at_b.request(2, &what);
        assert_eq!(at_b.frame().unwrap().0, 0x02);
    }
    let config = scene.path("a.toml");
    let run = |uid, arguments: &[&str]| {
        pilot(&program, Some(uid), &[&["ctx"], arguments, &["b", "--config", config.to_str().unwrap()]].concat())
    };
    assert_eq!(run(65534, &["show", "plan"]).0, Some(0));
    assert_eq!(run(65534, &["set", "--text", "{}", "plan"]).0, Some(0));
    assert_eq!(run(65534, &["show", "notes"]).0, Some(0));
    for (arguments, words) in [
        (&["set", "--text", "{}", "notes"][..], "allowed for this user: plan"),
        (&["show", "secret"], "allowed for this user: pl*, notes"),
    ] {
        let (code, refused) = run(65534, arguments);
        assert!(code == Some(2) && refused["error"].as_str().unwrap().contains(words), "{refused}");
    }
    let (code, refused) = run(65533, &["show", "plan"]);
    assert!(code == Some(2) && refused["error"].as_str().unwrap().contains("user 65533 may not"), "{refused}");
}

/// The two programs of the README: at two nodes, one holds a plan and hears what the other makes of it.
#[test]
fn the_examples_share_a_plan() {
    let scene = Scene::new();
    let (_a, _b) = (Up::start(&scene, "a"), Up::start(&scene, "b"));
    let run = |name: &str, socket: &str, peer: &str| {
        let mut program = Command::new(example(name));
        program.arg(scene.path(socket)).arg(peer).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut hold = run("hold", "a.sock", "b");
    let mut lines = BufReader::new(hold.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), r#"{"anomalies":47}"#);
    let follow = run("follow", "b.sock", "a").wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&follow.stdout).into_owned();
    assert_eq!(said, "{\"anomalies\":47}\n1 {\"merge\":{\"anomalies\":48}}\n");
    assert_eq!(lines.next().unwrap().unwrap(), r#"1 {"merge":{"anomalies":48}}"#);
    assert!(hold.wait().unwrap().success() && follow.status.success());
    for program in [include_str!("../../examples/hold.rs"), include_str!("../../examples/follow.rs")] {
        let lines = program.lines().filter(|line| !line.is_empty() && !line.starts_with("//!")).count();
        assert!(lines <= 15, "{lines} lines");
    }
}
