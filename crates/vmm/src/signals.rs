//! Signals that ask for the end of a run, and what a panic of ours looks like.

use std::io;
use std::thread;

use bus::{PowerControl, PowerRequest};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::console::terminal;
use crate::exit::ExitStatus;

/// From now on SIGINT, SIGTERM and SIGHUP press `power`'s button, so that the run ends in order; a second one ends the process at once.
/// (The terminal sends no SIGINT for Ctrl-C in raw mode: the guest gets the key.)
///
/// # Errors
/// When the host refuses a handler or a thread.
pub(crate) fn watch(power: PowerControl) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for (count, signal) in (1..).zip(signals.forever()) {
            tracing::info!(signal, "ending, as a signal asks for it");
            power.request(PowerRequest::Quit);
            if count > 1 {
                terminal::restore();
                std::process::exit(ExitStatus::Quit.code().into());
            }
        }
    })?;
    Ok(())
}

/// A panic, which is a bug of ours, prints one line and ends the process with the terminal as it was.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let thread = thread::current().name().unwrap_or("unnamed").to_owned();
        eprintln!("vmm: error: internal error in thread {thread}{place}: {message}; this is a bug in vmm");
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
        // A vCPU thread that is gone would leave the others waiting for it.
        std::process::exit(ExitStatus::Failed.code().into());
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_panic_in_any_thread_is_one_line_and_ends_the_process_with_1() {
        const CHILD: &str = "VMM_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            install_panic_hook();
            let _ = thread::Builder::new()
                .name("vcpu-0".to_owned())
                .spawn(|| panic!("impossible"))
                .map(thread::JoinHandle::join);
            return;
        }
        // The hook ends its process, so it needs one of its own: this test again.
        let name = "signals::tests::a_panic_in_any_thread_is_one_line_and_ends_the_process_with_1";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output =
            child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").env_remove("RUST_BACKTRACE").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("vmm: error: internal error in thread vcpu-0 at "), "{stderr}");
        assert!(stderr.ends_with(": impossible; this is a bug in vmm\n"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}
