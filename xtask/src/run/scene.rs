//! Where the run takes place: namespaces, veth pairs, and a directory, all gone when dropped.
//!
//! ```text
//!   namespace pilot-run-PID-a            namespace pilot-run-PID-b
//!   veth-a 10.77.0.1/24  ◄────────────►  veth-b 10.77.0.2/24         MTU 1500
//! ```
//!
//! and for three, one in the middle with a veth pair to each of the others.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{Pid, geteuid};

use crate::process::{command, tied};

/// What names of namespaces and directories begin with; the process id follows.
pub(crate) const PREFIX: &str = "pilot-run-";
/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";
/// The UDP port of a node where it has an address of its own; the first of several there.
const PORT: u16 = 4242;
/// Bytes: Ethernet's, which every network has.
pub(crate) const MTU: &str = "1500";

/// A place where processes run.
#[derive(Debug)]
pub(crate) struct End {
    namespace: Option<Namespace>,
    /// The network device, where the place has one of its own.
    pub(crate) interface: Option<String>,
    /// Where its process listens.
    pub(crate) address: SocketAddr,
    /// The core its process is pinned to.
    pub(crate) core: usize,
}

impl End {
    fn in_namespace(name: &str, last: u8, core: usize) -> Result<Self> {
        Ok(Self {
            namespace: Some(Namespace::new(format!("{PREFIX}{}-{name}", process::id()))?),
            interface: Some(format!("veth-{name}")),
            address: SocketAddr::from((Ipv4Addr::new(10, 77, 0, last), PORT)),
            core,
        })
    }

    /// An end on another machine, with a device that it has made.
    pub(crate) fn elsewhere(device: &str, address: SocketAddr, core: usize) -> Self {
        Self { namespace: None, interface: Some(device.to_owned()), address, core }
    }

    fn netns(&self) -> &str {
        self.namespace.as_ref().map_or("", |namespace| &namespace.0)
    }

    fn add_address(&self, device: &str, prefix: u8) -> Result<()> {
        ip(&["-n", self.netns(), "address", "add", &format!("{}/{prefix}", self.address.ip()), "dev", device])?;
        Ok(())
    }

    /// The command that runs `program` here, ending with us.
    pub(crate) fn command(&self, program: &Path) -> Result<Command> {
        let mut words: Vec<String> = Vec::new();
        if let Some(Namespace(name)) = &self.namespace {
            // Sets /sys as well, where network devices are described. It execs: the child's id is the program's.
            words.extend(["ip", "netns", "exec", name].map(str::to_owned));
        }
        // Last before the program, for nothing in between can clear the setting.
        words.extend(tied()?);
        let mut command = command(&words[0]);
        command.args(&words[1..]).arg(program);
        Ok(command)
    }

    /// Bytes that went over the device so far, both ways, with Ethernet's headers; `None`: the place has none of its own.
    pub(crate) fn wire_bytes(&self) -> Result<Option<u64>> {
        let Some(interface) = &self.interface else { return Ok(None) };
        let shown = ip(&["-n", self.netns(), "-j", "-s", "link", "show", "dev", interface])?;
        let shown: serde_json::Value = serde_json::from_str(&shown).context("reading what ip says of a device")?;
        let bytes = |way: &str| shown[0]["stats64"][way]["bytes"].as_u64().context("ip says no byte counts");
        Ok(Some(bytes("rx")? + bytes("tx")?))
    }

    /// The prefix of the addresses that may talk to this end.
    pub(crate) fn allow_from(&self) -> &'static str {
        if self.address.ip().is_loopback() { "127.0.0.0/8" } else { "10.77.0.0/24" }
    }
}

/// Two ends joined by a veth pair, each in a namespace of its own. Needs root and iproute2.
pub(crate) fn veth_pair(names: [&str; 2]) -> Result<[End; 2]> {
    let cores = two_cores()?;
    let ends = [End::in_namespace(names[0], 1, cores[0])?, End::in_namespace(names[1], 2, cores[1])?];
    let [a, b] = names.map(|name| format!("veth-{name}"));
    join((&ends[0], &a), (&ends[1], &b))?;
    ends[0].add_address(&a, 24)?;
    ends[1].add_address(&b, 24)?;
    Ok(ends)
}

