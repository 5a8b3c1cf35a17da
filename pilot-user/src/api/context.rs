//! Shared contexts: documents that one node holds, and others follow by what changes in them.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use super::documents::{Asked, change_from_json, document_to_json};
use super::limits::{FRAME_OVERHEAD_BYTES, GIVE_BACK_AFTER_BYTES, REATTACH_PAUSE};
use super::protocol::{Code, Error, Event, Id, NewContext, Request, ToNode, cost};
use super::session::{Note, Pending, Session};
use super::sessions::Sessions;
use crate::context::limits::MAX_DOCUMENT_BYTES;
use crate::context::{Change, Document, Kind, Replica, Rights, Stamp, tokens};

/// Bytes of a document or a change as a node sends it: a change is JSON, which may have six for one. Higher: what a node that is wrong
/// makes an application hold.
const MAX_UPDATE_BYTES: usize = 6 * MAX_DOCUMENT_BYTES;

/// A shared context: of this node, or of a peer. Clones are the same.
#[derive(Clone)]
pub struct Context {
    sessions: Sessions,
    name: String,
    peer: Option<String>,
}

/// What of a context is followed, and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interest {
    /// Only the part of a JSON document at this JSON pointer (RFC 6901).
    pub filter: Option<String>,
    /// Rather the latest values than every change, when they come faster than they are read.
    pub latest: bool,
}

/// What a follower is told.
#[derive(Clone, PartialEq, Debug)]
pub struct Update {
    /// The version that it led to.
    pub stamp: Stamp,
    /// What changed; `None`: the document came whole.
    pub change: Option<Change>,
}

/// One step of a following.
pub(crate) enum Step {
    Updated(Update),
    /// The copy is the owner's.
    Checked,
    /// It is not, and is asked for again.
    Diverged,
}

