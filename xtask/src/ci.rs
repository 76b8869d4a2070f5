//! Everything that must hold before a change lands, in one command that reports all failures at once.

use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::boot_test;
use crate::command::{self, shown};
use crate::error::{self, Error, FileContext, Result};
use crate::fuzz;
use crate::kvm_test;
use crate::paths::{Paths, cargo};
use crate::verifier;
use crate::vsock_test;

/// The variable under which tests rewrite their expected outputs.
const BLESS: &str = "VMM_BLESS";

/// The variable under which `soft-cpu`'s tests run programs, and the comparison with the host, as translated code.
const COMPARE_TRANSLATED: &str = "VMM_COMPARE_TRANSLATE";

/// The package that compares our EIF reader with AWS's own; a workspace of its own, since it builds for minutes.
const AWS_EIF: &str = "tests/aws-eif/Cargo.toml";

/// The small kernel's four boots again and again, 20 in all: how often, and with how many processors each.
const REPEATED_BOOTS: [(&str, NonZeroU32, Option<NonZeroU32>); 2] =
    [("boots x3", NonZeroU32::new(3).unwrap(), None), ("4-cpu x2", NonZeroU32::new(2).unwrap(), NonZeroU32::new(4))];

/// `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also compare our EIF reader with AWS's own crate, fuzz every parser for a minute, have an
    /// independent verifier judge attestation documents, boot both kernels in lockstep, and the small one again and again,
    /// also on KVM with every choice of interrupt controllers
    #[arg(long)]
    long: bool,
    /// Leave the boots out, for machines on which no guest kernel can be had
    #[arg(long)]
    no_boot: bool,
}

/// One step and how it went.
struct Step {
    name: &'static str,
    took: Duration,
    passed: bool,
}

/// Runs every step, whatever became of those before.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    let workspace = paths.workspace.as_path();
    let mut steps = vec![
        step("format", || cargo_step(workspace, &["fmt", "--all", "--check"])),
        step("clippy", || {
            cargo_step(workspace, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"])
        }),
        step("tests", || cargo_step(workspace, &["test", "--workspace", "--quiet"])),
        // The tests run the processor's programs by the interpreter, and compare that with the host; this does both with translated code.
        step("translator", || {
            let arguments = ["test", "--package", "soft-cpu", "--quiet"];
            announce_and_run(cargo().current_dir(workspace).args(arguments).env(COMPARE_TRANSLATED, "1"))
        }),
    ];
    steps.push(step("no translator", || without_translator(arguments, paths)));
    if arguments.long {
        // Its target directory is its own, or the two workspaces would rebuild one another's dependencies.
        let directory = paths.target.join("aws-eif");
        let mut test = cargo();
        test.current_dir(workspace)
            .args(["test", "--quiet", "--manifest-path", AWS_EIF, "--target-dir"])
            .arg(directory);
        steps.push(step("aws-eif", || announce_and_run(&mut test)));
        steps.push(step("fuzz", || fuzz::run(&fuzz::Arguments::briefly(), paths)));
    }
    if !arguments.no_boot {
        let traffic = vsock_test::Arguments::all(arguments.long);
        steps.push(step("vsock-test", || vsock_test::run(&traffic, paths)));
        steps.push(step("kvm-test", || kvm_test::run(&kvm_test::Arguments::of(arguments.long), paths)));
        steps.push(step("boot-test", || boot_test::run(&boot_test::Arguments::whole_matrix(), paths)));
    }
    if arguments.long && !arguments.no_boot {
        steps.push(step("verifier", || verifier::run(paths)));
        for kernel in ["small", "stock"] {
            let boot = boot_test::Arguments::in_lockstep(kernel);
            steps.push(step("lockstep", || boot_test::run(&boot, paths)));
        }
        for (name, repeat, cpus) in REPEATED_BOOTS {
            let boots = boot_test::Arguments::small_kernel(repeat, cpus);
            steps.push(step(name, || boot_test::run(&boots, paths)));
        }
    }
    summarize(&steps)
}

/// Runs the tests so that they write what they expect, and shows what that changed.
pub(crate) fn bless(paths: &Paths) -> Result<()> {
    command::run(cargo().current_dir(&paths.workspace).args(["test", "--workspace", "--quiet"]).env(BLESS, "1"))?;
    println!("goldens are regenerated; what changed in the working tree:");
    command::run(Command::new("git").arg("-C").arg(&paths.workspace).args(["status", "--short"]))
}

/// The build that has only the interpreter: the processor's tests, and a boot.
fn without_translator(arguments: &Arguments, paths: &Paths) -> Result<()> {
    let workspace = paths.workspace.as_path();
    let packages = ["--package", "soft-cpu", "--package", "accel-soft", "--no-default-features", "--quiet"];
    announce_and_run(cargo().current_dir(workspace).arg("test").args(packages))?;
    if arguments.no_boot {
        return Ok(());
    }
    let build = ["build", "--release", "--package", "vmm", "--no-default-features", "--quiet", "--target-dir"];
    announce_and_run(cargo().current_dir(workspace).args(build).arg(&paths.target))?;
    // The same target directory has all that the two builds share; whoever builds next puts the usual launcher in its place again.
    let (built, kept) = (paths.target.join("release/vmm"), paths.target.join("vmm-without-translator"));
    std::fs::copy(&built, &kept).file("copy to", &kept)?;
    boot_test::run(&boot_test::Arguments::small_kernel_on(kept), paths)
}

fn cargo_step(workspace: &Path, arguments: &[&str]) -> Result<()> {
    announce_and_run(cargo().current_dir(workspace).args(arguments))
}

fn announce_and_run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    command::run(command)
}

fn step(name: &'static str, work: impl FnOnce() -> Result<()>) -> Step {
    println!("==> {name}");
    let start = Instant::now();
    let outcome = work();
    if let Err(error) = &outcome {
        error::print(error);
    }
    Step { name, took: start.elapsed(), passed: outcome.is_ok() }
}

fn summarize(steps: &[Step]) -> Result<()> {
    println!();
    for step in steps {
        let outcome = if step.passed { "ok    " } else { "FAILED" };
        println!("{outcome} {:<13} {:6.1} s", step.name, step.took.as_secs_f64());
    }
    let failed: Vec<&str> = steps.iter().filter(|step| !step.passed).map(|step| step.name).collect();
    println!("\n{} passed, {} failed", steps.len() - failed.len(), failed.len());
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(format!("failed: {}", failed.join(", ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failed_step_is_named() {
        let steps = [
            step("format", || Err(Error::Failed("one".to_owned()))),
            step("clippy", || Ok(())),
            step("tests", || Err(Error::Failed("two".to_owned()))),
        ];
        let error = summarize(&steps).expect_err("two failures");
        assert_eq!(error.to_string(), "failed: format, tests");
    }
}
