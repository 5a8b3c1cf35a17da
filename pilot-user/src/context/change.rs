//! What can be done to a document, and how it is written: an operation byte and its fields (`docs/context.md` §4).

use json_patch::Patch;
use pilot_engine::codec::{MAX_VARINT, Reader, put_varint};
use serde_json::Value;

use super::document::Kind;
use super::limits::{MAX_DOCUMENT_BYTES, MAX_JSON_DEPTH};

/// One change: applied as a whole or not at all (C4.1).
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// Another document of the same kind, as it is sent whole. Not of a log.
    Replace(Vec<u8>),
    /// A JSON merge patch (RFC 7396).
    Merge(Value),
    /// A JSON patch (RFC 6902).
    Patch(Patch),
    /// Bytes at the end. Not of JSON.
    Append(Vec<u8>),
    /// Of a text: `removed` bytes from byte `offset` on are replaced by `inserted`.
    Edit {
        /// Byte offset, between two characters.
        offset: u64,
        /// How many bytes go.
        removed: u64,
        /// What comes in their place.
        inserted: String,
    },
    /// Of bytes: these lie from byte `offset` on, over what was there and beyond its end.
    Write {
        /// Byte offset, at most the document's length.
        offset: u64,
        /// What is written.
        bytes: Vec<u8>,
    },
    /// Of JSON: what is at each of these JSON pointers now; `None`: nothing. No pointer lies within another, and what is not
    /// an object on the way to one becomes one. Made by owners, for followers that want the latest values or a part.
    Values(Vec<(String, Option<Value>)>),
}

/// Why a change, or a document, is not what it should be. The document is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be read.
    #[error("malformed change: {0}")]
    Malformed(String),
    /// Not for documents of this kind.
    #[error("{change} is not for a {kind} document; allowed: {}", kind.allowed())]
    Kind {
        /// What was given.
        change: &'static str,
        /// The document's kind.
        kind: Kind,
    },
    /// The document is not as the change needs it.
    #[error("the change does not fit the document: {0}")]
    DoesNotApply(String),
    /// The document would be too long.
    #[error("the document would have more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLong,
    /// The document would be too deep.
    #[error("objects and arrays more than {MAX_JSON_DEPTH} deep")]
    TooDeep,
}

impl Change {
    /// A merge patch from its text.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn merge(text: &[u8]) -> Result<Self, ChangeError> {
        Ok(Self::Merge(json(text)?))
    }

    /// A JSON patch from its text.
    ///
    /// # Errors
    /// When it is not a list of operations.
    pub fn patch(text: &[u8]) -> Result<Self, ChangeError> {
        Ok(Self::Patch(json(text)?))
    }

    /// The operation, in words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Replace(_) => "replace",
            Self::Merge(_) => "merge patch",
            Self::Patch(_) => "JSON patch",
            Self::Append(_) => "append",
            Self::Edit { .. } => "edit",
            Self::Write { .. } => "write",
            Self::Values(_) => "values",
        }
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// As it is sent, behind what is there.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        let plain = match self {
            Self::Replace(bytes) | Self::Append(bytes) | Self::Write { bytes, .. } => bytes.len(),
            Self::Edit { inserted, .. } => inserted.len(),
            Self::Merge(_) | Self::Patch(_) | Self::Values(_) => 0,
        };
        // An operation, and at most two offsets: allocated once.
        out.reserve(1 + 2 * 8 + plain);
        out.push(self.code());
        match self {
            Self::Replace(bytes) | Self::Append(bytes) => out.extend_from_slice(bytes),
            // Values and patches can always be written: their keys are strings.
            Self::Merge(value) => _ = serde_json::to_writer(out, value),
            Self::Patch(patch) => _ = serde_json::to_writer(out, patch),
            Self::Edit { offset, removed, inserted } => {
                put_varint(out, (*offset).min(MAX_VARINT));
                put_varint(out, (*removed).min(MAX_VARINT));
                out.extend_from_slice(inserted.as_bytes());
            }
            Self::Write { offset, bytes } => {
                put_varint(out, (*offset).min(MAX_VARINT));
                out.extend_from_slice(bytes);
            }
            Self::Values(values) => {
                // A pointer alone, or with its value: null is a value too.
                let pairs = values.iter().map(|(pointer, value)| {
                    let pointer = Value::from(pointer.as_str());
                    Value::Array([Some(pointer), value.clone()].into_iter().flatten().collect())
                });
                _ = serde_json::to_writer(out, &Value::Array(pairs.collect()));
            }
        }
    }

    /// From what was sent.
    ///
    /// # Errors
    /// In words, when it is no change.
    pub fn decode(encoded: &[u8]) -> Result<Self, ChangeError> {
        let (code, rest) = encoded.split_first().ok_or_else(|| malformed("it is empty"))?;
        let mut reader = Reader::new(rest);
        let ends = || malformed("it ends too early");
        Ok(match code {
            1 => Self::Replace(rest.to_vec()),
            2 => Self::merge(rest)?,
            3 => Self::patch(rest)?,
            4 => Self::Append(rest.to_vec()),
            5 => Self::Edit {
                offset: reader.varint().ok_or_else(ends)?,
                removed: reader.varint().ok_or_else(ends)?,
                inserted: text(reader.rest())?.to_owned(),
            },
            6 => Self::Write { offset: reader.varint().ok_or_else(ends)?, bytes: reader.rest().to_vec() },
            7 => Self::Values(json::<Vec<Value>>(rest)?.into_iter().map(pair).collect::<Result<_, _>>()?),
            _ => return Err(malformed(&format!("operation {code} is unknown"))),
        })
    }

    fn code(&self) -> u8 {
        match self {
            Self::Replace(_) => 1,
            Self::Merge(_) => 2,
            Self::Patch(_) => 3,
            Self::Append(_) => 4,
            Self::Edit { .. } => 5,
            Self::Write { .. } => 6,
            Self::Values(_) => 7,
        }
    }
}

fn pair(value: Value) -> Result<(String, Option<Value>), ChangeError> {
    let Value::Array(pair) = value else { return Err(malformed("values are not pairs")) };
    let mut pair = pair.into_iter();
    match (pair.next(), pair.next(), pair.next()) {
        (Some(Value::String(pointer)), value, None) => Ok((pointer, value)),
        _ => Err(malformed("values are not pairs")),
    }
}

fn malformed(why: &str) -> ChangeError {
    ChangeError::Malformed(why.to_owned())
}

pub(super) fn json<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, ChangeError> {
    serde_json::from_slice(text).map_err(|error| ChangeError::Malformed(error.to_string()))
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, ChangeError> {
    std::str::from_utf8(bytes).map_err(|_| malformed("the text is not UTF-8"))
}
