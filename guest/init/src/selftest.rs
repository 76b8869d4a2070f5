//! Exercises of the processor whose results are known, so that a wrong one shows as a wrong machine.
//!
//! Everything here is ordinary user-space work: integer and floating-point arithmetic, 32-bit code, memory, threads on every
//! processor, signals that interrupt arithmetic, processes. About 20 million instructions in all, so that it stays
//! bearable on an interpreter.

pub(crate) mod arithmetic;
mod compatibility;
mod concurrency;
mod signals;

use std::process::{Command, ExitCode};

use crate::console::Console;

/// The first argument with which the self-test starts this program again as a child process.
pub(crate) const CHILD_ARGUMENT: &str = "selftest-child";

/// What the child exits with.
const CHILD_EXIT_CODE: u8 = 42;

/// Runs every exercise, reports each and the sum of them as `selftest=ok` or `selftest=failed`.
pub(crate) fn run(console: &mut Console, cpus: usize) {
    let mut failed = 0;
    let mut record = |console: &mut Console, name: &str, outcome: Result<(), String>| match outcome {
        Ok(()) => console.report(&format!("selftest.{name}"), "ok"),
        Err(error) => {
            failed += 1;
            console.report(&format!("selftest.{name}"), error);
        }
    };
    record(console, "integer", arithmetic::integer());
    record(console, "float", arithmetic::float());
    record(console, "math", arithmetic::math());
    record(console, "decimal", arithmetic::decimal());
    record(console, "memory", arithmetic::memory());
    record(console, "sort", arithmetic::sort());
    record(console, "compatibility", compatibility::sort());
    for cpu in 0..cpus {
        record(console, &format!("cpu{cpu}"), concurrency::on_cpu(cpu));
    }
    record(console, "contention", concurrency::contention(cpus));
    record(console, "ping_pong", concurrency::ping_pong());
    record(console, "signals", signals::during_arithmetic());
    record(console, "process", process());
    console.report("selftest", if failed == 0 { "ok".to_owned() } else { format!("failed {failed}") });
}

/// The child process's whole work.
pub(crate) fn child() -> ExitCode {
    match arithmetic::integer() {
        Ok(()) => ExitCode::from(CHILD_EXIT_CODE),
        Err(_) => ExitCode::from(1),
    }
}

/// Starts this program a second time and waits for it.
fn process() -> Result<(), String> {
    let status = Command::new("/proc/self/exe").arg(CHILD_ARGUMENT).status().map_err(|error| error.to_string())?;
    expect("exit code", status.code(), Some(i32::from(CHILD_EXIT_CODE)))
}

/// Compares a result with what is right.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: found {found:x?}, expected {expected:x?}")) }
}
