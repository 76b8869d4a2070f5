//! Every rule of the format has its own error, with the offset in the file, what was found and what was expected.

use std::io;

use thiserror::Error;

use crate::header::{
    CRC_OFFSET, FLAGS_OFFSET, HEADER_SIZE, MAX_SECTIONS, SECTION_COUNT_OFFSET, SECTION_HEADER_SIZE, SectionKind,
    VERSION_OFFSET,
};
use crate::signature::SignatureError;

/// Why an image cannot be read, or would not be booted. All offsets are from the start of the file.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read at offset {offset:#x}")]
    Read {
        /// Where.
        offset: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file ends within the header.
    #[error("the file has {found} bytes, but an eif starts with a header of {HEADER_SIZE} bytes")]
    ShortHeader {
        /// The file's size in bytes.
        found: u64,
    },
    /// The file does not start like an EIF.
    #[error("not an eif: the file starts with {}, expected \".eif\"", found.escape_ascii())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that is too old to boot, or (0 and 1) even to check.
    #[error("eif version {found} at offset {VERSION_OFFSET:#x}, expected 4 or later")]
    Version {
        /// The version.
        found: u16,
    },
    /// The image is for another architecture.
    #[error("the image is for aarch64 (flags {found:#06x} at offset {FLAGS_OFFSET:#x}), expected x86_64")]
    Architecture {
        /// The header flags.
        found: u16,
    },
    /// The header claims more sections than its tables have room for.
    #[error("{found} sections at offset {SECTION_COUNT_OFFSET:#x}, expected at most {MAX_SECTIONS}")]
    TooManySections {
        /// The section count.
        found: u16,
    },
    /// A section starts within the header.
    #[error("section {index} starts at offset {offset:#x}, within the header; expected {HEADER_SIZE:#x} or later")]
    SectionInHeader {
        /// The section's index in the table.
        index: usize,
        /// Where the section starts.
        offset: u64,
    },
    /// A section starts at or past the end of the file.
    #[error("section {index} starts at offset {offset:#x}, but the file ends at {file_size:#x}")]
    SectionOutsideFile {
        /// The section's index in the table.
        index: usize,
        /// Where the section starts.
        offset: u64,
        /// The file's size in bytes.
        file_size: u64,
    },
    /// The file ends within a section's header.
    #[error(
        "the header of section {index} at offset {offset:#x} has {found} bytes before the file ends, \
         expected {SECTION_HEADER_SIZE}"
    )]
    ShortSectionHeader {
        /// The section's index in the table.
        index: usize,
        /// Where the section starts.
        offset: u64,
        /// How many bytes are left of the file.
        found: u64,
    },
    /// The image's header and the section's own header disagree about the section's size.
    #[error(
        "the size of section {index} ({kind}) is {in_header} bytes in the header's table at offset {offset:#x}, but \
         {in_section} bytes in the section's own header at offset {section_offset:#x}"
    )]
    StaleSize {
        /// The section's index in the table.
        index: usize,
        /// What the section holds.
        kind: SectionKind,
        /// Where the table's entry stands.
        offset: u64,
        /// Where the section starts.
        section_offset: u64,
        /// The size in the table.
        in_header: u64,
        /// The size in the section's header.
        in_section: u64,
    },
    /// The file ends within a section's data.
    #[error(
        "section {index} ({kind}) has {found} bytes of data from offset {offset:#x} before the file ends, \
         expected {expected}"
    )]
    ShortSection {
        /// The section's index in the table.
        index: usize,
        /// What the section holds.
        kind: SectionKind,
        /// Where the section's data starts.
        offset: u64,
        /// How many bytes are left of the file.
        found: u64,
        /// The size that the section claims.
        expected: u64,
    },
    /// Two sections share bytes.
    #[error(
        "section {second} ({second_kind}) starts at offset {offset:#x}, within section {first} ({first_kind}); \
         expected {first_end:#x} or later"
    )]
    Overlap {
        /// Index of the section that starts first.
        first: usize,
        /// What it holds.
        first_kind: SectionKind,
        /// Where it ends.
        first_end: u64,
        /// Index of the section that starts within it.
        second: usize,
        /// What that one holds.
        second_kind: SectionKind,
        /// Where that one starts.
        offset: u64,
    },
    /// There is a second kernel or a second command line.
    #[error("section {index} at offset {offset:#x} is a second {kind}, the first is section {first}; expected one")]
    SecondSection {
        /// [`SectionKind::Kernel`] or [`SectionKind::Cmdline`].
        kind: SectionKind,
        /// The first such section's index in the table.
        first: usize,
        /// The second's.
        index: usize,
        /// Where the second starts.
        offset: u64,
    },
    /// There is no kernel, no command line or no ramdisk.
    #[error("none of the {sections} sections is a {kind}, expected {}", if *kind == SectionKind::Ramdisk { "at least one" } else { "one" })]
    MissingSection {
        /// [`SectionKind::Kernel`], [`SectionKind::Cmdline`] or [`SectionKind::Ramdisk`].
        kind: SectionKind,
        /// How many sections there are.
        sections: usize,
    },
    /// The checksum does not match the bytes.
    #[error("the crc at offset {CRC_OFFSET:#x} is {found:#010x}, but the image's bytes give {expected:#010x}")]
    Crc {
        /// The checksum in the header.
        found: u32,
        /// The checksum of the image.
        expected: u32,
    },
    /// The command line cannot be given to a kernel.
    #[error("the cmdline is not text: byte {found:#04x} at offset {offset:#x}")]
    CmdlineNotText {
        /// Where.
        offset: u64,
        /// The first byte that is neither UTF-8 nor allowed within a C string.
        found: u8,
    },
    /// The signature section cannot be decoded, so PCR8 cannot be measured.
    #[error("the signature in section {index} at offset {offset:#x} cannot be decoded")]
    Signature {
        /// The section's index in the table.
        index: usize,
        /// Where the section's data starts.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: SignatureError,
    },
    /// The host has no memory for a section that the file does hold.
    #[error("not enough memory for the {size} bytes of section {index} ({kind})")]
    OutOfMemory {
        /// The section's index in the table.
        index: usize,
        /// What the section holds.
        kind: SectionKind,
        /// Its size in bytes.
        size: u64,
    },
}

impl Error {
    /// What to do about it, where the cause is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Magic { .. } => Some("an enclave image is made by `nitro-cli build-enclave` or `eif build`"),
            Self::Version { .. } => {
                Some("the image was made by an old tool; nitro-cli 1.2 or later and `eif build` write version 4")
            }
            Self::Architecture { .. } => Some("build the image on, or for, an x86_64 parent instance"),
            Self::StaleSize { kind: SectionKind::Signature, .. } => Some(
                "the image was probably signed a second time by AWS's tools, which leave the first signature's size \
                 in the header (aws-nitro-enclaves-image-format issue 54); `eif sign` signs it anew with a header that fits",
            ),
            Self::StaleSize { .. } => Some(
                "a tool that replaced a section left the old size in the header, as AWS's tools do when they sign an \
                 image again (aws-nitro-enclaves-image-format issue 54); build the image again",
            ),
            Self::ShortHeader { .. } | Self::ShortSectionHeader { .. } | Self::ShortSection { .. } => {
                Some("the file is probably truncated: compare its size with the original's")
            }
            Self::Crc { .. } => Some("the file was damaged or changed after it was built"),
            _ => None,
        }
    }
}
