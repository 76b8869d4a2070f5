//! Fuzzing: every parser of `tests/fuzz` under libFuzzer for some minutes, and what came of it.
//!
//! The coverage feedback comes from LLVM's SanitizerCoverage, which stable Rust compiles by codegen options; no sanitizer watches memory. What the
//! fuzzer learns stays in `target/fuzz/corpus` for the next time, and what breaks a parser is kept in `target/fuzz/findings`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{self, shown};
use crate::error::{Error, FileContext, Result};
use crate::guest_target::TRIPLE;
use crate::paths::{self, Paths, cargo};

/// The package with the parsers.
const PACKAGE: &str = "fuzz-targets";

/// Coverage of every edge, with the operands of comparisons, as `cargo fuzz` asks for it.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Seconds after which one input counts as a hang, and the most memory that one may take, in MiB.
const HANG: u32 = 10;
const MEMORY: u32 = 1024;

/// `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only the targets whose names contain this; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Minutes for each target
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// Say which targets there are, and fuzz nothing
    #[arg(long)]
    list: bool,
}

impl Arguments {
    /// Every target for a minute.
    pub(crate) fn briefly() -> Self {
        Self { only: Vec::new(), minutes: 1.0, list: false }
    }

    fn chooses(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
}

/// What came of one target.
struct Finding {
    name: String,
    executions: Option<u64>,
    clean: bool,
}

/// Fuzzes each chosen target in turn.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    let home = paths.target.join("fuzz");
    let mut targets = targets(paths, &home.join("seeds"))?;
    targets.retain(|(name, _)| arguments.chooses(name));
    if targets.is_empty() {
        return Err(Error::Advice(format!("no target's name contains {}; try --list", arguments.only.join(" or "))));
    }
    if arguments.list {
        targets.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let fuzzer = build(paths, &home.join("build"))?;
    let mut findings = Vec::new();
    for (name, longest) in targets {
        let finding = fuzz(&fuzzer, &home, &name, longest, (arguments.minutes * 60.0).max(1.0) as u64)?;
        let executions = finding.executions.map_or("an unknown number of".to_owned(), |count| count.to_string());
        println!("{name}: {executions} executions, {}", if finding.clean { "clean" } else { "BROKEN" });
        findings.push(finding);
    }
    let broken: Vec<&str> = findings.iter().filter(|one| !one.clean).map(|one| one.name.as_str()).collect();
    if broken.is_empty() { Ok(()) } else { Err(Error::Failed(format!("broken: {}", broken.join(", ")))) }
}

/// Every target's name and the longest input worth trying, with its seeds written below `seeds`.
fn targets(paths: &Paths, seeds: &Path) -> Result<Vec<(String, u32)>> {
    paths::create_directory(seeds)?;
    let mut command = cargo();
    command.current_dir(&paths.workspace).args(["run", "--quiet", "--package", PACKAGE, "--bin", "fuzz-seeds", "--"]);
    let text = command::capture_text(command.arg(seeds))?;
    let read =
        |line: &str| line.split_once(' ').and_then(|(name, longest)| Some((name.to_owned(), longest.parse().ok()?)));
    Ok(text.lines().filter_map(read).collect())
}

fn build(paths: &Paths, target_directory: &Path) -> Result<PathBuf> {
    if !command::exists("c++") {
        return Err(Error::Advice("libFuzzer is compiled from C++: please install a C++ compiler (c++)".to_owned()));
    }
    let mut build = cargo();
    build.current_dir(&paths.workspace).args(["build", "--quiet", "--package", PACKAGE, "--bin", "fuzz"]);
    // With a target triple, build scripts and macros are compiled without coverage, which they could not link.
    build.args(["--features", "libfuzzer", "--profile", "fuzz", "--target", TRIPLE, "--target-dir"]);
    build.arg(target_directory).env("RUSTFLAGS", COVERAGE);
    println!("$ {}", shown(&build));
    command::run(&mut build)?;
    Ok(target_directory.join(TRIPLE).join("fuzz/fuzz"))
}

fn fuzz(fuzzer: &Path, home: &Path, name: &str, longest: u32, seconds: u64) -> Result<Finding> {
    let (corpus, findings, log) =
        (home.join("corpus").join(name), home.join("findings"), home.join(format!("{name}.log")));
    paths::create_directory(&corpus)?;
    paths::create_directory(&findings)?;
    let mut command = Command::new(fuzzer);
    command.env("VMM_FUZZ", name).arg(&corpus).arg(home.join("seeds").join(name));
    command.args([format!("-max_total_time={seconds}"), format!("-max_len={longest}"), format!("-timeout={HANG}")]);
    command.args([format!("-rss_limit_mb={MEMORY}"), "-print_final_stats=1".to_owned()]);
    command.arg(format!("-artifact_prefix={}/{name}-", findings.display()));
    println!("$ VMM_FUZZ={name} {}", shown(&command));
    let output = File::create(&log).file("create", &log)?;
    let status = command.stdin(Stdio::null()).stderr(output).status();
    let status = status.map_err(|source| command::start_error(&command, source))?;
    let text = String::from_utf8_lossy(&paths::read(&log)?).into_owned();
    if !status.success() {
        println!("{name} ended with {status}; {} says:{}", log.display(), command::last_lines(&text));
    }
    Ok(Finding { name: name.to_owned(), executions: executions(&text), clean: status.success() })
}

/// What libFuzzer's final statistics say.
fn executions(log: &str) -> Option<u64> {
    let line = log.lines().rev().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_statistics_are_read() {
        assert_eq!(executions("#5 DONE\nstat::number_of_executed_units: 4711\nstat::peak_rss_mb: 3\n"), Some(4711));
        assert_eq!(executions("panicked"), None);
    }

    #[test]
    fn targets_are_chosen_by_a_part_of_their_name() {
        let only = |parts: &[&str]| Arguments {
            only: parts.iter().map(|part| (*part).to_owned()).collect(),
            minutes: 1.0,
            list: false,
        };
        assert!(only(&[]).chooses("nsm-request"));
        assert!(only(&["pem", "nsm"]).chooses("nsm-request"));
        assert!(!only(&["pem"]).chooses("nsm-request"));
    }
}
