//! A worker that is a task of a tokio runtime and has no thread, for small machines and processes that have a runtime anyway. It does
//! not spin: a packet that comes while there is nothing to do costs a wake-up of the runtime.
//!
//! What a sleep waits for is put into one epoll instance, which the runtime watches: the sockets come and go with the datapath.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::drivers::Worker;
use super::{Application, Turn};
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;

/// See the module's head.
pub struct Task<A> {
    /// Held for a pass at a time, and never over a sleep: who stops it waits for no turn of the runtime, which may be the thread that
    /// waits.
    worker: Arc<Mutex<Place<A>>>,
    doorbell: Doorbell,
}

/// A worker, or why it ended; empty when it was stopped.
type Place<A> = Option<io::Result<Worker<PairLink, A>>>;

/// What a pass says of the next.
enum Next {
    Now,
    /// When a descriptor is ready, or so much time has passed.
    Later(Option<Duration>),
    /// It is over.
    Never,
}

impl<A: Application + Send + 'static> Task<A> {
    /// Starts it in the runtime that this is called in, with the privileges of that.
    ///
    /// # Errors
    /// When the process or the system is out of file descriptors.
    pub fn spawn(worker: Worker<PairLink, A>) -> io::Result<Self> {
        let doorbell = worker.link.doorbell();
        let watched = Watched::new()?;
        let worker = Arc::new(Mutex::new(Some(Ok(worker))));
        let task = Self { worker: Arc::clone(&worker), doorbell: doorbell.clone() };
        tokio::spawn(async move {
            loop {
                // Of a statement of its own: not held over what is awaited.
                let next = pass(&mut lock(&worker), &watched);
                match next {
                    Next::Now => yield_now().await,
                    Next::Later(after) => {
                        watched.wait(after).await;
                        doorbell.answer_if_rung();
                    }
                    Next::Never => return,
                }
            }
        });
        Ok(task)
    }

    /// Whether the worker ended by itself: its link failed.
    pub fn is_over(&self) -> bool {
        !matches!(*lock(&self.worker), Some(Ok(_)))
    }

    /// Ends it and gives the worker back.
    ///
    /// # Errors
    /// The link's, if that ended the worker before.
    pub fn stop(self) -> io::Result<Worker<PairLink, A>> {
        let worker = lock(&self.worker).take();
        worker.unwrap_or_else(|| Err(io::Error::other("the worker was stopped before")))
    }
}

impl<A> Drop for Task<A> {
    fn drop(&mut self) {
        lock(&self.worker).take();
        // To find that out.
        self.doorbell.ring();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pass<A: Application>(slot: &mut Place<A>, watched: &Watched) -> Next {
    let Some(Ok(worker)) = slot else { return Next::Never };
    try_pass(worker, watched).unwrap_or_else(|error| {
        *slot = Some(Err(error));
        Next::Never
    })
}

fn try_pass<A: Application>(worker: &mut Worker<PairLink, A>, watched: &Watched) -> io::Result<Next> {
    let Turn { progress, deadline } = worker.pass()?;
    if progress {
        return Ok(Next::Now);
    }
    let now = worker.now();
    match worker.link.prepare_wait(deadline.map(|at| at.since(now)))? {
        Some(after) => {
            watched.set(worker.link.descriptors())?;
            Ok(Next::Later(after))
        }
        None => Ok(Next::Now),
    }
}

/// What ends a sleep.
struct Watched(AsyncFd<Instance>);

struct Instance(Epoll);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl Watched {
    #[expect(
        deprecated,
        reason = "the other way is unsafe: what it asks for, a descriptor that stays open, an `Epoll` has"
    )]
    fn new() -> io::Result<Self> {
        Ok(Self(AsyncFd::new(Instance(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))?))
    }

    /// These, as they are to be waited for now; those that were closed are out by themselves.
    fn set<'a>(&self, descriptors: impl IntoIterator<Item = PollFd<'a>>) -> io::Result<()> {
        let Instance(epoll) = self.0.get_ref();
        for wanted in descriptors {
            let mut event = EpollEvent::new(EpollFlags::from_bits_truncate(wanted.events().bits().into()), 0);
            match epoll.add(wanted.as_fd(), event) {
                Err(Errno::EEXIST) => epoll.modify(wanted.as_fd(), &mut event)?,
                added => added?,
            }
        }
        Ok(())
    }

    async fn wait(&self, after: Option<Duration>) {
        let ready = async {
            while let Ok(mut guard) = self.0.readable().await {
                if guard.try_io(|it| it.get_ref().is_ready()).is_ok() {
                    return;
                }
            }
        };
        match after {
            Some(after) => _ = timeout(after, ready).await,
            None => ready.await,
        }
    }
}

impl Instance {
    fn is_ready(&self) -> io::Result<()> {
        match self.0.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            // An error ends the sleep, and the next pass will meet it.
            _ => Ok(()),
        }
    }
}
