//! The launcher's exit codes, as `vmm --help` documents them.

use crate::launch::{End, Machine};

/// The guest powered off; also an enclave's ordinary end, which is a reboot.
const POWER_OFF: i32 = 0;

/// The guest asked for a reset and `on-reboot` is `exit`.
const RESET: i32 = 3;

/// The guest's processor shut down on a triple fault.
const TRIPLE_FAULT: i32 = 4;

/// The guest reset itself without a shutdown.
const CRASH: i32 = 7;

/// The code with which the launcher reports this end of a guest.
pub(crate) fn expected(machine: Machine, end: End) -> i32 {
    match (machine, end) {
        (_, End::PowerOff) => POWER_OFF,
        // An enclave has no power button: its init reboots, and that is the end that was wanted.
        (Machine::NitroEnclave, End::Reset) => POWER_OFF,
        (Machine::Microvm, End::Reset) => RESET,
        (_, End::TripleFault) => TRIPLE_FAULT,
        (_, End::Panic) => CRASH,
    }
}
