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
use tokio::sync::{Semaphore, oneshot, watch};

use crate::api::access::Access;
use crate::api::limits::MAX_APPLICATIONS;
use crate::api::protocol::{Code, Error};
use crate::api::switchboard::Switchboard;

/// A socket that is served, on a thread of its own. Dropped, it is removed, and all sessions end.
pub(crate) struct Daemon {
    socket: PathBuf,
    users: watch::Sender<Users>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// L2.1: rights of other users than the node's own.
pub(crate) type Users = Arc<BTreeMap<u32, Access>>;

impl Daemon {
    /// Serves a socket to this process's user, and to others as far as they may.
    ///
    /// # Errors
    /// When the socket cannot be made, or another process serves it.
    pub(crate) fn start(board: Arc<Switchboard>, socket: &Path, users: BTreeMap<u32, Access>) -> io::Result<Self> {
        let listener = listen(socket)?;
        allow(socket, &users)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (users, rights) = watch::channel(Users::new(users));
        let thread = std::thread::Builder::new().name("pilot-daemon".into()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = UnixListener::from_std(listener) else { return };
                tokio::select! {
                    // A stop, or nobody who could say so.
                    _ = stopped => {}
                    () = serve(listener, board, rights) => {}
                }
            });
        })?;
        Ok(Self { socket: socket.to_owned(), users, stop: Some(stop), thread: Some(thread) })
    }

    /// Other users have other rights from now on: sessions of those whose rights changed end.
    ///
    /// # Errors
    /// When the socket's mode cannot be changed. The rights are as they are to be then.
    pub(crate) fn set_users(&self, users: BTreeMap<u32, Access>) -> io::Result<()> {
        let allowed = allow(&self.socket, &users);
        self.users.send_replace(Users::new(users));
        allowed
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

/// L2.1: for the own user alone, unless others may be let in. Before, anybody may connect, and is asked who it is.
fn allow(socket: &Path, users: &BTreeMap<u32, Access>) -> io::Result<()> {
    let mode = if users.is_empty() { 0o600 } else { 0o666 };
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(mode))
}

fn listen(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
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
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, board: Arc<Switchboard>, users: watch::Receiver<Users>) {
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
        if board.is_draining() {
            session::refuse(stream, Error::stops());
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let words = format!("{MAX_APPLICATIONS} applications are served at a time");
            session::refuse(stream, Error::new(Code::TooMany, words));
            continue;
        };
        match who(&stream) {
            Ok(who) => {
                let (board, users) = (Arc::clone(&board), users.clone());
                tokio::spawn(async move {
                    session::run(stream, &board, who, users).await;
                    drop(place);
                });
            }
            Err(error) => session::refuse(stream, error),
        }
    }
}

/// L2.1: who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug)]
struct Who {
    uid: u32,
    pid: Option<i32>,
}

fn who(stream: &UnixStream) -> Result<Who, Error> {
    let credentials = stream.peer_cred().map_err(|error| Error::new(Code::Internal, error.to_string()))?;
    Ok(Who { uid: credentials.uid(), pid: credentials.pid() })
}

/// L2.1: what a user may do.
fn access(uid: u32, users: &Users) -> Result<Access, Error> {
    if uid == nix::unistd::geteuid().as_raw() {
        return Ok(Access::Owner);
    }
    users.get(&uid).cloned().ok_or_else(|| {
        let words = format!("user {uid} may not use this node: its configuration names who may (`local.users`)");
        Error::new(Code::NotAllowed, words)
    })
}
