//! The time that a VM's CPUs share.
//!
//! The guest's time stamp counter runs at exactly 1 GHz, so a tick is a nanosecond of the host's monotonic clock: the frequency that the guest is told is
//! exact on every host, the counters of all vCPUs agree by construction, and a saved machine can go on elsewhere.
//!
//! DEVNOTE: the host's TSC with an offset would save some 20 ns at each RDTSC; the frequency would be the host's, measured by somebody, and different after a move.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Frequency of the guest's time stamp counter, in kHz.
pub(crate) const TSC_KHZ: u64 = 1_000_000;

/// A VM's clock: zero when the VM was made.
#[derive(Debug)]
pub(crate) enum VmClock {
    /// The host's time.
    Host(Instant),
    /// A nanosecond an instruction, and what the vCPU sleeps: the same in each run, as far as nothing comes from outside.
    Counting(AtomicU64),
}

impl VmClock {
    pub(crate) fn start() -> Self {
        Self::Host(Instant::now())
    }

    /// A clock that goes on by [`VmClock::advance`] only.
    pub(crate) fn counting() -> Self {
        Self::Counting(AtomicU64::new(0))
    }

    /// Counts nanoseconds, on a clock that counts.
    pub(crate) fn advance(&self, nanoseconds: u64) {
        if let Self::Counting(now) = self {
            now.fetch_add(nanoseconds, Ordering::SeqCst);
        }
    }

    /// Whether it counts.
    pub(crate) fn counts(&self) -> bool {
        matches!(self, Self::Counting(_))
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(&self) -> u64 {
        match self {
            Self::Host(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Self::Counting(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Wall-clock time since the Unix epoch and the machine time of the same moment, in nanoseconds.
    pub(crate) fn wall_and_machine(&self) -> (Duration, u64) {
        let before = self.now_ns();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (wall, before)
    }
}
