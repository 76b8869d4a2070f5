//! `cargo xtask bench --only eif`: what measuring an enclave image of 1 GiB costs, beside `openssl dgst -sha384` of the same file, in
//! turns, so that a busy host disturbs both alike.
//!
//! The limits are the issue's: 1.15 times OpenSSL's time, 32 MiB, and half the time of AWS's crate. That is measured once for
//! each image, by `tests/aws-eif`'s program `measure`, if `cargo xtask ci --long` or somebody has built it: it takes minutes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use super::host::Host;
use super::sample::middle;
use crate::command;
use crate::error::{Error, FileContext, Result};
use crate::paths::{self, Paths, cargo};
use crate::supervise::{self, Outcome};

/// The most that measuring may take of OpenSSL's time.
const LIMIT_RATIO: f64 = 1.15;

/// Fewer pairs give no median worth the name.
const FEWEST: usize = 7;

/// The application's ramdisk, and the rest of the image, in bytes.
const LARGE: u64 = 1 << 30;
const SMALL: u64 = 10 << 20;

/// Longer than any of the programs takes on any host.
const LIMIT: Duration = Duration::from_secs(300);

/// What was measured, and where.
#[derive(Debug, Serialize)]
struct Results {
    host: Host,
    images: Vec<Row>,
}

/// One image.
#[derive(Debug, Serialize)]
struct Row {
    shape: &'static str,
    pairs: Vec<Pair>,
    /// The middle of the pairs' ratios of time, and of processor time.
    ratio: f64,
    cpu_ratio: f64,
    limit: f64,
    aws_crate: Option<Taken>,
}

/// OpenSSL's run and ours.
#[derive(Debug, Serialize)]
struct Pair {
    openssl: Taken,
    eif: Taken,
}

/// What one run of a program took.
#[derive(Debug, Serialize)]
struct Taken {
    seconds: f64,
    cpu_seconds: f64,
    peak_mib: f64,
}

/// Measures in turns, at least seven times, prints each pair and the medians, and writes the results.
pub(super) fn run(runs: usize, json: &Path, paths: &Paths) -> Result<()> {
    if !command::exists("openssl") {
        return Err(Error::Advice("openssl is not installed (apt-get install openssl)".to_owned()));
    }
    if runs < FEWEST {
        return Err(Error::Advice(format!("--runs must be at least {FEWEST} for this")));
    }
    command::run(
        cargo()
            .args(["build", "--release", "--package", "eif-cli", "--manifest-path"])
            .arg(paths.workspace.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&paths.target),
    )?;
    let eif = paths.target.join("release/eif");
    let aws_crate = paths.target.join("aws-eif/debug/measure");
    let mut rows = Vec::new();
    for (shape, image) in images(&eif, &paths.target.join("bench-eif"))? {
        println!("{shape}: {}", image.display());
        let mut pairs = Vec::new();
        for _ in 0..runs {
            let openssl = timed(Command::new("openssl").args(["dgst", "-sha384"]).arg(&image))?;
            let eif = timed(Command::new(&eif).arg("describe").arg(&image))?;
            println!("  openssl {openssl}; eif {eif}; ratio {:.2}", eif.seconds / openssl.seconds);
            pairs.push(Pair { openssl, eif });
        }
        let aws_crate = if aws_crate.exists() { Some(timed(Command::new(&aws_crate).arg(&image))?) } else { None };
        let row = Row::of(shape, pairs, aws_crate);
        print!("{row}");
        rows.push(row);
    }
    let results = Results { host: Host::look(&paths.workspace, Vec::new()), images: rows };
    let text = serde_json::to_vec_pretty(&results).map_err(|error| Error::Advice(error.to_string()))?;
    paths::write(json, &text)?;
    println!("load {}; written to {}", results.host.load, json.display());
    Ok(())
}

