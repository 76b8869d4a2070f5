//! What guests are started from: a kernel with ramdisks, and an enclave image of the same parts.

use std::path::{Path, PathBuf};

use eif::{BootImage, Metadata, Writer};

use crate::error::{Error, FileContext, Result};
use crate::initramfs::{self, Ramdisks};
use crate::paths::{self, Paths, hex};

/// The command line of real enclaves, as AWS's build tools write it.
const ENCLAVE_CMDLINE: &str = "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp \
                               i8042.dumbkbd random.trust_cpu=on";

/// For the stock kernel: it needs its modules, and with ACPI it knows itself how to reset.
const STOCK_CMDLINE: &str = "console=ttyS0 panic=-1";

/// A guest's parts.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// A bzImage or an ELF vmlinux.
    pub(crate) kernel: PathBuf,
    /// The ramdisks.
    pub(crate) ramdisks: Ramdisks,
    /// The kernel's command line.
    pub(crate) cmdline: String,
    /// All of this as an enclave image.
    pub(crate) eif: PathBuf,
}

impl Image {
    /// An image of a kernel that has all drivers built in.
    pub(crate) fn of_small(paths: &Paths, kernel: &Path) -> Result<Self> {
        Self::build(paths, "small", kernel, &[], ENCLAVE_CMDLINE)
    }

    /// The same with the kernel as an ELF file, which no enclave image would hold; its own is never booted.
    pub(crate) fn of_small_elf(paths: &Paths, kernel: &Path) -> Result<Self> {
        Self::build(paths, "small-elf", kernel, &[], ENCLAVE_CMDLINE)
    }

    /// An image of a kernel that loads drivers as modules.
    pub(crate) fn of_stock(paths: &Paths, kernel: &Path, modules: &[PathBuf]) -> Result<Self> {
        Self::build(paths, "stock", kernel, modules, STOCK_CMDLINE)
    }

    fn build(paths: &Paths, name: &str, kernel: &Path, modules: &[PathBuf], cmdline: &str) -> Result<Self> {
        let ramdisks = initramfs::build(paths, modules)?;
        let eif = paths.guest().join(format!("{name}.eif"));
        let bytes = Writer::new(paths::read(kernel)?, cmdline)
            .metadata(Metadata::new(&format!("vmm-{name}"), env!("CARGO_PKG_VERSION")).to_json())
            .ramdisk(paths::read(&ramdisks.init)?)
            .ramdisk(paths::read(&ramdisks.application)?)
            .to_vec()
            .map_err(|error| Error::Advice(format!("cannot write {}: {error}", eif.display())))?;
        initramfs::replace(&eif, &bytes)?;
        Ok(Self { kernel: kernel.to_owned(), ramdisks, cmdline: cmdline.to_owned(), eif })
    }
}

/// PCR0, PCR1 and PCR2 of an enclave image in hexadecimal, as the reader computes them.
pub(crate) fn measure(eif: &Path) -> Result<[String; 3]> {
    let file = std::fs::File::open(eif).file("open", eif)?;
    let image = BootImage::read(std::io::BufReader::new(file))
        .map_err(|error| Error::Advice(format!("cannot read {}: {error}", eif.display())))?;
    let measurements = image.measurements();
    Ok([hex(&measurements.pcr0), hex(&measurements.pcr1), hex(&measurements.pcr2)])
}
