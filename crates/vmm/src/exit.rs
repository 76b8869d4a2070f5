//! Exit codes: how a run ended, for scripts.

use std::process::ExitCode;

use bus::PowerRequest;

use crate::config::MachineType;

/// How a run of `vmm` ended. The number of each is part of the command line's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The guest powered off; an enclave ended, which is a reboot as its kernel sees it.
    PoweredOff,
    /// vmm failed: an image that cannot be booted, a host that cannot run it, or a bug.
    Failed,
    /// The command line or the configuration file is wrong.
    Usage,
    /// A microvm's guest reset itself, and `on-reboot` is `exit`.
    Reset,
    /// The guest triple-faulted.
    TripleFault,
    /// The user ended the run: Ctrl-A x, SIGINT, SIGTERM or SIGHUP.
    Quit,
    /// An enclave did not give its heartbeat within `enclave.heartbeat-timeout`.
    NoHeartbeat,
    /// The guest reset itself without shutting down, as a kernel does after a panic.
    Crashed,
    /// A test program in the guest chose the code through the debug-exit port.
    Debug(u8),
}

/// What `--help` says about each.
pub(crate) const MEANINGS: [(ExitStatus, &str); 8] = [
    (ExitStatus::PoweredOff, "the guest powered off; for nitro-enclave: the enclave ended, by power-off or reboot"),
    (ExitStatus::Failed, "vmm could not start or go on; the reason is on standard error"),
    (ExitStatus::Usage, "the command line or the configuration file is wrong"),
    (ExitStatus::Reset, "the guest of a microvm rebooted, with machine.on-reboot = \"exit\""),
    (ExitStatus::TripleFault, "the guest triple-faulted"),
    (ExitStatus::Quit, "ended from outside: Ctrl-A x, SIGINT, SIGTERM or SIGHUP"),
    (ExitStatus::NoHeartbeat, "the enclave gave no heartbeat within enclave.heartbeat-timeout"),
    (ExitStatus::Crashed, "the guest reset itself without shutting down first, as Linux does after a panic"),
];

impl ExitStatus {
    /// What it means that a `machine` ended with `request`.
    pub fn of(machine: MachineType, request: PowerRequest) -> Self {
        match request {
            PowerRequest::PowerOff => Self::PoweredOff,
            PowerRequest::Reset("triple fault") => Self::TripleFault,
            // An enclave has no power switch: its init reboots, and the Nitro hypervisor takes that for the end.
            PowerRequest::Reset(_) if machine == MachineType::NitroEnclave => Self::PoweredOff,
            PowerRequest::Reset(_) => Self::Reset,
            PowerRequest::Crash(_) => Self::Crashed,
            PowerRequest::Quit => Self::Quit,
            PowerRequest::Exit(code) => Self::Debug(code),
            PowerRequest::HeartbeatTimeout => Self::NoHeartbeat,
            PowerRequest::Fatal => Self::Failed,
        }
    }

    /// Whether the guest died: nobody wanted this end.
    pub(crate) fn is_death(self) -> bool {
        match self {
            Self::Failed | Self::TripleFault | Self::NoHeartbeat | Self::Crashed => true,
            Self::PoweredOff | Self::Usage | Self::Reset | Self::Quit | Self::Debug(_) => false,
        }
    }

    /// The number that the process exits with.
    pub fn code(self) -> u8 {
        match self {
            Self::PoweredOff => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Reset => 3,
            Self::TripleFault => 4,
            Self::Quit => 5,
            Self::NoHeartbeat => 6,
            Self::Crashed => 7,
            Self::Debug(code) => code,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        status.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_ends_an_enclave_well_and_a_microvm_with_its_own_code() {
        let reboot = PowerRequest::Reset("i8042");
        assert_eq!(ExitStatus::of(MachineType::NitroEnclave, reboot).code(), 0);
        assert_eq!(ExitStatus::of(MachineType::Microvm, reboot).code(), 3);
    }

    #[test]
    fn a_triple_fault_is_told_from_a_reboot_on_both_machines() {
        for machine in [MachineType::NitroEnclave, MachineType::Microvm] {
            assert_eq!(ExitStatus::of(machine, PowerRequest::Reset("triple fault")).code(), 4);
        }
    }

    #[test]
    fn a_crash_is_told_from_a_reboot_on_both_machines() {
        for machine in [MachineType::NitroEnclave, MachineType::Microvm] {
            assert_eq!(ExitStatus::of(machine, PowerRequest::Crash("i8042")).code(), 7);
        }
    }

    #[test]
    fn every_code_is_explained_in_order() {
        let codes: Vec<_> = MEANINGS.iter().map(|(status, _)| status.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
