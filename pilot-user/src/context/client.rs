//! The other end of a connection to an owner: copies of what is followed, kept up to date, and changes that are asked for.
//!
//! Input: [`Client::connect`] and [`Client::disconnect`] as the connection comes and goes, [`Client::handle`]. Output:
//! [`Client::poll_transmit`], [`Client::poll_notice`]. A client outlives its connections: what it follows goes on where it
//! was. It can outlive its process too, if its copies ([`Replica`]) are kept and given back to [`Client::follow`].

use std::collections::{BTreeMap, VecDeque};

use super::change::Change;
use super::document::Document;
use super::limits::{HAVE_AFTER_MESSAGES, MAX_REQUESTS};
use super::message::{Refusal, Reply, Request, Stamp, Violation, Wanted};

/// What is followed, as the client numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FollowId(u64);

/// A change that was asked for, as the client numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RequestId(u64);

/// What to follow, and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Follow {
    /// The context.
    pub name: String,
    /// Only the part of a JSON document at this JSON pointer.
    pub filter: Option<String>,
    /// Rather the latest values than every change, when they come faster than they are read.
    pub latest: bool,
}

/// A copy of a document.
#[derive(Clone, PartialEq, Debug)]
pub struct Replica {
    /// Which version it is.
    pub stamp: Stamp,
    /// The document, or the part that is followed.
    pub document: Document,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Notice {
    /// The document came whole.
    Whole {
        /// What is followed.
        follow: FollowId,
    },
    /// The document changed.
    Changed {
        /// What is followed.
        follow: FollowId,
        /// To this version; the copy may be at a later one by the time that this is read.
        version: u64,
        /// By this, which was applied to it.
        change: Change,
    },
    /// The document is the owner's, by its hash.
    Checked {
        /// What is followed.
        follow: FollowId,
    },
    /// The document is not the owner's. It is asked for again; until it comes, the copy is what it was.
    Diverged {
        /// What is followed.
        follow: FollowId,
    },
    /// The owner does not let us follow it, or not any more.
    Ended {
        /// What was followed.
        follow: FollowId,
        /// Why.
        refusal: Refusal,
    },
    /// A change was made.
    Done {
        /// Which.
        request: RequestId,
        /// The version that it led to.
        stamp: Stamp,
    },
    /// A change was refused.
    Refused {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// The connection ended before the answer: whether the change was made is not known. One with a condition on the version
    /// can be asked for again without being made twice.
    Unanswered {
        /// Which.
        request: RequestId,
    },
}

/// Why a change cannot be asked for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotNow {
    /// There is no connection.
    #[error("there is no connection to the owner")]
    NotConnected,
    /// Too many wait for their answers.
    #[error("{MAX_REQUESTS} changes wait for their answers already")]
    TooMany,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Client {
    connected: bool,
    followings: BTreeMap<FollowId, Following>,
    /// Of this connection.
    numbers: BTreeMap<u64, FollowId>,
    /// C2.1: never used twice, so that what comes late for an earlier one is known for it.
    next: u64,
    /// What waits for its answer; of those whose copies here take them, the change.
    requests: BTreeMap<RequestId, Option<OwnChange>>,
    out: VecDeque<Vec<u8>>,
    notices: VecDeque<Notice>,
}

/// A change that is not sent back: the copy takes it when it was made (C3.10).
#[derive(Debug)]
struct OwnChange {
    /// The following's, and of which life of the context the copy is.
    number: u64,
    incarnation: u64,
    encoded: Vec<u8>,
}

#[derive(Debug)]
struct Following {
    follow: Follow,
    number: u64,
    replica: Option<Replica>,
    /// SNAPSHOTs and DELTAs applied under this number, and how many of them the owner was told of.
    applied: u64,
    told: u64,
}

impl Client {
    /// Follows a context, from the copy on that was kept of the same, if there is one.
    pub fn follow(&mut self, follow: Follow, replica: Option<Replica>) -> FollowId {
        let id = FollowId(self.fresh());
        self.followings.insert(id, Following { follow, number: 0, replica, applied: 0, told: 0 });
        self.begin(id);
        id
    }

    /// Follows it no more.
    pub fn unfollow(&mut self, id: FollowId) {
        if let Some(following) = self.followings.remove(&id) {
            self.leave(following.number);
        }
    }

    /// The copy of what is followed; `None` until it came.
    pub fn replica(&self, id: FollowId) -> Option<&Replica> {
        self.followings.get(&id)?.replica.as_ref()
    }

    /// Asks for a change: on this version and no other, or on whichever it is.
    ///
    /// # Errors
    /// When it cannot be asked for now.
    pub fn change(&mut self, name: &str, base: Option<Stamp>, change: &Change) -> Result<RequestId, NotNow> {
        if !self.connected {
            return Err(NotNow::NotConnected);
        }
        if self.requests.len() >= MAX_REQUESTS {
            return Err(NotNow::TooMany);
        }
        let (id, encoded) = (RequestId(self.fresh()), change.encode());
        let whole = |it: &&Following| it.follow.name == name && it.follow.filter.is_none();
        let copy = self.followings.values().find(whole).and_then(|it| Some((it.number, it.replica.as_ref()?.stamp)));
        self.say(&Request::Change {
            request: id.0,
            base,
            copy: copy.map(|(number, _)| number),
            name,
            change: &encoded,
        });
        let own = copy.map(|(number, Stamp { incarnation, .. })| OwnChange { number, incarnation, encoded });
        self.requests.insert(id, own);
        Ok(id)
    }

    /// There is a connection: everything followed goes on over it.
    pub fn connect(&mut self) {
        self.connected = true;
        let all: Vec<FollowId> = self.followings.keys().copied().collect();
        all.into_iter().for_each(|id| self.begin(id));
    }

    /// The connection is over.
    pub fn disconnect(&mut self) {
        self.connected = false;
        self.out.clear();
        self.numbers.clear();
        let requests = std::mem::take(&mut self.requests);
        self.notices.extend(requests.into_keys().map(|request| Notice::Unanswered { request }));
    }

    /// Handles a message of the owner.
    ///
    /// # Errors
    /// C2.2: the owner broke the protocol; the connection is to be closed.
    pub fn handle(&mut self, message: &[u8]) -> Result<(), Violation> {
        match Reply::decode(message)? {
            Reply::Snapshot { number, stamp, kind, document } => {
                let Some((id, following)) = self.following(number) else { return Ok(()) };
                let document = Document::decode(kind, document).map_err(|_| Violation("a document that is none"))?;
                following.replica = Some(Replica { stamp, document });
                following.applied += 1;
                self.notices.push_back(Notice::Whole { follow: id });
                self.tell_have(id, true);
            }
            Reply::Delta { number, span, low_version, change } => {
                self.on_delta(number, span, low_version, change)?;
            }
            Reply::Check { number, version, hash } => {
                let Some((id, following)) = self.following(number) else { return Ok(()) };
                let replica = following.replica.as_mut().ok_or(Violation("a hash of a document that never came"))?;
                if replica.document.hash() == hash && version >= replica.stamp.version {
                    replica.stamp.version = version;
                    self.notices.push_back(Notice::Checked { follow: id });
                } else {
                    self.heal(id);
                }
            }
            Reply::Ended { number, refusal } => {
                if let Some(id) = self.numbers.remove(&number) {
                    self.followings.remove(&id);
                    self.notices.push_back(Notice::Ended { follow: id, refusal });
                }
            }
            Reply::Done { request, stamp } => {
                let (request, _) = self.take(request)?;
                self.notices.push_back(Notice::Done { request, stamp });
            }
            Reply::Made { request, version } => {
                let (request, own) = self.take(request)?;
                let OwnChange { number, incarnation, encoded } =
                    own.ok_or(Violation("a change was kept back that no copy here takes"))?;
                self.notices.push_back(Notice::Done { request, stamp: Stamp { incarnation, version } });
                self.on_delta(number, 1, version as u16, &encoded)?;
            }
            Reply::Refused { request, refusal } => {
                let (request, _) = self.take(request)?;
                self.notices.push_back(Notice::Refused { request, refusal });
            }
        }
        Ok(())
    }

    /// Puts the next message into `out`, in place of what is there. `false`: there is none now.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        match self.out.pop_front() {
            Some(message) => {
                *out = message;
                true
            }
            None => false,
        }
    }

