//! A node as its configuration describes it: control thread, links and endpoints, ready for drivers.

use std::io;
use std::time::{Duration, SystemTime};

use pilot_engine::{Aeads, Endpoint, PeerConfig, PeerId};

use crate::config::{Config, DatapathChoice};
use crate::control::{self, Control};
use crate::identity_file;
use crate::link::Link as _;
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;
use crate::worker::Application;
use crate::worker::drivers::Worker;
use crate::worker::handoff::{self, Handoff};

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
    /// The durable contexts of its applications.
    #[error(transparent)]
    Contexts(#[from] crate::service::store::Error),
    /// The thread that keeps them.
    #[error("cannot start the store's thread: {0}")]
    StoreThread(io::Error),
}

/// The parts of a node, which can be driven. Whoever holds `control` keeps AF_XDP attached.
pub struct Assembly {
    /// The control thread.
    pub control: Control,
    /// The tunnels to be, as [`Config::lanes`] has them: the peer's name, and the id.
    pub peers: Vec<(String, PeerId)>,
    /// One for each queue, in their order.
    pub seats: Vec<Seat>,
}

/// A worker that has no application yet.
pub struct Seat {
    /// The core to run on, if one is configured.
    pub core: Option<usize>,
    endpoint: Endpoint,
    link: PairLink,
    handoff: Handoff,
    origin: quanta::Instant,
}

impl Assembly {
    /// Opens sockets and starts the control thread. `aeads` is what the node offers and accepts; `owner` says which worker
    /// has the tunnel to the peer at a place in the configuration; a peer's lanes count on from its place.
    ///
    /// # Errors
    /// When the identity cannot be read or the address not be listened on. That AF_XDP cannot be had is none: the node
    /// runs over UDP then, and says why.
    pub fn start(config: &Config, aeads: Aeads, owner: impl Fn(usize) -> usize) -> Result<Self, StartError> {
        let mut boot_id = [0; 16];
        getrandom::fill(&mut boot_id).map_err(|_| StartError::Random)?;
        let (control, links) = Control::start(control::Options {
            interface: config.interface.clone(),
            listen: config.listen,
            datapath: config.datapath,
            attach: config.attach,
            queues: config.queues.clone(),
            bulk: config.bulk,
            bulk_port: config.bulk_port,
            allow_from: config.allow_from.clone(),
            peers: config.peers.iter().filter_map(|peer| peer.endpoint).map(|endpoint| endpoint.ip()).collect(),
        })
        .map_err(|source| StartError::Listen { listen: config.listen, source })?;
        let origin = quanta::Instant::now();
        // A clock before 1970 would be this node's trouble with every peer's replay check, and is taken as 1970.
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let doorbells: Vec<Doorbell> = links.iter().map(PairLink::doorbell).collect();
        let handoffs = if let [_] = doorbells[..] { vec![Handoff::alone()] } else { handoff::mesh(&doorbells) };
        let bulk = control.datapath().bulk.send;
        let (mut peers, mut seats) = (Vec::new(), Vec::new());
        for (worker, (link, handoff)) in links.into_iter().zip(handoffs).enumerate() {
            // To peers, all workers are one process with one identity.
            let identity = identity_file::read(&config.identity)?;
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|_| StartError::Random)?;
            let mut engine = pilot_engine::Config::new(identity, config.address, boot_id, unix_time);
            engine.worker = worker as u8;
            engine.aeads = aeads;
            engine.handshakes_per_second = config.handshakes_per_second;
            engine.handshakes_per_source_per_second = config.handshakes_per_source_per_second;
            engine.rekey_after = config.rekey_after;
            engine.introductions = config.introductions;
            engine.max_datagram = u16::try_from(link.max_payload()).unwrap_or(u16::MAX);
            let may_be_xdp = config.interface.is_some() && config.datapath != DatapathChoice::Udp;
            (engine.packet_credit, engine.bulk_packet_credit) = link.packet_credits(may_be_xdp);
            engine.bulk_port = link.bulk_port();
            engine.bulk = bulk.into();
            let mut endpoint = Endpoint::new(engine, seed);
            // In the same order at every worker, so that a peer has one id.
            peers = Vec::new();
            for (place, peer, lane) in config.lanes() {
                let known = PeerConfig { key: peer.key, address: peer.address, endpoint: peer.endpoint };
                let first = endpoint.add_peer(known);
                // The configuration has checked the lane.
                let id = endpoint.add_lane(first, lane).unwrap_or(first);
                endpoint.set_owner(id, owner(place + usize::from(lane)) as u8);
                peers.push((peer.name.clone(), id));
            }
            let core = config.cores.get(worker).copied();
            seats.push(Seat { core, endpoint, link, handoff, origin });
        }
        Ok(Self { control, peers, seats })
    }
}

impl Seat {
    /// Wakes the worker.
    pub fn doorbell(&self) -> Doorbell {
        self.link.doorbell()
    }

    /// Puts an application on it, for a driver to run.
    pub fn with<A: Application>(self, application: A) -> Worker<PairLink, A> {
        Worker::new(self.endpoint, self.link, application, self.handoff, self.origin)
    }
}
