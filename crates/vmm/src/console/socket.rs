//! The console on a Unix socket, as `vmm console` reads it: what it showed lately, and then what it shows, to any number of readers.
//!
//! Nothing is typed there, as in `nitro-cli console`: what a reader sends is ignored. A reader never slows the guest.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::console::recent::Recent;

/// How long a reader may leave its end full before it is given up, which also bounds how long the machine's end waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

type Readers = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// A socket that is served until it is dropped; then every reader gets the rest.
pub(crate) struct Server {
    path: PathBuf,
    recent: Arc<Recent>,
    readers: Readers,
}

impl Server {
    /// Serves the console at `path`. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody else listens there.
    pub(crate) fn start(path: &Path, recent: Arc<Recent>) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        let readers = Readers::default();
        let server = Self { path: path.to_owned(), recent: recent.clone(), readers: readers.clone() };
        // It waits for readers until the process ends: there is no way to tell a listener to stop that would not cost more than the thread.
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            for reader in listener.incoming().flatten() {
                let recent = recent.clone();
                let started =
                    thread::Builder::new().name("console-reader".to_owned()).spawn(move || send(reader, &recent));
                let mut readers = readers.lock().unwrap_or_else(PoisonError::into_inner);
                readers.retain(|reader| !reader.is_finished());
                readers.extend(started);
            }
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it is gone already, so much the better.
        let _ = fs::remove_file(&self.path);
        self.recent.end();
        let readers = std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for reader in readers {
            // A reader's thread does nothing that could panic, and if it did there would be nothing left to do for it.
            let _ = reader.join();
        }
    }
}

/// Whether `path` is a socket without a listener.
fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn send(mut reader: UnixStream, recent: &Recent) {
    if reader.set_write_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    let mut position = 0;
    while let Some((bytes, next)) = recent.after(position) {
        if reader.write_all(&bytes).is_err() {
            return;
        }
        position = next;
    }
}

/// Prints the console at `path` until its machine ends.
///
/// # Errors
/// When nobody serves a console there, or standard output is closed.
pub(crate) fn follow(path: &Path) -> io::Result<()> {
    let mut console = UnixStream::connect(path)?;
    let mut output = io::stdout().lock();
    let mut piece = [0; 4096];
    loop {
        match io::Read::read(&mut console, &mut piece)? {
            0 => return Ok(()),
            count => {
                output.write_all(&piece[..count])?;
                output.flush()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn every_reader_gets_all_of_it_and_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let recent = Arc::new(Recent::default());
        recent.push(b"before, ");
        let server = Server::start(&path, recent.clone()).unwrap();
        let mut readers = [0, 1].map(|_| UnixStream::connect(&path).unwrap());
        for reader in &mut readers {
            let mut first = [0; 8];
            reader.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"before, ");
        }
        recent.push(b"after");
        drop(server);
        for mut reader in readers {
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "after");
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let recent = Arc::new(Recent::default());
        let server = Server::start(&path, recent.clone()).unwrap();
        let _lazy = UnixStream::connect(&path).unwrap();
        for _ in 0..100 {
            recent.push(&[b'x'; 32 << 10]);
        }
        let start = std::time::Instant::now();
        drop(server);
        assert!(start.elapsed() < 10 * PATIENCE);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        drop(UnixListener::bind(&path).unwrap());
        let server = Server::start(&path, Arc::default()).unwrap();
        let refused = Server::start(&path, Arc::default()).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::AddrInUse));
        drop(server);
    }
}