    /// What happened next.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// C3.3: a change to the next version and no other, once.
    fn on_delta(&mut self, number: u64, span: u64, low_version: u16, change: &[u8]) -> Result<(), Violation> {
        let Some((id, following)) = self.following(number) else { return Ok(()) };
        let decoded = Change::decode(change).map_err(|_| Violation("a change that is none"))?;
        let replica = following.replica.as_mut().ok_or(Violation("a change of a document that never came"))?;
        let version = replica.stamp.version.checked_add(span).filter(|to| span > 0 && *to as u16 == low_version);
        let Some(version) = version.filter(|_| replica.document.apply(&decoded, change.len()).is_ok()) else {
            self.heal(id);
            return Ok(());
        };
        replica.stamp.version = version;
        following.applied += 1;
        self.notices.push_back(Notice::Changed { follow: id, version, change: decoded });
        self.tell_have(id, false);
        Ok(())
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Begins to follow, under a new number: what is still on its way for the one before is not for this.
    fn begin(&mut self, id: FollowId) {
        if !self.connected {
            return;
        }
        let number = self.fresh();
        let Some(following) = self.followings.get_mut(&id) else { return };
        (following.number, following.applied, following.told) = (number, 0, 0);
        self.numbers.insert(number, id);
        let Follow { name, filter, latest } = &following.follow;
        let have = following.replica.as_ref().map(|replica| replica.stamp);
        let wanted = Wanted { name, filter: filter.as_deref(), latest: *latest, have };
        let mut message = Vec::new();
        Request::Follow { number, wanted }.encode(&mut message);
        self.out.push_back(message);
    }

    fn leave(&mut self, number: u64) {
        if self.numbers.remove(&number).is_some() {
            self.say(&Request::Unfollow { number });
        }
    }

    /// C3.9: the copy is wrong; the document is wanted whole.
    fn heal(&mut self, id: FollowId) {
        let Some(following) = self.followings.get_mut(&id) else { return };
        let (number, wrong) = (following.number, following.replica.take());
        self.leave(number);
        self.begin(id);
        if let Some(following) = self.followings.get_mut(&id) {
            following.replica = wrong;
        }
        self.notices.push_back(Notice::Diverged { follow: id });
    }

    /// C3.5: says how much was applied, at once or when it is time.
    fn tell_have(&mut self, id: FollowId, now: bool) {
        let Some(following) = self.followings.get_mut(&id) else { return };
        let (number, messages) = (following.number, following.applied);
        if now || messages - following.told >= HAVE_AFTER_MESSAGES {
            following.told = messages;
            self.say(&Request::Have { number, messages });
        }
    }

    fn following(&mut self, number: u64) -> Option<(FollowId, &mut Following)> {
        // Of one that was left, something may still be on its way.
        let id = *self.numbers.get(&number)?;
        Some((id, self.followings.get_mut(&id)?))
    }

    fn take(&mut self, request: u64) -> Result<(RequestId, Option<OwnChange>), Violation> {
        self.requests.remove_entry(&RequestId(request)).ok_or(Violation("an answer to what was not asked"))
    }

    fn say(&mut self, request: &Request<'_>) {
        let mut message = Vec::new();
        request.encode(&mut message);
        self.out.push_back(message);
    }
}
