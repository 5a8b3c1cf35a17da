//! Every peer over loopback, for a fraction of a second under each load that it bears: what it says is there, and plausible.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;

use super::{Kind, Load, MESSAGE, Measured, Meter, Ready, Recorder, Stop, System};
use super::{grpc, http, nats, quic, tcp, tcp_spin, websocket};
use crate::place::{PORT, Places};

const TIME: Duration = Duration::from_millis(200);
/// The bytes of a payload that loopback carries in one piece, with quinn's headers.
const MTU: u16 = 8900;
const CONNECTIONS: usize = 3;

/// A directory that goes when it is over.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An address of loopback that no other test, and no other process of tests, has; and a directory, for the same reason.
fn place() -> (SocketAddr, Directory) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let (process, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let [.., high, low] = process.to_be_bytes();
    let directory = std::env::temp_dir().join(format!("pilot-benches-{process}-{n}"));
    std::fs::create_dir(&directory).unwrap();
    (SocketAddr::from((Ipv4Addr::new(127, 64 | (high & 63), low, n), PORT)), Directory(directory))
}

/// Runs both ends as [`super::run`] does, but here.
fn measure(system: &Arc<dyn System>, kind: Kind) -> Measured {
    let load = Load { kind, warm_up: TIME / 4, time: TIME, mtu: MTU, connections: CONNECTIONS };
    let (meter, stop, (ready, is_ready)) = (Arc::new(Meter::default()), Stop::default(), bounded(1));
    let far = {
        let (system, meter, stop) = (Arc::clone(system), Arc::clone(&meter), stop.clone());
        std::thread::spawn(move || system.serve(&load, &meter, Ready(ready), &stop))
    };
    if is_ready.recv().is_err() {
        panic!("{:?}", far.join().unwrap());
    }
    let mut recorder = Recorder::new(&load, Places::new(vec![], 0).unwrap(), meter);
    let asked = system.ask(&load, &mut recorder);
    stop.set();
    far.join().unwrap().unwrap();
    asked.unwrap();
    recorder.finish().unwrap()
}

fn check(system: Arc<dyn System>, kinds: &[Kind]) {
    for kind in [Kind::Echo, Kind::Messages, Kind::Bulk, Kind::Handshakes, Kind::Idle] {
        if !kinds.contains(&kind) {
            continue;
        }
        let measured = measure(&system, kind);
        let Measured { time_ns, operations, arrived_messages, arrived_bytes, .. } = measured;
        assert!(u128::from(time_ns) >= TIME.as_nanos(), "{kind:?}: {measured:?}");
        match kind {
            Kind::Echo | Kind::Handshakes => {
                assert!(operations > 0 && (arrived_messages, arrived_bytes) == (0, 0), "{kind:?}: {measured:?}");
                let most = measured.quantiles_ns.last().unwrap().1;
                assert!(most > 1000, "{kind:?}: no round trip takes {most} ns");
            }
            Kind::Messages => {
                assert!(arrived_messages > 0 && operations == 0, "{measured:?}");
                assert_eq!(arrived_bytes, arrived_messages * MESSAGE.len() as u64);
            }
            Kind::Bulk => assert!(arrived_bytes > u64::from(MTU) && operations == 0, "{measured:?}"),
            Kind::Idle => assert_eq!((operations, arrived_bytes), (0, 0), "{measured:?}"),
        }
    }
}

const ALL: &[Kind] = &[Kind::Echo, Kind::Messages, Kind::Bulk, Kind::Handshakes, Kind::Idle];
const SMALL: &[Kind] = &[Kind::Echo, Kind::Messages];

#[test]
fn tcp_tls() {
    let (address, directory) = place();
    check(Arc::new(tcp::Tcp::new(address, &directory.0).unwrap()), ALL);
}

#[test]
fn tcp_tls_spin() {
    let (address, directory) = place();
    check(Arc::new(tcp_spin::TcpSpin::new(address, &directory.0).unwrap()), &[Kind::Echo]);
}

#[test]
fn quinn() {
    let (address, directory) = place();
    check(Arc::new(quic::Quic::new(address, &directory.0).unwrap()), ALL);
}

#[test]
fn grpc_tls() {
    for streams in [false, true] {
        let (address, directory) = place();
        check(Arc::new(grpc::Grpc::new(address, &directory.0, streams).unwrap()), SMALL);
    }
}

#[test]
fn websocket_tls() {
    let (address, directory) = place();
    check(Arc::new(websocket::WebSocket::new(address, &directory.0).unwrap()), SMALL);
}

#[test]
fn http_json_tls() {
    let (address, directory) = place();
    check(Arc::new(http::Http::new(address, &directory.0).unwrap()), &[Kind::Echo]);
}

#[test]
fn nats_tls() {
    if Command::new("nats-server").arg("--version").output().is_err() {
        eprintln!("skipped: nats_tls: nats-server is not installed (apt install nats-server)");
        return;
    }
    let (address, directory) = place();
    check(Arc::new(nats::Nats::new(address, &directory.0).unwrap()), SMALL);
}

/// What a system does not bear it refuses in words; it does not hang, and does not find nothing.
#[test]
fn what_a_system_does_not_bear_it_refuses() {
    let (address, directory) = place();
    let load = Load { kind: Kind::Bulk, warm_up: TIME, time: TIME, mtu: MTU, connections: 1 };
    let system = http::Http::new(address, &directory.0).unwrap();
    let mut recorder = Recorder::new(&load, Places::new(vec![], 0).unwrap(), Arc::default());
    let refused = system.ask(&load, &mut recorder).unwrap_err().to_string();
    assert_eq!(refused, "http-json-tls has no Bulk load");
}
