//! Shared contexts over two engines and a network in memory: the service and the client as nodes run them, through the
//! worker's own loop. How many bytes a change is on the wire, documents beyond a message, and connections that end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a failure here is a failed test")]

use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{Code, Config, Endpoint, Event, Instant, PeerConfig, PeerId};
use pilot_tests::contexts::Serving;
use pilot_tests::link::{Attachment as _, Packet, Place, SimLink};
use pilot_user::context::{
    Change, Document, Follow, FollowId, Held, Kind, Notice, Owner, RefusalCode, Rights, Stamp, Written,
};
use pilot_user::service::contexts::{ContextClient, ContextOwner};
use pilot_user::worker::handoff::Handoff;
use pilot_user::worker::{Application, Opened, turn};

const DELAY: Duration = Duration::from_micros(50);

struct Using {
    contexts: ContextClient,
    notices: Vec<Notice>,
}

impl Application for Using {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        self.contexts.on_event(endpoint, now, &event);
        self.notices.extend(std::iter::from_fn(|| self.contexts.client.poll_notice()));
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.contexts.poll(endpoint, now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.contexts.deadline()
    }
}

struct Host<A> {
    endpoint: Endpoint,
    peer: PeerId,
    link: SimLink,
    application: A,
    deadline: Option<Instant>,
}

/// The owner's node, and a client's.
struct Pair {
    now: Instant,
    owner: Host<Serving>,
    client: Host<Using>,
    in_flight: Vec<(Instant, usize, Packet)>,
    /// Lengths of the owner's datagrams.
    sent: Vec<usize>,
}

fn identity(n: u8) -> Identity {
    Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
}

fn host<A>(n: u8, other: u8, application: impl FnOnce(PeerId) -> A) -> Host<A> {
    let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 4242));
    let overlay = |n: u8| OverlayAddress { network: 0, node: n.into() };
    let mut config = Config::new(identity(n), overlay(n), [n; 16], Duration::from_secs(1_800_000_000));
    config.max_datagram = 1472;
    let mut endpoint = Endpoint::new(config, [n; 32]);
    let known =
        PeerConfig { key: identity(other).public_key(), address: overlay(other), endpoint: Some(address(other)) };
    let peer = endpoint.add_peer(known);
    let place = Place { address: address(n), mac: [2, 0, 0, 0, 0, n], index: n.into() };
    Host { endpoint, peer, link: SimLink::open(&place, &[]).unwrap(), application: application(peer), deadline: None }
}

impl<A: Application> Host<A> {
    fn run(&mut self, now: Instant) -> Vec<Packet> {
        loop {
            let mut opened = Opened::default();
            let mut handoff = Handoff::alone();
            let turn = turn(&mut self.endpoint, &mut self.link, &mut self.application, &mut handoff, now, &mut opened)
                .unwrap();
            self.deadline = turn.deadline;
            if !turn.progress {
                return self.link.take_sent();
            }
        }
    }
}

