//! One run: the console attached to a machine, the machine driven to its end, and everything put back.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use bus::PowerRequest;
use microvm::{Machine, MachineError};
use thiserror::Error;
use tracing::{info, warn};

use crate::accel_probe::{self, Chosen, HostFacts, NoKvm};
use crate::cli::CommandLine;
use crate::config::{ConfigError, Configuration, SerialBackend};
use crate::console::{self, Output, Recent};
use crate::exit::ExitStatus;
use crate::{machine, signals};

/// How many lines of a dead guest's console are shown.
const LAST_WORDS: usize = 30;

/// Why there was no run, or why it broke off.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The user's mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The processor backend is not to be had.
    #[error(transparent)]
    Accel(#[from] NoKvm),
    /// The serial port's output cannot be opened.
    #[error("cannot open the serial port's output {backend}")]
    Serial {
        /// Where it should go, as the user wrote it, with its log if it has one.
        backend: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The terminal, a signal handler or a thread was refused.
    #[error("cannot set up the console")]
    Console(#[source] io::Error),
    /// The machine could not be built or could not go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl LaunchError {
    /// The exit code for it.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Config(_) => ExitStatus::Usage,
            Self::Accel(_) | Self::Serial { .. } | Self::Console(_) | Self::Machine(_) => ExitStatus::Failed,
        }
    }
}

/// Checks the configuration, builds its machine and runs it to its end.
///
/// # Errors
/// [`LaunchError`], whose [`LaunchError::status`] is the exit code.
pub fn launch(command_line: &CommandLine) -> Result<ExitStatus, LaunchError> {
    let Configuration { machine, serial, serial_log } = Configuration::resolve(command_line)?;
    if command_line.check {
        println!("vmm: the configuration of this {} has no mistakes", machine.machine_type());
        return Ok(ExitStatus::PoweredOff);
    }
    let Chosen { accel, reason, warning } = accel_probe::choose(machine.board().accel, &HostFacts::probe())?;
    info!(?accel, reason, "processor backend chosen");
    if let Some(warning) = warning {
        warn!("{warning}");
    }
    let output = Output::open(&serial, serial_log.as_deref()).map_err(|source| {
        let log = serial_log.map(|path| format!(" (log {})", path.display())).unwrap_or_default();
        LaunchError::Serial { backend: format!("{serial}{log}"), source }
    })?;
    let recent = output.recent();
    if serial == SerialBackend::Closed {
        warn!("the console is closed, as an enclave's is without --debug-mode; --serial stdio opens it all the same");
    }
    let kind = machine.machine_type();
    let mut machine = machine::build(machine, accel, Box::new(output))?;
    let started = Instant::now();
    let end = attend(&mut machine, &serial);
    if command_line.stats {
        print_statistics(&mut io::stderr(), started.elapsed(), &machine.statistics());
        if let Some(vsock) = machine.vsock_statistics() {
            print_vsock_statistics(&mut io::stderr(), &vsock);
        }
    }
    let status = end.as_ref().map_or(ExitStatus::Failed, |end| ExitStatus::of(kind, *end));
    if status.is_death() && serial != SerialBackend::Stdio {
        print_last_words(&mut io::stderr(), &recent);
    }
    let end = end?;
    info!(?end, "the run ended");
    Ok(status)
}

/// Prints how the console ended, to somebody who did not see it: the user wants to know why the guest died.
fn print_last_words(to: &mut dyn Write, recent: &Recent) {
    let lines = recent.last_lines(LAST_WORDS);
    if lines.is_empty() {
        return;
    }
    let mut text = String::from("vmm: the last lines of the guest's console:\n");
    lines.iter().for_each(|line| text.push_str(&format!("  | {line}\n")));
    // Like statistics, they are not worth failing for.
    let _ = to.write_all(text.as_bytes());
}

/// Runs `machine` with this process's signals and, if it is wanted, standard input on it.
fn attend(machine: &mut Machine, serial: &SerialBackend) -> Result<PowerRequest, LaunchError> {
    signals::watch(machine.power()).map_err(LaunchError::Console)?;
    let mut raw = None;
    if *serial == SerialBackend::Stdio
        && let Some(port) = machine.serial()
    {
        raw = console::RawMode::enter().map_err(LaunchError::Console)?;
        // A terminal that is not ours now belongs to the shell in front of us: reading from it would stop this job.
        if raw.is_some() || !console::is_terminal() {
            console::start_input(raw.is_some(), port, machine.power()).map_err(LaunchError::Console)?;
        }
    }
    let end = machine.run();
    drop(raw);
    Ok(end?)
}

/// Prints how long the run took and what was counted: by all vCPUs together, then, if there are several, by each. Instructions have a rate.
fn print_statistics(to: &mut dyn Write, elapsed: Duration, vcpus: &[Vec<(&'static str, u64)>]) {
    let seconds = elapsed.as_secs_f64();
    let mut text = format!("vmm: stats: wall time {seconds:.3} s\n");
    let mut line = |who: &str, name: &str, count: u64| {
        let rate = match name {
            "instructions" if seconds > 0.0 => format!(" ({:.1} million/s)", count as f64 / seconds / 1e6),
            _ => String::new(),
        };
        text.push_str(&format!("vmm: stats: {who}{name} {count}{rate}\n"));
    };
    for (index, (name, _)) in vcpus.first().into_iter().flatten().enumerate() {
        line("", name, vcpus.iter().filter_map(|counts| counts.get(index)).map(|(_, count)| count).sum());
    }
    for (id, counts) in vcpus.iter().enumerate().filter(|_| vcpus.len() > 1) {
        for (name, count) in counts {
            line(&format!("vCPU {id}: "), name, *count);
        }
    }
    // Statistics are not worth failing a run for.
    let _ = to.write_all(text.as_bytes());
}

/// Prints what the vsock has counted.
fn print_vsock_statistics(to: &mut dyn Write, counted: &vsock::Statistics) {
    // Destructured, so that what is counted is printed.
    let vsock::Statistics {
        connections,
        most_connections,
        refused,
        resets,
        bad_packets,
        bytes_from_guest,
        bytes_to_guest,
        stalls_from_guest,
        stalls_to_guest,
    } = counted;
    let text = format!(
        "vmm: stats: vsock connections {connections} (at most {most_connections} at a time), refused {refused}, \
         resets {resets}, bad packets {bad_packets}\n\
         vmm: stats: vsock bytes from the guest {bytes_from_guest}, data that had to wait {stalls_from_guest}\n\
         vmm: stats: vsock bytes to the guest {bytes_to_guest}, data that had to wait {stalls_to_guest}\n"
    );
    // Statistics are not worth failing a run for.
    let _ = to.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(vcpus: &[Vec<(&'static str, u64)>]) -> String {
        let mut text = Vec::new();
        print_statistics(&mut text, Duration::from_millis(1500), vcpus);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn statistics_have_a_line_each_and_a_rate_for_instructions() {
        assert_eq!(
            printed(&[vec![("instructions", 3_000_000), ("TLB misses", 7)]]),
            "vmm: stats: wall time 1.500 s\n\
             vmm: stats: instructions 3000000 (2.0 million/s)\n\
             vmm: stats: TLB misses 7\n"
        );
    }

    #[test]
    fn several_vcpus_are_added_up_and_then_listed() {
        assert_eq!(
            printed(&[vec![("TLB misses", 7)], vec![("TLB misses", 1)]]),
            "vmm: stats: wall time 1.500 s\n\
             vmm: stats: TLB misses 8\n\
             vmm: stats: vCPU 0: TLB misses 7\n\
             vmm: stats: vCPU 1: TLB misses 1\n"
        );
    }
}
