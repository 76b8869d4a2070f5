//! The 16550A UART, without a wire: what is transmitted leaves at once, what is received waits for room in the FIFO.
//!
//! National Semiconductor PC16550D data sheet (June 1995), section 8; interrupt behaviour as Linux's 8250 driver probes it.
//!
//! Bytes take no time: the divisor and the line format are kept, but nothing is paced by them. The character time-out interrupt
//! is therefore due as soon as the FIFO holds fewer bytes than its trigger level.
//!
//! Deliberately missing: framing and parity errors (there is no wire), DMA mode's pins, and hardware overruns: input that does not fit stays with the sender.
//!
//! DEVNOTE: on a PC, MCR bit 3 (OUT2) gates the interrupt line. QEMU leaves it out, and so do we: a guest that runs there runs here.

mod core;
#[cfg(test)]
mod tests;

use std::io::{ErrorKind, Write};
use std::sync::Arc;

use bus::{Clock, IoError, IrqLine, PortDevice, TimedDevice, Timer};
use tracing::warn;

pub use self::core::UartCore;
use crate::isa::{read_bytes, write_bytes};

/// Number of ports.
pub const PORTS: u16 = 8;
/// Output that has no newline yet leaves after this long.
const FLUSH_AFTER_NS: u64 = 5_000_000;
/// Output leaves when this much has gathered, newline or not.
const FLUSH_AT: usize = 1024;

/// A [`UartCore`] on a board: its ports, its interrupt line, and the sink its output goes to.
///
/// Output is gathered and handed to the sink at a newline, or 5 ms after the first byte that waits. The owner calls [`Uart::flush`] when the machine ends.
pub struct Uart {
    core: UartCore,
    irq: IrqLine,
    irq_level: bool,
    clock: Arc<dyn Clock>,
    timer: Timer,
    sink: Box<dyn Write + Send>,
    sink_failed: bool,
    gathered: Vec<u8>,
    flush_at_ns: Option<u64>,
    on_room: Option<Box<dyn Fn() + Send>>,
    input_refused: bool,
}

impl Uart {
    /// A UART whose output goes to `sink`.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, sink: Box<dyn Write + Send>) -> Self {
        Self {
            core: UartCore::new(),
            irq,
            irq_level: false,
            clock,
            timer: Timer::detached(),
            sink,
            sink_failed: false,
            gathered: Vec::with_capacity(FLUSH_AT),
            flush_at_ns: None,
            on_room: None,
            input_refused: false,
        }
    }

    /// Calls `hook` when the guest has made room after [`Uart::push_input`] had to refuse bytes.
    ///
    /// It is called with the UART's lock held, so it must only leave a note, such as a write to an eventfd.
    pub fn on_room(&mut self, hook: impl Fn() + Send + 'static) {
        self.on_room = Some(Box::new(hook));
    }

    /// Bytes arrive from outside. Returns how many were taken; the sender keeps the others until there is room.
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let taken = self.core.receive(bytes);
        self.input_refused = taken < bytes.len();
        self.drive();
        taken
    }

    /// A break condition arrives from outside.
    pub fn push_break(&mut self) {
        self.core.receive_break();
        self.drive();
    }

    /// Hands everything gathered to the sink.
    pub fn flush(&mut self) {
        if !self.gathered.is_empty() {
            let result = self.sink.write_all(&self.gathered).and_then(|()| self.sink.flush());
            self.gathered.clear();
            match result {
                // A sink that is full for the moment has lost this output; the guest cannot wait for it.
                Err(error) if error.kind() != ErrorKind::WouldBlock && !self.sink_failed => {
                    self.sink_failed = true;
                    warn!("serial output is lost: {error}");
                }
                _ => {}
            }
        }
    }

    /// RESET. Output that waits still leaves.
    pub fn reset(&mut self) {
        self.flush();
        self.core = UartCore::new();
        self.drive();
    }

    fn drive(&mut self) {
        let level = self.core.interrupt();
        if level != self.irq_level {
            self.irq_level = level;
            self.irq.set(level);
        }
    }

    /// What an access may have changed outside: the interrupt line, and room in the FIFO.
    fn after_access(&mut self) {
        self.drive();
        if self.input_refused && self.core.has_room() {
            self.input_refused = false;
            if let Some(hook) = &self.on_room {
                hook();
            }
        }
    }

    fn gather(&mut self, byte: u8) {
        self.gathered.push(byte);
        if byte == b'\n' || self.gathered.len() >= FLUSH_AT {
            self.flush();
        } else if self.flush_at_ns.is_none() {
            // The timer is not taken back at a newline: that one wake-up for nothing costs less than re-arming it for each line.
            self.flush_at_ns = Some(self.clock.now_ns().saturating_add(FLUSH_AFTER_NS));
            self.timer.arm(self.flush_at_ns);
        }
    }
}

impl Drop for Uart {
    fn drop(&mut self) {
        self.flush();
    }
}

impl PortDevice for Uart {
    fn name(&self) -> &str {
        "UART"
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        read_bytes(offset, data, |port| self.core.read(port));
        self.after_access();
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        write_bytes(offset, data, |port, value| {
            if let Some(byte) = self.core.write(port, value) {
                self.gather(byte);
            }
        });
        self.after_access();
        Ok(())
    }
}

impl TimedDevice for Uart {
    fn next_deadline(&self) -> Option<u64> {
        self.flush_at_ns
    }

    fn advance(&mut self, now_ns: u64) {
        if self.flush_at_ns.is_some_and(|at| at <= now_ns) {
            self.flush_at_ns = None;
            self.flush();
        }
        self.timer.arm(self.flush_at_ns);
    }

    fn attach_timer(&mut self, timer: Timer) {
        self.timer = timer;
        self.timer.arm(self.flush_at_ns);
    }
}
