//! The program's log: which frames are in it, when, and how many at most.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::RingBuf;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use pilot_common::maps::{self, MAX_LOG_LINES};
use pilot_common::steer::{DropReason, Verdict};
use pilot_tests::logs::Watch;
use pilot_user::control::attach::{self, AttachMode, Steering};
use pilot_xsk::nic::Facts;

use crate::cases::{address, cases, data, frame_between};
use crate::{LOCAL, PORT, Program, Rules, map};

/// Bound of waits that end as soon as what they wait for is there.
const HANG: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);

/// What aya-log calls its ring.
const RING: &str = "AYA_LOGS";

/// Takes what is in the ring: of each record the last argument, how many frames were left out before it.
fn records(program: &mut Program) -> Vec<u64> {
    let mut ring: RingBuf<_> = map(&mut program.ebpf, RING).try_into().expect("a ring");
    std::iter::from_fn(|| {
        let record = ring.next()?;
        // aya-log begins a record with its length, in two bytes.
        let len = usize::from(u16::from_ne_bytes([record[0], record[1]]));
        Some(u64::from_ne_bytes(record[len - 8..len].try_into().expect("eight bytes")))
    })
    .collect()
}

/// What is redirected, and what is not for our port, is not logged; nothing is while the switch is off.
#[test]
fn what_was_sent_to_our_port_and_not_redirected_is_logged() {
    for log in [false, true] {
        let Some(program) =
            Program::load_with("log::what_was_sent_to_our_port_and_not_redirected_is_logged", Rules::new(1500), log)
        else {
            return;
        };
        let mut program = program.open_socket();
        let mut logged = 0;
        for (name, frame, verdict) in cases() {
            let ours = pilot_common::datagram::parse(&frame[..]).is_ok_and(|parsed| parsed.destination.port() == PORT);
            let expected = usize::from(log && ours && verdict != Verdict::Redirect);
            program.run(&frame);
            assert_eq!(records(&mut program), vec![0; expected], "log {log}: {name}");
            logged += expected;
        }
        assert!(!log || logged > 10 && logged < MAX_LOG_LINES as usize, "{logged} lines");
    }
}

/// A flood of strangers' frames gives a bounded number of lines, and each of them is in a line or counted in a later one.
#[test]
fn a_flood_is_counted_not_logged() {
    const FLOOD: u32 = 10_000;
    let Some(mut program) = Program::load_with("log::a_flood_is_counted_not_logged", Rules::new(1500), true) else {
        return;
    };
    // The bound is each CPU's own. A thread's affinity ends with it.
    let mut first = CpuSet::new();
    first.set(0).expect("every machine has it");
    let watched = thread::spawn(move || {
        sched_setaffinity(Pid::from_raw(0), &first).expect("the first CPU is one of ours");
        let stranger = frame_between("198.51.100.8", LOCAL[0], None, &data(46));
        let mut run = |times| {
            let steer: &Xdp = program.ebpf.program(maps::PROGRAM).expect("loaded").try_into().expect("an XDP program");
            let options = TestRunOptions { data_in: Some(&stranger), repeat: times, ..TestRunOptions::new() };
            steer.test_run(options).expect("the kernel runs it");
            records(&mut program)
        };
        let began = Instant::now();
        let mut lines = run(FLOOD);
        let seconds = began.elapsed().as_secs() + 2;
        assert!((1..=seconds * MAX_LOG_LINES).contains(&(lines.len() as u64)), "{} in {seconds} s", lines.len());
        // The next second has lines again, and the first of them says how many were left out.
        let mut frames = u64::from(FLOOD);
        loop {
            assert!(began.elapsed() < HANG, "the log stays silent");
            frames += 1;
            let line = run(1);
            lines.extend_from_slice(&line);
            if !line.is_empty() {
                break;
            }
            thread::sleep(PAUSE);
        }
        assert_eq!(lines.len() as u64 + lines.iter().sum::<u64>(), frames);
    });
    watched.join().expect("no assertion failed");
}

