//! The board of the conformance guests: a handful of ports, one page of MMIO, a real IOAPIC and a real pair of i8259, which a backend may have in the board's place.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use bus::{IrqLine, IrqTarget, MmioDevice, PortDevice};
use chipset::ioapic::{self, IoApic, IoApicVersion};
use chipset::lapic::MsiSink;
use chipset::pic::Pic;

use crate::{CpuIo, Irqchip, Pin, Vm};

/// OUT: a byte is appended to the report.
pub const REPORT: u16 = 0xe9;
/// OUT: the guest has finished.
pub const END: u16 = 0xf4;
/// OUT of a dword: sends the MSI with that data to the bootstrap processor.
pub const SEND_MSI: u16 = 0xf8;
/// OUT of a byte: the PIC's INTR wire goes high if it is not zero; the acknowledge cycle gives that byte as vector and lowers the wire.
pub const PIC: u16 = 0xfc;
/// OUT of a byte: a level-triggered wire goes high if it is not zero, with that byte as its interrupt's vector. It sends its message when it rises, and again
/// at each end of interrupt that finds it high, as an IOAPIC's pin does.
pub const LEVEL: u16 = 0xf6;
/// OUT of a byte: an input pin of the IOAPIC, in bits 0 to 4, has the level in bit 7.
pub const PIN: u16 = 0xfe;
/// OUT of a byte: an input of the pair of i8259, in bits 0 to 3, has the level in bit 7.
pub const I8259_PIN: u16 = 0xf9;
/// OUT: the guest wants to be moved. IN: 0 until it was, then 1.
pub const HOLD: u16 = 0xf5;
/// IN of any size: bytes that count up from the port's low byte.
pub const PATTERN: u16 = 0x300;
/// Guest-physical address of the two MMIO pages: reads give bytes that count up from the offset, writes are reported (size, offset, bytes).
pub const MMIO: u64 = 0xd000_0000;

/// First port of the two i8259, where a PC has them.
const I8259: [u16; 2] = [0x20, 0xa0];
/// Where the wires of the i8259's inputs begin in the numbering of a backend's controllers, after the IOAPIC's.
const I8259_WIRES: u32 = ioapic::PINS;

/// Guest-physical address of the IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;

#[derive(Default)]
struct Seen {
    report: Vec<u8>,
    finished: bool,
    stopped: bool,
    pic_vector: Option<u8>,
    level_vector: Option<u8>,
    held: bool,
}

/// The board.
pub struct Board {
    vm: Arc<dyn Vm>,
    seen: Mutex<Seen>,
    changed: Condvar,
    ioapic: Arc<IoApic>,
    i8259: Arc<Pic>,
    /// In the place of both.
    irqchip: Option<Arc<dyn Irqchip>>,
}

/// Where the IOAPIC's messages go.
struct Processors(Arc<dyn Vm>);

impl MsiSink for Processors {
    fn send_msi(&self, address: u64, data: u32) {
        self.0.signal_msi(address, data);
    }
}

impl IrqTarget for Processors {
    /// The INTR output of the i8259.
    fn set_irq(&self, _: u32, level: bool) {
        self.0.set_pic_intr(level);
    }
}

impl Board {
    pub(super) fn new(vm: Arc<dyn Vm>) -> Self {
        let processors = Arc::new(Processors(Arc::clone(&vm)));
        let ioapic = IoApic::new(IoApicVersion::V20, processors.clone());
        let i8259 = Pic::new(IrqLine::new(processors, 0));
        let irqchip = vm.irqchip();
        if let Some(irqchip) = &irqchip {
            let ioapic = (0..ioapic::PINS).map(|pin| (pin, Pin::IoApic(pin as u8)));
            let i8259 = (0..16).map(|pin| (I8259_WIRES + u32::from(pin), Pin::Pic(pin)));
            irqchip
                .connect(&ioapic.chain(i8259).collect::<Vec<_>>())
                .expect("the backend's controllers take these wires");
        }
        Self { vm, seen: Mutex::default(), changed: Condvar::new(), ioapic, i8259, irqchip }
    }

    /// Whether the ends of level-triggered interrupts come to the board.
    pub(super) fn sees_ends(&self) -> bool {
        self.irqchip.is_none()
    }