impl Pair {
    fn new(owner: Owner) -> Self {
        Self {
            now: Instant::from_nanos(1),
            owner: host(1, 2, |peer| Serving(ContextOwner::new(owner, None, &[("c".into(), peer)]))),
            client: host(2, 1, |peer| Using { contexts: ContextClient::new(peer), notices: Vec::new() }),
            in_flight: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Runs until `done`.
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..200_000 {
            let [from_owner, from_client] = [self.owner.run(self.now), self.client.run(self.now)];
            self.sent.extend(from_owner.iter().map(|packet| packet.bytes.len()));
            let at = self.now + DELAY;
            self.in_flight.extend(from_owner.into_iter().map(|packet| (at, 1, packet)));
            self.in_flight.extend(from_client.into_iter().map(|packet| (at, 0, packet)));
            if done(self) {
                return;
            }
            let next = self.in_flight.iter().map(|(at, ..)| *at).chain(self.owner.deadline).chain(self.client.deadline);
            self.now = next.min().expect("something is to happen").max(self.now);
            let now = self.now;
            for (_, to, packet) in self.in_flight.extract_if(.., |(at, ..)| *at <= now) {
                assert!(if to == 0 { self.owner.link.deliver(packet) } else { self.client.link.deliver(packet) });
            }
        }
        panic!("it goes on and on; told: {:?}", self.client.application.notices);
    }

    /// Runs until such a notice came, and takes it.
    fn notice(&mut self, is: impl Fn(&Notice) -> bool) -> Notice {
        let mut found = None;
        self.until(|pair| {
            let notices = &mut pair.client.application.notices;
            found = notices.iter().position(&is).map(|at| notices.remove(at));
            found.is_some()
        });
        found.unwrap()
    }

    fn follow(&mut self, name: &str) -> FollowId {
        let follow = Follow { name: name.into(), ..Follow::default() };
        self.with_client(|client| client.client.follow(follow, None))
    }

    fn change(&mut self, name: &str, base: Option<Stamp>, change: &Change) {
        self.with_client(|client| client.client.change(name, base, change).unwrap());
    }

    /// Uses the client, which must be connected.
    fn with_client<R>(&mut self, with: impl FnOnce(&mut ContextClient) -> R) -> R {
        self.until(|pair| pair.client.endpoint.is_up(pair.client.peer));
        for _ in 0..4 {
            let at = self.now + DELAY;
            self.until(|pair| pair.now >= at || pair.in_flight.is_empty());
        }
        let Host { endpoint, application, .. } = &mut self.client;
        let result = with(&mut application.contexts);
        application.contexts.flush(endpoint, self.now);
        result
    }

    fn text(&self, follow: FollowId) -> String {
        let mut out = vec![];
        self.client.application.contexts.client.replica(follow).unwrap().document.encode(&mut out);
        String::from_utf8(out).unwrap()
    }
}

fn owner(contexts: &[(&str, Kind, &[u8], Rights)]) -> Owner {
    let mut owner = Owner::default();
    for (name, kind, document, rights) in contexts {
        let document = Document::decode(*kind, document).unwrap();
        owner.hold(name, Held::new(document, 7, rights.clone())).unwrap();
    }
    owner
}

fn all() -> Rights {
    Rights { read: vec!["*".into()], write: vec!["c".into()] }
}

/// C2.3: the change that agents tell each other, "anomaly count updated to 48", on the wire: also after so many versions
/// and contexts that numbers take more than a byte.
#[test]
fn a_change_of_27_bytes_is_one_datagram_of_at_most_75() {
    let mut pair = Pair::new(owner(&[("report", Kind::Log, b"", all())]));
    // Numbers of a session that has been going on for a while.
    for _ in 0..100 {
        let follow = pair.follow("report");
        pair.notice(|notice| matches!(notice, Notice::Whole { .. }));
        pair.with_client(|client| client.client.unfollow(follow));
    }
    let follow = pair.follow("report");
    pair.notice(|notice| matches!(notice, Notice::Whole { .. }));
    let words = "anomaly count updated to 48";
    assert_eq!(words.len(), 27);
    // Path MTU probes are over.
    let settled = pair.now + Duration::from_secs(5);
    pair.until(|pair| pair.now >= settled);
    let mut lengths = Vec::<usize>::new();
    for version in 1..=400 {
        pair.sent.clear();
        let Host { endpoint, application: Serving(service), .. } = &mut pair.owner;
        let append = Change::Append(words.into());
        let written = service.with_owner(endpoint, pair.now, |owner| owner.change("report", None, append));
        assert_eq!(written, Ok(Written::Made(Stamp { incarnation: 7, version })));
        pair.until(|pair| pair.client.application.contexts.client.replica(follow).unwrap().stamp.version == version);
        // Beside it, there may be an ack of what the follower says; and with it, now and then, a hash (C3.8).
        let with_change = pair.sent.iter().filter(|length| **length >= 25 + words.len() + 4);
        if version % 64 != 0 {
            assert_eq!(with_change.clone().count(), 1, "version {version}: {:?}", pair.sent);
            lengths.extend(with_change);
        }
    }
    println!("datagrams of {:?} to {:?} bytes", lengths.iter().min(), lengths.iter().max());
    assert!(lengths.iter().all(|length| *length <= 75), "{lengths:?}");
    assert_eq!(pair.text(follow), words.repeat(400));
}

/// C2.7: documents and changes beyond a message go over streams, in between changes that do not.
#[test]
fn long_documents_and_changes_arrive_in_order() {
    let long = "x".repeat(3 << 20);
    let mut pair = Pair::new(owner(&[("book", Kind::Text, long.as_bytes(), all())]));
    let follow = pair.follow("book");
    pair.notice(|notice| matches!(notice, Notice::Whole { .. }));
    assert!(pair.text(follow) == long);
    let mut wanted = long;
    for n in 0..20 {
        let more = if n % 3 == 0 { "y".repeat(70_000 + n) } else { format!("z{n}") };
        pair.change("book", None, &Change::Append(more.clone().into()));
        pair.notice(|notice| matches!(notice, Notice::Done { .. }));
        wanted += &more;
    }
    pair.until(|pair| pair.client.application.contexts.client.replica(follow).unwrap().stamp.version == 20);
    assert!(pair.text(follow) == wanted);
}

/// C2.4, C2.5, C4.3: errors in words, and the document as it was.
#[test]
fn what_is_not_allowed_is_refused_and_changes_nothing() {
    let read_only = Rights { read: vec!["c".into()], write: vec![] };
    let secret = Rights { read: vec!["d".into()], write: vec![] };
    let json = br#"{"anomalies":47}"#;
    let contexts = [("plan", Kind::Json, &json[..], all()), ("fixed", Kind::Json, json, read_only)];
    let contexts = [&contexts[..], &[("secret", Kind::Json, json, secret)]].concat();
    let mut pair = Pair::new(owner(&contexts));
    let merge = Change::merge(br#"{"anomalies":48}"#).unwrap();
    let now = Stamp { incarnation: 7, version: 0 };
    for (name, base, change, code, words) in [
        ("fixed", None, merge.clone(), RefusalCode::NotAllowed, "may read `fixed` and not change it"),
        ("secret", None, merge.clone(), RefusalCode::Unknown, "no context `secret`"),
        ("none", None, merge.clone(), RefusalCode::Unknown, "no context `none`"),
        (
            "plan",
            Some(Stamp { version: 3, ..now }),
            merge.clone(),
            RefusalCode::Conflict,
            "on version 3, and `plan` is at version 0",
        ),
        ("plan", Some(Stamp { incarnation: 8, ..now }), merge.clone(), RefusalCode::Conflict, "earlier life of `plan`"),
        ("plan", None, Change::Append(b"x".to_vec()), RefusalCode::Malformed, "append is not for a JSON document"),
        ("plan", None, Change::Values(vec![]), RefusalCode::Malformed, "made by owners alone"),
        ("plan", None, Change::Replace(b"{".to_vec()), RefusalCode::Malformed, "malformed"),
        ("plan", None, Change::patch(br#"[{"op":"remove","path":"/x"}]"#).unwrap(), RefusalCode::DoesNotApply, "'/x'"),
        ("plan", None, Change::Replace([&[b'['; 70][..], &[b']'; 70]].concat()), RefusalCode::TooLarge, "64 deep"),
    ] {
        pair.change(name, base, &change);
        let Notice::Refused { refusal, .. } = pair.notice(|notice| matches!(notice, Notice::Refused { .. })) else {
            unreachable!("asked for a refusal")
        };
        assert_eq!(refusal.code, code, "{name} {change:?}: {refusal}");
        assert!(refusal.words.contains(words), "{name} {change:?}: {refusal}");
    }
    for (name, filter, words) in [("secret", None, "no context `secret`"), ("none", None, "no context `none`")] {
        let follow = Follow { name: name.into(), filter, latest: false };
        pair.with_client(|client| client.client.follow(follow, None));
        let Notice::Ended { refusal, .. } = pair.notice(|notice| matches!(notice, Notice::Ended { .. })) else {
            unreachable!("asked for an end")
        };
        assert!(refusal.words.contains(words), "{refusal}");
    }
    let follow = pair.follow("plan");
    pair.notice(|notice| matches!(notice, Notice::Whole { .. }));
    assert_eq!(pair.text(follow), r#"{"anomalies":47}"#, "as it was");
    pair.change("plan", Some(now), &merge);
    pair.notice(|notice| matches!(notice, Notice::Changed { .. }));
    assert_eq!(pair.text(follow), r#"{"anomalies":48}"#);
}

/// C3.2: a tunnel that ends, and comes back: only what was missed is sent.
#[test]
fn a_follower_goes_on_where_it_was() {
    let long = "x".repeat(200_000);
    let mut pair = Pair::new(owner(&[("book", Kind::Text, long.as_bytes(), all())]));
    let follow = pair.follow("book");
    pair.notice(|notice| matches!(notice, Notice::Whole { .. }));
    for n in 1..=3 {
        pair.change("book", None, &Change::Append("z".into()));
        pair.until(|pair| pair.client.application.contexts.client.replica(follow).unwrap().stamp.version == n);
        pair.client.endpoint.close_tunnel(pair.now, pair.client.peer, Code::NoError);
        pair.sent.clear();
        pair.notice(|notice| matches!(notice, Notice::Checked { .. }));
        let sent: usize = pair.sent.iter().sum();
        assert!(sent < 10_000, "{sent} bytes to come back");
    }
    assert!(pair.text(follow) == long + "zzz");
    let again = pair.client.application.notices.iter().any(|notice| matches!(notice, Notice::Whole { .. }));
    assert!(!again, "the document came twice");
    assert_eq!(pair.owner.endpoint.is_up(pair.owner.peer), pair.client.endpoint.is_up(pair.client.peer));
}
