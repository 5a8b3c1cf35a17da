//! Changes and documents as people and language models read them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::change::Change;

impl Change {
    /// As one JSON object, whose one member names the operation; bytes that are no UTF-8 in base64.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Replace(bytes) => json!({"replace": json_or_text(bytes)}),
            Self::Merge(patch) => json!({"merge": patch}),
            // It can always be written: keys are strings.
            Self::Patch(patch) => json!({"patch": serde_json::to_value(patch).unwrap_or_default()}),
            Self::Append(bytes) => json!({"append": text(bytes)}),
            Self::Edit { offset, removed, inserted } => {
                json!({"edit": {"offset": offset, "removed": removed, "inserted": inserted}})
            }
            Self::Write { offset, bytes } => json!({"write": {"offset": offset, "bytes": text(bytes)}}),
            Self::Values(values) => {
                let pairs = values.iter().map(|(pointer, value)| match value {
                    Some(value) => json!([pointer, value]),
                    None => json!([pointer]),
                });
                json!({"values": pairs.collect::<Vec<_>>()})
            }
        }
    }
}

fn json_or_text(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| text(bytes))
}

fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| json!({"base64": STANDARD.encode(bytes)}), Value::from)
}
