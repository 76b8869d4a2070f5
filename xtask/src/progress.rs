//! One line that tells how a long step is getting on.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line changes where it can be overwritten.
const ON_TERMINAL: Duration = Duration::from_millis(200);

/// How often a new line is written where it cannot.
const ON_FILE: Duration = Duration::from_secs(15);

/// A progress line on stderr.
pub(crate) struct Progress {
    what: String,
    start: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Starts the line.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let mut progress =
            Self { what: what.into(), start: Instant::now(), shown: None, terminal: std::io::stderr().is_terminal() };
        progress.update("...");
        progress
    }

    /// Shows how far it is, if the last time is long enough ago.
    pub(crate) fn update(&mut self, state: &str) {
        let period = if self.terminal { ON_TERMINAL } else { ON_FILE };
        if self.shown.is_some_and(|shown| shown.elapsed() < period) {
            return;
        }
        self.shown = Some(Instant::now());
        self.show(state, if self.terminal { "\r" } else { "\n" });
    }

    /// Ends the line.
    pub(crate) fn done(self, result: &str) {
        self.show(result, "\n");
    }

    fn show(&self, state: &str, end: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let mut stderr = std::io::stderr().lock();
        // A progress line that cannot be shown is no reason to fail.
        let _ = write!(stderr, "{clear}{}: {state} ({:.0} s){end}", self.what, self.start.elapsed().as_secs_f64());
        let _ = stderr.flush();
    }
}
