//! What each subcommand does.

mod build;
mod describe;
mod diff;
mod extract;
mod generate;
mod pcr;
mod sign;
mod verify;

use std::io::Write;

use crate::Answer;
use crate::cli::{Command, CommandLine};
use crate::error::Error;

/// Does what the command line says. Answers go to `output`.
pub(crate) fn run(arguments: &CommandLine, output: &mut impl Write) -> Result<Answer, Error> {
    let json = arguments.json;
    match &arguments.command {
        Command::Describe(arguments) => describe::run(arguments, json, output),
        Command::Verify(arguments) => verify::run(arguments, json, output),
        Command::Pcr(arguments) => pcr::run(arguments, json, output),
        Command::Sign(arguments) => sign::run(arguments, json, output),
        Command::Extract(arguments) => extract::run(arguments, json, output),
        Command::Build(arguments) => build::run(arguments, json, output),
        Command::Diff(arguments) => diff::run(arguments, json, output),
        Command::Completions(arguments) => generate::completions(arguments, output),
        Command::Man => generate::man(output),
    }
}
