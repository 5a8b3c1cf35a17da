//! What all workers of a node and all its applications share: who is who, who listens where, and which worker a frame is for.
//! Nothing here is on the way of a message but a look at its id.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};
use pilot_engine::address::OverlayAddress;
use pilot_engine::{PeerConfig, PeerId};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::access::{Access, ContextRight};
use super::audit::Audit;
use super::limits::{
    CLIENT_CREDIT_BYTES, FIRST_EPHEMERAL_PORT, FIRST_USER_PORT, FLOW_CREDIT_BYTES, FRAME_OVERHEAD_BYTES,
    MAX_CONNECTIONS, MAX_DATA_BYTES, MAX_FRAME_BYTES, MAX_LISTED, MAX_REQUESTS,
};
use super::outbox::{Delivery, Outbox, outbox};
use super::protocol::{Code, Error, Id, NewContext, Request, SESSION, ToApplication, ToNode, VERSION, cost};
use crate::control::Inspector;
use crate::link::doorbell::Doorbell;
use crate::service::{CONTEXTS_PORT, ECHO_PORT, FILES_PORT, Notice};
use pilot_engine::limits::MAX_MESSAGE_BYTES;

/// The worker that holds the node's contexts, and then has all of its tunnels.
const CONTEXTS_WORKER: u8 = 0;
/// The worker that asks strangers who they are: each could.
const INTRODUCTIONS_WORKER: u8 = 0;

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

/// What all workers are asked together: the last one to say its part answers.
pub(crate) struct Gather {
    pub(crate) client: ClientId,
    pub(crate) what: Inspection,
    request: u32,
    outbox: Outbox,
    /// Of the whole node, which no worker's part has.
    whole: Value,
    left: AtomicUsize,
    parts: Mutex<Vec<Value>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inspection {
    Peers,
    Connections,
    Stats,
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

/// An application's end of it. Dropped, all that the application had is ended (L2.3).
pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) outbox: Outbox,
    pub(crate) access: Access,
    board: Arc<Switchboard>,
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

    /// Has all workers, and the control thread, say what they know, for one answer.
    fn gather(&self, client: ClientId, outbox: &Outbox, request: u32, what: Inspection) {
        let mut whole = json!({});
        let mut left = self.workers.len();
        if what == Inspection::Stats {
            whole["datapath"] = serde_json::to_value(&*self.control.datapath()).unwrap_or_default();
            whole["workers"] = self.workers.len().into();
            whole["applications"] = self.applications().into();
            left += 1;
        }
        let (outbox, left, parts) = (outbox.clone(), AtomicUsize::new(left), Mutex::default());
        let gather = Arc::new(Gather { client, what, request, outbox, whole, left, parts });
        for worker in 0..self.workers.len() {
            self.tell(worker, ToWorker::Inspect(Arc::clone(&gather)));
        }
        if what == Inspection::Stats {
            self.control.xdp_counters(move |verdicts| gather.say(json!({"xdp": verdicts})));
        }
    }

