//! ELF64 executables (System V ABI, chapters 4 and 5), loaded in one forward pass so that a decompressor can be the source, or moved within the guest's RAM.

use std::io::Read;
use std::ops::Range;

use crate::BootError;
use crate::ram::Ram;

pub(crate) const MAGIC: &[u8] = b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// Most program headers that are read; a kernel has five or so.
const MAX_PROGRAM_HEADERS: u64 = 64;
/// Furthest from the file's start that the program headers are looked for.
const MAX_TABLE_OFFSET: u64 = 4096;
/// What is read of a file to find all its headers.
const HEAD_SIZE: usize = MAX_TABLE_OFFSET as usize + MAX_PROGRAM_HEADERS as usize * PROGRAM_HEADER_SIZE;
const PT_LOAD: u32 = 1;

/// Most bytes that are kept of what follows the file; the relocations of a distribution's kernel are one MiB.
pub(crate) const MAX_REST: u64 = 64 << 20;

pub(crate) struct LoadedElf {
    pub entry: u64,
    pub memory: Range<u64>,
    /// What follows the ELF file in its source, if it was asked for.
    pub rest: Vec<u8>,
}

/// How a file is loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// No file is larger than this, in bytes.
    pub limit: u64,
    /// By how much its physical addresses move, in bytes.
    pub shift: u64,
    /// Whether [`LoadedElf::rest`] is wanted.
    pub with_rest: bool,
}

pub(crate) struct Segment {
    index: usize,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_size: u64,
    memory_size: u64,
}

impl Segment {
    /// The error that says what is wrong with it.
    pub(crate) fn wrong(&self, name: &str, what: String) -> BootError {
        BootError::ElfSegment { name: name.to_owned(), index: self.index, what }
    }
}

/// Where a file is taken from.
pub(crate) trait Source {
    /// Its first bytes, at most so many; called once, before anything else.
    fn head(&mut self, size: usize) -> Result<Vec<u8>, BootError>;

    /// Copies the file's part of the segments to their places; they are sorted by their offset in the file, and apart. Returns what follows `rest_from` and the last segment, if that is wanted; nothing if it is
    /// more than [`MAX_REST`].
    fn place(&mut self, ram: &Ram<'_>, segments: &[Segment], rest_from: Option<u64>) -> Result<Vec<u8>, BootError>;
}

/// A source that is only read forwards.
pub(crate) struct Stream<'a, R> {
    name: &'a str,
    reader: R,
    /// What has been read as the head, and comes again.
    head: Vec<u8>,
    at: u64,
}

impl<'a, R: Read> Stream<'a, R> {
    pub(crate) fn new(name: &'a str, reader: R) -> Self {
        Self { name, reader, head: Vec::new(), at: 0 }
    }

    fn read_error(&self, source: std::io::Error) -> BootError {
        BootError::Read { name: self.name.to_owned(), source }
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), BootError> {
        let distance = offset.saturating_sub(self.at);
        let skipped = std::io::copy(&mut self.by_ref().take(distance), &mut std::io::sink());
        let skipped = skipped.map_err(|e| self.read_error(e))?;
        if skipped < distance {
            return Err(self.read_error(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// What follows `offset`, or the place that has been reached if that is further.
    fn rest_from(&mut self, offset: u64) -> Result<Vec<u8>, BootError> {
        let distance = offset.saturating_sub(self.at);
        let mut rest = Vec::new();
        let skipped = std::io::copy(&mut self.by_ref().take(distance), &mut std::io::sink());
        let read = skipped.and_then(|_| self.by_ref().take(MAX_REST + 1).read_to_end(&mut rest));
        match read {
            Ok(read) if read as u64 <= MAX_REST => Ok(rest),
            Ok(_) => Ok(Vec::new()),
            Err(source) => Err(self.read_error(source)),
        }
    }
}

impl<R: Read> Read for Stream<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut head = self.head.get(usize::try_from(self.at).unwrap_or(usize::MAX)..).unwrap_or_default();
        let read = if head.is_empty() { self.reader.read(buffer) } else { head.read(buffer) }?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<R: Read> Source for Stream<'_, R> {
    fn head(&mut self, size: usize) -> Result<Vec<u8>, BootError> {
        let mut head = Vec::new();
        self.reader.by_ref().take(size as u64).read_to_end(&mut head).map_err(|e| self.read_error(e))?;
        self.head = head.clone();
        Ok(head)
    }

    fn place(&mut self, ram: &Ram<'_>, segments: &[Segment], rest_from: Option<u64>) -> Result<Vec<u8>, BootError> {
        for segment in segments {
            self.skip_to(segment.offset)?;
            ram.copy(self.name, self, segment.address, segment.file_size)?;
        }
        rest_from.map_or(Ok(Vec::new()), |offset| self.rest_from(offset))
    }
}

fn le<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..offset + N].iter().rev().fold(0, |value, b| value << 8 | u64::from(*b))
}

/// Copies the file's segments to their physical addresses and zeroes the rest of them.
pub(crate) fn load(ram: &Ram<'_>, name: &str, source: &mut dyn Source, manner: Manner) -> Result<LoadedElf, BootError> {
    let head = source.head(HEAD_SIZE)?;
    let part = |offset: usize, len: usize| {
        let truncated = || BootError::Truncated {
            name: name.to_owned(),
            what: "the ELF header",
            expected: offset.saturating_add(len) as u64,
            found: head.len() as u64,
        };
        head.get(offset..).and_then(|rest| rest.get(..len)).ok_or_else(truncated)
    };
    let header = part(0, HEADER_SIZE)?;
    check_header(name, header)?;
    let (table, count) = (le::<8>(header, 32) as usize, le::<2>(header, 56) as usize);
    let entry = le::<8>(header, 24).wrapping_add(manner.shift);
    let sections_end = le::<8>(header, 40).saturating_add(le::<2>(header, 58) * le::<2>(header, 60));
    let mut segments = Vec::new();
    for (index, raw) in part(table, count * PROGRAM_HEADER_SIZE)?.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
        let segment = Segment {
            index,
            offset: le::<8>(raw, 8),
            address: le::<8>(raw, 24).wrapping_add(manner.shift),
            file_size: le::<8>(raw, 32),
            memory_size: le::<8>(raw, 40),
        };
        if le::<4>(raw, 0) as u32 == PT_LOAD && segment.memory_size > 0 {
            segments.push(segment);
        }
    }
    check_segments(ram, name, &mut segments, manner.limit)?;
    let holds = |s: &Segment| (s.address..s.address + s.memory_size).contains(&entry);
    if !segments.iter().any(holds) {
        return Err(BootError::ElfEntry { name: name.to_owned(), entry });
    }
    let start = segments.iter().map(|s| s.address).min().unwrap_or(entry);
    let end = segments.iter().map(|s| s.address + s.memory_size).max().unwrap_or(entry);
    let rest = source.place(ram, &segments, manner.with_rest.then_some(sections_end))?;
    for segment in &segments {
        ram.zero(segment.address + segment.file_size, segment.memory_size - segment.file_size)?;
    }
    Ok(LoadedElf { entry, memory: start..end, rest })
}

