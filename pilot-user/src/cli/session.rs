//! What the commands that run a node have in common: configuration, signals, and the wait for the datapath.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender};
use pilot_engine::{Aeads, Code, Endpoint, PeerId};
use serde_json::json;

use super::listen::{print, print_datapath};
use super::{Failure, NodeArgs, Output};
use crate::config::Config;
use crate::control::{Control, Datapath};
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;
use crate::node::{Assembly, StartError};
use crate::service::{Notice, Services};
use crate::worker::drivers::{Pinned, SpawnError, Worker};
use crate::worker::pin::{PinError, pin_to_core};
use crate::worker::{Application, handoff};

/// How long a command waits for AF_XDP before it begins over UDP. A queue that was just closed is busy for 40 ms on veth
/// and up to 2 s with some drivers.
const SETTLE: Duration = Duration::from_secs(3);

/// Notices that wait to be printed; more are dropped, because a terminal that does not read must not stop a worker.
pub(super) const NOTICES_MAX: usize = 1024;

/// Set when the process was told to stop.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens to SIGINT and SIGTERM.
    pub(super) fn on_signals() -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second signal ends the process at once: what stops it may be what hangs.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
                .context("cannot listen to signals")
                .map_err(Failure::Failed)?;
        }
        Ok(Self(flag))
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Rings a doorbell when it is set, so that a sleeping worker looks. The thread ends with the process.
    pub(super) fn ring(&self, doorbell: Doorbell) {
        let stop = self.clone();
        std::thread::spawn(move || {
            while !stop.is_set() {
                std::thread::sleep(Duration::from_millis(20));
            }
            doorbell.ring();
        });
    }
}

/// Reads the configuration and starts a node, whose first worker has all tunnels.
pub(super) fn start(args: &NodeArgs) -> Result<(Config, Assembly), Failure> {
    let config = Config::read(&args.config).map_err(Failure::usage)?;
    let node = Assembly::start(&config, aeads(args)?, |_| 0)?;
    Ok((config, node))
}

/// The AEADs that the arguments allow.
pub(super) fn aeads(args: &NodeArgs) -> Result<Aeads, Failure> {
    let aeads = args.aead.aeads();
    if !aeads.are_supported() {
        let why =
            "--aead: given aes-256-gcm, allowed in this build: auto, chacha20-poly1305 (it was built without aws-lc)";
        return Err(Failure::Usage(anyhow::anyhow!(why)));
    }
    Ok(aeads)
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Identity(_) => Self::usage(error),
            StartError::Listen { .. } | StartError::Random | StartError::Contexts(_) | StartError::StoreThread(_) => {
                Self::failed(error)
            }
        }
    }
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::Pin(error) => pin_failure(error),
            SpawnError::Thread(_) => Self::failed(error),
        }
    }
}

/// A failure to become a worker: a core that this process may not use is the configuration's.
pub(super) fn pin_failure(error: PinError) -> Failure {
    match error {
        PinError::Core { .. } => Failure::usage(error),
        PinError::Capabilities(_) => Failure::failed(error),
    }
}

/// What a command that talks to one peer runs on: a node whose first worker is the caller's thread.
pub(super) struct Session<A> {
    pub(super) stop: Stop,
    pub(super) control: Control,
    pub(super) peers: Vec<(String, PeerId)>,
    pub(super) worker: Worker<PairLink, A>,
    /// The workers of the other queues, which hand over what arrives there.
    pub(super) beside: Vec<Pinned<PairLink, Services>>,
    pub(super) peer: PeerId,
    /// The datapath when it began.
    pub(super) datapath: Arc<Datapath>,
    /// What the workers say.
    pub(super) notices: Receiver<Notice>,
}

