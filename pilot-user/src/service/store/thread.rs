//! The database on a thread of its own, because a disk may block and a worker must not. What has waited while it wrote is written next,
//! in one transaction: many versions cost one wait for the disk.

use std::path::PathBuf;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Database;
use crate::context::{Commit, Document, Kind, Rights};
use crate::link::doorbell::Doorbell;

/// What the thread is asked for, in this order.
pub(super) enum Job {
    Begin {
        name: String,
        incarnation: u64,
        kind: Kind,
        whole: Vec<u8>,
        /// As JSON, unless they are in a file.
        rights: Option<Vec<u8>>,
    },
    Keep(Commit),
    Forget(String),
}

impl Job {
    pub(super) fn begin(name: &str, incarnation: u64, document: &Document, rights: Option<&Rights>) -> Self {
        let mut whole = Vec::with_capacity(document.bound());
        document.encode(&mut whole);
        // Names can always be written as JSON.
        let rights = rights.map(|rights| serde_json::to_vec(rights).unwrap_or_default());
        Self::Begin { name: name.to_owned(), incarnation, kind: document.kind(), whole, rights }
    }

    fn asks(self) -> (String, Stored) {
        match self {
            Self::Begin { name, .. } => (name, Stored::Begun),
            Self::Keep(Commit { name, .. }) => (name, Stored::Kept),
            Self::Forget(name) => (name, Stored::Forgotten),
        }
    }
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// To begin a context.
    Begun,
    /// To keep versions of it.
    Kept,
    /// To keep nothing of it any more.
    Forgotten,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    /// The context.
    pub name: String,
    /// What was asked for.
    pub what: Stored,
    /// The disk has it, or why not.
    pub result: Result<(), String>,
}

/// The worker's end of the thread.
pub struct Store {
    jobs: Option<Sender<Job>>,
    pub(super) outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Starts the thread, for so many contexts. Without a database it makes or opens the file when there is something for it. It rings
    /// the doorbell when there is an outcome.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        file: PathBuf,
        mut database: Option<Database>,
        contexts: usize,
        doorbell: Doorbell,
    ) -> std::io::Result<Self> {
        // A context is begun, has one commit at a time, and is forgotten once, while its name is taken: there is always room, and nobody
        // waits for it.
        let most = 2 * contexts.max(1);
        let (jobs, from_worker) = bounded::<Job>(most);
        let (to_worker, outcomes) = bounded(most);
        let thread = std::thread::Builder::new().name("pilot-store".into()).spawn(move || {
            while let Ok(first) = from_worker.recv() {
                let batch: Vec<Job> = std::iter::once(first).chain(from_worker.try_iter()).collect();
                if database.is_none() {
                    // Another try for the next batch, if it fails.
                    database = match Database::open(&file) {
                        Ok(opened) => Some(opened),
                        Err(error) => {
                            tell(batch, &Err(error.to_string()), &to_worker);
                            doorbell.ring();
                            continue;
                        }
                    };
                }
                let result = database.as_ref().map_or(Ok(()), |database| database.carry_out(&batch));
                tell(batch, &result.map_err(|error| error.to_string()), &to_worker);
                doorbell.ring();
            }
        })?;
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread) })
    }

    /// Begins a context at version 0, in place of whatever was kept under its name.
    pub fn begin(&self, name: &str, incarnation: u64, document: &Document, rights: &Rights) {
        self.ask(Job::begin(name, incarnation, document, Some(rights)));
    }

    /// Hands over a commit.
    pub fn keep(&self, commit: Commit) {
        self.ask(Job::Keep(commit));
    }

    /// Has a context forgotten.
    pub fn forget(&self, name: &str) {
        self.ask(Job::Forget(name.to_owned()));
    }

    fn ask(&self, job: Job) {
        // The thread ends only with this.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }

    /// The next outcome.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }
}

fn tell(batch: Vec<Job>, result: &Result<(), String>, to_worker: &Sender<Outcome>) {
    for (name, what) in batch.into_iter().map(Job::asks) {
        if let (Stored::Forgotten, Err(why)) = (what, result) {
            tracing::warn!(name, why, "a deleted context is still kept");
        }
        // An error means that the worker is gone, and nobody asks any more.
        let _ = to_worker.send(Outcome { name, what, result: result.clone() });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        self.outcomes.iter().for_each(drop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
