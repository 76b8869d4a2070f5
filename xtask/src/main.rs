//! The workspace's own commands, run as `cargo xtask COMMAND`.

mod command;
mod cpio;
mod error;
mod guest;
mod guest_target;
mod initramfs;
mod paths;
mod progress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::Result;
use paths::Paths;

/// Build guests, boot them, measure them, check everything
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Get the guest kernels into the cache, and build the guest's ramdisks
    Guest(guest::Arguments),
}

fn main() -> ExitCode {
    match run(&CommandLine::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error::print(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    let paths = Paths::find()?;
    match task {
        Task::Guest(arguments) => guest::run(arguments, &paths),
    }
}
