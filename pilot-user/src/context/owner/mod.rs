//! The owner's end: its contexts, the connections of who follows and writes them, and what each of those is sent next.
//!
//! # Contract
//!
//! Input: [`Owner::connect`], [`Owner::disconnect`], [`Owner::handle`], [`Owner::change`], [`Owner::handle_committed`]. Output:
//! [`Owner::poll_written`], [`Owner::poll_ready`] names connections that may have something to be sent, [`Owner::poll_transmit`] gives the next
//! message of one, and [`Owner::poll_commit`] what the disk is to keep. Nothing is queued for a follower but its place in the
//! history: who is slow costs the others nothing (C3.5). Call `poll_commit` after `poll_transmit` has no more: it applies
//! what was waiting, and between the two the documents are what was announced.

mod context;
mod following;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use slab::Slab;
use smallvec::SmallVec;

use super::document::Document;
use super::history::HistoryLimits;
use super::limits::{MAX_ANSWERS, MAX_FOLLOWINGS};
use super::message::{Refusal, RefusalCode, Reply, Request, Stamp, Violation, Wanted};
use context::{Context, Users};
use following::Following;
use write::Writer;
pub use write::{Commit, WriteId, Written};

/// A connection of a client, as the owner numbers it. No two are equal while a message of the first may be under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LinkId {
    /// Its place among those that there are, which another may have after it.
    place: u32,
    /// How many there were before it.
    number: u32,
}

impl LinkId {
    /// Its place among the connections that there are: small, so that who has something of its own for each can keep it in a list.
    pub fn place(self) -> usize {
        self.place as usize
    }
}

/// Who may do what with a context, by the names of peers; `*` is every peer. Default deny (C2.4).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rights {
    /// Who may follow it.
    #[serde(default)]
    pub read: Vec<String>,
    /// Who may change it.
    #[serde(default)]
    pub write: Vec<String>,
}

/// A context to hold.
#[derive(Debug)]
pub struct Held {
    /// The document as it is.
    pub document: Document,
    /// Its version; a number never used before for the incarnation of a new context.
    pub stamp: Stamp,
    /// Who may do what.
    pub rights: Rights,
    /// How much of the past to keep.
    pub history: HistoryLimits,
    /// The changes that led to the version, the last of them last, as far as they are still known.
    pub past: Vec<Arc<[u8]>>,
    /// Whether a version is announced only after [`Owner::handle_committed`].
    pub durable: bool,
}

