//! What the XDP program does not redirect, in the log of a node that is asked for it.

use nix::sys::signal::Signal;

use crate::pilot::executable;
use crate::scene::{End, Scene};

/// A stranger's bad datagram: a line with its reason, source and ports where the environment asks for it, and else none.
#[test]
fn a_node_that_is_debugged_says_what_its_xdp_program_drops() {
    let Some(scene) = Scene::new("xdp_log::a_node_that_is_debugged_says_what_its_xdp_program_drops") else { return };
    let b = scene.node("b", End::B).peer("a", None).write();
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let stranger = scene.socket(End::A, "10.77.0.1:4711");
    // Wire version 1, reserved type 7.
    let bad = [1 << 5 | 7 << 2; 100];
    for (filter, asked) in [("RUST_LOG=debug", true), ("RUST_LOG=info", false)] {
        let mut listen = scene.start_as(&b, executable(), &["env", "NO_COLOR=1", filter], &["listen"]);
        let ready = &listen.wait_for("ready").event;
        assert_eq!(ready["datapath"]["kind"], "xdp", "{ready}");
        stranger.send_to(&bad, End::B.listen()).unwrap();
        if asked {
            listen.wait_for_log("not redirected");
        }
        // What arrives later is answered: the program has seen the stranger's before.
        scene.run(&a, &["ping", "b", "--count", "1"]).success("ping");
        let ended = listen.end_by(Signal::SIGTERM);
        let verdicts = &ended.success("stats")["xdp"]["verdicts"];
        assert_eq!(verdicts["drop_reserved_type"], 1, "{verdicts}");
        let lines: Vec<_> = ended.stderr.lines().filter(|line| line.contains("not redirected")).collect();
        assert_eq!(lines.len(), usize::from(asked), "{}", ended.stderr);
        for line in lines {
            for word in [
                "DEBUG",
                "reason=\"drop_reserved_type\"",
                "source=10.77.0.1:4711",
                "destination=10.77.0.2:4242",
                "len=142",
            ] {
                assert!(line.contains(word), "no {word} in {line}");
            }
        }
    }
}
