//! Where things lie: the workspace, what cargo builds, and the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, FileContext, Result};

/// The directories that tasks read and write.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The workspace's root.
    pub(crate) workspace: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// `vmm/` in the user's cache directory: kernels, and what apt needs to fetch them.
    pub(crate) cache: PathBuf,
}

impl Paths {
    /// Asks cargo and the environment.
    pub(crate) fn find() -> Result<Self> {
        let metadata = command::capture(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
        let metadata: serde_json::Value =
            serde_json::from_slice(&metadata).map_err(|error| Error::Advice(format!("cargo metadata: {error}")))?;
        let directory = |key: &str| {
            let value = metadata.get(key).and_then(serde_json::Value::as_str);
            value.map(PathBuf::from).ok_or_else(|| Error::Advice(format!("cargo metadata has no {key}")))
        };
        Ok(Self { workspace: directory("workspace_root")?, target: directory("target_directory")?, cache: cache()? })
    }

    /// Kernels by name and version.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.cache.join("kernels")
    }

    /// What is built for the guest: init, ramdisks, images.
    pub(crate) fn guest(&self) -> PathBuf {
        self.target.join("guest")
    }
}

/// The cargo that started this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// `vmm/` in `$XDG_CACHE_HOME`, by default `~/.cache` (XDG Base Directory Specification 0.8: a relative path counts as unset).
fn cache() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|path| path.join("vmm"))
        .ok_or_else(|| Error::Advice("neither XDG_CACHE_HOME nor HOME says where the cache is".to_owned()))
}

/// Creates a directory and those above it.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).file("create", path)
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).file("read", path)
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).file("write", path)
}

/// Bytes in hexadecimal, lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
