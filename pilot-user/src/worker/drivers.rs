//! Who calls the turns: the caller's own thread, or a pinned thread; or a task of a runtime ([`super::task`]). The two here spin for a while after the last packet and then
//! sleep, because a sleep costs ten times a round trip and a spin costs a core.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pilot_engine::{Code, Endpoint, Instant, PeerId};

use super::handoff::Handoff;
use super::pin::{PinError, drop_capabilities, pin_to_core};
use super::{Application, Counted, Opened, Turn, turn};
use crate::link::Link;
use crate::link::doorbell::Doorbell;

/// How long a worker spins after it last found something to do. A wake-up from a sleep costs about 60 µs where a round
/// trip costs 4. Lower: request and reply sleep between each other. Higher: an idle node burns its core for longer.
const SPIN: Duration = Duration::from_micros(50);

/// An endpoint, the link it sends through, and what runs on it.
pub struct Worker<L, A> {
    /// The transport.
    pub endpoint: Endpoint,
    /// The link.
    pub link: L,
    /// What runs on it.
    pub application: A,
    /// The rings to the other workers.
    pub handoff: Handoff,
    /// What was opened, by the way it came.
    pub opened: Opened,
    /// The clock time of [`Instant::ORIGIN`].
    origin: quanta::Instant,
    last_progress: Instant,
}

impl<L: Link, A: Application> Worker<L, A> {
    /// A worker whose time began at `origin`.
    pub fn new(endpoint: Endpoint, link: L, application: A, handoff: Handoff, origin: quanta::Instant) -> Self {
        Self { endpoint, link, application, handoff, opened: Opened::default(), origin, last_progress: Instant::ORIGIN }
    }

    /// The time, as the endpoint counts it.
    pub fn now(&self) -> Instant {
        Instant::ORIGIN + self.origin.elapsed()
    }

    /// One pass and no sleep, as for last words: there may be nothing to wake up for. Reads the clock once.
    ///
    /// # Errors
    /// The link's.
    pub fn pass(&mut self) -> io::Result<Turn> {
        self.pass_at(self.now())
    }

    /// Sends what there is to send, for whose thread is the worker: what was just given to the endpoint leaves before the next pass
    /// looks for what has arrived.
    ///
    /// # Errors
    /// The link's.
    pub fn transmit(&mut self, now: Instant) -> io::Result<()> {
        if super::transmit(&mut self.endpoint, &mut self.link, now)? {
            self.last_progress = now;
        }
        Ok(())
    }

    fn pass_at(&mut self, now: Instant) -> io::Result<Turn> {
        let Self { endpoint, link, application, handoff, opened, .. } = self;
        let turn = turn(endpoint, link, application, handoff, now, opened)?;
        if application.wants_counted() {
            application.on_counted(endpoint, Counted { link: link.counted(), handoff: handoff.counters() });
        }
        Ok(turn)
    }

    /// The caller's thread is the worker: one pass, and then a spin or a sleep if there was nothing to do. Reads the clock
    /// once.
    ///
    /// # Errors
    /// The link's.
    pub fn run_once(&mut self) -> io::Result<()> {
        let now = self.now();
        let Turn { progress, deadline } = self.pass_at(now)?;
        if progress {
            self.last_progress = now;
        } else if now.since(self.last_progress) < SPIN {
            std::hint::spin_loop();
        } else {
            self.link.wait(deadline.map(|at| at.since(now)))?;
        }
        Ok(())
    }

    /// Closes the tunnels to these peers, so that they need not find out that this node stops. Without a sleep: where there was
    /// no tunnel, nothing would end it.
    ///
    /// # Errors
    /// The link's.
    pub fn say_goodbye(&mut self, peers: impl IntoIterator<Item = PeerId>, code: Code) -> io::Result<()> {
        for peer in peers {
            let now = self.now();
            self.endpoint.close_tunnel(now, peer, code);
            // Each by itself: a pass sends a batch at most.
            self.pass()?;
        }
        Ok(())
    }

    /// Runs until `done` says so.
    ///
    /// # Errors
    /// The link's.
    pub fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> io::Result<()> {
        while !done(self) {
            self.run_once()?;
        }
        Ok(())
    }
}

/// A worker on a thread of its own.
pub struct Pinned<L, A> {
    stop: Arc<AtomicBool>,
    doorbell: Doorbell,
    thread: Option<JoinHandle<io::Result<Worker<L, A>>>>,
}

/// Why a pinned worker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No thread.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[from] io::Error),
    /// Not on that core, or not without privileges.
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl<L: Link + Send + 'static, A: Application + Send + 'static> Pinned<L, A> {
    /// Starts a thread that runs the worker, on `core` if one is named, without privileges. `doorbell` is the link's.
    ///
    /// # Errors
    /// When the thread cannot be started, pinned, or rid of its privileges.
    pub fn spawn(mut worker: Worker<L, A>, core: Option<usize>, doorbell: Doorbell) -> Result<Self, SpawnError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (begun, began) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("pilot-worker".into()).spawn(move || {
            let set_up = core.map_or(Ok(()), pin_to_core).and_then(|()| drop_capabilities());
            let failed = set_up.is_err();
            // The other end waits for exactly this.
            let _ = begun.send(set_up);
            if !failed {
                // Relaxed: the flag carries nothing with it but itself, and the doorbell ends a sleep.
                worker.run_until(|_| stopped.load(Ordering::Relaxed))?;
            }
            Ok(worker)
        })?;
        if let Ok(set_up) = began.recv() {
            set_up?;
        }
        Ok(Self { stop, doorbell, thread: Some(thread) })
    }

    /// Whether the worker ended by itself: its link failed, or it panicked.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread and gives the worker back.
    ///
    /// # Errors
    /// The link's, if that ended the worker before; or that it panicked.
    pub fn stop(mut self) -> io::Result<Worker<L, A>> {
        self.signal();
        let Some(thread) = self.thread.take() else { return Err(io::Error::other("the worker was stopped before")) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the worker panicked")))
    }
}

impl<L, A> Pinned<L, A> {
    fn signal(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.doorbell.ring();
    }
}

impl<L, A> Drop for Pinned<L, A> {
    fn drop(&mut self) {
        self.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
