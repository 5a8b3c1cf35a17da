//! Messages, changes and documents of shared contexts. An owner hears a peer that says anything; a client hears an owner that
//! does; and beside them, an honest writer and honest followers go on: a change is made whole or not at all, and every follower
//! ends at the owner's document, byte by byte.

use pilot_engine::codec::Reader;
use pilot_user::context::limits::MAX_DOCUMENT_BYTES;
use pilot_user::context::{
    Change, Client, Document, Follow, FollowId, Held, HistoryLimits, Kind, LinkId, Notice, Owner, Rights, Stamp,
};

use super::OPERATIONS_MAX;

const CONTEXTS: [(&str, Kind, &str); 4] = [
    ("json", Kind::Json, r#"{"a":{"b":[1,2]},"c":"d"}"#),
    ("text", Kind::Text, "eins é zwei"),
    ("log", Kind::Log, ""),
    ("bytes", Kind::Bytes, "0123456789"),
];
/// A part that is followed.
const FILTER: &str = "/a/b";

/// An input is operations, each a code, a length and so many bytes.
pub(super) fn run(input: &[u8]) {
    let mut scene = Scene::new();
    let mut reader = Reader::new(input);
    for _ in 0..OPERATIONS_MAX {
        let (Some(code), Some(bytes)) = (reader.u8(), reader.counted()) else { break };
        match (code % 6, bytes.split_first()) {
            (0, _) => scene.hostile(bytes),
            (1, _) => scene.victim(bytes),
            (2, Some((context, change))) => scene.write(usize::from(*context) % CONTEXTS.len(), change),
            (3, Some((kind, document))) => decode(CONTEXTS[usize::from(*kind) % CONTEXTS.len()].1, document),
            (4, _) => scene.reconnect(),
            (5, Some((context, _))) => scene.delete(usize::from(*context) % CONTEXTS.len()),
            _ => {}
        }
        scene.settle();
    }
    scene.check();
}

struct Scene {
    owner: Owner,
    honest: Peer,
    hostile: LinkId,
    follows: Vec<(usize, Option<&'static str>, FollowId)>,
    /// Follows what its owner is said to have.
    victim: Client,
}

struct Peer {
    link: LinkId,
    client: Client,
}

impl Scene {
    fn new() -> Self {
        let mut owner = Owner::default();
        for (at, (name, kind, text)) in CONTEXTS.into_iter().enumerate() {
            let write = vec!["honest".to_owned(), "hostile".to_owned()];
            let held = Held {
                document: Document::decode(kind, text.as_bytes()).expect("a constant"),
                stamp: Stamp { incarnation: at as u64, version: 0 },
                rights: Rights { read: vec!["*".to_owned()], write },
                // So that followers that were away are given documents too.
                history: HistoryLimits { entries: 4, bytes: 256 },
                past: Vec::new(),
                durable: false,
            };
            owner.hold(name, held).expect("names that differ");
        }
        let mut honest = Peer { link: owner.connect(Some("honest")), client: connected() };
        let mut follows = Vec::new();
        let mut follow = |at: usize, filter: Option<&'static str>, latest| {
            let follow = Follow { name: CONTEXTS[at].0.to_owned(), filter: filter.map(str::to_owned), latest };
            follows.push((at, filter, honest.client.follow(follow, None)));
        };
        (0..CONTEXTS.len()).for_each(|at| follow(at, None, at == 0));
        follow(0, Some(FILTER), false);
        let mut victim = connected();
        victim.follow(Follow { name: "json".to_owned(), ..Follow::default() }, None);
        let hostile = owner.connect(Some("hostile"));
        let mut scene = Self { owner, honest, hostile, follows, victim };
        scene.settle();
        scene
    }

    /// Somebody who may read and write says anything. context.md C2.2.
    fn hostile(&mut self, message: &[u8]) {
        let before = self.documents();
        if self.owner.handle(self.hostile, message).is_err() {
            assert!(self.documents() == before, "a violation changed a document");
            self.owner.disconnect(self.hostile);
            self.hostile = self.owner.connect(Some("hostile"));
        }
        let mut out = Vec::new();
        while self.owner.poll_transmit(self.hostile, &mut out) {}
    }

    /// An owner says anything to a client.
    fn victim(&mut self, message: &[u8]) {
        if self.victim.handle(message).is_err() {
            self.victim.disconnect();
            self.victim.connect();
        }
        let mut out = Vec::new();
        while self.victim.poll_transmit(&mut out) {}
        while self.victim.poll_notice().is_some() {}
    }

    /// context.md C4.1: a change is made whole or not at all, and is the same after it was sent.
    fn write(&mut self, at: usize, change: &[u8]) {
        let Ok(change) = Change::decode(change) else { return };
        let encoded = change.encode();
        assert_eq!(Change::decode(&encoded).as_ref(), Ok(&change), "sent and received");
        let name = CONTEXTS[at].0;
        let Some(before) = self.document(at) else { return };
        if self.honest.client.change(name, None, &change).is_err() {
            return;
        }
        self.settle_with(|notice| match notice {
            Notice::Done { .. } => Some(true),
            Notice::Refused { .. } => Some(false),
            _ => None,
        })
        .into_iter()
        .for_each(|done| {
            let now = self.document(at);
            assert!(done || now.as_ref() == Some(&before), "a refused change changed the document");
            assert!(now.is_none_or(|now| now.len() <= MAX_DOCUMENT_BYTES), "a document beyond its limit");
        });
    }

    fn reconnect(&mut self) {
        self.owner.disconnect(self.honest.link);
        self.honest.client.disconnect();
        self.honest.link = self.owner.connect(Some("honest"));
        self.honest.client.connect();
    }

    /// context.md C1.4.
    fn delete(&mut self, at: usize) {
        let was_there = self.document(at).is_some();
        assert_eq!(self.owner.remove(CONTEXTS[at].0).is_some(), was_there);
        assert!(self.document(at).is_none());
        self.follows.retain(|(context, ..)| *context != at);
        let ended = self.settle_with(|notice| matches!(notice, Notice::Ended { .. }).then_some(()));
        assert_eq!(ended.is_some(), was_there, "its followers are told");
    }

    fn settle(&mut self) {
        self.settle_with(|_| None::<()>);
    }

    /// Carries messages between the owner and the honest until there are none; the last notice that is looked for.
    fn settle_with<T>(&mut self, look: impl Fn(&Notice) -> Option<T>) -> Option<T> {
        let Self { owner, honest: Peer { link, client }, .. } = self;
        let (mut message, mut found) = (Vec::new(), None);
        loop {
            let mut any = false;
            while client.poll_transmit(&mut message) {
                any = true;
                assert_eq!(owner.handle(*link, &message), Ok(()), "an honest client");
            }
            while owner.poll_transmit(*link, &mut message) {
                any = true;
                assert_eq!(client.handle(&message), Ok(()), "an honest owner");
            }
            while let Some(notice) = client.poll_notice() {
                assert!(!matches!(notice, Notice::Diverged { .. }), "diverged by itself");
                found = look(&notice).or(found);
            }
            if !any {
                while owner.poll_ready().is_some() {}
                return found;
            }
        }
    }

    fn check(&self) {
        for (at, filter, follow) in &self.follows {
            let (document, _) = self.owner.document(CONTEXTS[*at].0).expect("those that were deleted are not followed");
            let part =
                |filter: &str| document.as_json().map(|it| it.pointer(filter).cloned().unwrap_or_default().to_string());
            let wanted = filter.map_or_else(|| Some(encoded(document)), |filter| part(filter).map(String::into_bytes));
            let replica = self.honest.client.replica(*follow).map(|replica| encoded(&replica.document));
            assert!(replica == wanted, "{} {filter:?}: {replica:?}, the owner has {wanted:?}", CONTEXTS[*at].0);
        }
    }

    fn document(&self, at: usize) -> Option<Vec<u8>> {
        self.owner.document(CONTEXTS[at].0).map(|(document, _)| encoded(document))
    }

    fn documents(&self) -> Vec<Option<Vec<u8>>> {
        (0..CONTEXTS.len()).map(|at| self.document(at)).collect()
    }
}

/// context.md C1.2: what can be read is written the same again.
fn decode(kind: Kind, bytes: &[u8]) {
    let Ok(document) = Document::decode(kind, bytes) else { return };
    let written = encoded(&document);
    assert!(written.len() <= document.bound() && written.len() <= MAX_DOCUMENT_BYTES, "longer than it is taken for");
    let again = Document::decode(kind, &written).map(|again| encoded(&again));
    assert_eq!(again, Ok(written));
}

fn connected() -> Client {
    let mut client = Client::default();
    client.connect();
    client
}

fn encoded(document: &Document) -> Vec<u8> {
    let mut out = Vec::new();
    document.encode(&mut out);
    out
}
