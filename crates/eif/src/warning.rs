//! What is odd about an image that is read all the same.

use std::fmt;

use crate::header::{FLAGS_OFFSET, SectionKind};

/// Something that the machine lets pass, but that a user should know.
///
/// Two other readers are public, AWS's (the `aws-nitro-enclaves-image-format` crate, 0.8) and QEMU's (10.0); where one of
/// them, or AWS's service, would not take the image, the warning's text says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Header flags are set that are not publicly documented. Newer builders set some for PCIe.
    HeaderFlags {
        /// The unknown bits.
        bits: u16,
    },
    /// The version is later than any that is known.
    NewerVersion {
        /// The version.
        version: u16,
    },
    /// A reserved field is not zero.
    Reserved {
        /// Where the field stands in the file.
        offset: u64,
        /// Its value.
        found: u64,
    },
    /// A section's flags, all reserved, are not zero.
    SectionFlags {
        /// The section's index in the table.
        index: usize,
        /// The flags.
        flags: u16,
    },
    /// A section of invalid or unknown type counts into the checksum and is skipped.
    SkippedSection {
        /// The section's index in the table.
        index: usize,
        /// Its type.
        kind: SectionKind,
    },
    /// A section of a kind that the image's version does not have yet.
    SectionNewerThanVersion {
        /// The section's index in the table.
        index: usize,
        /// Its type.
        kind: SectionKind,
        /// The image's version.
        version: u16,
    },
    /// The table does not list the sections in the order in which they lie in the file.
    TableOrder {
        /// Index of the first section that lies before its predecessor in the table.
        index: usize,
    },
    /// Bytes that belong to no section. Neither the checksum nor a measurement covers them.
    Gap {
        /// Where they start.
        offset: u64,
        /// How many they are.
        size: u64,
        /// Whether they are the file's last.
        trailing: bool,
    },
    /// A ramdisk comes before the kernel.
    RamdiskBeforeKernel {
        /// The ramdisk's index in the table.
        index: usize,
    },
    /// A version 4 image has no metadata.
    NoMetadata,
    /// The metadata is not the JSON text that it should be.
    MetadataUnreadable {
        /// What is wrong with it.
        reason: String,
    },
    /// There are several sections of a kind of which only the last counts.
    Superseded {
        /// [`SectionKind::Signature`] or [`SectionKind::Metadata`].
        kind: SectionKind,
        /// Index of the section that is ignored.
        index: usize,
    },
    /// The user appended to the command line, which no measurement covers.
    CmdlineNotMeasured,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderFlags { bits } => write!(
                f,
                "unknown header flags {bits:#06x} at offset {FLAGS_OFFSET:#x} are ignored; qemu refuses such an image"
            ),
            Self::NewerVersion { version } => write!(f, "eif version {version} is read as version 4"),
            Self::Reserved { offset, found } => {
                write!(f, "the reserved field at offset {offset:#x} is {found:#x}, expected 0")
            }
            Self::SectionFlags { index, flags } => write!(
                f,
                "section {index} has unknown flags {flags:#06x}, which are ignored; qemu refuses such an image"
            ),
            Self::SkippedSection { index, kind } => {
                write!(f, "section {index} is skipped, its type is {kind}; AWS's reader refuses such an image")
            }
            Self::SectionNewerThanVersion { index, kind, version } => {
                write!(f, "section {index} is a {kind}, which eif version {version} does not have")
            }
            Self::TableOrder { index } => write!(
                f,
                "section {index} lies before section {} in the file; AWS's reader, which follows the file and not the \
                 table, may measure something else",
                index.saturating_sub(1)
            ),
            Self::Gap { offset, size, trailing: false } => write!(
                f,
                "{size} bytes at offset {offset:#x} belong to no section and are not covered by the crc; AWS's reader \
                 cannot read such an image"
            ),
            Self::Gap { offset, size, trailing: true } => write!(
                f,
                "{size} bytes at offset {offset:#x}, after the last section, are not covered by the crc; AWS's reader \
                 may refuse such an image"
            ),
            Self::RamdiskBeforeKernel { index } => {
                write!(f, "section {index}, a ramdisk, comes before the kernel; AWS refuses to run such an image")
            }
            Self::NoMetadata => f.write_str("there is no metadata section; AWS refuses to run such an image"),
            Self::MetadataUnreadable { reason } => {
                write!(f, "the metadata cannot be read ({reason}); AWS's reader refuses such an image")
            }
            Self::Superseded { kind, index } => {
                write!(f, "section {index} is ignored, because another {kind} section follows it")
            }
            Self::CmdlineNotMeasured => f.write_str(
                "the appended command line is not measured: PCR0 and PCR1 say nothing about it, on AWS there is no such \
                 option",
            ),
        }
    }
}
