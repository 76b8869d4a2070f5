//! Makes images, in the section order of AWS's builder: kernel, command line, metadata, ramdisks, signature.

use std::io::{self, Write};

use thiserror::Error;

use crate::header::{
    CRC_OFFSET, CURRENT_VERSION, HEADER_SIZE, Header, MAGIC, MAX_SECTIONS, SECTION_HEADER_SIZE, SectionHeader,
    SectionKind,
};
use crate::measure::{Measured, Measurements, Measurer};
use crate::metadata::Metadata;

/// Why an image cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// An image needs at least one ramdisk.
    #[error("an eif needs at least one ramdisk")]
    NoRamdisk,
    /// The header's tables have no room for so many sections.
    #[error("{found} sections do not fit into an eif, which has at most {MAX_SECTIONS}")]
    TooManySections {
        /// How many there are.
        found: usize,
    },
    /// The output failed.
    #[error("cannot write the image")]
    Io(#[from] io::Error),
}

/// Builds an image of version 4, for x86-64 unless its flags say otherwise. What it writes, [`BootImage::read`](crate::BootImage::read) takes without a
/// warning, as long as the metadata and the signature given to it are well-formed.
#[derive(Debug, Clone)]
pub struct Writer {
    kernel: Vec<u8>,
    cmdline: String,
    metadata: Vec<u8>,
    ramdisks: Vec<Vec<u8>>,
    signature: Option<Vec<u8>>,
    flags: u16,
}

impl Writer {
    /// Starts an image of a kernel and its command line, with metadata of no particular name.
    pub fn new(kernel: Vec<u8>, cmdline: &str) -> Self {
        Self {
            kernel,
            cmdline: cmdline.to_owned(),
            metadata: Metadata::new("unnamed", "0").to_json(),
            ramdisks: Vec::new(),
            signature: None,
            flags: 0,
        }
    }

    /// Sets the metadata section to a JSON text, usually [`Metadata::to_json`].
    #[must_use]
    pub fn metadata(mut self, json: impl Into<Vec<u8>>) -> Self {
        self.metadata = json.into();
        self
    }

    /// Adds a ramdisk. The kernel gets all of them, concatenated in the order in which they were added.
    #[must_use]
    pub fn ramdisk(mut self, bytes: Vec<u8>) -> Self {
        self.ramdisks.push(bytes);
        self
    }

    /// Adds a signature section of these bytes.
    #[must_use]
    pub fn signature(mut self, bytes: Vec<u8>) -> Self {
        self.signature = Some(bytes);
        self
    }

    /// Sets the header's flags, such as [`FLAG_AARCH64`](crate::FLAG_AARCH64).
    #[must_use]
    pub fn flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }

    /// The measurements of the image without its signature: PCR8 is `None`.
    pub fn measurements(&self) -> Measurements {
        let mut measurer = Measurer::default();
        measurer.update(Measured::Boot, &self.kernel);
        measurer.update(Measured::Boot, self.cmdline.as_bytes());
        for ramdisk in &self.ramdisks {
            measurer.begin_ramdisk();
            measurer.update(Measured::Ramdisk, ramdisk);
        }
        measurer.measurements()
    }

    /// Writes the image.
    pub fn write_to(&self, output: &mut impl Write) -> Result<(), WriteError> {
        let sections = self.sections()?;
        output.write_all(&header_of(&sections, self.flags).to_bytes())?;
        for (header, data) in sections {
            output.write_all(&header.to_bytes())?;
            output.write_all(data)?;
        }
        Ok(())
    }

    /// The image as bytes.
    pub fn to_vec(&self) -> Result<Vec<u8>, WriteError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    fn sections(&self) -> Result<Vec<(SectionHeader, &[u8])>, WriteError> {
        if self.ramdisks.is_empty() {
            return Err(WriteError::NoRamdisk);
        }
        let section = |kind, data: &[u8]| SectionHeader { kind, flags: 0, size: data.len() as u64 };
        let mut sections = Vec::new();
        let mut push = |kind, data| sections.push((section(kind, data), data));
        push(SectionKind::Kernel, &*self.kernel);
        push(SectionKind::Cmdline, self.cmdline.as_bytes());
        push(SectionKind::Metadata, &self.metadata);
        for ramdisk in &self.ramdisks {
            push(SectionKind::Ramdisk, ramdisk);
        }
        if let Some(signature) = &self.signature {
            push(SectionKind::Signature, signature);
        }
        match sections.len() {
            found if found > MAX_SECTIONS => Err(WriteError::TooManySections { found }),
            _ => Ok(sections),
        }
    }
}

/// The header of an image of at most [`MAX_SECTIONS`] sections that follow each other without gaps.
fn header_of(sections: &[(SectionHeader, &[u8])], flags: u16) -> Header {
    let mut header = Header {
        magic: MAGIC,
        version: CURRENT_VERSION,
        flags,
        default_memory: 1 << 30,
        default_cpus: 2,
        reserved: 0,
        section_count: sections.len() as u16,
        section_offsets: [0; MAX_SECTIONS],
        section_sizes: [0; MAX_SECTIONS],
        unused: 0,
        crc: 0,
    };
    let mut offset = HEADER_SIZE as u64;
    for (index, (section, _)) in sections.iter().enumerate() {
        header.section_offsets[index] = offset;
        header.section_sizes[index] = section.size;
        offset += SECTION_HEADER_SIZE as u64 + section.size;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header.to_bytes()[..CRC_OFFSET]);
    for (section, data) in sections {
        crc.update(&section.to_bytes());
        crc.update(data);
    }
    header.crc = crc.finalize();
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_without_a_ramdisk_is_not_written() {
        assert!(matches!(Writer::new(vec![1], "").to_vec(), Err(WriteError::NoRamdisk)));
    }

    #[test]
    fn thirty_two_sections_fit_and_one_more_does_not() {
        let mut writer = Writer::new(vec![1], "");
        for _ in 0..29 {
            writer = writer.ramdisk(vec![2]);
        }
        assert!(writer.to_vec().is_ok());
        let writer = writer.signature(vec![3]);
        assert!(matches!(writer.to_vec(), Err(WriteError::TooManySections { found: 33 })));
    }
}
