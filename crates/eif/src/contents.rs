//! The contents of files on their way into a ramdisk: in memory, in a file of the user's, or in a spool, so that what is packed
//! need not fit into memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::rc::Rc;

use crate::feed::CHUNK;
use crate::ramdisks::RamdiskError;

/// A file's contents, or where they are.
#[derive(Debug, Clone)]
pub(crate) enum Contents {
    /// In memory: what is made here, and targets of links.
    Bytes(Vec<u8>),
    /// In a file of the user's, which had this size when it was found.
    File { path: PathBuf, size: u64 },
    /// In a spool.
    Spooled { file: Rc<File>, offset: u64, size: u64 },
}

impl Default for Contents {
    fn default() -> Self {
        Self::Bytes(Vec::new())
    }
}

impl Contents {
    /// How many bytes there are.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } | Self::Spooled { size, .. } => *size,
        }
    }

    /// The bytes of what is always in memory, such as a link's target; none of anything else.
    pub(crate) fn in_memory(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::File { .. } | Self::Spooled { .. } => &[],
        }
    }

    /// Copies exactly [`size`](Self::size) bytes.
    pub(crate) fn copy_to(&self, output: &mut impl Write) -> Result<(), RamdiskError> {
        match self {
            Self::Bytes(bytes) => output.write_all(bytes)?,
            Self::File { path, size } => {
                let failed = |source| RamdiskError::Read { path: path.clone(), source };
                let mut file = File::open(path).map_err(failed)?;
                let mut left = *size;
                let mut buffer = vec![0; CHUNK];
                loop {
                    let read = match file.read(&mut buffer) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        read => read.map_err(failed)?,
                    };
                    // The size stands in front of the contents already.
                    if read as u64 > left || (read == 0 && left > 0) {
                        return Err(RamdiskError::Changed { path: path.clone() });
                    }
                    if read == 0 {
                        break;
                    }
                    output.write_all(&buffer[..read])?;
                    left -= read as u64;
                }
            }
            Self::Spooled { file, offset, size } => {
                let mut window = Window { file, offset: *offset, left: *size };
                let copied = io::copy(&mut window, output)?;
                if copied < *size {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
        Ok(())
    }
}

/// A stretch of a spool.
struct Window<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Where the files of a container image are kept between reading and packing: in memory, or in a file, which grows with them and
/// is the caller's to remove. A file without a name, such as `tempfile` makes, is gone with the last of what was read into it.
///
/// ```
/// // Small images may as well stay in memory.
/// let small = eif::containers::Spool::in_memory();
/// // Others go into a file, and a user may be told how much there is.
/// let large = eif::containers::Spool::in_file(tempfile::tempfile()?).watched(|bytes| eprint!("\r{bytes} bytes"));
/// # drop((small, large));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Default)]
pub struct Spool {
    file: Option<Rc<File>>,
    /// How many bytes were kept so far.
    kept: u64,
    watcher: Option<Box<dyn FnMut(u64)>>,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, kept, watcher: _ } = self;
        f.debug_struct("Spool").field("file", file).field("kept", kept).finish_non_exhaustive()
    }
}

impl Spool {
    /// Keeps everything in memory.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Keeps everything in a file that can be read and written, from its start.
    pub fn in_file(file: File) -> Self {
        Self { file: Some(Rc::new(file)), ..Self::default() }
    }

    /// Tells how many bytes there are in all, each time that some were kept.
    #[must_use]
    pub fn watched(mut self, watcher: impl FnMut(u64) + 'static) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Keeps all that comes.
    pub(crate) fn keep(&mut self, mut data: impl Read) -> io::Result<Contents> {
        let start = self.kept;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => &buffer[..read],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match &self.file {
                Some(file) => file.write_all_at(chunk, self.kept)?,
                None => bytes.extend_from_slice(chunk),
            }
            self.kept += chunk.len() as u64;
            if let Some(watcher) = &mut self.watcher {
                watcher(self.kept);
            }
        }
        Ok(match &self.file {
            Some(file) => Contents::Spooled { file: Rc::clone(file), offset: start, size: self.kept - start },
            None => Contents::Bytes(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(contents: &Contents) -> Result<Vec<u8>, RamdiskError> {
        let mut bytes = Vec::new();
        contents.copy_to(&mut bytes).map(|()| bytes)
    }

    #[test]
    fn a_spool_gives_back_what_it_keeps_wherever_that_is() {
        let large = vec![7; CHUNK + 5];
        for mut spool in [Spool::in_memory(), Spool::in_file(tempfile::tempfile().unwrap())] {
            let kept = [&b"first"[..], &large, b"", b"last"].map(|data| (spool.keep(data).unwrap(), data.to_vec()));
            for (contents, data) in kept {
                assert_eq!((contents.size(), copied(&contents).unwrap()), (data.len() as u64, data));
            }
        }
    }

    #[test]
    fn a_file_that_changes_before_it_is_packed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        let of_size = |size| Contents::File { path: path.clone(), size };
        assert_eq!(copied(&of_size(5)).unwrap(), b"12345");
        for size in [4, 6] {
            assert!(matches!(copied(&of_size(size)), Err(RamdiskError::Changed { .. })), "{size}");
        }
    }

    #[test]
    fn the_watcher_is_told_how_much_there_is() {
        let told = Rc::new(std::cell::RefCell::new(Vec::new()));
        let watcher = Rc::clone(&told);
        let mut spool = Spool::in_memory().watched(move |bytes| watcher.borrow_mut().push(bytes));
        spool.keep(&b"abc"[..]).unwrap();
        spool.keep(&b"de"[..]).unwrap();
        assert_eq!(*told.borrow(), [3, 5]);
    }
}
