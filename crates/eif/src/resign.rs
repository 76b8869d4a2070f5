//! An image written anew with another signature: the sections are copied, the header's table and checksum made to fit.
//!
//! Deliberately missing: changing the file in place. That is where AWS's signer leaves the size of a first signature in the
//! header (aws-nitro-enclaves-image-format issue 54), and an interrupted run would leave half an image.

use std::io::{self, Read, Seek, SeekFrom, Write};

use thiserror::Error;

use crate::error::Error;
use crate::header::{CRC_OFFSET, HEADER_SIZE, Header, MAX_SECTIONS, SECTION_HEADER_SIZE, SectionHeader, SectionKind};
use crate::layout::{Layout, Section, Verdict};
use crate::measure::{Measured, Measurements, Measurer};

/// How many bytes are copied at a time.
const CHUNK: usize = 128 << 10;

/// Why an image cannot be written with another signature.
#[derive(Debug, Error)]
pub enum ResignError {
    /// The image cannot be followed, or is damaged.
    #[error("the image cannot be signed")]
    Image(#[from] Error),
    /// The version has no signatures.
    #[error("eif version {version} has no signatures, expected 3 or later")]
    Version {
        /// The image's version.
        version: u16,
    },
    /// The header's table has no room for one more section.
    #[error("the image has {MAX_SECTIONS} sections already: there is no room for a signature")]
    Full,
    /// The signature could not be made.
    #[error("the signature cannot be made")]
    Sign(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The output failed.
    #[error("cannot write the image")]
    Write(#[from] io::Error),
}

/// Copies an image and puts the signature section that `sign` makes of its measurements at the end, in place of every one
/// that it has. Sections keep the order of the table; gaps between them are not kept. Returns the measurements, without PCR8.
///
/// An image whose checksum is wrong is refused, so that damage is never signed. If this fails, the output is to be thrown away.
pub fn resign<R: Read + Seek, W: Write + Seek>(
    mut image: R,
    output: &mut W,
    sign: impl FnOnce(&Measurements) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<Measurements, ResignError> {
    let layout = Layout::read(&mut image, &mut Verdict::Collect(Vec::new()))?;
    let version = layout.header.version;
    if version < SectionKind::Signature.since_version() {
        return Err(ResignError::Version { version });
    }
    let mut kept = layout.sections.iter().filter(|section| section.kind != SectionKind::Signature);
    if kept.clone().count() >= MAX_SECTIONS {
        return Err(ResignError::Full);
    }
    // The header comes last, because its checksum covers what follows it.
    output.seek(SeekFrom::Start(HEADER_SIZE as u64))?;
    let mut copy = Copy { measurer: Measurer::default(), old_crc: crc32fast::Hasher::new(), table: Vec::new(), output };
    copy.old_crc.update(&layout.header.to_bytes()[..CRC_OFFSET]);
    for (index, section) in layout.sections.iter().enumerate() {
        copy.section(index, section, &mut image)?;
    }
    let found = layout.header.crc;
    let expected = copy.old_crc.finalize();
    if found != expected {
        return Err(Error::Crc { found, expected }.into());
    }
    let measurements = copy.measurer.measurements();
    let signature = sign(&measurements).map_err(ResignError::Sign)?;
    let mut sections: Vec<SectionHeader> = kept.by_ref().map(Section::header).collect();
    let last = SectionHeader { kind: SectionKind::Signature, flags: 0, size: signature.len() as u64 };
    copy.output.write_all(&last.to_bytes())?;
    copy.output.write_all(&signature)?;
    sections.push(last);

    let mut header = layout.header;
    header.section_count = sections.len() as u16;
    (header.section_offsets, header.section_sizes) = tables(&sections);
    let mut tail = crc32fast::Hasher::new();
    tail.update(&last.to_bytes());
    tail.update(&signature);
    header.crc = checksum(&header, copy.table.iter().chain([&tail]));
    copy.output.seek(SeekFrom::Start(0))?;
    copy.output.write_all(&header.to_bytes())?;
    copy.output.flush()?;
    Ok(measurements)
}

/// The header's tables for sections that follow each other without gaps.
fn tables(sections: &[SectionHeader]) -> ([u64; MAX_SECTIONS], [u64; MAX_SECTIONS]) {
    let (mut offsets, mut sizes) = ([0; MAX_SECTIONS], [0; MAX_SECTIONS]);
    let mut offset = HEADER_SIZE as u64;
    for ((section, place), size) in sections.iter().zip(&mut offsets).zip(&mut sizes) {
        (*place, *size) = (offset, section.size);
        offset += SECTION_HEADER_SIZE as u64 + section.size;
    }
    (offsets, sizes)
}

/// The checksum of a header and of sections whose own checksums are known.
fn checksum<'a>(header: &Header, sections: impl Iterator<Item = &'a crc32fast::Hasher>) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header.to_bytes()[..CRC_OFFSET]);
    for section in sections {
        crc.combine(section);
    }
    crc.finalize()
}

struct Copy<'a, W> {
    measurer: Measurer,
    /// The checksum of the image as it was.
    old_crc: crc32fast::Hasher,
    /// The checksum of each section that was copied, with its header.
    table: Vec<crc32fast::Hasher>,
    output: &'a mut W,
}

impl<W: Write> Copy<'_, W> {
    /// Copies a section, or if it is a signature only takes its checksum.
    fn section(&mut self, index: usize, section: &Section, image: &mut (impl Read + Seek)) -> Result<(), ResignError> {
        let Section { kind, size, .. } = *section;
        let offset = section.data_offset();
        let header = section.header().to_bytes();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        let kept = kind != SectionKind::Signature;
        if kept {
            self.output.write_all(&header)?;
        }
        if kind == SectionKind::Ramdisk {
            self.measurer.begin_ramdisk();
        }
        image.seek(SeekFrom::Start(offset)).map_err(|source| Error::Read { offset, source })?;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < size {
            let wanted = buffer.len().min(usize::try_from(size - done).unwrap_or(CHUNK));
            let chunk = &mut buffer[..wanted];
            image.read_exact(chunk).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::ShortSection { index, kind, offset, found: done, expected: size }
                }
                _ => Error::Read { offset: offset + done, source },
            })?;
            crc.update(chunk);
            match kind {
                SectionKind::Kernel | SectionKind::Cmdline => self.measurer.update(Measured::Boot, chunk),
                SectionKind::Ramdisk => self.measurer.update(Measured::Ramdisk, chunk),
                _ => (),
            }
            if kept {
                self.output.write_all(chunk)?;
            }
            done += wanted as u64;
        }
        self.old_crc.combine(&crc);
        if kept {
            self.table.push(crc);
        }
        Ok(())
    }
}
