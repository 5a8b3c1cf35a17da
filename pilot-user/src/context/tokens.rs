//! What a shared context costs a language model, and what it saves: a model that keeps its conversation is given the document
//! once and then each change, where without one it would be given the whole document again.
//!
//! Tokens are those of `o200k_base`, whose vocabulary is part of the program.

use super::change::Change;
use super::client::Replica;
use super::document::{Document, Kind};
use super::message::Stamp;

/// Text for a model's conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// To be appended to the conversation.
    pub text: String,
    /// How many tokens that is.
    pub tokens: u64,
}

/// What one model was given of one context.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Conversation {
    /// Tokens given, of documents and changes.
    pub given_tokens: u64,
    /// Bytes of that text.
    pub given_bytes: u64,
    /// Tokens that it would have been given with the whole document each time.
    pub resent_tokens: u64,
}

impl Conversation {
    /// The whole document: the beginning, or after [`super::Notice::Whole`]. Nothing of a document of bytes.
    pub fn render(&mut self, replica: &Replica) -> Given {
        let given = self.give(render(&replica.document));
        self.resent_tokens += given.tokens;
        given
    }

    /// A change, after which the document is what `replica` is: one line of JSON that names version and operation.
    pub fn delta(&mut self, change: &Change, replica: &Replica) -> Given {
        let given = self.give(delta(change, replica.stamp));
        self.resent_tokens += count(&render(&replica.document));
        given
    }

    fn give(&mut self, text: String) -> Given {
        let tokens = count(&text);
        self.given_tokens += tokens;
        self.given_bytes += text.len() as u64;
        Given { text, tokens }
    }
}

/// A change as a model reads it, that led to a version: one line of JSON behind the version.
pub fn delta(change: &Change, stamp: Stamp) -> String {
    format!("{} {}", stamp.version, change.to_json())
}

/// Tokens of a text.
pub fn count(text: &str) -> u64 {
    tiktoken_rs::o200k_base_singleton().count_ordinary(text) as u64
}

/// A document as a model reads it. Nothing of a document of bytes.
pub fn render(document: &Document) -> String {
    let mut bytes = Vec::with_capacity(document.bound());
    if document.kind() != Kind::Bytes {
        document.encode(&mut bytes);
    }
    // All other kinds are UTF-8.
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Stamp;

    /// What the published tokenizer says of its own examples.
    #[test]
    fn tokens_are_those_of_o200k_base() {
        for (text, tokens) in [("", 0), ("hello world", 2), ("anomaly count updated to 48", 7)] {
            assert_eq!(count(text), tokens, "{text:?}");
        }
        // Words of its own protocol are text like any other here.
        assert!(count("<|endoftext|>") > 1);
    }

    #[test]
    fn a_change_costs_what_it_is_and_not_the_document() {
        let text = format!(r#"{{"anomalies":47,"report":"{}"}}"#, "all quiet. ".repeat(500));
        let document = Document::decode(Kind::Json, text.as_bytes()).unwrap();
        let mut replica = Replica { stamp: Stamp { incarnation: 1, version: 0 }, document };
        let mut conversation = Conversation::default();
        let whole = conversation.render(&replica);
        assert_eq!((whole.text.as_str(), whole.tokens), (text.as_str(), count(&text)));
        let change = Change::merge(br#"{"anomalies":48}"#).unwrap();
        replica.document.apply(&change, change.encode().len()).unwrap();
        replica.stamp.version = 1;
        let delta = conversation.delta(&change, &replica);
        assert_eq!(delta.text, r#"1 {"merge":{"anomalies":48}}"#);
        assert_eq!(conversation.given_tokens, whole.tokens + delta.tokens);
        assert_eq!(conversation.given_bytes, (whole.text.len() + delta.text.len()) as u64);
        assert_eq!(conversation.resent_tokens, 2 * whole.tokens, "48 is as many tokens as 47");
        assert!(delta.tokens < 20, "{delta:?}");
    }
}
