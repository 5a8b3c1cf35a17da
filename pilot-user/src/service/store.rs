//! Keeps durable contexts in a database (redb), on a thread of its own, because a disk may block and a worker must not. What
//! has waited while it wrote is written next, in one transaction: many versions cost one wait for the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use redb::{ReadableDatabase as _, TableDefinition, WriteTransaction};

use crate::context::{Change, Commit, Document, Kind, Stamp};
use crate::link::doorbell::Doorbell;

/// By name: incarnation and kind.
const CONTEXTS: TableDefinition<'_, &str, (u64, u8)> = TableDefinition::new("contexts");
/// By name: a version, and the whole document of it.
const WHOLES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("wholes");
/// By name and the version that each led to: the last changes, without a gap.
const CHANGES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("changes");

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened, read or written.
    #[error("context store {file}: {source}")]
    Database {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: Box<redb::Error>,
    },
    /// A context in it is of another kind.
    #[error("context store {file}: `{name}` is kept as a {kept} document; given {given}")]
    Kind {
        /// The file.
        file: PathBuf,
        /// The context.
        name: String,
        /// What is there.
        kept: Kind,
        /// What is configured.
        given: Kind,
    },
    /// A context in it cannot be put together.
    #[error("context store {file}: `{name}` is damaged: {why}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The context.
        name: String,
        /// How.
        why: String,
    },
}

impl Error {
    /// Whether another process has the database, which one at a time can.
    pub fn is_open_elsewhere(&self) -> bool {
        matches!(self, Self::Database { source, .. } if matches!(**source, redb::Error::DatabaseAlreadyOpen))
    }
}

/// The database, before contexts are served from it.
pub struct Database {
    database: redb::Database,
    file: PathBuf,
}

/// A context as it was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Its last version.
    pub stamp: Stamp,
    /// The document then.
    pub document: Document,
    /// The changes that led to it, as far as they are kept.
    pub past: Vec<Arc<[u8]>>,
}

impl Database {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    /// When it cannot be, or another process has it open.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let failed = |source: redb::Error| Error::Database { file: file.to_owned(), source: Box::new(source) };
        let database = redb::Database::create(file).map_err(|error| failed(error.into()))?;
        let made = Self { database, file: file.to_owned() };
        made.make_tables().map_err(failed)?;
        Ok(made)
    }

    /// C5.2: a context as it was announced last; `None`: it is not there, or has another incarnation than is wanted (C1.4).
    ///
    /// # Errors
    /// When it is not what it should be.
    pub fn load(&self, name: &str, kind: Kind, wanted: Option<u64>) -> Result<Option<Kept>, Error> {
        let read = self.read(name).map_err(|error| self.failed(error))?;
        let read = read.filter(|(incarnation, ..)| wanted.is_none_or(|wanted| wanted == *incarnation));
        let Some((incarnation, code, (whole_version, whole), changes)) = read else { return Ok(None) };
        let damaged = |why: String| Error::Damaged { file: self.file.clone(), name: name.to_owned(), why };
        let kept = Kind::from_code(code).ok_or_else(|| damaged(format!("kind {code} is unknown")))?;
        if kept != kind {
            return Err(Error::Kind { file: self.file.clone(), name: name.to_owned(), kept, given: kind });
        }
        let mut document = Document::decode(kind, &whole).map_err(|error| damaged(error.to_string()))?;
        let mut version = whole_version;
        let mut past = Vec::with_capacity(changes.len());
        for (to, change) in changes {
            if to > whole_version {
                let applied = Change::decode(&change).and_then(|decoded| document.apply(&decoded, change.len()));
                applied.map_err(|error| damaged(format!("the change to version {to}: {error}")))?;
                if to != version + 1 {
                    return Err(damaged(format!("the changes between versions {version} and {to} are missing")));
                }
                version = to;
            }
            past.push(change.into());
        }
        Ok(Some(Kept { stamp: Stamp { incarnation, version }, document, past }))
    }

    /// A new context at version 0, in place of whatever was kept under its name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self, name: &str, incarnation: u64, document: &Document) -> Result<(), Error> {
        let begin = || -> Result<(), redb::Error> {
            let mut whole = Vec::with_capacity(document.bound());
            document.encode(&mut whole);
            let transaction = self.database.begin_write()?;
            forget(&transaction, name)?;
            transaction.open_table(CONTEXTS)?.insert(name, (incarnation, document.kind() as u8))?;
            transaction.open_table(WHOLES)?.insert(name, (0, whole.as_slice()))?;
            Ok(transaction.commit()?)
        };
        begin().map_err(|error| self.failed(error))
    }

    /// C1.4: nothing of a context is kept any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn forget(&self, name: &str) -> Result<(), Error> {
        self.carry_out(&[Job::Forget(name.to_owned())]).map_err(|error| self.failed(error))
    }

    fn make_tables(&self) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(CONTEXTS)?;
        transaction.open_table(WHOLES)?;
        transaction.open_table(CHANGES)?;
        Ok(transaction.commit()?)
    }

    #[expect(clippy::type_complexity, reason = "the three tables' rows of a context, taken apart at once")]
    fn read(&self, name: &str) -> Result<Option<(u64, u8, (u64, Vec<u8>), Vec<(u64, Vec<u8>)>)>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let (contexts, wholes) = (transaction.open_table(CONTEXTS)?, transaction.open_table(WHOLES)?);
        let (Some(context), Some(whole)) = (contexts.get(name)?, wholes.get(name)?) else { return Ok(None) };
        let (incarnation, kind) = context.value();
        let (version, bytes) = whole.value();
        let changes = transaction.open_table(CHANGES)?;
        let changes = changes.range((name, 0)..=(name, u64::MAX))?.map(|change| {
            let (key, bytes) = change?;
            Ok((key.value().1, bytes.value().to_vec()))
        });
        let changes = changes.collect::<Result<_, redb::StorageError>>()?;
        Ok(Some((incarnation, kind, (version, bytes.to_vec()), changes)))
    }

    /// C5.1: all of it or nothing, on the disk when this returns.
    fn carry_out(&self, jobs: &[Job]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        for job in jobs {
            match job {
                Job::Keep(commit) => keep(&transaction, commit)?,
                Job::Forget(name) => forget(&transaction, name)?,
            }
        }
        Ok(transaction.commit()?)
    }

    fn failed(&self, source: redb::Error) -> Error {
        Error::Database { file: self.file.clone(), source: Box::new(source) }
    }
}

