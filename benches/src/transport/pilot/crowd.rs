//! Many peers of one node, each with keys, a socket and a tunnel of its own, and a connection that nobody uses.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{ConnectionHandle, Ecn, Endpoint, PeerConfig};
use pilot_user::config::{Config, Peer};
use serde_json::{Value, json};

use super::PORT;
use crate::place::Places;
use crate::tls::PATIENCE;
use crate::transport::{LOOK, Load, NEAR, Recorder};

/// Bytes of the largest datagram.
const DATAGRAM: usize = 1472;
/// The network of their overlay addresses, of which the two ends of other benches have none.
const NETWORK: u16 = 1;

fn identity(n: u32) -> anyhow::Result<Identity> {
    let bytes = |label: u8| {
        let mut bytes = [label; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        bytes
    };
    Identity::from_secrets(bytes(1), bytes(2)).context("any 32 bytes are a secret")
}

fn overlay(n: u32) -> OverlayAddress {
    OverlayAddress { network: NETWORK, node: n }
}

/// The node's configuration, with all of them in it.
pub(super) fn known(config: &Config, load: &Load) -> anyhow::Result<Config> {
    let mut config = config.clone();
    for n in 0..u32::try_from(load.connections)? {
        config.peers.push(Peer {
            name: format!("peer-{n}"),
            address: overlay(n),
            key: identity(n)?.public_key(),
            endpoint: None,
            lanes: 1,
            ports: None,
        });
    }
    Ok(config)
}

pub(super) fn ask(config: &Config, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
    let node = config.peers.first().context("a peer")?;
    let node = PeerConfig { key: node.key, address: node.address, endpoint: node.endpoint };
    let mut crowd = Vec::with_capacity(load.connections);
    for n in 0..u32::try_from(load.connections)? {
        crowd.push(One::connect(n, node).with_context(|| format!("peer {n}"))?);
    }
    recorder.start();
    while recorder.goes_on() {
        std::thread::sleep(LOOK * 10);
    }
    Ok(json!({"peers": crowd.len()}))
}

struct One {
    endpoint: Endpoint,
    socket: UdpSocket,
    local: SocketAddr,
    began: Instant,
}

impl One {
    fn connect(n: u32, node: PeerConfig) -> anyhow::Result<Self> {
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let config = pilot_engine::Config::new(identity(n)?, overlay(n), [7; 16], unix_time);
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let mut endpoint = Endpoint::new(config, seed);
        let peer = endpoint.add_peer(node);
        let socket = UdpSocket::bind(SocketAddr::new(Places::address(NEAR).ip(), 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        let local = socket.local_addr()?;
        let mut one = Self { endpoint, socket, local, began: Instant::now() };
        let connection = one.endpoint.connect(one.now(), peer, PORT)?;
        while !one.is_settled(connection)? {
            ensure!(one.began.elapsed() < PATIENCE, "no connection within {PATIENCE:?}");
        }
        Ok(one)
    }

    fn now(&self) -> pilot_engine::Instant {
        pilot_engine::Instant::ORIGIN + self.began.elapsed()
    }

    /// Sends and receives what there is. Whether it is connected, and the node has nothing more to say.
    fn is_settled(&mut self, connection: ConnectionHandle) -> anyhow::Result<bool> {
        let mut datagram = [0; DATAGRAM];
        self.endpoint.handle_timeout(self.now());
        while let Some(sent) = self.endpoint.poll_transmit(self.now(), &mut datagram) {
            self.socket.send_to(&datagram[..sent.len], sent.destination)?;
        }
        self.endpoint.poll_timeout();
        while self.endpoint.poll_event().is_some() {}
        match self.socket.recv_from(&mut datagram) {
            Ok((length, source)) => {
                let now = self.now();
                self.endpoint.handle_datagram(now, source, self.local, Ecn::NotEct, &datagram[..length]);
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(self.endpoint.is_open(connection)),
            Err(error) => Err(error.into()),
        }
    }
}
