//! What a device on a bus implements, and how it refuses an access.

use thiserror::Error;

/// Why a device did not carry out an access.
///
/// The device leaves the guest-visible outcome to the bus: [`crate::AddressSpaces`] fills a refused read with ones, drops a refused
/// write, and logs either once in a while with the device's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IoError {
    /// The device has no register at this offset.
    #[error("no register at offset {offset:#x}")]
    NoRegister {
        /// Offset from the device's base, in bytes.
        offset: u64,
    },
    /// The register exists, but not for an access this wide.
    #[error("register at offset {offset:#x} does not take an access of {size} bytes")]
    Size {
        /// Offset from the device's base, in bytes.
        offset: u64,
        /// Width of the access, in bytes.
        size: usize,
    },
    /// The register cannot be written.
    #[error("register at offset {offset:#x} is read-only")]
    ReadOnly {
        /// Offset from the device's base, in bytes.
        offset: u64,
    },
    /// The register cannot be read.
    #[error("register at offset {offset:#x} is write-only")]
    WriteOnly {
        /// Offset from the device's base, in bytes.
        offset: u64,
    },
}

/// A device with registers in the 64 KiB port space.
///
/// `data` is 1, 2 or 4 bytes, little-endian, and `offset + data.len()` never passes the range the device was mapped with.
pub trait PortDevice: Send {
    /// The name that logs use.
    fn name(&self) -> &str;
    /// Reads `data.len()` bytes at `offset` from the device's base.
    ///
    /// # Errors
    /// [`IoError`] when there is nothing to read there; the bus then answers with ones.
    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError>;
    /// Writes `data` at `offset` from the device's base.
    ///
    /// # Errors
    /// [`IoError`] when there is nothing to write there; the bus then drops the write.
    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError>;
}

/// A device with registers in the guest-physical address space.
///
/// `data` is 1, 2, 4 or 8 bytes, little-endian, and `offset + data.len()` never passes the range the device was mapped with.
pub trait MmioDevice: Send {
    /// The name that logs use.
    fn name(&self) -> &str;
    /// Reads `data.len()` bytes at `offset` from the device's base.
    ///
    /// # Errors
    /// [`IoError`] when there is nothing to read there; the bus then answers with ones.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), IoError>;
    /// Writes `data` at `offset` from the device's base.
    ///
    /// # Errors
    /// [`IoError`] when there is nothing to write there; the bus then drops the write.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError>;
}
