//! Archives in cpio's "newc" format, which is what a ramdisk is: read as the kernel reads them, and written so that equal
//! contents give equal bytes.
//!
//! Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Reading follows `init/initramfs.c`: several
//! archives may follow each other with zeros between them, each may be compressed, and the checksum of "070702" is not looked
//! at. Deliberately missing: the older formats, which the kernel does not read either, and compression other than gzip, zstd
//! and xz.

use std::io::{self, BufRead, BufReader, Read, Write};

use thiserror::Error;

use crate::compression::Compression;

/// The size to which an archive is padded, so that another can follow it; cpio's own block size.
const BLOCK: usize = 512;

/// The size in bytes of an entry's header: a magic and thirteen numbers of eight hexadecimal digits.
const HEADER_SIZE: usize = 110;

/// The longest name with its NUL; the kernel's PATH_MAX.
const LONGEST_NAME: u32 = 4096;

/// More entries than this are not read: a few kilobytes of compressed zeros could otherwise take all memory.
const MOST_ENTRIES: usize = 1 << 20;

/// The name of the entry that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";

/// Why an archive cannot be read.
#[derive(Debug, Error)]
pub enum CpioError {
    /// The bytes could not be read or decompressed.
    #[error("it cannot be read or decompressed")]
    Read(#[from] io::Error),
    /// An entry does not start like one.
    #[error("byte {offset:#x} of the archive starts with \"{}\", expected \"070701\"", found.escape_ascii())]
    Magic {
        /// Where, after decompression.
        offset: u64,
        /// The first six bytes.
        found: [u8; 6],
    },
    /// A number of an entry's header is not one.
    #[error("the header at byte {offset:#x} of the archive holds no hexadecimal number in field {field}")]
    Number {
        /// Where the header starts.
        offset: u64,
        /// The number of the field, from 0.
        field: usize,
    },
    /// An entry's name is too long, or empty.
    #[error("a name of {found} bytes at byte {offset:#x} of the archive, expected 1 to {LONGEST_NAME}")]
    Name {
        /// Where the header starts.
        offset: u64,
        /// The size of the name with its NUL.
        found: u32,
    },
    /// There are too many entries.
    #[error("more than {MOST_ENTRIES} entries")]
    TooManyEntries,
}

/// One entry of an archive, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without a leading slash or `./`.
    pub name: Vec<u8>,
    /// File type and permissions, as in `stat`.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// For a device, its numbers.
    pub device: (u32, u32),
    /// The size of its data in bytes. Of several names of one file, only one has data.
    pub size: u32,
    /// The file's number: names that share it, and have more than one link, are names of one file.
    pub inode: u32,
    /// How many names it has.
    pub links: u32,
}

