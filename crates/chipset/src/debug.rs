//! Ports of QEMU that guest test programs use: isa-debug-exit, which ends the machine with an exit code, and debugcon, a console without a UART.

use std::io::Write;

use bus::{IoError, PortDevice, PowerControl, PowerRequest};

/// What debugcon reads as, so that a guest can tell that it is there (0xe9, as Bochs has it).
const DEBUGCON_PRESENT: u8 = 0xe9;

/// isa-debug-exit (four ports; users of QEMU mostly put it at 0xf4).
pub struct DebugExit {
    power: PowerControl,
}

impl DebugExit {
    /// A port that ends the machine through `power`.
    pub fn new(power: PowerControl) -> Self {
        Self { power }
    }
}

impl PortDevice for DebugExit {
    fn name(&self) -> &str {
        "debug exit"
    }

    fn read(&mut self, _offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        data.fill(0);
        Ok(())
    }

    /// Ends the machine; writing `v` makes the exit code `(v << 1) | 1`, cut to the eight bits that a process can return.
    fn write(&mut self, _offset: u16, data: &[u8]) -> Result<(), IoError> {
        let value = data.first().copied().unwrap_or(0);
        self.power.request(PowerRequest::Exit(value << 1 | 1));
        Ok(())
    }
}

/// debugcon: each byte written goes to a sink (0xe9 on a PC, one port).
pub struct DebugConsole {
    sink: Box<dyn Write + Send>,
}

impl DebugConsole {
    /// A port whose bytes go to `sink`, which does its own buffering.
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        Self { sink }
    }
}

impl PortDevice for DebugConsole {
    fn name(&self) -> &str {
        "debugcon"
    }

    fn read(&mut self, _offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        data.fill(DEBUGCON_PRESENT);
        Ok(())
    }

    fn write(&mut self, _offset: u16, data: &[u8]) -> Result<(), IoError> {
        // A debug console that nobody can hear any more is no reason to stop the guest.
        let _ = self.sink.write_all(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Channel(mpsc::Sender<u8>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            bytes.iter().for_each(|&byte| self.0.send(byte).unwrap());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_exit_code_is_odd() {
        for (value, code) in [(0, 1), (0x10, 0x21), (0x7f, 0xff), (0x80, 1)] {
            let power = PowerControl::new();
            DebugExit::new(power.clone()).write(0, &[value, 0, 0, 0]).unwrap();
            assert_eq!(power.requested(), Some(PowerRequest::Exit(code)), "{value:#x}");
        }
    }

    #[test]
    fn debugcon_passes_bytes_on_and_says_it_is_there() {
        let (sender, receiver) = mpsc::channel();
        let mut console = DebugConsole::new(Box::new(Channel(sender)));
        console.write(0, b"a").unwrap();
        console.write(0, b"b").unwrap();
        let mut data = [0];
        console.read(0, &mut data).unwrap();
        assert_eq!(data, [0xe9]);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), b"ab");
    }
}
