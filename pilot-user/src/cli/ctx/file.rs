//! The file of contexts that a node holds: TOML.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use pilot_engine::PeerId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::{Failure, Output};
use crate::context::{Document, Held, HistoryLimits, Kind, Owner, Rights, Stamp};
use crate::link::doorbell::Doorbell;
use crate::service::contexts::ContextOwner;
use crate::service::store::{Database, Kept, Store};

/// The database of durable contexts, beside the file, unless it names another.
const STORE: &str = "contexts.redb";

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Where durable contexts are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<PathBuf>,
    #[serde(default)]
    contexts: Vec<Entry>,
}

/// One context.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    #[serde(default)]
    pub(super) durable: bool,
    /// The document that it begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<PathBuf>,
    #[serde(default)]
    pub(super) read: Vec<String>,
    #[serde(default)]
    pub(super) write: Vec<String>,
}

/// Adds a context to a file, whose other text stays as it is.
pub(super) fn create(path: &Path, entry: Entry, output: &Output) -> Result<(), Failure> {
    let there = if path.exists() { read(path)? } else { File::default() };
    if there.contexts.iter().any(|other| other.name == entry.name) {
        return Err(Failure::Usage(anyhow!("{}: there is a context `{}` already", path.display(), entry.name)));
    }
    first_document(&entry, Path::new("")).map_err(Failure::Usage)?;
    // Held once, as it will be, to see whether the name is one.
    hold_all(&mut Owner::default(), vec![(&entry, new_held(&entry, Document::empty(entry.kind), 0))])?;
    let one = File { store: None, contexts: vec![entry] };
    let written = toml::to_string(&one).map_err(Failure::failed)?;
    let mut options = std::fs::OpenOptions::new();
    let appended = options.create(true).append(true).open(path).and_then(|mut file| writeln!(file, "{written}"));
    appended.with_context(|| format!("cannot write {}", path.display())).map_err(Failure::Failed)?;
    let Some(entry) = one.contexts.first() else { return Ok(()) };
    let event = json!({"event": "context_created", "name": entry.name, "kind": entry.kind, "file": path});
    output.event(&event, || Some(format!("{}: context `{}`, {}", path.display(), entry.name, entry.kind)));
    Ok(())
}

/// The contexts of a file, as a service: durable ones as they were announced last, the others anew.
pub(super) fn hold(path: &Path, peers: &[(String, PeerId)], doorbell: Doorbell) -> Result<ContextOwner, Failure> {
    let File { store, contexts } = read(path)?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let database = if contexts.iter().any(|entry| entry.durable) {
        let file = beside.join(store.unwrap_or_else(|| STORE.into()));
        Some(Database::open(&file).map_err(Failure::failed)?)
    } else {
        None
    };
    let mut held = Vec::new();
    for entry in &contexts {
        let unknown = entry
            .read
            .iter()
            .chain(&entry.write)
            .find(|name| name.as_str() != "*" && !peers.iter().any(|(peer, _)| peer == *name));
        if let Some(unknown) = unknown {
            let configured = peers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            let why = anyhow!("contexts.{}: given peer `{unknown}`, configured: {configured}", entry.name);
            return Err(Failure::Usage(why));
        }
        let kept = match &database {
            Some(database) if entry.durable => database.load(&entry.name, entry.kind).map_err(Failure::failed)?,
            _ => None,
        };
        let it = match kept {
            Some(Kept { stamp, document, past }) => Held { stamp, past, ..new_held(entry, document, 0) },
            None => {
                let document = first_document(entry, beside).map_err(Failure::Usage)?;
                let incarnation = incarnation().map_err(Failure::Failed)?;
                if let Some(database) = database.as_ref().filter(|_| entry.durable) {
                    database.begin(&entry.name, incarnation, &document).map_err(Failure::failed)?;
                }
                new_held(entry, document, incarnation)
            }
        };
        held.push((entry, it));
    }
    let mut owner = Owner::default();
    hold_all(&mut owner, held)?;
    let start = |database| Store::start(database, contexts.len(), doorbell);
    let store = database.map(start).transpose().context("cannot start the store's thread").map_err(Failure::Failed)?;
    Ok(ContextOwner::new(owner, store, peers))
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let parsed = text.and_then(|text| toml::from_str(&text).with_context(|| path.display().to_string()));
    parsed.map_err(Failure::Usage)
}

fn hold_all(owner: &mut Owner, all: Vec<(&Entry, Held)>) -> Result<(), Failure> {
    for (entry, held) in all {
        owner.hold(&entry.name, held).map_err(|refusal| Failure::Usage(anyhow!("contexts: {refusal}")))?;
    }
    Ok(())
}

fn new_held(entry: &Entry, document: Document, incarnation: u64) -> Held {
    Held {
        document,
        stamp: Stamp { incarnation, version: 0 },
        rights: Rights { read: entry.read.clone(), write: entry.write.clone() },
        history: HistoryLimits::default(),
        past: Vec::new(),
        durable: entry.durable,
    }
}

fn first_document(entry: &Entry, beside: &Path) -> anyhow::Result<Document> {
    let Some(from) = &entry.from else { return Ok(Document::empty(entry.kind)) };
    let path = beside.join(from);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Document::decode(entry.kind, &bytes).with_context(|| path.display().to_string())
}

fn incarnation() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    if getrandom::fill(&mut bytes).is_err() {
        bail!("the operating system gave no random bytes");
    }
    Ok(u64::from_be_bytes(bytes))
}
