//! One owner's node and several clients', over paths that lose, repeat, damage and hold up datagrams, or carry nothing for a
//! while. Nodes are killed and begin anew, sleep, or close their tunnels. Contexts are volatile here: what the disk adds is the
//! model's (`model`).

use std::collections::BTreeMap;
use std::time::Duration;

use pilot_engine::{Code, Instant};
use pilot_tests::contexts::Serving;
use pilot_tests::link::{Attachment as _, Packet};
use pilot_tests::netem::{Bursts, Conditions, Netem, PerMille};
use pilot_tests::random::Random;
use pilot_user::context::{
    Client, Document, Follow, FollowId, Held, HistoryLimits, Kind, LinkId, Notice, Owner, Replica, Rights, Stamp,
};
use pilot_user::service::contexts::ContextOwner;

use crate::changes;
use crate::counters::Counters;
use crate::model::{encoded, part, text};
use crate::nodes::{Following, Host, Using, number};

pub(crate) const MUST_FIRE: [&str; 13] = [
    "node slept",
    "owner's node killed",
    "client's node killed, with its copies",
    "client's node killed, without",
    "tunnel closed",
    "path cut",
    "datagram lost",
    "datagram repeated",
    "datagram damaged",
    "document came whole",
    "document came whole again",
    "resumed without the document",
    "changed by a change",
];

const KINDS: [Kind; 4] = [Kind::Json, Kind::Text, Kind::Log, Kind::Bytes];
/// Changes kept of each context: fewer than there are while a path is cut.
const HISTORY: HistoryLimits = HistoryLimits { entries: 64, bytes: 1 << 20 };
/// How long faults go on, and how long it takes after that at most, in virtual time.
const FAULTS: Duration = Duration::from_secs(20);
const HEALING: Duration = Duration::from_secs(300);

