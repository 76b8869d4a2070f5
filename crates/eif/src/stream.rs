//! The one pass over the sections' data: every byte is read once, and while it is in the processor's cache goes into the
//! checksum, into the measurements, and where it is kept.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::error::Error;
use crate::feed::{CHUNK, Feed};
use crate::header::{CRC_OFFSET, SectionKind};
use crate::layout::{Layout, Section, Verdict};
use crate::measure::{Measured, Measurer};
use crate::metadata::Metadata;
use crate::signature::SigningEntry;
use crate::warning::Warning;

/// Everything that one pass finds.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) layout: Layout,
    /// The kernel; empty where large parts are not kept.
    pub(crate) kernel: Vec<u8>,
    pub(crate) cmdline: String,
    /// The ramdisks, concatenated in the order of the table; empty where large parts are not kept.
    pub(crate) initrd: Vec<u8>,
    /// Where each ramdisk lies in `initrd`.
    pub(crate) ramdisks: Vec<Range<usize>>,
    pub(crate) metadata_json: Option<Vec<u8>>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) signature: Option<Vec<u8>>,
    pub(crate) signing_entry: Option<SigningEntry>,
    pub(crate) measurer: Measurer,
    /// The checksum of what was read.
    pub(crate) crc: u32,
}

/// Whether the kernel and the ramdisks are kept or only measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LargeParts {
    Keep,
    Measure,
}

impl Contents {
    pub(crate) fn read<R: Read + Seek>(
        reader: &mut R,
        large_parts: LargeParts,
        verdict: &mut Verdict,
    ) -> Result<Self, Error> {
        let layout = Layout::read(reader, verdict)?;
        let mut contents = Self {
            kernel: Vec::new(),
            cmdline: String::new(),
            initrd: Vec::new(),
            ramdisks: Vec::new(),
            metadata_json: None,
            metadata: None,
            signature: None,
            signing_entry: None,
            measurer: Measurer::default(),
            crc: 0,
            layout,
        };
        let mut cmdline = Vec::new();
        contents.stream(reader, large_parts, &mut cmdline)?;
        contents.check(cmdline, verdict)?;
        Ok(contents)
    }

    fn stream<R: Read + Seek>(
        &mut self,
        reader: &mut R,
        large_parts: LargeParts,
        cmdline: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let mut pass = Pass { reader, crc: crc32fast::Hasher::new(), feed: Feed::new() };
        pass.crc.update(&self.layout.header.to_bytes()[..CRC_OFFSET]);
        let keep = large_parts == LargeParts::Keep;
        for (index, section) in self.layout.sections.iter().enumerate() {
            match section.kind {
                SectionKind::Kernel => pass.section(index, section, keep.then_some(&mut self.kernel))?,
                SectionKind::Cmdline => {
                    cmdline.clear();
                    pass.section(index, section, Some(cmdline))?;
                }
                SectionKind::Ramdisk => {
                    let start = self.initrd.len();
                    pass.feed.begin_ramdisk();
                    pass.section(index, section, keep.then_some(&mut self.initrd))?;
                    self.ramdisks.push(start..self.initrd.len());
                }
                SectionKind::Signature => pass.section(index, section, Some(self.signature.insert(Vec::new())))?,
                SectionKind::Metadata => pass.section(index, section, Some(self.metadata_json.insert(Vec::new())))?,
                SectionKind::Invalid | SectionKind::Unknown(_) => pass.section(index, section, None)?,
            }
        }
        self.crc = pass.crc.finalize();
        self.measurer = pass.feed.finish();
        Ok(())
    }

    /// Checks what can only be checked when all bytes have been seen. The checksum comes first, because damage explains
    /// whatever else is wrong.
    fn check(&mut self, cmdline: Vec<u8>, verdict: &mut Verdict) -> Result<(), Error> {
        let found = self.layout.header.crc;
        if found != self.crc {
            verdict.refuse(Error::Crc { found, expected: self.crc })?;
        }
        self.cmdline = match cmdline_text(cmdline) {
            Ok(text) => text,
            Err(NotText { text, position, found }) => {
                let start = self.last_section(SectionKind::Cmdline).map_or(0, |(_, section)| section.data_offset());
                verdict.refuse(Error::CmdlineNotText { offset: start + position as u64, found })?;
                text
            }
        };
        if let (Some(bytes), Some((index, section))) = (&self.signature, self.last_section(SectionKind::Signature)) {
            match SigningEntry::decode(bytes) {
                Ok(entry) => {
                    self.measurer.set_certificate(&entry.certificate_der);
                    self.signing_entry = Some(entry);
                }
                Err(source) => verdict.refuse(Error::Signature { index, offset: section.data_offset(), source })?,
            }
        }
        if let Some(json) = &self.metadata_json {
            match Metadata::parse(json) {
                Ok(metadata) => self.metadata = Some(metadata),
                Err(reason) => self.layout.warnings.push(Warning::MetadataUnreadable { reason }),
            }
        }
        Ok(())
    }

