//! Debian's own kernel, as installed on any cloud machine: everything is a module, ACPI is on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::apt::Apt;
use super::{CacheLock, cached, modules, publish, work_directory};
use crate::command;
use crate::error::{Error, FileContext, Result};
use crate::paths::{self, Paths};
use crate::progress::Progress;

const PREFIX: &str = "linux-image-6.12.";
const SUFFIX: &str = "-cloud-amd64";

/// The modules that the guest's init wants, by name; what they depend on comes along.
const MODULES: [&str; 3] = ["virtio_mmio", "virtio_rng", "nsm"];

/// The kernel in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    /// The Debian package's version.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) vmlinuz: PathBuf,
    /// Decompressed modules in the order in which they are to be loaded.
    pub(crate) modules: Vec<PathBuf>,
}

impl Stock {
    /// The cached kernel, or the one that apt has now.
    pub(crate) fn get(paths: &Paths, refresh: bool) -> Result<Self> {
        let _lock = CacheLock::take(paths)?;
        if !refresh && let Some((directory, version)) = cached(paths, "debian-", "") {
            return Self::open(&directory, version);
        }
        let apt = Apt::update(&paths.cache)?;
        let package = apt.newest(PREFIX, |name| name.ends_with(SUFFIX))?;
        let directory = paths.kernels().join(format!("debian-{}", package.version));
        if !directory.exists() {
            let archive = apt.download(&package)?;
            let progress = Progress::new(format!("taking the kernel out of {} {}", package.name, package.version));
            let work = work_directory(paths, "stock")?;
            take_out(&archive, &work)?;
            paths::create_directory(&paths.kernels())?;
            publish(&work.join("kernel"), &directory)?;
            std::fs::remove_dir_all(&work).file("remove", &work)?;
            progress.done("done");
        }
        Self::open(&directory, package.version)
    }

    fn open(directory: &Path, version: String) -> Result<Self> {
        let order = directory.join("modules/order");
        let order = std::fs::read_to_string(&order).file("read", &order)?;
        let modules = order.lines().map(|name| directory.join("modules").join(name)).collect();
        Ok(Self { version, vmlinuz: directory.join("vmlinuz"), modules })
    }
}

/// Unpacks the package into `work` and leaves vmlinuz and the wanted modules in `work/kernel`.
fn take_out(archive: &Path, work: &Path) -> Result<()> {
    let tree = work.join("package");
    command::capture(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree))?;
    let kernel = work.join("kernel");
    paths::create_directory(&kernel.join("modules"))?;

    let boot = tree.join("boot");
    let vmlinuz = find(&boot, |name| name.starts_with("vmlinuz-"))
        .ok_or_else(|| Error::Advice(format!("{} has no vmlinuz", archive.display())))?;
    let target = kernel.join("vmlinuz");
    std::fs::rename(&vmlinuz, &target).file("move to", &target)?;

    let available = modules::Available::below(&tree)?;
    let mut order = String::new();
    for module in available.in_load_order(&MODULES, &decompress)? {
        paths::write(&kernel.join("modules").join(&module.file_name), &module.bytes)?;
        order.push_str(&module.file_name);
        order.push('\n');
    }
    paths::write(&kernel.join("modules/order"), order.as_bytes())
}

fn find(directory: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| wanted(&path.file_name().unwrap_or_default().to_string_lossy()))
}

/// A module's bytes, decompressed by the tool that its extension names.
fn decompress(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return paths::read(path),
    };
    command::capture(Command::new(tool).args(["-d", "-c"]).arg(path).stdin(Stdio::null()))
}
