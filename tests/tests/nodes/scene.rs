//! Where a test takes place: two namespaces, a veth pair and a directory, all gone when dropped.
//!
//! ```text
//!   namespace pilot-nodes-PID-N-a                namespace pilot-nodes-PID-N-b
//!   veth-a 10.77.0.1/24 fd00::1/64  ◄──────────► veth-b 10.77.0.2/24 fd00::2/64
//! ```

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::pilot;

/// What names of namespaces and directories begin with; process id and number of the scene follow.
const PREFIX: &str = "pilot-nodes-";
/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

/// One of the two ends of the veth pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    A,
    B,
}

impl End {
    pub(crate) fn interface(self) -> &'static str {
        match self {
            Self::A => "veth-a",
            Self::B => "veth-b",
        }
    }

    /// Where a node at this end listens unless its configuration says something else.
    pub(crate) fn listen(self) -> &'static str {
        match self {
            Self::A => "10.77.0.1:4242",
            Self::B => "10.77.0.2:4242",
        }
    }
}

/// Namespaces and directory of one test.
pub(crate) struct Scene {
    tag: String,
    directory: PathBuf,
}

impl Scene {
    /// `None`, and a line on stderr, when there is no right to make namespaces.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::with_queues(test, [1, 1])
    }

    /// Devices with so many queues at each end, in both directions.
    pub(crate) fn with_queues(test: &str, queues: [u32; 2]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: {test}: needs root, to make network namespaces");
            return None;
        }
        remove_stale();
        let tag = format!("{PREFIX}{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&tag);
        fs::DirBuilder::new().mode(0o700).create(&directory).expect("a directory of this name is ours alone");
        let scene = Self { tag, directory };
        let [a, b] = [End::A, End::B].map(|end| scene.namespace(end));
        tool("ip", &["netns", "add", &a]);
        tool("ip", &["netns", "add", &b]);
        // Made inside the namespaces, so that no device of this name is ever seen, or clashes, outside.
        let [queues_a, queues_b] = queues.map(|count| count.to_string());
        let queues_a = ["numrxqueues", &queues_a, "numtxqueues", &queues_a];
        let queues_b = ["numrxqueues", &queues_b, "numtxqueues", &queues_b];
        let [own, peer] = [["link", "add", "veth-a", "netns", &a], ["peer", "name", "veth-b", "netns", &b]];
        tool("ip", &[&own[..], &queues_a, &["type", "veth"], &peer, &queues_b].concat());
        for (end, last) in [(End::A, 1), (End::B, 2)] {
            let device = end.interface();
            scene.ip(end, &["address", "add", &format!("10.77.0.{last}/24"), "dev", device]);
            // Without duplicate address detection, during which the address cannot be bound.
            scene.ip(end, &["address", "add", &format!("fd00::{last}/64"), "dev", device, "nodad"]);
            scene.ip(end, &["link", "set", "lo", "up"]);
            scene.ip(end, &["link", "set", device, "up"]);
        }
        Some(scene)
    }

    /// The directory that nodes run in, and that their configurations and keys are in.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace's name.
    pub(crate) fn namespace(&self, end: End) -> String {
        format!("{}-{}", self.tag, if end == End::A { "a" } else { "b" })
    }

    /// Runs `ip` in the namespace of one end; what it prints.
    pub(crate) fn ip(&self, end: End, arguments: &[&str]) -> String {
        tool("ip", &[&["-n", &self.namespace(end)], arguments].concat())
    }

    /// Runs `nft` in the namespace of one end; what it prints.
    pub(crate) fn nft(&self, end: End, arguments: &[&str]) -> String {
        tool("ip", &[&["netns", "exec", &self.namespace(end), "nft"], arguments].concat())
    }

    /// Packets that the counter `name` of table `inet test` at one end has seen.
    pub(crate) fn nft_packets(&self, end: End, name: &str) -> u64 {
        let json: Value = serde_json::from_str(&self.nft(end, &["-j", "list", "counter", "inet", "test", name]))
            .expect("nft -j prints JSON");
        let entries = json["nftables"].as_array().expect("nft's list");
        entries.iter().find_map(|entry| entry["counter"]["packets"].as_u64()).expect("the counter")
    }

    /// The id of the XDP program on an end's device.
    pub(crate) fn xdp_program(&self, end: End) -> Option<u64> {
        let json: Value = serde_json::from_str(&self.ip(end, &["-j", "link", "show", "dev", end.interface()]))
            .expect("ip -j prints JSON");
        match &json[0]["xdp"] {
            Value::Null => None,
            xdp => Some(xdp["prog"]["id"].as_u64().expect("an attached program has an id")),
        }
    }

    /// A UDP socket in the namespace of one end.
    pub(crate) fn socket(&self, end: End, address: &str) -> UdpSocket {
        let file = File::open(Path::new(NETNS_DIR).join(self.namespace(end))).expect("the namespace is there");
        let address: SocketAddr = address.parse().expect("an address");
        // A socket stays where it was made; the thread that went there ends.
        let made = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            UdpSocket::bind(address).expect("the address is this end's and free")
        });
        made.join().expect("the socket was made")
    }

    /// A file of `len` bytes that do not repeat in any period a transport could hide an error behind.
    pub(crate) fn file(&self, name: &str, len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = vec![0; len];
        for word in bytes.chunks_mut(8) {
            // xorshift64* (Vigna 2016)
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()[..word.len()]);
        }
        fs::write(self.directory.join(name), &bytes).expect("the scene's directory is writable");
        bytes
    }

    /// The configuration of a node called `name`, with new keys unless it has some; to be completed and written.
    pub(crate) fn node(&self, name: &str, end: End) -> Draft<'_> {
        self.key(name);
        let general = format!("identity = \"{name}.key\"\naddress = \"{}\"\n", overlay_address(name));
        let listen = end.listen().to_owned();
        let interface = Some(end.interface().to_owned());
        Draft { scene: self, name: name.to_owned(), end, general, listen, interface, peers: String::new() }
    }

    /// A node's public key; the keys are made when it is first asked for.
    pub(crate) fn key(&self, name: &str) -> String {
        let public = self.directory.join(format!("{name}.pub"));
        if let Ok(key) = fs::read_to_string(&public) {
            return key;
        }
        let identity = self.directory.join(format!("{name}.key"));
        let program = pilot::executable().to_string_lossy();
        let said = tool(&program, &["keygen", "--json", "--out", &identity.to_string_lossy()]);
        let said: Value = serde_json::from_str(&said).expect("keygen prints an object");
        let key = said["public_key"].as_str().expect("keygen prints the public key");
        fs::write(public, key).expect("the scene's directory is writable");
        key.to_owned()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A device goes with its namespace, and with the device its peer. Errors leave what the next run removes.
        for end in [End::A, End::B] {
            let _ = Command::new("ip").args(["netns", "delete", &self.namespace(end)]).output();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A configuration in the making.
pub(crate) struct Draft<'a> {
    scene: &'a Scene,
    name: String,
    end: End,
    general: String,
    listen: String,
    interface: Option<String>,
    peers: String,
}

/// A node whose configuration is written.
pub(crate) struct Node {
    pub(crate) end: End,
    pub(crate) config: PathBuf,
}

impl Draft<'_> {
    /// Another address than the end's own.
    pub(crate) fn listen(mut self, listen: &str) -> Self {
        self.listen = listen.to_owned();
        self
    }

    /// Another device than the end's own, or none.
    pub(crate) fn interface(mut self, interface: Option<&str>) -> Self {
        self.interface = interface.map(str::to_owned);
        self
    }

    /// One more line before the peers.
    pub(crate) fn line(mut self, line: &str) -> Self {
        self.general += line;
        self.general += "\n";
        self
    }

    /// Without AF_XDP.
    pub(crate) fn udp(self) -> Self {
        self.line("datapath = \"udp\"")
    }

    /// A peer, with its address where it is known.
    pub(crate) fn peer(self, name: &str, endpoint: Option<&str>) -> Self {
        let key = self.scene.key(name);
        self.peer_with_key(name, &key, endpoint)
    }

    /// A peer with a key that may not be its own.
    pub(crate) fn peer_with_key(mut self, name: &str, key: &str, endpoint: Option<&str>) -> Self {
        let address = overlay_address(name);
        write!(self.peers, "[[peers]]\nname = \"{name}\"\naddress = \"{address}\"\nkey = \"{key}\"\n")
            .and_then(|()| endpoint.map_or(Ok(()), |at| writeln!(self.peers, "endpoint = \"{at}\"")))
            .expect("a string takes all");
        self
    }

    pub(crate) fn write(self) -> Node {
        let interface = self.interface.map_or(String::new(), |name| format!("interface = \"{name}\"\n"));
        let text = format!("{}listen = \"{}\"\n{interface}{}", self.general, self.listen, self.peers);
        let config = self.scene.directory.join(format!("{}.toml", self.name));
        fs::write(&config, text).expect("the scene's directory is writable");
        Node { end: self.end, config }
    }
}

/// Made from the name's bytes, so that each name has its own.
fn overlay_address(name: &str) -> String {
    let number = name.bytes().fold(0_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("0:0000.0000.{number:04X}")
}

/// Runs a program that must succeed; what it prints.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}, which these tests use: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}

/// Removes what runs that were killed left behind: namespaces and directories named for a process that is no more.
fn remove_stale() {
    for parent in [PathBuf::from(NETNS_DIR), std::env::temp_dir()] {
        let Ok(entries) = fs::read_dir(&parent) else { continue };
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            if Path::new("/proc").join(pid.to_string()).exists() {
                continue;
            }
            // Another test of another run may be at it too.
            if parent == Path::new(NETNS_DIR) {
                let _ = Command::new("ip").args(["netns", "delete", &name]).output();
            } else {
                let _ = fs::remove_dir_all(parent.join(name));
            }
        }
    }
}
