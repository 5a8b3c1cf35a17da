//! What all workers of a node and all its applications share: who is who, who listens where, and which worker a frame is for.
//! Nothing here is on the way of a message but a look at its id.

mod client;
mod gather;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};
use pilot_engine::address::OverlayAddress;
use pilot_engine::{PeerConfig, PeerId};
use serde::Serialize;
use serde_json::Value;

use super::access::Access;
use super::audit::Audit;
use super::outbox::{Delivery, Outbox, outbox};
use super::protocol::{Code, Error, ToNode};
use crate::control::Inspector;
use crate::link::doorbell::Doorbell;
use crate::service::Notice;
pub(crate) use client::Client;
pub(crate) use gather::{Gather, Inspection, numbers};

/// The worker that holds the node's contexts, and then has all of its tunnels.
const CONTEXTS_WORKER: u8 = 0;

/// An application, as the node numbers them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub(crate) struct ClientId(pub(crate) u64);

/// A peer as applications name it, on one of its lanes.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) address: OverlayAddress,
    pub(crate) lane: u8,
    pub(crate) id: PeerId,
    /// Which worker has its tunnel.
    pub(crate) worker: u8,
    /// Ports of this node that it may connect to; `None`: all.
    pub(crate) ports: Option<Vec<u16>>,
}

/// What a worker is told.
pub(crate) enum ToWorker {
    Attach {
        client: ClientId,
        outbox: Outbox,
    },
    Detach {
        client: ClientId,
    },
    Do {
        client: ClientId,
        what: ToNode,
    },
    Inspect(Arc<Gather>),
    /// Answered by the ids of those that were added.
    Change {
        changes: Arc<[PeerChange]>,
        done: Sender<Vec<PeerId>>,
    },
    /// These are the peers now.
    Named(Arc<[(String, PeerId)]>),
    /// L2.5: the node stops after so long.
    Drain {
        drain_ms: u64,
    },
}

/// What becomes of a peer while the node runs.
#[derive(Clone, Debug)]
pub(crate) enum PeerChange {
    /// Another one, whose tunnels are these workers', a lane each.
    Add(PeerConfig, Vec<u8>),
    /// One that is there.
    Alter(PeerConfig),
    Remove(PeerId),
}

/// Who listens on a port.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    pub(crate) client: ClientId,
    /// Connections that wait for the application (L3.4).
    pub(crate) waiting: Arc<AtomicUsize>,
}

/// See the module's head.
pub(crate) struct Switchboard {
    peers: ArcSwap<Vec<Peer>>,
    /// What `hello` says of the node.
    node: Value,
    control: Inspector,
    workers: Vec<Sender<ToWorker>>,
    doorbells: Arc<[Doorbell]>,
    // Taken when somebody begins or ends to listen, and when a peer opens a connection.
    ports: Mutex<BTreeMap<u16, Listening>>,
    next_client: AtomicU64,
    /// Counts connections, which take a peer's lanes in turn.
    next_lane: AtomicUsize,
    /// Applications that have a session.
    applications: AtomicUsize,
    /// L2.5: the node was told to stop.
    is_draining: AtomicBool,
    notices: Sender<Notice>,
}

impl Switchboard {
    /// For workers with these doorbells; and what each is told, in their order.
    pub(crate) fn new(
        peers: Vec<Peer>,
        node: Value,
        control: Inspector,
        doorbells: Vec<Doorbell>,
        notices: Sender<Notice>,
    ) -> (Arc<Self>, Vec<Receiver<ToWorker>>) {
        // Not bounded by themselves: what an application may have under way is (credit, requests), and a socket whose frames wait
        // for a worker is not read.
        let (workers, inboxes) = doorbells.iter().map(|_| crossbeam_channel::unbounded()).unzip();
        let board = Self {
            peers: ArcSwap::from_pointee(peers),
            node,
            control,
            workers,
            doorbells: doorbells.into(),
            ports: Mutex::default(),
            next_client: AtomicU64::new(0),
            next_lane: AtomicUsize::new(0),
            applications: AtomicUsize::new(0),
            is_draining: AtomicBool::new(false),
            notices,
        };
        (Arc::new(board), inboxes)
    }

    /// A new application.
    pub(crate) fn attach(self: &Arc<Self>, access: Access) -> (Client, Delivery) {
        let id = ClientId(self.next_client.fetch_add(1, Ordering::Relaxed));
        self.applications.fetch_add(1, Ordering::Relaxed);
        let (outbox, delivery) = outbox(Arc::clone(&self.doorbells));
        for worker in 0..self.workers.len() {
            self.tell(worker, ToWorker::Attach { client: id, outbox: outbox.clone() });
        }
        (Client { id, outbox, access, board: Arc::clone(self) }, delivery)
    }

