//! What the agents work on: `benches/corpus`, whose README says where it comes from.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// The agents, in the order in which they first contribute.
pub(crate) const AGENTS: [&str; 3] = ["researcher", "writer", "reviewer"];
pub(crate) const RESEARCHER: usize = 0;
pub(crate) const WRITER: usize = 1;
pub(crate) const REVIEWER: usize = 2;

/// A change to what the agents share.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Change {
    /// Text for the end of the report.
    Append(String),
    /// An RFC 7396 patch of the facts.
    Merge(Value),
}

impl Change {
    /// What is new in it, as a model would be given it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Append(text) => text.clone(),
            Self::Merge(patch) => patch.to_string(),
        }
    }

    fn parse(line: &str) -> anyhow::Result<Self> {
        let mut value: Value = serde_json::from_str(line)?;
        match (value["append"].take(), value["merge"].take()) {
            (Value::String(text), Value::Null) => Ok(Self::Append(text)),
            (Value::Null, patch @ Value::Object(_)) => Ok(Self::Merge(patch)),
            _ => bail!("neither an append nor a merge: {line}"),
        }
    }
}

/// What the agents share: a report and, beside it, facts.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Shared {
    pub(crate) report: String,
    pub(crate) facts: Value,
}

impl Shared {
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Append(text) => self.report.push_str(text),
            Change::Merge(patch) => json_patch::merge(&mut self.facts, patch),
        }
    }

    /// All of it, as a model would be given it.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.report, self.facts)
    }
}

/// The corpus.
pub(crate) struct Corpus {
    /// The document and the facts, which the researcher has from the start.
    pub(crate) start: Shared,
    /// What each agent contributes.
    pub(crate) contributions: [Change; 3],
    /// What the researcher tells the others after that.
    pub(crate) updates: Vec<Change>,
}

impl Corpus {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let facts = serde_json::from_str(include_str!("../corpus/facts.json")).context("facts.json")?;
        let start = Shared { report: include_str!("../corpus/document.md").into(), facts };
        let texts = [
            include_str!("../corpus/researcher.md"),
            include_str!("../corpus/writer.md"),
            include_str!("../corpus/reviewer.md"),
        ];
        let contributions = texts.map(|text| Change::Append(text.into()));
        let lines = include_str!("../corpus/updates.jsonl").lines();
        let updates = lines.map(Change::parse).collect::<anyhow::Result<_>>().context("updates.jsonl")?;
        Ok(Self { start, contributions, updates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_what_its_readme_says() {
        let corpus = Corpus::load().unwrap();
        assert_eq!(corpus.updates.len(), 50);
        assert_eq!(corpus.updates[4].text(), "anomaly count updated to 48");
        assert_eq!(corpus.updates[4].text().len(), 27);
        let tokens = pilot_user::context::tokens::count(&corpus.start.report);
        assert!((2_700..=3_300).contains(&tokens), "{tokens} tokens");
    }

    #[test]
    fn a_change_is_an_append_or_a_merge() {
        assert_eq!(Change::parse(r#"{"append":"x"}"#).unwrap(), Change::Append("x".into()));
        assert!(Change::parse(r#"{"append":"x","merge":{}}"#).is_err());
        assert!(Change::parse(r#"{"merge":3}"#).is_err());
        let mut shared = Shared { report: "a".into(), facts: serde_json::json!({"n": 1, "m": 2}) };
        shared.apply(&Change::parse(r#"{"merge":{"n":3,"m":null}}"#).unwrap());
        shared.apply(&Change::parse(r#"{"append":"b"}"#).unwrap());
        assert_eq!(shared.text(), "ab\n{\"n\":3}");
    }
}
