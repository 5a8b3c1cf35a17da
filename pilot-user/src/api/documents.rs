//! Documents and changes of shared contexts as JSON, which requests and events have them in (local-protocol.md §3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::protocol::{Code, Error};
use crate::context::{Change, ChangeError, Document, Kind};

/// A change as an application asks for it: it says itself how its text is to be read, because who writes a document need not
/// know its kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub(crate) struct Asked(pub(crate) Change);

/// How bytes are written in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum As {
    /// As the value that they are the JSON of.
    Json,
    /// As a string.
    Text,
    /// As a string in base64.
    Base64,
}

#[derive(Serialize, Deserialize)]
struct Form {
    #[serde(flatten)]
    operation: Operation,
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    written_as: Option<As>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    Replace(Value),
    Merge(Value),
    Patch(Patch),
    Append(Value),
    Edit { offset: u64, removed: u64, inserted: String },
    Write { offset: u64, bytes: Value },
    Values(Vec<Vec<Value>>),
}

/// A document, as `context_create` has it.
///
/// # Errors
/// When it is none of this kind.
pub(crate) fn document(kind: Kind, given: &Value) -> Result<Document, Error> {
    Document::decode(kind, &bytes(given, As::of(kind)).map_err(Error::malformed)?).map_err(|error| match error {
        ChangeError::TooLong => Error::new(Code::TooLong, error.to_string()),
        _ => Error::malformed(format!("document: {error}")),
    })
}

/// JSON as it is, text as a string, bytes in base64.
pub(crate) fn document_to_json(document: &Document) -> Value {
    if let Some(json) = document.as_json() {
        return json.clone();
    }
    let mut bytes = Vec::with_capacity(document.bound());
    document.encode(&mut bytes);
    value(&bytes, As::of(document.kind()))
}

/// A change to a document of a kind, as the event `changed` has it.
pub(crate) fn change_to_json(change: &Change, kind: Kind) -> Vec<u8> {
    // It can always be written: keys are strings.
    serde_json::to_vec(&Operation::of(change, As::of(kind))).unwrap_or_default()
}

/// From what [`change_to_json`] gave.
///
/// # Errors
/// In words, when it is no change.
pub(crate) fn change_from_json(json: &[u8], kind: Kind) -> Result<Change, String> {
    let operation: Operation = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    operation.change(As::of(kind))
}

impl As {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Json => Self::Json,
            Kind::Text | Kind::Log => Self::Text,
            Kind::Bytes => Self::Base64,
        }
    }
}

impl Operation {
    fn of(change: &Change, written_as: As) -> Self {
        match change {
            Change::Replace(bytes) => Self::Replace(value(bytes, written_as)),
            Change::Merge(patch) => Self::Merge(patch.clone()),
            Change::Patch(patch) => Self::Patch(patch.clone()),
            Change::Append(bytes) => Self::Append(value(bytes, written_as)),
            Change::Edit { offset, removed, inserted } => {
                Self::Edit { offset: *offset, removed: *removed, inserted: inserted.clone() }
            }
            Change::Write { offset, bytes } => Self::Write { offset: *offset, bytes: value(bytes, As::Base64) },
            Change::Values(values) => Self::Values(
                values
                    .iter()
                    .map(|(pointer, value)| {
                        [Some(pointer.as_str().into()), value.clone()].into_iter().flatten().collect()
                    })
                    .collect(),
            ),
        }
    }

    fn change(self, written_as: As) -> Result<Change, String> {
        Ok(match self {
            Self::Replace(value) => Change::Replace(bytes(&value, written_as)?),
            Self::Merge(patch) => Change::Merge(patch),
            Self::Patch(patch) => Change::Patch(patch),
            Self::Append(value) => Change::Append(bytes(&value, written_as)?),
            Self::Edit { offset, removed, inserted } => Change::Edit { offset, removed, inserted },
            Self::Write { offset, bytes: value } => Change::Write { offset, bytes: bytes(&value, As::Base64)? },
            Self::Values(values) => Change::Values(values.into_iter().map(pair).collect::<Result<_, _>>()?),
        })
    }
}

impl TryFrom<Form> for Asked {
    type Error = String;

    fn try_from(Form { operation, written_as }: Form) -> Result<Self, String> {
        let otherwise = if let Operation::Replace(_) = operation { As::Json } else { As::Text };
        operation.change(written_as.unwrap_or(otherwise)).map(Self)
    }
}

