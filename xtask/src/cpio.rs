//! Archives in cpio's "newc" format, which is what the kernel unpacks as its first root file system.
//!
//! Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Every entry gets its own inode number, owner
//! root and the time 0, so that equal contents give equal bytes, and with them equal enclave measurements.
//!
//! Deliberately missing: reading, hard links, checksums ("070702").

use std::io::{self, Write};

/// The size to which an archive is padded, so that another can follow it; cpio's own block size.
const BLOCK: usize = 512;

/// File type and permission bits, as in `stat`.
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const REGULAR: u32 = 0o100_644;
const CHARACTER: u32 = 0o020_600;

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Writes one archive.
pub(crate) struct Writer<W> {
    output: W,
    written: usize,
    entries: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub(crate) fn new(output: W) -> Self {
        Self { output, written: 0, entries: 0 }
    }

    /// Adds a directory; those above it must have been added.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR, (0, 0), contents)
    }

    /// Adds a program.
    pub(crate) fn executable(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, EXECUTABLE, (0, 0), contents)
    }

    /// Adds a character device by its numbers.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER, (major, minor), &[])
    }

    /// Ends the archive and pads it to a whole block.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.pad(BLOCK)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{path} is too large for a cpio archive"));
        let size = u32::try_from(contents.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        self.entries += 1;
        // Inode, mode, uid, gid, links, time, size, device (2), the device it is (2), name's size, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.write(header.as_bytes())?;
        self.write(path.as_bytes())?;
        self.write(&[0])?;
        self.pad(4)?;
        self.write(contents)?;
        self.pad(4)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev").expect("a directory");
        writer.character_device("dev/console", 5, 1).expect("a device");
        writer.executable("init", b"#!/bin/sh\n").expect("a program");
        writer.finish().expect("an archive")
    }

    #[test]
    fn an_archive_fills_whole_blocks() {
        assert_eq!(archive().len() % BLOCK, 0);
    }

    #[test]
    fn an_entry_starts_with_its_fields_in_hexadecimal() {
        let archive = archive();
        let header = String::from_utf8_lossy(&archive[..110]).into_owned();
        assert!(header.starts_with("07070100000001000041ed0000000000000000000000020000000000000000"), "{header}");
        assert_eq!(&archive[110..114], b"dev\0");
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        assert_eq!(archive(), archive());
    }

    #[test]
    fn cpio_itself_lists_the_entries() {
        use std::process::{Command, Stdio};
        if !crate::command::exists("cpio") {
            eprintln!("skipped: cpio is not installed");
            return;
        }
        let mut child = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio starts");
        child.stdin.take().expect("a pipe").write_all(&archive()).expect("cpio reads");
        let output = child.wait_with_output().expect("cpio ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "dev\ndev/console\ninit\n");
    }
}
