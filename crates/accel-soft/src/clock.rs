//! The time that a VM's CPUs share.
//!
//! The guest's time stamp counter runs at exactly 1 GHz, so a tick is a nanosecond of the host's monotonic clock: the frequency that the guest is told is
//! exact on every host, the counters of all vCPUs agree by construction, and a saved machine can go on elsewhere.
//!
//! DEVNOTE: the host's TSC with an offset would save some 20 ns at each RDTSC; the frequency would be the host's, measured by somebody, and different after a move.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Frequency of the guest's time stamp counter, in kHz.
pub(crate) const TSC_KHZ: u64 = 1_000_000;

/// A VM's clock: zero when the VM was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VmClock(Instant);

impl VmClock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Wall-clock time since the Unix epoch and the machine time of the same moment, in nanoseconds.
    pub(crate) fn wall_and_machine(&self) -> (Duration, u64) {
        let before = self.now_ns();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (wall, before)
    }
}
