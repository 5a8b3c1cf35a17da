//! One context at its owner: the document, its versions, and what is made of them once for all followers.

use std::collections::VecDeque;
use std::sync::Arc;

use super::write::{Commit, Write, Writer};
use super::{Held, Rights};
use crate::context::change::Change;
use crate::context::document::{Document, Kind};
use crate::context::history::{Entry, History};
use crate::context::limits::{CHECK_BYTES_A_VERSION, CHECK_EVERY_VERSIONS, MAX_WAITING_WRITES};
use crate::context::message::{Refusal, RefusalCode, Stamp, Wanted};
use crate::context::pointer;

/// What is made of one version and kept for the next follower that needs the same. Lower: followers that come together, of
/// several parts of a document, have it encoded for each. Higher: holds as many copies of the document.
const MADE_KEPT: usize = 8;

#[derive(Debug)]
pub(super) struct Context {
    name: String,
    pub(super) document: Document,
    /// Of the document.
    pub(super) stamp: Stamp,
    announced: u64,
    pub(super) history: History,
    pub(super) rights: Rights,
    /// Places among the owner's followings.
    pub(super) followers: Vec<usize>,
    pub(super) durable: bool,
    /// Why it cannot be had any more.
    failed: Option<Refusal>,
    /// Durable: what comes while the disk works.
    pub(super) waiting: VecDeque<Write>,
    /// Who is answered when the disk has it, and with which version. `None`: no commit is under way.
    committing: Option<Vec<(Writer, u64)>>,
    /// The disk has the whole document of this version, or of a later one and the changes in between.
    kept_whole: u64,
    /// Of the document as it is.
    made: Vec<Made>,
}

/// Who uses a context.
pub(super) struct Users {
    /// Places among the owner's followings.
    pub(super) followers: Vec<usize>,
    /// Who waits for an answer.
    pub(super) writers: Vec<Writer>,
}

/// What was made of the part at `filter`.
#[derive(Debug)]
struct Made {
    what: What,
    filter: Box<str>,
    bytes: Option<Arc<[u8]>>,
}

/// What is asked for of the document as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Whole,
    Hash,
    Values { since: u64 },
}

impl Context {
    pub(super) fn new(name: &str, held: Held) -> Self {
        let Held { document, stamp, rights, history, past, durable } = held;
        // The disk has the whole document of this version or a later one.
        let kept_whole = stamp.version.saturating_sub(past.len() as u64);
        let mut kept = History::new(history, kept_whole);
        // What they touched depends on documents that are no more.
        past.into_iter().for_each(|encoded| kept.push(Entry { encoded, touched: vec![String::new()] }));
        Self {
            name: name.to_owned(),
            document,
            stamp,
            announced: stamp.version,
            history: kept,
            rights,
            followers: Vec::new(),
            durable,
            failed: None,
            waiting: VecDeque::new(),
            committing: None,
            kept_whole,
            made: Vec::new(),
        }
    }

    /// The last version that anybody may know of.
    pub(super) fn announced(&self) -> Stamp {
        Stamp { version: self.announced, ..self.stamp }
    }

    /// Whether the document is what was announced.
    pub(super) fn is_quiet(&self) -> bool {
        self.announced == self.stamp.version
    }

    pub(super) fn can_follow(&self, wanted: &Wanted<'_>) -> Result<(), Refusal> {
        if let Some(refusal) = &self.failed {
            return Err(refusal.clone());
        }
        if wanted.filter.is_some() && self.document.kind() != Kind::Json {
            let words =
                format!("a part of `{}` cannot be followed: it is a {} document", self.name, self.document.kind());
            return Err(Refusal::new(RefusalCode::Unsupported, self.announced, words));
        }
        Ok(())
    }

    /// Applies a change, which of a volatile context is announced at once. C4.3: on the version that it was made on, or on
    /// any if it names none.
    pub(super) fn apply(&mut self, write: &Write) -> Result<Stamp, Refusal> {
        let version = self.stamp.version;
        if let Some(base) = write.base.filter(|base| *base != self.stamp) {
            let words = if base.incarnation == self.stamp.incarnation {
                format!("made on version {}, and `{}` is at version {version}", base.version, self.name)
            } else {
                format!("made on an earlier life of `{}`, which has begun anew since", self.name)
            };
            return Err(Refusal::new(RefusalCode::Conflict, version, words));
        }
        if let Change::Values(_) = write.change {
            let words = "values are made by owners alone; allowed: replace, merge patch, JSON patch";
            return Err(Refusal::new(RefusalCode::Malformed, version, words));
        }
        let merged = match (&write.change, self.document.as_json()) {
            (Change::Merge(patch), Some(before)) => Some(pointer::touched_by_merge(patch, before)),
            _ => None,
        };
        let applied = self.document.apply(&write.change, write.encoded.len());
        applied.map_err(|error| Refusal::of_change(&error, version))?;
        let otherwise = || self.document.as_json().map(|after| pointer::touched(&write.change, after));
        let touched = merged.or_else(otherwise).unwrap_or_default();
        self.history.push(Entry { encoded: Arc::clone(&write.encoded), touched });
        self.stamp.version += 1;
        if !self.durable {
            self.announced = self.stamp.version;
        }
        self.made.clear();
        Ok(self.stamp)
    }