/// Reads every entry of a ramdisk, in order, and hands its data out in parts: `each` gets the entry and a reader of the data,
/// of which it may leave the rest.
pub fn read_ramdisk(
    ramdisk: impl Read,
    mut each: impl FnMut(Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<(), CpioError> {
    let mut input = BufReader::with_capacity(64 << 10, ramdisk);
    let mut entries = 0;
    loop {
        skip_zeros(&mut input)?;
        let start = input.fill_buf()?;
        if start.is_empty() {
            return Ok(());
        }
        let Some(compression) = Compression::of(start) else {
            read_archive(&mut Counted { inner: &mut input, position: 0 }, &mut entries, &mut each)?;
            continue;
        };
        let mut unpacked = Counted { inner: BufReader::new(compression.unpack_one(&mut input)?), position: 0 };
        while !at_end(&mut unpacked)? {
            read_archive(&mut unpacked, &mut entries, &mut each)?;
        }
    }
}

/// A reader that knows how far it is.
struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

fn skip_zeros(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 {
            return Ok(());
        }
        input.consume(zeros);
    }
}

fn at_end<R: BufRead>(input: &mut Counted<R>) -> io::Result<bool> {
    skip_zeros(&mut input.inner)?;
    Ok(input.inner.fill_buf()?.is_empty())
}

/// Reads one archive up to its trailer.
fn read_archive<R: Read>(
    input: &mut Counted<R>,
    entries: &mut usize,
    each: &mut impl FnMut(Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<(), CpioError> {
    // Positions, and with them the padding, count from the start of the archive.
    input.position = 0;
    loop {
        let offset = input.position;
        let mut header = [0; HEADER_SIZE];
        input.read_exact(&mut header)?;
        let found = header.first_chunk::<6>().copied().unwrap_or_default();
        if !matches!(&found, b"070701" | b"070702") {
            return Err(CpioError::Magic { offset, found });
        }
        let number = |field: usize| {
            let digits = header.get(6 + 8 * field..14 + 8 * field).and_then(|digits| str::from_utf8(digits).ok());
            let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
            digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or(CpioError::Number { offset, field })
        };
        let name_size = number(11)?;
        if !(1..=LONGEST_NAME).contains(&name_size) {
            return Err(CpioError::Name { offset, found: name_size });
        }
        let mut name = vec![0; name_size as usize];
        input.read_exact(&mut name)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        pad(input)?;
        let size = number(6)?;
        if name == TRAILER {
            return Ok(());
        }
        *entries += 1;
        if *entries > MOST_ENTRIES {
            return Err(CpioError::TooManyEntries);
        }
        let entry = Entry {
            name: relative(&name).to_vec(),
            mode: number(1)?,
            uid: number(2)?,
            gid: number(3)?,
            mtime: number(5)?,
            device: (number(9)?, number(10)?),
            size,
            inode: number(0)?,
            links: number(4)?,
        };
        let mut data = input.take(u64::from(size));
        each(entry, &mut data)?;
        let left = data.limit();
        if io::copy(&mut data, &mut io::sink())? < left {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        pad(input)?;
    }
}

/// A path without slashes and `./` before it, as the kernel's current directory is the root when it unpacks.
fn relative(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"/").or(path.strip_prefix(b"./")) {
        path = rest;
    }
    path
}

/// Skips to the next multiple of four bytes.
fn pad(input: &mut Counted<impl Read>) -> io::Result<()> {
    let missing = input.position.next_multiple_of(4) - input.position;
    input.read_exact(&mut [0; 4][..missing as usize])
}

/// What an entry is, beside its name and its data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    /// File type and permissions, as in `stat`.
    pub(crate) mode: u32,
    /// Owner and group.
    pub(crate) owner: (u32, u32),
    /// For a device, its numbers.
    pub(crate) device: (u32, u32),
}

/// Writes one archive. Entries get inode numbers in order, owner root and one time.
///
/// ```
/// use eif::cpio;
///
/// let mut writer = cpio::Writer::new(Vec::new(), 0);
/// writer.directory("etc")?;
/// writer.file("etc/motd", 0o644, b"hello")?;
/// let archive = writer.finish()?;
///
/// let mut found = Vec::new();
/// cpio::read_ramdisk(&archive[..], |entry, data| {
///     let mut text = String::new();
///     data.read_to_string(&mut text)?;
///     found.push((entry.name, entry.mode, text));
///     Ok(())
/// })?;
/// assert_eq!(found[1], (b"etc/motd".to_vec(), 0o100_644, "hello".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    written: usize,
    entries: u32,
    mtime: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive whose entries all have this time, in seconds since 1970.
    pub fn new(output: W, mtime: u32) -> Self {
        Self { output, written: 0, entries: 0, mtime }
    }

    /// Adds an entry with this mode (as in `stat`), device numbers (zeros for what is no device) and data. Directories above it
    /// must have been added.
    pub fn entry(&mut self, path: &[u8], mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        self.owned_entry(path, mode, (0, 0), device, data)
    }

    /// Adds a directory that everyone may read; those above it must have been added.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path.as_bytes(), 0o040_755, (0, 0), &[])
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path.as_bytes(), 0o100_000 | permissions, (0, 0), data)
    }

    /// Adds an entry with an owner and a group besides.
    pub fn owned_entry(
        &mut self,
        path: &[u8],
        mode: u32,
        owner: (u32, u32),
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        self.start_entry(path, Attributes { mode, owner, device }, data.len() as u64, 1)?;
        self.write(data)?;
        self.end_entry()
    }

    /// Starts an entry with these attributes and so much [data](Self::data), and returns its inode number, for its other names if
    /// it is a file that has several.
    pub(crate) fn start_entry(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size: u64,
        names: u32,
    ) -> io::Result<u32> {
        self.entries += 1;
        let links = if attributes.mode & 0o170_000 == 0o040_000 { 2 } else { names };
        self.write_header(path, attributes, size, (self.entries, links))?;
        Ok(self.entries)
    }

    /// Where the data of the entry that was started goes.
    pub(crate) fn data(&mut self) -> Data<'_, W> {
        Data(self)
    }

    /// Ends the entry that was started.
    pub(crate) fn end_entry(&mut self) -> io::Result<()> {
        self.pad(4)
    }

    /// Adds another name of a file that was added; the kernel makes it a hard link.
    pub(crate) fn link(&mut self, path: &[u8], attributes: Attributes, inode: u32, links: u32) -> io::Result<()> {
        self.write_header(path, attributes, 0, (inode, links))
    }

    fn write_header(
        &mut self,
        path: &[u8],
        Attributes { mode, owner: (uid, gid), device: (major, minor) }: Attributes,
        size: u64,
        (inode, links): (u32, u32),
    ) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{} is too large for a cpio archive", path.escape_ascii()));
        let size = u32::try_from(size).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let mtime = if path == TRAILER { 0 } else { self.mtime };
        // Inode, mode, owner, group, links, time, size, device (2), the device it is (2), name's size, checksum.
        let fields = [inode, mode, uid, gid, links, mtime, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.write(header.as_bytes())?;
        self.write(path)?;
        self.write(&[0])?;
        self.pad(4)
    }

    /// Ends the archive and pads it to a whole block.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.pad(BLOCK)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    fn pad(&mut self, alignment: usize) -> io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        self.write(&[0; BLOCK][..missing])
    }
}

