//! The header and the section table: where everything lies, checked before any of the data is read.

use std::io::{Read, Seek, SeekFrom};

use crate::error::Error;
use crate::header::{
    CURRENT_VERSION, FLAG_AARCH64, HEADER_SIZE, Header, MAGIC, MAX_SECTIONS, RESERVED_OFFSET, SECTION_HEADER_SIZE,
    SECTION_SIZES_OFFSET, SectionHeader, SectionKind, UNUSED_OFFSET,
};
use crate::warning::Warning;

/// The first version with a valid checksum, so the first that can be read at all.
const OLDEST_VERSION: u16 = 2;

/// One section of an image. It lies within the file and shares no byte with another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Its flags, which are reserved.
    pub flags: u16,
    /// Where its header starts, from the start of the file.
    pub offset: u64,
    /// The size of its data in bytes, without its header.
    pub size: u64,
}

impl Section {
    /// Where its data starts, from the start of the file.
    pub fn data_offset(&self) -> u64 {
        self.offset + SECTION_HEADER_SIZE as u64
    }

    /// Where its data ends, from the start of the file.
    pub fn end(&self) -> u64 {
        self.data_offset() + self.size
    }

    pub(crate) fn header(&self) -> SectionHeader {
        SectionHeader { kind: self.kind, flags: self.flags, size: self.size }
    }
}

/// What becomes of a broken rule that does not stop the reader.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The first one ends the reading.
    Refuse,
    /// They are collected.
    Collect(Vec<Error>),
}

impl Verdict {
    pub(crate) fn refuse(&mut self, error: Error) -> Result<(), Error> {
        match self {
            Self::Refuse => Err(error),
            Self::Collect(errors) => {
                errors.push(error);
                Ok(())
            }
        }
    }
}

/// Where everything lies.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) header: Header,
    /// In the order of the header's table, at most [`MAX_SECTIONS`].
    pub(crate) sections: Vec<Section>,
    pub(crate) file_size: u64,
    pub(crate) warnings: Vec<Warning>,
}

impl Layout {
    pub(crate) fn read<R: Read + Seek>(reader: &mut R, verdict: &mut Verdict) -> Result<Self, Error> {
        let file_size = reader.seek(SeekFrom::End(0)).map_err(|source| Error::Read { offset: 0, source })?;
        if file_size < HEADER_SIZE as u64 {
            return Err(Error::ShortHeader { found: file_size });
        }
        let header = Header::from_bytes(&read_at(reader, 0)?);
        let mut layout = Self { header, sections: Vec::new(), file_size, warnings: Vec::new() };
        layout.check_header(verdict)?;
        for index in 0..usize::from(layout.header.section_count) {
            let section = layout.read_section(reader, index, verdict)?;
            layout.sections.push(section);
        }
        layout.check_places()?;
        layout.check_kinds(verdict)?;
        Ok(layout)
    }

    fn check_header(&mut self, verdict: &mut Verdict) -> Result<(), Error> {
        let Header { magic, version, flags, reserved, section_count, unused, .. } = self.header;
        if magic != MAGIC {
            return Err(Error::Magic { found: magic });
        }
        if version < OLDEST_VERSION {
            return Err(Error::Version { found: version });
        }
        if version < CURRENT_VERSION {
            verdict.refuse(Error::Version { found: version })?;
        }
        if version > CURRENT_VERSION {
            self.warnings.push(Warning::NewerVersion { version });
        }
        if flags & FLAG_AARCH64 != 0 {
            verdict.refuse(Error::Architecture { found: flags })?;
        }
        if flags & !FLAG_AARCH64 != 0 {
            self.warnings.push(Warning::HeaderFlags { bits: flags & !FLAG_AARCH64 });
        }
        if usize::from(section_count) > MAX_SECTIONS {
            return Err(Error::TooManySections { found: section_count });
        }
        for (offset, found) in [(RESERVED_OFFSET, u64::from(reserved)), (UNUSED_OFFSET, u64::from(unused))] {
            if found != 0 {
                self.warnings.push(Warning::Reserved { offset: offset as u64, found });
            }
        }
        Ok(())
    }

