//! Two network namespaces with a veth pair between them.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use pilot_user::worker::pin::pin_to_core;

/// Where the two ends listen.
pub(crate) const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1)), 4242),
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 2)), 4242),
];
/// The device in each namespace.
pub(crate) const DEVICES: [&str; 2] = ["veth-a", "veth-b"];

/// Removed when dropped, with a directory for keys.
pub(crate) struct Scene {
    names: [String; 2],
    pub(crate) directory: PathBuf,
    /// Where the thread that made it came from.
    origin: File,
}

impl Scene {
    /// `mtu`: of both devices, in bytes.
    pub(crate) fn new(what: &str, mtu: u32) -> anyhow::Result<Self> {
        let id = std::process::id();
        let scene = Self {
            names: ["a", "b"].map(|end| format!("pilot-bench-{id}-{what}-{end}")),
            directory: std::env::temp_dir().join(format!("pilot-bench-{id}-{what}")),
            origin: File::open("/proc/thread-self/ns/net")?,
        };
        std::fs::create_dir(&scene.directory)?;
        let [a, b] = &scene.names;
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!("link add {} netns {a} type veth peer name {} netns {b}", DEVICES[0], DEVICES[1]))?;
        for (end, name) in scene.names.iter().enumerate() {
            ip(&format!("-n {name} address add {}/24 dev {}", ADDRESSES[end].ip(), DEVICES[end]))?;
            ip(&format!("-n {name} link set {} mtu {mtu} up", DEVICES[end]))?;
        }
        Ok(scene)
    }

    /// Moves the calling thread into one end's namespace, and to a core of its own.
    pub(crate) fn enter(&self, end: usize) -> anyhow::Result<()> {
        let namespace = File::open(format!("/run/netns/{}", self.names[end]))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        pin_to_core(end)?;
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Back from one of those that go now.
        let _ = setns(&self.origin, CloneFlags::CLONE_NEWNET);
        for name in &self.names {
            // What is not there need not be removed.
            let _ = ip(&format!("netns delete {name}"));
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("running `ip` (package iproute2)")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}
