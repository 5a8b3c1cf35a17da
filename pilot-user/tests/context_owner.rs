//! An owner and clients in memory, message by message: what a slow follower costs, and what is sent to whom.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use pilot_user::context::limits::{MAX_ANSWERS, WINDOW_MESSAGES};
use pilot_user::context::{
    Change, Client, Document, Follow, FollowId, Held, Kind, LinkId, Notice, Owner, RefusalCode, Replica, Rights, Stamp,
    Written,
};

const DELTA: u8 = 0x21;
const DELTA_SPAN: u8 = 0x22;
const SNAPSHOT: u8 = 0x20;
const CHECK: u8 = 0x23;
const DONE: u8 = 0x25;
const MADE: u8 = 0x27;

struct Scene {
    owner: Owner,
}

fn everyone() -> Rights {
    Rights { read: vec!["*".into()], write: vec!["*".into()] }
}

struct Follower {
    client: Client,
    link: LinkId,
    follow: FollowId,
}

impl Scene {
    fn new(kind: Kind, document: &str) -> Self {
        let mut owner = Owner::default();
        let document = Document::decode(kind, document.as_bytes()).unwrap();
        owner.hold("c", Held::new(document, 1, everyone())).unwrap();
        Self { owner }
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
        assert!(matches!(self.owner.change("c", None, change.clone()), Ok(Written::Made(_))));
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
        let held = Held::new(Document::empty(Kind::Log), 1, Rights::default());
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
    assert_eq!((scene.owner.remove("c"), scene.owner.remove("c")), (Some(false), None));
    scene.settle(&mut follower);
    let ended = std::iter::from_fn(|| follower.client.poll_notice()).last();
    let Some(Notice::Ended { refusal, .. }) = ended else { unreachable!("{ended:?}") };
    assert_eq!((refusal.code, refusal.words.as_str()), (RefusalCode::Unknown, "`c` was deleted by its owner"));
    assert!(scene.owner.document("c").is_none());

    let held = |incarnation| Held { durable: true, ..Held::new(Document::empty(Kind::Log), incarnation, everyone()) };
    scene.owner.hold("c", held(2)).unwrap();
    let (link, client) = (&scene.owner.connect(None), &mut Client::default());
    client.connect();
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
    assert_eq!(scene.owner.remove("c"), Some(true));
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

/// What a follower was told since it was asked last.
fn notices(follower: &mut Follower) -> Vec<Notice> {
    std::iter::from_fn(|| follower.client.poll_notice()).collect()
}

/// Each change is told with the version that it led to, also when the copy is ahead of what is told.
#[test]
fn a_change_is_told_with_its_own_version() {
    let mut scene = Scene::new(Kind::Json, "{}");
    let (mut each, mut latest) = (scene.follower(None, false), scene.follower(None, true));
    scene.settle(&mut each);
    scene.settle(&mut latest);
    for n in 1..=3 {
        scene.merge(&format!(r#"{{"n":{n}}}"#));
    }
    scene.settle(&mut each);
    scene.settle(&mut latest);
    assert_eq!((each.version(), latest.version()), (3, 3), "before anything is asked for");
    let versions = |follower: &mut Follower| {
        let changed = |notice: Notice| if let Notice::Changed { version, .. } = notice { Some(version) } else { None };
        notices(follower).into_iter().filter_map(changed).collect::<Vec<_>>()
    };
    assert_eq!((versions(&mut each), versions(&mut latest)), (vec![1, 2, 3], vec![3]));
}

/// C3.10: who writes is sent three bytes, and has the version at once.
#[test]
fn a_followers_own_change_is_not_sent_back() {
    let mut scene = Scene::new(Kind::Log, "");
    let (mut writer, mut other) = (scene.follower(None, false), scene.follower(None, true));
    scene.settle(&mut writer);
    scene.settle(&mut other);
    notices(&mut writer);
    let append = |text: &str| Change::Append(text.into());
    let request = writer.client.change("c", None, &append("long words, ")).unwrap();
    scene.say(&mut writer);
    let messages = scene.messages(&writer);
    assert_eq!(messages, [[MADE, 3, 1]]);
    writer.client.handle(&messages[0]).unwrap();
    let stamp = Stamp { incarnation: 1, version: 1 };
    let changed = Notice::Changed { follow: writer.follow, version: 1, change: append("long words, ") };
    assert_eq!(notices(&mut writer), [Notice::Done { request, stamp }, changed]);
    assert_eq!((writer.text().as_str(), writer.version()), ("long words, ", 1));
    assert_eq!(scene.settle(&mut other), [DELTA], "the others get it");

    // C3.5, C3.8: it counts as applied, and is checked, as the others'.
    for n in 2..=3 * WINDOW_MESSAGES {
        writer.client.change("c", None, &append("x")).unwrap();
        let codes = scene.settle(&mut writer);
        assert_eq!(codes, if n % 64 == 0 { vec![MADE, CHECK] } else { vec![MADE] }, "{n}");
        assert_eq!(scene.settle(&mut other).first(), Some(&DELTA));
    }
    let told = notices(&mut writer);
    assert!(!told.iter().any(|notice| matches!(notice, Notice::Diverged { .. })), "{told:?}");
    assert_eq!((writer.text(), writer.version()), (other.text(), other.version()));
}

/// C3.10: where its own copy does not take it, the change is sent back as any other.
#[test]
fn who_is_behind_or_follows_a_part_is_sent_its_own_change() {
    let mut scene = Scene::new(Kind::Json, r#"{"a":1}"#);
    let (mut whole, mut part) = (scene.follower(None, false), scene.follower(Some("/a"), false));
    scene.settle(&mut whole);
    scene.settle(&mut part);
    let merge = |n: u64| Change::merge(format!(r#"{{"a":{n}}}"#).as_bytes()).unwrap();
    part.client.change("c", None, &merge(2)).unwrap();
    assert_eq!(scene.settle(&mut part), [DONE, DELTA], "values");
    assert_eq!(part.text(), "2");
    // It was not sent that yet.
    whole.client.change("c", None, &merge(3)).unwrap();
    assert_eq!(scene.settle(&mut whole), [DONE, DELTA, DELTA]);
    assert_eq!((whole.text().as_str(), whole.version()), (r#"{"a":3}"#, 2));
    // C3.5: and nothing beyond the window.
    for n in 0..=WINDOW_MESSAGES {
        whole.client.change("c", None, &merge(n)).unwrap();
    }
    scene.say(&mut whole);
    let codes: Vec<u8> = scene.messages(&whole).iter().map(|message| message[0]).collect();
    // It said that it has applied none of the two before.
    let (window, beyond) = (WINDOW_MESSAGES as usize - 2, 3);
    assert_eq!(codes, [vec![MADE; window], vec![DONE; beyond]].concat());
}

/// C2.1, C3.9: of a copy that was left, or is being healed, the answer is an answer.
#[test]
fn an_own_change_is_answered_after_its_copy_has_gone() {
    for heals in [false, true] {
        let mut scene = Scene::new(Kind::Log, "");
        let mut writer = scene.follower(None, false);
        scene.settle(&mut writer);
        writer.client.change("c", None, &Change::Append("x".into())).unwrap();
        scene.say(&mut writer);
        if heals {
            // The change to version 9 does not fit.
            writer.client.handle(&[DELTA, 2, 0, 9, 4, b'y']).unwrap();
        } else {
            writer.client.unfollow(writer.follow);
        }
        notices(&mut writer);
        let messages = scene.messages(&writer);
        assert_eq!(messages, [[MADE, 3, 1]]);
        writer.client.handle(&messages[0]).unwrap();
        let told = notices(&mut writer);
        assert!(matches!(&told[..], [Notice::Done { stamp, .. }] if stamp.version == 1), "{told:?}");
        if heals {
            scene.settle(&mut writer);
            assert_eq!((writer.text().as_str(), writer.version()), ("x", 1));
        }
    }
    let mut client = Client::default();
    client.connect();
    client.change("c", None, &Change::Append("x".into())).unwrap();
    assert!(client.handle(&[MADE, 1, 1]).is_err(), "no copy here takes it");
}

/// C4.3, C5.1, C5.3: what the owner's own process writes is made at once, or told when the disk has said.
#[test]
fn the_owners_own_process_writes_without_a_connection() {
    let mut scene = Scene::new(Kind::Log, "");
    let append = || Change::Append("x".into());
    let stamp = |version| Stamp { incarnation: 1, version };
    let owner = &mut scene.owner;
    assert_eq!(owner.change("c", Some(stamp(0)), append()), Ok(Written::Made(stamp(1))));
    let refused = |result: Result<Written, _>| Result::<_, pilot_user::context::Refusal>::unwrap_err(result).code;
    assert_eq!(refused(owner.change("c", Some(stamp(0)), append())), RefusalCode::Conflict);
    assert_eq!(refused(owner.change("d", None, append())), RefusalCode::Unknown);
    assert_eq!(refused(owner.change("c", None, Change::Replace(vec![]))), RefusalCode::Malformed);
    assert_eq!(owner.document("c").unwrap().1, stamp(1));

    owner.hold("d", Held { durable: true, ..Held::new(Document::empty(Kind::Log), 1, Rights::default()) }).unwrap();
    let write = |owner: &mut Owner, base| match owner.change("d", base, append()) {
        Ok(Written::Waits(id)) => id,
        other => unreachable!("{other:?}"),
    };
    let (first, second) = (write(owner, None), write(owner, Some(stamp(7))));
    assert_eq!(owner.poll_written(), None);
    assert_eq!(owner.poll_commit().unwrap().changes.len(), 1);
    let Some((id, Err(refusal))) = owner.poll_written() else { unreachable!("a conflict") };
    assert_eq!((id, refusal.code), (second, RefusalCode::Conflict));
    assert_eq!(owner.poll_written(), None, "the disk has not said");
    owner.handle_committed("d", Ok(()));
    assert_eq!(owner.poll_written(), Some((first, Ok(stamp(1)))));
    let third = write(owner, None);
    assert!(owner.poll_commit().is_some());
    owner.handle_committed("d", Err("no space".into()));
    let Some((id, Err(refusal))) = owner.poll_written() else { unreachable!("a disk that failed") };
    assert_eq!((id, refusal.code), (third, RefusalCode::Storage));
}

/// C3.8, C3.9: a copy that was kept and is not what the owner had at its version is found by its hash, and replaced.
#[test]
fn a_copy_that_differs_is_found_by_its_hash() {
    let mut scene = Scene::new(Kind::Text, "as it is");
    scene.change(&Change::Append("!".into()));
    for (kept, differs) in [("as it is!", false), ("as it was", true)] {
        let mut follower = scene.follower(None, false);
        let document = Document::decode(Kind::Text, kept.as_bytes()).unwrap();
        let replica = Replica { stamp: Stamp { incarnation: 1, version: 1 }, document };
        follower.client.unfollow(follower.follow);
        follower.follow = follower.client.follow(Follow { name: "c".into(), ..Follow::default() }, Some(replica));
        let codes = scene.settle(&mut follower);
        let follow = follower.follow;
        let (wanted, told) = if differs {
            (vec![CHECK, SNAPSHOT], vec![Notice::Diverged { follow }, Notice::Whole { follow }])
        } else {
            (vec![CHECK], vec![Notice::Checked { follow }])
        };
        assert_eq!((codes, notices(&mut follower)), (wanted, told), "{kept}");
        assert_eq!((follower.text().as_str(), follower.version()), ("as it is!", 1));
    }
}

/// C3.8: a document of 16 KiB is hashed every 64 versions, one of four times that every 256.
#[test]
fn a_large_document_is_hashed_less_often() {
    for (bytes, hashes) in [(1_000, 8), (64 << 10, 2)] {
        let mut scene = Scene::new(Kind::Bytes, &"x".repeat(bytes));
        let mut follower = scene.follower(None, false);
        scene.settle(&mut follower);
        let mut checks = 0;
        for n in 0..512 {
            scene.change(&Change::Write { offset: n, bytes: vec![1] });
            checks += scene.settle(&mut follower).iter().filter(|code| **code == CHECK).count();
        }
        assert_eq!(checks, hashes, "{bytes}");
    }
}
