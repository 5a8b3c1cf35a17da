//! The plain echo that Pilot is compared with: one UDP datagram there and back, both sides spinning on a
//! non-blocking socket, nothing encrypted, acknowledged or repeated.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Bytes of a datagram: a delta's payload.
const PAYLOAD_LEN: usize = 19;
/// After how long, in seconds, an unanswered datagram is given up: far beyond any round trip in one machine.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// The longest the asking takes, in seconds, whatever the count: half a million round trips here, and bearable.
const ASK_MAX: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
    /// The core to run on
    #[arg(long, global = true, default_value_t = 0)]
    core: usize,
}

#[derive(clap::Subcommand)]
enum Role {
    /// Answers until it is ended; says `ready` when it can
    Serve { listen: SocketAddr },
    /// Asks `count` times and prints the round trips as JSON
    Ask { server: SocketAddr, count: u32 },
}

/// What the asking found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RoundTrips {
    /// How many were answered.
    pub(crate) count: usize,
    /// The median, µs.
    pub(crate) p50_us: f64,
    /// What 99 of 100 stay within, µs.
    pub(crate) p99_us: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(args.core).with_context(|| format!("core {}", args.core))?;
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("pinning to core {}", args.core))?;
    match args.role {
        Role::Serve { listen } => serve(listen),
        Role::Ask { server, count } => {
            println!("{}", serde_json::to_string(&ask(server, count)?)?);
            Ok(())
        }
    }
}

fn serve(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("binding {listen}"))?;
    socket.set_nonblocking(true)?;
    println!("ready");
    let mut datagram = [0; PAYLOAD_LEN];
    loop {
        match socket.recv_from(&mut datagram) {
            // What cannot be sent is a loss for the asker to count.
            Ok((len, from)) => drop(socket.send_to(&datagram[..len], from)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            // An asker that has gone: its port answers with ICMP.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("receiving"),
        }
    }
}

fn ask(server: SocketAddr, count: u32) -> Result<RoundTrips> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    // The first round trip resolves the neighbour's link address: not what is measured.
    if exchange(&socket, 0)?.is_none() {
        bail!("{server} does not answer");
    }
    let start = Instant::now();
    let mut answered = Vec::with_capacity(count as usize);
    for number in 1..=count {
        answered.extend(exchange(&socket, number)?);
        if start.elapsed() > ASK_MAX {
            break;
        }
    }
    if answered.is_empty() {
        bail!("{server} answered none of {count}");
    }
    answered.sort_unstable();
    Ok(RoundTrips { count: answered.len(), p50_us: quantile_us(&answered, 50), p99_us: quantile_us(&answered, 99) })
}

/// One round trip; `None` when it was lost. The number tells a late answer from the one that is awaited.
fn exchange(socket: &UdpSocket, number: u32) -> io::Result<Option<Duration>> {
    let mut datagram = [b'.'; PAYLOAD_LEN];
    datagram[..4].copy_from_slice(&number.to_be_bytes());
    let mut answer = [0; PAYLOAD_LEN];
    let start = Instant::now();
    socket.send(&datagram)?;
    loop {
        match socket.recv(&mut answer) {
            Ok(_) if answer == datagram => return Ok(Some(start.elapsed())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
        if start.elapsed() > LOST_AFTER {
            return Ok(None);
        }
    }
}

/// The smallest of `sorted`, which is not empty, that `percent` of them do not exceed, in µs.
fn quantile_us(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted[rank - 1].as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(quantile_us(&sorted, 50).round(), 100.0);
        assert_eq!(quantile_us(&sorted, 99).round(), 198.0);
        assert_eq!(quantile_us(&sorted[..1], 99).round(), 1.0);
    }
}
