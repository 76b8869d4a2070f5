//! The kernels that guests run: Debian's stock 6.12 cloud kernel, and a small one built from the same source.
//!
//! Both lie in the user's cache, `kernels/debian-VERSION` and `kernels/small-VERSION-HASH`, where HASH is of the small kernel's
//! configuration. What is there is used without a look at the network, unless `--refresh` asks for the newest.

mod apt;
mod mirror;
mod modules;
mod small;
mod stock;

use std::fs::File;
use std::path::{Path, PathBuf};

pub(crate) use small::Small;
pub(crate) use stock::Stock;

use crate::error::{Error, FileContext, Result};
use crate::image::Image;
use crate::paths::{self, Paths};

/// `cargo xtask guest`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Ask apt for newer versions even if kernels are cached
    #[arg(long)]
    refresh: bool,
    /// Only Debian's stock kernel
    #[arg(long, conflicts_with = "small")]
    stock: bool,
    /// Only the small kernel
    #[arg(long)]
    small: bool,
    /// A kernel of your own: nothing is fetched, and an enclave image is made of it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["refresh", "stock", "small"])]
    kernel: Option<PathBuf>,
}

/// Gets what was asked for, builds what boots with it, and says where it all is.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    if let Some(kernel) = &arguments.kernel {
        show("your kernel", None, &Image::of_small(paths, &own_kernel(kernel)?)?);
        return Ok(());
    }
    if !arguments.small {
        let stock = Stock::get(paths, arguments.refresh)?;
        show("stock kernel", Some(&stock.version), &Image::of_stock(paths, &stock.vmlinuz, &stock.modules)?);
    }
    if !arguments.stock {
        let small = Small::get(paths, arguments.refresh)?;
        show("small kernel", Some(&small.version), &Image::of_small(paths, &small.bzimage)?);
        println!("  as ELF file     {}", small.vmlinux.display());
    }
    Ok(())
}

fn show(name: &str, version: Option<&str>, image: &Image) {
    println!("{name} {}", version.unwrap_or_default());
    println!("  kernel          {}", image.kernel.display());
    println!("  init's ramdisk  {}", image.ramdisks.init.display());
    println!("  second ramdisk  {}", image.ramdisks.application.display());
    println!("  enclave image   {}", image.eif.display());
}

/// Holds the cache against another xtask that fetches or builds at the same time.
struct CacheLock {
    _file: File,
}

impl CacheLock {
    fn take(paths: &Paths) -> Result<Self> {
        paths::create_directory(&paths.cache)?;
        let path = paths.cache.join("lock");
        let file = File::create(&path).file("create", &path)?;
        file.lock().file("lock", &path)?;
        Ok(Self { _file: file })
    }
}

/// The newest directory of `kernels/` whose name starts and ends like this.
fn cached(paths: &Paths, start: &str, end: &str) -> Option<(PathBuf, String)> {
    let entries = std::fs::read_dir(paths.kernels()).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let newest = names
        .filter(|name| name.starts_with(start) && name.ends_with(end))
        .max_by_key(|name| apt::natural_key(name))?;
    let version = newest.strip_prefix(start)?.strip_suffix(end)?.to_owned();
    Some((paths.kernels().join(newest), version))
}

/// Makes a finished directory appear under its name at once, so that an interrupted run leaves nothing half done.
fn publish(finished: &Path, name: &Path) -> Result<()> {
    if name.exists() {
        std::fs::remove_dir_all(name).file("replace", name)?;
    }
    std::fs::rename(finished, name).file("move to", name)
}

/// A fresh, empty directory in the cache for work in progress.
fn work_directory(paths: &Paths, name: &str) -> Result<PathBuf> {
    let path = paths.cache.join("work").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).file("clear", &path)?;
    }
    paths::create_directory(&path)?;
    Ok(path)
}

/// What to say when `--kernel` names something that is not there.
pub(crate) fn own_kernel(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|source| Error::File { action: "use the kernel", path: path.to_owned(), source })
}
