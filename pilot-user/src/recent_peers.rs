//! The peers that a node had tunnels with, and where each was: what the next process needs to call them, so that they need not
//! find out that this one ended. A file that is small, replaced as a whole, and readable by its owner only.
//!
//! It is a help and nothing else: who may talk to the node is said in the configuration, and a file that cannot be read, or
//! written, costs a warning.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pilot_engine::identity::PublicKey;
use serde::{Deserialize, Serialize};

/// Peers that are remembered; of more, those that were met longest ago are forgotten. Lower: a large fabric's nodes are not
/// called after a restart. Higher: each new one writes more.
const PEERS_MAX: usize = 1024;

/// Bytes of a file that is read: room for [`PEERS_MAX`] with the longest addresses, twice.
const FILE_LEN_MAX: u64 = 512 << 10;

/// See the module's head.
#[derive(Debug)]
pub struct RecentPeers {
    file: PathBuf,
    known: Known,
    /// The file could not be written, and the operator was told.
    warned: bool,
}

/// The file as it is written: the peer that was met last comes first.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    #[serde(default)]
    peers: Vec<Recent>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recent {
    key: String,
    address: SocketAddr,
}

impl RecentPeers {
    /// Reads a file. One that is not there knows nobody; nor does one that is damaged, which is said.
    pub fn read(file: &Path) -> Self {
        let known = read(file).unwrap_or_else(|why| {
            tracing::warn!(file = %file.display(), %why, "the recent peers cannot be read; beginning with none");
            Known::default()
        });
        Self { file: file.to_owned(), known, warned: false }
    }

    /// Where a peer was last.
    pub fn address(&self, key: &PublicKey) -> Option<SocketAddr> {
        let key = key.to_string();
        self.known.peers.iter().find(|peer| peer.key == key).map(|peer| peer.address)
    }

    /// Remembers that a peer was at an address, and writes that down if it is news. Waits for the disk.
    pub fn note(&mut self, key: &PublicKey, address: SocketAddr) {
        if self.address(key) == Some(address) {
            return;
        }
        let key = key.to_string();
        let peers = &mut self.known.peers;
        peers.retain(|peer| peer.key != key);
        peers.insert(0, Recent { key, address });
        peers.truncate(PEERS_MAX);
        if let Err(why) = self.write()
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!(file = %self.file.display(), %why, "the recent peers cannot be written down");
        }
    }

    /// Replaces the file: whoever reads it, also after a crash, finds the old one or the new one.
    fn write(&self) -> io::Result<()> {
        let text = toml::to_string(&self.known).map_err(io::Error::other)?;
        let mut new = self.file.clone().into_os_string();
        new.push(".new");
        // What a crash left; and `create_new`, so that no planted link is followed.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut writer = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        writer.write_all(text.as_bytes())?;
        writer.sync_all()?;
        std::fs::rename(&new, &self.file)
    }
}

fn read(file: &Path) -> Result<Known, String> {
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let mut text = String::new();
    let length = opened.take(FILE_LEN_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if length as u64 > FILE_LEN_MAX {
        return Err(format!("longer than {FILE_LEN_MAX} bytes"));
    }
    let mut known: Known = toml::from_str(&text).map_err(|error| error.message().to_owned())?;
    known.peers.truncate(PEERS_MAX);
    Ok(known)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::test_directory::Directory;

    fn key(n: u16) -> PublicKey {
        let mut identity = [0; 32];
        identity[..2].copy_from_slice(&n.to_be_bytes());
        PublicKey { identity, static_key: [7; 32] }
    }

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    #[test]
    fn what_was_noted_is_known_to_the_next_process() {
        let directory = Directory::new("recent-round-trip");
        let mut peers = RecentPeers::read(&directory.file("a.peers"));
        assert_eq!(peers.address(&key(1)), None);
        peers.note(&key(1), address(1));
        peers.note(&key(2), "[2001:db8::1]:4242".parse().unwrap());
        peers.note(&key(1), address(3));
        let again = RecentPeers::read(&directory.file("a.peers"));
        assert_eq!(again.known, peers.known);
        assert_eq!(again.known.peers.len(), 2);
        assert_eq!(again.address(&key(1)), Some(address(3)));
        assert_eq!(directory.file("a.peers").metadata().unwrap().mode() & 0o7777, 0o600);
    }

    /// No news is not written: a tunnel that comes and goes does not wear the disk.
    #[test]
    fn the_file_is_replaced_whole_and_only_for_news() {
        let directory = Directory::new("recent-replaced");
        let mut peers = RecentPeers::read(&directory.file("a.peers"));
        peers.note(&key(1), address(1));
        let before = directory.file("a.peers").metadata().unwrap().ino();
        peers.note(&key(1), address(1));
        assert_eq!(directory.file("a.peers").metadata().unwrap().ino(), before);
        // What a crash left in the way, and a link that somebody planted.
        let new = directory.file("a.peers.new");
        let target = directory.file("target");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &new).unwrap();
        peers.note(&key(1), address(2));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
        assert!(!new.exists());
        assert_eq!(RecentPeers::read(&directory.file("a.peers")).address(&key(1)), Some(address(2)));
    }

    #[test]
    fn a_damaged_file_is_as_none_and_is_replaced() {
        let directory = Directory::new("recent-damaged");
        let good = format!("[[peers]]\nkey = \"{}\"\naddress = \"10.0.0.1:1\"\n", key(1));
        std::fs::write(directory.file("a.peers"), &good).unwrap();
        assert_eq!(RecentPeers::read(&directory.file("a.peers")).address(&key(1)), Some(address(1)));
        let long = good.repeat(FILE_LEN_MAX as usize / good.len() + 1);
        for bad in ["\u{0}\u{1}", &good[..good.len() - 3], "[[peers]]\nkey = 7\n", "peers = 1", "more = 1", &long] {
            std::fs::write(directory.file("a.peers"), bad).unwrap();
            let mut peers = RecentPeers::read(&directory.file("a.peers"));
            assert_eq!(peers.known, Known::default());
            peers.note(&key(2), address(2));
            assert_eq!(RecentPeers::read(&directory.file("a.peers")).address(&key(2)), Some(address(2)));
        }
        std::fs::write(directory.file("a.peers"), [0xff, 0xfe]).unwrap();
        assert_eq!(RecentPeers::read(&directory.file("a.peers")).known, Known::default());
    }

    #[test]
    fn the_longest_ago_are_forgotten() {
        let directory = Directory::new("recent-bounded");
        let mut peers = RecentPeers::read(&directory.file("a.peers"));
        peers.known.peers =
            (0..PEERS_MAX as u16).map(|n| Recent { key: key(n).to_string(), address: address(n) }).collect();
        peers.note(&key(2000), address(2000));
        let again = RecentPeers::read(&directory.file("a.peers"));
        assert_eq!(again.known.peers.len(), PEERS_MAX);
        assert!(again.address(&key(2000)).is_some() && again.address(&key(PEERS_MAX as u16 - 1)).is_none());
        assert!(directory.file("a.peers").metadata().unwrap().len() < FILE_LEN_MAX / 2);
    }

    #[test]
    fn where_nothing_can_be_written_nothing_fails() {
        let mut peers = RecentPeers::read(Path::new("/nowhere/at/all/a.peers"));
        peers.note(&key(1), address(1));
        assert!(peers.warned && peers.address(&key(1)).is_some());
    }
}
