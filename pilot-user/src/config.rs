//! The node's configuration file: TOML, checked as a whole before anything starts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_common::address::Prefix;
use pilot_common::maps::{MAX_ALLOW_FROM, MAX_QUEUES};
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::PublicKey;
use pilot_engine::limits::{HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SOURCE_PER_SECOND, MAX_LANES, REKEY_AFTER_TIME};
use serde::{Deserialize, Serialize};

/// Longest name of a network device, in bytes (IFNAMSIZ less the final zero).
const INTERFACE_NAME_MAX: usize = 15;

/// Queues of one node, each with a worker that should have a core. Between every two workers there are two rings of 280 KiB:
/// 66 MiB for as many as this. Lower: large machines cannot use their devices. Higher: the memory grows with the square.
const QUEUES_MAX: usize = 16;

/// Initiations a second: about what reading nothing else takes of a core (see [`HANDSHAKES_PER_SECOND`]). Higher: no limit at all.
const HANDSHAKES_PER_SECOND_MAX: u32 = 3000;

/// Time to drain unless configured: what agents need to end a task, and below what service managers wait before they kill.
const DRAIN: Duration = Duration::from_secs(5);

/// Longest time to drain. Higher: a node that was told to stop does not for longer than anybody waits.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// Why a configuration cannot be used: which field, what was given, what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read config file {file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The text is not TOML, or has a field that is unknown, missing or of another type.
    #[error("config: {0}")]
    Toml(#[from] toml::de::Error),
    /// A field's value is not allowed.
    #[error("config: `{field}`: given {given}, allowed: {allowed}")]
    Field {
        /// The field, with the peer's name where there are several.
        field: String,
        /// The value as given.
        given: String,
        /// What would have been right.
        allowed: String,
    },
}

/// Which way the operator wants datagrams to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathChoice {
    /// AF_XDP where it can be had, and else the kernel's UDP.
    #[default]
    Auto,
    /// AF_XDP, and a warning while it cannot be had.
    Xdp,
    /// The kernel's UDP only.
    Udp,
}

/// How the operator wants the XDP program attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachChoice {
    /// As the device and the number of queues suggest.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the network stack.
    Generic,
}

/// Whether this node sends bulk through the kernel's UDP, which moves up to 64 KiB at once, rather than by AF_XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BulkChoice {
    /// Where that is faster, and while there is bulk.
    #[default]
    Auto,
    /// Everything, whenever it works.
    Always,
    /// Nothing.
    Never,
}

/// A node's configuration, every field checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The identity file.
    pub identity: PathBuf,
    /// Where the node keeps the peers that it had tunnels with.
    pub recent_peers: PathBuf,
    /// Our overlay address.
    pub address: OverlayAddress,
    /// The device that XDP is attached to.
    pub interface: Option<String>,
    /// Where we receive.
    pub listen: SocketAddr,
    /// Which way datagrams shall go.
    pub datapath: DatapathChoice,
    /// How the XDP program shall be attached.
    pub attach: AttachChoice,
    /// The device's receive queues to serve, a worker each.
    pub queues: Vec<u32>,
    /// Whether bulk goes through the kernel's UDP.
    pub bulk: BulkChoice,
    /// The second UDP port, for bulk; without it: the one after `listen`'s, or any.
    pub bulk_port: Option<u16>,
    /// The core of each queue's worker; empty: wherever the scheduler puts them.
    pub cores: Vec<usize>,
    /// Initiations a second that a worker reads from anywhere; of more, only with a cookie. With 0, always.
    pub handshakes_per_second: u32,
    /// Initiations a second, with a cookie, that a worker under load reads from one source.
    pub handshakes_per_source_per_second: u32,
    /// Age at which a key under which data flowed is replaced.
    pub rekey_after: Duration,
    /// Whether strangers are told who this node is, and this node who they are (wire.md §3.5).
    pub introductions: bool,
    /// Where files are put that peers send; without it, none is received.
    pub files: Option<PathBuf>,
    /// Who may send to us; empty: everyone.
    pub allow_from: Vec<Prefix>,
    /// The peers that are known without a directory.
    pub peers: Vec<Peer>,
    /// Who may use the node on its host, and where.
    pub local: Local,
    /// Where metrics are served, on this host's loopback device; without it, nowhere but by the node's socket.
    pub metrics: Option<SocketAddr>,
}

