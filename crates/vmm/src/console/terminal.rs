//! The terminal's mode: raw while a guest runs, and as it was on every way out.
//!
//! The old mode is kept in one place for the whole process, so that the panic hook and the signal thread, which hold no guard, can put it
//! back as well. Putting it back twice does nothing.

use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts the terminal on standard input into raw mode; `None` if there is no terminal, or it belongs to another job.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = rustix::stdio::stdin();
        if !rustix::termios::isatty(stdin) {
            return Ok(None);
        }
        // A background job that changes the terminal's mode, or reads from it, is stopped by the kernel.
        if rustix::termios::tcgetpgrp(stdin).is_ok_and(|foreground| foreground != rustix::process::getpgrp()) {
            return Ok(None);
        }
        let old = rustix::termios::tcgetattr(stdin)?;
        // Output processing stays on, as in QEMU: log lines that begin in column one need it, and guests do not mind.
        let mut raw = old.clone();
        raw.input_modes -= InputModes::IGNBRK
            | InputModes::BRKINT
            | InputModes::PARMRK
            | InputModes::ISTRIP
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::ICRNL
            | InputModes::IXON;
        raw.local_modes -=
            LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(old);
        let guard = Self(());
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether standard input is a terminal.
pub(crate) fn is_terminal() -> bool {
    rustix::termios::isatty(rustix::stdio::stdin())
}

/// Puts the terminal back into the mode it had before [`RawMode::enter`]; nothing if it never was.
pub(crate) fn restore() {
    if let Some(old) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // What the guest has still to print is printed first. There is nobody to tell if the terminal is gone.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &old);
    }
}
