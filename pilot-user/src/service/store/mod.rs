//! Durable contexts in a database (redb).

mod thread;

pub use thread::{Outcome, Store, Stored};

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};

use crate::context::{Change, Commit, Document, Held, HistoryLimits, Kind, Rights, Stamp};
use thread::Job;

/// By name: incarnation and kind.
const CONTEXTS: TableDefinition<'_, &str, (u64, u8)> = TableDefinition::new("contexts");
/// By name: a version, and the whole document of it.
const WHOLES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("wholes");
/// By name and the version that each led to: the last changes, without a gap.
const CHANGES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("changes");
/// By name, of those that applications created: who may do what, as JSON. Those of the others are in a file.
const RIGHTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rights");

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
        // Whose documents it has decides who reads them, and not the host's other users.
        let mut options = std::fs::OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(file);
        let opened = opened.map_err(|error| failed(redb::Error::Io(error)))?;
        let backend = redb::backends::FileBackend::new(opened).map_err(|error| failed(error.into()))?;
        let database = redb::Builder::new().create_with_backend(backend).map_err(|error| failed(error.into()))?;
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

    /// The contexts that applications created, as they were announced last.
    ///
    /// # Errors
    /// When they are not what they should be.
    pub fn held(&self) -> Result<Vec<(String, Held)>, Error> {
        let mut all = Vec::new();
        for (name, kind, rights) in self.created()? {
            let Some(Kept { stamp, document, past }) = self.load(&name, kind, None)? else { continue };
            let history = HistoryLimits::default();
            all.push((name, Held { document, stamp, rights, history, past, durable: true }));
        }
        Ok(all)
    }

    /// Of those the names, with what they may be used for.
    fn created(&self) -> Result<Vec<(String, Kind, Rights)>, Error> {
        /// A name, its rights as JSON, and the code of its kind.
        type Created = (String, Vec<u8>, Option<u8>);
        let read = || -> Result<Vec<Created>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let contexts = transaction.open_table(CONTEXTS)?;
            let all = transaction.open_table(RIGHTS)?;
            let mut created = Vec::new();
            for entry in all.iter()? {
                let (name, rights) = entry?;
                let kind = contexts.get(name.value())?.map(|context| context.value().1);
                created.push((name.value().to_owned(), rights.value().to_vec(), kind));
            }
            Ok(created)
        };
        let read = read().map_err(|error| self.failed(error))?;
        let parse = |(name, rights, kind): (String, Vec<u8>, Option<u8>)| {
            let damaged = |why: String| Error::Damaged { file: self.file.clone(), name: name.clone(), why };
            let kind = kind.and_then(Kind::from_code).ok_or_else(|| damaged("its kind is unknown".into()))?;
            let rights = serde_json::from_slice(&rights).map_err(|error| damaged(format!("its rights: {error}")))?;
            Ok((name, kind, rights))
        };
        read.into_iter().map(parse).collect()
    }

    /// A new context at version 0, in place of whatever was kept under its name; whose rights are in a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self, name: &str, incarnation: u64, document: &Document) -> Result<(), Error> {
        let job = Job::begin(name, incarnation, document, None);
        self.carry_out(&[job]).map_err(|error| self.failed(error))
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
        transaction.open_table(RIGHTS)?;
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
                Job::Begin { name, incarnation, kind, whole, rights } => {
                    forget(&transaction, name)?;
                    let name = name.as_str();
                    transaction.open_table(CONTEXTS)?.insert(name, (*incarnation, *kind as u8))?;
                    transaction.open_table(WHOLES)?.insert(name, (0, whole.as_slice()))?;
                    if let Some(rights) = rights {
                        transaction.open_table(RIGHTS)?.insert(name, rights.as_slice())?;
                    }
                }
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
    transaction.open_table(RIGHTS)?.remove(name)?;
    for change in transaction.open_table(CHANGES)?.extract_from_if((name, 0)..=(name, u64::MAX), |_, _| true)? {
        change?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::doorbell::Doorbell;

    fn store(database: Database) -> Store {
        let file = database.file.clone();
        Store::start(file, Some(database), 2, Doorbell::new().unwrap()).unwrap()
    }

    /// Waits for what became of a job.
    fn outcome(store: &Store) -> Outcome {
        store.outcomes.recv().unwrap()
    }

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
        let store = store(database);
        store.keep(commit(0, &["a", "b"], 1));
        assert_eq!(outcome(&store).result, Ok(()));
        let mut whole = commit(2, &["c", "d"], 4);
        whole.document = Some(b"abcd".to_vec());
        store.keep(whole);
        assert_eq!(outcome(&store).result, Ok(()));
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
        let store = store(database);
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

    /// What applications created is there again with its rights; the file is made when there is something for it.
    #[test]
    fn what_applications_created_is_there_again() {
        let file = scratch("created");
        let rights = Rights { read: vec!["*".into()], write: vec!["b".into()] };
        let store = Store::start(file.clone(), None, 4, Doorbell::new().unwrap()).unwrap();
        assert!(!file.exists());
        store.begin("log", 7, &Document::empty(Kind::Log), &rights);
        store.begin("gone", 8, &Document::empty(Kind::Json), &rights);
        store.keep(commit(0, &["a"], 1));
        store.forget("gone");
        let what: Vec<_> = (0..4).map(|_| outcome(&store)).map(|it| (it.name, it.what, it.result)).collect();
        let done = |name: &str, what| (name.to_owned(), what, Ok::<(), String>(()));
        let [begun, also] = ["log", "gone"].map(|name| done(name, Stored::Begun));
        assert_eq!(what, [begun, also, done("log", Stored::Kept), done("gone", Stored::Forgotten)]);
        // Nobody else's.
        let second = Store::start(file.clone(), None, 4, Doorbell::new().unwrap()).unwrap();
        second.begin("x", 9, &Document::empty(Kind::Log), &rights);
        assert!(outcome(&second).result.is_err_and(|why| why.contains("created")));
        drop(store);
        let database = Database::open(&file).unwrap();
        database.begin("of a file", 9, &Document::empty(Kind::Log)).unwrap();
        assert_eq!(database.created().unwrap(), [("log".to_owned(), Kind::Log, rights)]);
        assert_eq!(text(&database.load("log", Kind::Log, None).unwrap().unwrap()), "a");
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
