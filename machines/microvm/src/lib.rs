//! The microvm board: address map, wiring, options, and the machine that runs on it.
//!
//! Reproduced is QEMU 10's `microvm` machine type, address for address ([`address_map`]) and interrupt for interrupt ([`interrupts`]), with a kernel that
//! is entered directly. Other machine types are variants of this one: they answer the four questions of [`Variant`]; [`Plain`] is microvm itself.
//!
//! Deliberately missing: fw_cfg, firmware, PCIe and USB.

#![forbid(unsafe_code)]

pub mod address_map;
mod board;
mod error;
pub mod interrupts;
mod machine;
mod options;
mod tables;
#[cfg(test)]
mod tests;
mod transports;
mod variant;

pub use accel_kvm::KernelIrqchip;
pub use boot::{Blob, ImageKind};
pub use error::{MachineError, VariantError};
pub use machine::{Machine, SerialPort, TRIPLE_FAULT};
pub use options::{AccelChoice, Decompress, Host, MIB, OnOffAuto, OnReboot, Options};
pub use transports::Slot;
pub use variant::{IMAGE_HEAD, Payload, Plain, Variant, open_initrd};

/// Whether this build's software CPU has a translator.
pub const TRANSLATOR_AVAILABLE: bool = accel_soft::TranslatorMode::AVAILABLE;
