//! The small kernel: Debian's linux-source-6.12 with a configuration of ours that is close to the real enclaves'.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::apt::Apt;
use super::{CacheLock, cached, publish, work_directory};
use crate::command::{self, shown, start_error};
use crate::error::{Error, FileContext, Result};
use crate::paths::{self, Paths};
use crate::progress::Progress;

const PACKAGE: &str = "linux-source-6.12";

/// The configuration, relative to the workspace.
const CONFIG: &str = "configs/guest/linux-6.12.config";

/// How many digits of the configuration's hash are in the directory's name.
const HASH_DIGITS: usize = 12;

/// Programs that the build needs, and the Debian package of each.
const TOOLS: [(&str, &str); 8] = [
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("xz", "xz-utils"),
    ("perl", "perl"),
    ("strip", "binutils"),
];

/// Headers that the build needs, and the Debian package of each.
const HEADERS: [(&str, &str); 2] = [("gelf.h", "libelf-dev"), ("stdio.h", "libc6-dev")];

/// The kernel in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Small {
    /// The source package's version.
    pub(crate) version: String,
    /// The bzImage, its payload compressed with gzip.
    pub(crate) bzimage: PathBuf,
    /// The same kernel as an ELF file without symbols.
    pub(crate) vmlinux: PathBuf,
}

impl Small {
    /// The cached kernel of today's configuration, or one built now.
    pub(crate) fn get(paths: &Paths, refresh: bool) -> Result<Self> {
        let _lock = CacheLock::take(paths)?;
        let config = paths.workspace.join(CONFIG);
        let suffix = format!("-{}", config_hash(&paths::read(&config)?));
        if !refresh && let Some((directory, version)) = cached(paths, "small-", &suffix) {
            return Ok(Self::open(&directory, version));
        }
        check_tools()?;
        let apt = Apt::update(&paths.cache)?;
        let package = apt.package(PACKAGE)?;
        let directory = paths.kernels().join(format!("small-{}{suffix}", package.version));
        if !directory.exists() {
            let archive = apt.download(&package)?;
            let work = work_directory(paths, "small")?;
            unpack(&archive, &work)?;
            build(&work, &config)?;
            paths::create_directory(&paths.kernels())?;
            publish(&work.join("kernel"), &directory)?;
            std::fs::remove_dir_all(&work).file("remove", &work)?;
        }
        Ok(Self::open(&directory, package.version))
    }

    fn open(directory: &Path, version: String) -> Self {
        Self { version, bzimage: directory.join("bzImage"), vmlinux: directory.join("vmlinux") }
    }
}

fn config_hash(config: &[u8]) -> String {
    let mut hash = paths::hex(&Sha256::digest(config));
    hash.truncate(HASH_DIGITS);
    hash
}

/// Names every missing tool at once, with the command that installs them.
fn check_tools() -> Result<()> {
    let mut missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !command::exists(program)).map(|(_, package)| *package).collect();
    if command::exists("gcc") {
        missing.extend(HEADERS.iter().filter(|(header, _)| !has_header(header)).map(|(_, package)| *package));
    } else {
        missing.extend(HEADERS.iter().map(|(_, package)| *package));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Advice(format!(
        "building the small guest kernel needs tools that are missing: apt-get install {}\n  (or bring a kernel: --kernel PATH)",
        missing.join(" ")
    )))
}

