//! A million forged initiations while a tunnel carries bulk: where they end, and what they cost.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use pilot_common::datagram::{Headers, MAX_HEADERS_LEN};
use pilot_common::eth;
use pilot_common::wire::{Header, INITIATION_LEN, PacketType};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::{End, Scene};

const FLOOD: u64 = 1_000_000;
/// Of the file that is sent meanwhile: seconds, of which the first fifth may be over before the flood begins.
const BYTES: usize = 256 << 20;
/// Where nobody at b listens (RFC 863).
const DISCARD: u16 = 9;
/// A type of socket that takes whole IP packets, and its protocol (raw(7)).
const SOCK_RAW: i32 = 3;
const IPPROTO_RAW: i32 = 255;

/// Who says to have sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sources {
    One,
    Many,
}

impl Sources {
    fn address(self, number: u64) -> Ipv4Addr {
        match self {
            Self::One => Ipv4Addr::new(10, 77, 0, 66),
            // All of 10.128.0.0/9 in an order without a period as short (Knuth, TAOCP 3 §6.4).
            Self::Many => Ipv4Addr::from_bits(0x0a80_0000 | (number as u32).wrapping_mul(0x9e37_79b1) >> 9),
        }
    }
}

/// What is sent many times.
#[derive(Clone, Copy)]
struct Attack<'a> {
    sources: Sources,
    /// Another one than the node's.
    port: Option<u16>,
    datagram: &'a [u8],
    times: u64,
}

/// Sends a datagram many times from an end; how long that took.
fn flood(scene: &Scene, from: End, attack: Attack<'_>) -> JoinHandle<Duration> {
    let namespace = File::open(Path::new("/run/netns").join(scene.namespace(from))).unwrap();
    let mut to: SocketAddr = End::B.listen().parse().unwrap();
    to.set_port(attack.port.unwrap_or(to.port()));
    let (sources, times, initiation) = (attack.sources, attack.times, attack.datagram.to_vec());
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
        let socket = Socket::new(Domain::IPV4, Type::from(SOCK_RAW), Some(Protocol::from(IPPROTO_RAW))).unwrap();
        let began = Instant::now();
        for number in 0..times {
            let source = SocketAddr::from((sources.address(number), 4242));
            let headers =
                Headers { destination_mac: [0; 6], source_mac: [0; 6], tag: None, source, destination: to, ecn: 0 };
            let mut room = [0; MAX_HEADERS_LEN + INITIATION_LEN];
            let (before, payload) = room.split_at_mut(MAX_HEADERS_LEN);
            payload.copy_from_slice(&initiation);
            let len = headers.write_back(before, payload).expect("the room is for any headers");
            // The kernel writes the Ethernet header itself. What it has no room for now is left out, and comes again.
            while socket.send_to(&room[MAX_HEADERS_LEN - len + eth::LEN..], &to.into()).is_err() {
                thread::yield_now();
            }
        }
        began.elapsed()
    })
}

/// What `a` sends first when it wants to talk to `b`: mac1 is right, and it is certified. Nobody has answered it.
fn genuine_initiation(scene: &Scene, a: &crate::scene::Node) -> Vec<u8> {
    let catcher = scene.socket(End::B, End::B.listen());
    let _ping = scene.start(a, &["ping", "b", "--count", "1"]);
    let mut datagram = vec![0; 2048];
    loop {
        let len = catcher.recv(&mut datagram).unwrap();
        if Header::parse(&datagram[..len]).is_ok_and(|header| header.packet_type == PacketType::Initiation) {
            datagram.truncate(len);
            return datagram;
        }
    }
}

