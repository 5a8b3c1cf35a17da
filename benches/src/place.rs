//! Where an agent runs: a namespace that `cargo xtask bench` made, with one device.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// The device of every namespace.
pub(crate) const DEVICE: &str = "eth0";
/// The port on which agents are asked.
pub(crate) const PORT: u16 = 4242;

/// Namespaces by name, in the order of the agents.
#[derive(Clone, Debug)]
pub(crate) struct Places(Vec<String>);

/// What a device has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

impl Places {
    pub(crate) fn new(names: Vec<String>, least: usize) -> anyhow::Result<Self> {
        ensure!(names.len() >= least, "--namespaces: given {}, needed: {least}", names.len());
        Ok(Self(names))
    }

    /// Where an agent is asked; `cargo xtask bench` gives these addresses.
    pub(crate) fn address(agent: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 77, 0, agent as u8 + 1), PORT))
    }

    /// Moves the calling thread into an agent's namespace. Threads that it starts are there too.
    pub(crate) fn enter(&self, agent: usize) -> anyhow::Result<()> {
        let path = format!("/run/netns/{}", self.0[agent]);
        let namespace = File::open(&path).with_context(|| format!("opening {path}"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {path}"))
    }

    /// What an agent's device has sent: each frame is counted once, where it is sent, headers included.
    pub(crate) fn sent(&self, agent: usize) -> anyhow::Result<Sent> {
        // A thread of its own, which ends where it went.
        std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                self.enter(agent)?;
                parse(&std::fs::read_to_string("/proc/thread-self/net/dev")?).context("no counters of the device")
            });
            read.join().unwrap_or_else(|_| Err(anyhow::anyhow!("reading counters")))
        })
    }

    /// Bytes that all devices have sent.
    pub(crate) fn sent_bytes(&self) -> anyhow::Result<u64> {
        (0..self.0.len()).map(|agent| Ok(self.sent(agent)?.bytes)).sum()
    }
}

/// The device's line of `/proc/net/dev`: after the name eight counters of what was received, then those of what was sent.
fn parse(table: &str) -> Option<Sent> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    let mut counters = line.split_whitespace().skip(8).map(str::parse);
    Some(Sent { bytes: counters.next()?.ok()?, packets: counters.next()?.ok()? })
}

/// UDP datagrams that the kernel has given to sockets in the calling thread's namespace: what came by AF_XDP is not among them.
pub(crate) fn udp_datagrams() -> anyhow::Result<u64> {
    parse_udp(&std::fs::read_to_string("/proc/thread-self/net/snmp")?).context("no UDP counters")
}

/// The second of two lines: the first has the counters' names.
fn parse_udp(table: &str) -> Option<u64> {
    let line = table.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1)?;
    line.split(' ').next()?.parse().ok()
}

/// Processor time of this process so far, user and system.
pub(crate) fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(us.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_counts_what_it_sends() {
        let table = "Inter-|   Receive                        |  Transmit\n face |bytes packets errs\n\
                     \x20   lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n  eth0: 10 20 0 0 0 0 0 0 30 40 0 0 0 0 0 0\n";
        assert_eq!(parse(table), Some(Sent { bytes: 30, packets: 40 }));
        assert_eq!(parse("Inter-|\n lo: 1\n"), None);
    }

    #[test]
    fn the_kernel_counts_datagrams_of_its_sockets() {
        let table = "Tcp: Rto Min\nTcp: 1 2\nUdp: InDatagrams NoPorts\nUdp: 17 3\nUdpLite: InDatagrams\nUdpLite: 5\n";
        assert_eq!(parse_udp(table), Some(17));
        assert_eq!(parse_udp("Udp: InDatagrams\n"), None);
        let before = udp_datagrams().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"?", socket.local_addr().unwrap()).unwrap();
        socket.recv(&mut [0; 1]).unwrap();
        assert!(udp_datagrams().unwrap() > before);
    }
}