pub(crate) struct Network {
    seed: u64,
    random: Random,
    now: Instant,
    owner: Host<Serving>,
    /// Follows everything in the owner's process, and so sees each version.
    tap: (LinkId, Client, Vec<FollowId>),
    clients: Vec<Host<Using>>,
    /// Each way of each client's path.
    paths: Vec<[Netem; 2]>,
    in_flight: BTreeMap<(Instant, u64), (usize, Packet)>,
    sent: u64,
    past: BTreeMap<(usize, u64, u64), Vec<u8>>,
    pub(crate) counters: Counters,
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} over the network", self.seed);
        }
    }
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed).fork();
        let clients = 1 + random.below(3) as usize;
        let now = Instant::from_nanos(1);
        let (serving, tap) = serve(&mut random);
        let mut network = Self {
            seed,
            owner: Host::new(0, clients, now, &mut random, |_| serving),
            tap,
            clients: Vec::new(),
            paths: (0..clients).map(|_| [0; 2].map(|_| Netem::new(Conditions::GOOD, random.fork()))).collect(),
            random,
            now,
            in_flight: BTreeMap::new(),
            sent: 0,
            past: BTreeMap::new(),
            counters: Counters::default(),
        };
        for number in 1..=clients {
            let mut host = Host::new(number as u8, clients, now, &mut network.random, Using::new);
            for _ in 0..1 + network.random.below(3) {
                let context = network.random.below(KINDS.len() as u64) as usize;
                let is_part = context == 0 && network.random.below(2) == 0;
                let follow = Follow {
                    name: context.to_string(),
                    filter: is_part.then(|| changes::pointer(&mut network.random)),
                    latest: network.random.below(3) == 0,
                };
                host.application.follow(context, follow, None);
            }
            network.clients.push(host);
        }
        network
    }

    pub(crate) fn run(&mut self) {
        let end = self.now + FAULTS;
        let mut next = self.now;
        while next < end {
            self.until(next, |_| false);
            self.act();
            next += Duration::from_millis(1 + self.random.of_any_size(9));
        }
        for at in 0..self.clients.len() {
            self.paths[at].iter_mut().for_each(|path| path.set_conditions(Conditions::GOOD));
        }
        let latest = self.now + HEALING;
        self.until(latest, |network| network.is_healed());
        assert!(self.is_healed(), "not healed: {}", self.differences());
        for path in self.paths.iter().flatten() {
            let counters = path.counters();
            self.counters.count_times("datagram lost", counters.lost + counters.lost_in_bursts);
            self.counters.count_times("datagram repeated", counters.duplicated);
            self.counters.count_times("datagram damaged", counters.corrupted + counters.truncated);
        }
    }

    fn act(&mut self) {
        let at = self.random.below(self.clients.len() as u64) as usize;
        match self.random.below(200) {
            0 => {
                self.counters.count("owner's node killed");
                let (serving, tap) = serve(&mut self.random);
                self.tap = tap;
                self.owner = Host::new(0, self.clients.len(), self.now, &mut self.random, |_| serving);
            }
            1 | 2 => self.kill_client(at),
            3..6 => {
                self.counters.count("tunnel closed");
                let Host { endpoint, application, .. } = &mut self.clients[at];
                endpoint.close_tunnel(self.now, application.owner, Code::NoError);
            }
            6..9 => {
                self.counters.count("node slept");
                self.clients[at].sleeps_until = self.now + Duration::from_millis(self.random.of_any_size(12));
            }
            9..12 => {
                self.counters.count("path cut");
                self.paths[at].iter_mut().for_each(|path| path.set_conditions(Conditions::PARTITIONED));
            }
            12..30 => {
                let conditions = conditions(&mut self.random);
                self.paths[at].iter_mut().for_each(|path| path.set_conditions(conditions));
            }
            _ => {
                let context = self.random.below(KINDS.len() as u64) as usize;
                let change = changes::change(&mut self.random, KINDS[context]);
                let Host { endpoint, application, .. } = &mut self.clients[at];
                // Not now: there is no connection, or too many wait.
                if application.contexts.client.change(&context.to_string(), None, &change).is_ok() {
                    application.contexts.flush(endpoint, self.now);
                }
            }
        }
    }

    /// Its process ends; of its copies, it has kept all or none.
    fn kill_client(&mut self, at: usize) {
        let keeps = self.random.below(3) > 0;
        let what = if keeps { "client's node killed, with its copies" } else { "client's node killed, without" };
        self.counters.count(what);
        let host = Host::new(at as u8 + 1, self.clients.len(), self.now, &mut self.random, Using::new);
        let old = std::mem::replace(&mut self.clients[at], host).application;
        for (id, following) in &old.follows {
            let replica = old.contexts.client.replica(*id).cloned().filter(|_| keeps);
            self.clients[at].application.follow(following.context, following.follow.clone(), replica);
        }
    }

    /// Runs until this instant, or until it is done.
    fn until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) {
        loop {
            self.pass();
            if done(self) {
                return;
            }
            let deadlines = self.clients.iter().filter_map(|host| Some(host.deadline?.max(host.sleeps_until)));
            let packet = self.in_flight.keys().next().map(|(at, _)| *at);
            let next = deadlines.chain(self.owner.deadline).chain(packet).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = self.now.max(end);
                return;
            };
            self.now = next.max(self.now + Duration::from_nanos(1));
            while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
                // A socket's buffer that is full drops.
                let _ = match entry.remove() {
                    (0, packet) => self.owner.link.deliver(packet),
                    (client, packet) => self.clients[client - 1].link.deliver(packet),
                };
            }
        }
    }

    /// All that run do what there is to do.
    fn pass(&mut self) {
        let from_owner = self.owner.run(self.now);
        self.listen();
        for packet in from_owner {
            let to = number(packet.destination);
            self.send(to - 1, 0, to, packet);
        }
        for at in 0..self.clients.len() {
            if self.clients[at].sleeps_until > self.now {
                continue;
            }
            let sent = self.clients[at].run(self.now);
            self.notices(at);
            sent.into_iter().for_each(|packet| self.send(at, 1, 0, packet));
        }
    }

    fn send(&mut self, path: usize, way: usize, to: usize, packet: Packet) {
        let Packet { source, destination, ecn, head, bytes } = packet;
        let Self { paths, in_flight, sent, now, .. } = self;
        paths[path][way].send(*now, ecn, bytes, |at, ecn, bytes| {
            *sent += 1;
            in_flight.insert((at, *sent), (to, Packet { source, destination, ecn, head: head.clone(), bytes }));
        });
    }

    /// Notes every version that there is.
    fn listen(&mut self) {
        let (link, tap, follows) = &mut self.tap;
        let Self { past, owner: Host { endpoint, application: Serving(service), .. }, now, .. } = self;
        service.with_owner(endpoint, *now, |owner| {
            let mut message = Vec::new();
            loop {
                while tap.poll_transmit(&mut message) {
                    owner.handle(*link, &message).unwrap();
                }
                if !owner.poll_transmit(*link, &mut message) {
                    return;
                }
                tap.handle(&message).unwrap();
                while let Some(notice) = tap.poll_notice() {
                    let (Notice::Whole { follow } | Notice::Changed { follow, .. }) = notice else { continue };
                    let at = follows.iter().position(|it| *it == follow).unwrap();
                    let Replica { stamp, document } = tap.replica(follow).unwrap();
                    past.insert((at, stamp.incarnation, stamp.version), encoded(document));
                }
            }
        });
    }

    /// C3.3: a copy is at every notice the document that its version had.
    fn notices(&mut self, at: usize) {
        let Self { clients, counters, past, .. } = self;
        let Using { contexts, follows, .. } = &mut clients[at].application;
        // Of each that is followed: changes that were told, and whether the document was.
        let mut told: BTreeMap<FollowId, (u64, bool)> = BTreeMap::new();
        while let Some(notice) = contexts.client.poll_notice() {
            match notice {
                Notice::Whole { follow } => _ = told.insert(follow, (0, true)),
                Notice::Changed { follow, .. } => told.entry(follow).or_default().0 += 1,
                Notice::Checked { follow } => _ = told.entry(follow).or_default(),
                Notice::Diverged { .. } | Notice::Ended { .. } => unreachable!("{notice:?}"),
                Notice::Done { .. } | Notice::Refused { .. } | Notice::Unanswered { .. } => {}
            }
        }
        for (follow, (changes, is_whole)) in told {
            let following = follows.get_mut(&follow).unwrap();
            let replica = contexts.client.replica(follow).unwrap();
            let Stamp { incarnation, version } = replica.stamp;
            let wanted = part(&past[&(following.context, incarnation, version)], following.follow.filter.as_deref());
            let is = encoded(&replica.document);
            assert_eq!(text(&is), text(&wanted), "{:?} at {:?}", following.follow, replica.stamp);
            counters.count_times("changed by a change", changes);
            match (following.last.replace(replica.stamp), is_whole) {
                (None, true) => counters.count("document came whole"),
                (Some(_), true) => counters.count("document came whole again"),
                (Some(last), false) => {
                    assert!(last.incarnation == incarnation && last.version <= version);
                    if following.follow.filter.is_none() && !following.follow.latest {
                        assert_eq!(version, last.version + changes, "no version skipped, none twice");
                    }
                    if following.resumes {
                        counters.count("resumed without the document");
                    }
                }
                (None, false) => unreachable!("changed before there was a document"),
            }
            following.resumes = false;
        }
    }

    fn is_healed(&self) -> bool {
        self.in_flight.len() < 1000 && self.differences().is_empty()
    }

    /// The followers that do not have the owner's document.
    fn differences(&self) -> String {
        let mut differ = String::new();
        for (at, host) in self.clients.iter().enumerate() {
            for (id, Following { context, follow, .. }) in &host.application.follows {
                let owner = self.tap.1.replica(self.tap.2[*context]);
                let has = host.application.contexts.client.replica(*id);
                let same = owner.zip(has).is_some_and(|(owner, has)| {
                    let whole_is_same = follow.filter.is_some() || owner.stamp == has.stamp;
                    let is_of_life = owner.stamp.incarnation == has.stamp.incarnation;
                    let wanted = || part(&encoded(&owner.document), follow.filter.as_deref());
                    whole_is_same && is_of_life && encoded(&has.document) == wanted()
                });
                if !same {
                    let stamps = (owner.map(|it| it.stamp), has.map(|it| it.stamp));
                    differ += &format!("client {at}, {follow:?}: {stamps:?}; ");
                }
            }
        }
        differ
    }
}