impl Held {
    /// A volatile context that begins with this document, in a life of this number.
    pub fn new(document: Document, incarnation: u64, rights: Rights) -> Self {
        let (stamp, history) = (Stamp { incarnation, version: 0 }, HistoryLimits::default());
        Self { document, stamp, rights, history, past: Vec::new(), durable: false }
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Owner {
    contexts: Slab<Context>,
    /// Places in `contexts`.
    names: BTreeMap<String, usize>,
    /// By [`LinkId::place`].
    links: Slab<Link>,
    next_link: u32,
    followings: Slab<Following>,
    /// Connections that may have something to be sent, each once.
    ready: VecDeque<LinkId>,
    /// Contexts of which something waits for the disk, which is idle; each once.
    to_commit: VecDeque<usize>,
    next_write: u64,
    /// Empty between changes; kept for its room.
    encoded: Vec<u8>,
    /// What became of changes of the owner's own process that waited.
    written: VecDeque<(WriteId, Result<Stamp, Refusal>)>,
    /// Contexts that were removed while the disk kept something of them, of which it has yet to say so: the oldest first.
    removed: Vec<String>,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    /// `None`: the owner's own process, which may do anything.
    peer: Option<String>,
    answers: VecDeque<Vec<u8>>,
    /// Places among the owner's followings, by their numbers.
    followings: BTreeMap<u64, usize>,
    /// Followings that may have something to be sent, each once, in turn. Most connections have one, and it lies here.
    queue: SmallVec<[usize; 2]>,
    /// Whether it is among those that are ready. If not, and there is something to be sent, it has no room.
    is_ready: bool,
}

impl Link {
    /// Whether it is to be named as ready before it is given something to send.
    fn becomes_ready(&mut self) -> bool {
        self.is_idle() && !std::mem::replace(&mut self.is_ready, true)
    }

    fn is_idle(&self) -> bool {
        self.answers.is_empty() && self.queue.is_empty()
    }
}

impl Owner {
    /// Holds a context.
    ///
    /// # Errors
    /// As [`Owner::can_hold`].
    pub fn hold(&mut self, name: &str, held: Held) -> Result<(), Refusal> {
        self.can_hold(name)?;
        let at = self.contexts.insert(Context::new(name, held));
        self.names.insert(name.to_owned(), at);
        Ok(())
    }

    /// Whether it can hold a context of this name.
    ///
    /// # Errors
    /// When there is one already, or the name is none.
    pub fn can_hold(&self, name: &str) -> Result<(), Refusal> {
        if super::message::name(name.as_bytes()).is_none() {
            let words = format!("name: given {name:?}, allowed: 1 to {} bytes", super::limits::MAX_NAME_BYTES);
            return Err(Refusal::new(RefusalCode::Malformed, 0, words));
        }
        if self.names.contains_key(name) {
            return Err(Refusal::new(RefusalCode::Conflict, 0, format!("there is a context `{name}` already")));
        }
        Ok(())
    }

    /// How many contexts it holds.
    pub fn held(&self) -> usize {
        self.contexts.len()
    }

    /// C1.4: holds a context no more. Who follows it is told, and who waits for an answer is refused. Whether it was durable; `None`:
    /// there was none.
    pub fn remove(&mut self, name: &str) -> Option<bool> {
        let at = self.names.remove(name)?;
        let mut context = self.contexts.remove(at);
        self.to_commit.retain(|other| *other != at);
        if context.is_committing() {
            self.removed.push(name.to_owned());
        }
        let refusal = Refusal::new(RefusalCode::Unknown, 0, format!("`{name}` was deleted by its owner"));
        let writers = context.end_commit(false);
        self.refuse(context.take_users(writers), &refusal);
        Some(context.durable)
    }

    /// A document, and the version that was announced last, which it is as long as no commit is under way.
    pub fn document(&self, name: &str) -> Option<(&Document, Stamp)> {
        let context = &self.contexts[*self.names.get(name)?];
        Some((&context.document, context.announced()))
    }

    /// A connection of this peer; `None`: of the owner's own process, which may do anything.
    pub fn connect(&mut self, peer: Option<&str>) -> LinkId {
        let entry = self.links.vacant_entry();
        let id = LinkId { place: entry.key() as u32, number: self.next_link };
        self.next_link = self.next_link.wrapping_add(1);
        let (peer, answers) = (peer.map(str::to_owned), VecDeque::new());
        entry.insert(Link { id, peer, answers, followings: BTreeMap::new(), queue: SmallVec::new(), is_ready: false });
        id
    }

    /// The connection is over.
    pub fn disconnect(&mut self, id: LinkId) {
        if self.link(id).is_some() {
            let gone = self.links.remove(id.place());
            gone.followings.into_values().for_each(|following| self.forget(following));
        }
    }

    /// C2.6: whether more messages of this connection are wanted now. If not, its answers must leave first.
    pub fn accepts(&self, link: LinkId) -> bool {
        self.link(link).is_some_and(|link| link.answers.len() < MAX_ANSWERS)
    }

    /// Handles a message of a client.
    ///
    /// # Errors
    /// C2.2: the client broke the protocol; its connection is to be closed.
    pub fn handle(&mut self, link: LinkId, message: &[u8]) -> Result<(), Violation> {
        let Some(it) = self.link_mut(link) else { return Ok(()) };
        match Request::decode(message)? {
            Request::Follow { number, wanted } => self.on_follow(link, number, &wanted),
            Request::Unfollow { number } => {
                if let Some(ended) = it.followings.remove(&number) {
                    it.queue.retain(|queued| *queued != ended);
                    self.forget(ended);
                }
                Ok(())
            }
            Request::Have { number, messages } => {
                // It may have been ended meanwhile.
                let Some(at) = it.followings.get(&number).copied() else { return Ok(()) };
                self.followings[at].on_have(messages)?;
                self.wake(at);
                Ok(())
            }
            Request::Change { request, base, copy, name, change } => {
                let writer = Writer::Client { link, request, copy };
                if let Err(refusal) = self.on_change(link, writer, base, name, change) {
                    self.answer_refused(writer, refusal);
                }
                Ok(())
            }
        }
    }

    /// A connection that may have something to be sent. It is named again when it has something after it had nothing: what is
    /// left of a connection that has no room now is to be asked for when there is room.
    pub fn poll_ready(&mut self) -> Option<LinkId> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(link) = self.link_mut(id) {
                link.is_ready = false;
                return Some(id);
            }
        }
        None
    }

    /// Whether there is nothing to be sent to a connection: less than [`Owner::poll_transmit`] takes to say so.
    #[inline]
    pub fn is_idle(&self, id: LinkId) -> bool {
        self.link(id).is_none_or(Link::is_idle)
    }

    /// Puts the next message for a connection into `out`, in place of what is there. `false`: there is none now.
    pub fn poll_transmit(&mut self, id: LinkId, out: &mut Vec<u8>) -> bool {
        out.clear();
        let Some(link) = self.links.get_mut(id.place()).filter(|link| link.id == id) else { return false };
        if let Some(answer) = link.answers.pop_front() {
            *out = answer;
            return true;
        }
        while let Some(&at) = link.queue.first() {
            let following = &mut self.followings[at];
            let context = &mut self.contexts[following.context as usize];
            let any = following.next(context, out);
            if any && !following.is_at_rest(context) {
                // The others before its next.
                link.queue.rotate_left(1);
                return true;
            }
            following.is_queued = false;
            // Of most there is one, and nothing to move up.
            match link.queue.len() {
                1 => link.queue.clear(),
                _ => _ = link.queue.remove(0),
            }
            if any {
                return true;
            }
        }
        false
    }

