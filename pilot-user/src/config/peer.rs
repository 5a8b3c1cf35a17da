//! Peers that are known without a directory.

use std::collections::HashMap;
use std::net::SocketAddr;

use pilot_common::address::Prefix;
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::PublicKey;
use pilot_engine::limits::MAX_LANES;

use super::Config;
use super::error::{Error, parse, refuse, socket_addr};
use super::file::FilePeer;

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

impl Peer {
    /// Whether both are the same node.
    pub fn is(&self, other: &Self) -> bool {
        self.key.identity == other.key.identity
    }

    pub(super) fn parse(file: FilePeer) -> Result<Self, Error> {
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

impl Config {
    pub(super) fn check_peers(&self) -> Result<(), Error> {
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
