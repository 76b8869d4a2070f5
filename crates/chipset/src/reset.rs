//! Ports whose only use is to reset the machine: the keyboard controller's command port, and the PCI reset control register.
//!
//! i8042: command 0xFE pulses the processor's reset line (Intel 8742 firmware as IBM's PC/AT Technical Reference describes it). QEMU's microvm has no keyboard
//! controller; this is the one command of it that kernels fall back on. Port 0xcf9: 82371AB (PIIX4) data sheet (290562-001), section 4.1.5.
//!
//! Deliberately missing: keyboard, mouse and A20.

use bus::{IoError, PortDevice, PowerControl, PowerRequest};

use crate::isa::{read_bytes, write_bytes};

/// Command that pulses the reset line.
const PULSE_RESET: u8 = 0xfe;
/// Bit 0 of a pulse command (0xF0 to 0xFF) is the reset line, active low.
const PULSE_MASK: u8 = 0xf1;

/// The command and status port of a keyboard controller without a keyboard (0x64 on a PC, one port).
pub struct I8042 {
    power: PowerControl,
}

impl I8042 {
    /// A controller that resets the machine through `power`.
    pub fn new(power: PowerControl) -> Self {
        Self { power }
    }
}

impl PortDevice for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&mut self, _offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        // Ones, as from a port where nothing is, but with "input buffer full" clear. Linux's driver gives up on a controller whose output buffer never runs
        // empty, and its reset does not wait for the input buffer.
        // DEVNOTE: all ones would be just as absent, but would make that reset poll the port 65,536 times before each attempt.
        data.fill(0xfd);
        Ok(())
    }

    fn write(&mut self, _offset: u16, data: &[u8]) -> Result<(), IoError> {
        if data.first().is_some_and(|command| command & PULSE_MASK == PULSE_RESET & PULSE_MASK) {
            self.power.request(PowerRequest::Reset("i8042"));
        }
        Ok(())
    }
}

/// Bit 1: the kind of reset, hard or soft.
const RESET_KIND: u8 = 1 << 1;
/// Bit 2: the reset happens when this bit rises.
const RESET_CPU: u8 = 1 << 2;

/// The reset control register (port 0xcf9 on a PC, one port).
pub struct ResetControl {
    power: PowerControl,
    value: u8,
}

impl ResetControl {
    /// A register that resets the machine through `power`.
    pub fn new(power: PowerControl) -> Self {
        Self { power, value: 0 }
    }
}

impl PortDevice for ResetControl {
    fn name(&self) -> &str {
        "port 0xcf9"
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        read_bytes(offset, data, |_| self.value);
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        write_bytes(offset, data, |_, value| {
            if value & RESET_CPU & !self.value != 0 {
                self.power.request(PowerRequest::Reset("port 0xcf9"));
            }
            // The reset clears the bit that asked for it, so that the next run can ask again.
            self.value = value & RESET_KIND;
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pulse_of_the_reset_line_resets() {
        for (command, expected) in [(0xfe, true), (0xf0, true), (0xff, false), (0xaa, false), (0xd1, false)] {
            let power = PowerControl::new();
            I8042::new(power.clone()).write(0, &[command]).unwrap();
            assert_eq!(power.requested() == Some(PowerRequest::Reset("i8042")), expected, "{command:#x}");
        }
    }

    #[test]
    fn the_keyboard_controller_looks_absent_but_never_busy() {
        let mut status = [0];
        I8042::new(PowerControl::new()).read(0, &mut status).unwrap();
        assert_eq!(status[0] & 0x03, 0x01);
    }

    #[test]
    fn port_0xcf9_resets_when_its_bit_rises() {
        let power = PowerControl::new();
        let mut port = ResetControl::new(power.clone());
        port.write(0, &[0x02]).unwrap();
        assert_eq!(power.requested(), None);
        let mut data = [0];
        port.read(0, &mut data).unwrap();
        assert_eq!(data, [0x02]);
        port.write(0, &[0x06]).unwrap();
        assert_eq!(power.requested(), Some(PowerRequest::Reset("port 0xcf9")));
    }
}
