//! Pilot's shared contexts: the researcher's node holds the report, a text, and the facts, JSON; the others follow both. Each
//! agent is a node with its worker on a thread in its own namespace.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use pilot_engine::{Aead, Aeads, Code, Endpoint, Event, PeerId, RefuseCode};
use pilot_user::config::Config;
use pilot_user::context::{
    self, Client, Document, Follow, FollowId, Held, Kind, LinkId, Notice, Owner, Replica, Rights,
};
use pilot_user::identity_file;
use pilot_user::link::doorbell::Doorbell;
use pilot_user::link::pair::PairLink;
use pilot_user::node::Assembly;
use pilot_user::service::CONTEXTS_PORT;
use pilot_user::service::contexts::{ContextClient, ContextOwner};
use pilot_user::worker::Application;
use pilot_user::worker::drivers::Worker;
use serde_json::{Value, json};

use crate::corpus::{AGENTS, Change, RESEARCHER, Shared};
use crate::hub::{Hub, Order, Said, Tell, Voice};
use crate::pipeline::Traffic;
use crate::place::{DEVICE, Places};
use crate::tls::PATIENCE;

/// The contexts: the report and the facts.
const NAMES: [&str; 2] = ["report", "facts"];
/// Bytes of the messages round what is in them, as docs/context.md §2 has them, with numbers of one byte.
const SNAPSHOT_BYTES: usize = 12;
const DELTA_BYTES: usize = 4;
const HAVE_BYTES: usize = 3;
const CHANGE_BYTES: usize = 5;
const MADE_BYTES: usize = 3;
const FOLLOW_BYTES: usize = 3;

/// Starts the agents: `datapath` as a configuration says it. Their keys are kept in `directory`.
pub(crate) fn hub(
    datapath: &str,
    directory: &Path,
    places: &Places,
    start: &Shared,
    agents: usize,
    traffic: &Arc<Traffic>,
) -> anyhow::Result<Hub> {
    let (voice, voices) = unbounded();
    let mut tell: Vec<Tell> = Vec::new();
    for (agent, config) in configs(datapath, directory, agents)?.into_iter().enumerate() {
        let (orders, told) = unbounded();
        let (begun, begins) = bounded(1);
        let (places, voice, traffic, start) = (places.clone(), voice.clone(), Arc::clone(traffic), start.clone());
        std::thread::spawn(move || {
            let seat = Seat { agent, told, voice: voice.clone(), traffic, own: VecDeque::new(), begun };
            if let Err(error) = run(&places, &config, seat, &start) {
                // Nobody listens when the run is over.
                let _ = voice.send((agent, Said::Failed(error)));
            }
        });
        // Without one, the agent has failed, and says so.
        let doorbell: Option<Doorbell> = begins.recv().ok();
        tell.push(Box::new(move |order| {
            let _ = orders.send(order);
            doorbell.iter().for_each(Doorbell::ring);
        }));
    }
    Hub::new(tell, voices)
}

fn configs(datapath: &str, directory: &Path, agents: usize) -> anyhow::Result<Vec<Config>> {
    let key = |agent: usize| Ok(identity_file::create(&directory.join(format!("{agent}.key")))?.public_key());
    let keys = (0..agents).map(key).collect::<anyhow::Result<Vec<_>>>()?;
    let config = |own: usize| {
        let mut text = format!(
            "identity = \"{own}.key\"\naddress = \"0:0000.0000.000{}\"\ninterface = \"{DEVICE}\"\nlisten = \"{}\"\n\
             datapath = \"{datapath}\"\nallow_from = [\"10.77.0.0/24\"]\n",
            own + 1,
            Places::address(own),
        );
        for (peer, key) in keys.iter().enumerate().filter(|(peer, _)| *peer != own) {
            let name = AGENTS[peer];
            text +=
                &format!("[[peers]]\nname = \"{name}\"\naddress = \"0:0000.0000.000{}\"\nkey = \"{key}\"\n", peer + 1);
            if peer == RESEARCHER {
                text += &format!("endpoint = \"{}\"\n", Places::address(peer));
            }
        }
        Ok(Config::parse(&text, directory)?)
    };
    (0..agents).map(config).collect()
}

