//! What a change costs an owner, counted: it is encoded once, and a follower more is a message more and nothing else.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use allocation_counter::{AllocationInfo, measure};
use pilot_engine::codec::put_varint;
use pilot_user::context::limits::WINDOW_MESSAGES;
use pilot_user::context::{Change, Client, Document, Follow, Held, Kind, LinkId, Owner, Rights};

const WORDS: &str = "anomaly count updated to 48";

struct Scene {
    owner: Owner,
    followers: Vec<(LinkId, Client)>,
}

/// What left for one change.
#[derive(Default, Debug)]
struct Sent {
    messages: usize,
    bytes: usize,
    allocations: AllocationInfo,
}

impl Scene {
    fn new(followers: usize, kind: Kind, follow: &Follow) -> Self {
        let mut owner = Owner::default();
        let rights = Rights { read: vec!["*".into()], write: vec![] };
        owner.hold("c", Held::new(Document::empty(kind), 1, rights)).unwrap();
        let mut connect = || {
            let mut client = Client::default();
            client.connect();
            (owner.connect(Some("peer")), client)
        };
        let mut followers: Vec<_> = (0..followers).map(|_| connect()).collect();
        followers.iter_mut().for_each(|(_, client)| _ = client.follow(follow.clone(), None));
        let mut scene = Self { owner, followers };
        scene.settle();
        scene
    }

    /// Followers from `first` on say that they have applied so many messages.
    fn say_applied(&mut self, first: usize, messages: u64) {
        // HAVE, of what they follow under their second number: the first is what they call it themselves.
        let mut have = vec![0x03, 2];
        put_varint(&mut have, messages);
        for (link, _) in &self.followers[first..] {
            self.owner.handle(*link, &have).unwrap();
            assert!(!self.owner.poll_transmit(*link, &mut vec![]), "it has all there is");
        }
        while self.owner.poll_ready().is_some() {}
    }

    /// Followers read what they are sent and say so, until there is nothing more.
    fn settle(&mut self) {
        let mut message = vec![];
        for (link, client) in &mut self.followers {
            loop {
                while client.poll_transmit(&mut message) {
                    self.owner.handle(*link, &message).unwrap();
                }
                if !self.owner.poll_transmit(*link, &mut message) {
                    break;
                }
                client.handle(&message).unwrap();
                client.poll_notice().unwrap();
            }
        }
        while self.owner.poll_ready().is_some() {}
    }

    /// A change, until all that leaves for it has left, which nobody reads.
    fn change(&mut self, change: &Change) -> Sent {
        let (change, mut message) = (change.clone(), Vec::with_capacity(4096));
        let mut sent = Sent::default();
        let owner = &mut self.owner;
        sent.allocations = measure(|| {
            owner.change("c", None, change).unwrap();
            while let Some(link) = owner.poll_ready() {
                while owner.poll_transmit(link, &mut message) {
                    sent.messages += 1;
                    sent.bytes += message.len();
                }
            }
        });
        sent
    }
}

fn allocations(sent: &Sent) -> (u64, u64) {
    (sent.allocations.count_total, sent.allocations.bytes_total)
}

/// C3.2: for ten thousand followers, there is not one allocation more than for one: the change is encoded once, and what is kept
/// of a follower has its place already.
#[test]
fn a_follower_more_is_a_message_more_and_nothing_else() {
    let append = Change::Append(WORDS.into());
    let cost = |followers: usize| {
        let mut scene = Scene::new(followers, Kind::Log, &Follow { name: "c".into(), ..Follow::default() });
        // The first ones grow queues.
        for _ in 0..2 {
            scene.change(&append);
        }
        let sent = scene.change(&append);
        assert_eq!(sent.messages, followers);
        // C2.3: type, number, version, operation.
        assert_eq!(sent.bytes, followers * (4 + 1 + WORDS.len()));
        sent
    };
    let one = cost(1);
    assert!(one.allocations.count_total > 0, "it is encoded, and kept");
    for followers in [10, 10_000] {
        assert_eq!(allocations(&cost(followers)), allocations(&one), "{followers} followers");
    }
}

/// C3.6, C3.7: values are made once for all that want the same.
#[test]
fn values_are_made_once_for_all_that_want_the_same() {
    let merge = |n: u64| Change::merge(format!(r#"{{"a":{n},"b":{n}}}"#).as_bytes()).unwrap();
    let follow = Follow { name: "c".into(), filter: Some("/a".into()), latest: true };
    let cost = |followers: usize| {
        let mut scene = Scene::new(followers, Kind::Json, &follow);
        for n in 10..12 {
            scene.change(&merge(n));
            scene.say_applied(0, n - 8);
        }
        let sent = scene.change(&merge(12));
        assert_eq!(sent.messages, followers);
        sent
    };
    let one = cost(1);
    for followers in [10, 1_000] {
        assert_eq!(allocations(&cost(followers)), allocations(&one), "{followers} followers");
    }
}

/// C3.5: of a thousand that do not read, nothing is kept but where they are; and what the others cost is what it was without them.
#[test]
fn slow_followers_cost_the_others_nothing() {
    const QUICK: usize = 10;
    let append = Change::Append(WORDS.into());
    let cost = |slow: usize| {
        let mut scene = Scene::new(slow + QUICK, Kind::Log, &Follow { name: "c".into(), ..Follow::default() });
        for n in 1..=WINDOW_MESSAGES {
            // C3.8: with the last of them goes the hash.
            let each = if n == WINDOW_MESSAGES { 2 } else { 1 };
            assert_eq!(scene.change(&append).messages, each * (slow + QUICK), "{n}: within the window");
            scene.say_applied(slow, 1 + n);
        }
        let sent = scene.change(&append);
        assert_eq!(sent.messages, QUICK, "{slow} slow ones: those that read, and no others");
        assert_eq!(sent.bytes, QUICK * (4 + 1 + WORDS.len()));
        // Not with the number of the slow ones: the change in the history.
        assert!(sent.allocations.count_current <= 3, "{sent:?}");
        sent
    };
    let none = cost(0);
    for slow in [1, 1_000] {
        assert_eq!(allocations(&cost(slow)), allocations(&none), "{slow} slow ones");
    }
}
