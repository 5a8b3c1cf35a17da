//! A node, as a program uses it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use pilot_engine::Aeads;
use pilot_engine::identity::PublicKey;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use super::access::Access;
use super::connection::{Connection, Opened};
use super::context::Context;
use super::dispatch::Dispatcher;
use super::limits::REATTACH_PAUSE;
use super::protocol::{Code, Error, Request};
use super::running::{Driver, Running};
use super::session::{Note, Pending, Pipe, Session};
use super::sessions::Sessions;
use crate::config::{self, Config};
use crate::context::{Document, Rights};
use crate::node;
use crate::service::{Introduced, Services};
use crate::worker::drivers::SpawnError;

/// A node: of this process, or of the host. Clones are the same node.
///
/// Its methods are called within a tokio runtime, of which one thread is enough.
#[derive(Clone)]
pub struct Node {
    sessions: Sessions,
    /// The thread that keeps a node of this process.
    keeper: Option<Arc<Keeper>>,
}

/// Describes a node of this process.
#[derive(Debug, Default)]
pub struct Builder {
    config: Option<Config>,
    file: Option<PathBuf>,
    driver: Driver,
}

/// Why a node of this process cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// No configuration.
    #[error("a node needs a configuration: Builder::config, or Builder::config_file")]
    NoConfig,
    /// Its sockets and keys.
    #[error(transparent)]
    Start(#[from] node::StartError),
    /// Its workers.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its services.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Builder {
    /// With this configuration.
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        Self { config: Some(config), ..self }
    }

    /// With the configuration in a file, as the command line takes it.
    #[must_use]
    pub fn config_file(self, file: impl Into<PathBuf>) -> Self {
        Self { file: Some(file.into()), ..self }
    }

    /// Its workers are tasks of this runtime and have no threads of their own: for small machines, and for many nodes in a process.
    /// Then they do not spin, `cores` is not used, and whoever blocks the runtime's thread holds the node up.
    #[must_use]
    pub fn in_runtime(self) -> Self {
        Self { driver: Driver::Runtime, ..self }
    }

    /// Starts it: its workers on threads of their own, unless it is to be [`Builder::in_runtime`], and a task in this runtime that
    /// brings what they say to whom it is for.
    ///
    /// # Errors
    /// When the configuration is wrong, or this machine does not have what it asks for.
    pub fn start(self) -> Result<Node, StartError> {
        let config = match (self.config, self.file) {
            (Some(config), _) => config,
            (None, Some(file)) => Config::read(&file)?,
            (None, None) => return Err(StartError::NoConfig),
        };
        let files = config.files.clone();
        let running = Running::start(config, Aeads::detect(), self.driver, |number, notices, bell, _| {
            Services::new(number, files.clone(), notices, bell).map_err(StartError::Thread)
        })?;
        let (client, mut delivery) = running.board().attach(Access::Owner);
        let (session, notes) = Session::new(Pipe::Here(client));
        let dispatcher = Dispatcher::new(&session, notes);
        tokio::spawn(dispatcher.run(async move || delivery.next().await));
        let keeper = Some(Arc::new(Keeper::start(running)?));
        Ok(Node { sessions: Sessions::one(session), keeper })
    }
}

