//! What a command prints: text for people, or JSON lines.

use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::{Failure, hint};

/// Standard output, in one of both forms.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints an event: as JSON, or the text that `text` makes of it. A reader that has gone away is no reason to fail: the
    /// node goes on.
    pub(super) fn event(&self, event: &impl Serialize, text: impl FnOnce() -> Option<String>) {
        let line = if self.json { serde_json::to_string(event).ok() } else { text() };
        if let Some(line) = line {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    pub(super) fn failure(&self, failure: &Failure) -> ExitCode {
        let (code, text, (name, hint)) = match failure {
            Failure::Usage(error) => {
                let (name, hint) = hint::of(error);
                (2, in_words(error), (name, hint.or(Some(hint::OF_USAGE))))
            }
            Failure::Failed(error) => (1, in_words(error), hint::of(error)),
            Failure::Interrupted => (130, "interrupted".to_owned(), (None, None)),
        };
        if self.json {
            let event =
                serde_json::json!({"event": "error", "error": text, "exit_code": code, "code": name, "hint": hint});
            self.event(&event, || None);
        }
        eprintln!("pilot: {text}");
        hint.into_iter().for_each(|hint| eprintln!("hint: {hint}"));
        ExitCode::from(code)
    }
}

/// An error and its causes, each unless the words before end with it already: errors of ours quote the system's.
fn in_words(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") })
}
