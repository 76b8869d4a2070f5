//! One run: the console attached to a machine, the machine driven to its end, and everything put back.

use std::io::{self, Write};
use std::time::Instant;

use bus::PowerRequest;
use microvm::{Machine, MachineError};
use thiserror::Error;
use tracing::{info, warn};

use crate::accel_probe::{self, Chosen, HostFacts, NoKvm};
use crate::cli::CommandLine;
use crate::config::{ConfigError, Configuration, SerialBackend};
use crate::console::{self, Output, Recent};
use crate::exit::ExitStatus;
use crate::statistics::Statistics;
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
    let mut machine = machine::build(machine, accel, command_line.stats.is_some(), Box::new(output))?;
    let started = Instant::now();
    let end = attend(&mut machine, &serial);
    if let Some(form) = command_line.stats {
        let (vcpus, vsock) = (machine.statistics(), machine.vsock_statistics());
        Statistics { elapsed: started.elapsed(), vcpus, vsock }.print(&mut io::stderr(), form);
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
