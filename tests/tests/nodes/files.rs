//! Files that meet, that are there already, that are empty or cannot be read; and IPv6.

use std::fs;

use nix::sys::signal::Signal;

use crate::scene::{End, Scene};

/// Two senders at a time, an empty file, a name that is taken, a file that cannot be sent.
#[test]
fn files_are_whole_or_refused_in_words() {
    let Some(scene) = Scene::new("files::files_are_whole_or_refused_in_words") else { return };
    let b_at = Some(End::B.listen());
    let a = scene.node("a", End::A).peer("b", b_at).write();
    let c = scene.node("c", End::A).udp().listen("10.77.0.1:4343").peer("b", b_at).write();
    let b = scene.node("b", End::B).peer("a", None).peer("c", None).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    listen.wait_for("ready");
    let received = |name: &str| fs::read(scene.directory().join("received").join(name)).unwrap();

    let one = scene.file("one", 20_000_001);
    let two = scene.file("two", 10_000_000);
    let sends = [scene.start(&a, &["send", "one", "b"]), scene.start(&c, &["send", "two", "b"])];
    for send in sends {
        assert_eq!(send.end().success("send")["sha256_ok"], true);
    }
    assert!(received("one") == one && received("two") == two);

    scene.file("empty", 0);
    let ended = scene.run(&a, &["send", "empty", "b"]);
    let sent = ended.success("send");
    assert_eq!((&sent["bytes"], &sent["sha256_ok"]), (&0.into(), &true.into()));
    assert_eq!(received("empty"), b"");

    scene.file("one", 100);
    scene.run(&a, &["send", "one", "b"]).failure(1, &["b refused the file", "one", "already"]);
    assert!(received("one") == one, "what was there stays");

    fs::create_dir(scene.directory().join("folder")).unwrap();
    scene.run(&a, &["send", "folder", "b"]).failure(2, &["folder", "regular file"]);
    scene.run(&a, &["send", "missing", "b"]).failure(2, &["missing", "No such file"]);
    fs::write(scene.directory().join(".hidden"), "x").unwrap();
    scene.run(&a, &["send", ".hidden", "b"]).failure(1, &["b refused the file", ".hidden"]);
    let long = "x".repeat(250);
    fs::write(scene.directory().join(&long), "x").unwrap();
    scene.run(&a, &["send", &long, "b"]).failure(1, &["b refused the file", "plain file name"]);

    let mut names: Vec<_> =
        fs::read_dir(scene.directory().join("received")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["empty", "one", "two"]);
    assert_eq!(listen.end_by(Signal::SIGTERM).code, Some(0));
}

/// A file that its own sender may not read, and a folder that the receiver may not write to.
#[test]
fn a_node_without_files_or_folder_says_so() {
    let Some(scene) = Scene::new("files::a_node_without_files_or_folder_says_so") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).udp().peer("a", None).write();
    scene.file("file", 100);
    scene.run(&b, &["listen", "--files", "file/received"]).failure(1, &["cannot receive files into file/received"]);
    let mut up = scene.start(&b, &["up"]);
    up.wait_for("ready");
    scene.run(&a, &["send", "file", "b"]).failure(1, &["b: ", "refused", "nobody listens on port 1001"]);
}

/// AF_XDP over IPv6; also to a peer without, whose kernel looks at the UDP checksum (wire.md W2.6).
#[test]
fn ipv6_goes_through_af_xdp() {
    let Some(scene) = Scene::new("files::ipv6_goes_through_af_xdp") else { return };
    let a = scene.node("a", End::A).listen("[fd00::1]:4242").peer("b", Some("[fd00::2]:4242"));
    let a = a.peer("u", Some("[fd00::2]:4343")).write();
    let udp = scene.node("u", End::B).udp().listen("[fd00::2]:4343").peer("a", None).write();
    let b = scene.node("b", End::B).listen("[fd00::2]:4242").peer("a", None).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");
    let ended = scene.run(&a, &["ping", "b", "--count", "1000", "--interval", "0"]);
    let ping = ended.success("ping");
    assert_eq!((&ping["lost"], &ping["datapath"]["kind"]), (&0.into(), &"xdp".into()));
    assert!(ping["opened_from_xdp"].as_u64() >= Some(1000), "{ping}");
    let bytes = scene.file("file", 4 << 20);
    assert_eq!(scene.run(&a, &["send", "file", "b"]).success("send")["sha256_ok"], true);
    assert!(fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let ended = listen.end_by(Signal::SIGTERM);
    let engine = &ended.success("stats")["engine"];
    assert!(engine["opened_from_xdp"].as_u64() >= Some(1000), "{engine}");
    // Before b's neighbour is known to a, a's kernel sends for it; it arrives through AF_XDP all the same.
    assert_eq!(engine["opened_from_udp"], 0, "{engine}");

    let mut up = scene.start(&udp, &["up"]);
    up.wait_for("ready");
    let ended = scene.run(&a, &["ping", "u", "--count", "100", "--interval", "0"]);
    assert_eq!(ended.success("ping")["datapath"]["kind"], "xdp");
    assert_eq!(up.end_by(Signal::SIGTERM).code, Some(0));
}
