//! The control thread with the real XDP program, over veth.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pilot_common::maps::Config;
use pilot_common::steer::{DropReason, PassReason, Verdict};
use pilot_user::config::{AttachChoice, BulkChoice, DatapathChoice};
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_user::control::choose::{Datapath, Kind, Mode};
use pilot_user::control::{Control, Options};
use pilot_user::link::pair::{PairLink, XdpState};
use pilot_user::link::{Effect, Link, Trust, Via};
use pilot_xsk::nic::Facts;

use crate::netns::{End, World, enter};
use crate::{SESSION, data, keep, receive, send};

/// Tries before a test fails because something never comes: a minute.
const TRIES: u32 = 6000;
const PAUSE: Duration = Duration::from_millis(10);

/// A node without an engine: control thread, and a link whose worker is the test.
struct Node {
    control: Control,
    link: PairLink,
}

fn options(end: End, datapath: DatapathChoice) -> Options {
    let (interface, listen) = match end {
        End::A => ("va", "10.77.0.1:4242"),
        End::B => ("vb", "10.77.0.2:4242"),
    };
    Options {
        interface: Some(interface.into()),
        listen: listen.parse().unwrap(),
        datapath,
        attach: AttachChoice::Auto,
        queues: vec![0],
        bulk: BulkChoice::Auto,
        bulk_port: None,
        allow_from: vec![],
        peers: vec![],
    }
}

impl Node {
    fn start(world: &World, end: End) -> Self {
        Self::with(world, end, options(end, DatapathChoice::Auto))
    }

    fn with(world: &World, end: End, options: Options) -> Self {
        let (control, mut links) = world.inside(end, || Control::start(options).unwrap());
        let mut link = links.remove(0);
        link.apply(Effect::SessionBegins(SESSION));
        Self { control, link }
    }

    fn address(&self) -> SocketAddr {
        self.link.local_addr()
    }

    /// Runs the worker's part until the datapath is as wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&Datapath, &PairLink) -> bool) -> Arc<Datapath> {
        for _ in 0..TRIES {
            self.link.recv(64, |_| Trust::Unproven).unwrap();
            self.link.flush().unwrap();
            let datapath = self.control.datapath();
            if wanted(&datapath, &self.link) {
                return datapath;
            }
            self.link.wait(Some(PAUSE)).unwrap();
        }
        panic!("{what}: {:?}, {:?}", self.control.datapath(), self.link.xdp_state());
    }

    fn until_xdp(&mut self) -> Arc<Datapath> {
        self.until("AF_XDP comes up", |datapath, link| datapath.kind == Kind::Xdp && link.xdp_state() == XdpState::Up)
    }
}

/// Sends from one to the other until it goes and comes through AF_XDP: the first ones go over UDP, which resolves the
/// neighbour.
fn until_by_xdp(from: &mut Node, to: &mut Node) {
    let mut kept = Vec::new();
    for number in 0..TRIES {
        let before = from.link.counters().xdp.sent;
        assert!(send(&mut from.link, to.address(), &data(number, 60)));
        from.link.flush().unwrap();
        let by_xdp = from.link.counters().xdp.sent > before;
        // Not a wait on the link: that ends at once, and the kernel's tables need time, not tries.
        std::thread::sleep(PAUSE);
        to.link.recv(64, keep(&mut kept, Trust::Authentic)).unwrap();
        from.link.recv(64, |_| Trust::Unproven).unwrap();
        if by_xdp && kept.last().is_some_and(|kept| kept.via == Via::Xdp) {
            return;
        }
    }
    panic!("{:?} to {:?}", from.link.counters(), to.link.counters());
}

