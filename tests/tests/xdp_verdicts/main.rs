//! The XDP program in the kernel decides as `pilot_common::steer` does, and counts what it decided (wire.md §2).
//!
//! The committed object is loaded and run on single frames with BPF_PROG_TEST_RUN, which needs root and no interface; it
//! is attached only in a namespace of the test's own. The kernel runs no frame that is shorter than an Ethernet header;
//! below that the pure function is alone.

use std::os::fd::AsRawFd as _;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray, XskMap};
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use pilot_common::address::{Address, Prefix};
use pilot_common::eth;
use pilot_common::limit::Limit;
use pilot_common::maps::{self, Config, Limits, session_bit};
use pilot_common::stats::COUNTERS;
use pilot_common::steer::{DropReason, Lists, PassReason, Verdict, steer};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use socket2::{Domain, Socket, Type};

use crate::cases::{address, cases, data, frame_between, v4, v6};

mod cases;
mod cost;
mod log;
mod rations;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../pilot-ebpf/dist/pilot.bpf.o"));

/// Whose session ids there is a table for.
const WORKERS: u32 = 2;
const PORT: u16 = 4500;
const LOCAL: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const ALLOW_FROM: [&str; 3] = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"];
/// The one session id that is ours.
const SESSION: u32 = 0x00ab_cdef;
/// No limit at all.
const FREE: Limit = Limit { interval_us: 0, at_once: 1 };
/// Return codes of an XDP program (linux/bpf.h, `enum xdp_action`).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
/// Protocol family of AF_XDP sockets (linux/socket.h).
const AF_XDP: i32 = 44;
/// The only type that they have.
const SOCK_RAW: i32 = 3;

/// What both sides are told.
struct Rules {
    config: Config,
    local: Vec<Address>,
    allow_from: Vec<Prefix>,
    /// Only the kernel's side: the pure function has none.
    limits: Limits,
}

impl Rules {
    fn new(mtu: u32) -> Self {
        Self {
            config: Config { port: PORT, mtu, allow_all: false },
            local: LOCAL.iter().map(|ip| address(ip).into()).collect(),
            allow_from: ALLOW_FROM.iter().map(|prefix| prefix.parse().expect("a prefix")).collect(),
            limits: Limits { initiations: FREE, unknown_sessions: FREE },
        }
    }

    fn steer(&self, frame: &[u8]) -> Verdict {
        let lists = Lists { local: &self.local, allow_from: &self.allow_from, sessions: Some(&[SESSION]) };
        steer(frame, &self.config, &lists)
    }
}

/// The program in the kernel.
struct Program {
    ebpf: Ebpf,
    rules: Rules,
    /// Every verdict's counter, as of the last run.
    counters: [u64; COUNTERS],
    /// In slot 0 of XSKS, when there is one. Never bound: a test run stops at the redirect's return code.
    socket: Option<Socket>,
}

impl Program {
    /// Loads it, or says why it cannot be.
    fn load(test: &str, rules: Rules) -> Option<Self> {
        Self::load_with(test, rules, false)
    }

