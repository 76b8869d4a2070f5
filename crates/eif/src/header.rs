//! The 548-byte header at the start of an image and the 12-byte header before each section. Every field is big-endian.

use std::fmt;

/// The first four bytes of every image.
pub const MAGIC: [u8; 4] = *b".eif";

/// The header's size in bytes.
pub const HEADER_SIZE: usize = 548;

/// The size in bytes of the header before each section's data.
pub const SECTION_HEADER_SIZE: usize = 12;

/// How many sections the header's tables have room for.
pub const MAX_SECTIONS: usize = 32;

/// The version that builders write today, the first with a metadata section.
pub const CURRENT_VERSION: u16 = 4;

/// The header flag that says that the image is for aarch64.
pub const FLAG_AARCH64: u16 = 1;

/// Where the checksum stands, the header's last field and the only bytes that it does not cover.
pub const CRC_OFFSET: usize = 0x220;

pub(crate) const VERSION_OFFSET: usize = 0x004;
pub(crate) const FLAGS_OFFSET: usize = 0x006;
pub(crate) const DEFAULT_MEMORY_OFFSET: usize = 0x008;
pub(crate) const DEFAULT_CPUS_OFFSET: usize = 0x010;
pub(crate) const RESERVED_OFFSET: usize = 0x018;
pub(crate) const SECTION_COUNT_OFFSET: usize = 0x01a;
pub(crate) const SECTION_OFFSETS_OFFSET: usize = 0x01c;
pub(crate) const SECTION_SIZES_OFFSET: usize = 0x11c;
pub(crate) const UNUSED_OFFSET: usize = 0x21c;

/// Whether these are the first bytes of an EIF. Fewer than four bytes never are.
pub fn is_eif(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The image's header, as it stands in the file; nothing in it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `.eif` in a real image.
    pub magic: [u8; 4],
    /// Version of the format.
    pub version: u16,
    /// [`FLAG_AARCH64`] and bits that are not publicly documented.
    pub flags: u16,
    /// Memory in bytes that the builder suggests; builders write 1 GiB and nothing reads it.
    pub default_memory: u64,
    /// Number of CPUs that the builder suggests; builders write 2 and nothing reads it.
    pub default_cpus: u64,
    /// Reserved, zero.
    pub reserved: u16,
    /// How many entries of the two tables are in use.
    pub section_count: u16,
    /// Where each section's header starts, from the start of the file.
    pub section_offsets: [u64; MAX_SECTIONS],
    /// Each section's size in bytes, without its header.
    pub section_sizes: [u64; MAX_SECTIONS],
    /// Reserved, zero.
    pub unused: u32,
    /// CRC-32 (ISO-HDLC, as zlib's) over everything but this field.
    pub crc: u32,
}

impl Header {
    /// Takes the fields out of the header's bytes.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Self {
        Self {
            magic: field(bytes, 0),
            version: u16::from_be_bytes(field(bytes, VERSION_OFFSET)),
            flags: u16::from_be_bytes(field(bytes, FLAGS_OFFSET)),
            default_memory: u64::from_be_bytes(field(bytes, DEFAULT_MEMORY_OFFSET)),
            default_cpus: u64::from_be_bytes(field(bytes, DEFAULT_CPUS_OFFSET)),
            reserved: u16::from_be_bytes(field(bytes, RESERVED_OFFSET)),
            section_count: u16::from_be_bytes(field(bytes, SECTION_COUNT_OFFSET)),
            section_offsets: table(bytes, SECTION_OFFSETS_OFFSET),
            section_sizes: table(bytes, SECTION_SIZES_OFFSET),
            unused: u32::from_be_bytes(field(bytes, UNUSED_OFFSET)),
            crc: u32::from_be_bytes(field(bytes, CRC_OFFSET)),
        }
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE] {
        // Destructured, so that a new field cannot be forgotten here.
        let Self {
            magic,
            version,
            flags,
            default_memory,
            default_cpus,
            reserved,
            section_count,
            section_offsets,
            section_sizes,
            unused,
            crc,
        } = self;
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(0, magic);
        put(VERSION_OFFSET, &version.to_be_bytes());
        put(FLAGS_OFFSET, &flags.to_be_bytes());
        put(DEFAULT_MEMORY_OFFSET, &default_memory.to_be_bytes());
        put(DEFAULT_CPUS_OFFSET, &default_cpus.to_be_bytes());
        put(RESERVED_OFFSET, &reserved.to_be_bytes());
        put(SECTION_COUNT_OFFSET, &section_count.to_be_bytes());
        for index in 0..MAX_SECTIONS {
            put(SECTION_OFFSETS_OFFSET + 8 * index, &section_offsets[index].to_be_bytes());
            put(SECTION_SIZES_OFFSET + 8 * index, &section_sizes[index].to_be_bytes());
        }
        put(UNUSED_OFFSET, &unused.to_be_bytes());
        put(CRC_OFFSET, &crc.to_be_bytes());
        bytes
    }
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// Type 0, which no builder writes.
    Invalid,
    /// Type 1: the kernel, a bzImage on x86-64.
    Kernel,
    /// Type 2: the kernel's command line.
    Cmdline,
    /// Type 3: an initial ramdisk; the kernel gets all of them concatenated.
    Ramdisk,
    /// Type 4, from version 3 on: the signature over PCR0, with its certificate.
    Signature,
    /// Type 5, from version 4 on: a JSON text that says what the image is and who built it.
    Metadata,
    /// A type that the format does not define.
    Unknown(u16),
}

