//! Lines to the guest's console.
//!
//! Init may start with no file descriptor at all (an initramfs without `/dev/console`), and a serial line may answer
//! with short writes: nothing written here is lost as long as there is a console.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// Where lines may go, best first.
const CANDIDATES: [&str; 3] = ["/dev/console", "/dev/ttyS0", "/dev/kmsg"];

/// What every line for the host's eyes starts with.
const PREFIX: &str = "vmm-guest: ";

/// How often a line is tried again when the console does not take it, 1 ms apart.
const RETRIES: u32 = 1000;

/// The console, opened once.
pub(crate) struct Console {
    file: Option<File>,
}

impl Console {
    /// Opens the first console device that opens; without any, lines go nowhere and the guest carries on.
    pub(crate) fn open() -> Self {
        let file = CANDIDATES.iter().find_map(|path| OpenOptions::new().write(true).open(path).ok());
        Self { file }
    }

    /// A console that takes every line and shows none.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self { file: None }
    }

    /// Keeps the kernel's own messages below "error" off the console, so that they do not split our lines.
    pub(crate) fn quiet_kernel(&mut self) {
        // Without /proc the lines may be split, which is no reason to stop.
        let _ = std::fs::write("/proc/sys/kernel/printk", "4");
    }

    /// Writes one `vmm-guest: key=value` line. A line break in the value would forge a line, so it becomes a space.
    pub(crate) fn report(&mut self, key: &str, value: impl Display) {
        let value = value.to_string().replace(['\n', '\r'], " ");
        self.line(&format!("{PREFIX}{key}={value}"));
    }

    /// Writes one line as it is.
    pub(crate) fn line(&mut self, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(b'\n');
        self.write(&bytes);
    }

    /// Waits until the serial line has sent everything.
    pub(crate) fn drain(&mut self) {
        if let Some(file) = &self.file {
            // /dev/kmsg is no terminal and needs no drain.
            let _ = nix::sys::termios::tcdrain(file);
        }
    }

    fn write(&mut self, mut bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let mut retries = RETRIES;
        while !bytes.is_empty() {
            match file.write(bytes) {
                Ok(count) if count > 0 => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    if retries == 0 {
                        return;
                    }
                    retries -= 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}
