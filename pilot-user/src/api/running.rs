//! A node at work: its workers, each with a [`Host`], and the control thread. What `pilot up` runs, and a program's own node.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use pilot_engine::{Aeads, Code, PeerConfig, PeerId};
use serde_json::json;

use super::audit::Audit;
use super::host::Host;
use super::limits::MAX_CONTEXTS;
use super::reload::{self, Change, Refused};
use super::switchboard::{Peer, PeerChange, Switchboard};
use crate::config::Config;
use crate::context::Owner;
use crate::control::Control;
use crate::identity_file;
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;
use crate::node::{Assembly, StartError};
use crate::recent_peers::RecentPeers;
use crate::service::contexts::ContextOwner;
use crate::service::store::{Database, Store};
use crate::service::{Notice, Services};
use crate::worker::drivers::{Pinned, SpawnError, Worker};
use crate::worker::task::Task;

/// Notices that wait for whoever prints them; more are dropped, because a terminal that does not read must not stop a worker.
const NOTICES_MAX: usize = 1024;

/// See the module's head. Dropped, its workers end without a word to the peers.
pub(crate) struct Running {
    config: Config,
    control: Control,
    peers: Vec<(String, PeerId)>,
    board: Arc<Switchboard>,
    workers: Vec<Driven>,
    listen: SocketAddr,
    notices: Receiver<Notice>,
    recent: RecentPeers,
    /// Which worker has the tunnel to the peer at a place in the configuration.
    owner: Box<dyn Fn(usize) -> u8 + Send>,
}

/// Where the workers run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Driver {
    /// On threads of their own.
    #[default]
    Threads,
    /// As tasks of the runtime in which the node is started.
    Runtime,
}

enum Driven {
    Thread(Pinned<PairLink, Host>),
    Task(Task<Host>),
}

impl Driven {
    fn is_over(&self) -> bool {
        match self {
            Self::Thread(thread) => thread.is_over(),
            Self::Task(task) => task.is_over(),
        }
    }

    fn stop(self) -> std::io::Result<Worker<PairLink, Host>> {
        match self {
            Self::Thread(thread) => thread.stop(),
            Self::Task(task) => task.stop(),
        }
    }
}

