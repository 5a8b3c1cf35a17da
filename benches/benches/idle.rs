//! What an idle tunnel costs in memory: one node, and tunnels from so many peers that were used and are at rest.
//! `cargo bench --package pilot-benches --bench idle [-- TUNNELS]`, usually 100,000 of them.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use pilot_engine::{Ecn, Endpoint, Event, Instant, PeerId};

#[path = "nodes/mod.rs"]
mod nodes;

const TUNNELS: u32 = 100_000;

/// Longer than any timer of a tunnel at rest runs, but for the idle time-out, which the nodes of benches have longer still.
const REST: Duration = Duration::from_secs(100);

/// From one tunnel to the next: so that most have come to rest before the last is made, as memory that was used once is not given
/// back to the system.
const PAUSE: Duration = Duration::from_millis(100);

/// The most that an idle tunnel may take.
const BYTES_MAX: u64 = 3 << 10;

fn main() -> anyhow::Result<()> {
    // Cargo passes `--bench`.
    let tunnels = match std::env::args().skip(1).find(|argument| !argument.starts_with("--")) {
        Some(text) => text.parse().with_context(|| format!("'{text}' is no number of tunnels"))?,
        None => TUNNELS,
    };
    let mut node = nodes::endpoint(0, nodes::config(0));
    let mut now = Instant::from_nanos(1);
    let before = resident_bytes()?;
    let peers = (1..=tunnels).map(|n| {
        now += PAUSE;
        use_once(&mut node, n, now)
    });
    let peers: Vec<PeerId> = peers.collect::<anyhow::Result<_>>()?;
    let used = resident_bytes()?;
    now += REST;
    settle(&mut node, now);
    let after = resident_bytes()?;
    let up = peers.iter().filter(|peer| node.is_up(**peer)).count();
    ensure!(up == peers.len(), "only {up} of {tunnels} tunnels are up");
    let each = |bytes: u64| bytes.saturating_sub(before) / u64::from(tunnels.max(1));
    println!("{tunnels} tunnels up and idle: {} bytes each, {} just after use", each(after), each(used));
    ensure!(each(after) <= BYTES_MAX, "more than {BYTES_MAX} bytes");
    Ok(())
}

/// A peer that shakes hands, sends a message, gets its echo, closes its connection, and is heard of no more.
fn use_once(node: &mut Endpoint, n: u32, now: Instant) -> anyhow::Result<PeerId> {
    let mut ends = [node, &mut nodes::endpoint(n, nodes::config(n))];
    let known = ends[0].add_peer(nodes::known(n, false));
    let server = ends[1].add_peer(nodes::known(0, true));
    ends[1].connect(now, server, 7)?;
    let mut message = Vec::new();
    let mut echoed = false;
    for round in 0..100 {
        // Long enough in all for acks that are owed.
        let now = now + Duration::from_micros(50 * round);
        for from in [1, 0] {
            let mut datagram = [0; 1472];
            while let Some(sent) = ends[from].poll_transmit(now, &mut datagram) {
                let addresses = [0, n].map(nodes::address);
                let (source, destination) = (addresses[from], addresses[1 - from]);
                ends[1 - from].handle_datagram(now, source, destination, Ecn::NotEct, &datagram[..sent.len]);
            }
        }
        for (at, end) in ends.iter_mut().enumerate() {
            end.poll_timeout();
            end.handle_timeout(now);
            while let Some(event) = end.poll_event() {
                match event {
                    Event::Offered { connection, .. } => end.accept(now, connection)?,
                    Event::Connected { connection } => end.send_message(now, connection, b"anomalies: 47 -> 48")?,
                    Event::MessagesReadable { connection } => {
                        message.clear();
                        while end.receive_message(now, connection, &mut message)?.is_some() {}
                        if at == 0 {
                            end.send_message(now, connection, &message)?;
                        } else {
                            end.close(now, connection, 0, "");
                            echoed = true;
                        }
                    }
                    Event::Closed { connection, .. } => end.close(now, connection, 0, ""),
                    _ => {}
                }
            }
        }
    }
    if !echoed {
        bail!("tunnel {n} did not come up");
    }
    Ok(known)
}

fn settle(node: &mut Endpoint, now: Instant) {
    let mut datagram = [0; 1472];
    node.poll_timeout();
    node.handle_timeout(now);
    while node.poll_transmit(now, &mut datagram).is_some() {}
    while node.poll_event().is_some() {}
}

/// What the process holds, aws-lc's own memory included (proc_pid_statm(5)).
fn resident_bytes() -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("no second field in statm")?.parse()?;
    Ok(pages * 4096)
}
