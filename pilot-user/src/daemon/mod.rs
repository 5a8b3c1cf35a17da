//! The node for the applications of its host: a Unix socket, at which each application has a session
//! (`docs/local-protocol.md`). What a session says is done as if it were said in this process, by the same switchboard.

mod session;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use crate::api::access::Access;
use crate::api::limits::MAX_APPLICATIONS;
use crate::api::protocol::{Code, Error};
use crate::api::switchboard::Switchboard;

/// A socket that is served, on a thread of its own. Dropped, it is removed, and all sessions end.
pub(crate) struct Daemon {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Serves a socket to this process's user, and to others as far as they may.
    ///
    /// # Errors
    /// When the socket cannot be made, or another process serves it.
    pub(crate) fn start(board: Arc<Switchboard>, socket: &Path, users: BTreeMap<u32, Access>) -> io::Result<Self> {
        let listener = listen(socket, !users.is_empty())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("pilot-daemon".into()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = UnixListener::from_std(listener) else { return };
                tokio::select! {
                    // A stop, or nobody who could say so.
                    _ = stopped => {}
                    () = serve(listener, board, users) => {}
                }
            });
        })?;
        Ok(Self { socket: socket.to_owned(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Another process cannot have made its own there meanwhile: it found ours in use.
        let _ = std::fs::remove_file(&self.socket);
        drop(self.stop.take());
        self.thread.take().into_iter().for_each(|thread| _ = thread.join());
    }
}

/// L2.1: for the own user alone, unless others may be let in. Between the two calls anybody may connect, and is asked who it is.
fn listen(socket: &Path, for_others: bool) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Err(io::Error::new(error.kind(), "another node serves it"));
            }
            // Left by a process that was killed.
            std::fs::remove_file(socket)?;
            UnixListener::bind(socket)?
        }
        result => result?,
    };
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(if for_others { 0o666 } else { 0o600 }))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, board: Arc<Switchboard>, users: BTreeMap<u32, Access>) {
    let places = Arc::new(Semaphore::new(MAX_APPLICATIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: those that are served go on, and give some back.
                tracing::warn!(%error, "an application cannot be let in");
                tokio::time::sleep(session::LAST_WORDS).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let words = format!("{MAX_APPLICATIONS} applications are served at a time");
            session::refuse(stream, Error::new(Code::TooMany, words));
            continue;
        };
        match access(&stream, &users) {
            Ok(access) => {
                let board = Arc::clone(&board);
                tokio::spawn(async move {
                    session::run(stream, &board, access).await;
                    drop(place);
                });
            }
            Err(error) => session::refuse(stream, error),
        }
    }
}

/// L2.1: what the user at the other end may do.
fn access(stream: &UnixStream, users: &BTreeMap<u32, Access>) -> Result<Access, Error> {
    let uid = stream.peer_cred().map_err(|error| Error::new(Code::Internal, error.to_string()))?.uid();
    if uid == nix::unistd::geteuid().as_raw() {
        return Ok(Access::Owner);
    }
    users.get(&uid).cloned().ok_or_else(|| {
        let words = format!("user {uid} may not use this node: its configuration names who may (`local.users`)");
        Error::new(Code::NotAllowed, words)
    })
}