    fn on_follow(&mut self, link: LinkId, number: u64, wanted: &Wanted<'_>) -> Result<(), Violation> {
        let Some(it) = self.link_mut(link) else { return Ok(()) };
        if it.followings.contains_key(&number) {
            return Err(Violation("followed twice under one number"));
        }
        let followings = it.followings.len();
        let found = self.find(link, wanted.name, |rights| &rights.read).and_then(|at| {
            let version = self.contexts[at].announced().version;
            if followings >= MAX_FOLLOWINGS {
                let words = format!("a connection follows {MAX_FOLLOWINGS} contexts at most");
                return Err(Refusal::new(RefusalCode::Busy, version, words));
            }
            self.contexts[at].can_follow(wanted).map(|()| at)
        });
        match found {
            Err(refusal) => self.answer(link, &Reply::Ended { number, refusal }),
            Ok(at) => {
                let (announced, position) = (self.contexts[at].announced(), self.contexts[at].followers.len() as u32);
                let mut following = Following::new((link, number), at, wanted, announced);
                following.position = position;
                let place = self.followings.insert(following);
                self.contexts[at].followers.push(place);
                if let Some(it) = self.link_mut(link) {
                    it.followings.insert(number, place);
                }
                self.wake(place);
            }
        }
        Ok(())
    }

    /// C2.4: the place of a context that this connection may use so. Who may neither read nor write it is not told that it
    /// exists.
    fn find(&self, link: LinkId, name: &str, right: impl Fn(&Rights) -> &Vec<String>) -> Result<usize, Refusal> {
        let unknown = || Refusal::new(RefusalCode::Unknown, 0, format!("there is no context `{name}` for this peer"));
        let at = *self.names.get(name).ok_or_else(unknown)?;
        let Context { rights, stamp, .. } = &self.contexts[at];
        let peer = self.link(link).map(|link| link.peer.as_deref());
        let may = |who: &Vec<String>| match peer {
            None => false,
            Some(None) => true,
            Some(Some(peer)) => who.iter().any(|name| name == "*" || name == peer),
        };
        if may(right(rights)) {
            Ok(at)
        } else if may(&rights.read) {
            let words = format!("this peer may read `{name}` and not change it");
            Err(Refusal::new(RefusalCode::NotAllowed, stamp.version, words))
        } else if may(&rights.write) {
            let words = format!("this peer may change `{name}` and not read it");
            Err(Refusal::new(RefusalCode::NotAllowed, 0, words))
        } else {
            Err(unknown())
        }
    }

    fn answer(&mut self, id: LinkId, reply: &Reply<'_>) {
        let Some(link) = self.links.get_mut(id.place()).filter(|link| link.id == id) else { return };
        let mut message = Vec::new();
        reply.encode(&mut message);
        if link.becomes_ready() {
            self.ready.push_back(id);
        }
        link.answers.push_back(message);
    }

    fn wake_followers(&mut self, at: usize) {
        let followers = std::mem::take(&mut self.contexts[at].followers);
        followers.iter().for_each(|following| self.wake(*following));
        self.contexts[at].followers = followers;
    }

    #[inline]
    fn wake(&mut self, at: usize) {
        let following = &mut self.followings[at];
        if std::mem::replace(&mut following.is_queued, true) {
            return;
        }
        let link = &mut self.links[following.link.place()];
        if link.becomes_ready() {
            self.ready.push_back(following.link);
        }
        link.queue.push(at);
    }

    /// Tells all who used a context that it is over.
    fn refuse(&mut self, Users { followers, writers }: Users, refusal: &Refusal) {
        writers.into_iter().for_each(|writer| self.answer_refused(writer, refusal.clone()));
        for at in followers {
            let Following { link, number, .. } = self.followings.remove(at);
            let it = &mut self.links[link.place()];
            it.followings.remove(&number);
            it.queue.retain(|queued| *queued != at);
            self.answer(link, &Reply::Ended { number, refusal: refusal.clone() });
        }
    }

    /// A following is over, which is none of its link's any more. The last of the context's followers takes its position.
    fn forget(&mut self, at: usize) {
        let Following { context, position, .. } = self.followings.remove(at);
        let followers = &mut self.contexts[context as usize].followers;
        followers.swap_remove(position as usize);
        if let Some(moved) = followers.get(position as usize) {
            self.followings[*moved].position = position;
        }
    }

    fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.get(id.place()).filter(|link| link.id == id)
    }

    fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(id.place()).filter(|link| link.id == id)
    }
}
