//! ELF64 executables (System V ABI, chapters 4 and 5), loaded in one forward pass so that a decompressor can be the source.

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
const MAX_REST: u64 = 64 << 20;

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

struct Segment {
    index: usize,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// A source that is only read forwards.
struct Stream<'a, R> {
    name: &'a str,
    reader: R,
    at: u64,
}

impl<R: Read> Stream<'_, R> {
    fn read_error(&self, source: std::io::Error) -> BootError {
        BootError::Read { name: self.name.to_owned(), source }
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), BootError> {
        let distance = offset.saturating_sub(self.at);
        let skipped = std::io::copy(&mut self.reader.by_ref().take(distance), &mut std::io::sink());
        let skipped = skipped.map_err(|e| self.read_error(e))?;
        self.at += skipped;
        if skipped < distance {
            return Err(self.read_error(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// What follows `offset`, or the place that has been reached if that is further; nothing if it is too much.
    fn rest_from(&mut self, offset: u64) -> Result<Vec<u8>, BootError> {
        let distance = offset.saturating_sub(self.at);
        let mut rest = Vec::new();
        let skipped = std::io::copy(&mut self.reader.by_ref().take(distance), &mut std::io::sink());
        let read = skipped.and_then(|_| self.reader.by_ref().take(MAX_REST + 1).read_to_end(&mut rest));
        match read {
            Ok(read) if read as u64 <= MAX_REST => Ok(rest),
            Ok(_) => Ok(Vec::new()),
            Err(source) => Err(self.read_error(source)),
        }
    }
}

fn le<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..offset + N].iter().rev().fold(0, |value, b| value << 8 | u64::from(*b))
}

/// Copies the file's segments to their physical addresses and zeroes the rest of them.
pub(crate) fn load(ram: &Ram<'_>, name: &str, mut reader: impl Read, manner: Manner) -> Result<LoadedElf, BootError> {
    let mut head = Vec::new();
    let read = reader.by_ref().take(HEAD_SIZE as u64).read_to_end(&mut head);
    read.map_err(|source| BootError::Read { name: name.to_owned(), source })?;
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
    // Segments may hold the headers too, so the pass over the file starts at its front again.
    let mut stream = Stream { name, reader: head.as_slice().chain(reader), at: 0 };
    check_segments(ram, name, &mut segments, manner.limit)?;
    for segment in &segments {
        if segment.file_size > 0 {
            stream.skip_to(segment.offset)?;
            ram.copy(name, &mut stream.reader, segment.address, segment.file_size)?;
            stream.at += segment.file_size;
        }
        ram.zero(segment.address + segment.file_size, segment.memory_size - segment.file_size)?;
    }
    let holds = |s: &Segment| (s.address..s.address + s.memory_size).contains(&entry);
    if !segments.iter().any(holds) {
        return Err(BootError::ElfEntry { name: name.to_owned(), entry });
    }
    let start = segments.iter().map(|s| s.address).min().unwrap_or(entry);
    let end = segments.iter().map(|s| s.address + s.memory_size).max().unwrap_or(entry);
    let rest = if manner.with_rest { stream.rest_from(sections_end)? } else { Vec::new() };
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
    let wrong = |index, what: String| Err(BootError::ElfSegment { name: name.to_owned(), index, what });
    segments.sort_by_key(|s| s.address);
    let mut free_from = 0;
    for s in segments.iter() {
        if s.file_size > s.memory_size {
            return wrong(s.index, format!("has {} bytes in the file but {} in memory", s.file_size, s.memory_size));
        }
        let range = ram.kernel_range(name, s.address, s.memory_size)?;
        if range.start < free_from {
            return wrong(s.index, format!("overlaps another at {:#x}", range.start));
        }
        free_from = range.end;
    }
    segments.sort_by_key(|s| s.offset);
    let mut read_to = 0;
    for s in segments.iter().filter(|s| s.file_size > 0) {
        let end = s.offset.checked_add(s.file_size).filter(|end| *end <= limit);
        let Some(end) = end else {
            return wrong(s.index, format!("of {} bytes at {:#x} passes the end {limit:#x}", s.file_size, s.offset));
        };
        if s.offset < read_to {
            return wrong(s.index, format!("at {:#x} of the file overlaps what ends at {read_to:#x}", s.offset));
        }
        read_to = end;
    }
    Ok(())
}