fn has_header(header: &str) -> bool {
    Command::new("gcc")
        .args(["-E", "-x", "c", "-include", header, "/dev/null", "-o", "/dev/null"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The package holds the source as a tar archive of its own; it is unpacked into `work/source`.
fn unpack(archive: &Path, work: &Path) -> Result<()> {
    let progress = Progress::new("unpacking the kernel's source");
    let package = work.join("package");
    command::capture(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&package))?;
    let tar = package.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let source = work.join("source");
    paths::create_directory(&source)?;
    command::capture(Command::new("tar").args(["-xJ", "--strip-components=1", "-f"]).arg(&tar).arg("-C").arg(&source))?;
    std::fs::remove_dir_all(&package).file("remove", &package)?;
    progress.done("done");
    Ok(())
}

/// Configures and builds, and leaves bzImage, vmlinux and the configuration in `work/kernel`.
fn build(work: &Path, config: &Path) -> Result<()> {
    let output = work.join("output");
    paths::create_directory(&output)?;
    let make = |target: &str| {
        let mut command = Command::new("make");
        command
            .arg("-C")
            .arg(work.join("source"))
            .arg(format!("O={}", output.display()))
            .arg("ARCH=x86_64")
            .arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)))
            .arg(target)
            .env("KCONFIG_ALLCONFIG", config)
            // The same source and configuration give the same kernel, wherever they are built.
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "vmm")
            .env("KBUILD_BUILD_HOST", "vmm")
            .env_remove("MAKEFLAGS");
        command
    };
    command::capture(&mut make("allnoconfig"))?;
    check_config(config, &output.join(".config"))?;
    build_with_progress(&mut make("bzImage"))?;

    let kernel = work.join("kernel");
    paths::create_directory(&kernel)?;
    for (from, to) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config"), ("System.map", "System.map")] {
        let (from, to) = (output.join(from), kernel.join(to));
        std::fs::copy(&from, &to).file("copy", &from)?;
    }
    command::capture(Command::new("strip").arg("-o").arg(kernel.join("vmlinux")).arg(output.join("vmlinux")))?;
    Ok(())
}

/// Kconfig drops what it does not know or what lacks a dependency without a word; a kernel without NSM would be found late.
fn check_config(wanted: &Path, made: &Path) -> Result<()> {
    let wanted = String::from_utf8_lossy(&paths::read(wanted)?).into_owned();
    let made = String::from_utf8_lossy(&paths::read(made)?).into_owned();
    let dropped = dropped_options(&wanted, &made);
    if dropped.is_empty() {
        return Ok(());
    }
    Err(Error::Advice(format!("the kernel's configuration did not take: {}", dropped.join(", "))))
}

fn dropped_options<'a>(wanted: &'a str, made: &str) -> Vec<&'a str> {
    wanted.lines().filter(|line| line.starts_with("CONFIG_") && !made.lines().any(|made| made == *line)).collect()
}

/// Counts make's steps while it runs, and shows the end of its output if it fails.
fn build_with_progress(command: &mut Command) -> Result<()> {
    let mut progress = Progress::new("building the small kernel");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| start_error(command, source))?;
    let errors = child.stderr.take().map(|stderr| {
        std::thread::spawn(move || BufReader::new(stderr).lines().map_while(std::io::Result::ok).collect::<Vec<_>>())
    });
    let mut steps = 0_u32;
    for line in
        child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(std::io::Result::ok)
    {
        if line.starts_with("  ") {
            steps += 1;
            progress.update(&format!("{steps} steps"));
        }
    }
    let status = child.wait().map_err(|source| start_error(command, source))?;
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default().join("\n");
    if status.success() {
        progress.done(&format!("{steps} steps"));
        Ok(())
    } else {
        progress.done("failed");
        Err(Error::Program { command: shown(command), status, output: command::last_lines(&errors) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_the_kernel_dropped_is_named() {
        let wanted = "# CONFIG_PCI is not set\nCONFIG_NSM=y\nCONFIG_SMP=y\n";
        assert_eq!(dropped_options(wanted, "CONFIG_SMP=y\n"), ["CONFIG_NSM=y"]);
    }

    #[test]
    fn another_configuration_has_another_hash() {
        assert_eq!(config_hash(b"CONFIG_SMP=y").len(), HASH_DIGITS);
        assert_ne!(config_hash(b"CONFIG_SMP=y"), config_hash(b"CONFIG_SMP=n"));
    }
}
