//! A change beside a plain message, as the application at the other end has it: from the call at the owner's until the text is in a
//! follower's hand. One at a time, in an order that is drawn, over one tunnel of two nodes on a veth pair, a core each, which spin.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant as Clock};

use anyhow::{Context as _, ensure};
use pilot_engine::{Aeads, ConnectionHandle, Endpoint, Event, Instant};
use pilot_user::config::Config;
use pilot_user::context::{Change, Follow, Notice};
use pilot_user::control::choose::Kind;
use pilot_user::link::pair::PairLink;
use pilot_user::node::Assembly;
use pilot_user::service::CONTEXTS_PORT;
use pilot_user::service::contexts::{ContextClient, ContextOwner};
use pilot_user::worker::Application;
use pilot_user::worker::drivers::Worker;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::scene::Scene;
use super::tunnels::PLAIN_PORT;
use super::{NAME, WORDS, append, owner};
use super::{api, configs};

/// Of each kind. Before those: until memory has been touched, and frames have taught both ends where the other is.
const SAMPLES: usize = 20_000;
const WARM: usize = 2_000;
/// From the arrival of one to the next: answers leave, and neither end has begun to sleep.
const PAUSE: Duration = Duration::from_micros(20);
/// Of the devices, in bytes: what most networks have.
const MTU: u32 = 1500;
/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Says how long both take, and the ratio.
pub(super) fn run() -> anyhow::Result<()> {
    println!("from the owner's call to a follower on another node: ns");
    for datapath in ["xdp", "udp"] {
        let scene = Scene::new(datapath, MTU)?;
        let [here, there] = configs::both(&scene, datapath)?;
        let arrived = Arrived::new();
        let stop = AtomicBool::new(false);
        let samples = std::thread::scope(|threads| {
            let follower = threads.spawn(|| scene.enter(1).and_then(|()| follow(&there, &arrived, &stop)));
            let samples = scene.enter(0).and_then(|()| measure(&here, &arrived, || follower.is_finished()));
            stop.store(true, Ordering::Relaxed);
            follower.join().map_err(|_| anyhow::anyhow!("the follower panicked"))?.context("the follower")?;
            samples.context("the owner")
        })?;
        summary(datapath, samples);
    }
    ["xdp", "udp"].into_iter().try_for_each(|datapath| api::run(datapath, MTU))
}

/// Says how long changes and messages took, and the ratio of their medians.
pub(super) fn summary(what: &str, [change, message]: [Vec<u64>; 2]) {
    let medians = [("change", change), ("message", message)].map(|(kind, mut samples)| {
        samples.sort_unstable();
        let at = |tenths: usize| samples[(samples.len() - 1) * tenths / 10];
        println!("{what:>26}  {kind:8}  {:>7}  ({} to {})", at(5), at(1), at(9));
        at(5) as f64
    });
    println!("{what:>26}  ratio     {:>7.3}", medians[0] / medians[1]);
}

/// What the follower tells of the last thing that it was given.
pub(super) struct Arrived {
    origin: Clock,
    pub(super) count: AtomicU64,
    pub(super) at_ns: AtomicU64,
    /// For who sleeps meanwhile.
    news: Notify,
}

impl Arrived {
    pub(super) fn new() -> Self {
        Self { origin: Clock::now(), count: AtomicU64::new(0), at_ns: AtomicU64::new(0), news: Notify::new() }
    }

    /// Until so many have arrived.
    pub(super) async fn wait_for(&self, count: u64) -> anyhow::Result<()> {
        while self.count.load(Ordering::Acquire) < count {
            timeout(PATIENCE, self.news.notified()).await?;
        }
        Ok(())
    }