/// A field of a line of the log, if it has it.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.map(|value| value.trim_matches('"'))
}

/// From a real device, through the ring, to an event that says what it was; in generic and in native mode.
#[test]
fn a_strangers_datagram_on_a_real_device_is_an_event_with_its_reason() {
    if !nix::unistd::geteuid().is_root() {
        let test = "log::a_strangers_datagram_on_a_real_device_is_an_event_with_its_reason";
        eprintln!("skipped: {test}: attaching an XDP program needs root");
        return;
    }
    for mode in [AttachMode::Generic, AttachMode::Native] {
        // The thread's own namespace, which ends with it, and the veth pair with that.
        thread::spawn(move || on_a_veth_pair(mode)).join().expect("no assertion failed");
    }
}

/// One namespace has both ends, so the address that is sent to is none of its own but a neighbour's, said to be reached
/// through `pilot1`: what is sent there arrives at `pilot0`.
fn on_a_veth_pair(mode: AttachMode) {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may");
    for command in [
        "link add pilot0 type veth peer name pilot1",
        "link set pilot0 up",
        "link set pilot1 up",
        "address add 192.0.2.1/24 dev pilot1",
        "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev pilot1",
    ] {
        let done = Command::new("ip").args(command.split(' ')).status().expect("iproute2 is installed");
        assert!(done.success(), "ip {command}");
    }
    let index = Facts::read("pilot0").expect("the device is there").ifindex;
    let rules = Rules::new(1500);
    let local = BTreeSet::from([address(LOCAL[0])]);
    let allow_from = ["203.0.113.0/24".parse().expect("a prefix")];
    let steering = Steering { config: rules.config, local: &local, allow_from: &allow_from };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let watch = Watch::at(tracing::Level::DEBUG);
    let mut program = attach::Program::load(1).expect("root may");
    program.attach("pilot0", index, mode, &steering).expect("attaches");

    let sender = UdpSocket::bind("192.0.2.1:0").expect("our address");
    let mut sent = 0;
    let mut send = |program: &attach::Program, payload: usize| {
        sender.send_to(&data(payload), (LOCAL[0], PORT)).expect("there is a route");
        sent += 1;
        let began = Instant::now();
        let dropped = Verdict::Drop(DropReason::SourceNotAllowed);
        while program.counters().expect("readable").get(dropped) < sent {
            assert!(began.elapsed() < HANG, "{mode:?}: the program did not see datagram {sent}");
            thread::sleep(PAUSE);
        }
    };
    let heard = |lines: usize| {
        runtime.block_on(async {
            let began = Instant::now();
            while watch.text().matches("not redirected").count() < lines {
                assert!(began.elapsed() < HANG, "{mode:?}: {lines} lines of: {}", watch.text());
                tokio::time::sleep(PAUSE).await;
            }
        });
    };

    // The ring keeps the order: what is logged while it is off would come before what is logged later.
    send(&program, 40);
    runtime.block_on(async { program.set_log(true).expect("in a runtime") });
    send(&program, 41);
    heard(1);
    program.set_log(false).expect("the map is there");
    send(&program, 42);
    program.set_log(true).expect("the reader is there already");
    send(&program, 43);
    heard(2);

    let text = watch.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("not redirected")).collect();
    assert_eq!(lines.len(), 2, "{mode:?}: {text}");
    for (line, payload) in lines.iter().zip([41, 43]) {
        assert!(line.contains("DEBUG") && line.contains("pilot_user::control::xdp_log"), "{line}");
        for (name, value) in [
            ("reason", "drop_source_not_allowed".to_owned()),
            ("source", sender.local_addr().expect("bound").to_string()),
            ("destination", format!("{}:{PORT}", LOCAL[0])),
            ("len", (14 + 20 + 8 + payload).to_string()),
            ("left_out", "0".to_owned()),
        ] {
            assert_eq!(field(line, name), Some(value.as_str()), "{mode:?}, {name}: {line}");
        }
    }
}