    /// Lets a change wait for the disk. Whether that is idle, and nothing waited before.
    pub(super) fn wait(&mut self, write: Write) -> Result<bool, Refusal> {
        if let Some(refusal) = &self.failed {
            return Err(refusal.clone());
        }
        if self.waiting.len() >= MAX_WAITING_WRITES {
            let words = format!("{MAX_WAITING_WRITES} changes of `{}` wait for the disk already", self.name);
            return Err(Refusal::new(RefusalCode::Busy, self.announced, words));
        }
        self.waiting.push_back(write);
        Ok(self.waiting.len() == 1 && self.committing.is_none())
    }

    /// Applies what waited, while no commit is under way; what the disk is to keep of it, and who is refused.
    pub(super) fn begin_commit(&mut self) -> (Option<Commit>, Vec<(Writer, Refusal)>) {
        let mut refused = Vec::new();
        let before = self.stamp;
        let (mut changes, mut writers) = (Vec::new(), Vec::new());
        for write in std::mem::take(&mut self.waiting) {
            match self.apply(&write) {
                Ok(stamp) => {
                    writers.push((write.writer, stamp.version));
                    changes.push(write.encoded);
                }
                Err(refusal) => refused.push((write.writer, refusal)),
            }
        }
        if changes.is_empty() {
            return (None, refused);
        }
        self.committing = Some(writers);
        // The changes that are kept must lead from the document that is kept to the last version.
        let document = (!self.history.reaches(self.kept_whole)).then(|| {
            self.kept_whole = self.stamp.version;
            let mut whole = Vec::with_capacity(self.document.bound());
            self.document.encode(&mut whole);
            whole
        });
        let keep_from = self.history.first();
        (Some(Commit { name: self.name.clone(), before, changes, document, keep_from }), refused)
    }

    /// The commit is over, well or not; who wrote what it has.
    pub(super) fn end_commit(&mut self, is_kept: bool) -> Vec<(Writer, u64)> {
        let writers = self.committing.take().unwrap_or_default();
        if is_kept && !writers.is_empty() {
            self.announced = self.stamp.version;
        }
        writers
    }

    pub(super) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Takes all who use it: who follows, and who waits for an answer, beside these writers of the commit that is over.
    pub(super) fn take_users(&mut self, committed: Vec<(Writer, u64)>) -> Users {
        let committed = committed.into_iter().map(|(writer, _)| writer);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|write| write.writer);
        Users { followers: std::mem::take(&mut self.followers), writers: committed.chain(waiting).collect() }
    }

    pub(super) fn fail(&mut self, why: &str) -> Refusal {
        let words = format!("`{}` cannot be kept: {why}", self.name);
        let refusal = Refusal::new(RefusalCode::Storage, 0, words);
        self.failed = Some(refusal.clone());
        refusal
    }

    /// The part at `filter` as it is sent whole.
    pub(super) fn whole(&mut self, filter: &str) -> Arc<[u8]> {
        let made = self.make(What::Whole, filter, |it| {
            let mut whole = Vec::with_capacity(it.document.bound());
            if filter.is_empty() {
                it.document.encode(&mut whole)
            } else {
                it.document.part(filter).encode(&mut whole)
            }
            Some(whole.into())
        });
        made.unwrap_or_default()
    }

    /// The hash of the part at `filter`.
    pub(super) fn hash(&mut self, filter: &str) -> [u8; 8] {
        let made = self.make(What::Hash, filter, |it| {
            let hash = if filter.is_empty() { it.document.hash() } else { it.document.part(filter).hash() };
            Some(Arc::from(hash))
        });
        made.and_then(|hash| hash.first_chunk().copied()).unwrap_or_default()
    }

    /// C3.8: versions from one hash to the next.
    pub(super) fn check_every(&self) -> u64 {
        CHECK_EVERY_VERSIONS.max((self.document.bound() / CHECK_BYTES_A_VERSION) as u64)
    }

    /// The change that brings the part at `filter` from a version in the history to what it is (C3.6); `None`: nothing in
    /// the part was touched.
    pub(super) fn values(&mut self, filter: &str, since: u64) -> Option<Arc<[u8]>> {
        self.make(What::Values { since }, filter, |it| {
            let touched = it.history.after(since).flat_map(|entry| &entry.touched).map(String::as_str);
            let values = pointer::values(it.document.as_json()?, filter, touched)?;
            Some(Change::Values(values).encode().into())
        })
    }

    fn make(
        &mut self,
        what: What,
        filter: &str,
        make: impl FnOnce(&mut Self) -> Option<Arc<[u8]>>,
    ) -> Option<Arc<[u8]>> {
        if let Some(made) = self.made.iter().find(|made| made.what == what && *made.filter == *filter) {
            return made.bytes.clone();
        }
        let bytes = make(self);
        if self.made.len() == MADE_KEPT {
            self.made.remove(0);
        }
        self.made.push(Made { what, filter: filter.into(), bytes: bytes.clone() });
        bytes
    }
}