    pub(super) fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    pub(super) fn tell(&self) {
        self.at_ns.store(self.now(), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
        self.news.notify_one();
    }
}

/// Which of both comes next: a pair of both, in either order. What recurs after some packets would else meet one kind alone.
pub(super) struct Order(u32);

impl Default for Order {
    fn default() -> Self {
        Self(1)
    }
}

impl Order {
    /// 0 for a change.
    pub(super) fn next(&mut self, number: usize) -> usize {
        if number.is_multiple_of(2) {
            (0..3).for_each(|step| self.0 ^= if step == 1 { self.0 >> 17 } else { self.0 << [13, 0, 5][step] });
        }
        (number + self.0 as usize / 8) % 2
    }
}

/// The owner's end: nanoseconds of changes, and of messages.
fn measure(config: &Config, arrived: &Arrived, is_over: impl Fn() -> bool) -> anyhow::Result<[Vec<u64>; 2]> {
    let Assembly { control: _attached, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let contexts = ContextOwner::new(owner()?, None, &peers);
    let mut worker = seats.into_iter().next().context("a worker")?.with(Here { contexts, plain: None });
    let is_there = |here: &Here| arrived.count.load(Ordering::Acquire) > 0 && here.plain.is_some();
    wait(&mut worker, |here| is_there(here) || is_over()).context("nobody follows")?;
    let mut samples = [Vec::with_capacity(SAMPLES), Vec::with_capacity(SAMPLES)];
    let mut order = Order::default();
    for number in 0..2 * (WARM + SAMPLES) {
        let kind = order.next(number);
        let before = arrived.count.load(Ordering::Acquire);
        let begin = arrived.now();
        let now = worker.now();
        let Worker { endpoint, application: Here { contexts, plain }, .. } = &mut worker;
        match kind {
            0 => contexts.with_owner(endpoint, now, append)?,
            _ => endpoint.send_message(now, plain.context("no connection for messages")?, WORDS.as_bytes())?,
        }
        wait(&mut worker, |_| arrived.count.load(Ordering::Acquire) > before || is_over())?;
        ensure!(!is_over(), "it ended");
        if number >= 2 * WARM {
            samples[kind].push(arrived.at_ns.load(Ordering::Relaxed) - begin);
        }
        let until = Clock::now() + PAUSE;
        while Clock::now() < until {
            worker.run_once()?;
        }
    }
    Ok(samples)
}

fn wait<A: Application>(worker: &mut Worker<PairLink, A>, mut done: impl FnMut(&A) -> bool) -> anyhow::Result<()> {
    let since = Clock::now();
    while !done(&worker.application) {
        worker.run_once()?;
        ensure!(since.elapsed() < PATIENCE, "not within {PATIENCE:?}");
    }
    Ok(())
}

/// The follower's end, until it is stopped.
fn follow(config: &Config, arrived: &Arrived, stop: &AtomicBool) -> anyhow::Result<()> {
    let Assembly { control, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let owner = peers[0].1;
    let mut contexts = ContextClient::new(owner);
    let there = There { contexts: None, arrived, buffer: Vec::new(), failed: None };
    let mut worker = seats.into_iter().next().context("a worker")?.with(there);
    wait(&mut worker, |_| !control.datapath().pending).context("waiting for the datapath")?;
    let now = worker.now();
    worker.endpoint.connect(now, owner, PLAIN_PORT)?;
    contexts.client.follow(Follow { name: NAME.into(), ..Follow::default() }, None);
    worker.application.contexts = Some(contexts);
    worker.run_until(|worker| stop.load(Ordering::Relaxed) || worker.application.failed.is_some())?;
    let opened = worker.opened;
    ensure!(worker.application.failed.is_none(), "{:?}", worker.application.failed);
    let wanted = if control.datapath().kind == Kind::Xdp { opened.xdp } else { opened.udp };
    ensure!(wanted * 100 > (opened.udp + opened.xdp) * 99, "another datapath: {opened:?}");
    Ok(())
}

struct Here {
    contexts: ContextOwner,
    /// For plain messages.
    plain: Option<ConnectionHandle>,
}

impl Application for Here {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        self.contexts.on_event(endpoint, now, &event);
        match event {
            Event::Offered { connection, port: CONTEXTS_PORT } => self.contexts.accept(endpoint, now, connection),
            Event::Offered { connection, .. } => {
                self.plain = endpoint.accept(now, connection).ok().map(|()| connection);
            }
            _ => {}
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.contexts.poll(endpoint, now)
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

struct There<'a> {
    contexts: Option<ContextClient>,
    arrived: &'a Arrived,
    buffer: Vec<u8>,
    failed: Option<String>,
}

impl Application for There<'_> {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        let Some(contexts) = &mut self.contexts else { return };
        if let Some(reason) = contexts.on_event(endpoint, now, &event) {
            self.failed = Some(reason.to_string());
        }
        while let Some(notice) = contexts.client.poll_notice() {
            match notice {
                Notice::Whole { .. } => self.arrived.tell(),
                Notice::Changed { change: Change::Append(text), .. } if text == WORDS.as_bytes() => self.arrived.tell(),
                Notice::Checked { .. } => {}
                other => self.failed = Some(format!("{other:?}")),
            }
        }
        match event {
            Event::MessagesReadable { connection } if contexts.connection() != Some(connection) => {
                self.buffer.clear();
                while let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) {
                    match self.buffer == WORDS.as_bytes() {
                        true => self.arrived.tell(),
                        false => self.failed = Some("another message".into()),
                    }
                    self.buffer.clear();
                }
            }
            Event::Closed { reason, .. } => self.failed = Some(reason.to_string()),
            _ => {}
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.contexts.as_mut().is_some_and(|contexts| contexts.poll(endpoint, now))
    }

    fn deadline(&self) -> Option<Instant> {
        self.contexts.as_ref()?.deadline()
    }
}
