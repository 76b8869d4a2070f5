//! An image on its way out: sections one after the other, each written, summed and measured as its bytes come, and the header
//! last, because its checksum covers what follows it. No more than a few buffers are in memory.

use std::io::{self, Seek, SeekFrom, Write};

use crate::feed::{CHUNK, Feed};
use crate::header::{CRC_OFFSET, HEADER_SIZE, Header, MAX_SECTIONS, SECTION_HEADER_SIZE, SectionHeader, SectionKind};
use crate::measure::{Measured, Measurer};

/// An image that is being written. If anything fails, what was written is to be thrown away.
pub(crate) struct Output<W> {
    writer: W,
    feed: Feed,
    sections: Vec<Written>,
    /// Where the next section starts.
    end: u64,
}

/// A section that was written.
pub(crate) struct Written {
    header: SectionHeader,
    /// The checksum of the section with its header.
    pub(crate) crc: crc32fast::Hasher,
}

impl<W: Write + Seek> Output<W> {
    /// Starts an image at the writer's first byte.
    pub(crate) fn start(writer: W) -> Self {
        Self { writer, feed: Feed::new(), sections: Vec::new(), end: HEADER_SIZE as u64 }
    }

    /// What was written so far.
    pub(crate) fn sections(&self) -> &[Written] {
        &self.sections
    }

    /// Starts a section.
    pub(crate) fn section(&mut self, kind: SectionKind, flags: u16) -> io::Result<SectionOutput<'_, W>> {
        // The section's header goes in front when the size is known.
        self.writer.seek(SeekFrom::Start(self.end + SECTION_HEADER_SIZE as u64))?;
        if kind == SectionKind::Ramdisk {
            self.feed.begin_ramdisk();
        }
        let mut buffer = self.feed.buffer();
        buffer.clear();
        let header = SectionHeader { kind, flags, size: 0 };
        Ok(SectionOutput { output: self, header, crc: crc32fast::Hasher::new(), buffer })
    }

    /// Writes a section of these bytes.
    pub(crate) fn whole_section(&mut self, kind: SectionKind, bytes: &[u8]) -> io::Result<()> {
        let mut section = self.section(kind, 0)?;
        section.write_all(bytes)?;
        section.end()
    }

    /// Ends the measured part of the image.
    pub(crate) fn measured(self) -> (Finish<W>, Measurer) {
        let Self { writer, feed, sections, end } = self;
        (Finish { output: Output { writer, feed: Feed::new(), sections, end } }, feed.finish())
    }
}

/// An image to which only a signature may be added, and the header.
pub(crate) struct Finish<W> {
    output: Output<W>,
}

impl<W: Write + Seek> Finish<W> {
    /// How many sections there are.
    pub(crate) fn count(&self) -> usize {
        self.output.sections.len()
    }

    /// Writes the signature, if there is one, and the header: this one, with count, tables and checksum made to fit. There must be
    /// at most [`MAX_SECTIONS`].
    pub(crate) fn finish(self, mut header: Header, signature: Option<&[u8]>) -> io::Result<W> {
        let Self { mut output } = self;
        if let Some(signature) = signature {
            output.whole_section(SectionKind::Signature, signature)?;
        }
        header.section_count = output.sections.len() as u16;
        (header.section_offsets, header.section_sizes) = ([0; MAX_SECTIONS], [0; MAX_SECTIONS]);
        let mut offset = HEADER_SIZE as u64;
        for (index, Written { header: section, .. }) in output.sections.iter().enumerate() {
            header.section_offsets[index] = offset;
            header.section_sizes[index] = section.size;
            offset += SECTION_HEADER_SIZE as u64 + section.size;
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header.to_bytes()[..CRC_OFFSET]);
        for section in &output.sections {
            crc.combine(&section.crc);
        }
        header.crc = crc.finalize();
        output.writer.seek(SeekFrom::Start(0))?;
        output.writer.write_all(&header.to_bytes())?;
        output.writer.flush()?;
        Ok(output.writer)
    }
}

/// A section that is being written. It is part of the image when it is [ended](Self::end).
pub(crate) struct SectionOutput<'a, W> {
    output: &'a mut Output<W>,
    header: SectionHeader,
    /// The checksum of the data so far.
    crc: crc32fast::Hasher,
    /// What was not written yet.
    buffer: Vec<u8>,
}

impl<W: Write + Seek> SectionOutput<'_, W> {
    /// Writes what is left, and the section's header in front of it.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.write_buffer()?;
        let header = self.header.to_bytes();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        crc.combine(&self.crc);
        let output = self.output;
        output.writer.seek(SeekFrom::Start(output.end))?;
        output.writer.write_all(&header)?;
        output.end += SECTION_HEADER_SIZE as u64 + self.header.size;
        output.sections.push(Written { header: self.header, crc });
        Ok(())
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.output.writer.write_all(&buffer)?;
        self.crc.update(&buffer);
        self.header.size += buffer.len() as u64;
        self.output.feed.give(Measured::of(self.header.kind), buffer);
        self.buffer = self.output.feed.buffer();
        self.buffer.clear();
        Ok(())
    }
}

impl<W: Write + Seek> Write for SectionOutput<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.write_buffer()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
