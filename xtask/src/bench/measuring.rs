//! `cargo xtask bench --only eif`: what measuring an enclave image of 1 GiB costs, beside `openssl dgst -sha384` of the same file.
//!
//! The limits are the issue's: 1.15 times OpenSSL's time, and 32 MiB. AWS's crate is measured by `tests/aws-eif`'s program
//! `measure`, which is not built here, because that takes minutes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::error::{Error, FileContext, Result};
use crate::paths::{self, Paths, cargo};
use crate::supervise::{self, Outcome};

/// The application's ramdisk, and the rest of the image, in bytes.
const LARGE: u64 = 1 << 30;
const SMALL: u64 = 10 << 20;

/// Longer than any of the programs takes on any host.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures in turns, and prints each pair and the medians.
pub(super) fn run(runs: usize, paths: &Paths) -> Result<()> {
    if !command::exists("openssl") {
        return Err(Error::Advice("openssl is not installed (apt-get install openssl)".to_owned()));
    }
    command::run(
        cargo()
            .args(["build", "--release", "--package", "eif-cli", "--manifest-path"])
            .arg(paths.workspace.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&paths.target),
    )?;
    let eif = paths.target.join("release/eif");
    for (shape, image) in images(&eif, &paths.target.join("bench-eif"))? {
        let mut ratios = Vec::new();
        println!("{shape}: {}", image.display());
        for _ in 0..runs {
            let openssl = timed(Command::new("openssl").args(["dgst", "-sha384"]).arg(&image))?;
            let ours = timed(Command::new(&eif).arg("describe").arg(&image))?;
            let ratio = ours.elapsed / openssl.elapsed;
            println!("  openssl {openssl}; eif {ours}; ratio {ratio:.2}");
            ratios.push(ratio);
        }
        ratios.sort_by(f64::total_cmp);
        println!("  median of the ratios {:.2}, limit 1.15", ratios[ratios.len() / 2]);
    }
    Ok(())
}

/// What one run of a program took.
struct Taken {
    elapsed: f64,
    cpu: f64,
    peak_mib: f64,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} s ({:.2} s cpu, {:.1} MiB)", self.elapsed, self.cpu, self.peak_mib)
    }
}

fn timed(command: &mut Command) -> Result<Taken> {
    let run = supervise::run(command, LIMIT, |_| ())?;
    match run.outcome {
        Outcome::Exited(0) => Ok(Taken {
            elapsed: run.elapsed.as_secs_f64(),
            cpu: run.cpu.as_secs_f64(),
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