impl From<Asked> for Form {
    fn from(Asked(change): Asked) -> Self {
        let written_as = match &change {
            Change::Replace(bytes) | Change::Append(bytes) => {
                Some(if std::str::from_utf8(bytes).is_ok() { As::Text } else { As::Base64 })
            }
            _ => None,
        };
        Self { operation: Operation::of(&change, written_as.unwrap_or(As::Json)), written_as }
    }
}

/// Bytes that are what they are said to be: a document is checked before it is held, a change as it is made.
fn value(bytes: &[u8], written_as: As) -> Value {
    match written_as {
        As::Json => serde_json::from_slice(bytes).unwrap_or_default(),
        As::Text => String::from_utf8_lossy(bytes).into(),
        As::Base64 => STANDARD.encode(bytes).into(),
    }
}

fn bytes(value: &Value, written_as: As) -> Result<Vec<u8>, String> {
    match (written_as, value) {
        (As::Json, value) => Ok(serde_json::to_vec(value).unwrap_or_default()),
        (As::Text, Value::String(text)) => Ok(text.clone().into_bytes()),
        (As::Base64, Value::String(text)) => STANDARD.decode(text).map_err(|error| format!("base64: {error}")),
        (As::Text | As::Base64, other) => Err(format!("given {other}, allowed: a string")),
    }
}

fn pair(pair: Vec<Value>) -> Result<(String, Option<Value>), String> {
    let mut pair = pair.into_iter();
    match (pair.next(), pair.next(), pair.next()) {
        (Some(Value::String(pointer)), value, None) => Ok((pointer, value)),
        _ => Err("values are pairs of a pointer and a value".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(json: Value) -> Result<Change, serde_json::Error> {
        serde_json::from_value::<Asked>(json).map(|Asked(change)| change)
    }

    /// local-protocol.md §3: what a program writes, and what the node makes of it.
    #[test]
    fn changes_are_read_as_they_say() {
        for (given, change) in [
            (json!({"replace": {"b": 1, "a": []}}), Change::Replace(br#"{"a":[],"b":1}"#.to_vec())),
            (json!({"replace": "text"}), Change::Replace(br#""text""#.to_vec())),
            (json!({"replace": "text", "as": "text"}), Change::Replace(b"text".to_vec())),
            (json!({"replace": "AP8=", "as": "base64"}), Change::Replace(vec![0, 255])),
            (json!({"merge": {"a": null}}), Change::Merge(json!({"a": null}))),
            (json!({"append": "ä"}), Change::Append("ä".as_bytes().to_vec())),
            (json!({"append": "AP8=", "as": "base64"}), Change::Append(vec![0, 255])),
            (
                json!({"edit": {"offset": 1, "removed": 2, "inserted": "x"}}),
                Change::Edit { offset: 1, removed: 2, inserted: "x".into() },
            ),
            (json!({"write": {"offset": 1, "bytes": "AP8="}}), Change::Write { offset: 1, bytes: vec![0, 255] }),
        ] {
            assert_eq!(asked(given.clone()).unwrap(), change, "{given}");
            // And what the library writes is read as the same.
            assert_eq!(asked(serde_json::to_value(Asked(change.clone())).unwrap()).unwrap(), change, "{given}");
        }
        let unlike_any = Change::Replace(vec![0xff, 0xfe]);
        assert_eq!(asked(serde_json::to_value(Asked(unlike_any.clone())).unwrap()).unwrap(), unlike_any);
        for wrong in [
            json!({}),
            json!({"burn": 1}),
            json!({"append": 7}),
            json!({"append": "!", "as": "base64"}),
            json!({"replace": 1, "as": "hex"}),
            json!({"patch": [{"op": "burn", "path": ""}]}),
            json!({"write": {"offset": -1, "bytes": ""}}),
            json!({"values": [[]]}),
        ] {
            assert!(asked(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn followers_are_told_by_the_kind_of_the_document() {
        for (kind, change, written) in [
            (Kind::Json, Change::Replace(b"[1.5]".to_vec()), json!({"replace": [1.5]})),
            (Kind::Text, Change::Replace(b"[1.5]".to_vec()), json!({"replace": "[1.5]"})),
            (Kind::Bytes, Change::Append(vec![0]), json!({"append": "AA=="})),
            (Kind::Log, Change::Append(b"x".to_vec()), json!({"append": "x"})),
            (
                Kind::Json,
                Change::Values(vec![("/a".into(), None), ("/b".into(), Some(Value::Null))]),
                json!({"values": [["/a"], ["/b", null]]}),
            ),
        ] {
            let json = change_to_json(&change, kind);
            assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), written);
            assert_eq!(change_from_json(&json, kind).unwrap(), change);
        }
    }
}