/// wire.md W2.7: a replayed initiation costs its receiver Diffie-Hellmans before it is known as old, so it is the worst
/// there is. From one address nearly all end in the kernel; from many, they must not do harm.
///
/// What is left of the goodput is printed (`--show-output`). Of that, the flood takes part by being sent at all, over the same
/// device and on the same cores: as much as one that Pilot never sees.
#[test]
fn a_million_forged_initiations_do_not_break_a_transfer() {
    let Some(scene) = Scene::new("flood::a_million_forged_initiations_do_not_break_a_transfer") else { return };
    let a = scene.node("a", End::A).line("bulk = \"never\"").peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).line("bulk = \"never\"").peer("a", None).write();
    let initiation = genuine_initiation(&scene, &a);
    let mut noise = initiation.clone();
    noise[INITIATION_LEN - 20] ^= 1;
    let attack = |sources, port, datagram| Some(Attack { sources, port, datagram, times: FLOOD });
    let mut calm = 0.0;
    for (name, attack) in [
        ("no flood", None),
        ("as many to another port", attack(Sources::Many, Some(DISCARD), &noise)),
        ("genuine initiations from one address", attack(Sources::One, None, &initiation)),
        ("genuine initiations from many addresses", attack(Sources::Many, None, &initiation)),
        ("wrong mac1 from many addresses", attack(Sources::Many, None, &noise)),
    ] {
        let mut listen = scene.start(&b, &["listen", "--files", "received"]);
        assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");
        let bytes = scene.file("file", BYTES);
        let mut send = scene.start(&a, &["send", "file", "b"]);
        send.wait_for_progress(1);
        let flooding = attack.map(|attack| flood(&scene, End::A, attack));
        let ended = send.end();
        let sent = ended.success("send");
        assert_eq!(sent["sha256_ok"], true);
        let took = flooding.map(|flooding| flooding.join().unwrap());
        let received = scene.directory().join("received/file");
        assert!(fs::read(&received).unwrap() == bytes, "{name}");
        fs::remove_file(received).unwrap();

        let ended = listen.end_by(Signal::SIGTERM);
        let stats = ended.success("stats");
        let count = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{stats}"));
        let in_kernel = count("/xdp/verdicts/drop_too_many_initiations");
        let stale = count("/engine/dropped/stale_timestamp");
        let mac1 = count("/engine/dropped/mac1");
        let no_room = count("/xdp/redirected") - count("/engine/rx_ring");
        let gbit_s = sent["gbit_s"].as_f64().unwrap_or_default();
        if attack.is_none() {
            calm = gbit_s;
        }
        eprintln!(
            "{name}: {gbit_s:.2} Gbit/s, {:.0} %, {} retransmitted; {FLOOD} in {took:?}: {in_kernel} dropped by XDP, {no_room} for want of \
             room in the ring, {mac1} by mac1, {stale} as old after Diffie-Hellmans, {} handshakes",
            gbit_s * 100.0 / calm,
            sent["retransmitted"],
            count("/engine/handshakes"),
        );
        let by_engine: u64 = stats["engine"]["dropped"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        let counted = in_kernel + no_room + by_engine;
        // The kernel has a queue before XDP, which may drop some.
        let is_for_us = attack.is_some_and(|attack| attack.port.is_none());
        assert!(!is_for_us || counted > FLOOD / 20 * 19, "{counted} have a reason: {stats}");
        match attack.filter(|_| is_for_us) {
            None => assert_eq!((in_kernel, stale, mac1), (0, 0, 0), "{stats}"),
            Some(Attack { sources: Sources::One, .. }) => {
                // What the bucket lets through in four minutes is a twentieth.
                assert!(in_kernel > FLOOD / 20 * 19, "{stats}");
                assert!(stale + mac1 <= FLOOD - in_kernel, "{stats}");
            }
            Some(Attack { datagram, .. }) => {
                assert!(datagram == initiation || stale == 0, "no Diffie-Hellman for a wrong mac1: {stats}");
            }
        }
    }
}

/// A worker that does not come round leaves the kernel without chunks to receive into: that is counted, and said in words.
#[test]
fn a_fill_ring_that_runs_dry_is_in_the_metrics() {
    let Some(scene) = Scene::new("flood::a_fill_ring_that_runs_dry_is_in_the_metrics") else { return };
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut up = scene.start(&b, &["up"]);
    assert_eq!(up.wait_for("ready").event["datapath"]["kind"], "xdp");
    let counted =
        || ["pilot_xdp_fill_ring_empty_total", "pilot_xdp_rx_dropped_total"].map(|metric| scene.metric(&b, metric));
    let checks = |check: &str| {
        let ended = scene.run(&b, &["doctor"]);
        ended.said.iter().filter(|said| said.event["check"] == check).map(|said| said.event.clone()).collect::<Vec<_>>()
    };
    assert_eq!(counted(), [0, 0]);
    assert_eq!(checks("rings")[0]["finding"], "good");
    let header = Header { packet_type: PacketType::Initiation, epoch: 0, receiver: 0, word: 0 };
    let mut datagram = header.to_bytes().to_vec();
    datagram.resize(INITIATION_LEN, 0);
    let attack = Attack { sources: Sources::Many, port: None, datagram: &datagram, times: 4 * 512 };
    up.signal(Signal::SIGSTOP);
    flood(&scene, End::A, attack).join().unwrap();
    up.signal(Signal::SIGCONT);
    // The first 512 had a chunk each. The kernel has queues before that, which may drop some.
    let [empty, dropped] = counted();
    assert!((1..=3 * 512).contains(&empty) && empty == dropped, "{empty} times, {dropped} lost");
    let rings = &checks("rings")[0];
    assert_eq!(rings["finding"], "note", "{rings}");
    assert!(rings["words"].as_str().unwrap().starts_with(&format!("{empty} times ")), "{rings}");
    assert!(rings["fix"].as_str().unwrap().contains("`cores`"), "{rings}");
}
