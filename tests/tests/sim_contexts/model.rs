//! One owner, its disk, its clients and what lies between them, stepped by chance.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pilot_tests::random::Random;
use pilot_user::context::{
    Change, Client, Commit, Document, Follow, FollowId, Held, HistoryLimits, Kind, LinkId, Notice, Owner, Replica,
    RequestId, Rights, Stamp,
};
use serde_json::Value;

use crate::changes;

/// How often each fault, and each mechanism that answers one, came to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    fired: BTreeMap<&'static str, u64>,
}

const MUST_FIRE: [&str; 20] = [
    "client restarted with its copies",
    "client restarted without",
    "commit failed",
    "commit of several changes",
    "conflict",
    "connection cut",
    "copy checked",
    "copy damaged",
    "divergence healed",
    "done",
    "document came whole",
    "no room",
    "not allowed",
    "owner killed with a commit under way",
    "owner restarted",
    "resumed without the document",
    "several versions at once",
    "unanswered",
    "refused",
    "version by version",
];

impl Counters {
    fn count(&mut self, what: &'static str) {
        *self.fired.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.fired.iter().for_each(|(what, times)| *self.fired.entry(what).or_default() += times);
    }

    pub(crate) fn check_all_fired(&self) {
        let missing: Vec<_> = MUST_FIRE.iter().filter(|what| !self.fired.contains_key(*what)).collect();
        assert!(missing.is_empty(), "never came to pass: {missing:?}");
    }
}

/// What each version of each context was, by incarnation.
type Past = BTreeMap<(usize, u64, u64), Vec<u8>>;

/// What a disk keeps of a context.
#[derive(Clone)]
struct Kept {
    stamp: Stamp,
    /// Whole, of this version.
    whole: (u64, Vec<u8>),
    changes: BTreeMap<u64, Arc<[u8]>>,
}

struct Context {
    name: String,
    kind: Kind,
    durable: bool,
    history: HistoryLimits,
    kept: Kept,
    failed: bool,
}

/// Both directions of a connection.
#[derive(Default)]
struct Wire {
    to_owner: VecDeque<Vec<u8>>,
    to_client: VecDeque<Vec<u8>>,
    /// Had no room.
    held: Option<Vec<u8>>,
}

struct Peer {
    client: Client,
    follows: BTreeMap<FollowId, Following>,
    /// What changes were asked for: of which context.
    asked: BTreeMap<RequestId, usize>,
    link: Option<LinkId>,
    wire: Wire,
    room: usize,
    /// In a hundred steps, how many it reads in.
    speed: u64,
}

struct Following {
    context: usize,
    follow: Follow,
    /// What was last told: nothing may be told twice.
    last: Option<Stamp>,
    resumes: bool,
    damaged: bool,
}

pub(crate) struct Model {
    seed: u64,
    random: Random,
    owner: Owner,
    contexts: Vec<Context>,
    committing: Option<Commit>,
    /// What its versions will be, once they are announced.
    pending: Vec<((usize, u64, u64), Vec<u8>)>,
    peers: Vec<Peer>,
    past: Past,
    pub(crate) counters: Counters,
}

