//! A document of one of four kinds (`docs/context.md` C1.2), and how changes are applied to it: whole or not at all.

use std::fmt;

use json_patch::PatchOperation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::change::{self, Change, ChangeError};
use super::limits::{MAX_DOCUMENT_BYTES, MAX_JSON_DEPTH};
use super::pointer;

/// What a document is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A JSON value.
    Json = 1,
    /// UTF-8 that can be edited.
    Text = 2,
    /// UTF-8 that only grows.
    Log = 3,
    /// Bytes.
    Bytes = 4,
}

impl Kind {
    /// From its number in the protocol.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Json, Self::Text, Self::Log, Self::Bytes].into_iter().find(|kind| *kind as u8 == code)
    }

    /// The changes that a writer may ask for (C4.2), in words.
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Self::Json => "replace, merge patch, JSON patch",
            Self::Text => "replace, append, edit",
            Self::Log => "append",
            Self::Bytes => "replace, append, write",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Text => "text",
            Self::Log => "log",
            Self::Bytes => "bytes",
        })
    }
}

/// A document.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    kind: Kind,
    content: Content,
    /// No less than its length as it is sent: exact where that costs nothing, and for JSON since it was last measured.
    bound: usize,
}

#[derive(Clone, PartialEq, Debug)]
enum Content {
    Json(Value),
    Text(String),
    Bytes(Vec<u8>),
}

impl Document {
    /// The document that a new context has: an empty object, or nothing.
    pub fn empty(kind: Kind) -> Self {
        let content = match kind {
            Kind::Json => Content::Json(Value::Object(Default::default())),
            Kind::Text | Kind::Log => Content::Text(String::new()),
            Kind::Bytes => Content::Bytes(Vec::new()),
        };
        let bound = if kind == Kind::Json { "{}".len() } else { 0 };
        Self { kind, content, bound }
    }

    /// From what [`Document::encode`] gave, or a file with it.
    ///
    /// # Errors
    /// When it is none of this kind, or too long or too deep.
    pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, ChangeError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(ChangeError::TooLong);
        }
        let content = match kind {
            Kind::Json => Content::Json(change::json(bytes)?),
            Kind::Text | Kind::Log => Content::Text(change::text(bytes)?.to_owned()),
            Kind::Bytes => Content::Bytes(bytes.to_vec()),
        };
        let mut document = Self { kind, content, bound: bytes.len() }.checked()?;
        if kind == Kind::Json {
            // Numbers may be longer as they are sent: 1e9 is 1000000000.0 there.
            let mut encoded = Vec::with_capacity(bytes.len());
            document.encode(&mut encoded);
            document.bound = fits(encoded.len())?;
        }
        Ok(document)
    }

    /// The part of a JSON document at a pointer; null where there is nothing (C3.6).
    pub(super) fn part(&self, filter: &str) -> Self {
        let Content::Json(value) = &self.content else { return self.clone() };
        let content = Content::Json(value.pointer(filter).cloned().unwrap_or_default());
        Self { kind: self.kind, content, bound: self.bound.max("null".len()) }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The value of a JSON document.
    pub fn as_json(&self) -> Option<&Value> {
        if let Content::Json(value) = &self.content { Some(value) } else { None }
    }

    /// As it is sent: JSON without spaces and with the members of objects in the order of their names, or the bytes. Equal
    /// documents are equal bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.content {
            // It can always be written: keys are strings.
            Content::Json(value) => _ = serde_json::to_writer(out, value),
            Content::Text(text) => out.extend_from_slice(text.as_bytes()),
            Content::Bytes(bytes) => out.extend_from_slice(bytes),
        }
    }

    /// No less than the length of [`Document::encode`], and close to it.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// The first eight bytes of SHA-256 of it as it is sent (C3.8). Against accidents: who may change a document needs no
    /// collision to do it. Measures the document by the way.
    pub fn hash(&mut self) -> [u8; 8] {
        let mut encoded = Vec::with_capacity(self.bound);
        self.encode(&mut encoded);
        self.bound = encoded.len();
        let digest = Sha256::digest(&encoded);
        std::array::from_fn(|at| digest[at])
    }

    /// Applies a change that is so many bytes when it is sent. C4.1: on an error, the document is as it was.
    ///
    /// # Errors
    /// Why it cannot be applied.
    pub fn apply(&mut self, change: &Change, encoded_bytes: usize) -> Result<(), ChangeError> {
        let wrong_kind = ChangeError::Kind { change: change.name(), kind: self.kind };
        match (&mut self.content, change) {
            (_, Change::Replace(bytes)) if self.kind != Kind::Log => *self = Self::decode(self.kind, bytes)?,
            (Content::Json(value), Change::Merge(patch)) => {
                if pointer::depth(patch) > MAX_JSON_DEPTH {
                    return Err(ChangeError::TooDeep);
                }
                // It adds no more than it is long itself.
                if self.bound + encoded_bytes <= MAX_DOCUMENT_BYTES {
                    json_patch::merge(value, patch);
                    self.bound += encoded_bytes;
                } else {
                    self.apply_to_copy(|value| {
                        json_patch::merge(value, patch);
                        Ok(())
                    })?;
                }
            }
            (Content::Json(_), Change::Patch(patch)) => {
                let bound = self.bound;
                self.apply_to_copy(|value| patch_operations(value, patch, bound))?;
            }
            (Content::Json(value), Change::Values(values)) => {
                check_values(values)?;
                // Every token on the way to a value may become an object: `"":{},` for a `/`.
                let grows = encoded_bytes.saturating_mul(6);
                let put_all = |value: &mut Value| {
                    values.iter().for_each(|(pointer, put)| pointer::put(value, pointer, put.clone()));
                };
                if self.bound.saturating_add(grows) <= MAX_DOCUMENT_BYTES {
                    put_all(value);
                    self.bound += grows;
                } else {
                    self.apply_to_copy(|value| {
                        put_all(value);
                        Ok(())
                    })?;
                }
            }
            (Content::Text(text), Change::Append(bytes)) => {
                let added = change::text(bytes)?;
                self.bound = fits(text.len() + added.len())?;
                text.push_str(added);
            }
            (Content::Text(text), Change::Edit { offset, removed, inserted }) if self.kind == Kind::Text => {
                let range = edited(text, *offset, *removed)?;
                self.bound = fits(text.len() - range.len() + inserted.len())?;
                text.replace_range(range, inserted);
            }
            (Content::Bytes(bytes), Change::Append(added)) => {
                self.bound = fits(bytes.len() + added.len())?;
                bytes.extend_from_slice(added);
            }
            (Content::Bytes(bytes), Change::Write { offset, bytes: written }) => {
                let start = usize::try_from(*offset).ok().filter(|start| *start <= bytes.len());
                let start = start.ok_or_else(|| {
                    ChangeError::DoesNotApply(format!("a write at {offset}: the document has {} bytes", bytes.len()))
                })?;
                let end = start + written.len();
                self.bound = fits(bytes.len().max(end))?;
                bytes.resize(self.bound, 0);
                bytes[start..end].copy_from_slice(written);
            }
            _ => return Err(wrong_kind),
        }
        Ok(())
    }

    /// Changes a copy, and takes it if it is within the limits.
    fn apply_to_copy(&mut self, change: impl FnOnce(&mut Value) -> Result<(), ChangeError>) -> Result<(), ChangeError> {
        let mut copy = self.clone();
        if let Content::Json(value) = &mut copy.content {
            change(value)?;
        }
        let mut encoded = Vec::with_capacity(copy.bound);
        // Before it is written: that goes as deep as the document.
        let mut copy = copy.checked()?;
        copy.encode(&mut encoded);
        copy.bound = fits(encoded.len())?;
        *self = copy;
        Ok(())
    }

    fn checked(self) -> Result<Self, ChangeError> {
        match &self.content {
            Content::Json(value) if pointer::depth(value) > MAX_JSON_DEPTH => Err(ChangeError::TooDeep),
            _ => Ok(self),
        }
    }
}

