//! A worker's side of its applications: what they say is done on the endpoint, and what happens there is told them.
//!
//! A [`Host`] is what runs on every worker of a node: the services of the node itself, and the connections of all applications
//! whose tunnels are this worker's. What it does for one application ends when that one has no credit or does not read; it goes on
//! when there is room, and the others notice nothing.

mod client;
mod connection;
mod contexts;
mod events;
mod flow;
mod ids;
mod introduce;
mod link;
mod stats;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use pilot_engine::{ConnectionHandle, Endpoint, Event, Instant, PeerId, RefuseCode};
use serde_json::{Value, json};

use super::limits::{COMMANDS_A_PASS, MAX_BACKLOG, MAX_LISTED};
use super::protocol::{self, Id, SESSION};
use super::switchboard::{ClientId, Gather, Inspection, PeerChange, Switchboard, ToWorker};
use crate::context::LinkId;
use crate::service::Services;
use crate::service::contexts::ContextOwner;
use crate::worker::{Application, Counted};
use client::Client;

/// See the module's head.
pub struct Host {
    services: Services,
    worker: u8,
    board: Arc<Switchboard>,
    inbox: Receiver<ToWorker>,
    clients: HashMap<ClientId, Client>,
    /// Whose a connection is. What is not in here is the services'.
    owners: HashMap<ConnectionHandle, (ClientId, Id)>,
    /// Whose a link to the node's own contexts is.
    here: BTreeMap<LinkId, (ClientId, Id)>,
    /// Requests that the disk is at work for, by the name of the context: who asked, and what it is answered.
    storing: BTreeMap<String, (ClientId, u32, Value)>,
    /// Who asked for changes is answered in the next pass, when the changes have left: to wake an application may take longer.
    answers: Vec<(ClientId, u32, Result<Value, protocol::Error>)>,
    /// Who asked what is counted: answered at the end of the pass.
    counting: Vec<Arc<Gather>>,
    /// Times that what an application sent had to wait for the peer's credit, or for room.
    credit_stalls: u64,
    /// Who asked who is at an address.
    introducing: BTreeMap<SocketAddr, (ClientId, u32)>,
    /// When connections are to be looked at.
    timers: BTreeSet<(Instant, ClientId, Id)>,
    /// Applications for which something waits that their outbox has no room for.
    starving: BTreeSet<ClientId>,
    /// Where streams are read into, before their bytes are given away.
    scratch: Vec<u8>,
}

/// What an operation works with beside its client.
struct Context<'a> {
    endpoint: &'a mut Endpoint,
    now: Instant,
    owners: &'a mut HashMap<ConnectionHandle, (ClientId, Id)>,
    here: &'a mut BTreeMap<LinkId, (ClientId, Id)>,
    storing: &'a mut BTreeMap<String, (ClientId, u32, Value)>,
    answers: &'a mut Vec<(ClientId, u32, Result<Value, protocol::Error>)>,
    credit_stalls: &'a mut u64,
    introducing: &'a mut BTreeMap<SocketAddr, (ClientId, u32)>,
    /// The node's own, at the worker that has them.
    contexts: Option<&'a mut ContextOwner>,
    timers: &'a mut BTreeSet<(Instant, ClientId, Id)>,
    starving: &'a mut BTreeSet<ClientId>,
    scratch: &'a mut Vec<u8>,
    board: &'a Switchboard,
}

impl Host {
    pub(crate) fn new(services: Services, worker: u8, board: Arc<Switchboard>, inbox: Receiver<ToWorker>) -> Self {
        Self {
            services,
            worker,
            board,
            inbox,
            clients: HashMap::new(),
            owners: HashMap::new(),
            here: BTreeMap::new(),
            storing: BTreeMap::new(),
            answers: Vec::new(),
            counting: Vec::new(),
            credit_stalls: 0,
            introducing: BTreeMap::new(),
            timers: BTreeSet::new(),
            starving: BTreeSet::new(),
            scratch: Vec::new(),
        }
    }

    /// The node stops: its applications are told.
    pub(crate) fn end(&mut self) {
        self.give_answers();
        self.clients.values().for_each(|client| client.outbox.end(protocol::Error::gone()));
    }

    /// Whether there were any.
    fn give_answers(&mut self) -> bool {
        let any = !self.answers.is_empty();
        for (client, request, result) in self.answers.drain(..) {
            // One that is gone needs none.
            if let Some(client) = self.clients.get(&client) {
                client.answer(request, result);
            }
        }
        any
    }