    /// A peer's lanes, by its name or address; never none.
    fn lanes(&self, given: &str) -> Result<Vec<Peer>, Error> {
        let address: Option<OverlayAddress> = given.parse().ok();
        let is_it = |peer: &&Peer| peer.name == given || Some(peer.address) == address;
        let peers = self.peers.load();
        let lanes: Vec<_> = peers.iter().filter(is_it).cloned().collect();
        if lanes.is_empty() {
            let known = peers.iter().filter(|peer| peer.lane == 0).map(|peer| peer.name.as_str());
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(Error::new(Code::UnknownPeer, format!("peer: given `{given}`, configured: {known}")));
        }
        Ok(lanes)
    }

    /// A peer's first lane.
    pub(crate) fn peer(&self, given: &str) -> Result<Peer, Error> {
        Ok(self.lanes(given)?.swap_remove(0))
    }

    /// The worker that begins the next connection to a peer: its lanes take turns.
    fn next_worker(&self, given: &str) -> Result<u8, Error> {
        let lanes = self.lanes(given)?;
        Ok(lanes[self.next_lane.fetch_add(1, Ordering::Relaxed) % lanes.len()].worker)
    }

    /// The peer's first lane that a worker has, of which there is one if [`Switchboard::next_worker`] named it. More than one are of use
    /// to peers that have more workers.
    pub(crate) fn lane_of(&self, worker: u8, given: &str) -> Result<Peer, Error> {
        let mut lanes = self.lanes(given)?;
        let at = lanes.iter().position(|lane| lane.worker == worker).unwrap_or(0);
        Ok(lanes.swap_remove(at))
    }

    /// The worker that reaches a peer's contexts; without a peer, that has the node's own.
    fn holder(&self, peer: Option<&str>) -> Result<u8, Error> {
        peer.map_or(Ok(CONTEXTS_WORKER), |peer| Ok(self.peer(peer)?.worker))
    }

    pub(crate) fn named(&self, id: PeerId) -> Option<Peer> {
        self.peers.load().iter().find(|peer| peer.id == id).cloned()
    }

    pub(crate) fn peers(&self) -> Arc<Vec<Peer>> {
        self.peers.load_full()
    }

    /// Has all workers change peers, and then who is who. The ids of those that were added; `None`: a worker has ended.
    pub(crate) fn change_peers(
        &self,
        changes: Vec<PeerChange>,
        peers: impl FnOnce(Vec<PeerId>) -> Vec<Peer>,
    ) -> Option<()> {
        let changes: Arc<[PeerChange]> = changes.into();
        let (done, answers) = crossbeam_channel::unbounded();
        for worker in 0..self.workers.len() {
            self.tell(worker, ToWorker::Change { changes: Arc::clone(&changes), done: done.clone() });
        }
        drop(done);
        // The same at all, which add in the same order.
        let mut added = Vec::new();
        for _ in &self.workers {
            added = answers.recv().ok()?;
        }
        let peers = peers(added);
        let names: Arc<[_]> = peers.iter().map(|peer| (peer.name.clone(), peer.id)).collect();
        self.peers.store(Arc::new(peers));
        for worker in 0..self.workers.len() {
            self.tell(worker, ToWorker::Named(Arc::clone(&names)));
        }
        Some(())
    }

    /// L2.5: nothing is begun any more, and applications are told so.
    pub(crate) fn drain(&self, drain_ms: u64) {
        self.is_draining.store(true, Ordering::Release);
        for worker in 0..self.workers.len() {
            self.tell(worker, ToWorker::Drain { drain_ms });
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// How many applications have a session.
    pub(crate) fn applications(&self) -> usize {
        self.applications.load(Ordering::Relaxed)
    }

    /// For the record.
    pub(crate) fn audit(&self, audit: Audit) {
        // Bounded: an operator's terminal that does not read must not hold applications back.
        if self.notices.try_send(Notice::Audit(Box::new(audit))).is_err() {
            tracing::warn!("an audit line is lost: nobody reads them");
        }
    }

    /// Who listens on a port.
    pub(crate) fn listening(&self, port: u16) -> Option<Listening> {
        self.ports().get(&port).cloned()
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<u16, Listening>> {
        // Each change is one call: nobody leaves it half done.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, worker: usize, what: ToWorker) {
        // An id of no worker names nothing (L1.5), and a worker that has ended does nothing.
        if let (Some(inbox), Some(doorbell)) = (self.workers.get(worker), self.doorbells.get(worker)) {
            let _ = inbox.send(what);
            doorbell.ring();
        }
    }
}
