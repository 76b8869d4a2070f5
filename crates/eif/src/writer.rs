//! Makes images of parts that are in memory, by way of [`Builder`].

use std::io::{self, Cursor};

use thiserror::Error;

use crate::builder::Builder;
use crate::header::{MAX_SECTIONS, SectionKind};
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
    /// A part of the image failed to be read.
    #[error("cannot read the {kind}")]
    Read {
        /// Which part.
        kind: SectionKind,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The output failed.
    #[error("cannot write the image")]
    Io(#[from] io::Error),
}

/// Makes an image of version 4 of parts in memory, for x86-64 unless its flags say otherwise. What it writes,
/// [`BootImage::read`](crate::BootImage::read) takes without a warning, as long as the metadata and the signature given to it are
/// well-formed.
///
/// ```
/// let image = eif::Writer::new(b"a bzImage".to_vec(), "console=ttyS0")
///     .metadata(eif::Metadata::new("demo", "1.0").to_json())
///     .ramdisk(b"init and its modules".to_vec())
///     .ramdisk(b"the application".to_vec());
/// let measured = image.measurements();
/// assert_eq!(eif::Description::read(std::io::Cursor::new(image.to_vec()?))?.measurements, measured);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

    /// The image's bytes.
    pub fn to_vec(&self) -> Result<Vec<u8>, WriteError> {
        let output = Cursor::new(Vec::new());
        let mut builder = Builder::start(output, self.flags, &self.kernel[..], &self.cmdline, &self.metadata)?;
        for ramdisk in &self.ramdisks {
            builder = builder.ramdisk(&ramdisk[..])?;
        }
        Ok(builder.measure().finish(self.signature.as_deref())?.into_inner())
    }
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
