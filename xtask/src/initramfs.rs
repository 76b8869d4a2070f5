//! The guest's two ramdisks, laid out like a real enclave's: init with what it needs first, the application second.

use std::path::{Path, PathBuf};

use eif::cpio::Writer;

use crate::error::{Error, FileContext, Result};
use crate::paths::{self, Paths, cargo};
use crate::{command, guest_target};

/// A character device that only its owner may use, as in `stat`.
const CONSOLE: u32 = 0o020_600;

/// The two ramdisks. An enclave image holds them as two sections; elsewhere the first is enough.
#[derive(Debug, Clone)]
pub(crate) struct Ramdisks {
    /// `/init`, the modules and `/dev/console`.
    pub(crate) init: PathBuf,
    /// What would be the application: `/cmd`, `/env` and `/rootfs`.
    pub(crate) application: PathBuf,
}

/// Builds init and packs both ramdisks, the first with the given modules in the order of loading.
pub(crate) fn build(paths: &Paths, modules: &[PathBuf]) -> Result<Ramdisks> {
    let program = build_init(paths)?;
    let directory = paths.guest();
    paths::create_directory(&directory)?;
    let name = if modules.is_empty() { "init.cpio" } else { "init-with-modules.cpio" };
    let ramdisks = Ramdisks { init: directory.join(name), application: directory.join("application.cpio") };
    replace(&ramdisks.init, &init_archive(&program, modules)?)?;
    replace(&ramdisks.application, &application_archive().file("pack", &ramdisks.application)?)?;
    Ok(ramdisks)
}

/// Builds the guest's init as one static program and returns where it is.
fn build_init(paths: &Paths) -> Result<PathBuf> {
    command::run(
        cargo()
            .args(["build", "--quiet", "--release", "--package", "guest-init", "--target", guest_target::TRIPLE])
            .arg("--manifest-path")
            .arg(paths.workspace.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&paths.target)
            // There is no C library in the guest to link with.
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    Ok(paths.target.join(guest_target::TRIPLE).join("release/guest-init"))
}

fn init_archive(program: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    for path in modules {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::Advice(format!("{} has no usable name", path.display())))?;
        contents.push((name, paths::read(path)?));
    }
    let init = paths::read(program)?;
    let pack = || -> std::io::Result<Vec<u8>> {
        let mut writer = Writer::new(Vec::new(), 0);
        for directory in ["dev", "proc", "sys", "tmp"] {
            writer.directory(directory)?;
        }
        // Without it the kernel starts init with no file descriptor; devtmpfs covers it later.
        writer.entry(b"dev/console", CONSOLE, (5, 1), &[])?;
        writer.file("init", 0o755, &init)?;
        if !contents.is_empty() {
            writer.directory("modules")?;
            let order: String = contents.iter().map(|(name, _)| format!("{name}\n")).collect();
            writer.file("modules/order", 0o644, order.as_bytes())?;
            for (name, bytes) in &contents {
                writer.file(&format!("modules/{name}"), 0o644, bytes)?;
            }
        }
        writer.finish()
    };
    pack().file("pack", program)
}

fn application_archive() -> std::io::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new(), 0);
    writer.directory("rootfs")?;
    writer.file("rootfs/about", 0o644, b"where an enclave's application would be\n")?;
    writer.file("cmd", 0o644, b"/init\n")?;
    writer.file("env", 0o644, b"\n")?;
    writer.finish()
}

/// Writes a file only if it changes, so that two tasks at once do not pull it from under one another.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    // A temporary file is the user's alone by default; a ramdisk is nobody's secret.
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file =
        tempfile::Builder::new().permissions(everyone).tempfile_in(directory).file("create a file in", directory)?;
    std::io::Write::write_all(&mut file, bytes).file("write", path)?;
    file.persist(path).map_err(|error| error.error).file("write", path)?;
    Ok(())
}
