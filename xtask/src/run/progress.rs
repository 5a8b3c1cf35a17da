//! How the run tells where it is: a bar on a terminal, plain lines elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::report::thousands;

/// Plain lines per step: enough to see that it moves, few enough for a log.
const LINES: u64 = 4;

/// The one writer of the run's remarks: standard output belongs to the JSON object when there is one.
pub(crate) struct Say {
    pub(crate) json: bool,
}

impl Say {
    pub(crate) fn line(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }
}

/// One step's progress, of `total`. A bar disappears when dropped.
pub(crate) struct Progress<'a> {
    what: &'a str,
    total: u64,
    say: &'a Say,
    bar: Option<ProgressBar>,
    /// Plain lines printed so far.
    printed: Cell<u64>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(what: &'a str, total: u64, say: &'a Say) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg:7} {wide_bar} {human_pos} of {human_len}  {eta}")
                .expect("the template is a constant, and right");
            ProgressBar::new(total).with_style(style).with_message(what.to_owned())
        });
        Self { what, total, say, bar, printed: Cell::new(0) }
    }

    pub(crate) fn at(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if done * LINES >= self.total * (self.printed.get() + 1) {
            self.printed.set(done * LINES / self.total.max(1));
            self.say.line(&format!("{}: {} of {}", self.what, thousands(done), thousands(self.total)));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
