//! Changes: asked for by clients and by the owner's own process, made at once or when the disk has them, and answered.

use std::sync::Arc;

use super::{LinkId, Owner};
use crate::context::change::Change;
use crate::context::message::{Refusal, RefusalCode, Reply, Stamp};

/// Bytes of room that are kept for writing the next change. Lower: more of them allocate. Higher: memory after a large one.
const SCRATCH_BYTES: usize = 64 << 10;

/// A change of the owner's own process to a durable context, as the owner numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WriteId(u64);

/// What became of a change of the owner's own process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It was made, and led to this version.
    Made(Stamp),
    /// The disk is to have it first: [`Owner::poll_written`] will tell.
    Waits(WriteId),
}

/// What the disk is to keep before it is announced: several changes at once (C5.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// The context.
    pub name: String,
    /// Its version before the changes.
    pub before: Stamp,
    /// The changes, each encoded.
    pub changes: Vec<Arc<[u8]>>,
    /// The document after them, when it is to be kept whole again.
    pub document: Option<Vec<u8>>,
    /// Changes that led to versions below this one are not needed any more.
    pub keep_from: u64,
}

/// Who asks for a change, and is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Writer {
    /// A client, and the number of its following whose copy takes the change itself (C3.10).
    Client { link: LinkId, request: u64, copy: Option<u64> },
    /// The owner's own process.
    Own(WriteId),
}

/// A change that somebody asks for.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) writer: Writer,
    pub(super) base: Option<Stamp>,
    pub(super) change: Change,
    pub(super) encoded: Arc<[u8]>,
}

impl Owner {
    /// Makes a change of the owner's own process, which may do anything: no message goes either way.
    ///
    /// # Errors
    /// Why it was not made. Nothing has changed.
    pub fn change(&mut self, name: &str, base: Option<Stamp>, change: Change) -> Result<Written, Refusal> {
        let unknown = || Refusal::new(RefusalCode::Unknown, 0, format!("there is no context `{name}`"));
        let at = *self.names.get(name).ok_or_else(unknown)?;
        let id = WriteId(self.next_write);
        self.next_write += 1;
        let made = self.write(at, Writer::Own(id), base, change)?;
        Ok(made.map_or(Written::Waits(id), Written::Made))
    }

    /// What became of a change that [`Owner::change`] said waits.
    pub fn poll_written(&mut self) -> Option<(WriteId, Result<Stamp, Refusal>)> {
        self.written.pop_front()
    }

    /// What the disk is to keep next. Until [`Owner::handle_committed`] there is nothing more of that context: what is
    /// written meanwhile waits, and is committed together.
    pub fn poll_commit(&mut self) -> Option<Commit> {
        while let Some(at) = self.to_commit.pop_front() {
            let (commit, refused) = self.contexts[at].begin_commit();
            refused.into_iter().for_each(|(writer, refusal)| self.answer_refused(writer, refusal));
            if commit.is_some() {
                return commit;
            }
        }
        None
    }

    /// The disk has what was asked of it last for this context: it is announced. C5.3: `Err`: it has not, and never will; who
    /// follows is told, and the context is not to be had any more.
    pub fn handle_committed(&mut self, name: &str, result: Result<(), String>) {
        if let Some(at) = self.removed.iter().position(|removed| removed == name) {
            self.removed.remove(at);
            return;
        }
        let Some(&at) = self.names.get(name) else { return };
        let context = &mut self.contexts[at];
        let writers = context.end_commit(result.is_ok());
        match result {
            Ok(()) => {
                if !context.waiting.is_empty() {
                    self.to_commit.push_back(at);
                }
                let incarnation = context.stamp.incarnation;
                for (writer, version) in writers {
                    self.answer_made(at, writer, Stamp { incarnation, version });
                }
                self.wake_followers(at);
            }
            Err(why) => {
                let refusal = context.fail(&why);
                let users = context.take_users(writers);
                self.refuse(users, &refusal);
            }
        }
    }

    pub(super) fn on_change(
        &mut self,
        link: LinkId,
        writer: Writer,
        base: Option<Stamp>,
        name: &str,
        change: &[u8],
    ) -> Result<(), Refusal> {
        let at = self.find(link, name, |rights| &rights.write)?;
        let version = self.contexts[at].stamp.version;
        let change = Change::decode(change).map_err(|error| Refusal::of_change(&error, version))?;
        if let Some(stamp) = self.write(at, writer, base, change)? {
            self.answer_made(at, writer, stamp);
        }
        Ok(())
    }

    /// Makes a change; `None`: it waits for the disk.
    fn write(
        &mut self,
        at: usize,
        writer: Writer,
        base: Option<Stamp>,
        change: Change,
    ) -> Result<Option<Stamp>, Refusal> {
        // As it will be sent, which may be shorter than it came.
        self.encoded.clear();
        change.encode_into(&mut self.encoded);
        let encoded = self.encoded.as_slice().into();
        self.encoded.shrink_to(SCRATCH_BYTES);
        let write = Write { writer, base, change, encoded };
        let context = &mut self.contexts[at];
        if context.durable {
            if context.wait(write)? {
                self.to_commit.push_back(at);
            }
            return Ok(None);
        }
        let stamp = context.apply(&write)?;
        self.wake_followers(at);
        Ok(Some(stamp))
    }

    /// A version is announced: who made it is told, its own copy by the way (C3.10).
    fn answer_made(&mut self, at: usize, writer: Writer, stamp: Stamp) {
        let (link, request, copy) = match writer {
            Writer::Client { link, request, copy } => (link, request, copy),
            Writer::Own(id) => return self.written.push_back((id, Ok(stamp))),
        };
        let following = copy.and_then(|number| self.link(link)?.followings.get(&number).copied());
        let takes_own = following.is_some_and(|following| {
            let following = &mut self.followings[following];
            following.context as usize == at && following.takes_own(stamp.version)
        });
        let Stamp { version, .. } = stamp;
        self.answer(link, &if takes_own { Reply::Made { request, version } } else { Reply::Done { request, stamp } });
    }

    pub(super) fn answer_refused(&mut self, writer: Writer, refusal: Refusal) {
        match writer {
            Writer::Client { link, request, .. } => self.answer(link, &Reply::Refused { request, refusal }),
            Writer::Own(id) => self.written.push_back((id, Err(refusal))),
        }
    }
}
