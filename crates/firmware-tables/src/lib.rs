//! What the guest is told about the board, as bytes: ACPI tables and the Intel MultiProcessor table.
//!
//! Pure functions from a description to bytes. No address is decided here: a machine crate describes its board and says where the bytes
//! will lie. The flattened device tree that QEMU adds where ACPI is off is deliberately missing: Linux on x86 reads it only
//! with `CONFIG_OF`, which neither Debian's nor the enclaves' kernels have.

#![forbid(unsafe_code)]

pub mod acpi;
mod dsdt;
mod madt;
pub mod mp;

#[cfg(test)]
mod golden;

/// An IOAPIC, as tables describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ioapic {
    /// Its ID, as its ID register reads.
    pub id: u8,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// The GSI of its pin 0.
    pub gsi_base: u32,
}