/// An end in the middle, which has no device of its own, and two that are joined to it and to nobody else by a veth pair each.
pub(crate) fn star(names: [&str; 3]) -> Result<[End; 3]> {
    let [core_middle, core] = two_cores()?;
    let mut middle = End::in_namespace(names[0], 1, core_middle)?;
    middle.interface = None;
    let outer = [End::in_namespace(names[1], 2, core)?, End::in_namespace(names[2], 3, core)?];
    for (end, name) in outer.iter().zip(&names[1..]) {
        let (there, here) = (format!("to-{name}"), format!("veth-{name}"));
        join((&middle, &there), (end, &here))?;
        middle.add_address(&there, 32)?;
        end.add_address(&here, 24)?;
        ip(&["-n", middle.netns(), "route", "add", &end.address.ip().to_string(), "dev", &there])?;
    }
    let [b, c] = outer;
    Ok([middle, b, c])
}

/// A veth pair. Made inside the namespaces, so that no device of this name is ever seen, or clashes, outside.
fn join(a: (&End, &str), b: (&End, &str)) -> Result<()> {
    let [netns_a, netns_b] = [a.0.netns(), b.0.netns()];
    ip(&[
        "link", "add", a.1, "mtu", MTU, "netns", netns_a, "type", "veth", "peer", "name", b.1, "mtu", MTU, "netns",
        netns_b,
    ])?;
    for (end, device) in [a, b] {
        ip(&["-n", end.netns(), "link", "set", "lo", "up"])?;
        ip(&["-n", end.netns(), "link", "set", device, "up"])?;
    }
    Ok(())
}

/// Ends on the loopback device, told apart by their ports. Needs nothing.
pub(crate) fn loopback<const N: usize>() -> Result<[End; N]> {
    let cores = two_cores()?;
    let ports = free_ports(N)?;
    Ok(std::array::from_fn(|at| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[at]));
        End { namespace: None, interface: None, address, core: cores[at.min(1)] }
    }))
}

/// An address for each of several processes, of which some are at the same end.
pub(crate) fn addresses(ends: &[&End]) -> Result<Vec<SocketAddr>> {
    let free = free_ports(ends.len())?;
    let address = |at: usize| {
        let mut address = ends[at].address;
        // In a namespace of ours, nobody else has a port.
        let port = if ends[at].namespace.is_some() { PORT + at as u16 } else { free[at] };
        address.set_port(port);
        address
    };
    Ok((0..ends.len()).map(address).collect())
}

/// Ports of the loopback device that differ: all are open at once. The window until the nodes bind them is accepted.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let sockets = (0..count).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    let sockets = sockets.collect::<std::io::Result<Vec<_>>>()?;
    Ok(sockets.iter().map(|socket| Ok(socket.local_addr()?.port())).collect::<std::io::Result<_>>()?)
}

/// A network namespace of ours, deleted on drop. A device in it goes with it, and with the device its peer.
#[derive(Debug)]
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new(name: String) -> Result<Self> {
        ip(&["netns", "add", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

/// A directory for keys, configurations, files and logs, readable by us alone, deleted on drop.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{}", process::id()));
        // Refuses a directory that is already there: another's could be a trap.
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

/// Removes what runs that were killed left behind: namespaces and directories named for a process that is no more.
pub(crate) fn remove_stale() -> Result<()> {
    for name in stale_in(Path::new(NETNS_DIR)) {
        ip(&["netns", "delete", &name])?;
    }
    for name in stale_in(&std::env::temp_dir()) {
        let path = std::env::temp_dir().join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw()) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn stale_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()))
        .collect()
}

/// The process that a name was made by, if it is a name of ours: `pilot-run-PID` or `pilot-run-PID-X`.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.split_once('-').map_or(rest, |(pid, _)| pid).parse().ok()
}

/// The first two cores we may run on; the same one twice where there is one.
fn two_cores() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for our cores")?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let first = cores.next().context("no core to run on")?;
    Ok([first, cores.next().unwrap_or(first)])
}

/// Runs iproute2's `ip`; what it said.
pub(crate) fn ip<S: AsRef<OsStr>>(arguments: &[S]) -> Result<String> {
    let words = || arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = match command("ip").args(arguments).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "the command `ip` is missing: install the package iproute2 (Debian, Ubuntu, Arch) or iproute \
                 (Fedora), or choose --datapath udp, which does without"
            )
        }
        output => output.with_context(|| format!("running `ip {}`", words()))?,
    };
    if !output.status.success() {
        bail!("`ip {}`: {}", words(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_process() {
        assert_eq!(owner("pilot-run-4711-a"), Some(4711));
        assert_eq!(owner("pilot-run-4711"), Some(4711));
        assert_eq!(owner("pilot-xsk-4711-a"), None, "another's");
        assert_eq!(owner("pilot-run-"), None);
        assert_eq!(owner("pilot-run-x-1"), None);
    }
}
