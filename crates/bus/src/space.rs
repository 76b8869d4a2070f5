//! The port and MMIO address spaces: which device answers where.
//!
//! The map is fixed once the machine is built, so a look-up takes no lock; only the device that answers is locked.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tracing::debug;

use crate::{IoError, MmioDevice, PortDevice};

/// Refused accesses that are logged for each device before it goes quiet.
const LOGGED_REFUSALS: u32 = 16;

/// Two devices were mapped over each other, or one past the end of its space: a mistake in a machine's address map.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{space} range {start:#x}..{end:#x} of {name} is empty, out of bounds or overlaps {other}")]
pub struct OverlapError {
    /// `"port"` or `"MMIO"`.
    pub space: &'static str,
    /// First address of the range.
    pub start: u64,
    /// Address after the range.
    pub end: u64,
    /// The device to be mapped.
    pub name: String,
    /// What it collides with.
    pub other: String,
}

struct Mapping<D: ?Sized> {
    range: Range<u64>,
    refusals: AtomicU32,
    device: Arc<Mutex<D>>,
    name: String,
}

struct Space<D: ?Sized> {
    what: &'static str,
    end: u64,
    sorted: Vec<Mapping<D>>,
}

impl<D: ?Sized> Space<D> {
    fn new(what: &'static str, end: u64) -> Self {
        Self { what, end, sorted: Vec::new() }
    }

    fn insert(&mut self, start: u64, len: u64, device: Arc<Mutex<D>>, name: String) -> Result<(), OverlapError> {
        let end = start.saturating_add(len);
        let fail =
            |other: &str| OverlapError { space: self.what, start, end, name: name.clone(), other: other.to_owned() };
        if len == 0 || end > self.end {
            return Err(fail("the end of the space"));
        }
        let at = self.sorted.partition_point(|m| m.range.start < start);
        let before = at.checked_sub(1).and_then(|i| self.sorted.get(i)).filter(|m| m.range.end > start);
        let after = self.sorted.get(at).filter(|m| m.range.start < end);
        if let Some(other) = before.or(after) {
            return Err(fail(&other.name));
        }
        self.sorted.insert(at, Mapping { range: start..end, refusals: AtomicU32::new(0), device, name });
        Ok(())
    }

    /// The mapping that holds all of `address .. address + len`.
    fn find(&self, address: u64, len: usize) -> Option<&Mapping<D>> {
        let at = self.sorted.partition_point(|m| m.range.end <= address);
        let last = address.checked_add(len as u64)?;
        self.sorted.get(at).filter(|m| m.range.start <= address && last <= m.range.end)
    }
}

impl<D: ?Sized> Mapping<D> {
    fn refused(&self, what: &str, address: u64, size: usize, error: IoError) {
        if self.refusals.fetch_add(1, Ordering::Relaxed) < LOGGED_REFUSALS {
            debug!(device = self.name, address = format_args!("{address:#x}"), size, "{what} refused: {error}");
        }
    }
}

/// Collects a board's mappings; [`AddressSpacesBuilder::build`] freezes them.
pub struct AddressSpacesBuilder {
    port: Space<dyn PortDevice>,
    mmio: Space<dyn MmioDevice>,
}

impl Default for AddressSpacesBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl AddressSpacesBuilder {
    /// Two empty spaces: 64 KiB of ports, 52 bits of physical addresses.
    pub fn new() -> Self {
        Self { port: Space::new("port", 1 << 16), mmio: Space::new("MMIO", 1 << 52) }
    }

    /// Maps `device` at ports `base .. base + len`.
    ///
    /// # Errors
    /// [`OverlapError`] when the range is not free.
    pub fn map_port(&mut self, base: u16, len: u16, device: Arc<Mutex<dyn PortDevice>>) -> Result<(), OverlapError> {
        let name = device.lock().unwrap_or_else(PoisonError::into_inner).name().to_owned();
        self.port.insert(base.into(), len.into(), device, name)
    }

    /// Maps `device` at guest-physical addresses `base .. base + len`.
    ///
    /// # Errors
    /// [`OverlapError`] when the range is not free.
    pub fn map_mmio(&mut self, base: u64, len: u64, device: Arc<Mutex<dyn MmioDevice>>) -> Result<(), OverlapError> {
        let name = device.lock().unwrap_or_else(PoisonError::into_inner).name().to_owned();
        self.mmio.insert(base, len, device, name)
    }

    /// Freezes the map.
    pub fn build(self) -> AddressSpaces {
        AddressSpaces { port: self.port, mmio: self.mmio }
    }
}

/// The board's two address spaces. An access nobody answers reads as ones and writes nothing, as on a PC.
pub struct AddressSpaces {
    port: Space<dyn PortDevice>,
    mmio: Space<dyn MmioDevice>,
}

impl AddressSpaces {
    /// IN: reads `data.len()` bytes (1, 2 or 4) from `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(m) = self.port.find(port.into(), data.len()) else { return self.port_read_split(port, data) };
        let offset = port.wrapping_sub(m.range.start as u16);
        let result = m.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        if let Err(error) = result {
            data.fill(0xff);
            m.refused("port read", port.into(), data.len(), error);
        }
    }

    /// A wide access that no single device covers goes out as bytes, as on an ISA bus.
    fn port_read_split(&self, port: u16, data: &mut [u8]) {
        if data.len() > 1 {
            for (i, byte) in data.chunks_mut(1).enumerate() {
                self.port_read(port.wrapping_add(i as u16), byte);
            }
        }
    }

    /// OUT: writes `data` (1, 2 or 4 bytes) to `port`.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        let Some(m) = self.port.find(port.into(), data.len()) else {
            if data.len() > 1 {
                for (i, byte) in data.chunks(1).enumerate() {
                    self.port_write(port.wrapping_add(i as u16), byte);
                }
            }
            return;
        };
        let offset = port.wrapping_sub(m.range.start as u16);
        let result = m.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        if let Err(error) = result {
            m.refused("port write", port.into(), data.len(), error);
        }
    }

    /// Reads `data.len()` bytes (1, 2, 4 or 8) at guest-physical `address`.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(m) = self.mmio.find(address, data.len()) else { return };
        let result = m.device.lock().unwrap_or_else(PoisonError::into_inner).read(address - m.range.start, data);
        if let Err(error) = result {
            data.fill(0xff);
            m.refused("MMIO read", address, data.len(), error);
        }
    }

    /// Writes `data` (1, 2, 4 or 8 bytes) at guest-physical `address`.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        let Some(m) = self.mmio.find(address, data.len()) else { return };
        let result = m.device.lock().unwrap_or_else(PoisonError::into_inner).write(address - m.range.start, data);
        if let Err(error) = result {
            m.refused("MMIO write", address, data.len(), error);
        }
    }
}