fn programs(world: &World, end: End) -> String {
    let output = Command::new("ip").args(["-n", &world.namespace(end), "-d", "link"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains("prog/xdp")).collect()
}

#[test]
fn two_nodes_reach_each_other_through_af_xdp_and_leave_nothing() {
    let Some(world) = World::new("two") else { return };
    let (mut a, mut b) = (Node::start(&world, End::A), Node::start(&world, End::B));
    assert_eq!(a.link.xdp_state(), XdpState::Absent, "traffic need not wait");
    for node in [&mut a, &mut b] {
        let datapath = node.until_xdp();
        assert_eq!((datapath.mode, datapath.attach), (Some(Mode::Copy), Some(AttachMode::Generic)));
        assert!(datapath.reason.contains("veth"), "{}", datapath.reason);
    }
    until_by_xdp(&mut a, &mut b);
    until_by_xdp(&mut b, &mut a);

    let (before, redirected) = (b.link.counters(), b.control.xdp_counters().redirected());
    for batch in 0..10 {
        for number in 0..20 {
            assert!(send(&mut a.link, b.address(), &data(batch * 20 + number, 1000)));
        }
        a.link.flush().unwrap();
        for (number, kept) in receive(&mut b.link, 20).iter().enumerate() {
            assert_eq!((kept.via, kept.source), (Via::Xdp, a.address()));
            assert_eq!(kept.payload, data(batch * 20 + number as u32, 1000));
        }
    }
    let after = b.link.counters();
    assert_eq!((after.xdp.received - before.xdp.received, after.udp.received - before.udp.received), (200, 0));
    assert_eq!(b.control.xdp_counters().redirected() - redirected, 200);
    assert_eq!(a.link.counters().xdp.lost.total() + a.link.counters().udp.lost.total(), 0);

    assert!(programs(&world, End::A).contains("pilot_steer"), "{}", programs(&world, End::A));
    drop((a, b));
    assert_eq!(programs(&world, End::A) + &programs(&world, End::B), "");
}

/// wire.md W2.6: what goes through AF_XDP has checksums that a kernel accepts, and what a kernel sends is accepted.
#[test]
fn af_xdp_and_a_kernel_socket_understand_each_other_over_ipv4_and_ipv6() {
    let Some(world) = World::new("mixed") else { return };
    world.ip(End::A, &["addr", "add", "2001:db8::1/64", "dev", "va", "nodad"]);
    world.ip(End::B, &["addr", "add", "2001:db8::2/64", "dev", "vb", "nodad"]);
    for (listen_a, listen_b) in [
        ("10.77.0.1:4242", "10.77.0.2:4242"),
        ("[2001:db8::1]:4243", "[2001:db8::2]:4243"),
        // Dual-stack: our addresses, and the source of each datagram, come from the kernel's tables.
        ("[::]:4244", "[2001:db8::2]:4244"),
    ] {
        let listening =
            |listen: &str, end, datapath| Options { listen: listen.parse().unwrap(), ..options(end, datapath) };
        let mut a = Node::with(&world, End::A, listening(listen_a, End::A, DatapathChoice::Auto));
        let mut b = Node::with(&world, End::B, listening(listen_b, End::B, DatapathChoice::Udp));
        a.until_xdp();
        let (to_b, mut to_a) = (b.address(), None);
        for number in 0..TRIES {
            let by_xdp = a.link.counters().xdp.sent;
            assert!(send(&mut a.link, to_b, &data(number, 100)));
            a.link.flush().unwrap();
            let kept = receive(&mut b.link, 1).remove(0);
            assert_eq!(kept.payload, data(number, 100));
            assert!(to_a.replace(kept.source).is_none_or(|before| before == kept.source), "one source address");
            // A pass, in which the ways to peers are taken over.
            a.link.recv(64, |_| Trust::Unproven).unwrap();
            if a.link.counters().xdp.sent > by_xdp {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        let to_a = to_a.unwrap();
        assert!(a.link.counters().xdp.sent == 1, "{listen_a}: {:?}", a.link.counters());
        assert!(send(&mut b.link, to_a, &data(9, 100)));
        b.link.flush().unwrap();
        let kept = receive(&mut a.link, 1).remove(0);
        assert_eq!((kept.via, kept.source, kept.destination), (Via::Xdp, to_b, to_a));
        assert_eq!(kept.payload, data(9, 100));
    }
}

/// wire.md W2.3, in the program.
#[test]
fn strangers_are_dropped_in_the_kernel() {
    let Some(world) = World::new("strange") else { return };
    let allow_from = vec!["10.77.0.9/32".parse().unwrap()];
    let mut a = Node::start(&world, End::A);
    let mut b = Node::with(&world, End::B, Options { allow_from, ..options(End::B, DatapathChoice::Auto) });
    b.until_xdp();
    let to_b = b.address();
    assert!(send(&mut a.link, to_b, &data(1, 60)));
    a.link.flush().unwrap();
    b.until("the program drops", |_, link| {
        assert_eq!(link.counters().xdp.received + link.counters().udp.received, 0);
        true
    });
    for _ in 0..TRIES {
        if b.control.xdp_counters().get(Verdict::Drop(DropReason::SourceNotAllowed)) == 1 {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("{:?}", b.control.xdp_counters());
}

/// Not a test: a process that holds AF_XDP until it is killed.
#[test]
fn child_that_is_killed() {
    let Ok(namespace) = std::env::var("PILOT_TEST_CHILD_NAMESPACE") else { return };
    enter(&namespace);
    let (control, mut links) = Control::start(options(End::A, DatapathChoice::Auto)).unwrap();
    let mut node = Node { control, link: links.remove(0) };
    node.until_xdp();
    println!("child: attached");
    loop {
        node.link.recv(64, |_| Trust::Unproven).unwrap();
        node.link.wait(Some(PAUSE)).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_nothing_and_its_successor_has_af_xdp() {
    let Some(world) = World::new("kill") else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control::child_that_is_killed", "--nocapture"])
        .env("PILOT_TEST_CHILD_NAMESPACE", world.namespace(End::A))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let attached = output.lines().any(|line| line.unwrap().contains("child: attached"));
    let was = programs(&world, End::A);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(attached && was.contains("pilot_steer"), "{was}");
    assert_eq!(programs(&world, End::A), "");

    // UDP at once, also while the queue is still busy; then AF_XDP by itself.
    let (mut a, mut b) = (Node::start(&world, End::A), Node::start(&world, End::B));
    assert!(send(&mut a.link, b.address(), &data(1, 60)));
    a.link.flush().unwrap();
    assert_eq!(receive(&mut b.link, 1)[0].payload, data(1, 60));
    a.until_xdp();
    b.until_xdp();
    until_by_xdp(&mut a, &mut b);
}

#[test]
fn somebody_elses_program_is_left_alone_and_named() {
    let Some(world) = World::new("foreign") else { return };
    let foreign = world.inside(End::A, || {
        let steering = Steering {
            config: Config { port: 1, mtu: 1500, allow_all: true },
            local: &BTreeSet::new(),
            allow_from: &[],
        };
        let mut program = Program::load(1).unwrap();
        program.attach("va", Facts::read("va").unwrap().ifindex, AttachMode::Generic, &steering).unwrap();
        program
    });
    let id = foreign.id();
    let (mut a, mut b) = (Node::start(&world, End::A), Node::start(&world, End::B));
    let datapath = a.until("refused", |datapath, _| datapath.reason.contains("another XDP program"));
    assert_eq!(datapath.kind, Kind::Udp);
    assert!(datapath.reason.contains(&format!("`pilot_steer` (id {id})")), "{}", datapath.reason);
    assert!(programs(&world, End::A).contains(&format!("id {id} ")), "{}", programs(&world, End::A));
    assert!(send(&mut b.link, a.address(), &data(1, 60)));
    b.link.flush().unwrap();
    assert_eq!(receive(&mut a.link, 1)[0].via, Via::Udp);
    // Once it is gone, ours takes its place unasked.
    drop(foreign);
    a.until_xdp();
}

#[test]
fn a_program_that_somebody_detached_is_attached_again() {
    let Some(world) = World::new("detach") else { return };
    let mut a = Node::start(&world, End::A);
    a.until_xdp();
    let before = programs(&world, End::A);
    let id = |text: &str| text.split("id ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let output = Command::new("bpftool").args(["link", "show"]).output();
    let Ok(output) = output else {
        eprintln!("skipped: control::a_program_that_somebody_detached_is_attached_again: bpftool is not installed");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let program = format!("prog {} ", id(&before));
    let link = text.lines().find(|line| line.contains(&program)).and_then(|line| line.split(':').next()).unwrap();
    assert!(Command::new("bpftool").args(["link", "detach", "id", link]).status().unwrap().success());
    assert_eq!(programs(&world, End::A), "");
    // The kernel is silent about it, so the control thread comes to it by some other notice.
    world.ip(End::A, &["addr", "add", "10.78.0.1/24", "dev", "va"]);
    // The same program, which knows what it knew.
    a.until("AF_XDP comes back", |datapath, link| {
        let now = programs(&world, End::A);
        datapath.kind == Kind::Xdp && link.xdp_state() == XdpState::Up && now == before
    });
}

/// wire.md W2.5: what does not name a session of the node's reaches it by the kernel's socket; sessions are still known
/// after the program was taken off and attached again.
#[test]
fn sessions_begin_and_end_in_the_program_and_outlive_its_attachment() {
    let Some(world) = World::new("sessions") else { return };
    let (mut a, mut b) = (Node::start(&world, End::A), Node::start(&world, End::B));
    a.until_xdp();
    b.until_xdp();
    until_by_xdp(&mut a, &mut b);
    let unknown = Verdict::Pass(PassReason::UnknownSession);
    let mut number = 0;
    let mut by = |a: &mut Node, b: &mut Node| {
        number += 1;
        assert!(send(&mut a.link, b.address(), &data(number, 60)));
        a.link.flush().unwrap();
        let kept = receive(&mut b.link, 1);
        assert_eq!(kept[0].payload, data(number, 60));
        kept[0].via
    };
    assert_eq!((by(&mut a, &mut b), b.control.xdp_counters().get(unknown)), (Via::Xdp, 0));
    b.link.apply(Effect::SessionEnds(SESSION));
    assert_eq!((by(&mut a, &mut b), b.control.xdp_counters().get(unknown)), (Via::Udp, 1));
    b.link.apply(Effect::SessionBegins(SESSION));
    assert_eq!((by(&mut a, &mut b), b.control.xdp_counters().get(unknown)), (Via::Xdp, 1));

    world.ip(End::B, &["link", "set", "vb", "mtu", "1400"]);
    b.until("another MTU", |datapath, link| datapath.kind == Kind::Xdp && link.max_payload() == 1372);
    until_by_xdp(&mut a, &mut b);
    assert_eq!(b.control.xdp_counters().get(unknown), 1);
}

#[test]
fn a_device_that_changes_goes_and_comes_back() {
    let Some(world) = World::new("change") else { return };
    let mut a = Node::start(&world, End::A);
    a.until_xdp();
    assert_eq!(a.link.max_payload(), 1472);
    world.ip(End::A, &["link", "set", "va", "mtu", "1400"]);
    a.until("a smaller MTU", |datapath, link| datapath.kind == Kind::Xdp && link.max_payload() == 1372);

    world.ip(End::A, &["link", "del", "va"]);
    let gone = a.until("no device", |datapath, link| {
        datapath.reason.contains("there is no interface `va`") && link.xdp_state() != XdpState::Up
    });
    assert_eq!(gone.kind, Kind::Udp);
    world.connect();
    a.until_xdp();
    let mut b = Node::start(&world, End::B);
    b.until_xdp();
    until_by_xdp(&mut a, &mut b);
    until_by_xdp(&mut b, &mut a);
}

/// Peers probe up to what we say we can receive, and AF_XDP drops what does not fit a chunk.
#[test]
fn jumbo_frames_are_used_as_far_as_a_chunk_goes() {
    let Some(world) = World::new("jumbo") else { return };
    for (end, device) in [(End::A, "va"), (End::B, "vb")] {
        world.ip(end, &["link", "set", device, "mtu", "9000"]);
    }
    let (mut a, mut b) = (Node::start(&world, End::A), Node::start(&world, End::B));
    let before = a.link.max_payload();
    a.until_xdp();
    b.until_xdp();
    assert_eq!(before, a.link.max_payload());
    until_by_xdp(&mut a, &mut b);
    let payload = data(1, a.link.max_payload());
    assert!(send(&mut a.link, b.address(), &payload));
    a.link.flush().unwrap();
    let kept = receive(&mut b.link, 1).remove(0);
    assert!(kept.via == Via::Xdp && kept.payload == payload, "{} bytes {:?}", kept.payload.len(), kept.via);
    let udp = Node::with(
        &world,
        End::A,
        Options { listen: "10.77.0.1:1".parse().unwrap(), ..options(End::A, DatapathChoice::Udp) },
    );
    assert_eq!(udp.link.max_payload(), 8972);
}

#[test]
fn a_device_that_is_down_is_named_and_waited_for() {
    let Some(world) = World::new("down") else { return };
    world.ip(End::A, &["link", "set", "va", "down"]);
    let mut a = Node::start(&world, End::A);
    a.until("named", |datapath, _| datapath.reason.contains("va is down: `ip link set va up`"));
    world.ip(End::A, &["link", "set", "va", "up"]);
    a.until_xdp();

    // And while it is in use: nothing is made anew, and nothing is lost uncounted.
    let mut b = Node::start(&world, End::B);
    b.until_xdp();
    until_by_xdp(&mut a, &mut b);
    let before = programs(&world, End::A);
    world.ip(End::A, &["link", "set", "va", "down"]);
    let committed = |node: &Node| {
        let (udp, xdp) = (node.link.counters().udp, node.link.counters().xdp);
        udp.sent + udp.lost.total() + xdp.sent + xdp.lost.total()
    };
    let count = committed(&a);
    for number in 0..10 {
        assert!(send(&mut a.link, b.address(), &data(number, 60)));
        a.link.flush().unwrap();
        a.link.recv(64, |_| Trust::Unproven).unwrap();
    }
    assert_eq!(committed(&a), count + 10);
    world.ip(End::A, &["link", "set", "va", "up"]);
    until_by_xdp(&mut a, &mut b);
    assert_eq!(programs(&world, End::A), before);
}

#[test]
fn without_af_xdp_the_reason_is_in_words() {
    let start = |interface: Option<&str>, datapath| {
        let listen = "127.0.0.1:0".parse().unwrap();
        let interface = interface.map(str::to_owned);
        let options = Options { interface, listen, datapath, ..options(End::A, datapath) };
        let (control, mut links) = Control::start(options).unwrap();
        Node { control, link: links.remove(0) }
    };
    for (interface, choice, words) in [
        (None, DatapathChoice::Auto, "no `interface` is configured"),
        (Some("lo"), DatapathChoice::Udp, "datapath = \"udp\""),
        (Some("nosuchdevice"), DatapathChoice::Auto, "there is no interface `nosuchdevice`"),
        (Some("lo"), DatapathChoice::Auto, "lo has no Ethernet address"),
    ] {
        let mut node = start(interface, choice);
        let datapath = node.until(words, |datapath, _| datapath.reason.contains(words));
        assert_eq!((datapath.kind, datapath.mode, datapath.attach), (Kind::Udp, None, None));
        assert_eq!(node.control.xdp_counters().redirected(), 0);
    }
}

#[test]
fn without_privileges_udp_works_and_the_reason_names_the_fix() {
    let Some(world) = World::new("rights") else { return };
    let mut a = world.inside(End::A, || {
        // The control thread inherits what this thread has left: nothing.
        pilot_user::worker::pin::drop_capabilities().unwrap();
        let (control, mut links) = Control::start(options(End::A, DatapathChoice::Auto)).unwrap();
        Node { control, link: links.remove(0) }
    });
    let datapath = a.until("refused", |datapath, _| datapath.reason.contains("no privilege"));
    assert!(datapath.reason.contains("setcap"), "{}", datapath.reason);
    let mut b = Node::start(&world, End::B);
    assert!(send(&mut a.link, b.address(), &data(1, 60)));
    a.link.flush().unwrap();
    assert_eq!(receive(&mut b.link, 1)[0].payload, data(1, 60));
}
