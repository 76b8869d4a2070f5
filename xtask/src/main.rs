//! The workspace's own commands, run as `cargo xtask COMMAND`.

mod attestation;
mod bench;
mod boot_test;
mod checks;
mod ci;
mod command;
mod demo;
mod error;
mod exit_codes;
mod fuzz;
mod guest;
mod guest_target;
mod image;
mod initramfs;
mod kvm_test;
mod launch;
mod parent;
mod paths;
mod progress;
mod report;
mod resident;
mod supervise;
mod verifier;
mod vsock_test;

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
    /// Boot an enclave image that reads its own measurements, and check them
    Demo(demo::Arguments),
    /// Boot every kernel on every machine and check what the guests saw
    BootTest(boot_test::Arguments),
    /// Boot the small kernel, without programs, on this host's KVM, also one that only emulates
    KvmTest(kvm_test::Arguments),
    /// Check format, lints, tests and boots, and report all failures at once
    Ci(ci::Arguments),
    /// Measure our boots and QEMU's side by side
    Bench(bench::Arguments),
    /// Feed every parser of strangers' bytes with inputs that nobody thought of
    Fuzz(fuzz::Arguments),
    /// Have an independent verifier judge a booted enclave's attestation documents
    Verifier,
    /// Boot enclaves and have the host talk to them over vsock
    VsockTest(vsock_test::Arguments),
    /// Let the tests rewrite the outputs they expect
    Bless,
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
        Task::Demo(arguments) => demo::run(arguments, &paths),
        Task::BootTest(arguments) => boot_test::run(arguments, &paths),
        Task::KvmTest(arguments) => kvm_test::run(arguments, &paths),
        Task::Ci(arguments) => ci::run(arguments, &paths),
        Task::Bench(arguments) => bench::run(arguments, &paths),
        Task::Fuzz(arguments) => fuzz::run(arguments, &paths),
        Task::Verifier => verifier::run(&paths),
        Task::VsockTest(arguments) => vsock_test::run(arguments, &paths),
        Task::Bless => ci::bless(&paths),
    }
}
