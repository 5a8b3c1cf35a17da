//! An owner and clients in memory, message by message: what a slow follower costs, and what is sent to whom.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use pilot_user::context::limits::{MAX_ANSWERS, WINDOW_MESSAGES};
use pilot_user::context::{
    Change, Client, Document, Follow, FollowId, Held, HistoryLimits, Kind, LinkId, Notice, Owner, RefusalCode, Rights,
    Stamp,
};

const DELTA: u8 = 0x21;
const DELTA_SPAN: u8 = 0x22;
const SNAPSHOT: u8 = 0x20;
const CHECK: u8 = 0x23;

struct Scene {
    owner: Owner,
    local: (LinkId, Client),
}

struct Follower {
    client: Client,
    link: LinkId,
    follow: FollowId,
}

impl Scene {
    fn new(kind: Kind, document: &str) -> Self {
        let mut owner = Owner::default();
        let held = Held {
            document: Document::decode(kind, document.as_bytes()).unwrap(),
            stamp: Stamp { incarnation: 1, version: 0 },
            rights: Rights { read: vec!["*".into()], write: vec![] },
            history: HistoryLimits::default(),
            past: Vec::new(),
            durable: false,
        };
        owner.hold("c", held).unwrap();
        let link = owner.connect(None);
        let mut client = Client::default();
        client.connect();
        Self { owner, local: (link, client) }
    }

    fn follower(&mut self, filter: Option<&str>, latest: bool) -> Follower {
        let mut client = Client::default();
        client.connect();
        let follow = Follow { name: "c".into(), filter: filter.map(str::to_owned), latest };
        let follow = client.follow(follow, None);
        Follower { client, link: self.owner.connect(Some("peer")), follow }
    }

    /// A change of the owner's own process.
    fn change(&mut self, change: &Change) {
        let (link, client) = &mut self.local;
        client.change("c", None, change).unwrap();
        let mut message = vec![];
        assert!(client.poll_transmit(&mut message));
        self.owner.handle(*link, &message).unwrap();
        assert!(self.owner.poll_transmit(*link, &mut message));
        client.handle(&message).unwrap();
        assert!(matches!(client.poll_notice(), Some(Notice::Done { .. })));
    }

    fn merge(&mut self, text: &str) {
        self.change(&Change::merge(text.as_bytes()).unwrap());
    }

    /// Takes what the owner has for a follower, and does not hand it over.
    fn messages(&mut self, follower: &Follower) -> Vec<Vec<u8>> {
        let mut message = vec![];
        std::iter::from_fn(|| self.owner.poll_transmit(follower.link, &mut message).then(|| message.clone())).collect()
    }

    fn say(&mut self, follower: &mut Follower) {
        let mut message = vec![];
        while follower.client.poll_transmit(&mut message) {
            self.owner.handle(follower.link, &message).unwrap();
        }
    }

    /// Carries messages both ways until there are none; the first byte of each of the owner's.
    fn settle(&mut self, follower: &mut Follower) -> Vec<u8> {
        let mut codes = vec![];
        loop {
            self.say(follower);
            let messages = self.messages(follower);
            if messages.is_empty() {
                return codes;
            }
            for message in messages {
                codes.push(message[0]);
                follower.client.handle(&message).unwrap();
            }
        }
    }
}

