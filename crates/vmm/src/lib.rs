//! The launcher: command line and TOML in, a machine out, and its console on this terminal.
//!
//! [`main`] is the whole `vmm` command. Its parts: [`cli`] is the command line as typed, [`config`] makes it and the TOML file into one typed
//! [`config::Configuration`] or a list of every mistake, [`accel_probe`] chooses the processor backend, [`exit`] has the exit codes.
//!
//! Deliberately missing: a monitor, and everything that keeps several machines.

#![forbid(unsafe_code)]

pub mod accel_probe;
pub mod attest;
pub mod cli;
pub mod config;
mod console;
pub mod exit;
mod machine;
mod report;
mod run;
mod signals;
pub mod statistics;

use cli::{Command, CommandLine};
use exit::ExitStatus;
pub use report::error_text;
pub use run::{LaunchError, launch};

/// The `vmm` command: parses this process's arguments, runs the machine, prints what went wrong, and says how to exit.
pub fn main() -> ExitStatus {
    signals::install_panic_hook();
    let command_line = CommandLine::parse_arguments();
    report::start_log(command_line.verbose);
    match &command_line.command {
        Some(Command::Attest(command)) => {
            return attest::run(command).unwrap_or_else(|error| {
                eprintln!("{}", error_text(&error));
                ExitStatus::Failed
            });
        }
        Some(Command::Console { socket }) => {
            return console::follow(socket).map_or_else(
                |error| {
                    eprintln!("vmm: error: cannot read the console at {}\n  1: {error}", socket.display());
                    ExitStatus::Failed
                },
                |()| ExitStatus::PoweredOff,
            );
        }
        None => {}
    }
    launch(&command_line).unwrap_or_else(|error| {
        console::terminal::restore();
        eprintln!("{}", error_text(&error));
        error.status()
    })
}