    /// As [`Program::load`], with its log on or off.
    fn load_with(test: &str, rules: Rules, log: bool) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: {test}: loading an XDP program needs root");
            return None;
        }
        let words = WORKERS * (maps::WORKER_SESSIONS / maps::WORD_SESSIONS);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(maps::SESSIONS, words)
            .load(OBJECT)
            .expect("the object is one that aya reads");
        let program: &mut Xdp = ebpf.program_mut(maps::PROGRAM).expect("named so").try_into().expect("an XDP program");
        program.load().expect("the verifier accepts it");

        let mut config: Array<_, maps::ConfigWords> = map(&mut ebpf, maps::CONFIG).try_into().expect("an array");
        config.set(0, rules.config.to_words(rules.limits, log), 0).expect("one entry");
        let mut sessions: Array<_, u64> = map(&mut ebpf, maps::SESSIONS).try_into().expect("an array");
        let (word, bit) = session_bit(SESSION);
        sessions.set(word, bit, 0).expect("one of the first worker's");
        let mut local: HashMap<_, [u8; 16], maps::Present> = map(&mut ebpf, maps::LOCAL).try_into().expect("a hash");
        for address in &rules.local {
            local.insert(address.octets(), 1, 0).expect("there is room");
        }
        let mut trie: LpmTrie<_, [u8; 16], maps::AllowValue> =
            map(&mut ebpf, maps::ALLOW_FROM).try_into().expect("a trie");
        for prefix in &rules.allow_from {
            let (bits, octets) = prefix.lpm_key();
            trie.insert(&Key::new(bits, octets), maps::allow_value(prefix.family()), 0).expect("there is room");
        }
        Some(Self { ebpf, rules, counters: [0; COUNTERS], socket: None })
    }

    /// Fills the slot of receive queue 0, from which test runs come.
    fn open_socket(mut self) -> Self {
        let socket = Socket::new(Domain::from(AF_XDP), Type::from(SOCK_RAW), None).expect("the kernel has AF_XDP");
        let mut slots: XskMap<_> = map(&mut self.ebpf, maps::XSKS).try_into().expect("an XSKMAP");
        slots.set(0, socket.as_raw_fd(), 0).expect("any AF_XDP socket may be in the map");
        self.socket = Some(socket);
        self
    }

    /// Runs it on a frame. The verdict is what was counted; the action must be the verdict's, and only one counter move.
    fn run(&mut self, frame: &[u8]) -> Verdict {
        let program: &Xdp = self.ebpf.program(maps::PROGRAM).expect("loaded").try_into().expect("an XDP program");
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let action = program.test_run(options).expect("the kernel runs it").return_value;

        let counters: PerCpuArray<_, u64> =
            self.ebpf.map(maps::COUNTERS).expect("named so").try_into().expect("a per-CPU array");
        let mut moved = Vec::new();
        for (index, before) in self.counters.iter_mut().enumerate() {
            let per_cpu = counters.get(&(index as u32), 0).expect("a counter for each verdict");
            let now = per_cpu.iter().sum();
            moved.extend(std::iter::repeat_n(Verdict::ALL[index], (now - *before) as usize));
            *before = now;
        }
        assert_eq!(moved.len(), 1, "a frame moves one counter by one, not {moved:?}");
        let verdict = moved[0];
        let expected = match verdict {
            Verdict::Redirect => XDP_REDIRECT,
            Verdict::Pass(_) => XDP_PASS,
            Verdict::Drop(_) => XDP_DROP,
        };
        assert_eq!(action, expected, "action of {verdict:?}");
        verdict
    }

    /// What the pure function says, but for the socket that only the kernel knows of.
    fn expect(&self, frame: &[u8]) -> Verdict {
        match self.rules.steer(frame) {
            Verdict::Redirect if self.socket.is_none() => Verdict::Pass(PassReason::NoSocket),
            verdict => verdict,
        }
    }
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut aya::maps::Map {
    ebpf.map_mut(name).expect("the object has the maps that pilot-common names")
}

/// wire.md W2.1 to W2.3, and W2.4: `run` asserts that the verdict's counter moves, and no other.
#[test]
fn each_frame_meets_its_verdict() {
    let rules = Rules::new(1500);
    let reasons: std::collections::HashSet<_> = cases().iter().map(|(.., verdict)| verdict.counter()).collect();
    // All but NoSocket and the two of what is too much, which have tests of their own.
    assert_eq!(reasons.len(), COUNTERS - 3, "every verdict has a case");
    for (name, frame, verdict) in cases() {
        assert_eq!(rules.steer(&frame), verdict, "pure: {name}");
    }
    for log in [false, true] {
        let Some(program) = Program::load_with("each_frame_meets_its_verdict", Rules::new(1500), log) else { return };
        let mut program = program.open_socket();
        for (name, frame, verdict) in cases() {
            assert_eq!(program.run(&frame), verdict, "kernel, log {log}: {name}");
        }
    }
}

/// wire.md W2.2: until the queue has a socket, and when it has gone, the kernel's UDP socket gets what is ours.
#[test]
fn without_a_socket_ours_is_passed() {
    let Some(mut program) = Program::load("without_a_socket_ours_is_passed", Rules::new(1500)) else { return };
    assert_eq!(program.run(&v4(&data(46))), Verdict::Pass(PassReason::NoSocket));
    let mut program = program.open_socket();
    assert_eq!(program.run(&v4(&data(46))), Verdict::Redirect);
    program.socket = None;
    assert_eq!(program.run(&v4(&data(46))), Verdict::Pass(PassReason::NoSocket), "a closed socket leaves the map");
}

/// wire.md W1.6: cut off anywhere, a frame gets the pure function's verdict.
#[test]
fn truncated_at_every_length() {
    let rules = Rules::new(1500);
    let frames = [
        v4(&data(46)),
        v6(&data(46)),
        frame_between("2001:db8::1", LOCAL[1], Some(7), &data(46)),
        frame_between("198.51.100.8", LOCAL[0], Some(7), &data(46)),
    ];
    for frame in &frames {
        for len in 0..frame.len() {
            assert_eq!(rules.steer(&frame[..len]), Verdict::Pass(PassReason::Truncated), "{len} of {frame:02x?}");
        }
    }
    let Some(program) = Program::load("truncated_at_every_length", rules) else { return };
    let mut program = program.open_socket();
    for frame in &frames {
        for len in eth::LEN..frame.len() {
            assert_eq!(program.run(&frame[..len]), Verdict::Pass(PassReason::Truncated), "{len} of {frame:02x?}");
        }
    }
}

