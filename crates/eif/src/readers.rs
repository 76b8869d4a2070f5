//! What the other public readers make of an image, each by its own rules.
//!
//! Modelled are QEMU 10.0 (`hw/core/eif.c`), which follows the header's table, AWS's crate 0.8 (`EifReader`), which follows
//! the file from section to section and does not look at the table, and what AWS's service is known to refuse besides.
//!
//! Deliberately missing: whether GnuTLS (QEMU) and OpenSSL (AWS's crate) can decode the signing certificate; that it is PEM is
//! taken for it.

use std::io::{self, Read, Seek, SeekFrom};

use serde::Serialize;

use crate::description::Description;
use crate::error::Error;
use crate::header::{HEADER_SIZE, SECTION_HEADER_SIZE, SectionHeader, SectionKind};
use crate::metadata::{MAX_PARSED_SIZE, Metadata};
use crate::signature::{MAX_SIGNATURE_SIZE, SigningEntry};
use crate::warning::Warning;

/// More sections than this are not followed; no image that is meant to be read has so many.
const MOST_SECTIONS: usize = 4096;

/// The name of QEMU's reader. It refuses images that AWS runs, such as those with a PCIe flag.
pub const QEMU: &str = "QEMU 10.0";

/// What one reader makes of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Judgement {
    /// The reader's name.
    pub reader: &'static str,
    /// Whether it takes the image.
    pub accepts: bool,
    /// Why not; or, if it does, what it does not notice.
    pub reasons: Vec<String>,
}

impl Judgement {
    fn of(reader: &'static str, refusals: Vec<String>, remarks: Vec<String>) -> Self {
        let accepts = refusals.is_empty();
        Self { reader, accepts, reasons: if accepts { remarks } else { refusals } }
    }
}

/// What each reader makes of an image that can be described. Only section headers, signatures and metadata are read.
///
/// ```
/// # let image = eif::Writer::new(b"an Image".to_vec(), "").ramdisk(vec![1]).flags(eif::FLAG_AARCH64).to_vec()?;
/// let mut file = std::io::Cursor::new(image);
/// let described = eif::Description::read(&mut file)?;
/// for eif::Judgement { reader, accepts, reasons } in eif::judge(file, &described)? {
///     // For an image for aarch64: vmm and QEMU refuse it, AWS's crate and service take it.
///     assert_eq!(accepts, reader.starts_with("AWS"), "{reader}: {reasons:?}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn judge<R: Read + Seek>(image: R, description: &Description) -> io::Result<Vec<Judgement>> {
    Ok(vec![ours(description), qemu(description), aws_crate(image, description)?, aws_service(description)])
}

fn ours(description: &Description) -> Judgement {
    let refusals = description.refusals.iter().map(ToString::to_string).collect();
    let remarks = description.warnings.iter().map(ToString::to_string).collect();
    Judgement::of("vmm", refusals, remarks)
}

fn qemu(description: &Description) -> Judgement {
    let mut refusals: Vec<String> = description
        .refusals
        .iter()
        // It hands the command line on as bytes.
        .filter(|refusal| !matches!(refusal, Error::CmdlineNotText { .. } | Error::Architecture { .. }))
        .map(ToString::to_string)
        .collect();
    if description.header.flags != 0 {
        refusals.push(format!("the header's flags are {:#06x}, expected 0", description.header.flags));
    }
    for (index, section) in description.sections.iter().enumerate().filter(|(_, section)| section.flags != 0) {
        refusals.push(format!("the flags of section {index} are {:#06x}, expected 0", section.flags));
    }
    Judgement::of(QEMU, refusals, Vec::new())
}

fn aws_crate<R: Read + Seek>(mut image: R, description: &Description) -> io::Result<Judgement> {
    let (mut refusals, mut remarks) = (Vec::new(), Vec::new());
    let mut walked = Vec::new();
    let mut offset = HEADER_SIZE as u64;
    // It takes whatever is too short for a section header as the end of the file.
    while description.file_size.saturating_sub(offset) >= SECTION_HEADER_SIZE as u64 {
        let mut bytes = [0; SECTION_HEADER_SIZE];
        image.seek(SeekFrom::Start(offset))?;
        image.read_exact(&mut bytes)?;
        let SectionHeader { kind, size, .. } = SectionHeader::from_bytes(&bytes);
        if matches!(kind, SectionKind::Invalid | SectionKind::Unknown(_)) {
            refusals.push(format!("what it takes for a section at offset {offset:#x} is of type {kind}"));
            break;
        }
        let data = offset + SECTION_HEADER_SIZE as u64;
        if size > description.file_size - data {
            refusals.push(format!(
                "what it takes for a section at offset {offset:#x} has {} bytes before the file ends, expected {size}",
                description.file_size - data
            ));
            break;
        }
        refusals.extend(undecodable(&mut image, kind, data, size)?);
        walked.push(offset);
        offset = data + size;
        if walked.len() == MOST_SECTIONS {
            refusals.push(format!("there are more than {MOST_SECTIONS} sections"));
            break;
        }
    }
    for refusal in &description.refusals {
        match refusal {
            Error::Crc { .. } => remarks.push(format!("it reports, and does not refuse, that {refusal}")),
            Error::StaleSize { .. } => remarks.push("it does not notice sizes in the header that are stale".to_owned()),
            Error::MissingSection { .. } | Error::SecondSection { .. } => {
                remarks.push(format!("it does not notice that {refusal}"));
            }
            _ => (),
        }
    }
    let table: Vec<u64> = description.sections.iter().map(|section| section.offset).collect();
    if refusals.is_empty() && walked != table {
        remarks.push("it finds other sections, or the same in another order, and measures those".to_owned());
    }
    Ok(Judgement::of("AWS's crate 0.8", refusals, remarks))
}

/// Why the crate ends at a section whose data it decodes: it decodes every signature and all metadata, not only the last.
fn undecodable<R: Read + Seek>(image: &mut R, kind: SectionKind, data: u64, size: u64) -> io::Result<Option<String>> {
    let longest = match kind {
        SectionKind::Signature => MAX_SIGNATURE_SIZE,
        SectionKind::Metadata => MAX_PARSED_SIZE as u64,
        _ => return Ok(None),
    };
    // The crate has no limit; what is longer than ours is not read for the sake of a remark.
    if size > longest {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    image.seek(SeekFrom::Start(data))?;
    image.take(size).read_to_end(&mut bytes)?;
    Ok(match kind {
        SectionKind::Signature => SigningEntry::decode(&bytes)
            .err()
            .map(|error| format!("the signature at offset {data:#x} cannot be decoded: {error}")),
        _ => Metadata::parse(&bytes)
            .err()
            .map(|reason| format!("the metadata at offset {data:#x} cannot be read: {reason}")),
    })
}

fn aws_service(description: &Description) -> Judgement {
    let mut refusals = Vec::new();
    for refusal in &description.refusals {
        // Both architectures and every version with a checksum run there.
        if !matches!(refusal, Error::Architecture { .. } | Error::Version { .. }) {
            refusals.push(refusal.to_string());
        }
    }
    for warning in &description.warnings {
        if matches!(warning, Warning::NoMetadata | Warning::RamdiskBeforeKernel { .. }) {
            refusals.push(warning.to_string());
        }
    }
    Judgement::of("AWS Nitro Enclaves", refusals, Vec::new())
}