/// The node for the applications of its host (docs/local-protocol.md).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Local {
    /// The socket's path.
    pub socket: PathBuf,
    /// Whether that is the operator's choice, and not where it is otherwise: beside the identity.
    pub is_chosen: bool,
    /// Other users than the node's own, and what each may do.
    pub users: BTreeMap<u32, User>,
    /// Whether applications may have the node hold contexts. Then one worker has all tunnels, because all followers of a context are
    /// served from one document.
    pub holds_contexts: bool,
    /// Where the durable ones of those are kept.
    pub store: PathBuf,
    /// How long applications may take to end what they have, when the node was told to stop (L2.5).
    pub drain: Duration,
}

/// What another user than the node's own may do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct User {
    /// Ports to connect to and to listen on.
    pub ports: BTreeSet<u16>,
    /// Shared contexts, of this node and of peers.
    pub contexts: UserContexts,
}

/// Names of contexts, for each thing that can be done with one. `*` at the end of a name stands for all that begin so.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserContexts {
    /// To create at this node, and to delete there.
    pub create: Vec<String>,
    /// To change.
    pub change: Vec<String>,
    /// To follow.
    pub follow: Vec<String>,
}

/// A peer that is known without a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// What the operator calls it.
    pub name: String,
    /// Its overlay address.
    pub address: OverlayAddress,
    /// Its public keys.
    pub key: PublicKey,
    /// Where to reach it; without it, the peer must come to us.
    pub endpoint: Option<SocketAddr>,
    /// Tunnels to it, each with a worker of its own as far as there are workers (wire.md W3.16).
    pub lanes: u8,
    /// Ports of this node that it may connect to; `None`: all.
    pub ports: Option<Vec<u16>>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    identity: PathBuf,
    recent_peers: Option<PathBuf>,
    address: String,
    interface: Option<String>,
    listen: String,
    #[serde(default)]
    datapath: DatapathChoice,
    #[serde(default)]
    attach: AttachChoice,
    #[serde(default = "queue_0")]
    queues: Vec<u32>,
    #[serde(default)]
    bulk: BulkChoice,
    bulk_port: Option<u16>,
    #[serde(default)]
    cores: Vec<usize>,
    handshakes_per_second: Option<u32>,
    handshakes_per_source_per_second: Option<u32>,
    rekey_after_s: Option<u64>,
    #[serde(default)]
    introductions: bool,
    files: Option<PathBuf>,
    #[serde(default)]
    allow_from: Vec<String>,
    #[serde(default)]
    peers: Vec<FilePeer>,
    #[serde(default)]
    local: FileLocal,
    metrics: Option<FileMetrics>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMetrics {
    listen: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLocal {
    socket: Option<PathBuf>,
    contexts: Option<bool>,
    store: Option<PathBuf>,
    #[serde(default)]
    users: Vec<FileUser>,
    drain_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUser {
    uid: u32,
    #[serde(default)]
    ports: BTreeSet<u16>,
    #[serde(default)]
    contexts: UserContexts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePeer {
    name: String,
    address: String,
    key: String,
    endpoint: Option<String>,
    #[serde(default = "one")]
    lanes: u8,
    ports: Option<Vec<u16>>,
}

fn queue_0() -> Vec<u32> {
    vec![0]
}

fn one() -> u8 {
    1
}

impl Config {
    /// Reads and checks a file. Paths in it are relative to the file's directory.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        Self::parse(&text, file.parent().unwrap_or(Path::new("")))
    }

    /// Checks the text of a file that lies in `directory`.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, Error> {
        let file: File = toml::from_str(text)?;
        let local = Local {
            is_chosen: file.local.socket.is_some(),
            socket: directory.join(file.local.socket.unwrap_or_else(|| file.identity.with_extension("sock"))),
            store: directory.join(file.local.store.unwrap_or_else(|| file.identity.with_extension("contexts"))),
            holds_contexts: file.local.contexts.unwrap_or(file.queues.len() == 1),
            users: file
                .local
                .users
                .into_iter()
                .map(|FileUser { uid, ports, contexts }| (uid, User { ports, contexts }))
                .collect(),
            drain: file.local.drain_s.map_or(DRAIN, Duration::from_secs),
        };
        let metrics = file.metrics.map(|metrics| socket_addr("metrics.listen", &metrics.listen)).transpose()?;
        if let Some(listen) = metrics.filter(|listen| !listen.ip().is_loopback()) {
            refuse("metrics.listen", listen, "an address of the loopback device, as 127.0.0.1:9464")?;
        }
        let config = Self {
            local,
            metrics,
            recent_peers: directory.join(file.recent_peers.unwrap_or_else(|| file.identity.with_extension("peers"))),
            identity: directory.join(file.identity),
            address: parse("address", &file.address)?,
            interface: file.interface,
            listen: socket_addr("listen", &file.listen)?,
            datapath: file.datapath,
            attach: file.attach,
            queues: file.queues,
            bulk: file.bulk,
            bulk_port: file.bulk_port,
            cores: file.cores,
            handshakes_per_second: file.handshakes_per_second.unwrap_or(HANDSHAKES_PER_SECOND),
            handshakes_per_source_per_second: file
                .handshakes_per_source_per_second
                .unwrap_or(HANDSHAKES_PER_SOURCE_PER_SECOND),
            rekey_after: file.rekey_after_s.map_or(REKEY_AFTER_TIME, Duration::from_secs),
            introductions: file.introductions,
            files: file.files.map(|files| directory.join(files)),
            allow_from: file.allow_from.iter().map(|text| parse("allow_from", text)).collect::<Result<_, _>>()?,
            peers: file.peers.into_iter().map(Peer::parse).collect::<Result<_, _>>()?,
        };
        config.check_device()?;
        config.check_workers()?;
        config.check_bulk()?;
        config.check_handshakes()?;
        config.check_peers()?;
        let drain = config.local.drain;
        if drain > DRAIN_MAX {
            refuse("local.drain_s", drain.as_secs(), format!("0 to {} seconds", DRAIN_MAX.as_secs()))?;
        }
        Ok(config)
    }

    /// The tunnels to be: each lane of each peer, and the peer's place. In the order of the peers, and lane 0 first.
    pub fn lanes(&self) -> impl Iterator<Item = (usize, &Peer, u8)> {
        self.peers.iter().enumerate().flat_map(|(place, peer)| (0..peer.lanes).map(move |lane| (place, peer, lane)))
    }

    fn check_device(&self) -> Result<(), Error> {
        let Some(name) = &self.interface else {
            return match self.datapath {
                DatapathChoice::Xdp => refuse("interface", "nothing", "a device's name, when `datapath` is \"xdp\""),
                DatapathChoice::Auto | DatapathChoice::Udp => Ok(()),
            };
        };
        let bad = name.is_empty()
            || name.len() > INTERFACE_NAME_MAX
            || name.chars().any(|c| c == '/' || c.is_whitespace() || c == '\0');
        if bad {
            return refuse(
                "interface",
                format!("{name:?}"),
                format!("a device's name as `ip link` shows it, 1 to {INTERFACE_NAME_MAX} bytes"),
            );
        }
        Ok(())
    }

    fn check_workers(&self) -> Result<(), Error> {
        let given = format!("{:?}", self.queues);
        if self.queues.is_empty() || self.queues.len() > QUEUES_MAX {
            return refuse("queues", given, format!("1 to {QUEUES_MAX} queues"));
        }
        if self.queues.iter().collect::<HashSet<_>>().len() < self.queues.len() {
            return refuse("queues", given, "each queue once");
        }
        if self.queues.iter().any(|queue| *queue >= MAX_QUEUES) {
            return refuse("queues", given, format!("numbers from 0 to {}", MAX_QUEUES - 1));
        }
        if !self.cores.is_empty() && self.cores.len() != self.queues.len() {
            return refuse("cores", format!("{:?}", self.cores), format!("{} cores, one per queue", self.queues.len()));
        }
        if self.allow_from.len() > MAX_ALLOW_FROM as usize {
            return refuse("allow_from", format!("{} prefixes", self.allow_from.len()), format!("{MAX_ALLOW_FROM}"));
        }
        Ok(())
    }

    fn check_bulk(&self) -> Result<(), Error> {
        let Some(port) = self.bulk_port else { return Ok(()) };
        if self.bulk == BulkChoice::Never {
            return refuse("bulk_port", port, "none, when `bulk` is \"never\"");
        }
        if self.datapath == DatapathChoice::Udp || self.interface.is_none() {
            return refuse("bulk_port", port, "none, without AF_XDP: the first port then takes bulk");
        }
        if port == 0 || port == self.listen.port() {
            return refuse("bulk_port", port, format!("a port other than {}", self.listen.port()));
        }
        Ok(())
    }

    fn check_handshakes(&self) -> Result<(), Error> {
        let (all, of_source) = (self.handshakes_per_second, self.handshakes_per_source_per_second);
        if all > HANDSHAKES_PER_SECOND_MAX {
            return refuse(
                "handshakes_per_second",
                all,
                format!("0 (always by cookie) to {HANDSHAKES_PER_SECOND_MAX}"),
            );
        }
        if !(1..=HANDSHAKES_PER_SECOND_MAX).contains(&of_source) {
            return refuse("handshakes_per_source_per_second", of_source, format!("1 to {HANDSHAKES_PER_SECOND_MAX}"));
        }
        // The engine takes tenths of seconds, for tests; here no fabric has a use for them.
        let (given, most) = (self.rekey_after.as_secs(), REKEY_AFTER_TIME.as_secs());
        if !(1..=most).contains(&given) {
            return refuse("rekey_after_s", given, format!("1 to {most} seconds"));
        }
        Ok(())
    }

    fn check_peers(&self) -> Result<(), Error> {
        let mut names = HashMap::new();
        let mut addresses = HashMap::from([(self.address, "this node")]);
        let mut keys = HashMap::new();
        for peer in &self.peers {
            let name = peer.name.as_str();
            if name.is_empty() {
                return refuse("peers.name", "\"\"", "a name");
            }
            if names.insert(name, ()).is_some() {
                return refuse("peers.name", format!("\"{name}\" twice"), "a different name for each peer");
            }
            if let Some(other) = addresses.insert(peer.address, name) {
                let given = format!("{}, which is {other}'s", peer.address);
                return refuse(format!("peers.{name}.address"), given, "an address of its own");
            }
            if let Some(other) = keys.insert(peer.key.identity, name) {
                return refuse(format!("peers.{name}.key"), format!("{other}'s key"), "a key of its own");
            }
            if !(1..=MAX_LANES).contains(&peer.lanes) {
                return refuse(format!("peers.{name}.lanes"), peer.lanes, format!("1 to {MAX_LANES} tunnels"));
            }
            if let Some(endpoint) = peer.endpoint {
                self.check_endpoint(&format!("peers.{name}.endpoint"), endpoint)?;
            }
        }
        Ok(())
    }

    /// Whether datagrams can go to an address, and be answered from there.
    pub(crate) fn check_endpoint(&self, field: &str, endpoint: SocketAddr) -> Result<(), Error> {
        let ip = endpoint.ip();
        if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return refuse(field, endpoint, "an address and port of one host");
        }
        if self.listen.is_ipv4() && ip.is_ipv6() {
            return refuse(field, endpoint, format!("an IPv4 address, because `listen` is {}", self.listen));
        }
        if self.listen.is_ipv6() && !self.listen.ip().is_unspecified() && ip.is_ipv4() {
            return refuse(field, endpoint, format!("an IPv6 address, because `listen` is {}", self.listen));
        }
        let allowed = |prefix: &Prefix| prefix.contains(ip.into());
        if !self.allow_from.is_empty() && !self.allow_from.iter().any(allowed) {
            return refuse(field, endpoint, "an address in `allow_from`: its answers would be dropped");
        }
        Ok(())
    }
}

