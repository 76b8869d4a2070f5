//! An image as far as it can be read, with the reasons for which the machine would not boot it.

use std::io::{Read, Seek};

use crate::error::Error;
use crate::header::Header;
use crate::layout::{Layout, Section, Verdict};
use crate::measure::Measurements;
use crate::metadata::Metadata;
use crate::signature::SigningEntry;
use crate::stream::{Contents, LargeParts};
use crate::warning::Warning;

/// What an image is, without its large parts.
///
/// ```
/// // An image for aarch64 can be described and measured, and will not boot.
/// let image = eif::Writer::new(b"an Image".to_vec(), "console=ttyAMA0").ramdisk(vec![1]).flags(eif::FLAG_AARCH64);
/// let described = eif::Description::read(std::io::Cursor::new(image.to_vec()?))?;
/// assert_eq!(described.measurements, image.measurements());
/// assert_eq!(described.crc, described.header.crc);
/// let refusals: Vec<String> = described.refusals.iter().map(ToString::to_string).collect();
/// assert_eq!(refusals, ["the image is for aarch64 (flags 0x0001 at offset 0x6), expected x86_64"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Description {
    /// The image's header.
    pub header: Header,
    /// The sections in the order of the header's table, their sizes as their own headers have them.
    pub sections: Vec<Section>,
    /// The file's size in bytes.
    pub file_size: u64,
    /// The kernel's command line.
    pub cmdline: String,
    /// The metadata section as it stands in the image.
    pub metadata_json: Option<Vec<u8>>,
    /// The metadata, if there is a section and it can be read.
    pub metadata: Option<Metadata>,
    /// The signature section as it stands in the image.
    pub signature: Option<Vec<u8>>,
    /// What the signature section says first. The signature has not been verified.
    pub signing_entry: Option<SigningEntry>,
    /// The measurements of what is there.
    pub measurements: Measurements,
    /// The checksum of what is there; the header's is [`Header::crc`].
    pub crc: u32,
    /// What is odd about the image.
    pub warnings: Vec<Warning>,
    /// Every reason for which the machine would not boot the image; empty if it would.
    pub refusals: Vec<Error>,
}

impl Description {
    /// Reads an image of version 2 or later, for any architecture. A layout that cannot be followed is an error; every
    /// other broken rule is among the [`refusals`](Self::refusals).
    ///
    /// Besides the small sections, a constant amount of memory is allocated.
    pub fn read<R: Read + Seek>(mut reader: R) -> Result<Self, Error> {
        let mut verdict = Verdict::Collect(Vec::new());
        let Contents {
            layout: Layout { header, sections, file_size, warnings },
            kernel: _,
            cmdline,
            initrd: _,
            ramdisks: _,
            metadata_json,
            metadata,
            signature,
            signing_entry,
            measurer,
            crc,
        } = Contents::read(&mut reader, LargeParts::Measure, &mut verdict)?;
        let refusals = match verdict {
            Verdict::Collect(refusals) => refusals,
            Verdict::Refuse => Vec::new(),
        };
        Ok(Self {
            header,
            sections,
            file_size,
            cmdline,
            metadata_json,
            metadata,
            signature,
            signing_entry,
            measurements: measurer.measurements(),
            crc,
            warnings,
            refusals,
        })
    }
}
