//! What is logged during a test: during a simulation, there must be no warning and no error.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Level;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Collects what this thread logs while it lives.
pub struct Watch {
    text: Text,
    _guard: DefaultGuard,
}

impl Watch {
    /// Begins to collect what is WARN or ERROR. Nodes that are honest give each other no reason for either: a warning about
    /// a peer that broke the protocol means that one of the two has a bug.
    pub fn begin() -> Self {
        Self::at(Level::WARN)
    }

    /// Begins to collect what is of this level or worse.
    pub fn at(level: Level) -> Self {
        let text = Text::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .without_time()
            .with_writer(text.clone())
            .finish();
        Self { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was logged so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock()).into_owned()
    }
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Text {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_are_collected_and_the_rest_is_not() {
        let watch = Watch::begin();
        tracing::info!("all is well");
        assert_eq!(watch.text(), "");
        tracing::warn!(peer = 7, "broke the protocol");
        tracing::error!("lost a chunk");
        let text = watch.text();
        assert!(text.contains("broke the protocol") && text.contains("lost a chunk"), "{text}");
    }
}
