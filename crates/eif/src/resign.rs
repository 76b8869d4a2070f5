//! An image written anew with another signature: the sections are copied, the header's table and checksum made to fit.
//!
//! Deliberately missing: changing the file in place. That is where AWS's signer leaves the size of a first signature in the
//! header (aws-nitro-enclaves-image-format issue 54), and an interrupted run would leave half an image.

use std::io::{self, Read, Seek, SeekFrom, Write};

use thiserror::Error;

use crate::error::Error;
use crate::feed::CHUNK;
use crate::header::{CRC_OFFSET, MAX_SECTIONS, SectionKind};
use crate::layout::{Layout, Section, Verdict};
use crate::measure::Measurements;
use crate::output::Output;

/// Why an image cannot be written with another signature.
#[derive(Debug, Error)]
pub enum ResignError {
    /// The image cannot be followed, or is damaged.
    #[error(transparent)]
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
///
#[cfg_attr(
    feature = "signing",
    doc = r#"
```
use eif::signing::{Request, SigningKey};
use std::io::Cursor;

# let image = eif::Writer::new(b"a bzImage".to_vec(), "").ramdisk(vec![1]).to_vec()?;
# let (certificate, key) = ("../eif-cli/tests/keys/p384.pem", "../eif-cli/tests/keys/p384.key.pem");
let (certificate, key) = (std::fs::read(certificate)?, SigningKey::from_pem(&std::fs::read(key)?)?);
let mut signed = Cursor::new(Vec::new());
eif::resign(Cursor::new(&image), &mut signed, |measured| {
    Ok(Request::new(&measured.pcr0, &certificate)?.sign(&key)?)
})?;
let described = eif::Description::read(&mut signed)?;
assert_eq!(described.measurements.pcr8, Some(eif::signing::pcr8(&certificate)?));
# Ok::<(), Box<dyn std::error::Error>>(())
```
"#
)]
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
    let kept = layout.sections.iter().filter(|section| section.kind != SectionKind::Signature);
    if kept.count() >= MAX_SECTIONS {
        return Err(ResignError::Full);
    }
    let mut copied = Output::start(output);
    let mut old_crc = crc32fast::Hasher::new();
    old_crc.update(&layout.header.to_bytes()[..CRC_OFFSET]);
    for (index, section) in layout.sections.iter().enumerate() {
        if section.kind == SectionKind::Signature {
            old_crc.update(&section.header().to_bytes());
            read_section(index, section, &mut image, |chunk| {
                old_crc.update(chunk);
                Ok(())
            })?;
            continue;
        }
        let mut copy = copied.section(section.kind, section.flags)?;
        read_section(index, section, &mut image, |chunk| Ok(copy.write_all(chunk)?))?;
        copy.end()?;
        if let Some(written) = copied.sections().last() {
            old_crc.combine(&written.crc);
        }
    }
    let found = layout.header.crc;
    let expected = old_crc.finalize();
    if found != expected {
        return Err(Error::Crc { found, expected }.into());
    }
    let (copied, measurer) = copied.measured();
    let measurements = measurer.measurements();
    let signature = sign(&measurements).map_err(ResignError::Sign)?;
    copied.finish(layout.header, Some(&signature))?;
    Ok(measurements)
}

/// Hands out a section's data in parts.
fn read_section(
    index: usize,
    section: &Section,
    image: &mut (impl Read + Seek),
    mut each: impl FnMut(&[u8]) -> Result<(), ResignError>,
) -> Result<(), ResignError> {
    let Section { kind, size, .. } = *section;
    let offset = section.data_offset();
    image.seek(SeekFrom::Start(offset)).map_err(|source| Error::Read { offset, source })?;
    let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    let mut done = 0;
    while done < size {
        let wanted = buffer.len().min(usize::try_from(size - done).unwrap_or(CHUNK));
        let chunk = &mut buffer[..wanted];
        image.read_exact(chunk).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::ShortSection { index, kind, offset, found: done, expected: size },
            _ => Error::Read { offset: offset + done, source },
        })?;
        each(chunk)?;
        done += wanted as u64;
    }
    Ok(())
}