    /// Reads the header of a section whose index is below [`MAX_SECTIONS`].
    fn read_section<R: Read + Seek>(
        &mut self,
        reader: &mut R,
        index: usize,
        verdict: &mut Verdict,
    ) -> Result<Section, Error> {
        let file_size = self.file_size;
        let offset = self.header.section_offsets[index];
        if offset < HEADER_SIZE as u64 {
            return Err(Error::SectionInHeader { index, offset });
        }
        if offset >= file_size {
            return Err(Error::SectionOutsideFile { index, offset, file_size });
        }
        if file_size - offset < SECTION_HEADER_SIZE as u64 {
            return Err(Error::ShortSectionHeader { index, offset, found: file_size - offset });
        }
        let SectionHeader { kind, flags, size } = SectionHeader::from_bytes(&read_at(reader, offset)?);
        let section = Section { kind, flags, offset, size };
        let in_header = self.header.section_sizes[index];
        if in_header != size {
            let table_offset = (SECTION_SIZES_OFFSET + 8 * index) as u64;
            verdict.refuse(Error::StaleSize {
                index,
                kind,
                offset: table_offset,
                section_offset: offset,
                in_header,
                in_section: size,
            })?;
        }
        let found = file_size - section.data_offset();
        if size > found {
            return Err(Error::ShortSection { index, kind, offset: section.data_offset(), found, expected: size });
        }
        if flags != 0 {
            self.warnings.push(Warning::SectionFlags { index, flags });
        }
        Ok(section)
    }

    /// Refuses sections that share bytes, and warns of bytes that belong to none.
    fn check_places(&mut self) -> Result<(), Error> {
        let out_of_order = self.sections.windows(2).position(|pair| pair[1].offset < pair[0].offset);
        if let Some(position) = out_of_order {
            self.warnings.push(Warning::TableOrder { index: position + 1 });
        }
        let mut by_place: Vec<(usize, &Section)> = self.sections.iter().enumerate().collect();
        by_place.sort_by_key(|(_, section)| section.offset);
        for pair in by_place.windows(2) {
            let [(first, before), (second, after)] = [pair[0], pair[1]];
            if after.offset < before.end() {
                return Err(Error::Overlap {
                    first,
                    first_kind: before.kind,
                    first_end: before.end(),
                    second,
                    second_kind: after.kind,
                    offset: after.offset,
                });
            }
        }
        let mut end = HEADER_SIZE as u64;
        for (_, section) in by_place {
            if section.offset > end {
                self.warnings.push(Warning::Gap { offset: end, size: section.offset - end, trailing: false });
            }
            end = section.end();
        }
        if self.file_size > end {
            self.warnings.push(Warning::Gap { offset: end, size: self.file_size - end, trailing: true });
        }
        Ok(())
    }

    /// Checks that there are as many of each kind of section as there should be.
    fn check_kinds(&mut self, verdict: &mut Verdict) -> Result<(), Error> {
        let of_kind = |kind| self.sections.iter().enumerate().filter(move |(_, section)| section.kind == kind);
        for kind in [SectionKind::Kernel, SectionKind::Cmdline] {
            let mut found = of_kind(kind);
            if let Some((first, _)) = found.next() {
                for (index, section) in found {
                    verdict.refuse(Error::SecondSection { kind, first, index, offset: section.offset })?;
                }
            }
        }
        for kind in [SectionKind::Kernel, SectionKind::Cmdline, SectionKind::Ramdisk] {
            if of_kind(kind).next().is_none() {
                verdict.refuse(Error::MissingSection { kind, sections: self.sections.len() })?;
            }
        }
        let mut warnings = Vec::new();
        let kernel = of_kind(SectionKind::Kernel).next();
        if let (Some((kernel, _)), Some((index, _))) = (kernel, of_kind(SectionKind::Ramdisk).next())
            && index < kernel
        {
            warnings.push(Warning::RamdiskBeforeKernel { index });
        }
        for kind in [SectionKind::Signature, SectionKind::Metadata] {
            let found: Vec<usize> = of_kind(kind).map(|(index, _)| index).collect();
            let superseded = found.split_last().map_or(&[][..], |(_, before)| before);
            warnings.extend(superseded.iter().map(|index| Warning::Superseded { kind, index: *index }));
        }
        let version = self.header.version;
        for (index, Section { kind, .. }) in self.sections.iter().copied().enumerate() {
            if matches!(kind, SectionKind::Invalid | SectionKind::Unknown(_)) {
                warnings.push(Warning::SkippedSection { index, kind });
            }
            if version < kind.since_version() {
                warnings.push(Warning::SectionNewerThanVersion { index, kind, version });
            }
        }
        if version >= SectionKind::Metadata.since_version() && of_kind(SectionKind::Metadata).next().is_none() {
            warnings.push(Warning::NoMetadata);
        }
        self.warnings.append(&mut warnings);
        Ok(())
    }
}

/// Reads the `N` bytes at an offset, all of which lie within the file.
fn read_at<R: Read + Seek, const N: usize>(reader: &mut R, offset: u64) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    reader
        .seek(SeekFrom::Start(offset))
        .and_then(|_| reader.read_exact(&mut bytes))
        .map_err(|source| Error::Read { offset, source })?;
    Ok(bytes)
}