/// The contexts that applications created and that are kept on the disk, as they were announced last.
fn kept_contexts(store: &Path, peers: &[(String, PeerId)], doorbell: Doorbell) -> Result<ContextOwner, StartError> {
    let database = if store.exists() { Some(Database::open(store)?) } else { None };
    let mut owner = Owner::default();
    for (name, held) in database.as_ref().map(Database::held).transpose()?.unwrap_or_default() {
        // The names of a table are different ones, and were taken before.
        let _ = owner.hold(&name, held);
    }
    let store = Store::start(store.to_owned(), database, MAX_CONTEXTS, doorbell).map_err(StartError::StoreThread)?;
    Ok(ContextOwner::new(owner, Some(store), peers))
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
        driver: Driver,
        mut services: impl FnMut(usize, Sender<Notice>, Doorbell, &[(String, PeerId)]) -> Result<Services, E>,
    ) -> Result<Self, E> {
        let workers = config.queues.len();
        // Each worker has the tunnels to some of the peers, whichever queue their datagrams come by; but the one that holds
        // contexts has all, because all followers of one are served from one document.
        let holds_contexts = config.local.holds_contexts;
        let owner = Box::new(move |place: usize| if holds_contexts { 0 } else { (place % workers) as u8 });
        let Assembly { control, peers, seats } = Assembly::start(&config, aeads, |place| owner(place).into())?;
        let known = peers.iter().zip(config.lanes());
        let known = known.map(|((name, id), (place, peer, lane))| Peer {
            name: name.clone(),
            address: peer.address,
            lane,
            id: *id,
            worker: owner(place + usize::from(lane)),
            ports: peer.ports.clone(),
        });
        let identity = identity_file::read(&config.identity).map_err(StartError::from)?;
        let node = json!({"address": config.address.to_string(), "public_key": identity.public_key().to_string()});
        let doorbells = seats.iter().map(|seat| seat.doorbell()).collect();
        let (sender, notices) = crossbeam_channel::bounded(NOTICES_MAX);
        let (board, inboxes) = Switchboard::new(known.collect(), node, control.inspector(), doorbells, sender.clone());
        let recent = RecentPeers::read(&config.recent_peers);
        let (mut driven, mut listen) = (Vec::new(), config.listen);
        for (number, (seat, inbox)) in seats.into_iter().zip(inboxes).enumerate() {
            let mut services = services(number, sender.clone(), seat.doorbell(), &peers)?;
            if holds_contexts && number == 0 && services.contexts().is_none() {
                services = services.with_contexts(kept_contexts(&config.local.store, &peers, seat.doorbell())?);
            }
            let (core, doorbell) = (seat.core, seat.doorbell());
            let mut worker = seat.with(Host::new(services, number as u8, Arc::clone(&board), inbox));
            listen = worker.link.local_addr();
            // Those whose address is known, and whose tunnel this worker has, hear from us at once: a peer that knew us before we
            // restarted need not find out.
            for ((_, id), (_, peer, _)) in peers.iter().zip(config.lanes()) {
                let last = recent.address(&peer.key);
                if let Some(address) = last {
                    worker.endpoint.remember_address(*id, address);
                }
                if peer.endpoint.or(last).is_some() {
                    let now = worker.now();
                    worker.endpoint.open_tunnel(now, *id);
                }
            }
            driven.push(match driver {
                Driver::Threads => Driven::Thread(Pinned::spawn(worker, core, doorbell)?),
                Driver::Runtime => Driven::Task(Task::spawn(worker).map_err(SpawnError::Thread)?),
            });
        }
        Ok(Self { config, control, peers, board, workers: driven, listen, notices, recent, owner })
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
        self.workers.iter().any(Driven::is_over)
    }

    /// Keeps what a notice says for a later process: where peers are.
    pub(crate) fn note(&mut self, notice: &Notice) {
        if let Notice::TunnelUp { peer, address: Some(address) } = notice
            && let Some((_, (_, configured, _))) =
                self.peers.iter().zip(self.config.lanes()).find(|((_, id), _)| id == peer)
        {
            self.recent.note(&configured.key, *address);
        }
    }

    /// L2.6: runs with another configuration from now on: its peers, users and time to drain. What changed, a line each.
    ///
    /// # Errors
    /// When it asks for what only a restart changes. Then nothing of it is taken.
    pub(crate) fn reload(&mut self, wanted: Config) -> Result<Vec<Audit>, Refused> {
        let changes = reload::plan(&self.config, &wanted)?;
        let id_of = |peer: &crate::config::Peer, lane: u8| {
            let mut known = self.config.lanes().zip(&self.peers);
            let is_it = |configured: &crate::config::Peer, at: u8| configured.is(peer) && at == lane;
            known.find(|((_, configured, at), _)| is_it(configured, *at)).map(|(_, (_, id))| *id)
        };
        let mut place = self.config.peers.len();
        let (mut at_workers, mut owners) = (Vec::new(), Vec::new());
        for change in &changes {
            let known = |peer: &crate::config::Peer| PeerConfig {
                key: peer.key,
                address: peer.address,
                endpoint: peer.endpoint,
            };
            match *change {
                // With all its lanes.
                Change::Remove(peer) => at_workers.extend(id_of(peer, 0).map(PeerChange::Remove)),
                Change::Alter(_, peer) => at_workers.push(PeerChange::Alter(known(peer))),
                Change::Add(peer) => {
                    let lanes = (0..peer.lanes).map(|lane| (self.owner)(place + usize::from(lane)));
                    let lanes: Vec<u8> = lanes.collect();
                    owners.extend(&lanes);
                    at_workers.push(PeerChange::Add(known(peer), lanes));
                    place += 1;
                }
            }
        }
        let before = self.board.peers();
        let after = |added: Vec<PeerId>| {
            let mut added = added.into_iter().zip(owners);
            let peers = wanted.lanes().filter_map(|(_, peer, lane)| {
                let known = id_of(peer, lane).and_then(|id| before.iter().find(|before| before.id == id));
                let (id, worker) = known.map(|known| (known.id, known.worker)).or_else(|| added.next())?;
                let (name, ports) = (peer.name.clone(), peer.ports.clone());
                Some(Peer { name, address: peer.address, lane, id, worker, ports })
            });
            peers.collect()
        };
        self.board.change_peers(at_workers, after).ok_or(Refused::Over)?;
        let lines = reload::audit(&changes, &self.config, &wanted);
        self.peers = self.board.peers().iter().map(|peer| (peer.name.clone(), peer.id)).collect();
        self.config = wanted;
        Ok(lines)
    }

    /// L2.5: tells applications that the node stops, and begins nothing any more. For how long they may go on.
    pub(crate) fn drain(&self) -> Duration {
        let drain = self.config.local.drain;
        self.board.drain(drain.as_millis() as u64);
        drain
    }

    /// Ends the workers, and tells the peers.
    ///
    /// # Errors
    /// When a worker could not go on.
    pub(crate) fn stop(self) -> std::io::Result<Stopped> {
        let mut workers = self.workers.into_iter().map(Driven::stop).collect::<std::io::Result<Vec<_>>>()?;
        for worker in &mut workers {
            worker.application.end();
            worker.say_goodbye(self.peers.iter().map(|(_, id)| *id), Code::ShuttingDown)?;
        }
        Ok(Stopped { config: self.config, control: self.control, workers })
    }
}