    /// What `stats` and `peers` are answered, for who has no session. `None`: the node stops.
    pub(crate) async fn inspect(&self) -> Option<[Value; 2]> {
        let (outbox, mut delivery) = outbox(Arc::clone(&self.doorbells));
        // No application asks, so none of its connections is told.
        let nobody = ClientId(u64::MAX);
        self.gather(nobody, &outbox, 0, Inspection::Stats);
        self.gather(nobody, &outbox, 1, Inspection::Peers);
        let mut answers = [None, None];
        while answers.iter().any(Option::is_none) {
            if let ToApplication::Result { request, value } = delivery.next().await? {
                answers[request as usize % 2] = Some(value);
            }
        }
        let [stats, peers] = answers;
        Some([stats?, peers?])
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

impl Client {
    /// Does what the application says, or has the right worker do it. Never blocks.
    pub(crate) fn handle(&self, what: ToNode) {
        let worker = match &what {
            ToNode::Request { request, what: asked } => match self.on_request(*request, asked) {
                Ok(Some(worker)) => worker,
                Ok(None) => return,
                Err(error) => return self.outbox.put(ToApplication::Error { request: *request, error }),
            },
            ToNode::Message(id, _)
            | ToNode::Datagram(id, _)
            | ToNode::Data(id, _)
            | ToNode::Finish(id)
            | ToNode::Credit(id, _)
            | ToNode::Open { connection: id, .. } => id.worker(),
        };
        if usize::from(worker) < self.board.workers.len() {
            self.outbox.on_said();
            self.board.tell(worker.into(), ToWorker::Do { client: self.id, what });
        } else if let ToNode::Message(_, body) | ToNode::Data(_, body) = what {
            // L1.5: for nothing, but its cost is given back.
            self.outbox.put(ToApplication::Credit(SESSION, cost(&body)));
        }
    }

    /// The worker that answers it; `None`: it is answered, or will be.
    fn on_request(&self, request: u32, what: &Request) -> Result<Option<u8>, Error> {
        let done = |value| self.outbox.put(ToApplication::Result { request, value });
        match what {
            Request::Hello { version, .. } if *version == VERSION => done(self.welcome()),
            Request::Hello { version, .. } => {
                let words = format!("version: given {version}, this node speaks {VERSION}");
                return Err(Error::new(Code::Version, words));
            }
            Request::Connect { .. } | Request::Listen { .. } if self.board.is_draining() => {
                return Err(Error::stops());
            }
            Request::Connect { peer, port, .. } => {
                self.access.check_port(*port)?;
                return Ok(Some(self.board.next_worker(peer)?));
            }
            Request::Listen { port } => self.listen(request, *port)?,
            Request::Unlisten { port } => {
                let mut ports = self.board.ports();
                if ports.get(port).is_none_or(|listening| listening.client != self.id) {
                    return Err(Error::new(Code::NoSuch, format!("this application does not listen on port {port}")));
                }
                ports.remove(port);
                self.board.audit(Audit::ListeningEnded { application: self.id.0, port: *port });
                done(json!({}));
            }
            Request::Peers => self.gather(request, Inspection::Peers),
            Request::Connections => self.gather(request, Inspection::Connections),
            Request::Stats { connection: None } => self.gather(request, Inspection::Stats),
            Request::Subscribe => {
                for worker in 0..self.board.workers.len() {
                    let what = ToNode::Request { request, what: Request::Subscribe };
                    self.outbox.on_said();
                    self.board.tell(worker, ToWorker::Do { client: self.id, what });
                }
                done(json!({}));
            }
            Request::Introduce { .. } if !self.access.is_owner() => {
                let words = "introduce: shows who this node is, and is for the node's own user";
                return Err(Error::new(Code::NotAllowed, words));
            }
            Request::Introduce { .. } => return Ok(Some(INTRODUCTIONS_WORKER)),
            Request::ContextCreate(NewContext { name, read, write, .. }) => {
                self.access.check_context(ContextRight::Create, name)?;
                read.iter()
                    .chain(write)
                    .filter(|peer| *peer != "*")
                    .try_for_each(|peer| self.board.peer(peer).map(|_| ()))?;
                return Ok(Some(CONTEXTS_WORKER));
            }
            Request::ContextDelete { name } => {
                self.access.check_context(ContextRight::Create, name)?;
                return Ok(Some(CONTEXTS_WORKER));
            }
            Request::ContextChange { peer, name, .. } => {
                self.access.check_context(ContextRight::Change, name)?;
                return self.board.holder(peer.as_deref()).map(Some);
            }
            Request::ContextFollow { peer, name, .. } => {
                self.access.check_context(ContextRight::Follow, name)?;
                return self.board.holder(peer.as_deref()).map(Some);
            }
            Request::Accept { connection: id }
            | Request::Refuse { connection: id, .. }
            | Request::Close { connection: id, .. }
            | Request::Stats { connection: Some(id) }
            | Request::Reset { stream: id, .. }
            | Request::Stop { stream: id, .. }
            | Request::ContextUnfollow { following: id } => {
                if usize::from(id.worker()) >= self.board.workers.len() {
                    return Err(Error::no_such("connection, stream or following", *id));
                }
                return Ok(Some(id.worker()));
            }
        }
        Ok(None)
    }

    /// L1.2.
    fn welcome(&self) -> Value {
        json!({
            "version": VERSION,
            "versions": [VERSION],
            "node": self.board.node,
            "limits": {
                "frame_bytes": MAX_FRAME_BYTES,
                "message_bytes": MAX_MESSAGE_BYTES,
                "data_bytes": MAX_DATA_BYTES,
                "flow_credit_bytes": FLOW_CREDIT_BYTES,
                "client_credit_bytes": CLIENT_CREDIT_BYTES,
                "frame_overhead_bytes": FRAME_OVERHEAD_BYTES,
                "requests": MAX_REQUESTS,
                "connections": MAX_CONNECTIONS,
            },
        })
    }

    /// L3.3.
    fn listen(&self, request: u32, port: u16) -> Result<(), Error> {
        if [ECHO_PORT, FILES_PORT, CONTEXTS_PORT].contains(&port) {
            return Err(Error::new(Code::NotAllowed, format!("port {port} is the node's own")));
        }
        if (1..FIRST_USER_PORT).contains(&port) && !self.access.is_owner() {
            let words = format!("port: given {port}, allowed: from {FIRST_USER_PORT}, or as the node's own user");
            return Err(Error::new(Code::NotAllowed, words));
        }
        let mut ports = self.board.ports();
        let port = if port == 0 {
            let mut all = FIRST_EPHEMERAL_PORT..=u16::MAX;
            let free = all.find(|port| !ports.contains_key(port) && self.access.check_port(*port).is_ok());
            free.ok_or_else(|| Error::new(Code::TooMany, "no port is free that this application may use"))?
        } else {
            self.access.check_port(port)?;
            port
        };
        if ports.contains_key(&port) {
            return Err(Error::new(Code::PortInUse, format!("an application listens on port {port} already")));
        }
        ports.insert(port, Listening { client: self.id, waiting: Arc::default() });
        self.board.audit(Audit::Listening { application: self.id.0, port });
        // Before the lock is given back, and so before anything that a worker says of the port.
        self.outbox.put(ToApplication::Result { request, value: json!({"port": port}) });
        Ok(())
    }

    fn gather(&self, request: u32, what: Inspection) {
        self.board.gather(self.id, &self.outbox, request, what);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.board.ports().retain(|port, listening| {
            let is_ours = listening.client == self.id;
            if is_ours {
                self.board.audit(Audit::ListeningEnded { application: self.id.0, port: *port });
            }
            !is_ours
        });
        self.board.applications.fetch_sub(1, Ordering::Relaxed);
        for worker in 0..self.board.workers.len() {
            self.board.tell(worker, ToWorker::Detach { client: self.id });
        }
    }
}

impl Gather {
    /// A worker's part: a list, the beginning of one and how long it is, or numbers that add up.
    pub(crate) fn say(&self, part: Value) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.push(part);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let value = match self.what {
                Inspection::Peers => json!({"peers": joined(&mut parts, "name")}),
                Inspection::Connections => {
                    let all = parts.iter().filter_map(|part| part["all"].as_u64()).sum::<u64>();
                    let mut lists = parts.iter_mut().map(|part| part["listed"].take()).collect();
                    let mut listed = joined(&mut lists, "peer");
                    listed.truncate(MAX_LISTED);
                    json!({"more": all - listed.len() as u64, "connections": listed})
                }
                Inspection::Stats => {
                    let mut all = parts.drain(..).fold(json!({}), sum);
                    let (all_members, whole) = (all.as_object_mut(), self.whole.as_object());
                    all_members.into_iter().for_each(|all| all.extend(whole.cloned().unwrap_or_default()));
                    all
                }
            };
            self.outbox.put(ToApplication::Result { request: self.request, value });
        }
    }
}

