//! Shared contexts over an endpoint: [`ContextOwner`] is the service on [`super::CONTEXTS_PORT`], [`ContextClient`] follows
//! and changes the contexts of one peer and comes back by itself. What they say to each other is `crate::context`'s business;
//! how their messages travel is `carrier`'s.

mod carrier;
mod client;

pub use client::ContextClient;

use std::collections::{BTreeMap, VecDeque};

use crossbeam_channel::Receiver;
use pilot_engine::{ConnectionHandle, Endpoint, Event, Instant, PeerId};

use super::store::{Outcome, Store};
use crate::context::limits::FAN_OUT;
use crate::context::{LinkId, Owner, Violation};
use carrier::Carrier;

/// Code of CLOSE_CONNECTION when the other end broke the protocol of contexts (`docs/context.md` C2.2).
pub const VIOLATION: u64 = 1;

/// The contexts of a node. All of its tunnels must be of one worker, which has this service.
pub struct ContextOwner {
    owner: Owner,
    /// Where durable contexts are kept.
    store: Option<Store>,
    names: BTreeMap<PeerId, String>,
    connections: BTreeMap<ConnectionHandle, LinkId>,
    /// By [`LinkId::place`]: what a change goes through for each of its followers.
    links: Vec<Option<Linked>>,
    /// Links of this process for which there may be something.
    here: VecDeque<LinkId>,
    /// Names of contexts that are to be deleted.
    deletions: Option<Receiver<String>>,
    buffer: Vec<u8>,
}

/// An accepted connection.
struct Linked {
    id: LinkId,
    connection: ConnectionHandle,
    carrier: Carrier,
}

impl ContextOwner {
    /// Serves what `owner` holds to these peers. Without a store, none of it may be durable.
    pub fn new(owner: Owner, store: Option<Store>, peers: &[(String, PeerId)]) -> Self {
        let names = peers.iter().map(|(name, id)| (*id, name.clone())).collect();
        let (connections, links) = (BTreeMap::new(), Vec::new());
        Self { owner, store, names, connections, links, here: VecDeque::new(), deletions: None, buffer: Vec::new() }
    }

    /// Deletes the contexts whose names come here ([`ContextOwner::delete`]); whoever sends them rings the worker's doorbell.
    pub fn with_deletions(self, deletions: Receiver<String>) -> Self {
        Self { deletions: Some(deletions), ..self }
    }

    /// C1.4: deletes a context: who follows it is told, and the store forgets it. Whether there was one.
    pub fn delete(&mut self, endpoint: &mut Endpoint, now: Instant, name: &str) -> bool {
        let was_there = self.owner.remove(name);
        if let Some(store) = self.store.as_ref().filter(|_| was_there) {
            store.forget(name);
        }
        self.transmit(endpoint, now);
        was_there
    }

    /// Takes a connection for the port.
    pub fn accept(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        // An error means that it is closed already, which its own event tells.
        let _ = endpoint.accept(now, connection);
        // A peer without a name has the rights of nobody: no name is empty.
        let name = self.names.get(&connection.peer()).map_or("", String::as_str);
        let id = self.owner.connect(Some(name));
        self.connections.insert(connection, id);
        let place = id.place();
        if self.links.len() <= place {
            self.links.resize_with(place + 1, || None);
        }
        self.links[place] = Some(Linked { id, connection, carrier: Carrier::default() });
    }

    /// Handles an event, if it is about a connection that was accepted.
    pub fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: &Event) {
        match *event {
            Event::MessagesReadable { connection } | Event::MessagesWritable { connection } => {
                self.serve(endpoint, now, connection);
                self.transmit(endpoint, now);
            }
            Event::StreamReadable { connection, stream }
            | Event::StreamReset { connection, stream, .. }
            | Event::StreamWritable { connection, stream }
            | Event::StreamStopped { connection, stream, .. } => {
                if let Some(linked) = self.linked(connection) {
                    linked.carrier.on_stream(stream);
                }
                self.serve(endpoint, now, connection);
                self.transmit(endpoint, now);
            }
            Event::Closed { connection, .. } => self.forget(connection),
            _ => {}
        }
    }

    /// Uses the contexts from this process: through a link of its own ([`Owner::connect`] with `None`), whose messages the
    /// caller carries. What followers are to get for it leaves.
    pub fn with_owner<R>(&mut self, endpoint: &mut Endpoint, now: Instant, with: impl FnOnce(&mut Owner) -> R) -> R {
        let result = with(&mut self.owner);
        self.transmit(endpoint, now);
        result
    }

    /// A link of this process ([`ContextOwner::with_owner`]) that may have something to be sent. As with [`Owner::poll_ready`], it is
    /// named again when it has something after it had nothing.
    pub fn poll_here(&mut self) -> Option<LinkId> {
        self.here.pop_front()
    }

    /// What the disk says, and what it is asked next. Whether there was anything.
    pub fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let mut any = false;
        while let Some(Outcome { name, result }) = self.store.as_ref().and_then(Store::outcome) {
            self.owner.handle_committed(&name, result);
            any = true;
        }
        while let Some(name) = self.deletions.as_ref().and_then(|deletions| deletions.try_recv().ok()) {
            any |= self.delete(endpoint, now, &name);
        }
        // Before what waited is applied: now the documents are what was announced.
        if self.transmit(endpoint, now) {
            return true;
        }
        while let Some(commit) = self.owner.poll_commit() {
            any = true;
            match &self.store {
                Some(store) => store.keep(commit),
                None => self.owner.handle_committed(&commit.name, Err("no store is configured".into())),
            }
        }
        self.transmit(endpoint, now) || any
    }

    /// Takes what a connection has sent, as long as its answers leave.
    fn serve(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        loop {
            let Some(linked) = self.linked(connection) else { return };
            let id = linked.id;
            self.pump(endpoint, now, id);
            let Some(Some(linked)) = self.links.get_mut(id.place()).filter(|_| self.owner.accepts(id)) else { return };
            let handled = match linked.carrier.receive(endpoint, now, connection, &mut self.buffer) {
                Ok(false) => return,
                Ok(true) => self.owner.handle(id, &self.buffer),
                Err(violation) => Err(violation),
            };
            if let Err(Violation(why)) = handled {
                self.forget(connection);
                endpoint.close(now, connection, VIOLATION, why);
                return;
            }
        }
    }

    /// Sends what there is for [`FAN_OUT`] connections. Whether there may be more of them.
    fn transmit(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        for _ in 0..FAN_OUT {
            let Some(id) = self.owner.poll_ready() else { return false };
            self.pump(endpoint, now, id);
        }
        true
    }

    /// Sends what there is for a connection, until there is no room.
    fn pump(&mut self, endpoint: &mut Endpoint, now: Instant, id: LinkId) {
        let Some(Some(Linked { connection, carrier, .. })) = self.links.get_mut(id.place()) else {
            self.here.push_back(id);
            return;
        };
        let mut room = carrier.flush(endpoint, now, *connection);
        while room && self.owner.poll_transmit(id, &mut self.buffer) {
            room = carrier.send(endpoint, now, *connection, &mut self.buffer);
        }
    }

    fn linked(&mut self, connection: ConnectionHandle) -> Option<&mut Linked> {
        self.links.get_mut(self.connections.get(&connection)?.place())?.as_mut()
    }

    fn forget(&mut self, connection: ConnectionHandle) {
        if let Some(id) = self.connections.remove(&connection) {
            self.links[id.place()] = None;
            self.owner.disconnect(id);
        }
    }
}