fn serve(random: &mut Random) -> (Serving, (LinkId, Client, Vec<FollowId>)) {
    let mut owner = Owner::default();
    for (at, kind) in KINDS.into_iter().enumerate() {
        let rights = Rights { read: vec!["*".into()], write: vec!["*".into()] };
        let held = Held { history: HISTORY, ..Held::new(Document::empty(kind), random.next(), rights) };
        owner.hold(&at.to_string(), held).unwrap();
    }
    let link = owner.connect(None);
    let mut tap = Client::default();
    tap.connect();
    let follow = |at: usize| Follow { name: at.to_string(), ..Follow::default() };
    let follows = (0..KINDS.len()).map(|at| tap.follow(follow(at), None)).collect();
    (Serving(ContextOwner::new(owner, None, &[])), (link, tap, follows))
}

fn conditions(random: &mut Random) -> Conditions {
    let mut often = |most: u64| PerMille(random.below(most + 1) as u16);
    let (loss, duplicate, reorder, corrupt, truncate) = (often(150), often(100), often(100), often(30), often(30));
    let bursts = Bursts { begin: often(20), end: PerMille(200), loss: PerMille(800) };
    Conditions {
        delay: Duration::from_micros(20 + random.of_any_size(15)),
        jitter: Duration::from_micros(random.of_any_size(12)),
        loss,
        bursts: (random.below(3) == 0).then_some(bursts),
        duplicate,
        reorder,
        behind: Duration::from_micros(1 + random.of_any_size(14)),
        corrupt,
        truncate,
        ..Conditions::GOOD
    }
}
