//! Where the guest's serial output goes: to its backend, to a log if there is one, and into what is kept for later.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use crate::config::SerialBackend;
use crate::console::recent::Recent;
use crate::console::socket::Server;

/// A console's output.
pub(crate) struct Output {
    backend: Backend,
    log: Option<File>,
    recent: Arc<Recent>,
}

enum Backend {
    File(File),
    /// Readers take it from what is kept.
    Socket(#[expect(dead_code, reason = "it serves until it is dropped")] Server),
    Nowhere,
}

impl Output {
    /// Opens the sinks for what the guest writes to COM1. Each write reaches them at once.
    ///
    /// # Errors
    /// When a file or socket cannot be made.
    pub(crate) fn open(backend: &SerialBackend, log: Option<&Path>) -> io::Result<Self> {
        let recent = Arc::new(Recent::default());
        let backend = match backend {
            // `Stdout` gathers lines, and a prompt is not a line.
            SerialBackend::Stdio => Backend::File(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            SerialBackend::None | SerialBackend::Closed => Backend::Nowhere,
            SerialBackend::File(path) => Backend::File(File::create(path)?),
            SerialBackend::Socket(path) => Backend::Socket(Server::start(path, recent.clone())?),
        };
        let log = log.map(File::create).transpose()?;
        Ok(Self { backend, log, recent })
    }

    /// What it has shown lately, also after it is gone.
    pub(crate) fn recent(&self) -> Arc<Recent> {
        self.recent.clone()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.backend {
            Backend::File(file) => file.write(bytes)?,
            Backend::Socket(_) | Backend::Nowhere => bytes.len(),
        };
        let written = bytes.get(..count).unwrap_or(bytes);
        self.recent.push(written);
        // A full disk is no reason to end a guest.
        if let Some(file) = &mut self.log
            && let Err(error) = file.write_all(written)
        {
            warn!("the serial port's log ends here: {error}");
            self.log = None;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
