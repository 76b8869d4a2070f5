//! The ways in which the guest ends.

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::reboot::{RebootMode, reboot};

use crate::console::Console;

/// Where Linux lets the reboot method be chosen while it runs (since 5.11).
const REBOOT_TYPE: &str = "/sys/kernel/reboot/type";

/// How the guest is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Power off; where the kernel cannot (no ACPI), reboot, which is how an enclave ends.
    PowerOff,
    /// Reboot by the kernel's own choice or `reboot=` of the command line.
    Reboot,
    /// Reboot with an empty interrupt descriptor table.
    TripleFault,
    /// Let init exit, which panics the kernel.
    Panic,
    /// Halt every processor; the machine stays.
    Halt,
}

impl End {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "poweroff" => Self::PowerOff,
            "reboot" => Self::Reboot,
            "triple-fault" => Self::TripleFault,
            "panic" => Self::Panic,
            "halt" => Self::Halt,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::TripleFault => "triple-fault",
            Self::Panic => "panic",
            Self::Halt => "halt",
        }
    }
}

/// Ends the guest as `wanted` says. It returns only to panic the kernel: PID 1 must not return otherwise.
pub(crate) fn end(mut console: Console, wanted: Option<&str>) -> ExitCode {
    let mut end = match wanted.map(End::parse) {
        None => End::PowerOff,
        Some(Some(end)) => end,
        Some(None) => {
            console.report("end_error", format_args!("{} is unknown", wanted.unwrap_or_default()));
            End::PowerOff
        }
    };
    if end == End::PowerOff && !can_power_off() {
        console.report("end_note", "the kernel cannot power off without ACPI");
        end = End::Reboot;
    }
    console.report("end", end.name());
    console.drain();
    let refused = match end {
        End::PowerOff => call(RebootMode::RB_POWER_OFF),
        End::Reboot => call(RebootMode::RB_AUTOBOOT),
        End::TripleFault => std::fs::write(REBOOT_TYPE, "triple")
            .map_err(|error| format!("{REBOOT_TYPE}: {error}"))
            .and_then(|()| call(RebootMode::RB_AUTOBOOT)),
        End::Halt => call(RebootMode::RB_HALT_SYSTEM),
        End::Panic => return ExitCode::from(1),
    };
    let Err(error) = refused;
    console.report("end_error", error);
    ExitCode::from(1)
}

/// A kernel that knows no power-off halts instead, and says so nowhere before: ACPI is the only way on these machines.
fn can_power_off() -> bool {
    Path::new("/sys/firmware/acpi").exists()
}

fn call(mode: RebootMode) -> Result<Infallible, String> {
    reboot(mode).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_parsed_from_its_own_name() {
        for end in [End::PowerOff, End::Reboot, End::TripleFault, End::Panic, End::Halt] {
            assert_eq!(End::parse(end.name()), Some(end));
        }
    }

    #[test]
    fn an_unknown_end_is_refused() {
        assert_eq!(End::parse("explode"), None);
    }
}
