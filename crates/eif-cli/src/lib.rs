//! The `eif` command: makes, describes, measures, signs and compares enclave images. Thin over the `eif` crate.
//!
//! What a user asks for goes to standard output, as a table on a terminal and as JSON with `--json`; everything else goes to
//! standard error. A file that is written appears whole or not at all.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod error;
mod files;
mod output;
mod progress;

use std::process::ExitCode;

pub use cli::CommandLine;
pub use error::{Error, error_text};

/// What a command found, which its exit code tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was done; the image is right; the images measure the same. Code 0.
    Yes,
    /// The image is not right; the images measure differently. Code 3.
    No,
}

/// Runs the command with this process's arguments. Codes: 0 and 3 as of [`Answer`], 1 for a failure, 2 for a wrong command line.
pub fn main() -> ExitCode {
    let arguments = CommandLine::parse_arguments();
    match commands::run(&arguments, &mut std::io::stdout().lock()) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(3),
        // Whoever read our output has seen enough, such as `head`.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error_text(&error));
            ExitCode::FAILURE
        }
    }
}
