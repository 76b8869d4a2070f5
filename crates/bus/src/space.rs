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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that remember how they were written; offset 0xf refuses.
    struct Ram {
        name: &'static str,
        bytes: Vec<u8>,
        widths: Vec<usize>,
    }

    impl Ram {
        fn new(name: &'static str) -> Arc<Mutex<Self>> {
            Arc::new(Mutex::new(Self { name, bytes: vec![0; 16], widths: Vec::new() }))
        }

        fn get(&mut self, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
            if offset == 0xf {
                data.fill(0x77);
                return Err(IoError::NoRegister { offset });
            }
            let at = offset as usize;
            data.copy_from_slice(&self.bytes[at..at + data.len()]);
            Ok(())
        }

        fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError> {
            let at = offset as usize;
            self.bytes[at..at + data.len()].copy_from_slice(data);
            self.widths.push(data.len());
            Ok(())
        }
    }

    impl PortDevice for Ram {
        fn name(&self) -> &str {
            self.name
        }
        fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
            self.get(offset.into(), data)
        }
        fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
            self.put(offset.into(), data)
        }
    }

    impl MmioDevice for Ram {
        fn name(&self) -> &str {
            self.name
        }
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
            self.get(offset, data)
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError> {
            self.put(offset, data)
        }
    }

    #[test]
    fn an_access_reaches_the_device_with_its_own_offset() {
        let mut builder = AddressSpacesBuilder::new();
        let (a, b) = (Ram::new("a"), Ram::new("b"));
        builder.map_mmio(0x1000, 16, a.clone()).unwrap();
        builder.map_mmio(0x1010, 16, b.clone()).unwrap();
        let spaces = builder.build();
        spaces.mmio_write(0x1014, &[1, 2, 3, 4]);
        assert_eq!(b.lock().unwrap().bytes[4..8], [1, 2, 3, 4]);
        assert_eq!(a.lock().unwrap().bytes, [0; 16]);
        let mut data = [0; 2];
        spaces.mmio_read(0x1015, &mut data);
        assert_eq!(data, [2, 3]);
    }

    #[test]
    fn unmapped_reads_are_ones_and_unmapped_writes_vanish() {
        let spaces = AddressSpacesBuilder::new().build();
        let (mut port, mut mmio) = ([0; 4], [0; 8]);
        spaces.port_read(0x80, &mut port);
        spaces.mmio_read(u64::MAX - 3, &mut mmio);
        spaces.port_write(0x80, &[1]);
        spaces.mmio_write(0, &[1; 8]);
        assert_eq!((port, mmio), ([0xff; 4], [0xff; 8]));
    }

    #[test]
    fn an_mmio_access_across_the_end_of_a_device_reaches_nobody() {
        let mut builder = AddressSpacesBuilder::new();
        let ram = Ram::new("ram");
        builder.map_mmio(0x1000, 16, ram.clone()).unwrap();
        let spaces = builder.build();
        spaces.mmio_write(0x100e, &[1; 4]);
        let mut data = [0; 4];
        spaces.mmio_read(0x100e, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert!(ram.lock().unwrap().widths.is_empty());
    }

    #[test]
    fn a_wide_port_access_across_devices_goes_out_as_bytes() {
        let mut builder = AddressSpacesBuilder::new();
        let (a, b) = (Ram::new("a"), Ram::new("b"));
        builder.map_port(0x20, 1, a.clone()).unwrap();
        builder.map_port(0x21, 1, b.clone()).unwrap();
        let spaces = builder.build();
        spaces.port_write(0x20, &[0x11, 0x22]);
        assert_eq!((a.lock().unwrap().bytes[0], b.lock().unwrap().bytes[0]), (0x11, 0x22));
        let mut data = [0; 4];
        spaces.port_read(0x20, &mut data);
        assert_eq!(data, [0x11, 0x22, 0xff, 0xff]);
    }

    #[test]
    fn a_wide_port_access_inside_a_device_stays_whole() {
        let mut builder = AddressSpacesBuilder::new();
        let ram = Ram::new("ram");
        builder.map_port(0x510, 16, ram.clone()).unwrap();
        builder.build().port_write(0x510, &[1, 2, 3, 4]);
        assert_eq!(ram.lock().unwrap().widths, [4]);
    }

    #[test]
    fn a_wide_port_access_at_the_top_wraps_without_panic() {
        let mut data = [0; 4];
        AddressSpacesBuilder::new().build().port_read(0xffff, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn a_refused_read_is_ones_whatever_the_device_left_behind() {
        let mut builder = AddressSpacesBuilder::new();
        builder.map_port(0, 16, Ram::new("ram")).unwrap();
        let mut data = [0];
        builder.build().port_read(0xf, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn overlaps_are_refused_and_name_both() {
        let mut builder = AddressSpacesBuilder::new();
        builder.map_port(0x20, 4, Ram::new("first")).unwrap();
        for (base, len) in [(0x1f, 2), (0x23, 1), (0x21, 1), (0x10, 0x100)] {
            let error = builder.map_port(base, len, Ram::new("second")).unwrap_err();
            assert_eq!((error.name.as_str(), error.other.as_str()), ("second", "first"), "{base:#x}");
        }
        builder.map_port(0x24, 1, Ram::new("after")).unwrap();
        builder.map_port(0x1f, 1, Ram::new("before")).unwrap();
    }

    #[test]
    fn empty_and_out_of_bounds_ranges_are_refused() {
        let mut builder = AddressSpacesBuilder::new();
        assert!(builder.map_port(0x20, 0, Ram::new("empty")).is_err());
        assert!(builder.map_port(0xfff8, 9, Ram::new("long")).is_err());
        assert!(builder.map_mmio(u64::MAX - 1, 16, Ram::new("wraps")).is_err());
    }
}