    fn last_section(&self, kind: SectionKind) -> Option<(usize, Section)> {
        let position = self.layout.sections.iter().rposition(|section| section.kind == kind)?;
        Some((position, *self.layout.sections.get(position)?))
    }
}

struct Pass<'a, R> {
    reader: &'a mut R,
    crc: crc32fast::Hasher,
    feed: Feed,
}

impl<R: Read + Seek> Pass<'_, R> {
    /// Reads a section's data once, to the end of `kept` if it is to be kept.
    fn section(&mut self, index: usize, section: &Section, mut kept: Option<&mut Vec<u8>>) -> Result<(), Error> {
        let Section { kind, size, .. } = *section;
        let offset = section.data_offset();
        let measured = Measured::of(kind);
        if let Some(bytes) = &mut kept {
            let out_of_memory = || Error::OutOfMemory { index, kind, size };
            // The layout has been checked: the file does hold that many bytes, so the reservation is not a claim's.
            let capacity = usize::try_from(size).map_err(|_| out_of_memory())?;
            bytes.try_reserve_exact(capacity).map_err(|_| out_of_memory())?;
        }
        self.crc.update(&section.header().to_bytes());
        self.reader.seek(SeekFrom::Start(offset)).map_err(|source| Error::Read { offset, source })?;

        let mut done = 0;
        while done < size {
            let wanted = (CHUNK as u64).min(size - done);
            let failed = |source| Error::Read { offset: offset + done, source };
            let read = match &mut kept {
                Some(bytes) => {
                    let start = bytes.len();
                    let read = (&mut *self.reader).take(wanted).read_to_end(bytes).map_err(failed)?;
                    let bytes = bytes.get(start..).unwrap_or_default();
                    self.crc.update(bytes);
                    if let Some(measured) = measured {
                        self.feed.lend(measured, bytes);
                    }
                    read
                }
                None => {
                    let mut bytes = self.feed.buffer();
                    bytes.resize(wanted as usize, 0);
                    let read = read_some(self.reader, &mut bytes).map_err(failed)?;
                    bytes.truncate(read);
                    self.crc.update(&bytes);
                    self.feed.give(measured, bytes);
                    read
                }
            };
            if read == 0 {
                // The file became shorter since its layout was checked.
                return Err(Error::ShortSection { index, kind, offset, found: done, expected: size });
            }
            done += read as u64;
        }
        Ok(())
    }
}

/// Reads as much as comes at once; nothing at the end of the file only.
fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            read => return read,
        }
    }
}

struct NotText {
    /// The readable part.
    text: String,
    /// Where the first byte that is not text stands.
    position: usize,
    /// That byte.
    found: u8,
}

/// The command line as the kernel will see it: UTF-8, without the NUL bytes that may end it, and with none inside.
fn cmdline_text(mut bytes: Vec<u8>) -> Result<String, NotText> {
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(length);
    let text = String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let found = error.as_bytes().get(position).copied().unwrap_or_default();
        NotText { text: String::from_utf8_lossy(error.as_bytes()).into_owned(), position, found }
    })?;
    match text.find('\0') {
        Some(position) => Err(NotText { text, position, found: 0 }),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_bytes_end_a_cmdline_but_do_not_stand_in_it() {
        assert_eq!(cmdline_text(b"a b\0\0".to_vec()).ok().as_deref(), Some("a b"));
        assert_eq!(cmdline_text(b"\0".to_vec()).ok().as_deref(), Some(""));
        let NotText { position, found, .. } = cmdline_text(b"a\0b".to_vec()).unwrap_err();
        assert_eq!((position, found), (1, 0));
    }

    #[test]
    fn cmdline_that_is_not_utf8_is_named_at_its_first_bad_byte() {
        let NotText { text, position, found } = cmdline_text(b"ab\xffc".to_vec()).unwrap_err();
        assert_eq!((text.as_str(), position, found), ("ab\u{fffd}c", 2, 0xff));
    }
}
