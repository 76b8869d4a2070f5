//! How far a long work is, on standard error, and only if that is a terminal and the answer is for people: with `--json` nothing is
//! told.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Less is read or written before anybody could wonder.
const LARGE: u64 = 64 << 20;

/// How long nothing is told, and how often something is told then.
const PATIENCE: Duration = Duration::from_millis(500);
const INTERVAL: Duration = Duration::from_millis(200);

/// What is told.
#[derive(Debug)]
pub(crate) struct Meter {
    name: String,
    /// How much there is, if that is known.
    size: Option<u64>,
    done: u64,
    /// When something is told next; never, if nobody would see it.
    next: Option<Instant>,
    told: bool,
}

impl Meter {
    /// A meter for so much of something, or for nobody knows how much.
    pub(crate) fn new(name: &str, size: Option<u64>, json: bool) -> Self {
        let visible = !json && size.is_none_or(|size| size >= LARGE) && io::stderr().is_terminal();
        let next = visible.then(|| Instant::now() + PATIENCE);
        Self { name: crate::output::plain(name), size, done: 0, next, told: false }
    }

    /// So much is done now.
    pub(crate) fn set(&mut self, done: u64) {
        self.done = done;
        if let Some(next) = self.next {
            let now = Instant::now();
            if now >= next {
                self.next = Some(now + INTERVAL);
                self.told = true;
                let _ = write!(io::stderr(), "\r\x1b[K{}", self.line());
            }
        }
    }

    /// So much more is done.
    fn add(&mut self, more: usize) {
        self.set(self.done + more as u64);
    }

    fn line(&self) -> String {
        match self.size {
            // Reading it a second time starts over.
            Some(size) => format!("eif: {}: {}%", self.name, self.done % size.max(1) * 100 / size.max(1)),
            None => format!("eif: {}: {} MiB", self.name, self.done >> 20),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.told {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A file to read.
#[derive(Debug)]
pub(crate) struct Shown {
    file: File,
    meter: Meter,
}

impl Shown {
    pub(crate) fn new(file: File, path: &Path, json: bool) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, meter: Meter::new(&path.display().to_string(), Some(size), json) })
    }
}

impl Read for Shown {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.meter.add(read);
        Ok(read)
    }
}

impl Seek for Shown {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// An output whose size nobody knows yet.
pub(crate) struct ShownOutput<'a> {
    output: &'a mut dyn Write,
    meter: Meter,
}

impl<'a> ShownOutput<'a> {
    pub(crate) fn new(output: &'a mut dyn Write, name: &str, json: bool) -> Self {
        Self { output, meter: Meter::new(name, None, json) }
    }
}

impl Write for ShownOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.meter.add(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_share_or_the_amount() {
        let mut meter = Meter::new("a\x1b.eif", Some(200), true);
        meter.add(50);
        assert_eq!(meter.line(), "eif: a\\u{1b}.eif: 25%");
        meter.add(200);
        assert_eq!(meter.line(), "eif: a\\u{1b}.eif: 25%");
        let mut meter = Meter::new("app", None, true);
        meter.set(5 << 20);
        assert_eq!(meter.line(), "eif: app: 5 MiB");
    }

    #[test]
    fn nothing_is_told_beside_json() {
        let mut meter = Meter::new("a", None, true);
        meter.set(1 << 40);
        assert!(meter.next.is_none() && !meter.told);
    }
}
