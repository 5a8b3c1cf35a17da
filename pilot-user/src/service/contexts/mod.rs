//! Shared contexts over an endpoint: [`ContextOwner`] is the service on [`super::CONTEXTS_PORT`], [`ContextClient`] follows
//! and changes the contexts of one peer and comes back by itself. What they say to each other is `crate::context`'s business;
//! how their messages travel is `carrier`'s.

mod carrier;
mod client;

pub use client::ContextClient;

use std::collections::{BTreeMap, VecDeque};

use crossbeam_channel::Receiver;
use pilot_engine::{ConnectionHandle, Endpoint, Event, Instant, PeerId};

use super::store::{Outcome, Store, Stored};
use crate::context::limits::FAN_OUT;
use crate::context::{Held, LinkId, Owner, Refusal, RefusalCode, Violation};
use carrier::Carrier;

/// Code of CLOSE_CONNECTION when the other end broke the protocol of contexts (`docs/context.md` C2.2).
pub const VIOLATION: u64 = 1;

/// The contexts of a node. All of its tunnels must be of one worker, which has this service.
pub struct ContextOwner {
    owner: Owner,
    /// Where durable contexts are kept.
    store: Option<Store>,
    /// Durable contexts on their way onto the disk, or off it. Their names are taken.
    pending: BTreeMap<String, Pending>,
    /// What became of those.
    settled: VecDeque<(String, Result<(), String>)>,
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

enum Pending {
    /// Held when the disk has it.
    Beginning(Held),
    Forgetting,
}

/// What came of asking for a context, or for its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Done.
    Done,
    /// When the disk has it, [`ContextOwner::poll_settled`] will tell.
    Waits,
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
        let (connections, links) = (BTreeMap::new(), Vec::new());
        let (names, here) = (BTreeMap::new(), VecDeque::new());
        let (pending, settled) = (BTreeMap::new(), VecDeque::new());
        let (deletions, buffer) = (None, Vec::new());
        let mut it = Self { owner, store, pending, settled, names, connections, links, here, deletions, buffer };
        it.set_peers(peers);
        it
    }

    /// These are the peers now. Who is connected already keeps the name that it came with.
    pub fn set_peers(&mut self, peers: &[(String, PeerId)]) {
        self.names = peers.iter().map(|(name, id)| (*id, name.clone())).collect();
    }

    /// Deletes the contexts whose names come here ([`ContextOwner::delete`]); whoever sends them rings the worker's doorbell.
    pub fn with_deletions(self, deletions: Receiver<String>) -> Self {
        Self { deletions: Some(deletions), ..self }
    }

    /// How many contexts there are, with those on their way onto the disk or off it.
    pub fn count(&self) -> usize {
        self.owner.held() + self.pending.len()
    }

    /// Holds another context: a durable one when the disk has it.
    ///
    /// # Errors
    /// When there is one of this name, the name is none, or nothing can be kept here.
    pub fn create(&mut self, name: &str, held: Held) -> Result<Asked, Refusal> {
        if self.pending.contains_key(name) {
            let words = format!("there is a context `{name}` already, which the disk is at work for");
            return Err(Refusal { code: RefusalCode::Conflict, version: 0, words });
        }
        if !held.durable {
            return self.owner.hold(name, held).map(|()| Asked::Done);
        }
        self.owner.can_hold(name)?;
        let Some(store) = &self.store else {
            let words = "durable: this node keeps nothing on its disk".to_owned();
            return Err(Refusal { code: RefusalCode::Unsupported, version: 0, words });
        };
        store.begin(name, held.stamp.incarnation, &held.document, &held.rights);
        self.pending.insert(name.to_owned(), Pending::Beginning(held));
        Ok(Asked::Waits)
    }

    /// C1.4: deletes a context: who follows it is told, and the store forgets it. `None`: there is none.
    pub fn delete(&mut self, endpoint: &mut Endpoint, now: Instant, name: &str) -> Option<Asked> {
        let was_durable = self.owner.remove(name)?;
        self.transmit(endpoint, now);
        let Some(store) = self.store.as_ref().filter(|_| was_durable) else { return Some(Asked::Done) };
        store.forget(name);
        self.pending.insert(name.to_owned(), Pending::Forgetting);
        Some(Asked::Waits)
    }

    /// A durable context that is held now, or forgotten: or why not.
    pub fn poll_settled(&mut self) -> Option<(String, Result<(), String>)> {
        self.settled.pop_front()
    }

    fn on_stored(&mut self, Outcome { name, what, result }: Outcome) {
        if what == Stored::Kept {
            return self.owner.handle_committed(&name, result);
        }
        let result = match (self.pending.remove(&name), result) {
            // Its name was free, and taken for it since.
            (Some(Pending::Beginning(held)), Ok(())) => {
                self.owner.hold(&name, held).map_err(|refusal| refusal.to_string())
            }
            (_, result) => result,
        };
        self.settled.push_back((name, result));
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
        while let Some(outcome) = self.store.as_ref().and_then(Store::outcome) {
            self.on_stored(outcome);
            any = true;
        }
        while let Some(name) = self.deletions.as_ref().and_then(|deletions| deletions.try_recv().ok()) {
            any |= self.delete(endpoint, now, &name).is_some();
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
            room = carrier.send(endpoint, now, *connection, &mut self.buffer) && !self.owner.is_idle(id);
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