impl Node {
    /// A node of this process.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The node of this host, through its daemon's socket.
    ///
    /// # Errors
    /// When nobody serves the socket, or this user may not use it.
    pub async fn attach(socket: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self { sessions: Sessions::begin(socket.as_ref(), false).await?, keeper: None })
    }

    /// The node of this host, and the next one that serves the socket when that has ended, by a restart or otherwise: what is asked for
    /// then waits for it, for 20 seconds at most; [`Listener`]s, [`Events`] and [`Following`](super::Following)s go on there. Connections end with their node, once and
    /// with an error of code [`Code::ShuttingDown`]: whether the peer has read what was under way, [`Connection::messages_consumed`]
    /// says.
    ///
    /// # Errors
    /// As [`Node::attach`], of the first.
    pub async fn attach_and_reconnect(socket: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self { sessions: Sessions::begin(socket.as_ref(), true).await?, keeper: None })
    }

    /// Opens a connection to a peer's port, when the peer has accepted. Dropped before that, it is closed if it comes to be.
    ///
    /// # Errors
    /// When the peer is unknown, does not answer within 20 seconds, or refuses.
    pub async fn connect(&self, peer: &str, port: u16) -> Result<Connection, Error> {
        let what = Request::Connect { peer: peer.to_owned(), port, timeout_ms: None };
        let peer = peer.to_owned();
        let answer = self.sessions.current().await?.ask(what, |to| Pending::Connect { peer, port, to }).await?;
        answer.await.unwrap_or_else(|_| Err(Error::gone())).map(|Opened(connection)| connection)
    }

    /// Listens on a port; on 0: on any that is free.
    ///
    /// # Errors
    /// When another application does, or the port is not for this one.
    pub async fn listen(&self, port: u16) -> Result<Listener, Error> {
        let answer = self.sessions.current().await?.ask(Request::Listen { port }, Pending::Listen).await?;
        let mut listener = answer.await.unwrap_or_else(|_| Err(Error::gone()))?;
        listener.again = self.sessions.reconnect().then(|| self.clone());
        Ok(listener)
    }

    /// The shared context that a peer, or without one this node itself, holds under a name. Nothing is asked yet.
    pub fn context<'a>(&self, name: &str, peer: impl Into<Option<&'a str>>) -> Context {
        Context::new(self.sessions.clone(), name, peer.into())
    }

    /// Has this node hold a new context, which peers may follow and change by their names, `*` being every peer; the applications of
    /// this node may by their rights in its configuration. It outlives this application, until [`Context::delete`].
    ///
    /// # Errors
    /// When there is one of this name, a peer is unknown, or the node holds none.
    pub async fn create_context(&self, name: &str, document: &Document, rights: Rights) -> Result<Context, Error> {
        let context = self.context(name, None);
        context.create(document, rights, false).await?;
        Ok(context)
    }

    /// As [`Node::create_context`], of one that the node keeps on its disk: no version is announced before it is there, and a node that
    /// is started again holds it as it was.
    ///
    /// # Errors
    /// As [`Node::create_context`]; and when the disk fails.
    pub async fn create_durable_context(
        &self,
        name: &str,
        document: &Document,
        rights: Rights,
    ) -> Result<Context, Error> {
        let context = self.context(name, None);
        context.create(document, rights, true).await?;
        Ok(context)
    }

    /// The configured peers, and whether a tunnel to each is up, as JSON.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn peers(&self) -> Result<Value, Error> {
        Ok(self.sessions.current().await?.request(Request::Peers).await?["peers"].take())
    }

    /// The connections of all applications of the node, as JSON.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn connections(&self) -> Result<Value, Error> {
        Ok(self.sessions.current().await?.request(Request::Connections).await?["connections"].take())
    }

    /// What the node counts, as JSON.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn stats(&self) -> Result<Value, Error> {
        self.sessions.current().await?.request(Request::Stats { connection: None }).await
    }

    /// Has the node ask who is at an address, and tell it who this node is, which both must be configured to do; with a key, only
    /// whose that is. It becomes no peer by that.
    ///
    /// # Errors
    /// When nobody answers there, or not who was wanted; when this node does not make itself known, or not for this user.
    pub async fn introduce(&self, endpoint: SocketAddr, key: Option<&PublicKey>) -> Result<Introduced, Error> {
        let request = Request::Introduce { endpoint, key: key.map(PublicKey::to_string) };
        let answer = self.sessions.current().await?.request(request).await?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default();
        let unreadable = || Error::new(Code::Internal, format!("an answer that says nothing: {answer}"));
        Ok(Introduced {
            key: text("key").parse().map_err(|_| unreadable())?,
            address: text("address").parse().map_err(|_| unreadable())?,
            remote: endpoint,
            accepted: answer["accepted"] == true,
        })
    }

    /// What happens at the node from now on, as the events of `docs/local-protocol.md` §4 with id 0.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn subscribe(&self) -> Result<Events, Error> {
        let (to_events, events) = unbounded_channel();
        let session = self.sessions.current().await?;
        session.note(Note::Subscribed(to_events));
        session.request(Request::Subscribe).await?;
        Ok(Events { events, again: self.sessions.reconnect().then(|| self.clone()) })
    }

    /// Waits until the node is gone, or has ended the session with it; why. Cancel-safe. After [`Node::attach_and_reconnect`], that is
    /// the first of them.
    pub async fn closed(&self) -> Error {
        let mut over = self.sessions.first().over.subscribe();
        let why = over.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_else(Error::gone)
    }

    /// Stops a node of this process, whichever clones of it there are: its tunnels are closed, and the peers told. What was sent and
    /// has not arrived is lost, so close connections before. Dropping the last clone does the same, and waits for it in place.
    /// With a daemon's node, nothing happens.
    pub async fn close(self) {
        if let Some(keeper) = self.keeper {
            // The thread may take some milliseconds; an error means that it panicked, and there is nothing left to stop.
            let _ = tokio::task::spawn_blocking(move || keeper.stop()).await;
        }
    }
}

