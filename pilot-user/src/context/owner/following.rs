//! One follower of one context: what it has, and what it is sent next.

use super::LinkId;
use super::context::Context;
use crate::context::document::Kind;
use crate::context::limits::WINDOW_MESSAGES;
use crate::context::message::{Reply, Stamp, Violation, Wanted};

/// One of many: an owner of ten thousand followers goes through theirs at each change, in the order of memory. It is one line of a
/// cache, and what only some need lies elsewhere.
#[derive(Debug)]
pub(super) struct Following {
    /// Whose it is, and how that names it.
    pub(super) link: LinkId,
    pub(super) number: u64,
    /// Its context's place among the owner's, and its own among the followers of that.
    pub(super) context: u32,
    pub(super) position: u32,
    /// The follower has, or will have when all that was sent arrived, this version; if it has the document.
    version: u64,
    /// SNAPSHOTs and DELTAs sent.
    sent: u64,
    /// The version from which on it is told the hash.
    check_at: u64,
    /// `None`: all of the document is wanted, and every change.
    wish: Option<Box<Wish>>,
    /// How many of `sent` it has not yet said to have applied: [`WINDOW_MESSAGES`], and a SNAPSHOT.
    unapplied: u8,
    /// It need not be given the document first.
    has_document: bool,
    /// C3.4: the document that was sent must be applied before anything else is.
    holds: bool,
    /// Whether it is in its link's queue.
    pub(super) is_queued: bool,
}

const _: () = assert!(size_of::<Following>() <= 64);
const _: () = assert!(WINDOW_MESSAGES < u8::MAX as u64);

/// What only some followers want.
#[derive(Debug)]
struct Wish {
    /// C3.6: the part of a JSON document; "": all.
    filter: Box<str>,
    /// Rather the latest values than every change (C3.7).
    latest: bool,
    /// What was changed up to here touched nothing of the part.
    seen: u64,
}

impl Following {
    pub(super) fn new((link, number): (LinkId, u64), context: usize, wanted: &Wanted<'_>, announced: Stamp) -> Self {
        // C3.2: what it has is of use if it is of this life of the context.
        let known = |have: &Stamp| have.incarnation == announced.incarnation && have.version <= announced.version;
        let version = wanted.have.filter(known).map(|have| have.version);
        let filter = wanted.filter.unwrap_or_default();
        let wish = || Wish { filter: filter.into(), latest: wanted.latest, seen: version.unwrap_or(0) };
        Self {
            link,
            number,
            context: context as u32,
            position: 0,
            version: version.unwrap_or(0),
            sent: 0,
            // C3.8: what it kept meanwhile is checked as soon as it is up to date.
            check_at: 0,
            wish: (wanted.latest || !filter.is_empty()).then(|| Box::new(wish())),
            unapplied: 0,
            has_document: version.is_some(),
            holds: false,
            is_queued: false,
        }
    }

    /// C3.5: the follower has applied so many messages in all.
    pub(super) fn on_have(&mut self, messages: u64) -> Result<(), Violation> {
        let unapplied = self.sent.checked_sub(messages).and_then(|unapplied| u8::try_from(unapplied).ok());
        let unapplied = unapplied.filter(|unapplied| *unapplied <= self.unapplied);
        self.unapplied = unapplied.ok_or(Violation("more messages applied than were sent, or fewer than before"))?;
        self.holds &= self.unapplied > 0;
        Ok(())
    }

    /// C3.10: whether the follower takes its own change to `version` itself: it was sent all before it, and could be sent
    /// this. If so, it is as if it had been.
    pub(super) fn takes_own(&mut self, version: u64) -> bool {
        let was_sent_all = self.has_document && !self.holds && self.version + 1 == version;
        let takes = was_sent_all && self.filter().is_empty() && u64::from(self.unapplied) < WINDOW_MESSAGES;
        if takes {
            self.on_sent(version);
        }
        takes
    }

