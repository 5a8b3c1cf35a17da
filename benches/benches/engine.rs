//! Two endpoints in memory: what the transport costs without a network. Both ends run on the one core, so that a figure
//! is what sender and receiver cost together.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{Config, ConnectionHandle, Ecn, Endpoint, Event, Instant, PeerConfig, PeerId, Read};

struct Pair {
    ends: [Endpoint; 2],
    peers: [PeerId; 2],
    now: Instant,
    buffer: Vec<u8>,
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8 + 1], 4242))
}

fn identity(n: u8) -> Identity {
    Identity::from_secrets([n; 32], [n + 100; 32]).expect("any 32 bytes are a secret")
}

impl Pair {
    fn new() -> Self {
        let ends = [0, 1].map(|n: u8| {
            let overlay = OverlayAddress { network: 0, node: u32::from(n) };
            let mut config = Config::new(identity(n + 1), overlay, [n; 16], Duration::from_secs(1 << 30));
            config.max_datagram = 1472;
            let mut endpoint = Endpoint::new(config, [n; 32]);
            let peer = endpoint.add_peer(PeerConfig {
                key: identity(2 - n).public_key(),
                address: overlay,
                endpoint: Some(address(1 - usize::from(n))),
            });
            (endpoint, peer)
        });
        let [(a, to_b), (b, to_a)] = ends;
        Self { ends: [a, b], peers: [to_b, to_a], now: Instant::from_nanos(1), buffer: vec![0; 1472] }
    }

    /// Delivers what there is until both are silent, a microsecond a round.
    fn exchange(&mut self) {
        let mut any = true;
        while any {
            any = false;
            self.now += Duration::from_micros(1);
            for from in 0..2 {
                while let Some(transmit) = self.ends[from].poll_transmit(self.now, &mut self.buffer) {
                    any = true;
                    let (source, local) = (address(from), address(1 - from));
                    self.ends[1 - from].handle_datagram(
                        self.now,
                        source,
                        local,
                        Ecn::NotEct,
                        &self.buffer[..transmit.len],
                    );
                }
            }
        }
    }

    fn connected(&mut self) -> [ConnectionHandle; 2] {
        let ours = self.ends[0].connect(self.now, self.peers[0], 7).expect("a known peer");
        self.exchange();
        let theirs = std::iter::from_fn(|| self.ends[1].poll_event()).find_map(|event| match event {
            Event::Offered { connection, .. } => Some(connection),
            _ => None,
        });
        let theirs = theirs.expect("the path loses nothing");
        self.ends[1].accept(self.now, theirs).expect("just offered");
        self.exchange();
        [ours, theirs]
    }
}

fn handshake(c: &mut Criterion) {
    c.bench_function("handshake, both ends", |b| {
        b.iter_with_setup(Pair::new, |mut pair| {
            pair.ends[0].open_tunnel(pair.now, pair.peers[0]);
            pair.exchange();
            assert!(pair.ends[1].is_up(pair.peers[1]));
        });
    });
}

fn delta(c: &mut Criterion) {
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let mut message = Vec::new();
    c.bench_function("19-byte delta and its echo", |b| {
        b.iter(|| {
            for (from, connection, to) in [(0, ours, theirs), (1, theirs, ours)] {
                let sent = pair.ends[from].send_message(pair.now, connection, b"anomalies: 47 -> 48");
                sent.expect("the last one was taken");
                pair.exchange();
                message.clear();
                let taken = pair.ends[1 - from].receive_message(pair.now, to, &mut message);
                assert_eq!(taken, Ok(Some(19)));
            }
            while let Some(event) = pair.ends[0].poll_event().or_else(|| pair.ends[1].poll_event()) {
                black_box(event);
            }
        });
    });
}

fn bulk(c: &mut Criterion) {
    const BYTES: usize = 256 << 10;
    let mut pair = Pair::new();
    let [ours, theirs] = pair.connected();
    let stream = pair.ends[0].open_stream(pair.now, ours).expect("the first stream");
    let (data, mut out) = (vec![7; BYTES], vec![0; 64 << 10]);
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("256 KiB in 1472-byte datagrams", |b| {
        b.iter(|| {
            let (mut written, mut read) = (0, 0);
            while read < BYTES {
                written += pair.ends[0].write(pair.now, ours, stream, &data[written..]).unwrap_or(0);
                pair.exchange();
                while let Ok(Read::Bytes(length)) = pair.ends[1].read(pair.now, theirs, stream, &mut out) {
                    read += length;
                }
            }
            while let Some(event) = pair.ends[0].poll_event().or_else(|| pair.ends[1].poll_event()) {
                black_box(event);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, handshake, delta, bulk);
criterion_main!(benches);
