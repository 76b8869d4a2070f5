//! Where and with what the results were taken.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::command;
use crate::launch::QEMU;

/// The machine and the versions of everything.
#[derive(Debug, Serialize)]
pub(super) struct Host {
    /// Of this workspace, as git names it.
    pub(super) revision: String,
    /// The end of the measurements, in seconds since 1970.
    pub(super) unix_time: u64,
    /// The host's kernel.
    pub(super) kernel: String,
    /// The host's processor.
    pub(super) processor: String,
    /// How many of them.
    pub(super) processors: usize,
    /// The host's memory in MiB.
    pub(super) memory_mib: u64,
    /// Runnable processes on average over the last 1, 5 and 15 minutes; the measured one is among them.
    pub(super) load: String,
    /// QEMU's first line on itself.
    pub(super) qemu: Option<String>,
    /// The guests' kernels.
    pub(super) guests: Vec<String>,
}

/// Seconds that one amount of arithmetic takes two threads, and one: what the host's processors give at the moment, without a guest.
pub(super) fn two_threads_and_one() -> (f64, f64) {
    const STEPS: u64 = 200_000_000;
    let seconds = |threads: u64| {
        let start = Instant::now();
        thread::scope(|scope| {
            for seed in 0..threads {
                scope.spawn(move || {
                    black_box((0..STEPS / threads).fold(seed, |sum, step| sum.rotate_left(5) ^ black_box(step)))
                });
            }
        });
        start.elapsed().as_secs_f64()
    };
    (seconds(2), seconds(1))
}

impl Host {
    /// Looks around; what cannot be found is empty or unknown.
    pub(super) fn look(workspace: &Path, guests: Vec<String>) -> Self {
        let load = read("/proc/loadavg");
        Self {
            revision: revision(workspace),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib(&read("/proc/meminfo")).unwrap_or(0),
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            qemu: qemu_version(),
            guests,
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first `key : value` line.
fn field(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'));
    line.map(|(_, value)| value.trim().to_owned())
}

fn memory_mib(meminfo: &str) -> Option<u64> {
    Some(field(meminfo, "MemTotal")?.split(' ').next()?.parse::<u64>().ok()? / 1024)
}

fn revision(workspace: &Path) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(workspace).args(["describe", "--always", "--dirty"]);
    command::capture_text(&mut git).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn qemu_version() -> Option<String> {
    let text = command::capture_text(Command::new(QEMU).arg("--version")).ok()?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mebibytes() {
        assert_eq!(memory_mib("MemTotal:       24576000 kB\nMemFree: 1 kB\n"), Some(24_000));
    }
}