impl Follower {
    fn text(&self) -> String {
        let mut out = vec![];
        self.client.replica(self.follow).unwrap().document.encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn version(&self) -> u64 {
        self.client.replica(self.follow).unwrap().stamp.version
    }
}

/// C3.1, C3.4, C3.5: a slow follower is sent 64 changes and no more, the others get theirs; when it reads on it gets the rest,
/// each once.
#[test]
fn a_slow_follower_has_a_window_and_the_others_do_not_wait() {
    let mut scene = Scene::new(Kind::Log, "");
    let (mut slow, mut quick) = (scene.follower(None, false), scene.follower(None, false));
    assert_eq!(scene.settle(&mut quick), [SNAPSHOT]);
    // C3.4: nothing behind a document that it has not said to have applied.
    scene.say(&mut slow);
    let mut held = scene.messages(&slow);
    assert_eq!(held.iter().map(|message| message[0]).collect::<Vec<_>>(), [SNAPSHOT]);
    scene.change(&Change::Append("0".into()));
    assert!(scene.messages(&slow).is_empty());
    slow.client.handle(&held.remove(0)).unwrap();
    scene.say(&mut slow);

    for n in 1..200 {
        scene.change(&Change::Append(format!("{n}").into_bytes()));
        let codes = scene.settle(&mut quick);
        assert_eq!(codes.iter().filter(|code| **code == DELTA).count(), if n == 1 { 2 } else { 1 }, "{n}");
        held.extend(scene.messages(&slow));
    }
    let deltas = held.iter().filter(|message| message[0] == DELTA);
    assert_eq!(deltas.count() as u64, WINDOW_MESSAGES);
    for message in held {
        slow.client.handle(&message).unwrap();
    }
    let codes = scene.settle(&mut slow);
    assert_eq!(codes.iter().filter(|code| **code == DELTA).count() as u64, 200 - WINDOW_MESSAGES);
    assert_eq!(codes.iter().filter(|code| **code == CHECK).count(), 1, "C3.8: once it is up to date");
    assert_eq!((slow.text(), slow.version()), (quick.text(), 200));
}

/// C3.7, C4.4: one change for all that it has missed, with each value once.
#[test]
fn who_wants_the_latest_values_gets_each_once() {
    let mut scene = Scene::new(Kind::Json, r#"{"count":0,"gone":1,"name":"a long name that did not change at all"}"#);
    let mut follower = scene.follower(None, true);
    assert_eq!(scene.settle(&mut follower), [SNAPSHOT]);
    scene.merge(r#"{"count":1}"#);
    assert_eq!(scene.settle(&mut follower), [DELTA], "one behind: the change itself");
    for n in 2..100 {
        scene.merge(&format!(r#"{{"count":{n}}}"#));
    }
    scene.merge(r#"{"gone":null}"#);
    let messages = scene.messages(&follower);
    let [message, check] = &messages[..] else { unreachable!("{messages:?}") };
    assert_eq!((message[0], check[0]), (DELTA_SPAN, CHECK));
    assert!(message.ends_with(br#"[["/count",99],["/gone"]]"#), "{}", String::from_utf8_lossy(message));
    messages.iter().for_each(|message| follower.client.handle(message).unwrap());
    assert_eq!(follower.version(), 100);
    assert_eq!(follower.text(), r#"{"count":99,"name":"a long name that did not change at all"}"#);
}

/// C3.6: changes elsewhere are not sent; what is above the part is the part's too.
#[test]
fn who_follows_a_part_is_sent_that_part() {
    let mut scene = Scene::new(Kind::Json, r#"{"a":{"x":1},"b":[1,2]}"#);
    let (mut a, mut b) = (scene.follower(Some("/a/x"), false), scene.follower(Some("/b/1"), false));
    assert_eq!(scene.settle(&mut a), [SNAPSHOT]);
    assert_eq!(scene.settle(&mut b), [SNAPSHOT]);
    assert_eq!((a.text().as_str(), b.text().as_str()), ("1", "2"));
    scene.merge(r#"{"a":{"y":2}}"#);
    assert!(scene.settle(&mut a).is_empty() && scene.settle(&mut b).is_empty());
    scene.merge(r#"{"a":{"x":3}}"#);
    scene.change(&Change::patch(br#"[{"op":"add","path":"/b/0","value":0}]"#).unwrap());
    assert_eq!((scene.settle(&mut a), scene.settle(&mut b)), (vec![DELTA_SPAN], vec![DELTA_SPAN]));
    assert_eq!((a.text().as_str(), b.text().as_str()), ("3", "1"));
    scene.merge(r#"{"a":null,"b":{"no":"array"}}"#);
    scene.settle(&mut a);
    scene.settle(&mut b);
    assert_eq!((a.text().as_str(), b.text().as_str()), ("null", "null"));
}

/// C2.6: answers wait for room, and no more is taken until they leave.
#[test]
fn who_does_not_take_its_answers_is_not_heard() {
    let mut scene = Scene::new(Kind::Log, "");
    let mut follower = scene.follower(None, false);
    for n in 0..MAX_ANSWERS {
        assert!(scene.owner.accepts(follower.link), "{n}");
        follower.client.change("c", None, &Change::Append("x".into())).unwrap();
        scene.say(&mut follower);
    }
    assert!(!scene.owner.accepts(follower.link));
    scene.messages(&follower);
    assert!(scene.owner.accepts(follower.link));
}

/// C1.1: names; and a context that there is.
#[test]
fn a_name_is_checked_and_given_once() {
    let mut scene = Scene::new(Kind::Log, "");
    for (name, words) in [("", "1 to 128 bytes"), ("a\n", "1 to 128 bytes"), ("c", "a context `c` already")] {
        let held = Held {
            document: Document::empty(Kind::Log),
            stamp: Stamp { incarnation: 1, version: 0 },
            rights: Rights::default(),
            history: HistoryLimits::default(),
            past: Vec::new(),
            durable: false,
        };
        let error = scene.owner.hold(name, held).unwrap_err().to_string();
        assert!(error.contains(words), "{name:?}: {error}");
    }
}

/// What a change costs per follower, printed for 100 to 10,000 of them; that all get it is what is checked.
#[test]
fn a_change_reaches_every_follower() {
    for followers in [100, 1000, 10_000] {
        let mut scene = Scene::new(Kind::Json, "{}");
        let mut all: Vec<_> = (0..followers).map(|_| scene.follower(None, false)).collect();
        all.iter_mut().for_each(|follower| drop(scene.settle(follower)));
        while scene.owner.poll_ready().is_some() {}
        let (mut message, mut sent) = (vec![], 0);
        let began = std::time::Instant::now();
        for n in 0..20 {
            scene.merge(&format!(r#"{{"anomalies":{n}}}"#));
            while let Some(link) = scene.owner.poll_ready() {
                while scene.owner.poll_transmit(link, &mut message) {
                    sent += 1;
                }
            }
        }
        let each = began.elapsed() / sent;
        println!("{followers} followers: {each:?} for each change and follower");
        assert_eq!(sent, 20 * followers);
    }
}

/// C1.4: followers are told, and who waits for an answer; what the disk still says of it is of nothing, also when there is another
/// of the name by then.
#[test]
fn a_deleted_context_is_told_and_gone() {
    let mut scene = Scene::new(Kind::Log, "");
    let mut follower = scene.follower(None, false);
    scene.settle(&mut follower);
    assert!(scene.owner.remove("c") && !scene.owner.remove("c"));
    scene.settle(&mut follower);
    let ended = std::iter::from_fn(|| follower.client.poll_notice()).last();
    let Some(Notice::Ended { refusal, .. }) = ended else { unreachable!("{ended:?}") };
    assert_eq!((refusal.code, refusal.words.as_str()), (RefusalCode::Unknown, "`c` was deleted by its owner"));
    assert!(scene.owner.document("c").is_none());

    let held = |incarnation: u64| Held {
        document: Document::empty(Kind::Log),
        stamp: Stamp { incarnation, version: 0 },
        rights: Rights { read: vec!["*".into()], write: vec![] },
        history: HistoryLimits::default(),
        past: Vec::new(),
        durable: true,
    };
    scene.owner.hold("c", held(2)).unwrap();
    let (link, client) = &mut scene.local;
    let mut message = vec![];
    let ask = |owner: &mut Owner, client: &mut Client, message: &mut Vec<u8>| {
        client.change("c", None, &Change::Append("x".into())).unwrap();
        assert!(client.poll_transmit(message));
        owner.handle(*link, message).unwrap();
    };
    // One that the disk is keeping, and one that waits for it.
    ask(&mut scene.owner, client, &mut message);
    assert_eq!(scene.owner.poll_commit().unwrap().before.incarnation, 2);
    ask(&mut scene.owner, client, &mut message);
    assert!(scene.owner.remove("c"));
    for _ in 0..2 {
        assert!(scene.owner.poll_transmit(*link, &mut message));
        client.handle(&message).unwrap();
        let notice = client.poll_notice();
        assert!(
            matches!(&notice, Some(Notice::Refused { refusal, .. }) if refusal.words.contains("deleted")),
            "{notice:?}"
        );
    }
    scene.owner.hold("c", held(3)).unwrap();
    ask(&mut scene.owner, client, &mut message);
    // It is the one before that failed.
    scene.owner.handle_committed("c", Err("no space".into()));
    assert_eq!(scene.owner.poll_commit().unwrap().before.incarnation, 3);
    scene.owner.handle_committed("c", Ok(()));
    assert_eq!(scene.owner.document("c").unwrap().1, Stamp { incarnation: 3, version: 1 });
    assert!(scene.owner.poll_commit().is_none());
}

/// The places of connections and followings that are over are given to others, who hear nothing of what was for those before.
#[test]
fn who_comes_after_another_gets_its_own() {
    let mut scene = Scene::new(Kind::Log, "");
    let mut all: Vec<Follower> = (0..5).map(|_| scene.follower(None, false)).collect();
    all.iter_mut().for_each(|follower| _ = scene.settle(follower));
    for round in 0..20 {
        let gone = all.swap_remove(round * 7 % 5);
        scene.change(&Change::Append("x".into()));
        scene.owner.disconnect(gone.link);
        let mut new = scene.follower(None, false);
        assert_ne!(new.link, gone.link);
        assert_eq!(new.link.place(), gone.link.place());
        assert!(scene.messages(&gone).is_empty() && !scene.owner.accepts(gone.link));
        assert_eq!(scene.settle(&mut new), [SNAPSHOT], "round {round}");
        all.push(new);
        // One leaves by itself, and comes back.
        let follower = &mut all[round % 4];
        follower.client.unfollow(follower.follow);
        scene.settle(follower);
        follower.follow = follower.client.follow(Follow { name: "c".into(), ..Follow::default() }, None);
        for follower in &mut all {
            scene.settle(follower);
            assert_eq!((follower.version(), follower.text()), (round as u64 + 1, "x".repeat(round + 1)));
        }
    }
}