    /// Puts the next message into `out`; `false`: there is none now.
    pub(super) fn next(&mut self, context: &mut Context, out: &mut Vec<u8>) -> bool {
        if self.holds {
            return false;
        }
        let (announced, seen) = (context.announced(), self.seen());
        if !self.has_document || !context.history.reaches(seen) {
            return self.whole(context, out);
        }
        if seen < announced.version {
            if u64::from(self.unapplied) >= WINDOW_MESSAGES {
                return false;
            }
            let behind = announced.version - seen;
            let is_json = context.document.kind() == Kind::Json;
            let wants_latest = behind > 1 && self.wish.as_ref().is_some_and(|wish| wish.latest);
            if !self.filter().is_empty() || (wants_latest && is_json) {
                return self.values(context, out);
            }
            let missed = || context.history.after(seen).take(behind as usize).map(|entry| entry.encoded.len());
            if wants_latest && missed().sum::<usize>() > context.document.bound() {
                return self.whole(context, out);
            }
            // C2.3: as short as it can be. The history reaches: the change is there.
            let Some(entry) = context.history.change_to(seen + 1) else { return false };
            let low_version = (seen + 1) as u16;
            Reply::Delta { number: self.number, span: 1, low_version, change: &entry.encoded }.encode(out);
            self.on_sent(seen + 1);
            return true;
        }
        self.check(context, out)
    }

    /// C3.1: the document. Only what was announced: while a commit is under way, that is not to be had.
    fn whole(&mut self, context: &mut Context, out: &mut Vec<u8>) -> bool {
        if !context.is_quiet() {
            return false;
        }
        let (stamp, kind) = (context.stamp, context.document.kind());
        let document = &context.whole(self.filter());
        Reply::Snapshot { number: self.number, stamp, kind, document }.encode(out);
        self.has_document = true;
        self.on_sent(stamp.version);
        self.holds = true;
        self.check_at = stamp.version + context.check_every();
        true
    }

    /// C3.6, C3.7: one change to what the wanted part is now.
    fn values(&mut self, context: &mut Context, out: &mut Vec<u8>) -> bool {
        if !context.is_quiet() {
            return false;
        }
        let to = context.stamp.version;
        match context.values(self.filter(), self.seen()) {
            None => {
                if let Some(wish) = &mut self.wish {
                    wish.seen = to;
                }
                self.check(context, out)
            }
            // As long as the whole: then rather that.
            Some(change) if change.len() > context.document.bound() => self.whole(context, out),
            Some(change) => {
                let (number, span) = (self.number, to - self.version);
                Reply::Delta { number, span, low_version: to as u16, change: &change }.encode(out);
                self.on_sent(to);
                true
            }
        }
    }

    /// C3.8: the hash, when it is time and the follower will have the document that it is of.
    fn check(&mut self, context: &mut Context, out: &mut Vec<u8>) -> bool {
        let version = context.announced().version;
        if version < self.check_at || !context.is_quiet() {
            return false;
        }
        Reply::Check { number: self.number, version, hash: context.hash(self.filter()) }.encode(out);
        self.version = version;
        self.check_at = version + context.check_every();
        true
    }

    /// Whether there is nothing more for it until something happens.
    pub(super) fn is_at_rest(&self, context: &Context) -> bool {
        let version = context.announced().version;
        self.holds || (self.has_document && self.seen() == version && version < self.check_at)
    }

    fn on_sent(&mut self, version: u64) {
        self.version = version;
        if let Some(wish) = &mut self.wish {
            wish.seen = version;
        }
        self.sent += 1;
        self.unapplied = self.unapplied.saturating_add(1);
    }

    fn filter(&self) -> &str {
        self.wish.as_ref().map_or("", |wish| &wish.filter)
    }

    /// Up to here it has what it wants.
    fn seen(&self) -> u64 {
        self.wish.as_ref().map_or(self.version, |wish| wish.seen)
    }
}
