//! Changes as arguments of `pilot ctx set` and `pilot ctx patch`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::super::Failure;
use crate::context::{Change, Stamp};

/// A condition on the version.
#[derive(Args, Debug)]
pub(super) struct Condition {
    /// Only if the document is at this version, as it is printed: INCARNATION:VERSION.
    #[arg(long, value_name = "STAMP")]
    if_version: Option<String>,
}

#[derive(Args, Debug)]
pub(in super::super) struct SetArgs {
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    condition: Condition,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Content {
    /// The new document.
    #[arg(long)]
    text: Option<String>,
    /// A file with the new document.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(in super::super) struct PatchArgs {
    #[command(flatten)]
    operation: Operation,
    /// For --edit: how many bytes go.
    #[arg(long, value_name = "BYTES", default_value_t = 0, requires = "edit")]
    remove: u64,
    /// For --edit and --write: what comes there.
    #[arg(long, default_value = "")]
    text: String,
    #[command(flatten)]
    condition: Condition,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Operation {
    /// A JSON merge patch (RFC 7396), such as {"anomalies": 48}.
    #[arg(long, value_name = "JSON")]
    merge: Option<String>,
    /// A JSON patch (RFC 6902), such as [{"op": "add", "path": "/tasks/-", "value": "rest"}].
    #[arg(long, value_name = "JSON")]
    json_patch: Option<String>,
    /// Text to put at the end.
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
    /// Replace bytes of a text from this offset on.
    #[arg(long, value_name = "OFFSET")]
    edit: Option<u64>,
    /// Write over bytes from this offset on.
    #[arg(long, value_name = "OFFSET")]
    write: Option<u64>,
}

impl Condition {
    fn stamp(&self) -> Result<Option<Stamp>, Failure> {
        let Some(text) = &self.if_version else { return Ok(None) };
        let wrong =
            |_| anyhow!("--if-version: given {text:?}, allowed: INCARNATION:VERSION, as `pilot ctx show` prints it");
        text.parse().map(Some).map_err(|error| Failure::Usage(wrong(error)))
    }
}

impl SetArgs {
    pub(super) fn condition(&self) -> Result<Option<Stamp>, Failure> {
        self.condition.stamp()
    }

    pub(super) fn change(self) -> Result<Change, Failure> {
        match (self.content.text, self.content.file) {
            (Some(text), _) => Ok(Change::Replace(text.into_bytes())),
            (None, Some(file)) => {
                let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()));
                bytes.map(Change::Replace).map_err(Failure::Usage)
            }
            (None, None) => Err(Failure::Usage(anyhow!("given nothing, allowed: --text or --file"))),
        }
    }
}

impl PatchArgs {
    pub(super) fn condition(&self) -> Result<Option<Stamp>, Failure> {
        self.condition.stamp()
    }

    pub(super) fn change(self) -> Result<Change, Failure> {
        let Operation { merge, json_patch, append, edit, write } = self.operation;
        let (text, removed) = (self.text, self.remove);
        let merge = merge.map(|json| Change::merge(json.as_bytes()));
        let patch = || json_patch.map(|json| Change::patch(json.as_bytes()));
        let append = || append.map(|text| Ok(Change::Append(text.into_bytes())));
        let written = text.clone().into_bytes();
        let edit = || edit.map(|offset| Ok(Change::Edit { offset, removed, inserted: text }));
        let write = || write.map(|offset| Ok(Change::Write { offset, bytes: written }));
        let change = merge.or_else(patch).or_else(append).or_else(edit).or_else(write);
        match change {
            Some(change) => change.map_err(Failure::usage),
            None => Err(Failure::Usage(anyhow!("given nothing, allowed: an operation"))),
        }
    }
}
