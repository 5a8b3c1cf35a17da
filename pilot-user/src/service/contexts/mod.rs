//! Shared contexts over an endpoint: [`ContextOwner`] is the service on [`super::CONTEXTS_PORT`], [`ContextClient`] follows
//! and changes the contexts of one peer and comes back by itself. What they say to each other is `crate::context`'s business;
//! how their messages travel is `carrier`'s.

mod carrier;
mod client;

pub use client::ContextClient;

use std::collections::BTreeMap;

use pilot_engine::{ConnectionHandle, Endpoint, Event, Instant, PeerId};

use super::store::{Outcome, Store};
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
    connections: BTreeMap<ConnectionHandle, (LinkId, Carrier)>,
    links: BTreeMap<LinkId, ConnectionHandle>,
    buffer: Vec<u8>,
}

impl ContextOwner {
    /// Serves what `owner` holds to these peers. Without a store, none of it may be durable.
    pub fn new(owner: Owner, store: Option<Store>, peers: &[(String, PeerId)]) -> Self {
        let names = peers.iter().map(|(name, id)| (*id, name.clone())).collect();
        let (connections, links) = (BTreeMap::new(), BTreeMap::new());
        Self { owner, store, names, connections, links, buffer: Vec::new() }
    }

    /// Takes a connection for the port.
    pub fn accept(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        // An error means that it is closed already, which its own event tells.
        let _ = endpoint.accept(now, connection);
        // A peer without a name has the rights of nobody: no name is empty.
        let name = self.names.get(&connection.peer()).map_or("", String::as_str);
        let link = self.owner.connect(Some(name));
        self.connections.insert(connection, (link, Carrier::default()));
        self.links.insert(link, connection);
    }

    /// Handles an event, if it is about a connection that was accepted.
    pub fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: &Event) {
        match *event {
            Event::MessagesReadable { connection } | Event::MessagesWritable { connection } => {
                self.serve(endpoint, now, connection);
            }
            Event::StreamReadable { connection, stream }
            | Event::StreamReset { connection, stream, .. }
            | Event::StreamWritable { connection, stream }
            | Event::StreamStopped { connection, stream, .. } => {
                if let Some((_, carrier)) = self.connections.get_mut(&connection) {
                    carrier.on_stream(stream);
                }
                self.serve(endpoint, now, connection);
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

    /// What the disk says, and what it is asked next. Whether there was anything.
    pub fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let mut any = false;
        while let Some(Outcome { name, result }) = self.store.as_ref().and_then(Store::outcome) {
            self.owner.handle_committed(&name, result);
            any = true;
        }
        // Before what waited is applied: now the documents are what was announced.
        self.transmit(endpoint, now);
        while let Some(commit) = self.owner.poll_commit() {
            any = true;
            match &self.store {
                Some(store) => store.keep(commit),
                None => self.owner.handle_committed(&commit.name, Err("no store is configured".into())),
            }
        }
        self.transmit(endpoint, now);
        any
    }

    /// Takes what a connection has sent, as long as its answers leave.
    fn serve(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        loop {
            self.pump(endpoint, now, connection);
            let Some((link, carrier)) = self.connections.get_mut(&connection) else { return };
            if !self.owner.accepts(*link) {
                return;
            }
            let handled = match carrier.receive(endpoint, now, connection, &mut self.buffer) {
                Ok(false) => return,
                Ok(true) => self.owner.handle(*link, &self.buffer),
                Err(violation) => Err(violation),
            };
            if let Err(Violation(why)) = handled {
                self.forget(connection);
                endpoint.close(now, connection, VIOLATION, why);
                return;
            }
            self.transmit(endpoint, now);
        }
    }

    fn transmit(&mut self, endpoint: &mut Endpoint, now: Instant) {
        while let Some(link) = self.owner.poll_ready() {
            if let Some(connection) = self.links.get(&link) {
                self.pump(endpoint, now, *connection);
            }
        }
    }

    /// Sends what there is for a connection, until there is no room.
    fn pump(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        let Some((link, carrier)) = self.connections.get_mut(&connection) else { return };
        while carrier.flush(endpoint, now, connection) && self.owner.poll_transmit(*link, &mut self.buffer) {
            carrier.put(&mut self.buffer);
        }
    }

    fn forget(&mut self, connection: ConnectionHandle) {
        if let Some((link, _)) = self.connections.remove(&connection) {
            self.links.remove(&link);
            self.owner.disconnect(link);
        }
    }
}
