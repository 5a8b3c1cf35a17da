//! Shared contexts between real nodes: the commands, durable contexts through kill -9, copies that are kept.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::pilot::Ended;
use crate::scene::{End, Node, Scene};

fn show(scene: &Scene, node: &Node, name: &str) -> Value {
    scene.run(node, &["ctx", "show", name, "b"]).success("context").clone()
}

fn create(scene: &Scene, arguments: &[&str]) -> Ended {
    scene.bare(&[&["ctx", "create", "contexts.toml"], arguments].concat())
}

/// context.md C2.4, C3.2, C4.3, as a user meets them.
#[test]
fn contexts_are_shown_changed_and_followed() {
    let Some(scene) = Scene::new("contexts::contexts_are_shown_changed_and_followed") else { return };
    let b_at = Some(End::B.listen());
    let a = scene.node("a", End::A).udp().peer("b", b_at).write();
    let c = scene.node("c", End::A).udp().listen("10.77.0.1:4343").peer("b", b_at).write();
    let b = scene.node("b", End::B).udp().peer("a", None).peer("c", None).write();
    fs::write(scene.directory().join("plan.json"), r#"{"anomalies": 47, "tasks": ["watch"]}"#).unwrap();
    let made = ["plan", "--from", "plan.json", "--read", "a,c", "--write", "a"];
    create(&scene, &made).success("context_created");
    create(&scene, &["notes", "--kind", "log", "--read", "*", "--write", "c"]).success("context_created");
    create(&scene, &made).failure(2, &["a context `plan` already"]);
    create(&scene, &["x", "--kind", "log", "--from", "none"]).failure(2, &["none", "No such file"]);
    let mut serve = scene.start(&b, &["ctx", "serve", "contexts.toml"]);
    serve.wait_for("ready");

    let plan = show(&scene, &a, "plan");
    assert_eq!((&plan["version"], &plan["document"]), (&json!(0), &json!({"anomalies": 47, "tasks": ["watch"]})));
    let mut follow = scene.start(&c, &["ctx", "follow", "plan", "b", "--keep", "copy", "--count", "2", "--tokens"]);
    follow.wait_for("context");
    let stamp = plan["stamp"].as_str().unwrap();
    let patch = |arguments: &[&str]| scene.run(&a, &[&["ctx", "patch", "plan", "b"], arguments].concat());
    let changed = patch(&["--merge", r#"{"anomalies": 48}"#, "--if-version", stamp]);
    assert_eq!(changed.success("context_changed")["version"], 1);
    let change = &follow.wait_for("change").event;
    assert_eq!((&change["version"], &change["change"]), (&json!(1), &json!({"merge": {"anomalies": 48}})));
    patch(&["--merge", "{}", "--if-version", stamp]).failure(1, &["on version 0", "`plan` is at version 1"]);
    patch(&["--append", "x"]).failure(1, &["append is not for a JSON document", "merge patch"]);
    patch(&["--json-patch", r#"[{"op":"remove","path":"/none"}]"#]).failure(1, &["/none"]);
    patch(&["--merge", "{"]).failure(2, &["malformed"]);
    scene.run(&a, &["ctx", "show", "none", "b"]).failure(1, &["no context `none`"]);
    patch(&["--json-patch", r#"[{"op":"add","path":"/tasks/-","value":"rest"}]"#]).success("context_changed");
    let followed = follow.end();
    assert_eq!(followed.success("change")["version"], 2);
    let tokens = followed.event("tokens");
    assert!(tokens["given_tokens"].as_u64() > Some(0) && tokens["resent_tokens"].as_u64() > Some(0), "{tokens}");

    // What happened while it was not there, and nothing else.
    patch(&["--merge", r#"{"tasks": null}"#]).success("context_changed");
    let again = scene.run(&c, &["ctx", "follow", "plan", "b", "--keep", "copy", "--count", "1"]);
    assert_eq!(again.success("change")["version"], 3);
    assert!(again.said.iter().all(|said| said.event["event"] != "context"), "{again:#?}");
    let part = scene.run(&c, &["ctx", "show", "plan", "b", "--filter", "/anomalies"]);
    assert_eq!(part.success("context")["document"], 48);
    let set = scene.run(&a, &["ctx", "set", "plan", "b", "--text", r#"{"new": true}"#]);
    assert_eq!(set.success("context_changed")["version"], 4);
    assert_eq!(show(&scene, &c, "plan")["document"], json!({"new": true}));
    assert_eq!(serve.end_by(Signal::SIGTERM).code, Some(0));
}

/// context.md C5.1, C5.2: what a writer was told is there after kill -9, with its incarnation; a follower goes on.
#[test]
fn a_durable_context_survives_kill_9() {
    let Some(scene) = Scene::new("contexts::a_durable_context_survives_kill_9") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let c = scene.node("c", End::A).udp().listen("10.77.0.1:4343").peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).udp().peer("a", None).peer("c", None).write();
    create(&scene, &["log", "--kind", "log", "--durable", "--read", "*", "--write", "a"]).success("context_created");
    create(&scene, &["gone", "--kind", "log", "--read", "*", "--write", "a"]).success("context_created");
    let append = |name: &str, text: &str| {
        let changed = scene.run(&a, &["ctx", "patch", name, "b", "--append", text]);
        changed.success("context_changed")["stamp"].as_str().unwrap().to_owned()
    };
    let mut serve = scene.start(&b, &["ctx", "serve", "contexts.toml"]);
    serve.wait_for("ready");
    let mut follow = scene.start(&c, &["ctx", "follow", "log", "b", "--count", "3"]);
    follow.wait_for("context");
    let mut wanted = String::new();
    for life in 0..2 {
        let before = append("log", &format!("{life};"));
        wanted += &format!("{life};");
        append("gone", "x");
        follow.wait_until("change", |change| change["version"] == life + 1);
        serve.end_by(Signal::SIGKILL);
        serve = scene.start(&b, &["ctx", "serve", "contexts.toml"]);
        serve.wait_for("ready");
        let log = show(&scene, &a, "log");
        assert_eq!((log["stamp"].as_str(), log["document"].as_str()), (Some(before.as_str()), Some(wanted.as_str())));
        assert_eq!(show(&scene, &a, "gone")["version"], 0, "a volatile one begins anew");
    }
    append("log", "last");
    let followed = follow.end();
    assert_eq!(followed.success("change")["version"], 3);
    assert_eq!(followed.said.iter().filter(|said| said.event["event"] == "context").count(), 1, "{followed:#?}");

    // One process has the store.
    let second = scene.node("d", End::B).udp().listen("10.77.0.2:4444").peer("a", None).write();
    scene.run(&second, &["ctx", "serve", "contexts.toml"]).failure(1, &["contexts.redb"]);
    assert_eq!(serve.end_by(Signal::SIGTERM).code, Some(0));
}

/// context.md C1.4: deleted while it is served, and while it is not; created again, it is another.
#[test]
fn a_deleted_context_is_gone_and_another_may_come() {
    let Some(scene) = Scene::new("contexts::a_deleted_context_is_gone_and_another_may_come") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let c = scene.node("c", End::A).udp().listen("10.77.0.1:4343").peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).udp().peer("a", None).peer("c", None).write();
    let log = ["log", "--kind", "log", "--durable", "--read", "*", "--write", "a"];
    let append = || scene.run(&a, &["ctx", "patch", "log", "b", "--append", "x"]).success("context_changed").clone();
    let delete = |name: &str| scene.bare(&["ctx", "delete", "contexts.toml", name]);
    create(&scene, &["stays", "--kind", "log", "--read", "*"]).success("context_created");
    create(&scene, &log).success("context_created");
    let mut serve = scene.start(&b, &["ctx", "serve", "contexts.toml"]);
    serve.wait_for("ready");
    let first = append();
    let mut follow = scene.start(&c, &["ctx", "follow", "log", "b"]);
    follow.wait_for("context");
    delete("none").failure(2, &["context `none`", "stays, log"]);
    delete("log").success("context_deleted");
    follow.end().failure(1, &["`log` was deleted by its owner"]);
    scene.run(&a, &["ctx", "show", "log", "b"]).failure(1, &["no context `log`"]);
    assert_eq!(show(&scene, &a, "stays")["version"], 0);
    assert_eq!(serve.end_by(Signal::SIGTERM).code, Some(0));

    create(&scene, &log).success("context_created");
    let mut incarnations = vec![first["stamp"].as_str().unwrap()[..16].to_owned()];
    // The second one is deleted while nobody serves it.
    for _ in 0..2 {
        let mut serve = scene.start(&b, &["ctx", "serve", "contexts.toml"]);
        serve.wait_for("ready");
        assert_eq!(show(&scene, &a, "log")["document"], "");
        let stamp = append()["stamp"].as_str().unwrap()[..16].to_owned();
        assert!(!incarnations.contains(&stamp), "{stamp}: {incarnations:?}");
        incarnations.push(stamp);
        assert_eq!(serve.end_by(Signal::SIGTERM).code, Some(0));
        delete("log").success("context_deleted");
        create(&scene, &log).success("context_created");
    }
}
