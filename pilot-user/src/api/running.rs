//! A node at work: its workers, each with a [`Host`], and the control thread. What `pilot up` runs, and a program's own node.

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use pilot_engine::{Aeads, Code, PeerId};
use serde_json::json;

use super::host::Host;
use super::switchboard::{Peer, Switchboard};
use crate::config::Config;
use crate::context::Owner;
use crate::control::Control;
use crate::identity_file;
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;
use crate::node::{Assembly, StartError};
use crate::recent_peers::RecentPeers;
use crate::service::contexts::ContextOwner;
use crate::service::{Notice, Services};
use crate::worker::drivers::{Pinned, SpawnError, Worker};

/// Notices that wait for whoever prints them; more are dropped, because a terminal that does not read must not stop a worker.
const NOTICES_MAX: usize = 1024;

/// See the module's head. Dropped, its workers end without a word to the peers.
pub(crate) struct Running {
    config: Config,
    control: Control,
    peers: Vec<(String, PeerId)>,
    board: Arc<Switchboard>,
    workers: Vec<Pinned<PairLink, Host>>,
    listen: SocketAddr,
    notices: Receiver<Notice>,
    recent: RecentPeers,
}

/// A node that has stopped, for who wants to know what it counted.
pub(crate) struct Stopped {
    pub(crate) config: Config,
    pub(crate) control: Control,
    pub(crate) workers: Vec<Worker<PairLink, Host>>,
}

impl Running {
    /// Starts all of it. `services` says what each worker offers by itself, by its number.
    pub(crate) fn start<E: From<StartError> + From<SpawnError>>(
        config: Config,
        aeads: Aeads,
        mut services: impl FnMut(usize, Sender<Notice>, Doorbell, &[(String, PeerId)]) -> Result<Services, E>,
    ) -> Result<Self, E> {
        let workers = config.queues.len();
        // Each worker has the tunnels to some of the peers, whichever queue their datagrams come by; but the one that holds
        // contexts has all, because all followers of one are served from one document.
        let holds_contexts = config.local.holds_contexts;
        let owner = |place: usize| if holds_contexts { 0 } else { place % workers };
        let Assembly { control, peers, seats } = Assembly::start(&config, aeads, owner)?;
        let known = peers.iter().zip(&config.peers).enumerate();
        let known = known.map(|(place, ((name, id), peer))| Peer {
            name: name.clone(),
            address: peer.address,
            id: *id,
            worker: owner(place) as u8,
            ports: peer.ports.clone(),
        });
        let identity = identity_file::read(&config.identity).map_err(StartError::from)?;
        let node = json!({"address": config.address.to_string(), "public_key": identity.public_key().to_string()});
        let doorbells = seats.iter().map(|seat| seat.doorbell()).collect();
        let (board, inboxes) = Switchboard::new(known.collect(), node, doorbells);
        let (sender, notices) = crossbeam_channel::bounded(NOTICES_MAX);
        let recent = RecentPeers::read(&config.recent_peers);
        let (mut pinned, mut listen) = (Vec::new(), config.listen);
        for (number, (seat, inbox)) in seats.into_iter().zip(inboxes).enumerate() {
            let mut services = services(number, sender.clone(), seat.doorbell(), &peers)?;
            if holds_contexts && number == 0 && services.contexts().is_none() {
                services = services.with_contexts(ContextOwner::new(Owner::default(), None, &peers));
            }
            let (core, doorbell) = (seat.core, seat.doorbell());
            let mut worker = seat.with(Host::new(services, number as u8, Arc::clone(&board), inbox));
            listen = worker.link.local_addr();
            // Those whose address is known, and whose tunnel this worker has, hear from us at once: a peer that knew us before we
            // restarted need not find out.
            for ((_, id), peer) in peers.iter().zip(&config.peers) {
                let last = recent.address(&peer.key);
                if let Some(address) = last {
                    worker.endpoint.remember_address(*id, address);
                }
                if peer.endpoint.or(last).is_some() {
                    let now = worker.now();
                    worker.endpoint.open_tunnel(now, *id);
                }
            }
            pinned.push(Pinned::spawn(worker, core, doorbell)?);
        }
        Ok(Self { config, control, peers, board, workers: pinned, listen, notices, recent })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn board(&self) -> &Arc<Switchboard> {
        &self.board
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn peers(&self) -> &[(String, PeerId)] {
        &self.peers
    }

    /// Where it receives.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What its workers say.
    pub(crate) fn notices(&self) -> &Receiver<Notice> {
        &self.notices
    }

    /// Whether a worker ended by itself.
    pub(crate) fn is_over(&self) -> bool {
        self.workers.iter().any(Pinned::is_over)
    }

    /// Keeps what a notice says for a later process: where peers are.
    pub(crate) fn note(&mut self, notice: &Notice) {
        if let Notice::TunnelUp { peer, address: Some(address) } = notice
            && let Some((_, configured)) = self.peers.iter().zip(&self.config.peers).find(|((_, id), _)| id == peer)
        {
            self.recent.note(&configured.key, *address);
        }
    }

    /// Ends the workers, and tells the peers.
    ///
    /// # Errors
    /// When a worker could not go on.
    pub(crate) fn stop(self) -> std::io::Result<Stopped> {
        let mut workers = self.workers.into_iter().map(Pinned::stop).collect::<std::io::Result<Vec<_>>>()?;
        for worker in &mut workers {
            worker.application.end();
            worker.say_goodbye(self.peers.iter().map(|(_, id)| *id), Code::ShuttingDown)?;
        }
        Ok(Stopped { config: self.config, control: self.control, workers })
    }
}
