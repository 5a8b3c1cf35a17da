//! The round trip of a 19-byte delta over veth, both ends spinning: Pilot over AF_XDP and over UDP (reliable, encrypted), and
//! what they are measured against in the same run: AF_XDP alone and a plain UDP socket (neither reliable nor encrypted).
//! Needs root, because it makes network namespaces. `cargo bench --package pilot-benches --bench echo`.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

mod configs;
mod pilot;
mod raw;
mod scene;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use scene::{ADDRESSES, Scene};

/// Ethernet's.
const MTU: u32 = 1500;

const DELTA: &[u8; 19] = b"anomalies: 47 -> 48";

/// Runs `server` in the second namespace on core 1 while `client` runs in the first on core 0, and ends it after. The client
/// runs on this thread, because criterion does not leave it.
fn beside(
    scene: &Scene,
    server: impl FnOnce(&AtomicBool) -> anyhow::Result<()> + Send,
    client: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let stop = AtomicBool::new(false);
    let stopped = &stop;
    std::thread::scope(|threads| {
        let server = threads.spawn(move || scene.enter(1).and_then(|()| server(stopped)));
        let client = scene.enter(0).and_then(|()| client());
        stop.store(true, Ordering::Relaxed);
        let server = server.join().unwrap_or_else(|_| bail!("the server panicked"));
        client.context("client").and(server.context("server"))
    })
}

fn udp_server(stop: &AtomicBool) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(ADDRESSES[1])?;
    socket.set_nonblocking(true)?;
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from)?;
        }
    }
    Ok(())
}

/// Looks for an answer before a datagram is sent again: some 100 ms, so that one that was lost on the way costs a sample and
/// not the run.
const LOOKS: u32 = 500_000;

fn udp_round_trip(socket: &UdpSocket) -> anyhow::Result<()> {
    loop {
        socket.send(DELTA)?;
        for _ in 0..LOOKS {
            match socket.recv(&mut [0; 64]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                received => return received.map(|_| ()).map_err(Into::into),
            }
        }
    }
}

fn echo(c: &mut Criterion) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: echo: network namespaces need root");
        return;
    }
    let mut group = c.benchmark_group("19-byte echo");
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    if let Err(error) = all(&mut group) {
        eprintln!("failed: {error:#}");
        std::process::exit(1);
    }
    group.finish();
}

fn all(group: &mut BenchmarkGroup<'_, WallTime>) -> anyhow::Result<()> {
    let scene = Scene::new("raw", MTU)?;
    beside(&scene, raw::server, || {
        raw::client(|end| {
            group.bench_function("AF_XDP alone", |b| b.iter(|| end.round_trip(DELTA)));
        })
    })?;
    drop(scene);
    let scene = Scene::new("plain", MTU)?;
    beside(&scene, udp_server, || {
        let socket = UdpSocket::bind(ADDRESSES[0])?;
        socket.connect(ADDRESSES[1])?;
        socket.set_nonblocking(true)?;
        // The other end may not be there yet; what is lost then is asked for again.
        while udp_round_trip(&socket).is_err() {}
        group.bench_function("UDP socket", |b| b.iter(|| udp_round_trip(&socket)));
        Ok(())
    })?;
    drop(scene);
    for (name, datapath) in [("Pilot over AF_XDP", "xdp"), ("Pilot over UDP", "udp")] {
        let scene = Scene::new(datapath, MTU)?;
        let configs = configs::both(&scene, datapath)?;
        beside(
            &scene,
            |stop| pilot::server(&configs[1], stop),
            || {
                pilot::client(&configs[0], |end| {
                    group.bench_function(name, |b| b.iter(|| end.round_trip(DELTA)));
                })
            },
        )?;
    }
    Ok(())
}

criterion_group!(benches, echo);
criterion_main!(benches);