impl SectionKind {
    /// The kind with that number in a section header.
    pub fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Invalid,
            1 => Self::Kernel,
            2 => Self::Cmdline,
            3 => Self::Ramdisk,
            4 => Self::Signature,
            5 => Self::Metadata,
            other => Self::Unknown(other),
        }
    }

    /// The kind's number in a section header.
    pub fn number(self) -> u16 {
        match self {
            Self::Invalid => 0,
            Self::Kernel => 1,
            Self::Cmdline => 2,
            Self::Ramdisk => 3,
            Self::Signature => 4,
            Self::Metadata => 5,
            Self::Unknown(other) => other,
        }
    }

    /// The first version of the format that has this kind of section.
    pub(crate) fn since_version(self) -> u16 {
        match self {
            Self::Signature => 3,
            Self::Metadata => 4,
            _ => 0,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("invalid"),
            Self::Kernel => f.write_str("kernel"),
            Self::Cmdline => f.write_str("cmdline"),
            Self::Ramdisk => f.write_str("ramdisk"),
            Self::Signature => f.write_str("signature"),
            Self::Metadata => f.write_str("metadata"),
            Self::Unknown(number) => write!(f, "unknown (type {number})"),
        }
    }
}

/// The header before each section's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectionHeader {
    pub(crate) kind: SectionKind,
    /// Reserved, zero.
    pub(crate) flags: u16,
    /// Size of the data in bytes, without this header.
    pub(crate) size: u64,
}

impl SectionHeader {
    pub(crate) fn from_bytes(bytes: &[u8; SECTION_HEADER_SIZE]) -> Self {
        Self {
            kind: SectionKind::from_number(u16::from_be_bytes(field(bytes, 0))),
            flags: u16::from_be_bytes(field(bytes, 2)),
            size: u64::from_be_bytes(field(bytes, 4)),
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; SECTION_HEADER_SIZE] {
        let mut bytes = [0; SECTION_HEADER_SIZE];
        bytes[0..2].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.size.to_be_bytes());
        bytes
    }
}

/// The `N` bytes at a constant offset of a header of constant size.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the range has N bytes")
}

fn table(bytes: &[u8; HEADER_SIZE], offset: usize) -> [u64; MAX_SECTIONS] {
    std::array::from_fn(|index| u64::from_be_bytes(field(bytes, offset + 8 * index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_round_trip() {
        let bytes: [u8; HEADER_SIZE] = std::array::from_fn(|index| (index * 7 % 251) as u8);
        assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    }

    #[test]
    fn section_header_bytes_round_trip() {
        let bytes = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2];
        let header = SectionHeader::from_bytes(&bytes);
        assert_eq!(header, SectionHeader { kind: SectionKind::Ramdisk, flags: 1, size: 0x102 });
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn every_section_number_keeps_its_kind() {
        for number in 0..=u16::MAX {
            assert_eq!(SectionKind::from_number(number).number(), number);
        }
    }

    #[test]
    fn is_eif_needs_all_four_bytes() {
        assert!(is_eif(b".eif and more"));
        assert!(!is_eif(b".ei"));
        assert!(!is_eif(b"\x7fELF"));
    }
}
