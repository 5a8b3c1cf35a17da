//! A node as its configuration describes it: control thread, link and endpoint, ready for a driver.

use std::io;
use std::time::{Duration, SystemTime};

use pilot_engine::{Aeads, Endpoint, PeerConfig, PeerId};

use crate::config::Config;
use crate::control::{self, Control};
use crate::identity_file;
use crate::link::Link as _;
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;
use crate::worker::Application;
use crate::worker::drivers::Worker;
use crate::worker::handoff::Handoff;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] identity_file::Error),
    /// The sockets.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// The configured address.
        listen: std::net::SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system has no randomness.
    #[error("the operating system gave no random bytes")]
    Random,
}

/// A node that can be driven. Whoever holds `control` keeps AF_XDP attached.
pub struct Node {
    /// The control thread.
    pub control: Control,
    /// Wakes the worker.
    pub doorbell: Doorbell,
    /// The configured peers: name and id.
    pub peers: Vec<(String, PeerId)>,
    endpoint: Endpoint,
    link: PairLink,
    origin: std::time::Instant,
}

impl Node {
    /// Opens sockets and starts the control thread. `aeads` is what the node offers and accepts.
    ///
    /// # Errors
    /// When the identity cannot be read or the address not be listened on. That AF_XDP cannot be had is none: the node
    /// runs over UDP then, and says why.
    pub fn start(config: &Config, aeads: Aeads) -> Result<Self, StartError> {
        let identity = identity_file::read(&config.identity)?;
        let (mut boot_id, mut seed) = ([0; 16], [0; 32]);
        getrandom::fill(&mut boot_id).map_err(|_| StartError::Random)?;
        getrandom::fill(&mut seed).map_err(|_| StartError::Random)?;
        let (control, mut links) = Control::start(control::Options {
            interface: config.interface.clone(),
            listen: config.listen,
            datapath: config.datapath,
            queues: config.queues.clone(),
            allow_from: config.allow_from.clone(),
            peers: config.peers.iter().filter_map(|peer| peer.endpoint).map(|endpoint| endpoint.ip()).collect(),
        })
        .map_err(|source| StartError::Listen { listen: config.listen, source })?;
        // One queue, one link: the configuration allows no more yet, and no less.
        let none = || StartError::Listen { listen: config.listen, source: io::Error::other("no receive queue") };
        let link = links.pop().ok_or_else(none)?;
        let origin = std::time::Instant::now();
        // A clock before 1970 would be this node's trouble with every peer's replay check, and is taken as 1970.
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let mut engine = pilot_engine::Config::new(identity, config.address, boot_id, unix_time);
        engine.aeads = aeads;
        engine.max_datagram = u16::try_from(link.max_payload()).unwrap_or(u16::MAX);
        let mut endpoint = Endpoint::new(engine, seed);
        let peers = config.peers.iter().map(|peer| {
            let known = PeerConfig { key: peer.key, address: peer.address, endpoint: peer.endpoint };
            (peer.name.clone(), endpoint.add_peer(known))
        });
        let peers = peers.collect();
        Ok(Self { control, doorbell: link.doorbell(), peers, endpoint, link, origin })
    }

    /// Puts an application on the node. The worker goes to a driver, the rest stays with the caller.
    pub fn with<A: Application>(self, application: A) -> (Running, Worker<PairLink, A>) {
        let worker = Worker::new(self.endpoint, self.link, application, Handoff::alone(), self.origin);
        (Running { control: self.control, doorbell: self.doorbell, peers: self.peers }, worker)
    }
}

/// What stays with the one who started a node.
pub struct Running {
    /// The control thread.
    pub control: Control,
    /// Wakes the worker.
    pub doorbell: Doorbell,
    /// The configured peers: name and id.
    pub peers: Vec<(String, PeerId)>,
}
