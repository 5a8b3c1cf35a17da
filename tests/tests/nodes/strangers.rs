//! Who may not talk to a node, and what it sees of them.

use nix::sys::signal::Signal;

use crate::scene::{End, Scene};

/// A wrong key, an unknown peer, a peer that is not there: an error in words, a counted drop, and the node goes on.
#[test]
fn who_is_not_known_gets_no_answer_and_disturbs_nobody() {
    let Some(scene) = Scene::new("strangers::who_is_not_known_gets_no_answer_and_disturbs_nobody") else { return };
    let b_at = Some(End::B.listen());
    let a = scene.node("a", End::A).udp().peer("b", b_at).write();
    // b knows this one, which thinks that b has c's key; and it does not know c.
    let mistaken = scene.node("m", End::A).udp().listen("10.77.0.1:4343");
    let mistaken = mistaken.peer_with_key("b", &scene.key("c"), b_at).write();
    let unknown = scene.node("c", End::A).udp().listen("10.77.0.1:4244").peer("b", b_at).write();
    let lonely = scene.node("l", End::A).udp().listen("10.77.0.1:4245");
    let lonely = lonely.peer("b", Some("10.77.0.3:4242")).peer("nowhere", None).write();
    let b = scene.node("b", End::B).peer("a", None).peer("m", None).write();
    let mut listen = scene.start(&b, &["up"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");

    let once = ["ping", "b", "--count", "1"];
    let strangers = [&mistaken, &unknown, &lonely].map(|stranger| scene.start(stranger, &once));
    scene.run(&a, &["ping", "b", "--count", "1000", "--interval", "0"]).success("ping");
    for stranger in strangers {
        stranger.end().failure(1, &["b: ", "no answer"]);
    }
    scene.run(&lonely, &["ping", "nowhere", "--count", "1"]).failure(1, &["nowhere: ", "no endpoint", "configuration"]);
    scene.run(&a, &["ping", "d", "--count", "1"]).failure(2, &["peer: given `d`", "configured: b"]);
    scene.run(&a, &["ping", "b", "--count", "1000", "--interval", "0"]).success("ping");

    let ended = listen.end_by(Signal::SIGTERM);
    let dropped = &ended.success("stats")["engine"]["dropped"];
    assert!(dropped["mac1"].as_u64() > Some(0), "{dropped}");
    assert!(dropped["unknown_peer"].as_u64() > Some(0), "{dropped}");
    assert!(
        ended.said.iter().all(|said| said.event["peer"] != "m"),
        "no tunnel with who has the wrong key: {ended:#?}"
    );
}

/// A source outside of `allow_from` is dropped by the XDP program, counted, and gets no answer of any kind.
#[test]
fn allow_from_drops_other_sources() {
    let Some(scene) = Scene::new("strangers::allow_from_drops_other_sources") else { return };
    scene.ip(End::A, &["address", "add", "10.77.0.9/24", "dev", "veth-a"]);
    scene.nft(
        End::A,
        &["\
        add table inet test; \
        add counter inet test to_the_allowed; \
        add counter inet test to_the_other; \
        add chain inet test input { type filter hook input priority 0; }; \
        add rule inet test input ip saddr 10.77.0.2 ip daddr 10.77.0.1 udp sport 4242 counter name to_the_allowed; \
        add rule inet test input ip saddr 10.77.0.2 ip daddr 10.77.0.9 counter name to_the_other"],
    );
    let b_at = Some(End::B.listen());
    let b = scene.node("b", End::B).line("allow_from = [\"10.77.0.1/32\"]").peer("a", None).write();
    let mut listen = scene.start(&b, &["up"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");

    // The same node, whom b knows, from two addresses.
    let allowed = scene.node("a", End::A).udp().peer("b", b_at).write();
    scene.run(&allowed, &["ping", "b", "--count", "10", "--interval", "0"]).success("ping");
    assert!(scene.nft_packets(End::A, "to_the_allowed") > 0);
    let other = scene.node("a", End::A).udp().listen("10.77.0.9:4242").peer("b", b_at).write();
    scene.run(&other, &["ping", "b", "--count", "1"]).failure(1, &["b: ", "no answer"]);
    assert_eq!(scene.nft_packets(End::A, "to_the_other"), 0);

    let ended = listen.end_by(Signal::SIGTERM);
    let stats = ended.success("stats");
    let dropped = stats["xdp"]["verdicts"]["drop_source_not_allowed"].as_u64();
    assert!(dropped > Some(0) && stats["xdp"]["dropped"].as_u64() == dropped, "{stats}");
    assert_eq!(stats["engine"]["handshakes"], 1, "{stats}");
}
