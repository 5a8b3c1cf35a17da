//! The owner and its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pilot_user::context::{Change, Commit, Document, Held, Owner, Rights, Stamp};

use crate::model::{Kept, Model, encoded};

/// C3.10: the first byte of what a follower gets for its own change.
const MADE: u8 = 0x27;

impl Model {
    pub(crate) fn start_owner(&mut self) {
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
    pub(crate) fn restart_owner(&mut self) {
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

    pub(crate) fn keep(&mut self, commit: &Commit) {
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

    pub(crate) fn owner_turn(&mut self) {
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

    pub(crate) fn owner_reads(&mut self, peer: usize) {
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

    pub(crate) fn stamp(&self, at: usize) -> Stamp {
        self.owner.document(&self.contexts[at].name).unwrap().1
    }

    pub(crate) fn owner_writes(&mut self) {
        let mut ready = BTreeSet::new();
        while let Some(link) = self.owner.poll_ready() {
            ready.insert(link);
        }
        for peer in &mut self.peers {
            let Some(link) = peer.link.filter(|link| peer.wire.held.is_some() || ready.contains(link)) else {
                continue;
            };
            let mut message = Vec::new();
            // Room may have come.
            while let Some(held) = peer
                .wire
                .held
                .take()
                .or_else(|| self.owner.poll_transmit(link, &mut message).then(|| std::mem::take(&mut message)))
            {
                if peer.wire.to_client.len() < peer.room {
                    if held.first() == Some(&MADE) {
                        self.counters.count("own change not sent back");
                    }
                    peer.wire.to_client.push_back(held);
                } else {
                    self.counters.count("no room");
                    peer.wire.held = Some(held);
                    break;
                }
            }
        }
    }
}
