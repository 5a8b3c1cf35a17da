//! What one packet takes of each part: AEAD, wire, replay window, acks, AF_XDP's rings. `engine` has all of it together.
//! `cargo bench --package pilot-benches --bench micro [FILTER]`

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use pilot_common::datagram::{Headers, parse};
use pilot_common::wire::{Header, PacketType};
use pilot_engine::{Aead, benching};
use pilot_xsk::{Options, testing};

/// Bytes of frames: a delta's packet, and one that fills an MTU of 1,500.
const SIZES: [usize; 2] = [23, 1447];

fn aead(c: &mut Criterion) {
    let mut group = c.benchmark_group("aead");
    for aead in [Aead::Aes256Gcm, Aead::ChaCha20Poly1305] {
        for size in SIZES {
            let name = |what: &str| format!("{what} {size} B, {}", aead.name());
            if let (Some(mut seal), Some(mut open)) = (benching::seal(aead, size), benching::open(aead, size)) {
                group.bench_function(name("seal"), |b| b.iter(&mut seal));
                group.bench_function(name("open"), |b| b.iter(|| assert!(open())));
            }
        }
    }
}

fn frame(payload: usize) -> Vec<u8> {
    let header = Header { packet_type: PacketType::Data, epoch: 0, receiver: 1, word: 0 };
    let mut datagram = header.to_bytes().to_vec();
    datagram.resize(payload, 0);
    let address = |n| SocketAddr::from(([10, 0, 0, n], 4242));
    let headers = Headers {
        destination_mac: [2; 6],
        source_mac: [4; 6],
        tag: None,
        source: address(1),
        destination: address(2),
        ecn: 0,
    };
    let mut frame = vec![0; headers.len()];
    headers.write_back(&mut frame, &datagram).expect("the room is as long as the headers");
    [frame, datagram].concat()
}

fn wire(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire");
    let frame = frame(48);
    group.bench_function("headers of a frame read", |b| b.iter(|| parse(black_box(frame.as_slice()))));
    group.bench_function("Pilot's header read", |b| b.iter(|| Header::parse(black_box(&frame[42..]))));
    let mut messages = benching::frames(1447);
    group.bench_function("a packet of 19-byte messages written and read", |b| b.iter(|| assert!(messages() > 50)));
}

fn bookkeeping(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    for (name, gap) in [("in order", 0), ("every tenth is missing", 10)] {
        let mut mark = benching::replay(gap);
        group.bench_function(name, |b| b.iter(|| assert!(mark())));
    }
    group.finish();
    let mut acks = benching::acks();
    c.bench_function("ack of each eighth packet", |b| b.iter(&mut acks));
}

/// Userspace's part of a frame's way through the rings: the kernel's is played in between, and not measured.
fn ring(c: &mut Criterion) {
    const BATCH: usize = 32;
    let mut group = c.benchmark_group("ring");
    let frame = frame(48);
    let (mut xsk, kernel) = testing::over_memory(&Options::default()).expect("memory for rings");
    xsk.refill().expect("a ring in memory has no device that could be down");
    group.bench_function("32 frames received", |b| {
        b.iter_custom(|rounds| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..rounds {
                (0..BATCH).for_each(|_| assert!(kernel.deliver(&frame)));
                let start = std::time::Instant::now();
                xsk.refill().expect("as above");
                let taken = xsk.recv(BATCH, |frame| _ = black_box(frame));
                spent += start.elapsed();
                assert_eq!(taken, BATCH);
            }
            spent
        });
    });
    group.bench_function("32 frames sent", |b| {
        b.iter_custom(|rounds| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..rounds {
                let start = std::time::Instant::now();
                for _ in 0..BATCH {
                    let mut chunk = xsk.tx_chunk().expect("all were completed");
                    chunk.bytes()[..frame.len()].copy_from_slice(&frame);
                    chunk.send(0, frame.len());
                }
                assert!(xsk.flush().is_ok());
                spent += start.elapsed();
                assert_eq!(kernel.transmit_all().len(), BATCH);
            }
            spent
        });
    });
}

criterion_group!(benches, aead, wire, bookkeeping, ring);
criterion_main!(benches);
