//! The zero page, `struct boot_params` (Documentation/arch/x86/zero-page.rst, Linux 6.12).

use crate::setup_header::SetupHeader;
use crate::{BootError, E820Entry};

const SIZE: usize = 4096;
const HEADER: usize = 0x1f1;
/// `type_of_loader` of a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Most entries of `e820_table`.
const E820_MAX: usize = 128;

/// Offsets of the fields that are written here.
mod field {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub(super) const EXT_CMD_LINE_PTR: usize = 0x0c8;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

pub(crate) struct ZeroPage(Box<[u8; SIZE]>);

impl ZeroPage {
    /// A page that is zero but for the kernel's own setup header.
    pub(crate) fn new(header: &SetupHeader) -> Self {
        let mut page = Self(Box::new([0; SIZE]));
        page.put(HEADER, &header.raw);
        page.put(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        // Whatever the image's file said of a ramdisk or command line is not ours.
        page.set_ramdisk(0, 0);
        page
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a 64-bit value whose halves lie apart.
    fn put_split(&mut self, low: usize, high: usize, value: u64) {
        self.put(low, &(value as u32).to_le_bytes());
        self.put(high, &((value >> 32) as u32).to_le_bytes());
    }

    pub(crate) fn set_cmdline(&mut self, address: u64) {
        self.put_split(field::CMD_LINE_PTR, field::EXT_CMD_LINE_PTR, address);
    }

    pub(crate) fn set_ramdisk(&mut self, address: u64, len: u64) {
        self.put_split(field::RAMDISK_IMAGE, field::EXT_RAMDISK_IMAGE, address);
        self.put_split(field::RAMDISK_SIZE, field::EXT_RAMDISK_SIZE, len);
    }

    pub(crate) fn set_rsdp(&mut self, address: u64) {
        self.put(field::ACPI_RSDP_ADDR, &address.to_le_bytes());
    }

    pub(crate) fn set_e820(&mut self, map: &[E820Entry]) -> Result<(), BootError> {
        let count = u8::try_from(map.len()).ok().filter(|n| usize::from(*n) <= E820_MAX);
        let count = count.ok_or(BootError::E820 { found: map.len(), max: E820_MAX })?;
        self.put(field::E820_ENTRIES, &[count]);
        for (i, entry) in map.iter().enumerate() {
            let at = field::E820_TABLE + i * 20;
            self.put(at, &entry.start.to_le_bytes());
            self.put(at + 8, &entry.end.saturating_sub(entry.start).to_le_bytes());
            self.put(at + 16, &entry.kind.number().to_le_bytes());
        }
        Ok(())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}
