//! What the commands that run a node have in common: configuration, signals, and the wait for the datapath.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use pilot_engine::{Code, Endpoint, PeerId};
use serde_json::json;

use super::listen::print_datapath;
use super::{Failure, NodeArgs, Output};
use crate::config::Config;
use crate::control::{Control, Datapath};
use crate::link::doorbell::Doorbell;
use crate::link::pair::PairLink;
use crate::node::{Node, Running, StartError};
use crate::worker::Application;
use crate::worker::drivers::Worker;
use crate::worker::pin::{PinError, pin_to_core};

/// How long a command waits for AF_XDP before it begins over UDP. A queue that was just closed is busy for 40 ms on veth
/// and up to 2 s with some drivers.
const SETTLE: Duration = Duration::from_secs(3);

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

/// Reads the configuration and starts a node.
pub(super) fn start(args: &NodeArgs) -> Result<(Config, Node), Failure> {
    let config = Config::read(&args.config).map_err(Failure::usage)?;
    let aeads = args.aead.aeads();
    if !aeads.are_supported() {
        let why =
            "--aead: given aes-256-gcm, allowed in this build: auto, chacha20-poly1305 (it was built without aws-lc)";
        return Err(Failure::Usage(anyhow::anyhow!(why)));
    }
    let node = Node::start(&config, aeads).map_err(|error| match error {
        StartError::Identity(_) => Failure::usage(error),
        StartError::Listen { .. } | StartError::Random => Failure::failed(error),
    })?;
    Ok((config, node))
}

/// A failure to become a worker: a core that this process may not use is the configuration's.
pub(super) fn pin_failure(error: PinError) -> Failure {
    match error {
        PinError::Core { .. } => Failure::usage(error),
        PinError::Capabilities(_) => Failure::failed(error),
    }
}

/// What a command that talks to one peer runs on: a node whose worker is the caller's thread.
pub(super) struct Session<A> {
    pub(super) stop: Stop,
    pub(super) running: Running,
    pub(super) worker: Worker<PairLink, A>,
    pub(super) peer: PeerId,
    /// The datapath when it began.
    pub(super) datapath: Arc<Datapath>,
}

/// Starts a node with an application on the caller's thread; `begin`s with the peer once the datapath is decided.
pub(super) fn with_peer<A: Application>(
    args: &NodeArgs,
    name: &str,
    application: A,
    begin: impl FnOnce(&mut A, &mut Endpoint, pilot_engine::Instant, PeerId) -> anyhow::Result<()>,
) -> Result<Session<A>, Failure> {
    let stop = Stop::on_signals()?;
    let (config, node) = start(args)?;
    let peer = peer(&node.peers, name)?;
    let (running, mut worker) = node.with(application);
    if let Some(core) = config.cores.first() {
        pin_to_core(*core).map_err(pin_failure)?;
    }
    stop.ring(running.doorbell.clone());
    let datapath = settle(&mut worker, &running.control, &stop)?;
    let now = worker.now();
    begin(&mut worker.application, &mut worker.endpoint, now, peer)
        .with_context(|| name.to_owned())
        .map_err(Failure::Failed)?;
    Ok(Session { stop, running, worker, peer, datapath })
}

/// A configured peer by name.
fn peer(peers: &[(String, PeerId)], name: &str) -> Result<PeerId, Failure> {
    let known = || peers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
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
    for peer in peers {
        let now = worker.now();
        worker.endpoint.close_tunnel(now, peer, code);
        // Each by itself: a pass sends a batch at most.
        worker.pass().context("link").map_err(Failure::Failed)?;
    }
    Ok(())
}

/// Prints how far a command is, five times a second, and when its datagrams go another way.
#[derive(Debug)]
pub(super) struct Progress {
    next: Instant,
    datapath: Arc<Datapath>,
}

impl Progress {
    pub(super) fn new(datapath: &Arc<Datapath>) -> Self {
        Self { next: Instant::now(), datapath: Arc::clone(datapath) }
    }

    pub(super) fn at(&mut self, done: u64, control: &Control, output: &Output) {
        const PAUSE: Duration = Duration::from_millis(200);
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + PAUSE;
        while let Some(datapath) = control.take_change() {
            if datapath != self.datapath {
                print_datapath(&datapath, output);
                self.datapath = datapath;
            }
        }
        output.event(&json!({"event": "progress", "done": done}), || None);
    }
}