impl Peer {
    /// Whether both are the same node.
    pub fn is(&self, other: &Self) -> bool {
        self.key.identity == other.key.identity
    }

    fn parse(file: FilePeer) -> Result<Self, Error> {
        let field = |name: &str| format!("peers.{}.{name}", file.name);
        Ok(Self {
            address: parse(field("address"), &file.address)?,
            key: parse(field("key"), &file.key)?,
            endpoint: file.endpoint.map(|text| socket_addr(field("endpoint"), &text)).transpose()?,
            lanes: file.lanes,
            ports: file.ports,
            name: file.name,
        })
    }
}

fn parse<T>(field: impl Into<String>, text: &str) -> Result<T, Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| Error::Field {
        field: field.into(),
        given: format!("{text:?}"),
        allowed: error.to_string(),
    })
}

fn socket_addr(field: impl Into<String>, text: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| Error::Field {
        field: field.into(),
        given: format!("{text:?}"),
        allowed: "an IP address and a port, such as 192.0.2.1:4242 or [2001:db8::1]:4242".into(),
    })
}

fn refuse(field: impl Into<String>, given: impl ToString, allowed: impl Into<String>) -> Result<(), Error> {
    Err(Error::Field { field: field.into(), given: given.to_string(), allowed: allowed.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> String {
        PublicKey { identity: [number; 32], static_key: [number; 32] }.to_string()
    }

    /// A good file, with lines replaced: the table's way to make it bad.
    fn text(replace: &[(&str, &str)]) -> String {
        let (b, c) = (key(2), key(3));
        let mut text = format!(
            r#"
identity = "a.key"
address = "0:0000.0000.0001"
interface = "veth-a"
listen = "10.77.0.1:4242"
datapath = "auto"
queues = [0]
cores = [1]
allow_from = ["10.77.0.0/24"]
[[peers]]
name = "b"
address = "0:0000.0000.0002"
key = "{b}"
endpoint = "10.77.0.2:4242"
[[peers]]
name = "c"
address = "0:0000.0000.0003"
key = "{c}"
"#
        );
        for (from, to) in replace {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        text
    }

    fn check(replace: &[(&str, &str)]) -> Result<Config, Error> {
        Config::parse(&text(replace), Path::new("/etc/pilot"))
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = check(&[]).unwrap();
        assert_eq!(config.identity, Path::new("/etc/pilot/a.key"));
        assert_eq!(config.recent_peers, Path::new("/etc/pilot/a.peers"), "beside the identity");
        let files = check(&[("[1]", "[1]\nfiles = 'in'")]).unwrap().files;
        assert_eq!(files.as_deref(), Some(Path::new("/etc/pilot/in")));
        assert_eq!(config.address, OverlayAddress { network: 0, node: 1 });
        assert_eq!(config.interface.as_deref(), Some("veth-a"));
        assert_eq!(config.listen, "10.77.0.1:4242".parse().unwrap());
        assert_eq!((config.datapath, config.queues, config.cores), (DatapathChoice::Auto, vec![0], vec![1]));
        assert_eq!(config.allow_from, ["10.77.0.0/24".parse().unwrap()]);
        assert_eq!(config.peers.len(), 2);
        assert_eq!(config.peers[0].key.to_string(), key(2));
        assert_eq!(config.peers[0].endpoint, Some("10.77.0.2:4242".parse().unwrap()));
        assert_eq!(config.peers[1].endpoint, None);
    }

    #[test]
    fn what_is_optional_has_a_default() {
        let text = "identity = '/k'\naddress = '0:0000.0000.0001'\nlisten = '[::]:1'\n";
        let config = Config::parse(text, Path::new("x")).unwrap();
        assert_eq!(config.identity, Path::new("/k"), "an absolute path stays");
        assert_eq!((config.queues, config.datapath), (vec![0], DatapathChoice::Auto));
        assert_eq!(config.attach, AttachChoice::Auto);
        assert_eq!((config.bulk, config.bulk_port), (BulkChoice::Auto, None));
        assert!(config.cores.is_empty() && config.allow_from.is_empty() && config.peers.is_empty());
    }

    /// Each message names the field, what was given and what is allowed.
    #[test]
    fn errors_name_field_given_and_allowed() {
        let b = key(2);
        for (replace, words) in [
            (("identity = \"a.key\"", ""), ["missing field", "identity", ""]),
            (("queues", "queue"), ["unknown field", "queue", "queues"]),
            (("name = \"b\"", "nick = \"b\""), ["unknown field", "nick", "name"]),
            (("\"auto\"", "\"fast\""), ["fast", "auto", "udp"]),
            (("datapath = \"auto\"", "attach = \"driver\""), ["driver", "auto", "native"]),
            (("[0]", "\"all\""), ["queues", "all", "sequence"]),
            (("[0]", "[]"), ["`queues`", "[]", "1 to 16"]),
            (("[0]", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"), ["`queues`", "15, 16]", "1 to 16"]),
            (("[0]", "[3, 0, 3]"), ["`queues`", "[3, 0, 3]", "each queue once"]),
            (("[0]", "[0, 1]"), ["`cores`", "[1]", "2 cores"]),
            (("datapath = \"auto\"", "bulk = \"yes\""), ["yes", "auto", "always"]),
            (
                ("[1]", "[1]\nhandshakes_per_second = 3001"),
                ["`handshakes_per_second`", "given 3001", "0 (always by cookie) to 3000"],
            ),
            (("[1]", "[1]\nhandshakes_per_second = -1"), ["handshakes_per_second", "-1", "u32"]),
            (
                ("[1]", "[1]\nhandshakes_per_source_per_second = 0"),
                ["`handshakes_per_source_per_second`", "given 0", "1 to 3000"],
            ),
            (
                ("[1]", "[1]\nhandshakes_per_source_per_second = 3001"),
                ["`handshakes_per_source_per_second`", "given 3001", "1 to 3000"],
            ),
            (("[1]", "[1]\nrekey_after_s = 0"), ["`rekey_after_s`", "given 0", "1 to 120 seconds"]),
            (("[1]", "[1]\nrekey_after_s = 121"), ["`rekey_after_s`", "given 121", "1 to 120 seconds"]),
            (("[1]", "[1]\nlocal = { drain_s = 601 }"), ["`local.drain_s`", "given 601", "0 to 600 seconds"]),
            (("datapath = \"auto\"", "bulk_port = 4242"), ["`bulk_port`", "4242", "other than 4242"]),
            (("datapath = \"auto\"", "bulk_port = 0"), ["`bulk_port`", "given 0", "other than 4242"]),
            (("datapath = \"auto\"", "bulk_port = 65536"), ["bulk_port", "65536", "u16"]),
            (("\"auto\"", "\"udp\"\nbulk_port = 4243"), ["`bulk_port`", "4243", "without AF_XDP"]),
            (("\"auto\"", "\"auto\"\nbulk = \"never\"\nbulk_port = 4243"), ["`bulk_port`", "4243", "never"]),
            (("[0]", "[256]"), ["`queues`", "[256]", "0 to 255"]),
            (("[1]", "[1, 2]"), ["`cores`", "[1, 2]", "1 cores"]),
            (("\"0:0000.0000.0001\"", "\"1\""), ["`address`", "\"1\"", "0:0000.0000.0001"]),
            (("veth-a", ""), ["`interface`", "\"\"", "ip link"]),
            (("veth-a", "a/b"), ["`interface`", "\"a/b\"", "ip link"]),
            (("veth-a", "0123456789abcdef"), ["`interface`", "0123456789abcdef", "15 bytes"]),
            (("10.77.0.1:4242", "10.77.0.1"), ["`listen`", "\"10.77.0.1\"", "192.0.2.1:4242"]),
            (("10.77.0.0/24", "10.77.0.0/33"), ["`allow_from`", "10.77.0.0/33", "0 to 32"]),
            (("10.77.0.0/24", "10.77.0.1/24"), ["`allow_from`", "10.77.0.1/24", "10.77.0.0/24"]),
            (("10.77.0.0/24", "10.78.0.0/24"), ["`peers.b.endpoint`", "10.77.0.2:4242", "allow_from"]),
            (("10.77.0.2:4242", "[::1]:5"), ["`peers.b.endpoint`", "[::1]:5", "IPv4"]),
            (("10.77.0.2:4242", "10.77.0.2:0"), ["`peers.b.endpoint`", "10.77.0.2:0", "port"]),
            (("10.77.0.2:4242", "b.example:1"), ["`peers.b.endpoint`", "b.example:1", "IP address"]),
            (("name = \"c\"", "name = \"b\""), ["`peers.name`", "\"b\" twice", "different"]),
            (("name = \"c\"", "name = \"\""), ["`peers.name`", "\"\"", "a name"]),
            (("0.0003", "0.0002"), ["`peers.c.address`", "which is b's", "its own"]),
            (("0.0003", "0.0001"), ["`peers.c.address`", "which is this node's", "its own"]),
            (("name = \"c\"", "name = \"c\"\nlanes = 0"), ["`peers.c.lanes`", "given 0", "1 to 16 tunnels"]),
            (("name = \"c\"", "name = \"c\"\nlanes = 17"), ["`peers.c.lanes`", "given 17", "1 to 16 tunnels"]),
            ((&key(3), &b), ["`peers.c.key`", "b's key", "its own"]),
            ((&b, "pilot1-x"), ["`peers.b.key`", "pilot1-x", "pilot keygen"]),
        ] {
            let error = check(&[replace]).expect_err(&format!("{replace:?}")).to_string();
            for word in words {
                assert!(error.contains(word), "{replace:?}: {word:?} is not in {error:?}");
            }
        }
    }

    #[test]
    fn several_queues_have_a_core_each() {
        let config = check(&[("[0]", "[2, 0, 1]"), ("[1]", "[1, 0, 3]")]).unwrap();
        assert_eq!((config.queues, config.cores), (vec![2, 0, 1], vec![1, 0, 3]), "in their order");
    }

    /// A node of several workers holds contexts when it is told to; and who may use them is by name.
    #[test]
    fn contexts_of_applications_are_as_given() {
        let local = |lines: &str| {
            let text = format!("{}\n[local]\n{lines}", text(&[("[0]", "[0, 1]"), ("[1]", "[0, 1]")]));
            Config::parse(&text, Path::new("x")).map(|config| config.local)
        };
        assert!(check(&[]).unwrap().local.holds_contexts && !local("").unwrap().holds_contexts);
        assert!(local("contexts = true").unwrap().holds_contexts);
        assert_eq!(local("").unwrap().store, Path::new("x/a.contexts"), "beside the identity");
        assert_eq!(local("store = 'y'").unwrap().store, Path::new("x/y"));
        let users = local("users = [{ uid = 7, contexts = { follow = ['*'] } }]").unwrap().users;
        assert_eq!((users[&7].ports.len(), users[&7].contexts.follow.as_slice()), (0, &["*".to_owned()][..]));
        let error = local("users = [{ uid = 7, contexts = { read = ['*'] } }]").unwrap_err().to_string();
        assert!(error.contains("read") && error.contains("follow"), "{error}");
    }

    #[test]
    fn lanes_and_introductions_are_as_given() {
        let config = check(&[]).unwrap();
        assert!(!config.introductions, "off by default");
        assert_eq!(config.lanes().map(|(place, _, lane)| (place, lane)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
        let given = [("[1]", "[1]\nintroductions = true"), ("name = \"b\"", "name = \"b\"\nlanes = 3")];
        let config = check(&given).unwrap();
        assert!(config.introductions && config.files.is_none());
        let lanes: Vec<_> = config.lanes().map(|(_, peer, lane)| (peer.name.as_str(), lane)).collect();
        assert_eq!(lanes, [("b", 0), ("b", 1), ("b", 2), ("c", 0)]);
    }

    #[test]
    fn handshakes_and_keys_are_as_given() {
        let config = check(&[]).unwrap();
        let of = |config: &Config| {
            (config.handshakes_per_second, config.handshakes_per_source_per_second, config.rekey_after)
        };
        assert_eq!(of(&config), (250, 50, Duration::from_secs(120)), "the engine's own");
        let given = "[1]\nhandshakes_per_second = 0\nhandshakes_per_source_per_second = 7\nrekey_after_s = 1";
        assert_eq!(of(&check(&[("[1]", given)]).unwrap()), (0, 7, Duration::from_secs(1)));
    }

    #[test]
    fn xdp_needs_an_interface_and_udp_does_not() {
        let without = ("interface = \"veth-a\"", "");
        assert!(check(&[without, ("auto", "udp")]).is_ok());
        assert!(check(&[without]).is_ok());
        let error = check(&[without, ("auto", "xdp")]).unwrap_err().to_string();
        assert!(error.contains("`interface`") && error.contains("nothing"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::read(Path::new("/nonexistent/pilot.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/pilot.toml"), "{error}");
    }
}
