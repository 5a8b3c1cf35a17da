//! A network that loses.

use nix::sys::signal::Signal;

use crate::scene::{End, Scene};

/// What arrives at an end on UDP's way to a socket, with every 20th packet taken out by chance and counted.
const LOSE_5_PERCENT: &str = "\
    add table inet test; \
    add counter inet test lost; \
    add chain inet test input { type filter hook input priority 0; }; \
    add rule inet test input udp dport 4242 numgen random mod 100 < 5 counter name lost drop";

/// 5 % loss in both directions: every message and every byte arrives, once and in order.
#[test]
fn everything_arrives_through_5_percent_loss() {
    let Some(scene) = Scene::new("loss::everything_arrives_through_5_percent_loss") else { return };
    for end in [End::A, End::B] {
        scene.nft(end, &[LOSE_5_PERCENT]);
    }
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).udp().peer("a", None).write();
    let mut listen = scene.start(&b, &["listen", "--files", "received"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "udp");

    let ended = scene.run(&a, &["ping", "b", "--count", "2000", "--interval", "0"]);
    let ping = ended.success("ping");
    assert_eq!((&ping["count"], &ping["lost"]), (&2000.into(), &0.into()));
    assert!(ping["retransmitted"].as_u64() > Some(0), "{ping}");
    let pings_lost = [End::A, End::B].map(|end| scene.nft_packets(end, "lost"));
    assert!(pings_lost.iter().all(|lost| *lost > 0), "{pings_lost:?}");

    let bytes = scene.file("file", 8 << 20);
    let ended = scene.run(&a, &["send", "file", "b"]);
    let sent = ended.success("send");
    assert_eq!(sent["sha256_ok"], true);
    assert!(sent["retransmitted"].as_u64() > Some(0), "{sent}");
    assert!(std::fs::read(scene.directory().join("received/file")).unwrap() == bytes);
    let lost = [End::A, End::B].map(|end| scene.nft_packets(end, "lost"));
    assert!(lost[1] > pings_lost[1], "{lost:?}");
    eprintln!("lost at a and b: {lost:?} packets, {pings_lost:?} of them of the ping; {ping}; {sent}");
    assert_eq!(listen.end_by(Signal::SIGTERM).code, Some(0));
}
