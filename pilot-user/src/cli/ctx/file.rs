//! The file of contexts that a node holds: TOML.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, bail};
use crossbeam_channel::{Sender, bounded};
use pilot_engine::PeerId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::{Failure, Output};
use crate::api::limits::MAX_CONTEXTS;
use crate::context::{Document, Held, Kind, Owner, Rights};
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
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: Kind,
    #[serde(default)]
    pub(super) durable: bool,
    /// The document that it begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<PathBuf>,
    /// Of a durable one, in hexadecimal: drawn when it was created, so that one that is created again after it was deleted is
    /// another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) incarnation: Option<String>,
    #[serde(default)]
    pub(super) read: Vec<String>,
    #[serde(default)]
    pub(super) write: Vec<String>,
}

/// Adds a context to a file, whose other text stays as it is.
pub(super) fn create(path: &Path, mut entry: Entry, output: &Output) -> Result<(), Failure> {
    let there = if path.exists() { read(path)? } else { File::default() };
    if there.contexts.iter().any(|other| other.name == entry.name) {
        return Err(Failure::Usage(anyhow!("{}: there is a context `{}` already", path.display(), entry.name)));
    }
    first_document(&entry, Path::new("")).map_err(Failure::Usage)?;
    // Held once, as it will be, to see whether the name is one.
    hold_all(&mut Owner::default(), vec![(&entry, new_held(&entry, Document::empty(entry.kind), 0))])?;
    if entry.durable {
        entry.incarnation = Some(format!("{:016x}", incarnation().map_err(Failure::Failed)?));
    }
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

/// C1.4: takes a context out of a file, whose other text stays as it is, and out of the store, unless a node has that open: which
/// does so itself, as soon as it sees the file ([`Deletions::look`]).
pub(super) fn delete(path: &Path, name: &str, output: &Output) -> Result<(), Failure> {
    let before = read(path)?;
    let shown = path.display();
    let Some(place) = before.contexts.iter().position(|entry| entry.name == name) else {
        let there = before.contexts.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::Usage(anyhow!("{shown}: given context `{name}`, there are: {there}")));
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}")).map_err(Failure::Usage)?;
    let after = without(&text, place);
    let mut wanted = before.contexts;
    let gone = wanted.remove(place);
    if !toml::from_str(&after).is_ok_and(|File { contexts, .. }| contexts == wanted) {
        return Err(Failure::Usage(anyhow!(
            "{shown}: `{name}` is not written as `pilot ctx create` does; take it out by hand"
        )));
    }
    let part = path.with_extension("part");
    let written = std::fs::write(&part, after).and_then(|()| std::fs::rename(&part, path));
    written.with_context(|| format!("cannot write {shown}")).map_err(Failure::Failed)?;
    if gone.durable {
        match Database::open(&store(path, before.store)) {
            Ok(database) => database.forget(name).map_err(Failure::failed)?,
            Err(error) if error.is_open_elsewhere() => {}
            Err(error) => return Err(Failure::failed(error)),
        }
    }
    let event = json!({"event": "context_deleted", "name": name, "file": path});
    output.event(&event, || Some(format!("{shown}: no context `{name}` any more")));
    Ok(())
}

/// The text of a file without its entry at a place: from its heading to the last line before the next that is no comment.
fn without(text: &str, place: usize) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let heading = |line: &&str| line.trim_start().starts_with('[');
    let entries = lines.iter().enumerate().filter(|(_, line)| line.trim() == "[[contexts]]").map(|(at, _)| at);
    let Some(begin) = entries.clone().nth(place) else { return text.to_owned() };
    let next = lines.iter().skip(begin + 1).position(heading).map_or(lines.len(), |more| begin + 1 + more);
    let is_of_it = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let end = begin + lines[begin..next].iter().rposition(is_of_it).map_or(1, |last| last + 1);
    [&lines[..begin], &lines[end..]].concat().concat()
}

fn store(path: &Path, named: Option<PathBuf>) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(named.unwrap_or_else(|| STORE.into()))
}

/// The names of a file, of which those that are not in it any more are to be deleted by who serves it.
pub(super) struct Watched {
    path: PathBuf,
    modified: Option<SystemTime>,
    names: Vec<String>,
}