    /// Runs something for a client, if it is there.
    fn with<R>(
        &mut self,
        endpoint: &mut Endpoint,
        now: Instant,
        client: ClientId,
        run: impl FnOnce(&mut Client, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let Self {
            services,
            clients,
            owners,
            here,
            storing,
            answers,
            credit_stalls,
            introducing,
            timers,
            starving,
            scratch,
            board,
            ..
        } = self;
        let client = clients.get_mut(&client)?;
        let contexts = services.contexts();
        let before = client.connections.len();
        let mut context = Context {
            endpoint,
            now,
            owners,
            here,
            storing,
            answers,
            credit_stalls,
            introducing,
            contexts,
            timers,
            starving,
            scratch,
            board,
        };
        let result = run(client, &mut context);
        let after = client.connections.len();
        if before != after {
            client.outbox.on_connections(before, after);
            client.end_if_drained(board);
        }
        Some(result)
    }

    fn on_told(&mut self, endpoint: &mut Endpoint, now: Instant, told: ToWorker) {
        match told {
            ToWorker::Attach { client, outbox } => {
                self.clients.insert(client, Client::new(client, outbox, self.worker));
            }
            ToWorker::Detach { client } => {
                self.with(endpoint, now, client, Client::end);
                self.clients.remove(&client);
                self.starving.remove(&client);
            }
            ToWorker::Do { client, what } => {
                self.with(endpoint, now, client, |client, ctx| {
                    client.outbox.on_heard();
                    client.on_command(ctx, what);
                });
            }
            ToWorker::Inspect(gather) => {
                let part = match gather.what {
                    Inspection::Peers => self.peers(endpoint),
                    Inspection::Connections => self.connections(endpoint, gather.client),
                    Inspection::Stats => return self.counting.push(gather),
                };
                gather.say(part);
            }
            ToWorker::Change { changes, done } => {
                let added = changes.iter().flat_map(|change| self.change_peer(endpoint, now, change)).collect();
                // Who asked may have given up.
                let _ = done.send(added);
            }
            ToWorker::Named(peers) => self.services.set_peers(&peers),
            // One tells; the others refuse what peers offer from now on, as that one does.
            ToWorker::Drain { drain_ms } if self.worker == 0 => {
                for client in self.clients.values() {
                    client.tell(SESSION, protocol::Event::ShuttingDown { drain_ms });
                    client.end_if_drained(&self.board);
                }
            }
            ToWorker::Drain { .. } => {}
        }
    }

    /// The ids of a peer that was added, one a lane.
    fn change_peer(&self, endpoint: &mut Endpoint, now: Instant, change: &PeerChange) -> Vec<PeerId> {
        match change {
            PeerChange::Add(peer, workers) => {
                let first = endpoint.add_peer(*peer);
                let lanes = workers.iter().enumerate().map(|(lane, worker)| {
                    // The configuration has checked the lane.
                    let id = endpoint.add_lane(first, lane as u8).unwrap_or(first);
                    endpoint.set_owner(id, *worker);
                    if peer.endpoint.is_some() {
                        endpoint.open_tunnel(now, id);
                    }
                    id
                });
                return lanes.collect();
            }
            PeerChange::Alter(peer) => _ = endpoint.add_peer(*peer),
            PeerChange::Remove(id) => endpoint.remove_peer(now, *id),
        }
        Vec::new()
    }

    /// L3.4: offers a connection to who listens on its port. Whether anybody does.
    fn on_offered(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle, port: u16) -> bool {
        let Some(listening) = self.board.listening(port) else { return false };
        let Some(peer) = self.board.named(connection.peer()) else { return false };
        if listening.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_BACKLOG {
            listening.waiting.fetch_sub(1, Ordering::Relaxed);
            let reason = format!("{MAX_BACKLOG} connections wait on port {port}");
            endpoint.refuse(now, connection, RefuseCode::TooMany as u64, &reason);
            return true;
        }
        let client = listening.client;
        self.with(endpoint, now, client, |client, ctx| {
            client.on_offered(ctx, connection, port, &peer, listening.waiting)
        })
        .is_some()
    }

    /// Whether a peer may connect to a port of this node at all. One that is added is known here before it is named there.
    fn is_allowed(&self, connection: ConnectionHandle, port: u16) -> bool {
        let peer = self.board.named(connection.peer());
        peer.is_some_and(|peer| peer.ports.as_ref().is_none_or(|ports| ports.contains(&port)))
    }

    fn tell_subscribers(&self, event: &protocol::Event) {
        for client in self.clients.values().filter(|client| client.is_subscribed) {
            client.tell(SESSION, event.clone());
        }
    }

    fn peers(&self, endpoint: &Endpoint) -> Value {
        let peers = self.board.peers();
        let own = peers.iter().filter(|peer| peer.worker == self.worker);
        own.map(|peer| {
            let stats = endpoint.tunnel_stats(peer.id);
            let of_it = self.owners.keys().filter(|connection| connection.peer() == peer.id);
            json!({
                "name": peer.name,
                "address": peer.address.to_string(),
                "lane": peer.lane,
                "worker": self.worker,
                "up": endpoint.is_up(peer.id),
                "endpoint": endpoint.last_address(peer.id),
                "smoothed_rtt_us": stats.map(|stats| stats.smoothed_rtt.as_micros() as u64),
                "connections": of_it.count(),
            })
        })
        .collect()
    }

    fn connections(&self, endpoint: &Endpoint, asker: ClientId) -> Value {
        let all = self.owners.iter().filter_map(|(handle, (client, id))| {
            let connection = self.clients.get(client)?.connection(*id)?;
            let named = self.board.named(handle.peer());
            let mut it = json!({
                "peer": named.as_ref().map(|peer| peer.name.as_str()),
                "lane": named.as_ref().map(|peer| peer.lane),
                "port": endpoint.port(*handle),
                "opened_here": connection.opened_here,
                "open": endpoint.is_open(*handle),
                "application": client,
            });
            if *client == asker {
                it["connection"] = json!(id);
            }
            Some(it)
        });
        json!({"listed": all.take(MAX_LISTED).collect::<Vec<_>>(), "all": self.owners.len()})
    }
}

impl Application for Host {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        let connection = match event {
            Event::Offered { connection, port } => {
                if self.board.is_draining() {
                    endpoint.refuse(now, connection, RefuseCode::NoListener as u64, "the node stops");
                } else if !self.is_allowed(connection, port) {
                    let reason = format!("this peer may not connect to port {port}");
                    endpoint.refuse(now, connection, RefuseCode::NotAllowed as u64, &reason);
                } else if !self.on_offered(endpoint, now, connection, port) {
                    self.services.on_event(endpoint, now, event);
                }
                return;
            }
            Event::TunnelUp { peer, .. } => {
                if let Some(peer) = self.board.named(peer) {
                    self.tell_subscribers(&protocol::Event::TunnelUp { peer: peer.name });
                }
                return self.services.on_event(endpoint, now, event);
            }
            Event::TunnelDown { peer, ref reason } => {
                if let Some(peer) = self.board.named(peer) {
                    let (peer, reason) = (peer.name, reason.to_string());
                    self.tell_subscribers(&protocol::Event::TunnelDown { peer, reason });
                }
                return self.services.on_event(endpoint, now, event);
            }
            Event::Introduced { .. } | Event::NotIntroduced { .. } => {
                self.on_introduced(&event);
                return self.services.on_event(endpoint, now, event);
            }
            Event::Sending { .. } => return self.services.on_event(endpoint, now, event),
            Event::Connected { connection }
            | Event::MessagesReadable { connection }
            | Event::MessagesWritable { connection }
            | Event::StreamOpened { connection, .. }
            | Event::StreamReadable { connection, .. }
            | Event::StreamWritable { connection, .. }
            | Event::StreamReset { connection, .. }
            | Event::StreamStopped { connection, .. }
            | Event::StreamConsumed { connection, .. }
            | Event::MessagesConsumed { connection }
            | Event::DatagramsReadable { connection }
            | Event::PeerRestarted { connection, .. }
            | Event::Closed { connection, .. } => connection,
        };
        match self.owners.get(&connection) {
            Some(&(client, id)) => {
                self.with(endpoint, now, client, |client, ctx| client.on_event(ctx, id, event));
            }
            None => self.services.on_event(endpoint, now, event),
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let mut any = self.services.poll(endpoint, now);
        any |= self.give_answers();
        for _ in 0..COMMANDS_A_PASS {
            let Ok(told) = self.inbox.try_recv() else { break };
            self.on_told(endpoint, now, told);
            any = true;
        }
        while let Some(link) = self.services.contexts().and_then(ContextOwner::poll_here) {
            if let Some(&(client, id)) = self.here.get(&link) {
                self.with(endpoint, now, client, |client, ctx| client.pump(ctx, id));
                any = true;
            }
        }
        while let Some((name, result)) = self.services.contexts().and_then(ContextOwner::poll_settled) {
            // Without one, nobody asked; or who did is gone, and it is done all the same.
            if let Some((client, request, answer)) = self.storing.remove(&name)
                && let Some(client) = self.clients.get(&client)
            {
                client.on_stored(request, answer, &name, result);
            }
            any = true;
        }
        // Few at a time: those that do not read.
        let mut next = self.starving.first().copied();
        while let Some(client) = next {
            next = self.starving.range((Bound::Excluded(client), Bound::Unbounded)).next().copied();
            if self.with(endpoint, now, client, Client::on_room).unwrap_or(true) {
                self.starving.remove(&client);
                any = true;
            }
        }
        while let Some(&(_, client, id)) = self.timers.first().filter(|(at, ..)| *at <= now) {
            self.with(endpoint, now, client, |client, ctx| client.on_timer(ctx, id));
            any = true;
        }
        any
    }

    fn deadline(&self) -> Option<Instant> {
        if !self.answers.is_empty() {
            return Some(Instant::ORIGIN);
        }
        self.timers.first().map(|(at, ..)| *at)
    }

    fn wants_counted(&self) -> bool {
        !self.counting.is_empty()
    }

    fn on_counted(&mut self, endpoint: &Endpoint, counted: Counted) {
        let part = self.stats(endpoint, &counted);
        self.counting.drain(..).for_each(|gather| gather.say(part.clone()));
    }
}