/// The data of an entry on its way out.
pub(crate) struct Data<'a, W>(&'a mut Writer<W>);

impl<W: Write> Write for Data<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `echo a | cpio -o -H newc | xz --check=crc32`, as the kernel wants it, of a file of two letters and a line break.
    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x1c, 0x00,
        0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0xe0, 0x01, 0xff, 0x00, 0x41, 0x5d, 0x00, 0x18, 0x0d, 0xdd, 0x04, 0x63,
        0x83, 0x22, 0x04, 0x9c, 0x89, 0x80, 0x3a, 0xc1, 0x4a, 0xa2, 0xf3, 0x2e, 0x3c, 0xf2, 0x05, 0xa5, 0x51, 0x40,
        0x57, 0xd1, 0x4c, 0xbc, 0xec, 0xc0, 0x8b, 0x3e, 0xd8, 0x8d, 0x50, 0x1d, 0x0b, 0xf7, 0xce, 0x54, 0x1b, 0xd8,
        0x5b, 0xe7, 0x9f, 0x33, 0x8b, 0xbd, 0xc5, 0xf7, 0x0f, 0x3a, 0xe9, 0xce, 0x74, 0x58, 0x56, 0xdb, 0x35, 0x7a,
        0x42, 0x46, 0x4f, 0x43, 0x49, 0x00, 0x00, 0x00, 0x00, 0x00, 0x70, 0xf3, 0x18, 0x2d, 0x00, 0x01, 0x59, 0x80,
        0x04, 0x00, 0x00, 0x00, 0x27, 0xaa, 0x50, 0xd6, 0x3e, 0x30, 0x0d, 0x8b, 0x02, 0x00, 0x00, 0x00, 0x00, 0x01,
        0x59, 0x5a,
    ];

    fn archive(mtime: u32) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), mtime);
        writer.entry(b"dev", 0o040_755, (0, 0), &[]).unwrap();
        writer.entry(b"dev/console", 0o020_600, (5, 1), &[]).unwrap();
        writer.owned_entry(b"init", 0o100_755, (7, 8), (0, 0), b"#!/bin/sh\n").unwrap();
        writer.finish().unwrap()
    }

    fn read(ramdisk: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, CpioError> {
        let mut found = Vec::new();
        read_ramdisk(ramdisk, |entry, data| {
            let mut bytes = Vec::new();
            data.read_to_end(&mut bytes)?;
            found.push((entry, bytes));
            Ok(())
        })?;
        Ok(found)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let archive = archive(9);
        assert_eq!(archive.len() % BLOCK, 0);
        let entries = read(&archive).unwrap();
        let names: Vec<&[u8]> = entries.iter().map(|(entry, _)| &*entry.name).collect();
        assert_eq!(names, [&b"dev"[..], b"dev/console", b"init"]);
        assert_eq!(entries[1].0.device, (5, 1));
        let (init, data) = &entries[2];
        assert_eq!((init.mode, init.uid, init.gid, init.mtime), (0o100_755, 7, 8, 9));
        assert_eq!(data, b"#!/bin/sh\n");
    }

    #[test]
    fn cpio_itself_lists_the_entries() {
        use std::process::{Command, Stdio};
        let started =
            Command::new("cpio").args(["-it", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive(0)).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "dev\ndev/console\ninit\n");
    }

    #[test]
    fn paths_are_relative_however_they_are_written() {
        for (path, expected) in [("/a", "a"), ("./a", "a"), ("//././/a/./b", "a/./b"), (".", "."), ("./", "")] {
            assert_eq!(relative(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn compressed_ramdisks_are_read() {
        let archive = archive(0);
        let zstd = ruzstd::encoding::compress_to_vec(&archive[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(read(&[&zstd[..], &[0; 4], &archive].concat()).unwrap().len(), 6);
        assert_eq!(read(XZ).unwrap()[0].0.name, b"a");
        assert_eq!(read(&[XZ, &gzip(&archive), XZ].concat()).unwrap().len(), 5);
    }

    #[test]
    fn archives_that_follow_each_other_are_read_as_one() {
        let archive = archive(0);
        let plain = [&archive[..], &[0; 1024], &archive].concat();
        assert_eq!(read(&plain).unwrap().len(), 6);
        let packed = [&gzip(&archive)[..], &[0; 3], &gzip(&plain), &archive].concat();
        assert_eq!(read(&packed).unwrap().len(), 12);
    }

    #[test]
    fn what_is_no_archive_is_refused_with_its_place() {
        let text = |ramdisk: &[u8]| read(ramdisk).unwrap_err().to_string();
        let mut archive = archive(0);
        assert_eq!(text(&[b'x'; 200]), "byte 0x0 of the archive starts with \"xxxxxx\", expected \"070701\"");
        assert_eq!(text(&archive[..115]), "it cannot be read or decompressed");
        let archive_len = archive.len();
        archive[6 + 8] = b'+';
        assert_eq!(text(&archive), "the header at byte 0x0 of the archive holds no hexadecimal number in field 1");
        archive[6 + 8] = b'0';
        archive[6 + 8 * 11..14 + 8 * 11].copy_from_slice(b"ffffffff");
        assert_eq!(text(&archive), "a name of 4294967295 bytes at byte 0x0 of the archive, expected 1 to 4096");
        assert_eq!(archive.len(), archive_len);
    }

    #[test]
    fn mutated_archives_never_panic() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % bound as u64) as usize
        };
        let originals = [archive(0), gzip(&archive(0))];
        let mut read_all = 0;
        for round in 0..20_000 {
            let mut mutated = originals[round % 2].clone();
            for _ in 0..=below(3) {
                let position = below(mutated.len());
                match below(3) {
                    0 => mutated[position] = b"0123456789abcdefABCDEF\0\xff"[below(24)],
                    1 => mutated[position] ^= 1 << below(8),
                    _ => mutated.truncate(position.max(1)),
                }
            }
            match read(&mutated) {
                Ok(entries) => {
                    read_all += 1;
                    assert!(entries.len() <= 3);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        assert!(read_all > 100, "{read_all}");
    }
}
