//! `/tmp/perf-PID.map`: where `perf report` finds names for code that no file holds (Linux tools/perf/Documentation/jit-interface.txt).
//!
//! A translation is named after the guest's instruction pointer, with the guest's half of the address space before it. Nothing is ever taken out: after a
//! flush of the code cache an address has several names, of which perf takes one.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use tracing::warn;

use crate::core::DecodeMode;

/// The file, shared by the translators of all CPUs: each line is one write at its end.
pub(super) struct PerfMap(File);

impl PerfMap {
    /// Opens the file; `None`, with a warning, if that fails.
    pub(super) fn open() -> Option<Self> {
        let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Some(Self(file)),
            Err(error) => {
                warn!(%error, path = %path.display(), "translated blocks stay without names");
                None
            }
        }
    }

    /// Names `len` bytes of code at `start` after the guest's code at `rip`.
    pub(super) fn name(&mut self, start: u64, len: usize, rip: u64, mode: DecodeMode) {
        let half = if mode.has(DecodeMode::USER) { "user" } else { "kernel" };
        if let Err(error) = self.0.write_all(format!("{start:x} {len:x} guest-{half}-{rip:x}\n").as_bytes()) {
            warn!(%error, "a translated block stays without a name");
        }
    }
}
