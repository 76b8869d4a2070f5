//! Makes images while their parts are read, in the section order of AWS's builder: kernel, command line, metadata, ramdisks,
//! signature. Nothing but a few buffers is held in memory.

use std::io::{self, Read, Seek, Write};

use crate::feed::CHUNK;
use crate::header::{CURRENT_VERSION, Header, MAGIC, MAX_SECTIONS, SectionKind};
use crate::measure::Measurements;
use crate::output::{Finish, Output};
use crate::writer::WriteError;

/// Makes an image of version 4, part by part. What it writes, [`BootImage::read`](crate::BootImage::read) takes without a warning,
/// as long as the metadata and the signature given to it are well-formed. A method that fails takes the builder with it, and what
/// was written is to be thrown away.
///
/// Parts may be anything that can be read; [`Writer`](crate::Writer) is for those that are in memory.
///
/// ```
/// use std::io::Cursor;
///
/// let metadata = eif::Metadata::new("demo", "1.0").to_json();
/// let image = eif::Builder::start(Cursor::new(Vec::new()), 0, &b"a bzImage"[..], "console=ttyS0", &metadata)?
///     .ramdisk(&b"a cpio archive"[..])?
///     // A ramdisk that is made while it is written.
///     .ramdisk_with(|output| output.write_all(b"another cpio archive"))?
///     .measure();
///
/// // Now that PCR0 is known, it could be signed.
/// let measured = *image.measurements();
/// let bytes = image.finish(None)?.into_inner();
/// assert_eq!(eif::BootImage::read(Cursor::new(bytes))?.measurements(), measured);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Builder<W> {
    output: Output<W>,
    flags: u16,
    ramdisks: usize,
}

impl<W: Write + Seek> Builder<W> {
    /// Starts an image with these header flags, such as [`FLAG_AARCH64`](crate::FLAG_AARCH64), a kernel, its command line, and a
    /// metadata section, usually [`Metadata::to_json`](crate::Metadata::to_json). It is written from the start of `output`.
    pub fn start(output: W, flags: u16, kernel: impl Read, cmdline: &str, metadata: &[u8]) -> Result<Self, WriteError> {
        let mut builder = Self { output: Output::start(output), flags, ramdisks: 0 };
        builder.copy(SectionKind::Kernel, kernel)?;
        builder.output.whole_section(SectionKind::Cmdline, cmdline.as_bytes())?;
        builder.output.whole_section(SectionKind::Metadata, metadata)?;
        Ok(builder)
    }

    /// Adds a ramdisk. The kernel gets all of them, concatenated in the order in which they were added.
    pub fn ramdisk(mut self, ramdisk: impl Read) -> Result<Self, WriteError> {
        self.ramdisks += 1;
        self.copy(SectionKind::Ramdisk, ramdisk)?;
        Ok(self)
    }

    /// Adds a ramdisk that is made while it is written, such as one of the module `ramdisks`.
    pub fn ramdisk_with<E: From<io::Error>>(
        mut self,
        make: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Self, E> {
        self.ramdisks += 1;
        let mut section = self.output.section(SectionKind::Ramdisk, 0)?;
        make(&mut section)?;
        section.end()?;
        Ok(self)
    }

    /// Ends the parts that are measured.
    pub fn measure(self) -> Unsigned<W> {
        let (output, measurer) = self.output.measured();
        Unsigned { output, measurements: measurer.measurements(), flags: self.flags, ramdisks: self.ramdisks }
    }

    fn copy(&mut self, kind: SectionKind, mut part: impl Read) -> Result<(), WriteError> {
        let mut section = self.output.section(kind, 0)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match part.read(&mut buffer) {
                Ok(0) => return Ok(section.end()?),
                Ok(size) => section.write_all(&buffer[..size])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(source) => return Err(WriteError::Read { kind, source }),
            }
        }
    }
}

/// An image with all of its measured parts, which lacks its header, and a signature if it is to have one.
pub struct Unsigned<W> {
    output: Finish<W>,
    measurements: Measurements,
    flags: u16,
    ramdisks: usize,
}

impl<W: Write + Seek> Unsigned<W> {
    /// The measurements; PCR8 is `None`.
    pub fn measurements(&self) -> &Measurements {
        &self.measurements
    }

    /// Writes a signature section of these bytes, if there are any, and the header.
    pub fn finish(self, signature: Option<&[u8]>) -> Result<W, WriteError> {
        if self.ramdisks == 0 {
            return Err(WriteError::NoRamdisk);
        }
        let found = self.output.count() + usize::from(signature.is_some());
        if found > MAX_SECTIONS {
            return Err(WriteError::TooManySections { found });
        }
        let header = Header {
            magic: MAGIC,
            version: CURRENT_VERSION,
            flags: self.flags,
            default_memory: 1 << 30,
            default_cpus: 2,
            reserved: 0,
            section_count: 0,
            section_offsets: [0; MAX_SECTIONS],
            section_sizes: [0; MAX_SECTIONS],
            unused: 0,
            crc: 0,
        };
        Ok(self.output.finish(header, signature)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A reader that fails after a while.
    struct Failing(usize);

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let size = self.0.min(buffer.len());
            self.0 -= size;
            if size == 0 { Err(io::Error::other("the disk is gone")) } else { Ok(size) }
        }
    }

    #[test]
    fn a_part_that_cannot_be_read_is_named() {
        let builder = Builder::start(Cursor::new(Vec::new()), 0, &b"kernel"[..], "", b"{}").unwrap();
        let Err(error) = builder.ramdisk(Failing(1 << 20)) else { panic!("it was read") };
        assert!(matches!(error, WriteError::Read { kind: SectionKind::Ramdisk, .. }), "{error:?}");
    }

    #[test]
    fn large_parts_are_measured_and_summed_like_small_ones() {
        // Large enough for threads, and of sizes that fit no buffer.
        let parts: Vec<Vec<u8>> = [3 << 20, 5, (4 << 20) + 77].map(|size| vec![size as u8; size]).into();
        let mut builder = Builder::start(Cursor::new(Vec::new()), 0, &parts[0][..], "a", b"{}").unwrap();
        for part in &parts {
            builder = builder.ramdisk(&part[..]).unwrap();
        }
        let image = builder.measure();
        let measured = *image.measurements();
        let bytes = image.finish(None).unwrap().into_inner();
        let read = crate::BootImage::read(Cursor::new(bytes)).unwrap();
        assert_eq!((read.measurements(), read.initrd), (measured, parts.concat()));
    }
}
