//! Several sockets on one port: the kernel runs our program to choose among them.

use std::net::{SocketAddr, UdpSocket};

use pilot_common::wire::PacketType;
use pilot_user::link::udp::{Group, UdpLink, UdpOptions};
use pilot_user::link::{Link, Trust};

use crate::keep;

/// Sources that initiations come from. With fewer, that one of three sockets gets none is not impossible enough.
const SOURCES: usize = 100;

fn open(listen: SocketAddr, workers: usize) -> std::io::Result<UdpLink> {
    let group = Some(Group { workers });
    UdpLink::open(UdpOptions { listen, mtu: 1500, gso: false, allow_from: vec![], group })
}

fn group(listen: &str, workers: usize) -> Vec<UdpLink> {
    let mut listen: SocketAddr = listen.parse().unwrap();
    (0..workers)
        .map(|_| {
            let link = open(listen, workers).unwrap();
            listen = link.local_addr();
            link
        })
        .collect()
}

/// What the header says that the program looks at, in a datagram of a length that its type allows.
fn datagram(kind: PacketType, worker: u8, version: u8) -> Vec<u8> {
    let len = match kind {
        PacketType::Initiation => 1200,
        PacketType::Response | PacketType::Data | PacketType::Relayed => 100,
        PacketType::Cookie => 65,
        PacketType::Reset => 25,
    };
    let mut bytes = vec![0; len];
    bytes[..2].copy_from_slice(&[version << 5 | (kind as u8) << 2 | 0b11, worker]);
    bytes
}

/// The worker that got the datagram which was just sent: loopback delivers at once.
fn who_got(links: &mut [UdpLink], sent: &[u8]) -> usize {
    let mut got = Vec::new();
    for (worker, link) in links.iter_mut().enumerate() {
        let mut kept = Vec::new();
        link.recv(64, keep(&mut kept, Trust::Unproven)).unwrap();
        got.extend(kept.into_iter().map(|kept| (worker, kept.payload)));
    }
    assert_eq!(got.len(), 1, "{} bytes, type {:#x}", sent.len(), sent[0]);
    assert_eq!(got[0].1, sent);
    got[0].0
}

#[test]
fn sessions_reach_their_worker_and_initiations_are_spread_by_source() {
    for (listen, workers) in [("127.0.0.1:0", 2), ("127.0.0.1:0", 3), ("[::1]:0", 3)] {
        let mut links = group(listen, workers);
        let to = links[0].local_addr();
        let any = SocketAddr::new(to.ip(), 0);
        let mut initiations = vec![0; workers];
        for _ in 0..SOURCES {
            let source = UdpSocket::bind(any).unwrap();
            let mut send = |kind, worker| {
                let datagram = datagram(kind, worker, 1);
                source.send_to(&datagram, to).unwrap();
                who_got(&mut links, &datagram)
            };
            for kind in [PacketType::Response, PacketType::Cookie, PacketType::Data] {
                for worker in 0..workers {
                    assert_eq!(send(kind, worker as u8), worker, "{kind:?}");
                }
                // Somebody, who counts it: that is asserted on the way.
                for nobody in [workers as u8, 200, 255] {
                    send(kind, nobody);
                }
            }
            // An initiation has no session id, whatever stands there, and a reset the id of a session of its sender's.
            let worker = send(PacketType::Initiation, 0);
            for kind in [PacketType::Initiation, PacketType::Reset] {
                assert!((0..=255).all(|id| send(kind, id) == worker), "one source, one worker");
            }
            initiations[worker] += 1;
        }
        assert!(initiations.iter().all(|count| *count > 0), "{initiations:?}");
    }
}

#[test]
fn what_is_too_short_is_refused_by_somebody() {
    let mut links = group("127.0.0.1:0", 3);
    let source = UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in 0..9 {
        source.send_to(&datagram(PacketType::Data, 2, 1)[..len], links[0].local_addr()).unwrap();
        let refused = |links: &[UdpLink]| links.iter().map(|link| link.counters().refused.passed()).sum::<u64>();
        for link in &mut links {
            assert_eq!(link.recv(64, |_| Trust::Unproven).unwrap(), 0);
        }
        assert_eq!(refused(&links), len as u64 + 1);
    }
}

#[test]
fn a_group_of_no_or_too_many_workers_is_refused_in_words() {
    for workers in [0, 257] {
        let error = open("127.0.0.1:0".parse().unwrap(), workers).err().unwrap().to_string();
        assert!(error.contains(&format!("given {workers}, allowed: 1 to 256")), "{error}");
    }
    assert!(open("127.0.0.1:0".parse().unwrap(), 256).is_ok());
}

#[test]
fn without_a_group_a_port_is_reserved() {
    let alone = |listen| UdpLink::open(UdpOptions { listen, mtu: 1500, gso: false, allow_from: vec![], group: None });
    let first = alone("127.0.0.1:0".parse().unwrap()).unwrap();
    assert!(alone(first.local_addr()).is_err());
    assert!(open(first.local_addr(), 1).is_err());
}