impl Watched {
    /// What is gone. Looks at the file if it is another than it was. One that cannot be read is being written, or is left alone until it
    /// can.
    pub(super) fn gone(&mut self) -> Vec<String> {
        let modified = modified(&self.path);
        if modified == self.modified {
            return Vec::new();
        }
        let Ok(File { contexts, .. }) = read(&self.path) else { return Vec::new() };
        self.modified = modified;
        self.names.extract_if(.., |name| !contexts.iter().any(|entry| entry.name == *name)).collect()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// What a node that serves the contexts of a file has to delete.
pub(in super::super) struct Deletions {
    watched: Watched,
    to_worker: Sender<String>,
    doorbell: Doorbell,
}

impl Deletions {
    pub(in super::super) fn look(&mut self) {
        for gone in self.watched.gone() {
            // The worker is gone only with the whole node.
            let _ = self.to_worker.send(gone);
            self.doorbell.ring();
        }
    }
}

/// A context for the node of the host to hold.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) document: Document,
    pub(super) rights: Rights,
    pub(super) durable: bool,
}

/// The contexts of a file, for the node of the host, which keeps durable ones itself.
pub(super) fn wanted(path: &Path) -> Result<(Vec<Wanted>, Watched), Failure> {
    let modified = modified(path);
    let File { store: named, contexts } = read(path)?;
    let kept_in = store(path, named);
    if let Some(durable) = contexts.iter().find(|entry| entry.durable && kept_in.exists()) {
        return Err(Failure::Usage(anyhow!(
            "contexts.{}: {} keeps it, for a node of this command's own; the node of this host, which runs, has a store of its own: stop \
             that node, or move the file away and begin with its documents as they are in {}",
            durable.name,
            kept_in.display(),
            path.display()
        )));
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    let all = contexts.into_iter().map(|entry| {
        let document = first_document(&entry, beside).map_err(Failure::Usage)?;
        let Entry { name, durable, read, write, .. } = entry;
        Ok(Wanted { name, document, rights: Rights { read, write }, durable })
    });
    let all = all.collect::<Result<Vec<_>, Failure>>()?;
    let names = all.iter().map(|wanted| wanted.name.clone()).collect();
    Ok((all, Watched { path: path.to_owned(), modified, names }))
}

/// The contexts of a file, as a service: durable ones as they were announced last, the others anew.
pub(super) fn hold(
    path: &Path,
    peers: &[(String, PeerId)],
    doorbell: Doorbell,
) -> Result<(ContextOwner, Deletions), Failure> {
    let modified = modified(path);
    let File { store: named, contexts } = read(path)?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let kept_in = store(path, named);
    let database = if contexts.iter().any(|entry| entry.durable) || kept_in.exists() {
        Some(Database::open(&kept_in).map_err(Failure::failed)?)
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
        let created = entry.incarnation()?;
        let kept = match &database {
            Some(database) if entry.durable => {
                database.load(&entry.name, entry.kind, created).map_err(Failure::failed)?
            }
            _ => None,
        };
        let it = match kept {
            Some(Kept { stamp, document, past }) => Held { stamp, past, ..new_held(entry, document, 0) },
            None => {
                let document = first_document(entry, beside).map_err(Failure::Usage)?;
                let incarnation = created.map_or_else(incarnation, Ok).map_err(Failure::Failed)?;
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
    // Those that applications created while a file was served, and that the file does not have.
    for (name, held) in database.as_ref().map(Database::held).transpose().map_err(Failure::failed)?.unwrap_or_default()
    {
        let _ = owner.hold(&name, held);
    }
    let store = Store::start(kept_in, database, contexts.len() + MAX_CONTEXTS, doorbell.clone());
    let store = Some(store.context("cannot start the store's thread").map_err(Failure::Failed)?);
    let (to_worker, deletions) = bounded(contexts.len());
    let names = contexts.into_iter().map(|entry| entry.name).collect();
    let owner = ContextOwner::new(owner, store, peers).with_deletions(deletions);
    let watched = Watched { path: path.to_owned(), modified, names };
    Ok((owner, Deletions { watched, to_worker, doorbell }))
}

impl Entry {
    fn incarnation(&self) -> Result<Option<u64>, Failure> {
        let Some(text) = &self.incarnation else { return Ok(None) };
        let wrong = |_| {
            Failure::Usage(anyhow!(
                "contexts.{}.incarnation: given {text:?}, allowed: 16 hexadecimal digits",
                self.name
            ))
        };
        u64::from_str_radix(text, 16).map(Some).map_err(wrong)
    }
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
    let rights = Rights { read: entry.read.clone(), write: entry.write.clone() };
    Held { durable: entry.durable, ..Held::new(document, incarnation, rights) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_taken_out_and_the_rest_stays() {
        let entry = |name: &str| format!("[[contexts]]\nname = \"{name}\"\nkind = \"log\"\n");
        let text = format!("# head\nstore = \"s\"\n\n{}\n# of b\n{}\n{}", entry("a"), entry("b"), entry("c"));
        let names = |text: &str| {
            let File { contexts, .. } = toml::from_str(text).unwrap();
            contexts.into_iter().map(|entry| entry.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&text), "a b c");
        for (place, left) in ["b c", "a c", "a b"].into_iter().enumerate() {
            let after = without(&text, place);
            assert_eq!(names(&after), left);
            assert!(after.starts_with("# head\nstore = \"s\"\n") && after.contains("# of b\n"), "{after}");
        }
        assert_eq!(without("contexts = []", 0), "contexts = []");
    }
}
