//! A transfer and a series of deltas, each with a fault in the middle.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::fault::{Fault, Foreign};
use crate::pilot::{Ended, Pilot};
use crate::scene::{End, Node, Scene};

/// Bytes of the transfer: more than arrive before the last of a fault is over, on a fast machine. If they do arrive, the
/// test says so.
const FILE_BYTES: usize = 1 << 30;
/// Deltas, one a millisecond and round trip: more than the longest fault lasts.
const DELTAS: u64 = 6000;

/// A file is on its way from a to b when the fault comes. It goes by AF_XDP, which is what the fault is about.
pub(crate) fn during_bulk(fault: Fault, end: End) {
    during_bulk_on(1, fault, end);
}

/// As [`during_bulk`], on devices with so many queues.
pub(crate) fn during_bulk_on(queues: u32, fault: Fault, end: End) {
    let Some(stage) = Stage::new("bulk", queues, fault, end) else { return };
    stage.scene.file("file", FILE_BYTES);
    let run = stage.run(&["send", "file", "b"], 4 << 20);
    let sent = run.success("send");
    assert_eq!((&sent["sha256_ok"], &sent["bytes"]), (&true.into(), &FILE_BYTES.into()), "{sent}");
}

/// Deltas go from a to b and back when the fault comes.
pub(crate) fn during_deltas(fault: Fault, end: End) {
    during_deltas_on(1, fault, end);
}

/// As [`during_deltas`], on devices with so many queues.
pub(crate) fn during_deltas_on(queues: u32, fault: Fault, end: End) {
    let Some(stage) = Stage::new("deltas", queues, fault, end) else { return };
    let run = stage.run(&["ping", "b", "--count", &DELTAS.to_string(), "--interval", "1"], 200);
    let ping = run.success("ping");
    assert_eq!((&ping["lost"], &ping["count"]), (&0.into(), &DELTAS.into()), "{ping}");
}

/// The namespaces and configurations of one run.
struct Stage {
    scene: Scene,
    name: String,
    fault: Fault,
    /// Where the fault is.
    end: End,
    a: Node,
    b: Node,
}

impl Stage {
    /// With several queues, it is b's second worker that has the tunnel to a, whose first one has it there.
    fn new(traffic: &str, queues: u32, fault: Fault, end: End) -> Option<Self> {
        let name = format!("failover: {fault:?} at {end:?} during {traffic}, queues: {queues}");
        let scene = Scene::with_queues(&name, [queues; 2])?;
        let all = format!("queues = {:?}", (0..queues).collect::<Vec<_>>());
        let node = |name, end| scene.node(name, end).line(&all).line("bulk = \"never\"");
        let a = node("a", End::A).peer("b", Some(End::B.listen())).write();
        let b = node("b", End::B);
        let b = if queues > 1 { b.peer("x", None) } else { b };
        let b = b.peer("a", Some(End::A.listen())).write();
        Some(Self { scene, name, fault, end, a, b })
    }

    /// Starts the node at b and the command at a, makes the fault when the command is `begun` far, mends it, and sees to it
    /// that the node says both; then waits for the command's end.
    fn run(&self, command: &[&str], begun: u64) -> Ended {
        let Self { scene, fault, end, .. } = self;
        let mut foreign = (*fault == Fault::Foreign).then(|| Foreign::attach(scene, *end));
        let mut listen = scene.start(&self.b, &["listen", "--files", "received"]);
        let ready = listen.wait_for("ready").event["datapath"].clone();
        match &foreign {
            Some(foreign) if *end == End::B => foreign.is_refused(&ready),
            _ => assert_eq!(ready["kind"], "xdp", "{ready}"),
        }
        let mut sender = scene.start(&self.a, command);
        sender.wait_for_progress(begun);
        let before = scene.xdp_program(*end);
        if let Some(foreign) = &foreign {
            assert_eq!(before, Some(foreign.id.into()), "it is left alone");
        }

        let started = Instant::now();
        fault.make(scene, *end);
        let node = if *end == End::A { &mut sender } else { &mut listen };
        if foreign.is_none() {
            says(node, "udp", fault.words());
        }
        let said = started.elapsed();
        if let Some(foreign) = &mut foreign {
            foreign.remove();
        }
        fault.mend(scene, *end);
        let mended = started.elapsed();
        says(node, "xdp", &[]);
        if *fault == Fault::Deleted && *end == End::A {
            // The other end of the pair was gone too.
            says(&mut listen, "xdp", &[]);
        }
        let back = started.elapsed();
        let now = scene.xdp_program(*end);
        assert!(now.is_some(), "attached again");
        // The same, because it is the one that knows the sessions (wire.md W2.5).
        assert_eq!(now == before, *fault != Fault::Foreign, "{now:?} after {before:?}");

        let ended = sender.end();
        let done = ended.said.iter().find(|said| ["send", "ping"].iter().any(|name| said.event["event"] == *name));
        let done = done.unwrap_or_else(|| panic!("{}: {ended:#?}", self.name));
        let early = done.at <= started + back;
        assert!(!early, "{}: the traffic was over before AF_XDP was back: it was too short", self.name);
        if let Some(foreign) = foreign.filter(|_| *end == End::A) {
            // A command says at its end what it began with.
            foreign.is_refused(&done.event["datapath"]);
        }
        let still = longest_standstill(&ended);
        let name = &self.name;
        eprintln!(
            "{name}: nothing moved for at most {still:.1?}; the node said so after {said:.1?}, the fault was mended after \
             {mended:.1?}, AF_XDP was back after {back:.1?}"
        );

        // What comes now comes through AF_XDP: none of it reaches the kernel's UDP.
        let by_kernel = udp_datagrams(scene);
        scene.run(&self.a, &["ping", "b", "--count", "1000", "--interval", "0"]).success("ping");
        let by_kernel = udp_datagrams(scene) - by_kernel;
        assert!(by_kernel < 100, "{}: {by_kernel} datagrams came by the kernel", self.name);
        assert_eq!(listen.end_by(Signal::SIGTERM).code, Some(0));
        ended
    }
}

/// Waits until the node says that its datagrams go this way, for a reason with these words.
fn says(node: &mut Pilot, kind: &str, words: &[&str]) {
    node.wait_until("datapath", |event| {
        let reason = event["datapath"]["reason"].as_str().unwrap_or_default();
        event["datapath"]["kind"] == kind && words.iter().all(|word| reason.contains(word))
    });
}

/// The longest time between two lines by which something was done. Lines come five times a second, so that it is up to 0.2 s
/// less than this.
fn longest_standstill(ended: &Ended) -> Duration {
    let mut moved: Vec<(u64, Instant)> = Vec::new();
    for said in ended.said.iter().filter(|said| said.event["event"] == "progress") {
        let done = said.event["done"].as_u64().unwrap_or_default();
        if moved.last().is_none_or(|(before, _)| *before < done) {
            moved.push((done, said.at));
        }
    }
    moved.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap_or_default()
}

/// Datagrams that b's kernel handed to a UDP socket so far.
fn udp_datagrams(scene: &Scene) -> u64 {
    let output = Command::new("ip").args(["netns", "exec", &scene.namespace(End::B), "cat", "/proc/net/snmp"]).output();
    let text = String::from_utf8(output.expect("ip, which these tests use").stdout).expect("a table in ASCII");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.split(' ').position(|name| name == "InDatagrams").expect("a counter of this name");
    values.split(' ').nth(at).and_then(|value| value.parse().ok()).expect("a number")
}