/// Applies one operation after the other to a value of at most `bound` bytes. Copies add up to no more than a document may
/// have, because a list that is copied into itself doubles each time.
fn patch_operations(value: &mut Value, patch: &[PatchOperation], mut bound: usize) -> Result<(), ChangeError> {
    for (number, operation) in patch.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation
            && let Some(copied) = value.pointer(copy.from.as_str())
        {
            let mut counted = Vec::new();
            // It can always be written: keys are strings.
            _ = serde_json::to_writer(&mut counted, copied);
            bound = fits(bound + counted.len())?;
        }
        json_patch::patch_unsafe(value, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = number;
            ChangeError::DoesNotApply(error.to_string())
        })?;
    }
    Ok(())
}

fn fits(length: usize) -> Result<usize, ChangeError> {
    if length <= MAX_DOCUMENT_BYTES { Ok(length) } else { Err(ChangeError::TooLong) }
}

fn check_values(values: &[(String, Option<Value>)]) -> Result<(), ChangeError> {
    for (pointer, value) in values {
        if !pointer::is_pointer(pointer) {
            return Err(ChangeError::Malformed(format!("{pointer:?} is no JSON pointer")));
        }
        if pointer.matches('/').count() + value.as_ref().map_or(0, pointer::depth) > MAX_JSON_DEPTH {
            return Err(ChangeError::TooDeep);
        }
    }
    Ok(())
}

fn edited(text: &str, offset: u64, removed: u64) -> Result<std::ops::Range<usize>, ChangeError> {
    let length = text.len();
    let range = usize::try_from(offset).ok().zip(offset.checked_add(removed).and_then(|end| usize::try_from(end).ok()));
    let (start, end) = range.filter(|(_, end)| *end <= length).ok_or_else(|| {
        ChangeError::DoesNotApply(format!("an edit of {removed} bytes at {offset}: the text has {length} bytes"))
    })?;
    if !text.is_char_boundary(start) || !text.is_char_boundary(end) {
        return Err(ChangeError::DoesNotApply(format!(
            "an edit of bytes {start} to {end}: they cut a character in two"
        )));
    }
    Ok(start..end)
}
