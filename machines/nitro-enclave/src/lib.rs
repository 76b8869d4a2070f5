//! The Nitro Enclave machine: microvm with an EIF for a kernel, an NSM that answers for what was booted, and a vsock to the parent.
//!
//! A variant of [`microvm`] as in QEMU 10 (hw/i386/nitro_enclave.c): it takes Enclave Images and nothing else, boots the kernel, the ramdisks and the command line
//! within, and adds a virtio NSM whose PCRs hold the image's measurements. ACPI is off unless asked for, since enclaves' kernels have none.
//!
//! Deliberately missing: SEQPACKET vsock, and enclaves that talk to each other.

#![forbid(unsafe_code)]

mod authority;
mod enclave;
mod error;
mod measure;
mod options;
mod parent;
#[cfg(test)]
mod tests;

use microvm::{Host, Machine, MachineError, OnOffAuto, Options};

pub use authority::{AuthorityChoice, LoadError};
pub use enclave::Enclave;
pub use error::EnclaveError;
pub use measure::measured_pcrs;
pub use options::{DEFAULT_PARENT_ID, EnclaveOptions, MapForm};
pub use parent::{DEFAULT_CID, parent};

/// The board's options with this machine type's defaults: `acpi = auto` is off.
pub fn with_defaults(mut options: Options) -> Options {
    if options.acpi == OnOffAuto::Auto {
        options.acpi = OnOffAuto::Off;
    }
    options
}

/// Builds an enclave from the EIF that `options.kernel` names; `options.initrd` and `options.cmdline` are appended to the image's. Its line to the
/// parent is `options.vsock`, for which [`parent`] makes the real one's.
///
/// # Errors
/// [`MachineError`], with an [`EnclaveError`] inside [`MachineError::Variant`] where the image or the enclave's own options are to blame.
pub fn machine(options: Options, enclave: EnclaveOptions, host: Host) -> Result<Machine, MachineError> {
    let variant = Enclave::new(enclave).map_err(|error| MachineError::Variant(error.into()))?;
    Machine::new(with_defaults(options), Box::new(variant), host)
}
