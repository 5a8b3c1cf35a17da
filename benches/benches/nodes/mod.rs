//! Nodes in memory, by their numbers: who they are, where they are, and an endpoint of theirs.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{Config, Endpoint, PeerConfig};

/// Longer than any bench takes in its own time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(100_000);

/// How a node is set up, unless a bench wants it otherwise.
pub(crate) fn config(n: u32) -> Config {
    let mut config = Config::new(identity(n), overlay(n), [7; 16], Duration::from_secs(1 << 30));
    config.idle_timeout = IDLE_TIMEOUT;
    config
}

pub(crate) fn endpoint(n: u32, config: Config) -> Endpoint {
    Endpoint::new(config, bytes(0, n))
}

/// A node as another knows it: with its address, if that is who calls.
pub(crate) fn known(n: u32, calls: bool) -> PeerConfig {
    PeerConfig { key: identity(n).public_key(), address: overlay(n), endpoint: calls.then(|| address(n)) }
}

pub(crate) fn address(n: u32) -> SocketAddr {
    let [_, b, c, d] = n.to_be_bytes();
    SocketAddr::from(([10, b, c, d], 4242))
}

fn identity(n: u32) -> Identity {
    Identity::from_secrets(bytes(1, n), bytes(2, n)).expect("any 32 bytes are a secret")
}

fn overlay(n: u32) -> OverlayAddress {
    OverlayAddress { network: 0, node: n }
}

fn bytes(label: u8, n: u32) -> [u8; 32] {
    let mut bytes = [label; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    bytes
}