fn keep(transaction: &WriteTransaction, commit: &Commit) -> Result<(), redb::Error> {
    let (mut wholes, mut changes) = (transaction.open_table(WHOLES)?, transaction.open_table(CHANGES)?);
    let name = commit.name.as_str();
    let mut version = commit.before.version;
    for change in &commit.changes {
        version += 1;
        changes.insert((name, version), &**change)?;
    }
    if let Some(document) = &commit.document {
        wholes.insert(name, (version, document.as_slice()))?;
    }
    for old in changes.extract_from_if((name, 0)..(name, commit.keep_from), |_, _| true)? {
        old?;
    }
    Ok(())
}

fn forget(transaction: &WriteTransaction, name: &str) -> Result<(), redb::Error> {
    transaction.open_table(CONTEXTS)?.remove(name)?;
    transaction.open_table(WHOLES)?.remove(name)?;
    for change in transaction.open_table(CHANGES)?.extract_from_if((name, 0)..=(name, u64::MAX), |_, _| true)? {
        change?;
    }
    Ok(())
}

/// What the thread is asked for, in this order.
enum Job {
    Keep(Commit),
    Forget(String),
}

/// What became of a commit.
#[derive(Debug)]
pub struct Outcome {
    /// The context.
    pub name: String,
    /// Kept, or why not.
    pub result: Result<(), String>,
}