/// All lists as one, in the order of a member, and of lanes.
fn joined(parts: &mut Vec<Value>, by: &str) -> Vec<Value> {
    let lists = parts.drain(..).filter_map(|part| if let Value::Array(list) = part { Some(list) } else { None });
    let mut all: Vec<Value> = lists.flatten().collect();
    all.sort_by_cached_key(|value| (value[by].as_str().map(str::to_owned), value["lane"].as_u64()));
    all
}

/// Adds numbers, member by member.
fn sum(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Object(mut one), Value::Object(other)) => {
            for (name, value) in other {
                let before = one.remove(&name).unwrap_or(Value::Null);
                one.insert(name, sum(before, value));
            }
            Value::Object(one)
        }
        (Value::Null, other) => other,
        (one, other) => (one.as_u64().unwrap_or(0) + other.as_u64().unwrap_or(0)).into(),
    }
}

/// Numbers with their names, as JSON.
pub(crate) fn numbers<'a>(all: impl IntoIterator<Item = (&'a str, u64)>) -> Value {
    Value::Object(all.into_iter().map(|(name, number)| (name.to_owned(), number.into())).collect::<Map<_, _>>())
}

/// Connections and streams are numbered so that late frames for what is over meet nothing new (L1.4).
#[derive(Debug, Default)]
pub(crate) struct Ids {
    count: u32,
}

impl Ids {
    /// The next id that is not `taken`.
    pub(crate) fn next(&mut self, worker: u8, by_application: bool, taken: impl Fn(Id) -> bool) -> Id {
        loop {
            // 23 bits are left; 0 is no id.
            self.count = (self.count % ((1 << 23) - 1)) + 1;
            let id = Id::new(self.count, worker, by_application);
            if !taken(id) {
                return id;
            }
        }
    }
}