/// Starts a node with an application on the caller's thread, which has all tunnels; `begin`s with the peer once the datapath
/// is decided.
pub(super) fn with_peer<A: Application>(
    args: &NodeArgs,
    name: &str,
    application: impl FnOnce(Sender<Notice>) -> A,
    begin: impl FnOnce(&mut A, &mut Endpoint, pilot_engine::Instant, PeerId) -> anyhow::Result<()>,
) -> Result<Session<A>, Failure> {
    let stop = Stop::on_signals()?;
    let (_, Assembly { control, peers, seats }) = start(args)?;
    let peer = peer(&peers, name)?;
    let (sender, notices) = crossbeam_channel::bounded(NOTICES_MAX);
    let mut seats = seats.into_iter();
    // There is a worker for each queue, and always a queue.
    let first = seats.next().ok_or_else(|| Failure::Failed(anyhow::anyhow!("no receive queue")))?;
    let mut beside = Vec::new();
    for (seat, number) in seats.zip(1..) {
        let (core, doorbell) = (seat.core, seat.doorbell());
        let services = Services::new(number, None, sender.clone(), seat.doorbell()).map_err(Failure::failed)?;
        beside.push(Pinned::spawn(seat.with(services), core, doorbell)?);
    }
    if let Some(core) = first.core {
        pin_to_core(core).map_err(pin_failure)?;
    }
    stop.ring(first.doorbell());
    let mut worker = first.with(application(sender));
    let datapath = settle(&mut worker, &control, &stop)?;
    let now = worker.now();
    begin(&mut worker.application, &mut worker.endpoint, now, peer)
        .with_context(|| name.to_owned())
        .map_err(Failure::Failed)?;
    Ok(Session { stop, control, peers, worker, beside, peer, datapath, notices })
}

/// Ends worker threads and gives the workers back.
pub(super) fn stop<A: Application + Send + 'static>(
    workers: Vec<Pinned<PairLink, A>>,
) -> Result<Vec<Worker<PairLink, A>>, Failure> {
    let ended = workers.into_iter().map(Pinned::stop).collect::<std::io::Result<_>>();
    ended.context("a worker ended").map_err(Failure::Failed)
}

/// What was handed over among all workers of a session.
pub(super) fn handoffs<A>(first: &Worker<PairLink, A>, beside: &[Worker<PairLink, Services>]) -> handoff::Counters {
    let others = beside.iter().map(|worker| worker.handoff.counters());
    others.fold(first.handoff.counters(), |sum, more| sum + more)
}

/// A configured peer by name.
fn peer(peers: &[(String, PeerId)], name: &str) -> Result<PeerId, Failure> {
    let known = || {
        let mut names: Vec<_> = peers.iter().map(|(name, _)| name.as_str()).collect();
        // A peer's lanes follow each other.
        names.dedup();
        names.join(", ")
    };
    // Its first lane.
    peers
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, id)| *id)
        .ok_or_else(|| Failure::Usage(anyhow::anyhow!("peer: given `{name}`, configured: {}", known())))
}

/// Runs the worker until the datapath is decided, at most [`SETTLE`]; the datapath then.
fn settle<A: Application>(
    worker: &mut Worker<PairLink, A>,
    control: &Control,
    stop: &Stop,
) -> Result<Arc<Datapath>, Failure> {
    let until = Instant::now() + SETTLE;
    let done = |_: &mut Worker<PairLink, A>| !control.datapath().pending || Instant::now() >= until || stop.is_set();
    // A short nap between passes, because the control thread does not ring when it gives up.
    while !done(worker) {
        worker.pass().context("link").map_err(Failure::Failed)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    if stop.is_set() {
        return Err(Failure::Interrupted);
    }
    // What led here is past.
    while control.take_change().is_some() {}
    Ok(control.datapath())
}

/// Closes the tunnels to these peers, so that they need not find out that this node stops. Without a sleep: where there was
/// no tunnel, nothing would end it.
pub(super) fn say_goodbye<A: Application>(
    worker: &mut Worker<PairLink, A>,
    peers: impl IntoIterator<Item = PeerId>,
    code: Code,
) -> Result<(), Failure> {
    worker.say_goodbye(peers, code).context("link").map_err(Failure::Failed)
}

/// Prints how far a command is, five times a second, and when its datagrams go another way.
pub(super) struct Progress<'a> {
    next: Instant,
    datapath: Arc<Datapath>,
    control: &'a Control,
    peers: &'a [(String, PeerId)],
    notices: &'a Receiver<Notice>,
    output: &'a Output,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        datapath: &Arc<Datapath>,
        control: &'a Control,
        peers: &'a [(String, PeerId)],
        notices: &'a Receiver<Notice>,
        output: &'a Output,
    ) -> Self {
        Self { next: Instant::now(), datapath: Arc::clone(datapath), control, peers, notices, output }
    }

    pub(super) fn at(&mut self, done: u64) {
        const PAUSE: Duration = Duration::from_millis(200);
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + PAUSE;
        while let Some(datapath) = self.control.take_change() {
            if datapath != self.datapath {
                print_datapath(&datapath, self.output);
                self.datapath = datapath;
            }
        }
        self.say();
        self.output.event(&json!({"event": "progress", "done": done}), || None);
    }

    /// Prints what the workers said since.
    pub(super) fn say(&self) {
        self.notices.try_iter().for_each(|notice| print(&notice, self.peers, self.output));
    }
}