impl Row {
    fn of(shape: &'static str, pairs: Vec<Pair>, aws_crate: Option<Taken>) -> Self {
        let ratio = |of: fn(&Taken) -> f64| {
            middle(pairs.iter().map(|pair| of(&pair.eif) / of(&pair.openssl)).collect()).unwrap_or(f64::NAN)
        };
        let (ratio, cpu_ratio) = (ratio(|taken| taken.seconds), ratio(|taken| taken.cpu_seconds));
        Self { shape, pairs, ratio, cpu_ratio, limit: LIMIT_RATIO, aws_crate }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |value: fn(&Pair) -> f64| middle(self.pairs.iter().map(value).collect()).unwrap_or(f64::NAN);
        let (ours, theirs) = (of(|pair| pair.eif.seconds), of(|pair| pair.openssl.seconds));
        let verdict = if self.ratio <= self.limit { "" } else { ", above the limit" };
        writeln!(
            f,
            "  medians of {} pairs: eif {ours:.2} s, openssl {theirs:.2} s, ratio {:.2} (processor time {:.2}), limit {}{verdict}",
            self.pairs.len(),
            self.ratio,
            self.cpu_ratio,
            self.limit
        )?;
        if let Some(aws_crate) = &self.aws_crate {
            writeln!(f, "  AWS's crate {aws_crate}: {:.1} times ours", aws_crate.seconds / ours)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} s ({:.2} s cpu, {:.1} MiB)", self.seconds, self.cpu_seconds, self.peak_mib)
    }
}

fn timed(command: &mut Command) -> Result<Taken> {
    let run = supervise::run(command, LIMIT, |_| ())?;
    match run.outcome {
        Outcome::Exited(0) => Ok(Taken {
            seconds: run.elapsed.as_secs_f64(),
            cpu_seconds: run.cpu.as_secs_f64(),
            peak_mib: run.peak_kib as f64 / 1024.0,
        }),
        other => Err(Error::Failed(format!("{}: {other}", command::shown(command)))),
    }
}

/// Two images, made once: the gigabyte in the application's ramdisk, as it is in practice, and in the first.
fn images(eif: &Path, directory: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    paths::create_directory(directory)?;
    let part = |name: &str, size: u64| -> Result<PathBuf> {
        let path = directory.join(name);
        if path.metadata().is_ok_and(|found| found.len() == size) {
            return Ok(path);
        }
        let random = Path::new("/dev/urandom");
        let mut output = File::create(&path).file("create", &path)?;
        std::io::copy(&mut File::open(random).file("open", random)?.take(size), &mut output).file("write", &path)?;
        Ok(path)
    };
    let (small, large) = (part("small", SMALL)?, part("large", LARGE)?);
    let mut images = Vec::new();
    for (shape, name, ramdisks) in [
        ("the gigabyte in the second ramdisk", "application.eif", vec![&small, &large]),
        ("the gigabyte in the first ramdisk", "boot.eif", vec![&large]),
    ] {
        let image = directory.join(name);
        if !image.exists() {
            let mut build = Command::new(eif);
            build.args(["build", "--cmdline", "console=ttyS0", "--kernel"]).arg(&small).arg("--output").arg(&image);
            for ramdisk in ramdisks {
                build.arg("--ramdisk").arg(ramdisk);
            }
            command::capture(&mut build)?;
        }
        images.push((shape, image));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(seconds: f64) -> Taken {
        Taken { seconds, cpu_seconds: 2.0 * seconds, peak_mib: 5.0 }
    }

    #[test]
    fn a_row_has_the_median_of_the_pairs_and_says_when_it_is_above_the_limit() {
        let pairs = |ours: f64| {
            let of = |(theirs, factor): (f64, f64)| Pair { openssl: taken(theirs), eif: taken(theirs * factor) };
            [(1.0, ours), (2.0, ours + 0.5), (4.0, ours - 0.5)].map(of).into()
        };
        let row = Row::of("small", pairs(1.0), Some(taken(6.0)));
        assert_eq!((row.ratio, row.cpu_ratio), (1.0, 1.0));
        assert!(!row.to_string().contains("above"), "{row}");
        assert!(row.to_string().contains("3.0 times ours"), "{row}");
        assert!(Row::of("small", pairs(1.2), None).to_string().contains("above the limit"));
    }
}