/// Checks that the header is that of a little-endian x86-64 executable.
fn check_header(name: &str, header: &[u8]) -> Result<(), BootError> {
    const ELFCLASS64: u64 = 2;
    const ELFDATA2LSB: u64 = 1;
    const ET_EXEC: u64 = 2;
    const EM_X86_64: u64 = 62;
    let fields = [
        ("magic", le::<4>(header, 0), u64::from(u32::from_le_bytes(*b"\x7fELF"))),
        ("class", le::<1>(header, 4), ELFCLASS64),
        ("data encoding", le::<1>(header, 5), ELFDATA2LSB),
        ("type", le::<2>(header, 16), ET_EXEC),
        ("machine", le::<2>(header, 18), EM_X86_64),
        ("program header size", le::<2>(header, 54), PROGRAM_HEADER_SIZE as u64),
    ];
    let wrong = |field, found, expected| Err(BootError::ElfField { name: name.to_owned(), field, found, expected });
    for (field, found, expected) in fields {
        if found != expected {
            return wrong(field, found, expected);
        }
    }
    // Linkers put the program headers right after the header; further on they would have to be sought.
    let (table, count) = (le::<8>(header, 32), le::<2>(header, 56));
    if table < HEADER_SIZE as u64 || table > MAX_TABLE_OFFSET {
        return wrong("program header offset", table, HEADER_SIZE as u64);
    }
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return wrong("program header count", count, MAX_PROGRAM_HEADERS);
    }
    Ok(())
}

/// Sorts the segments by their place in the file, and checks that they are in RAM, apart, and within the file.
fn check_segments(ram: &Ram<'_>, name: &str, segments: &mut [Segment], limit: u64) -> Result<(), BootError> {
    let wrong = |s: &Segment, what| Err(s.wrong(name, what));
    segments.sort_by_key(|s| s.address);
    let mut free_from = 0;
    for s in segments.iter() {
        if s.file_size > s.memory_size {
            return wrong(s, format!("has {} bytes in the file but {} in memory", s.file_size, s.memory_size));
        }
        let range = ram.kernel_range(name, s.address, s.memory_size)?;
        if range.start < free_from {
            return wrong(s, format!("overlaps another at {:#x}", range.start));
        }
        free_from = range.end;
    }
    segments.sort_by_key(|s| s.offset);
    let mut read_to = 0;
    for s in segments.iter().filter(|s| s.file_size > 0) {
        let end = s.offset.checked_add(s.file_size).filter(|end| *end <= limit);
        let Some(end) = end else {
            return wrong(s, format!("of {} bytes at {:#x} passes the end {limit:#x}", s.file_size, s.offset));
        };
        if s.offset < read_to {
            return wrong(s, format!("at {:#x} of the file overlaps what ends at {read_to:#x}", s.offset));
        }
        read_to = end;
    }
    Ok(())
}