impl Drop for Model {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.seed);
        }
    }
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed).fork();
        let kinds = [Kind::Json, Kind::Json, Kind::Text, Kind::Log, Kind::Bytes];
        let count = 1 + random.below(4) as usize;
        let contexts = (0..count).map(|at| {
            let kind = kinds[random.below(5) as usize];
            let history = HistoryLimits { entries: 1 + random.of_any_size(7) as usize, bytes: 64 << random.below(13) };
            let mut whole = Vec::new();
            Document::empty(kind).encode(&mut whole);
            let stamp = Stamp { incarnation: random.next(), version: 0 };
            let kept = Kept { stamp, whole: (0, whole), changes: BTreeMap::new() };
            Context { name: format!("c{at}"), kind, durable: random.below(2) == 0, history, kept, failed: false }
        });
        let contexts: Vec<_> = contexts.collect();
        let peers = (0..1 + random.below(4)).map(|_| Peer {
            client: Client::default(),
            follows: BTreeMap::new(),
            asked: BTreeMap::new(),
            link: None,
            wire: Wire::default(),
            room: 1 + random.of_any_size(6) as usize,
            speed: [100, 100, 50, 5][random.below(4) as usize],
        });
        let peers = peers.collect();
        let (owner, past, counters) = (Owner::default(), Past::new(), Counters::default());
        let mut model =
            Self { seed, random, owner, contexts, committing: None, pending: Vec::new(), peers, past, counters };
        model.start_owner();
        model
    }

    pub(crate) fn run(&mut self) {
        for _ in 0..200 + self.random.below(300) {
            self.step();
        }
        self.finish();
    }

    fn step(&mut self) {
        let peer = self.random.below(self.peers.len() as u64) as usize;
        match self.random.below(400) {
            0 => self.restart_owner(),
            1..4 => self.restart_client(peer),
            4..12 => self.cut(peer),
            12..30 => self.follow(peer),
            30..33 => self.unfollow(peer),
            33..200 => self.ask(peer),
            _ => {}
        }
        if self.peers[peer].link.is_none() && self.random.below(10) == 0 {
            self.connect(peer);
        }
        if self.random.below(100) < self.peers[peer].speed {
            self.client_turn(peer);
        }
        self.owner_turn();
    }

    // The owner and its disk.

    fn start_owner(&mut self) {
        self.owner = Owner::default();
        for (at, context) in self.contexts.iter_mut().enumerate() {
            if !context.durable || context.failed {
                // Begins anew.
                let mut whole = Vec::new();
                Document::empty(context.kind).encode(&mut whole);
                let stamp = Stamp { incarnation: self.random.next(), version: 0 };
                context.kept = Kept { stamp, whole: (0, whole), changes: BTreeMap::new() };
                context.failed = false;
            }
            let Kept { stamp, whole: (version, whole), changes } = &context.kept;
            let mut document = Document::decode(context.kind, whole).unwrap();
            for (_, change) in changes.range(version + 1..) {
                document.apply(&Change::decode(change).unwrap(), change.len()).unwrap();
            }
            assert!(
                changes.is_empty()
                    || changes.keys().copied().eq(changes.keys().min().copied().unwrap()..=stamp.version)
            );
            self.past.insert((at, stamp.incarnation, stamp.version), encoded(&document));
            let held = Held {
                document,
                stamp: *stamp,
                rights: Rights { read: vec!["*".into()], write: vec!["0".into(), "1".into(), "2".into()] },
                history: context.history,
                past: changes.values().cloned().collect(),
                durable: context.durable,
            };
            self.owner.hold(&context.name, held).unwrap();
        }
    }

    /// Killed: what the disk does not have is gone.
    fn restart_owner(&mut self) {
        (0..self.peers.len()).for_each(|peer| self.cut(peer));
        self.counters.count("owner restarted");
        if let Some(commit) = self.committing.take() {
            self.counters.count("owner killed with a commit under way");
            // What it was about to keep may be kept, and was not announced. If not, its numbers may be given again.
            if self.random.below(2) == 0 {
                self.keep(&commit);
            }
            self.pending.clear();
        }
        self.start_owner();
    }

    fn keep(&mut self, commit: &Commit) {
        let context = self.contexts.iter_mut().find(|context| context.name == commit.name).unwrap();
        let kept = &mut context.kept;
        assert_eq!(kept.stamp, commit.before, "commits follow one another");
        for change in &commit.changes {
            kept.stamp.version += 1;
            kept.changes.insert(kept.stamp.version, Arc::clone(change));
        }
        if let Some(document) = &commit.document {
            kept.whole = (kept.stamp.version, document.clone());
        }
        kept.changes.retain(|version, _| *version >= commit.keep_from);
        for (key, document) in self.pending.drain(..) {
            assert!(self.past.insert(key, document).is_none(), "a version made twice");
        }
    }

    fn owner_turn(&mut self) {
        for peer in 0..self.peers.len() {
            self.owner_reads(peer);
        }
        if self.committing.is_some() && self.random.below(3) == 0 {
            let commit = self.committing.take().unwrap();
            let fails = self.random.below(200) == 0;
            if fails {
                self.counters.count("commit failed");
                self.contexts.iter_mut().find(|context| context.name == commit.name).unwrap().failed = true;
                self.pending.clear();
            } else {
                self.keep(&commit);
            }
            self.owner.handle_committed(&commit.name, if fails { Err("no space".into()) } else { Ok(()) });
        }
        self.owner_writes();
        if self.committing.is_none() {
            self.committing = self.owner.poll_commit();
            if let Some(commit) = self.committing.clone() {
                if commit.changes.len() > 1 {
                    self.counters.count("commit of several changes");
                }
                let at = self.contexts.iter().position(|context| context.name == commit.name).unwrap();
                let Stamp { incarnation, version } = commit.before;
                let before = &self.past[&(at, incarnation, version)];
                let mut document = Document::decode(self.contexts[at].kind, before).unwrap();
                for (version, change) in (version + 1..).zip(&commit.changes) {
                    document.apply(&Change::decode(change).unwrap(), change.len()).unwrap();
                    self.pending.push(((at, incarnation, version), encoded(&document)));
                }
            }
        }
    }

    fn owner_reads(&mut self, peer: usize) {
        let Some(link) = self.peers[peer].link else { return };
        for _ in 0..self.random.below(4) {
            if !self.owner.accepts(link) {
                return;
            }
            let Some(message) = self.peers[peer].wire.to_owner.pop_front() else { return };
            let before: Vec<_> = (0..self.contexts.len()).map(|at| self.stamp(at)).collect();
            self.owner.handle(link, &message).unwrap();
            for (at, before) in before.into_iter().enumerate() {
                let now = self.stamp(at);
                if now != before {
                    assert_eq!(now.version, before.version + 1, "one change, one version");
                    let document = encoded(self.owner.document(&self.contexts[at].name).unwrap().0);
                    let made_twice = self.past.insert((at, now.incarnation, now.version), document);
                    assert!(made_twice.is_none(), "a version made twice");
                }
            }
        }
    }

    fn stamp(&self, at: usize) -> Stamp {
        self.owner.document(&self.contexts[at].name).unwrap().1
    }

    fn owner_writes(&mut self) {
        let mut ready = BTreeSet::new();
        while let Some(link) = self.owner.poll_ready() {
            ready.insert(link);
        }
        for peer in &mut self.peers {
            let Some(link) = peer.link else { continue };
            let mut message = Vec::new();
            // Room may have come.
            while let Some(held) = peer
                .wire
                .held
                .take()
                .or_else(|| self.owner.poll_transmit(link, &mut message).then(|| std::mem::take(&mut message)))
            {
                if peer.wire.to_client.len() < peer.room {
                    peer.wire.to_client.push_back(held);
                } else {
                    self.counters.count("no room");
                    peer.wire.held = Some(held);
                    break;
                }
            }
        }
    }

    // The clients.

    fn connect(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.link = Some(self.owner.connect(Some(&at.to_string())));
        for following in peer.follows.values_mut() {
            following.resumes = following.last.is_some();
        }
        peer.client.connect();
    }

    fn cut(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let Some(link) = peer.link.take() else { return };
        self.counters.count("connection cut");
        peer.wire = Wire::default();
        self.owner.disconnect(link);
        peer.client.disconnect();
        self.notices(at);
        assert!(self.peers[at].asked.is_empty(), "each is answered or told that it was not");
    }

    /// Its process ends; of its copies, it has kept all or none. A kept one may have been damaged.
    fn restart_client(&mut self, at: usize) {
        self.cut(at);
        let keeps = self.random.below(3) > 0;
        self.counters.count(if keeps { "client restarted with its copies" } else { "client restarted without" });
        let peer = &mut self.peers[at];
        let old = std::mem::take(&mut peer.client);
        let follows = std::mem::take(&mut peer.follows);
        for (id, mut following) in follows {
            let mut replica = old.replica(id).cloned().filter(|_| keeps);
            following.last = replica.as_ref().map(|replica| replica.stamp);
            following.damaged &= keeps;
            if let Some(replica) = &mut replica
                && self.random.below(8) == 0
            {
                let was = replica.document.clone();
                let damage = changes::change(&mut self.random, replica.document.kind());
                let _ = replica.document.apply(&damage, damage.encode().len());
                if encoded(&was) != encoded(&replica.document) {
                    self.counters.count("copy damaged");
                    following.damaged = true;
                }
            }
            let new = peer.client.follow(following.follow.clone(), replica);
            peer.follows.insert(new, following);
        }
    }

    fn follow(&mut self, at: usize) {
        let context = self.random.below(self.contexts.len() as u64) as usize;
        let is_json = self.contexts[context].kind == Kind::Json;
        let filter = (is_json && self.random.below(3) == 0).then(|| changes::pointer(&mut self.random));
        let latest = self.random.below(3) == 0;
        let peer = &mut self.peers[at];
        if peer.follows.len() >= 3 {
            return;
        }
        let follow = Follow { name: self.contexts[context].name.clone(), filter, latest };
        let id = peer.client.follow(follow.clone(), None);
        peer.follows.insert(id, Following { context, follow, last: None, resumes: false, damaged: false });
    }

    fn unfollow(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if let Some((id, _)) = peer.follows.pop_first() {
            peer.client.unfollow(id);
        }
    }

    fn ask(&mut self, at: usize) {
        let context = self.random.below(self.contexts.len() as u64) as usize;
        let change = changes::change(&mut self.random, self.contexts[context].kind);
        let peer = &mut self.peers[at];
        let known = peer.follows.iter().find(|(_, following)| following.context == context);
        let stamp = known.and_then(|(id, _)| peer.client.replica(*id)).map(|replica: &Replica| replica.stamp);
        let base = stamp.filter(|_| self.random.below(2) == 0);
        if let Ok(request) = peer.client.change(&self.contexts[context].name, base, &change) {
            peer.asked.insert(request, context);
        }
    }

    fn client_turn(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.link.is_none() {
            return;
        }
        for _ in 0..self.random.below(8) {
            let peer = &mut self.peers[at];
            let Some(message) = peer.wire.to_client.pop_front() else { break };
            peer.client.handle(&message).unwrap();
            self.notices(at);
        }
        let Peer { client, wire, .. } = &mut self.peers[at];
        let mut message = Vec::new();
        while client.poll_transmit(&mut message) {
            wire.to_owner.push_back(std::mem::take(&mut message));
        }
    }

    fn notices(&mut self, at: usize) {
        while let Some(notice) = self.peers[at].client.poll_notice() {
            let Peer { client, follows, asked, .. } = &mut self.peers[at];
            let counters = &mut self.counters;
            match notice {
                Notice::Whole { follow } | Notice::Changed { follow, .. } | Notice::Checked { follow } => {
                    let Some(following) = follows.get_mut(&follow) else { continue };
                    let replica = client.replica(follow).unwrap();
                    let (now, is_whole) = (replica.stamp, matches!(notice, Notice::Whole { .. }));
                    following.damaged &= !is_whole && !matches!(notice, Notice::Checked { .. });
                    let plain = following.follow.filter.is_none();
                    if !following.damaged {
                        let wanted = self.past.get(&(following.context, now.incarnation, now.version));
                        let wanted = wanted.unwrap_or_else(|| panic!("{now:?} was never announced"));
                        let wanted = part(wanted, following.follow.filter.as_deref());
                        assert_eq!(
                            text(&encoded(&replica.document)),
                            text(&wanted),
                            "{:?} at {now:?}",
                            following.follow
                        );
                    }
                    let last = following.last.replace(now);
                    match (notice, last) {
                        (Notice::Whole { .. }, last) => {
                            let older = last
                                .is_some_and(|last| last.incarnation == now.incarnation && last.version > now.version);
                            assert!(!older, "a version that was announced is lost");
                            counters.count("document came whole");
                        }
                        (Notice::Changed { .. }, Some(last)) => {
                            assert_eq!(last.incarnation, now.incarnation);
                            if plain && !following.follow.latest {
                                assert_eq!(now.version, last.version + 1, "no version skipped, none twice");
                                counters.count("version by version");
                            } else {
                                assert!(now.version > last.version, "none twice");
                                counters.count(if now.version > last.version + 1 {
                                    "several versions at once"
                                } else {
                                    "done"
                                });
                            }
                        }
                        (Notice::Checked { .. }, Some(_)) => {
                            counters.count("copy checked");
                        }
                        (notice, None) => panic!("{notice:?} before the document"),
                        _ => {}
                    }
                    if std::mem::take(&mut following.resumes) && !is_whole {
                        counters.count("resumed without the document");
                    }
                }
                Notice::Diverged { follow } => {
                    let Some(following) = follows.get(&follow) else { continue };
                    let replica = client.replica(follow).unwrap();
                    let key = (following.context, replica.stamp.incarnation, replica.stamp.version);
                    let was = self.past.get(&key).map(|past| part(past, following.follow.filter.as_deref()));
                    let (is, was) = (encoded(&replica.document), was.unwrap_or_default());
                    let what =
                        || format!("{:?} {:?}: {} but {}", following.follow, replica.stamp, text(&is), text(&was));
                    assert!(following.damaged, "diverged by itself: {}", what());
                    counters.count("divergence healed");
                }
                Notice::Ended { follow, refusal } => {
                    assert!(refusal.words.contains("cannot be kept"), "{refusal}");
                    follows.remove(&follow);
                }
                Notice::Done { request, stamp } => {
                    let context = asked.remove(&request).unwrap();
                    assert!(self.past.contains_key(&(context, stamp.incarnation, stamp.version)));
                    assert!(at < 3, "who may not write wrote");
                    counters.count("done");
                }
                Notice::Refused { request, refusal } => {
                    asked.remove(&request).unwrap();
                    counters.count(match refusal.code {
                        pilot_user::context::RefusalCode::Conflict => "conflict",
                        pilot_user::context::RefusalCode::NotAllowed => "not allowed",
                        _ => "refused",
                    });
                }
                Notice::Unanswered { request } => {
                    asked.remove(&request).unwrap();
                    counters.count("unanswered");
                }
            }
        }
    }

    /// Faults stop; then every follower comes to the owner's document.
    fn finish(&mut self) {
        for at in 0..self.peers.len() {
            if self.peers[at].link.is_none() {
                self.connect(at);
            }
        }
        for _ in 0..200_000 {
            (0..self.peers.len()).for_each(|at| self.client_turn(at));
            self.owner_turn();
            let idle = |peer: &Peer| {
                let wire = &peer.wire;
                wire.held.is_none() && wire.to_owner.is_empty() && wire.to_client.is_empty() && peer.asked.is_empty()
            };
            if self.committing.is_none() && self.peers.iter().all(idle) {
                break;
            }
        }
        for peer in &self.peers {
            for (id, following) in &peer.follows {
                let context = &self.contexts[following.context];
                let (document, stamp) = self.owner.document(&context.name).unwrap();
                let replica = peer.client.replica(*id).unwrap_or_else(|| panic!("{:?} never came", following.follow));
                let wanted = part(&encoded(document), following.follow.filter.as_deref());
                assert_eq!(text(&encoded(&replica.document)), text(&wanted), "{:?}", following.follow);
                assert_eq!(replica.stamp.incarnation, stamp.incarnation);
                if following.follow.filter.is_none() {
                    assert_eq!(replica.stamp, stamp, "{:?}", following.follow);
                }
            }
        }
    }
}

fn encoded(document: &Document) -> Vec<u8> {
    let mut out = Vec::new();
    document.encode(&mut out);
    out
}

/// For messages; documents of bytes are ASCII here where they are long.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// C3.6: the part of a document at a pointer.
fn part(document: &[u8], filter: Option<&str>) -> Vec<u8> {
    let Some(filter) = filter else { return document.to_vec() };
    let value: Value = serde_json::from_slice(document).unwrap();
    value.pointer(filter).cloned().unwrap_or_default().to_string().into_bytes()
}
