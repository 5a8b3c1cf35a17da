//! The sessions of an application with its node: one, or one after the other where it comes back to a node that was restarted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixStream;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::sleep;

use super::dispatch::Dispatcher;
use super::frames;
use super::limits::{CONNECT_TIMEOUT, REATTACH_PAUSE};
use super::protocol::{Code, Error, Request, VERSION};
use super::session::{Pipe, Session};

/// See the module's head. Clones are the same.
#[derive(Clone)]
pub(crate) struct Sessions {
    first: Arc<Session>,
    again: Option<Arc<Again>>,
}

struct Again {
    socket: PathBuf,
    /// The latest. Who finds it over begins the next, and the others wait for that.
    session: tokio::sync::Mutex<Arc<Session>>,
}

impl Sessions {
    /// Only this one.
    pub(crate) fn one(session: Arc<Session>) -> Self {
        Self { first: session, again: None }
    }

    /// With the node that serves a socket; where it `reconnects`, with the next one, too.
    pub(crate) async fn begin(socket: &Path, reconnects: bool) -> Result<Self, Error> {
        let first = begin(socket).await?;
        let session = tokio::sync::Mutex::new(Arc::clone(&first));
        let again = reconnects.then(|| Arc::new(Again { socket: socket.to_owned(), session }));
        Ok(Self { first, again })
    }

    /// The first of them.
    pub(crate) fn first(&self) -> &Arc<Session> {
        &self.first
    }

    /// Whether there is another when one is over.
    pub(crate) fn reconnect(&self) -> bool {
        self.again.is_some()
    }

    /// The one to ask in now.
    pub(crate) async fn current(&self) -> Result<Arc<Session>, Error> {
        let Some(again) = &self.again else { return Ok(Arc::clone(&self.first)) };
        let until = Instant::now() + CONNECT_TIMEOUT;
        let mut session = again.session.lock().await;
        while session.is_gone() {
            match begin(&again.socket).await {
                Ok(next) => *session = next,
                Err(error) if error.code != Code::ShuttingDown || Instant::now() >= until => return Err(error),
                Err(_) => sleep(REATTACH_PAUSE).await,
            }
        }
        Ok(Arc::clone(&session))
    }
}

async fn begin(socket: &Path) -> Result<Arc<Session>, Error> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let words = format!("{}: {error}; is a node running, as by `pilot up`?", socket.display());
        Error::new(Code::ShuttingDown, words)
    })?;
    let (mut reader, writer) = frames::split(stream);
    let (to_writer, queue) = unbounded_channel();
    let (session, notes) = Session::new(Pipe::Socket(to_writer));
    let dispatcher = Dispatcher::new(&session, notes);
    tokio::spawn(frames::write_all(writer, queue));
    tokio::spawn(dispatcher.run(async move || reader.next().await.ok().flatten()));
    session.request(Request::Hello { version: VERSION, name: program() }).await?;
    Ok(session)
}

/// What the operator knows this process by.
fn program() -> Option<String> {
    let program = PathBuf::from(std::env::args_os().next()?);
    Some(program.file_name()?.to_string_lossy().into_owned())
}