    fn set_ioapic_pin(&self, pin: u32, level: bool) {
        match &self.irqchip {
            Some(irqchip) => irqchip.set_gsi(pin, level),
            None => self.ioapic.set_irq(pin, level),
        }
    }

    fn set_i8259_pin(&self, pin: u32, level: bool) {
        match &self.irqchip {
            Some(irqchip) => irqchip.set_gsi(I8259_WIRES + pin, level),
            None => self.i8259.set_irq(pin, level),
        }
    }

    /// One of the i8259's registers, if `port` is one.
    fn i8259_register(&self, port: u16) -> Option<(Box<dyn PortDevice>, u16)> {
        let [master, slave] = I8259;
        match port & !1 {
            base if base == master => Some((Box::new(self.i8259.master()), port & 1)),
            base if base == slave => Some((Box::new(self.i8259.slave()), port & 1)),
            _ => None,
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopped(&self) {
        self.seen().stopped = true;
        self.changed.notify_all();
    }

    pub(super) fn wait_for_end(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout_while(self.seen(), left, |seen| !seen.finished && !seen.stopped && !seen.held));
    }

    pub(super) fn finished(&self) -> bool {
        self.seen().finished
    }

    pub(super) fn reported(&self) -> Vec<u8> {
        self.seen().report.clone()
    }
}

impl Board {
    /// Sends the message of the level-triggered wire, if it is high.
    fn send_level(&self) {
        let vector = self.seen().level_vector;
        if let Some(vector) = vector {
            self.vm.signal_msi(0xfee0_0000, 0xc000 | u32::from(vector));
        }
    }
}

fn in_ioapic(address: u64) -> bool {
    (IOAPIC..IOAPIC + ioapic::MMIO_LEN).contains(&address)
}

fn count_up(first: u64, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = (first as u8).wrapping_add(i as u8);
    }
}

impl CpuIo for Board {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        match port {
            HOLD => data.fill(u8::from(!self.seen().held)),
            _ if port & 0xff00 == PATTERN => count_up(port.into(), data),
            _ => {
                let read = self.i8259_register(port).map(|(mut chip, register)| chip.read(register, data));
                if !matches!(read, Some(Ok(()))) {
                    data.fill(0xff);
                }
            }
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (REPORT, bytes) => self.seen().report.extend_from_slice(bytes),
            (END, _) => {
                self.seen().finished = true;
                self.changed.notify_all();
            }
            (SEND_MSI, &[a, b, c, d]) => self.vm.signal_msi(0xfee0_0000, u32::from_le_bytes([a, b, c, d])),
            (PIC, &[vector]) => {
                self.seen().pic_vector = Some(vector).filter(|&v| v != 0);
                self.vm.set_pic_intr(vector != 0);
            }
            (LEVEL, &[vector]) => {
                self.seen().level_vector = Some(vector).filter(|&v| v != 0);
                self.send_level();
            }
            (PIN, &[pin]) => self.set_ioapic_pin(u32::from(pin & 0x1f), pin & 0x80 != 0),
            (I8259_PIN, &[pin]) => self.set_i8259_pin(u32::from(pin & 0xf), pin & 0x80 != 0),
            (HOLD, _) => {
                self.seen().held = true;
                self.changed.notify_all();
            }
            _ => {
                if let Some((mut chip, register)) = self.i8259_register(port) {
                    // A size that the chip does not know is ignored.
                    let _ = chip.write(register, data);
                }
            }
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if address & !0x1fff == MMIO {
            count_up(address, data);
        } else if !in_ioapic(address) || self.ioapic.window().read(address - IOAPIC, data).is_err() {
            data.fill(0xff);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if address & !0x1fff == MMIO {
            let mut seen = self.seen();
            seen.report.push(data.len() as u8);
            seen.report.push(address as u8);
            seen.report.extend_from_slice(data);
        } else if in_ioapic(address) {
            // A register that is not there ignores writes.
            let _ = self.ioapic.window().write(address - IOAPIC, data);
        }
    }

    fn ack_pic(&self) -> Option<u8> {
        let vector = self.seen().pic_vector.take();
        if vector.is_some() {
            self.vm.set_pic_intr(false);
            return vector;
        }
        self.i8259.output().then(|| self.i8259.ack())
    }

    fn eoi(&self, vector: u8) {
        self.seen().report.extend_from_slice(&[0xe0, vector]);
        self.ioapic.eoi(vector);
        self.send_level();
    }
}
