//! Where the guest's serial output goes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use crate::config::SerialBackend;

/// Opens the sink for what the guest writes to COM1. Each write reaches it at once.
///
/// # Errors
/// When the file cannot be created.
pub(crate) fn open_output(backend: &SerialBackend) -> io::Result<Box<dyn Write + Send>> {
    Ok(match backend {
        // `Stdout` gathers lines, and a prompt is not a line.
        SerialBackend::Stdio => Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        SerialBackend::None => Box::new(io::sink()),
        SerialBackend::File(path) => Box::new(File::create(path)?),
    })
}
