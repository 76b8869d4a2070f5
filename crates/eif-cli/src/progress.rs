//! A large file that tells how far it was read, on standard error, and only if that is a terminal.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Smaller files are read before anybody could wonder.
const LARGE: u64 = 64 << 20;

/// How long nothing is told, and how often something is told then.
const PATIENCE: Duration = Duration::from_millis(500);
const INTERVAL: Duration = Duration::from_millis(200);

/// A file to read.
#[derive(Debug)]
pub(crate) struct Shown {
    file: File,
    name: String,
    size: u64,
    read: u64,
    /// When something is told next; never, if nobody would see it.
    next: Option<Instant>,
    told: bool,
}

impl Shown {
    pub(crate) fn new(file: File, path: &Path) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let visible = size >= LARGE && io::stderr().is_terminal();
        let name = crate::output::plain(&path.display().to_string());
        Ok(Self { file, name, size, read: 0, next: visible.then(|| Instant::now() + PATIENCE), told: false })
    }

    fn tell(&mut self, now: Instant) {
        self.next = Some(now + INTERVAL);
        self.told = true;
        // Reading it a second time starts over.
        let percent = self.read % self.size.max(1) * 100 / self.size.max(1);
        let _ = write!(io::stderr(), "\r\x1b[Keif: {}: {percent}%", self.name);
    }
}

impl Read for Shown {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read += read as u64;
        if let Some(next) = self.next {
            let now = Instant::now();
            if now >= next {
                self.tell(now);
            }
        }
        Ok(read)
    }
}

impl Seek for Shown {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.told {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
