//! One owner, its disk, its clients and what lies between them, stepped by chance.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pilot_tests::random::Random;
use pilot_user::context::{
    Client, Commit, Document, Follow, FollowId, HistoryLimits, Kind, LinkId, Owner, RequestId, Stamp,
};
use serde_json::Value;

use crate::counters::Counters;

/// What must come to pass in the runs.
pub(crate) const MUST_FIRE: [&str; 21] = [
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
    "own change not sent back",
    "resumed without the document",
    "several versions at once",
    "unanswered",
    "refused",
    "version by version",
];

/// What each version of each context was, by incarnation.
pub(crate) type Past = BTreeMap<(usize, u64, u64), Vec<u8>>;

/// What a disk keeps of a context.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) stamp: Stamp,
    /// Whole, of this version.
    pub(crate) whole: (u64, Vec<u8>),
    pub(crate) changes: BTreeMap<u64, Arc<[u8]>>,
}

pub(crate) struct Context {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) durable: bool,
    pub(crate) history: HistoryLimits,
    pub(crate) kept: Kept,
    pub(crate) failed: bool,
}

/// Both directions of a connection.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) to_owner: VecDeque<Vec<u8>>,
    pub(crate) to_client: VecDeque<Vec<u8>>,
    /// Had no room.
    pub(crate) held: Option<Vec<u8>>,
}

pub(crate) struct Peer {
    pub(crate) client: Client,
    pub(crate) follows: BTreeMap<FollowId, Following>,
    /// What changes were asked for: of which context.
    pub(crate) asked: BTreeMap<RequestId, usize>,
    pub(crate) link: Option<LinkId>,
    pub(crate) wire: Wire,
    pub(crate) room: usize,
    /// In a hundred steps, how many it reads in.
    pub(crate) speed: u64,
}

pub(crate) struct Following {
    pub(crate) context: usize,
    pub(crate) follow: Follow,
    /// What was last told: nothing may be told twice.
    pub(crate) last: Option<Stamp>,
    pub(crate) resumes: bool,
    pub(crate) damaged: bool,
}

pub(crate) struct Model {
    pub(crate) seed: u64,
    pub(crate) random: Random,
    pub(crate) owner: Owner,
    pub(crate) contexts: Vec<Context>,
    pub(crate) committing: Option<Commit>,
    /// What its versions will be, once they are announced.
    pub(crate) pending: Vec<((usize, u64, u64), Vec<u8>)>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) past: Past,
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

pub(crate) fn encoded(document: &Document) -> Vec<u8> {
    let mut out = Vec::new();
    document.encode(&mut out);
    out
}

/// For messages; documents of bytes are ASCII here where they are long.
pub(crate) fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// C3.6: the part of a document at a pointer.
pub(crate) fn part(document: &[u8], filter: Option<&str>) -> Vec<u8> {
    let Some(filter) = filter else { return document.to_vec() };
    let value: Value = serde_json::from_slice(document).unwrap();
    value.pointer(filter).cloned().unwrap_or_default().to_string().into_bytes()
}
