//! One follower of one context: what it has, and what it is sent next.

use super::context::Context;
use crate::context::document::Kind;
use crate::context::limits::{CHECK_EVERY_VERSIONS, WINDOW_MESSAGES};
use crate::context::message::{Reply, Stamp, Violation, Wanted};

#[derive(Debug)]
pub(super) struct Following {
    /// Its place among the owner's.
    pub(super) context: usize,
    /// The part that is wanted; "": all.
    filter: String,
    /// Rather the latest values than every change (C3.7).
    latest: bool,
    /// The follower has, or will have when all that was sent arrived, this version. `None`: it must be given the document.
    version: Option<u64>,
    /// What was changed up to here touched nothing that it wants.
    seen: u64,
    /// SNAPSHOTs and DELTAs sent, and of those the ones that it said it has applied.
    sent: u64,
    had: u64,
    /// C3.4: the document that was sent must be applied before anything else is.
    holds: bool,
    /// The version from which on it is told the hash.
    check_at: u64,
    /// Whether it is queued.
    pub(super) is_ready: bool,
}

impl Following {
    pub(super) fn new(context: usize, wanted: &Wanted<'_>, announced: Stamp) -> Self {
        // C3.2: what it has is of use if it is of this life of the context.
        let known = |have: &Stamp| have.incarnation == announced.incarnation && have.version <= announced.version;
        let version = wanted.have.filter(known).map(|have| have.version);
        Self {
            context,
            filter: wanted.filter.unwrap_or_default().to_owned(),
            latest: wanted.latest,
            version,
            seen: version.unwrap_or(0),
            sent: 0,
            had: 0,
            holds: false,
            // C3.8: what it kept meanwhile is checked as soon as it is up to date.
            check_at: 0,
            is_ready: false,
        }
    }

    /// C3.5: the follower has applied so many messages in all.
    pub(super) fn on_have(&mut self, messages: u64) -> Result<(), Violation> {
        if messages < self.had || messages > self.sent {
            return Err(Violation("more messages applied than were sent, or fewer than before"));
        }
        self.had = messages;
        self.holds &= self.had < self.sent;
        Ok(())
    }

    /// Puts the next message into `out`; `false`: there is none now.
    pub(super) fn next(&mut self, number: u64, context: &mut Context, out: &mut Vec<u8>) -> bool {
        if self.holds {
            return false;
        }
        let announced = context.announced();
        let Some(version) = self.version.filter(|_| context.history.reaches(self.seen)) else {
            return self.whole(number, context, out);
        };
        if self.seen < announced.version {
            if self.sent - self.had >= WINDOW_MESSAGES {
                return false;
            }
            let behind = announced.version - self.seen;
            let is_json = context.document.kind() == Kind::Json;
            if !self.filter.is_empty() || (self.latest && is_json && behind > 1) {
                return self.values(number, version, context, out);
            }
            let missed = || context.history.after(self.seen).take(behind as usize).map(|entry| entry.encoded.len());
            if self.latest && behind > 1 && missed().sum::<usize>() > context.document.bound() {
                return self.whole(number, context, out);
            }
            // C2.3: as short as it can be. The history reaches: the change is there.
            let Some(entry) = context.history.after(self.seen).next() else { return false };
            let low_version = (version + 1) as u16;
            Reply::Delta { number, span: 1, low_version, change: &entry.encoded }.encode(out);
            self.on_sent(version + 1);
            return true;
        }
        self.check(number, context, out)
    }

    /// C3.1: the document. Only what was announced: while a commit is under way, that is not to be had.
    fn whole(&mut self, number: u64, context: &mut Context, out: &mut Vec<u8>) -> bool {
        if !context.is_quiet() {
            return false;
        }
        let (stamp, kind) = (context.stamp, context.document.kind());
        Reply::Snapshot { number, stamp, kind, document: &context.whole(&self.filter) }.encode(out);
        self.on_sent(stamp.version);
        self.holds = true;
        self.check_at = stamp.version + CHECK_EVERY_VERSIONS;
        true
    }

    /// C3.6, C3.7: one change to what the wanted part is now.
    fn values(&mut self, number: u64, version: u64, context: &mut Context, out: &mut Vec<u8>) -> bool {
        if !context.is_quiet() {
            return false;
        }
        let to = context.stamp.version;
        match context.values(&self.filter, self.seen) {
            None => {
                self.seen = to;
                self.check(number, context, out)
            }
            // As long as the whole: then rather that.
            Some(change) if change.len() > context.document.bound() => self.whole(number, context, out),
            Some(change) => {
                Reply::Delta { number, span: to - version, low_version: to as u16, change: &change }.encode(out);
                self.on_sent(to);
                true
            }
        }
    }

    /// C3.8: the hash, when it is time and the follower will have the document that it is of.
    fn check(&mut self, number: u64, context: &mut Context, out: &mut Vec<u8>) -> bool {
        let version = context.announced().version;
        if version < self.check_at || !context.is_quiet() {
            return false;
        }
        Reply::Check { number, version, hash: context.hash(&self.filter) }.encode(out);
        self.version = Some(version);
        self.check_at = version + CHECK_EVERY_VERSIONS;
        true
    }

    fn on_sent(&mut self, version: u64) {
        self.version = Some(version);
        self.seen = version;
        self.sent += 1;
    }
}
