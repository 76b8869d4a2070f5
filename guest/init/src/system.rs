//! What the kernel says of the machine: version, processors, memory, clocks.

use std::fs::read_to_string;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::console::Console;

/// How long the two marks of [`report_clock`] are apart.
const MARK_DISTANCE: Duration = Duration::from_millis(400);

/// How long the sleep is that is measured from inside.
const SLEEP: Duration = Duration::from_millis(200);

/// What stands in for a file that could not be read.
const UNKNOWN: &str = "unknown";

/// The machine as the kernel sees it.
pub(crate) struct System {
    /// `uname -r`.
    pub(crate) kernel: String,
    /// Processors that are online.
    pub(crate) cpus_online: usize,
    /// `MemTotal` in KiB.
    pub(crate) mem_total_kib: u64,
    /// The processor's brand string.
    pub(crate) cpu_model: String,
    clocksource: String,
    clocksources: String,
    acpi: bool,
}

impl System {
    /// Asks the kernel; what it does not answer is 0 or "unknown".
    pub(crate) fn read() -> Self {
        let clocksource = "/sys/devices/system/clocksource/clocksource0";
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kernel: read_line("/proc/sys/kernel/osrelease"),
            cpus_online: count_cpus(&read_line("/sys/devices/system/cpu/online")),
            mem_total_kib: mem_total(&read_to_string("/proc/meminfo").unwrap_or_default()),
            cpu_model: field(&cpuinfo, "model name").unwrap_or(UNKNOWN).to_owned(),
            clocksource: read_line(&format!("{clocksource}/current_clocksource")),
            clocksources: read_line(&format!("{clocksource}/available_clocksource")),
            acpi: std::path::Path::new("/sys/firmware/acpi").exists(),
        }
    }

    /// Reports every field.
    pub(crate) fn report(&self, console: &mut Console) {
        console.report("kernel", &self.kernel);
        console.report("cpus_online", self.cpus_online);
        console.report("cpu_model", &self.cpu_model);
        console.report("mem_total_kib", self.mem_total_kib);
        console.report("acpi", if self.acpi { "on" } else { "off" });
        console.report("clocksource", &self.clocksource);
        console.report("clocksources", &self.clocksources);
    }
}

/// Reports the wall clock, a sleep measured from inside, and two marks that the host times from outside.
pub(crate) fn report_clock(console: &mut Console) {
    console.drain();
    console.report("realtime", seconds(ClockId::CLOCK_REALTIME));
    console.drain();
    let before = now(ClockId::CLOCK_MONOTONIC);
    std::thread::sleep(SLEEP);
    let slept = now(ClockId::CLOCK_MONOTONIC).saturating_sub(before);
    console.report("sleep_200ms_ns", slept.as_nanos());
    for mark in 0..2 {
        // The line must be out before the clock goes on, or the host would time the serial line.
        console.drain();
        console.report("clock_mark", seconds(ClockId::CLOCK_MONOTONIC));
        console.drain();
        if mark == 0 {
            std::thread::sleep(MARK_DISTANCE);
        }
    }
}

/// The time since the kernel started, in seconds.
pub(crate) fn uptime() -> String {
    seconds(ClockId::CLOCK_BOOTTIME)
}

fn now(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

fn seconds(clock: ClockId) -> String {
    let now = now(clock);
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

/// The first line of a file.
pub(crate) fn read_line(path: &str) -> String {
    read_to_string(path)
        .ok()
        .and_then(|text| text.lines().next().map(str::to_owned))
        .unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Counts the processors in a list like `0-3,5`.
fn count_cpus(list: &str) -> usize {
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

fn mem_total(meminfo: &str) -> u64 {
    field(meminfo, "MemTotal").and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_processors_are_counted() {
        assert_eq!(count_cpus("0-3,5\n"), 5);
        assert_eq!(count_cpus("0"), 1);
    }

    #[test]
    fn a_list_that_is_none_counts_zero() {
        assert_eq!(count_cpus("unknown"), 0);
        assert_eq!(count_cpus("3-1"), 0);
    }

    #[test]
    fn mem_total_is_found_in_meminfo() {
        assert_eq!(mem_total("MemTotal:         250000 kB\nMemFree: 1 kB\n"), 250_000);
    }
}