/// A jumbo frame lies in several buffers, of which the program reads the first.
#[test]
fn a_frame_in_several_buffers_is_one_datagram() {
    let Some(program) = Program::load("a_frame_in_several_buffers_is_one_datagram", Rules::new(9000)) else { return };
    let mut program = program.open_socket();
    assert_eq!(program.run(&v4(&data(8972))), Verdict::Redirect);
    assert_eq!(program.run(&v6(&data(8952))), Verdict::Redirect);
    assert_eq!(program.run(&v4(&data(8973))), Verdict::Pass(PassReason::LongerThanMtu));
    let cut = &v4(&data(8972))[..8000];
    assert_eq!(program.run(cut), Verdict::Pass(PassReason::Truncated));
}

/// `allow_all` asks no prefix; `::/0` allows no IPv4.
#[test]
fn allow_from_knows_the_families_apart() {
    let outside = [
        frame_between("203.0.113.1", LOCAL[0], None, &data(46)),
        frame_between("2001:db9::1", LOCAL[1], None, &data(46)),
    ];
    let dropped = Verdict::Drop(DropReason::SourceNotAllowed);
    for (allow_all, allow_from, expected) in [
        (true, vec![], [Verdict::Redirect, Verdict::Redirect]),
        (false, vec![], [dropped, dropped]),
        (false, vec!["::/0"], [dropped, Verdict::Redirect]),
        (false, vec!["0.0.0.0/0"], [Verdict::Redirect, dropped]),
        (false, vec!["::/0", "203.0.113.0/24"], [Verdict::Redirect, Verdict::Redirect]),
    ] {
        let mut rules = Rules::new(1500);
        rules.config.allow_all = allow_all;
        rules.allow_from = allow_from.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
        assert_eq!([rules.steer(&outside[0]), rules.steer(&outside[1])], expected, "pure: {allow_from:?}");
        let Some(program) = Program::load("allow_from_knows_the_families_apart", rules) else { return };
        let mut program = program.open_socket();
        assert_eq!([program.run(&outside[0]), program.run(&outside[1])], expected, "kernel: {allow_from:?}");
    }
}

/// Generic and native, on a device whose frames take several buffers: without `frags`, native would be refused.
#[test]
fn attaches_in_both_modes_at_a_jumbo_mtu() {
    let Some(mut program) = Program::load("attaches_in_both_modes_at_a_jumbo_mtu", Rules::new(9000)) else { return };
    // The thread's own namespace, which ends with it, and the veth pair with that.
    let attached = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
        let added = std::process::Command::new("ip")
            .args("link add pilot0 mtu 9000 type veth peer name pilot1 mtu 9000".split(' '))
            .status()
            .expect("iproute2 is installed");
        assert!(added.success());
        let program: &mut Xdp =
            program.ebpf.program_mut(maps::PROGRAM).expect("loaded").try_into().expect("an XDP program");
        for mode in [XdpMode::Skb, XdpMode::Driver] {
            let link = program.attach("pilot0", mode).expect("attaches");
            program.detach(link).expect("detaches");
        }
    });
    attached.join().expect("no assertion failed");
}

/// A case's frame with some bytes changed and its end moved, or bytes that are no frame at all.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let frames: Vec<_> = cases().into_iter().map(|(_, frame, _)| frame).filter(|frame| frame.len() < 2000).collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let mutated = (prop::sample::select(frames), changes, -8_isize..8).prop_map(|(mut frame, changes, longer)| {
        for (place, byte) in changes {
            // Mostly where the headers are.
            let place = place.index(frame.len().min(80));
            frame[place] = byte;
        }
        frame.resize(frame.len().saturating_add_signed(longer).max(eth::LEN), 0);
        frame
    });
    prop_oneof![9 => mutated, 1 => prop::collection::vec(any::<u8>(), eth::LEN..200)]
}

/// wire.md W2.4: one parser, two places; whether it logs or not.
#[test]
fn kernel_and_pure_function_agree() {
    let load = |log| {
        let program = Program::load_with("kernel_and_pure_function_agree", Rules::new(1500), log);
        program.map(|program| std::cell::RefCell::new(program.open_socket()))
    };
    let (Some(silent), Some(logging)) = (load(false), load(true)) else { return };
    let cases = Cases { cases: 4096, failure_persistence: None, ..Cases::default() };
    let outcome = TestRunner::new(cases).run(&any_frame(), |frame| {
        for program in [&silent, &logging] {
            let expected = program.borrow().expect(&frame);
            prop_assert_eq!(program.borrow_mut().run(&frame), expected);
        }
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
}
