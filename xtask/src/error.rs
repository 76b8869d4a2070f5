//! What can go wrong in a task, and how it is said.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Any failure of a task.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why it could not be started.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` ended with {status}{output}")]
    Program {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, with a line break before it, or nothing.
        output: String,
    },
    /// The task cannot go on; the text says what to do.
    #[error("{0}")]
    Advice(String),
    /// Some parts of a task failed; each has been reported already.
    #[error("{0}")]
    Failed(String),
}

/// A task's outcome.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Adds the file and what was tried to an I/O error.
pub(crate) trait FileContext<T> {
    /// Turns the error into [`Error::File`].
    fn file(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> FileContext<T> for io::Result<T> {
    fn file(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File { action, path: path.to_owned(), source })
    }
}

/// Prints an error with its causes, one a line.
pub(crate) fn print(error: &Error) {
    eprintln!("xtask: error: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
