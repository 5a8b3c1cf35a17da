//! An application's end of its session with a node: what it asks, and the credit that it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::codec;
use super::connection::Opened;
use super::context::Feed;
use super::limits::{CLIENT_CREDIT_BYTES, MAX_FRAME_BYTES, MAX_REQUESTS};
use super::node::Listener;
use super::protocol::{Code, Error, Id, Request, ToNode, cost};
use super::stream::Ends;
use super::switchboard::Client;

/// See the module's head. Shared by all handles of an application.
pub(crate) struct Session {
    pipe: Pipe,
    notes: UnboundedSender<Note>,
    next_request: AtomicU32,
    next_stream: AtomicU32,
    /// Requests that may be asked now (L1.3).
    requests: Arc<Semaphore>,
    /// Bytes that may be sent now, over all connections (L5.3).
    pub(crate) credit: Arc<Semaphore>,
    /// Why it is over, once it is.
    pub(crate) over: Arc<watch::Sender<Option<Error>>>,
}

/// The way to the node.
pub(crate) enum Pipe {
    /// In this process.
    Here(Client),
    /// Through a socket, which a task writes.
    Socket(UnboundedSender<ToNode>),
}

/// What the dispatcher must know before the node answers.
pub(crate) enum Note {
    Asked {
        request: u32,
        pending: Pending,
        permit: OwnedSemaphorePermit,
    },
    Opened(Id, Ends),
    /// Somebody wants to know what happens at the node.
    Subscribed(UnboundedSender<Value>),
    /// A handle of a stream is gone: nobody waits for that half any more.
    Dropped(Id),
    /// Nobody follows it any more.
    Left(Id),
}

/// Who waits for an answer.
pub(crate) enum Pending {
    Value(oneshot::Sender<Result<Value, Error>>),
    Connect {
        peer: String,
        port: u16,
        to: oneshot::Sender<Result<Opened, Error>>,
    },
    Listen(oneshot::Sender<Result<Listener, Error>>),
    Follow(oneshot::Sender<Result<Feed, Error>>),
    /// Nobody.
    None,
}

impl Session {
    pub(crate) fn new(pipe: Pipe) -> (Arc<Self>, UnboundedReceiver<Note>) {
        let (notes, noted) = unbounded_channel();
        let session = Self {
            pipe,
            notes,
            next_request: AtomicU32::new(1),
            next_stream: AtomicU32::new(0),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            credit: Arc::new(Semaphore::new(CLIENT_CREDIT_BYTES as usize)),
            over: Arc::default(),
        };
        (Arc::new(session), noted)
    }

    /// L1.4: an id for a stream of a connection. Eight million others come before one is used again.
    pub(crate) fn fresh_stream(&self, connection: Id) -> Id {
        Id::new(self.next_stream.fetch_add(1, Ordering::Relaxed), connection.worker(), true)
    }

    /// Says something. That the node is gone the dispatcher tells.
    pub(crate) fn say(&self, what: ToNode) {
        match &self.pipe {
            Pipe::Here(client) => client.handle(what),
            Pipe::Socket(writer) => _ = writer.send(what),
        }
    }

    pub(crate) fn note(&self, note: Note) {
        let _ = self.notes.send(note);
    }

    /// Asks, with an answer for whom `pending` makes. Dropped before it ends, nothing was asked.
    pub(crate) async fn ask<T>(
        &self,
        what: Request,
        pending: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Pending,
    ) -> Result<oneshot::Receiver<Result<T, Error>>, Error> {
        let permit = self.permit().await?;
        let (sender, receiver) = oneshot::channel();
        self.ask_with(what, pending(sender), permit);
        Ok(receiver)
    }

    /// Waits until a request may be asked. Cancel-safe.
    pub(crate) async fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let permit = Arc::clone(&self.requests).acquire_owned().await.map_err(|_| Error::gone())?;
        match &*self.over.borrow() {
            Some(why) => Err(why.clone()),
            None => Ok(permit),
        }
    }

    /// Asks for what has no answer of interest, if there is room for a request; there is, but for who has a thousand under way.
    pub(crate) fn ask_nothing(self: &Arc<Self>, what: Request) {
        match Arc::clone(&self.requests).try_acquire_owned() {
            Ok(permit) => self.ask_with(what, Pending::None, permit),
            Err(_) => {
                // Only within a runtime can there be somebody else who asks.
                let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
                let session = Arc::clone(self);
                runtime.spawn(async move {
                    if let Ok(permit) = Arc::clone(&session.requests).acquire_owned().await {
                        session.ask_with(what, Pending::None, permit);
                    }
                });
            }
        }
    }

    pub(crate) fn ask_with(&self, what: Request, pending: Pending, permit: OwnedSemaphorePermit) {
        // At most a thousand are unanswered: none of them is as old as four billion. 0 is no request.
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let request = if number == 0 { self.next_request.fetch_add(1, Ordering::Relaxed) } else { number };
        self.note(Note::Asked { request, pending, permit });
        self.say(ToNode::Request { request, what });
    }

    /// Asks and waits for the answer. Dropped, the answer is lost; what was asked is done, unless it was dropped at once.
    pub(crate) async fn request(&self, what: Request) -> Result<Value, Error> {
        self.ask(what, Pending::Value).await?.await.unwrap_or_else(|_| Err(Error::gone()))
    }

    /// As [`Session::request`], of what may be longer than a frame can be (L1.1).
    pub(crate) async fn request_long(&self, what: Request) -> Result<Value, Error> {
        if let Pipe::Socket(_) = self.pipe {
            let bytes = codec::request_bytes(&what);
            if bytes > MAX_FRAME_BYTES {
                let words = format!(
                    "a request of {bytes} bytes: at most {MAX_FRAME_BYTES} are allowed; make several changes of it"
                );
                return Err(Error::new(Code::TooLong, words));
            }
        }
        self.request(what).await
    }

    /// Waits for credit of a flow and of the session for a body, and spends it. Cancel-safe. `None`: there will be none any more.
    pub(crate) async fn spend(&self, flow: &Semaphore, body: &[u8]) -> Option<()> {
        let cost = cost(body);
        let of_flow = flow.acquire_many(cost).await.ok()?;
        let of_session = self.credit.acquire_many(cost).await.ok()?;
        of_flow.forget();
        of_session.forget();
        Some(())
    }
}
