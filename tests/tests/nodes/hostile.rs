//! Datagrams that no honest peer sends, to a node with AF_XDP on: each is counted under its reason, and nothing else happens.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;
use pilot_common::wire::{COOKIE_LEN, DATA_MIN_LEN, Header, INITIATION_LEN, PacketType, RESET_LEN, RESPONSE_MIN_LEN};
use serde_json::Value;

use crate::scene::{End, Scene};

/// Datagrams in a row before a pause of a millisecond: the receiver's queues must hold what is counted at their far end.
const BURST: usize = 32;

/// A header of ours with zeros behind it. No session of any node has this id but by a chance of one in 2^24.
fn datagram(packet_type: PacketType, len: usize) -> Vec<u8> {
    let header = Header { packet_type, epoch: 0, receiver: 0x00ab_cdef, word: 7 };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

/// An initiation whose header is as it must be.
fn initiation_to_nobody() -> Vec<u8> {
    let mut bytes = datagram(PacketType::Initiation, INITIATION_LEN);
    bytes[1..5].fill(0);
    bytes
}

/// The first byte replaced.
fn with_first(first: u8, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[0] = first;
    bytes
}

/// wire.md W1.1, W1.3, W1.4, W1.5, W2.2, W2.3, W2.4, W3.2, W4.9: and nothing of it is answered, unless a peer is at the source.
#[test]
fn garbage_is_counted_under_its_reason() {
    let Some(scene) = Scene::new("hostile::garbage_is_counted_under_its_reason") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut listen = scene.start(&b, &["up"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");
    let stranger = scene.socket(End::A, "10.77.0.1:6666");
    stranger.connect(End::B.listen()).unwrap();

    // What is dropped in the kernel, what the socket link refuses, what the engine drops.
    let (xdp, socket, engine) = ("/xdp/verdicts", "/link/udp/refused", "/engine/dropped");
    let cases = [
        (vec![], socket, "pass_no_header"),
        (vec![0x30; 8], socket, "pass_no_header"),
        (with_first(0x50, datagram(PacketType::Data, 100)), socket, "pass_other_version"),
        (with_first(0x04, datagram(PacketType::Initiation, INITIATION_LEN)), socket, "pass_other_version"),
        (datagram(PacketType::Relayed, 100), socket, "pass_relayed"),
        (with_first(0x20, datagram(PacketType::Data, 100)), xdp, "drop_reserved_type"),
        (with_first(0x3c, datagram(PacketType::Data, 1400)), xdp, "drop_reserved_type"),
        (datagram(PacketType::Initiation, INITIATION_LEN - 1), xdp, "drop_wrong_length"),
        (datagram(PacketType::Initiation, INITIATION_LEN + 1), xdp, "drop_wrong_length"),
        (datagram(PacketType::Response, RESPONSE_MIN_LEN - 1), xdp, "drop_wrong_length"),
        (datagram(PacketType::Data, DATA_MIN_LEN - 1), xdp, "drop_wrong_length"),
        (datagram(PacketType::Cookie, COOKIE_LEN + 1), xdp, "drop_wrong_length"),
        (datagram(PacketType::Reset, RESET_LEN + 1), xdp, "drop_wrong_length"),
        (initiation_to_nobody(), engine, "mac1"),
        (datagram(PacketType::Initiation, INITIATION_LEN), engine, "header"),
        (with_first(0x25, initiation_to_nobody()), engine, "header"),
        (datagram(PacketType::Response, RESPONSE_MIN_LEN), engine, "no_attempt"),
        (datagram(PacketType::Cookie, COOKIE_LEN), engine, "header"),
        (datagram(PacketType::Reset, RESET_LEN), engine, "reset"),
        (datagram(PacketType::Data, DATA_MIN_LEN), engine, "unknown_session"),
        (datagram(PacketType::Data, 1472), engine, "unknown_session"),
    ];
    const TIMES: u64 = 3;
    for (bytes, ..) in &cases {
        for _ in 0..TIMES {
            stranger.send(bytes).unwrap();
        }
        thread::sleep(Duration::from_millis(1));
    }
    // All of it was handled before this.
    scene.run(&a, &["ping", "b", "--count", "100", "--interval", "0"]).success("ping");
    let mut answer = [0; 2048];
    stranger.set_nonblocking(true).unwrap();
    assert_eq!(stranger.recv(&mut answer).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock), "silence");
    // The same from where a peer was met is told that there is no such session.
    stranger.set_nonblocking(false).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stranger.send(&datagram(PacketType::Data, DATA_MIN_LEN)).unwrap();
    assert_eq!(stranger.recv(&mut answer).unwrap(), RESET_LEN);
    assert_eq!(answer[..5], with_first(0x34, datagram(PacketType::Reset, RESET_LEN))[..5]);

    let ended = listen.end_by(Signal::SIGTERM);
    let stats = ended.success("stats");
    for (_, place, name) in &cases {
        let from_a_peer = u64::from(*name == "unknown_session");
        let expected = TIMES * cases.iter().filter(|(_, at, other)| (place, name) == (at, other)).count() as u64;
        let expected = expected + from_a_peer;
        let counted = &stats.pointer(place).unwrap_or(&Value::Null)[name];
        assert_eq!(*counted, expected, "{place} {name} in {stats}");
    }
}

/// Random bytes in random lengths, half of them with a first byte of ours: the XDP program sees all of them, and the node
/// serves as before.
#[test]
fn noise_harms_nobody() {
    const NOISE: usize = 4000;
    let Some(scene) = Scene::new("hostile::noise_harms_nobody") else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some(End::B.listen())).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut listen = scene.start(&b, &["up"]);
    listen.wait_for("ready");
    let mut ping = scene.start(&a, &["ping", "b", "--count", "1000000", "--interval", "5"]);
    ping.wait_for_progress(10);

    let stranger = scene.socket(End::A, "10.77.0.1:6666");
    stranger.connect(End::B.listen()).unwrap();
    // One window of random bytes after the other.
    let noise = scene.file("noise", NOISE * 7 + 2000);
    for number in 0..NOISE {
        let window = &noise[number * 7..];
        let mut bytes = window[2..2 + usize::from(window[0]) * 5 + usize::from(window[1] % 100)].to_vec();
        if number % 2 == 0 && !bytes.is_empty() {
            bytes[0] = 0x20 | bytes[0] & 0x1f;
        }
        stranger.send(&bytes).unwrap();
        if number % BURST == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let so_far = ping.wait_for_progress(0);
    ping.wait_for_progress(so_far + 10);
    ping.signal(Signal::SIGINT);
    ping.end().failure(130, &["interrupted"]);
    let ended = listen.end_by(Signal::SIGTERM);
    let stats = ended.success("stats");
    let verdicts: u64 = ["redirected", "passed", "dropped"].iter().filter_map(|name| stats["xdp"][name].as_u64()).sum();
    assert!(verdicts >= NOISE as u64, "{stats}");
    let ups = ended.said.iter().filter(|said| said.event["event"] == "tunnel_up").count();
    assert_eq!(ups, 1, "the one tunnel stayed up: {ended:#?}");
}

/// Someone between two nodes, who forwards everything and keeps what one of them sends.
struct Middle {
    socket: UdpSocket,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Middle {
    fn start(socket: UdpSocket, from: SocketAddr, to: SocketAddr) -> Self {
        let (kept, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (theirs, keep, stopped) = (socket.try_clone().unwrap(), Arc::clone(&kept), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                // The time-out is there for a look at `stopped`.
                let Ok((len, source)) = theirs.recv_from(&mut buffer) else { continue };
                let bytes = &buffer[..len];
                if source == from {
                    keep.lock().unwrap().push(bytes.to_vec());
                }
                theirs.send_to(bytes, if source == from { to } else { from }).unwrap();
            }
        });
        Self { socket, kept, stop, thread: Some(thread) }
    }

    fn kept(&self, packet_type: PacketType) -> Vec<Vec<u8>> {
        let kept = self.kept.lock().unwrap();
        kept.iter()
            .filter(|bytes| Header::parse(bytes).is_ok_and(|it| it.packet_type == packet_type))
            .cloned()
            .collect()
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// wire.md W3.5, W4.3, W4.4: genuine datagrams again, cut off, or with a bit turned, are counted drops and end no tunnel.
#[test]
fn replayed_truncated_and_corrupted_datagrams_end_no_tunnel() {
    let name = "hostile::replayed_truncated_and_corrupted_datagrams_end_no_tunnel";
    let Some(scene) = Scene::new(name) else { return };
    let a = scene.node("a", End::A).udp().peer("b", Some("10.77.0.1:5555")).write();
    let b = scene.node("b", End::B).peer("a", None).write();
    let mut listen = scene.start(&b, &["up"]);
    assert_eq!(listen.wait_for("ready").event["datapath"]["kind"], "xdp");
    let (a_at, b_at): (SocketAddr, SocketAddr) = (End::A.listen().parse().unwrap(), End::B.listen().parse().unwrap());
    let middle = Middle::start(scene.socket(End::A, "10.77.0.1:5555"), a_at, b_at);
    let mut ping = scene.start(&a, &["ping", "b", "--count", "1000000", "--interval", "20"]);
    ping.wait_for_progress(20);

    let (initiations, packets) = (middle.kept(PacketType::Initiation), middle.kept(PacketType::Data));
    assert!(!initiations.is_empty() && packets.len() >= 20);
    let again: Vec<Vec<u8>> = initiations.iter().chain(&packets).cloned().collect();
    // The number in the header is behind what was opened, so that a replay would be seen as such: take it ahead.
    let changed = |change: &dyn Fn(&mut Vec<u8>)| -> Vec<Vec<u8>> {
        packets.iter().cloned().map(|mut bytes| (change(&mut bytes), bytes).1).collect()
    };
    let ahead = |bytes: &mut Vec<u8>| bytes[6] ^= 0x10;
    let cut = changed(&|bytes| {
        ahead(bytes);
        bytes.pop();
    });
    let cut: Vec<_> = cut.into_iter().filter(|bytes| bytes.len() >= DATA_MIN_LEN).collect();
    let turned = changed(&|bytes| {
        ahead(bytes);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let renumbered = changed(&ahead);
    let redirected = changed(&|bytes| bytes[4] ^= 1);
    for bytes in [&again, &cut, &turned, &renumbered, &redirected].into_iter().flatten() {
        middle.socket.send_to(bytes, b_at).unwrap();
        thread::sleep(Duration::from_micros(200));
    }
    let so_far = ping.wait_for_progress(0);
    ping.wait_for_progress(so_far + 20);
    ping.signal(Signal::SIGINT);
    ping.end().failure(130, &["interrupted"]);

    let ended = listen.end_by(Signal::SIGTERM);
    let stats = ended.success("stats");
    let expected = serde_json::json!({
        "stale_timestamp": initiations.len(),
        "replay": packets.len(),
        "authentication": cut.len() + turned.len() + renumbered.len(),
        "unknown_session": redirected.len(),
    });
    let dropped = stats["engine"]["dropped"].as_object().unwrap();
    let dropped: serde_json::Map<_, _> =
        dropped.iter().filter(|(_, count)| **count != 0).map(|(name, count)| (name.clone(), count.clone())).collect();
    assert_eq!(Value::from(dropped), expected, "{stats}");
    let ups = ended.said.iter().filter(|said| said.event["event"] == "tunnel_up").count();
    assert_eq!(ups, 1, "the one tunnel stayed up: {ended:#?}");
}
