//! Session ids that come and go, and what there is too much of (wire.md W2.5, W2.7).

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::Map;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use pilot_common::maps::{MAX_SITES, WORD_SESSIONS, WORKER_SESSIONS};
use pilot_common::wire::VERSION;
use pilot_user::control::attach::{self, AttachMode, Steering};
use pilot_user::worker::pin::drop_capabilities;
use pilot_xsk::SharedBits;
use pilot_xsk::nic::Facts;

use super::*;
use crate::cases::datagram;

/// Bound of waits that end as soon as what they wait for is there.
const HANG: Duration = Duration::from_secs(60);
/// Tokens that do not come back while a test runs.
const FEW: Limit = Limit { interval_us: 3_600_000_000, at_once: 3 };
const TOO_MANY: Verdict = Verdict::Drop(DropReason::TooManyInitiations);

fn limited(initiations: Limit, unknown_sessions: Limit) -> Rules {
    let mut rules = Rules::new(1500);
    rules.config.allow_all = true;
    Rules { limits: Limits { initiations, unknown_sessions }, ..rules }
}

fn initiation(source: &str) -> Vec<u8> {
    let destination = if source.contains(':') { LOCAL[1] } else { LOCAL[0] };
    frame_between(source, destination, None, &datagram(VERSION, 1, 1200))
}

/// A data packet of that session.
fn of_session(id: u32) -> Vec<u8> {
    let mut payload = data(46);
    payload[1..5].copy_from_slice(&id.to_be_bytes());
    v4(&payload)
}

/// A worker writes to memory, without any right, and the program knows. Each worker has its own part; the last id of one is
/// next to the first of the other.
#[test]
fn a_worker_without_rights_says_which_sessions_are_its_own() {
    let test = "rations::a_worker_without_rights_says_which_sessions_are_its_own";
    let Some(program) = Program::load(test, Rules::new(1500)) else { return };
    let mut program = program.open_socket();
    let words = (WORKER_SESSIONS / WORD_SESSIONS) as usize;
    let part = |program: &Program, worker: usize| {
        let Some(Map::Array(sessions)) = program.ebpf.map(maps::SESSIONS) else { panic!("an array") };
        SharedBits::map(sessions.fd().as_fd(), worker * words, words)
    };
    assert!(part(&program, WORKERS as usize).is_err(), "there is nothing behind the last worker's");
    for worker in [0, 1] {
        let bits = part(&program, worker as usize).expect("its part");
        let mut change = |bits: SharedBits, id: u32, is_ours: bool| {
            let changed = thread::spawn(move || {
                drop_capabilities().expect("it may always have less");
                let mut bits = bits;
                if is_ours {
                    bits.insert(id)
                } else {
                    bits.remove(id)
                }
                bits
            });
            let bits = changed.join().expect("needs no right");
            for id in [0, 1, 63, 64, WORKER_SESSIONS - 1].into_iter().flat_map(|id| [id, id + WORKER_SESSIONS]) {
                let ours = bits.contains(id % WORKER_SESSIONS) && id / WORKER_SESSIONS == worker;
                let expected = if ours { Verdict::Redirect } else { Verdict::Pass(PassReason::UnknownSession) };
                assert_eq!(program.run(&of_session(id)), expected, "{id:#x} at worker {worker}");
            }
            bits
        };
        let mut bits = bits;
        for id in [0, 1, 63, 64, WORKER_SESSIONS - 1] {
            bits = change(bits, id, true);
        }
        bits = change(bits, 63, false);
        for id in [0, 1, 64, WORKER_SESSIONS - 1] {
            bits = change(bits, id, false);
        }
        assert!(!bits.contains(63));
    }
}

/// wire.md W2.7: each IPv4 address and each IPv6 /64 has a bucket of its own, which takes nothing from sessions.
#[test]
fn initiations_beyond_a_sources_bucket_are_dropped() {
    let Some(program) = Program::load("rations::initiations_beyond_a_sources_bucket_are_dropped", limited(FEW, FREE))
    else {
        return;
    };
    let mut program = program.open_socket();
    let sites = [
        ["192.0.2.1", "192.0.2.1"],
        ["192.0.2.9", "192.0.2.9"],
        ["2001:db8:1:2::3", "2001:db8:1:2:ffff:ffff:ffff:ffff"],
        ["2001:db8:1:3::3", "2001:db8:1:3:8000::"],
    ];
    for site in sites {
        for number in 0..FEW.at_once {
            assert_eq!(program.run(&initiation(site[usize::from(number % 2)])), Verdict::Redirect, "{site:?} {number}");
        }
        for _ in 0..10 {
            assert_eq!(site.map(|source| program.run(&initiation(source))), [TOO_MANY; 2], "{site:?}");
        }
    }
    assert_eq!(program.run(&v4(&data(46))), Verdict::Redirect, "from one whose bucket is empty");
    // However many come, there is room: one that came once and not again is forgotten, and new when it comes again.
    for number in 0..2 * MAX_SITES {
        let [.., a, b, c] = number.to_be_bytes();
        let source = format!("10.{a}.{b}.{c}");
        assert_eq!(program.run(&initiation(&source)), Verdict::Redirect, "{source}");
    }
    for number in 0..FEW.at_once {
        assert_eq!(program.run(&initiation("10.0.0.0")), Verdict::Redirect, "{number}");
    }
}

