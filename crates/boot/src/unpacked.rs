//! A file that was decompressed into the guest's RAM, where its segments are moved from, as the kernel's own stub does it (Linux 6.12,
//! arch/x86/boot/compressed/misc.c, `parse_elf`): so it needs no memory of the VMM's.

use std::ops::Range;

use crate::BootError;
use crate::elf::{MAX_REST, Segment, Source};
use crate::ram::Ram;

/// The file in guest RAM.
pub(crate) struct Unpacked<'a> {
    pub(crate) name: &'a str,
    pub(crate) ram: &'a Ram<'a>,
    /// Where it lies.
    pub(crate) place: Range<u64>,
}

impl Unpacked<'_> {
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
        let start = self.place.start.saturating_add(offset).min(self.place.end);
        self.ram.read(start, len.min(self.place.end - start))
    }

    /// Where a segment lies in the file.
    fn source(&self, segment: &Segment) -> Result<Range<u64>, BootError> {
        let start = self.place.start + segment.offset;
        let end = start + segment.file_size;
        if end > self.place.end {
            return Err(BootError::Truncated {
                name: self.name.to_owned(),
                what: "an ELF segment",
                expected: segment.offset + segment.file_size,
                found: self.place.end - self.place.start,
            });
        }
        Ok(start..end)
    }
}

impl Source for Unpacked<'_> {
    fn head(&mut self, size: usize) -> Result<Vec<u8>, BootError> {
        self.read(0, size as u64)
    }

    fn place(&mut self, ram: &Ram<'_>, segments: &[Segment], rest_from: Option<u64>) -> Result<Vec<u8>, BootError> {
        // Read first: a segment may go where it is.
        let last = segments.iter().map(|segment| segment.offset + segment.file_size).max().unwrap_or(0);
        let rest = rest_from.map_or(Ok(Vec::new()), |offset| self.read(offset.max(last), MAX_REST + 1))?;
        for (number, segment) in segments.iter().enumerate() {
            let source = self.source(segment)?;
            let target = segment.address..segment.address + segment.file_size;
            for later in &segments[number + 1..] {
                let later_source = self.source(later)?;
                if target.start < later_source.end && later_source.start < target.end {
                    return Err(later.wrong(self.name, "lies in the file where another is to be moved".to_owned()));
                }
            }
            ram.shift(source, target.start)?;
        }
        Ok(if rest.len() as u64 > MAX_REST { Vec::new() } else { rest })
    }
}