/// What happens at a node.
pub struct Events {
    events: UnboundedReceiver<Value>,
    /// Where to go on when the node is gone.
    again: Option<Node>,
}

impl Events {
    /// The next event; `None`: the node is gone, or none came after it. Cancel-safe.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let next = self.events.recv().await;
            if next.is_some() {
                return next;
            }
            let Self { events, .. } = self.again.as_ref()?.subscribe().await.ok()?;
            self.events = events;
        }
    }
}

/// Accepts connections to a port. Dropped, nobody listens there any more.
pub struct Listener {
    session: Arc<Session>,
    port: u16,
    incoming: UnboundedReceiver<Incoming>,
    /// Where to go on when the node is gone.
    again: Option<Node>,
}

/// A connection that waits to be accepted. Dropped, it is refused.
pub(crate) struct Incoming {
    pub(crate) opened: Opened,
}

impl Listener {
    pub(crate) fn new(session: Arc<Session>, port: u16) -> (Self, UnboundedSender<Incoming>) {
        // At most a backlog waits at the node, and so here.
        let (to_incoming, incoming) = unbounded_channel();
        (Self { session, port, incoming, again: None }, to_incoming)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Accepts the next connection. Cancel-safe.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn accept(&mut self) -> Result<Connection, Error> {
        loop {
            let accepted = self.accept_here().await;
            match (&accepted, self.again.clone()) {
                (Err(error), Some(node)) if error.code == Code::ShuttingDown => {
                    match Box::pin(node.listen(self.port)).await {
                        Ok(listener) => *self = listener,
                        // A node that is still there, and told to stop; or none for longer than asking waits.
                        Err(error) if error.code == Code::ShuttingDown => sleep(REATTACH_PAUSE).await,
                        Err(error) => return Err(error),
                    }
                }
                _ => return accepted,
            }
        }
    }

    async fn accept_here(&mut self) -> Result<Connection, Error> {
        // First, so that nothing said on the connection can overtake that it is accepted.
        let permit = self.session.permit().await?;
        let Incoming { opened: Opened(connection) } = self.incoming.recv().await.ok_or_else(Error::gone)?;
        connection.accept(permit);
        Ok(connection)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.session.ask_nothing(Request::Unlisten { port: self.port });
    }
}

/// Keeps a node of this process: the control thread with its AF_XDP sockets, and the workers.
struct Keeper {
    stop: crossbeam_channel::Sender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    fn start(mut running: Running) -> std::io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("pilot-node".into()).spawn(move || {
            let notices = running.notices().clone();
            loop {
                crossbeam_channel::select! {
                    // A stop, or nobody who could say so.
                    recv(stopped) -> _ => break,
                    recv(notices) -> notice => match notice {
                        Ok(notice) => running.note(&notice),
                        Err(_) => break,
                    },
                }
            }
            if let Err(error) = running.stop() {
                tracing::warn!(%error, "a worker ended");
            }
        })?;
        Ok(Self { stop, thread: Mutex::new(Some(thread)) })
    }

    fn stop(&self) {
        let _ = self.stop.try_send(());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.into_iter().for_each(|thread| _ = thread.join());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}
