//! The node's configuration file: TOML, checked as a whole before anything starts.

mod check;
mod choice;
mod error;
mod file;
mod local;
mod peer;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_common::address::Prefix;
use pilot_engine::address::OverlayAddress;
use pilot_engine::limits::{HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SOURCE_PER_SECOND, REKEY_AFTER_TIME};

pub use choice::{AttachChoice, BulkChoice, DatapathChoice};
pub use error::Error;
use error::{parse, refuse, socket_addr};
use file::{File, FileUser};
use local::{DRAIN, DRAIN_MAX};
pub use local::{Local, User, UserContexts};
pub use peer::Peer;

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
}