impl Context {
    pub(crate) fn new(sessions: Sessions, name: &str, peer: Option<&str>) -> Self {
        Self { sessions, name: name.to_owned(), peer: peer.map(str::to_owned) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The peer that holds it; `None`: this node.
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    /// Changes it, on whichever version it is; the version that this made. Dropped, it may have been changed.
    ///
    /// # Errors
    /// [`Code::Context`] when the owner refuses, with its code (`docs/context.md` C2.5) as `peer_code`; and when the owner cannot be
    /// reached. One that ended while it was asked may have made the change.
    pub async fn change(&self, change: &Change) -> Result<Stamp, Error> {
        self.ask_change(change, None).await
    }

    /// Changes it if it is at this version. As [`Context::change`]; another version is a conflict, code 3.
    ///
    /// # Errors
    /// As [`Context::change`].
    pub async fn change_if(&self, stamp: Stamp, change: &Change) -> Result<Stamp, Error> {
        self.ask_change(change, Some(stamp)).await
    }

    /// Follows it: a copy that is kept up to date, through restarts of the owner too. Dropped before it ends, nothing is followed.
    ///
    /// # Errors
    /// When the owner does not let us, or cannot be reached within 20 seconds.
    pub async fn follow(&self) -> Result<Following, Error> {
        self.follow_with(Interest::default()).await
    }

    /// As [`Context::follow`], a part of it, or rather its latest values.
    ///
    /// # Errors
    /// As [`Context::follow`].
    pub async fn follow_with(&self, interest: Interest) -> Result<Following, Error> {
        let feed = self.feed(&interest).await?;
        // Replaced by the first update.
        let replica = Replica { stamp: Stamp { incarnation: 0, version: 0 }, document: Document::empty(Kind::Bytes) };
        let (context, body) = (self.clone(), Vec::new());
        let mut following = Following { context, interest, feed, head: None, body, owed: 0, replica };
        following.next().await?;
        Ok(following)
    }

    async fn feed(&self, Interest { filter, latest }: &Interest) -> Result<Feed, Error> {
        let (peer, name) = (self.peer.clone(), self.name.clone());
        let what = Request::ContextFollow { peer, name, filter: filter.clone(), latest: *latest };
        let answer = self.sessions.current().await?.ask(what, Pending::Follow).await?;
        answer.await.unwrap_or_else(|_| Err(Error::gone()))
    }

    /// Deletes a context of this node: who follows it is told.
    ///
    /// # Errors
    /// When there is none, or it is a peer's.
    pub async fn delete(self) -> Result<(), Error> {
        if let Some(peer) = &self.peer {
            return Err(Error::new(
                Code::NotAllowed,
                format!("`{}` is {peer}'s: only its owner can delete it", self.name),
            ));
        }
        let session = self.sessions.current().await?;
        session.request(Request::ContextDelete { name: self.name }).await.map(|_| ())
    }

    pub(crate) async fn create(
        &self,
        document: &Document,
        Rights { read, write }: Rights,
        durable: bool,
    ) -> Result<(), Error> {
        let (name, kind, document) = (self.name.clone(), document.kind(), document_to_json(document));
        let new = NewContext { name, kind, document, read, write, durable };
        self.sessions.current().await?.request_long(Request::ContextCreate(new)).await.map(|_| ())
    }

    async fn ask_change(&self, change: &Change, if_stamp: Option<Stamp>) -> Result<Stamp, Error> {
        let (peer, name, change) = (self.peer.clone(), self.name.clone(), Asked(change.clone()));
        let what = Request::ContextChange { peer, name, change, if_stamp };
        let mut done = self.sessions.current().await?.request_long(what).await?;
        serde_json::from_value(done["stamp"].take()).map_err(|_| Error::malformed("an answer without its stamp"))
    }
}

/// A copy of a context, kept up to date by [`Following::next`] or [`Following::deltas`]. Who does not call them is sent no more, and
/// given what it missed, or the document again, when it does.
pub struct Following {
    context: Context,
    interest: Interest,
    feed: Feed,
    /// What is being read.
    head: Option<Event>,
    body: Vec<u8>,
    /// Bytes that were read and not yet given back (L5.2).
    owed: u32,
    replica: Replica,
}

impl Following {
    /// What is followed.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The document, or the part that is followed, as it was at the last update.
    pub fn document(&self) -> &Document {
        &self.replica.document
    }

    /// Its version.
    pub fn stamp(&self) -> Stamp {
        self.replica.stamp
    }

    /// The document as a language model reads it: JSON without spaces, or the text.
    pub fn render(&self) -> String {
        tokens::render(&self.replica.document)
    }

    /// Waits for the next update, and applies it to the copy. Cancel-safe: what was read of it is kept.
    ///
    /// # Errors
    /// When it is over: the owner deleted it, or the node is gone. What came before is given before. After
    /// [`Node::attach_and_reconnect`](super::Node::attach_and_reconnect) it goes on at the next node, by which the document comes whole.
    pub async fn next(&mut self) -> Result<Update, Error> {
        loop {
            if let Step::Updated(update) = self.step().await? {
                return Ok(update);
            }
        }
    }

    /// As [`Following::next`], and what was found out about the copy.
    pub(crate) async fn step(&mut self) -> Result<Step, Error> {
        loop {
            match self.feed.news.recv().await {
                Some(news) => {
                    if let Some(step) = self.take(news)? {
                        return Ok(step);
                    }
                }
                None => self.go_on().await?,
            }
        }
    }

    /// After the node is gone: follows at the next one, which gives the document whole.
    async fn go_on(&mut self) -> Result<(), Error> {
        let why = self.feed.why_over();
        if why.code != Code::ShuttingDown || !self.context.sessions.reconnect() {
            return Err(why);
        }
        match self.context.feed(&self.interest).await {
            Ok(feed) => (self.feed, self.head, self.body, self.owed) = (feed, None, Vec::new(), 0),
            // A node that is still there, and told to stop; or none for longer than asking waits.
            Err(error) if error.code == Code::ShuttingDown => sleep(REATTACH_PAUSE).await,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Waits for something new, and gives all there is of it as a language model reads it, behind [`Following::render`]: a line for each
    /// change, with its version, or the document where it came whole. Cancel-safe.
    ///
    /// # Errors
    /// As [`Following::next`].
    pub async fn deltas(&mut self) -> Result<String, Error> {
        let first = self.next().await?;
        let mut lines = self.line(&first);
        while let Ok(news) = self.feed.news.try_recv() {
            match self.take(news) {
                Ok(Some(Step::Updated(update))) => {
                    lines.push('\n');
                    lines += &self.line(&update);
                }
                Ok(_) => {}
                Err(error) => {
                    // What came before is given first.
                    self.feed.end = Some(error);
                    self.feed.news.close();
                    break;
                }
            }
        }
        Ok(lines)
    }

    fn line(&self, update: &Update) -> String {
        update.change.as_ref().map_or_else(|| self.render(), |change| tokens::delta(change, update.stamp.version))
    }

    /// Takes one frame; the step, if it is whole now.
    fn take(&mut self, news: News) -> Result<Option<Step>, Error> {
        match news {
            News::Event(Event::Ended(error)) => {
                self.feed.end = Some(error.clone());
                return Err(error);
            }
            News::Event(event @ (Event::Whole { bytes, .. } | Event::Changed { bytes, .. })) => {
                if self.head.is_some() || bytes > MAX_UPDATE_BYTES {
                    return Err(Error::malformed(format!("an update of {bytes} bytes, or within another")));
                }
                self.give_back(FRAME_OVERHEAD_BYTES);
                self.head = Some(event);
            }
            // A copy that differs is sent again by itself; the version of one that was looked at is its own.
            News::Event(Event::Checked { stamp }) => {
                self.replica.stamp = stamp;
                self.give_back(FRAME_OVERHEAD_BYTES);
                return Ok(Some(Step::Checked));
            }
            News::Event(_) => {
                self.give_back(FRAME_OVERHEAD_BYTES);
                return Ok(Some(Step::Diverged));
            }
            News::Part(body) => {
                self.give_back(cost(&body));
                self.body.extend_from_slice(&body);
            }
        }
        let Some(&(Event::Whole { bytes, .. } | Event::Changed { bytes, .. })) = self.head.as_ref() else {
            return Ok(None);
        };
        if self.body.len() < bytes {
            return Ok(None);
        }
        let body = std::mem::take(&mut self.body);
        let malformed = |error: &dyn std::fmt::Display| Error::malformed(format!("the node's update: {error}"));
        match self.head.take() {
            Some(Event::Whole { stamp, kind, .. }) => {
                let document = Document::decode(kind, &body).map_err(|error| malformed(&error))?;
                self.replica = Replica { stamp, document };
                Ok(Some(Step::Updated(Update { stamp, change: None })))
            }
            Some(Event::Changed { stamp, .. }) => {
                let change =
                    change_from_json(&body, self.replica.document.kind()).map_err(|error| malformed(&error))?;
                self.replica.document.apply(&change, body.len()).map_err(|error| malformed(&error))?;
                self.replica.stamp = stamp;
                Ok(Some(Step::Updated(Update { stamp, change: Some(change) })))
            }
            _ => Ok(None),
        }
    }

    fn give_back(&mut self, cost: u32) {
        self.owed += cost;
        if self.owed >= GIVE_BACK_AFTER_BYTES {
            self.feed.session.say(ToNode::Credit(self.feed.id, std::mem::take(&mut self.owed)));
        }
    }
}

/// What the node says of a following. Dropped, it is left.
pub(crate) struct Feed {
    session: Arc<Session>,
    pub(crate) id: Id,
    news: UnboundedReceiver<News>,
    /// Why there is no more, once the owner has said so.
    end: Option<Error>,
}

/// One frame of it.
pub(crate) enum News {
    Event(Event),
    Part(Vec<u8>),
}

impl Feed {
    pub(crate) fn new(session: Arc<Session>, id: Id) -> (Self, UnboundedSender<News>) {
        // The node sends no more than there is credit for.
        let (sender, news) = unbounded_channel();
        (Self { session, id, news, end: None }, sender)
    }

    fn why_over(&self) -> Error {
        let of_session = || self.session.over.borrow().clone();
        self.end.clone().or_else(of_session).unwrap_or_else(Error::gone)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if self.end.is_none() && self.session.over.borrow().is_none() {
            self.session.note(Note::Left(self.id));
            self.session.ask_nothing(Request::ContextUnfollow { following: self.id });
        }
    }
}