/// The worker's end of the store's thread.
pub struct Store {
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Starts the thread, for so many contexts. It rings the doorbell when there is an outcome.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(database: Database, contexts: usize, doorbell: Doorbell) -> std::io::Result<Self> {
        // A context has one commit at a time, and is forgotten once: there is always room, and nobody waits for it.
        let (jobs, from_worker) = bounded::<Job>(2 * contexts.max(1));
        let (to_worker, outcomes) = bounded(contexts.max(1));
        let thread = std::thread::Builder::new().name("pilot-store".into()).spawn(move || {
            while let Ok(first) = from_worker.recv() {
                let batch: Vec<Job> = std::iter::once(first).chain(from_worker.try_iter()).collect();
                let result = database.carry_out(&batch).map_err(|error| error.to_string());
                for job in batch {
                    match (job, &result) {
                        (Job::Keep(Commit { name, .. }), _) => {
                            // The worker is gone: so is the reason to write.
                            let Ok(()) = to_worker.send(Outcome { name, result: result.clone() }) else { return };
                        }
                        (Job::Forget(_), Ok(())) => {}
                        (Job::Forget(name), Err(why)) => tracing::warn!(name, why, "a deleted context is still kept"),
                    }
                }
                doorbell.ring();
            }
        })?;
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread) })
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

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        self.outcomes.iter().for_each(drop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("pilot-store-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&file);
        file
    }

    fn commit(version: u64, words: &[&str], keep_from: u64) -> Commit {
        let changes = words.iter().map(|word| Change::Append(word.as_bytes().to_vec()).encode().into()).collect();
        let before = Stamp { incarnation: 7, version };
        Commit { name: "log".into(), before, changes, document: None, keep_from }
    }

    fn text(kept: &Kept) -> String {
        let mut out = vec![];
        kept.document.encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// C5.2: what was kept is there when the file is opened again, with its incarnation and last changes.
    #[test]
    fn what_was_kept_is_there_again() {
        let file = scratch("again");
        let database = Database::open(&file).unwrap();
        assert!(database.load("log", Kind::Log, None).unwrap().is_none());
        database.begin("log", 7, &Document::empty(Kind::Log)).unwrap();
        // A name that begins with another's is another.
        database.begin("log2", 8, &Document::empty(Kind::Log)).unwrap();
        let store = Store::start(database, 2, Doorbell::new().unwrap()).unwrap();
        store.keep(commit(0, &["a", "b"], 1));
        assert_eq!(store.outcomes.recv().unwrap().result, Ok(()));
        let mut whole = commit(2, &["c", "d"], 4);
        whole.document = Some(b"abcd".to_vec());
        store.keep(whole);
        assert_eq!(store.outcomes.recv().unwrap().result, Ok(()));
        store.keep(commit(4, &["e"], 4));
        drop(store);

        let database = Database::open(&file).unwrap();
        let kept = database.load("log", Kind::Log, None).unwrap().unwrap();
        assert_eq!((kept.stamp, text(&kept).as_str()), (Stamp { incarnation: 7, version: 5 }, "abcde"));
        let past: Vec<_> = kept.past.iter().map(|change| Change::decode(change).unwrap()).collect();
        assert_eq!(past, [Change::Append(b"d".to_vec()), Change::Append(b"e".to_vec())]);
        assert_eq!(text(&database.load("log2", Kind::Log, None).unwrap().unwrap()), "");
        let error = database.load("log", Kind::Text, None).unwrap_err().to_string();
        assert!(error.contains("`log`") && error.contains("log document") && error.contains("text"), "{error}");
        let error = Database::open(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("again"), "two processes: {error}");
        std::fs::remove_file(&file).unwrap();
    }

    /// C1.4: what is kept of others stays, and a later context of the name begins anew.
    #[test]
    fn what_is_forgotten_is_gone() {
        let file = scratch("forgotten");
        let database = Database::open(&file).unwrap();
        for name in ["log", "log2"] {
            database.begin(name, 7, &Document::empty(Kind::Log)).unwrap();
        }
        let store = Store::start(database, 2, Doorbell::new().unwrap()).unwrap();
        store.keep(commit(0, &["a", "b"], 1));
        store.forget("log");
        drop(store);
        let database = Database::open(&file).unwrap();
        assert_eq!(database.load("log", Kind::Log, None).unwrap(), None);
        assert!(database.load("log2", Kind::Log, None).unwrap().is_some());
        database.begin("log", 8, &Document::empty(Kind::Log)).unwrap();
        let kept = database.load("log", Kind::Log, None).unwrap().unwrap();
        assert_eq!((kept.stamp, text(&kept).as_str()), (Stamp { incarnation: 8, version: 0 }, ""));
        assert_eq!(database.load("log", Kind::Log, Some(8)).unwrap(), Some(kept.clone()));
        assert_eq!(database.load("log", Kind::Log, Some(9)).unwrap(), None, "created again meanwhile");
        assert!(kept.past.is_empty(), "no change of the one before");
        database.forget("log2").unwrap();
        assert_eq!(database.load("log2", Kind::Log, None).unwrap(), None);
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_gap_is_damage_and_named() {
        let file = scratch("gap");
        let database = Database::open(&file).unwrap();
        database.begin("log", 7, &Document::empty(Kind::Log)).unwrap();
        database.carry_out(&[Job::Keep(commit(0, &["a", "b", "c"], 3))]).unwrap();
        let error = database.load("log", Kind::Log, None).unwrap_err().to_string();
        assert!(error.contains("`log` is damaged") && error.contains("0 and 3"), "{error}");
        std::fs::remove_file(&file).unwrap();
    }
}