/// What every agent has.
struct Seat {
    agent: usize,
    told: Receiver<Order>,
    voice: Sender<Voice>,
    traffic: Arc<Traffic>,
    /// Changes of its own that were not made yet.
    own: VecDeque<context::Change>,
    begun: Sender<Doorbell>,
}

impl Seat {
    fn say(&self, said: Said) {
        // Nobody listens when the run is over.
        let _ = self.voice.send((self.agent, said));
    }

    /// A copy changed: what somebody else wrote is for the model, in the form that `context::tokens` has for it. Whether it was
    /// a change of its own.
    fn changed(&mut self, change: &context::Change, version: u64) -> bool {
        let is_own = self.own.front() == Some(change);
        if is_own {
            self.own.pop_front();
            self.say(Said::Made);
        } else {
            let at = Instant::now();
            self.say(Said::Given { text: format!("{version} {}", change.to_json()), at });
        }
        is_own
    }
}

fn run(places: &Places, config: &Config, seat: Seat, start: &Shared) -> anyhow::Result<()> {
    places.enter(seat.agent)?;
    let Assembly { control, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let place = seats.into_iter().next().context("a worker")?;
    // The other end waits for exactly this.
    let _ = seat.begun.send(place.doorbell());
    if seat.agent == RESEARCHER {
        let mut worker = place.with(Researcher::new(seat, &peers, start)?);
        settle(&mut worker, || !control.datapath().pending)?;
        worker.application.seat.say(Said::Ready);
        worker.run_until(|worker| worker.application.finished)?;
        let datapath = control.datapath();
        let notes = json!({
            "datapath": *datapath, "aead": worker.application.aead.map(|aead| format!("{aead:?}")),
            "opened": {"xdp": worker.opened.xdp, "udp": worker.opened.udp, "bulk": worker.opened.bulk},
            "sent": sent(&worker.endpoint, &peers),
        });
        let shared = worker.application.shared()?;
        worker.application.seat.say(Said::Finished { shared, notes });
    } else {
        let owner = peers.iter().find(|(name, _)| name == AGENTS[RESEARCHER]).context("no owner")?.1;
        let mut worker =
            place.with(Follower { seat, owner, contexts: None, follows: None, came_whole: 0, finished: false });
        settle(&mut worker, || !control.datapath().pending)?;
        worker.application.seat.say(Said::Ready);
        worker.run_until(|worker| worker.application.finished)?;
        let (shared, notes) = (worker.application.shared()?, json!({"sent": sent(&worker.endpoint, &peers)}));
        worker.application.seat.say(Said::Finished { shared, notes });
        let now = worker.now();
        worker.endpoint.close_tunnel(now, owner, Code::NoError);
        worker.pass()?;
    }
    Ok(())
}

/// Runs until it is decided which way datagrams go.
fn settle<A: Application>(worker: &mut Worker<PairLink, A>, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !done() {
        worker.pass()?;
        ensure!(Instant::now() < until, "no datapath within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What the engine sent so far, by cause: datagrams, and their UDP payload bytes.
fn sent(endpoint: &Endpoint, peers: &[(String, PeerId)]) -> Value {
    // Those that are over, and those that are not.
    let mut all = endpoint.stats().ended.clone();
    peers.iter().filter_map(|(_, peer)| endpoint.tunnel_stats(*peer)).for_each(|tunnel| all.count(&tunnel));
    let handshakes = endpoint.stats();
    json!({
        "handshakes": [handshakes.handshake_datagrams, handshakes.handshake_bytes],
        "mtu_probes": [all.mtu_probes, all.mtu_probe_bytes],
        "acks": [all.ack_packets, all.ack_bytes],
        "data": [
            all.sent_packets - all.mtu_probes - all.ack_packets,
            all.sent_bytes - all.mtu_probe_bytes - all.ack_bytes,
        ],
        "lost_packets": all.lost_packets,
    })
}

fn change(change: Change) -> (&'static str, context::Change) {
    match change {
        Change::Append(text) => (NAMES[0], context::Change::Append(text.into())),
        Change::Merge(patch) => (NAMES[1], context::Change::Merge(patch)),
    }
}

fn text(document: &Document) -> anyhow::Result<String> {
    let mut bytes = Vec::with_capacity(document.bound());
    document.encode(&mut bytes);
    Ok(String::from_utf8(bytes)?)
}

fn shared(replicas: [Option<&Replica>; 2]) -> anyhow::Result<Shared> {
    let [Some(report), Some(facts)] = replicas else { bail!("nothing was ever followed") };
    Ok(Shared { report: text(&report.document)?, facts: serde_json::from_str(&text(&facts.document)?)? })
}

/// Holds the contexts, and follows them itself through a client in the same process.
struct Researcher {
    seat: Seat,
    contexts: ContextOwner,
    local: Client,
    link: LinkId,
    follows: [FollowId; 2],
    buffer: Vec<u8>,
    /// What the tunnels use.
    aead: Option<Aead>,
    finished: bool,
}

impl Researcher {
    fn new(seat: Seat, peers: &[(String, PeerId)], start: &Shared) -> anyhow::Result<Self> {
        let everyone = || vec!["*".to_owned()];
        let mut owner = Owner::default();
        let facts = start.facts.to_string();
        for (name, kind, document) in [(NAMES[0], Kind::Text, &start.report), (NAMES[1], Kind::Json, &facts)] {
            let rights = Rights { read: everyone(), write: everyone() };
            let document = Document::decode(kind, document.as_bytes())?;
            owner.hold(name, Held::new(document, u64::from(std::process::id()), rights))?;
        }
        let (link, mut local) = (owner.connect(None), Client::default());
        local.connect();
        let follows = NAMES.map(|name| local.follow(Follow { name: name.into(), ..Follow::default() }, None));
        let contexts = ContextOwner::new(owner, None, peers);
        Ok(Self { seat, contexts, local, link, follows, buffer: Vec::new(), aead: None, finished: false })
    }

    /// Carries messages between the contexts and the client here.
    fn pump(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant) {
        let Self { contexts, local, link, buffer, .. } = self;
        contexts.with_owner(endpoint, now, |owner| {
            loop {
                let mut any = false;
                while local.poll_transmit(buffer) {
                    any |= owner.handle(*link, buffer).is_ok();
                }
                while owner.poll_transmit(*link, buffer) {
                    any |= local.handle(buffer).is_ok();
                }
                if !any {
                    break;
                }
            }
        });
        while let Some(notice) = self.local.poll_notice() {
            if let Notice::Changed { version, change, .. } = notice {
                self.seat.changed(&change, version);
            }
        }
    }

    fn shared(&self) -> anyhow::Result<Shared> {
        shared(self.follows.map(|follow| self.local.replica(follow)))
    }
}

impl Application for Researcher {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant, event: Event) {
        self.contexts.on_event(endpoint, now, &event);
        match event {
            Event::Offered { connection, port: CONTEXTS_PORT } => {
                self.aead = endpoint.aead(connection.peer());
                self.contexts.accept(endpoint, now, connection);
            }
            Event::Offered { connection, .. } => {
                endpoint.refuse(now, connection, RefuseCode::NoListener as u64, "contexts only");
            }
            Event::Closed { connection, .. } => endpoint.close(now, connection, 0, ""),
            _ => {}
        }
        self.pump(endpoint, now);
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant) -> bool {
        let mut any = self.contexts.poll(endpoint, now);
        while let Ok(order) = self.seat.told.try_recv() {
            any = true;
            match order {
                Order::Join => {}
                Order::Change(wanted) => {
                    let (name, change) = change(wanted);
                    if let Err(error) = self.local.change(name, None, &change) {
                        self.seat.say(Said::Failed(error.into()));
                    }
                    self.seat.own.push_back(change);
                }
                Order::Finish => self.finished = true,
            }
        }
        // Also what the client had to say when it began.
        self.pump(endpoint, now);
        any
    }

    fn deadline(&self) -> Option<pilot_engine::Instant> {
        None
    }
}

/// Follows the contexts of the researcher's node.
struct Follower {
    seat: Seat,
    owner: PeerId,
    contexts: Option<ContextClient>,
    follows: Option<[FollowId; 2]>,
    /// Documents that have come whole.
    came_whole: usize,
    finished: bool,
}

impl Follower {
    fn replica(&self, follow: FollowId) -> Option<&Replica> {
        self.contexts.as_ref()?.client.replica(follow)
    }

    fn shared(&self) -> anyhow::Result<Shared> {
        let follows = self.follows.context("it never joined")?;
        shared(follows.map(|follow| self.replica(follow)))
    }

    /// Once both documents are there, they are for the model.
    fn came_whole(&mut self) {
        self.came_whole += 1;
        if self.came_whole < NAMES.len() {
            return;
        }
        let (Ok(shared), at) = (self.shared(), Instant::now()) else { return };
        self.seat.traffic.message(SNAPSHOT_BYTES + shared.report.len());
        self.seat.traffic.message(SNAPSHOT_BYTES + shared.facts.to_string().len());
        NAMES.iter().for_each(|_| self.seat.traffic.message(HAVE_BYTES));
        self.seat.say(Said::Given { text: shared.text(), at });
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Whole { .. } => self.came_whole(),
            Notice::Changed { version, change, .. } => {
                if !self.seat.changed(&change, version) {
                    self.seat.traffic.message(DELTA_BYTES + change.encode().len());
                }
            }
            Notice::Done { .. } => self.seat.traffic.message(MADE_BYTES),
            Notice::Refused { refusal, .. } | Notice::Ended { refusal, .. } => {
                self.seat.say(Said::Failed(refusal.into()));
            }
            Notice::Checked { .. } | Notice::Diverged { .. } | Notice::Unanswered { .. } => {}
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Join => {
                let mut contexts = ContextClient::new(self.owner);
                self.follows = Some(NAMES.map(|name| {
                    self.seat.traffic.message(FOLLOW_BYTES + name.len());
                    contexts.client.follow(Follow { name: name.into(), ..Follow::default() }, None)
                }));
                self.contexts = Some(contexts);
                // The tunnel's handshake, the connection, the documents.
                self.seat.traffic.round_trips(3);
            }
            Order::Change(wanted) => {
                let (name, change) = change(wanted);
                let Some(contexts) = &mut self.contexts else { return };
                if let Err(error) = contexts.client.change(name, None, &change) {
                    self.seat.say(Said::Failed(error.into()));
                }
                self.seat.traffic.message(CHANGE_BYTES + name.len() + change.encode().len());
                self.seat.traffic.round_trips(1);
                self.seat.own.push_back(change);
            }
            Order::Finish => self.finished = true,
        }
    }
}

impl Application for Follower {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant, event: Event) {
        let Some(contexts) = &mut self.contexts else { return };
        let ended = contexts.on_event(endpoint, now, &event);
        if let Some(reason) = ended.filter(|_| !self.finished) {
            self.seat.say(Said::Failed(reason.into()));
        }
        while let Some(notice) = self.contexts.as_mut().and_then(|contexts| contexts.client.poll_notice()) {
            self.on_notice(notice);
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant) -> bool {
        let mut any = false;
        while let Ok(order) = self.seat.told.try_recv() {
            any = true;
            self.take(order);
        }
        if let Some(contexts) = &mut self.contexts {
            any |= contexts.poll(endpoint, now);
            contexts.flush(endpoint, now);
        }
        any
    }

    fn deadline(&self) -> Option<pilot_engine::Instant> {
        self.contexts.as_ref()?.deadline()
    }
}