/// What is refused takes nothing: as soon as there is a token again, it can be had, however long the flood was.
#[test]
fn a_flood_leaves_no_debt() {
    let often = Limit { interval_us: 20_000, at_once: 2 };
    let Some(program) = Program::load("rations::a_flood_leaves_no_debt", limited(often, FREE)) else { return };
    let mut program = program.open_socket();
    let began = Instant::now();
    let mut taken = 0;
    while taken < 10 {
        assert!(began.elapsed() < HANG, "{taken} taken");
        match program.run(&initiation("192.0.2.1")) {
            Verdict::Redirect => taken += 1,
            verdict => assert_eq!(verdict, TOO_MANY),
        }
    }
}

/// wire.md W2.5: of each type that names a session, whatever the source; what is ours is not touched by it.
#[test]
fn unknown_sessions_beyond_the_rate_are_dropped() {
    let Some(program) = Program::load("rations::unknown_sessions_beyond_the_rate_are_dropped", limited(FREE, FEW))
    else {
        return;
    };
    let mut program = program.open_socket();
    // The bucket is each CPU's own. A thread's affinity ends with it.
    let run = thread::spawn(move || {
        let mut first = CpuSet::new();
        first.set(0).expect("every machine has it");
        sched_setaffinity(Pid::from_raw(0), &first).expect("the first CPU is one of ours");
        for number in 0..FEW.at_once {
            let verdict = program.run(&of_session(u32::from(number)));
            assert_eq!(verdict, Verdict::Pass(PassReason::UnknownSession), "{number}");
        }
        for (packet_type, len) in [(2, 89), (3, 65), (4, 46), (5, 25)] {
            let mut other = datagram(VERSION, packet_type, len);
            assert_eq!(program.run(&v4(&other)), Verdict::Redirect, "{packet_type}");
            other[4] ^= 1;
            let dropped = Verdict::Drop(DropReason::UnknownSession);
            assert_eq!([v4(&other), v6(&other)].map(|frame| program.run(&frame)), [dropped; 2], "{packet_type}");
        }
        assert_eq!(program.run(&initiation("192.0.2.1")), Verdict::Redirect);
    });
    run.join().expect("no assertion failed");
}

/// What nodes use, on a device: in generic and in native mode, each datagram is let through or dropped, and counted.
#[test]
fn a_flood_on_a_real_device_is_limited() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: rations::a_flood_on_a_real_device_is_limited: attaching an XDP program needs root");
        return;
    }
    for mode in [AttachMode::Generic, AttachMode::Native] {
        // The thread's own namespace, which ends with it, and the veth pair with that.
        thread::spawn(move || flood_a_veth_pair(mode)).join().expect("no assertion failed");
    }
}

fn flood_a_veth_pair(mode: AttachMode) {
    const FLOOD: u64 = 5000;
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
    let config = Config { port: PORT, mtu: 1500, allow_all: true };
    let local = [address(LOCAL[0])].into();
    let mut program = attach::Program::load(1).expect("root may");
    program.sessions(0).expect("its part").insert(SESSION);
    let index = Facts::read("pilot0").expect("the device is there").ifindex;
    let steering = Steering { config, local: &local, allow_from: &[] };
    program.attach("pilot0", index, mode, &steering).expect("attaches");

    let sender = UdpSocket::bind("192.0.2.1:0").expect("our address");
    let ours = data(46);
    let mut unknown = ours.clone();
    unknown[4] ^= 1;
    let no_socket = Verdict::Pass(PassReason::NoSocket);
    let [passed, dropped] = [Verdict::Pass(PassReason::UnknownSession), Verdict::Drop(DropReason::UnknownSession)];
    for (datagram, let_through, refused) in [
        (&datagram(VERSION, 1, 1200), no_socket, TOO_MANY),
        (&unknown, passed, dropped),
        // No limit for what is ours: nobody is to send on this port but the last one.
        (&ours, no_socket, TOO_MANY),
    ] {
        let count = |verdict| program.counters().expect("readable").get(verdict);
        let before = [let_through, refused].map(count);
        for _ in 0..FLOOD {
            sender.send_to(datagram, (LOCAL[0], PORT)).expect("there is a route");
        }
        let began = Instant::now();
        let after = loop {
            let after = [let_through, refused].map(count);
            if after[0] + after[1] == before[0] + before[1] + FLOOD {
                break [after[0] - before[0], after[1] - before[1]];
            }
            assert!(began.elapsed() < HANG, "{mode:?}: {before:?} {after:?}");
            thread::sleep(Duration::from_millis(1));
        };
        if datagram == &ours {
            assert_eq!(after, [FLOOD, 0], "{mode:?}");
        } else {
            assert!(after[0] > 0 && after[1] > 0, "{mode:?}: {after:?}");
        }
    }
}
