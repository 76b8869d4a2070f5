//! The 82093AA I/O APIC (Intel order number 290566-001), with the EOI register that its successors have at offset 0x40.
//!
//! Version 0x20, as QEMU's, or 0x11, the 82093AA itself, without the EOI register. 24 pins. Interrupts go out as MSI-form messages.
//!
//! As in QEMU: the polarity bit is kept but ignored, since lines carry "asserted" and not a voltage; delivery is instant, so the delivery
//! status always reads as idle; destinations are eight bits in both destination modes, and 15 for a guest that was told of KVM_FEATURE_MSI_EXT_DEST_ID: bits 55 to 49 of an entry
//! are then bits 14 to 8 of the destination, and others leave them zero; and an edge on a masked pin is lost (82093AA section 3.2.4).
//!
//! Deliberately missing: the arbitration bus (its register reads as the ID), and QEMU's brake for interrupt storms.

mod bound;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bound::BoundEvents;
use bus::{EventBinding, IoError, IrqTarget, MmioDevice};
use vmm_sys_util::eventfd::EventFd;

use crate::lapic::{MSI_BASE, Msi, MsiSink};

/// Number of interrupt inputs.
pub const PINS: u32 = 24;
/// Length of the register window in bytes.
pub const MMIO_LEN: u64 = 0x1000;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// Delivery mode, whose highest value is ExtINT: the PIC behind a pin.
const DELIVERY_MODE: u64 = 7 << 8;
const LOWEST_PRIORITY: u64 = 1 << 8;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination with its extension.
const WRITABLE: u64 = 0xfffe_0000_0001_afff;

/// Which I/O APIC to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoApicVersion {
    /// 0x11: the 82093AA. Software that must end an interrupt itself flips its entry to edge-triggered and back.
    V11,
    /// 0x20: with the EOI register.
    V20,
}

/// The chip as a state machine.
#[derive(Debug, Clone)]
pub struct IoApicCore {
    version: IoApicVersion,
    id: u8,
    select: u8,
    entries: [u64; PINS as usize],
    /// Levels of the input pins.
    lines: u32,
}

impl IoApicCore {
    /// The chip after RESET, all pins masked and low.
    pub fn new(version: IoApicVersion) -> Self {
        Self { version, id: 0, select: 0, entries: [MASKED; PINS as usize], lines: 0 }
    }

    /// RESET. The lines keep their levels: they belong to the devices.
    pub fn reset(&mut self) {
        let Self { version, id: _, select: _, entries: _, lines } = *self;
        *self = Self { lines, ..Self::new(version) };
    }

    /// Input `pin` now has this level; the message this makes, if any. Pins that do not exist are ignored.
    pub fn set_irq(&mut self, pin: u32, level: bool) -> Option<Msi> {
        if pin >= PINS {
            return None;
        }
        let bit = 1 << pin;
        let was = self.lines & bit != 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        let entry = self.entries[pin as usize];
        if !level || entry & MASKED != 0 {
            return None;
        }
        if entry & LEVEL != 0 { self.send_level(pin as usize) } else { (!was).then(|| message(entry)) }
    }

    /// Sends a level-triggered pin's interrupt unless its last one has not ended.
    fn send_level(&mut self, pin: usize) -> Option<Msi> {
        let entry = &mut self.entries[pin];
        if *entry & (MASKED | LEVEL | REMOTE_IRR) != LEVEL || self.lines & 1 << pin == 0 {
            return None;
        }
        *entry |= REMOTE_IRR;
        Some(message(*entry))
    }

    /// A local APIC (or the EOI register) ends `vector`; the messages of pins that are still high.
    pub fn eoi(&mut self, vector: u8) -> Vec<Msi> {
        let mut again = Vec::new();
        for pin in 0..self.entries.len() {
            let entry = &mut self.entries[pin];
            if *entry as u8 == vector && *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                *entry &= !REMOTE_IRR;
                again.extend(self.send_level(pin));
            }
        }
        again
    }

    /// What a pulse on `pin` sends, as long as nothing is written to its entry; nothing for a masked pin, or one whose interrupt is no vector of its own.
    fn message_of(&self, pin: u32) -> Option<Msi> {
        let entry = *self.entries.get(pin as usize)?;
        // Fixed and lowest priority are the modes 0 and 1.
        (entry & MASKED == 0 && entry & DELIVERY_MODE & !LOWEST_PRIORITY == 0).then(|| message(entry))
    }

    /// Whether some pin could still interrupt. A pin for the PIC does not count, as operating systems leave one open for their successor.
    fn has_open_pin(&self) -> bool {
        self.entries.iter().any(|entry| entry & MASKED == 0 && entry & DELIVERY_MODE != DELIVERY_MODE)
    }

    fn read_window(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => (PINS - 1) << 16 | if self.version == IoApicVersion::V20 { 0x20 } else { 0x11 },
            select => {
                let index = select.wrapping_sub(REG_TABLE);
                let entry = self.entries.get(usize::from(index >> 1)).copied().unwrap_or(0);
                if index & 1 != 0 { (entry >> 32) as u32 } else { entry as u32 }
            }
        }
    }

    fn write_window(&mut self, value: u32) -> Option<Msi> {
        if self.select == REG_ID {
            self.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let index = self.select.checked_sub(REG_TABLE)?;
        let pin = usize::from(index >> 1);
        let entry = self.entries.get_mut(pin)?;
        let value = u64::from(value);
        let new = if index & 1 != 0 { *entry & 0xffff_ffff | value << 32 } else { *entry & !0xffff_ffff | value };
        *entry = new & WRITABLE | *entry & REMOTE_IRR;
        if *entry & LEVEL == 0 {
            // How software for version 0x11 ends an interrupt by hand.
            *entry &= !REMOTE_IRR;
        }
        self.send_level(pin)
    }

    /// Reads a register of the window; `None` where there is none.
    fn read(&self, offset: u64) -> Option<u32> {
        match offset {
            IOREGSEL => Some(self.select.into()),
            IOWIN => Some(self.read_window()),
            _ => None,
        }
    }

    /// Writes a register of the window; the messages this makes, or `None` where there is no register.
    fn write(&mut self, offset: u64, value: u32) -> Option<Vec<Msi>> {
        match offset {
            IOREGSEL => {
                self.select = value as u8;
                Some(Vec::new())
            }
            IOWIN => Some(self.write_window(value).into_iter().collect()),
            EOI if self.version == IoApicVersion::V20 => Some(self.eoi(value as u8)),
            _ => None,
        }
    }
}

/// The MSI form of a redirection entry.
fn message(entry: u64) -> Msi {
    let (destination, extended) = (entry >> 56, entry >> 49 & 0x7f);
    let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
    let level = if entry & LEVEL != 0 { 1 << 15 } else { 0 };
    Msi {
        address: MSI_BASE | destination << 12 | extended << 5 | logical,
        // Vector and delivery mode lie where MSI data has them; bit 14 is "assert".
        data: entry as u32 & 0x7ff | 1 << 14 | level,
    }
}

/// The chip on a board: shared by the devices' wires, the register window and the local APICs' EOIs.
///
/// Messages leave after the chip's lock is released, so a sink may take any lock.
pub struct IoApic {
    core: Mutex<IoApicCore>,
    sink: Arc<dyn MsiSink>,
    /// Its lock is taken before the chip's.
    bound: Arc<Mutex<BoundEvents>>,
}

impl IoApic {
    /// A chip whose messages go to `sink`.
    pub fn new(version: IoApicVersion, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        Arc::new(Self { core: Mutex::new(IoApicCore::new(version)), sink, bound: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, IoApicCore> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, messages: impl IntoIterator<Item = Msi>) {
        for Msi { address, data } in messages {
            self.sink.send_msi(address, data);
        }
    }

    /// A local APIC broadcasts the end of level-triggered interrupt `vector`.
    pub fn eoi(&self, vector: u8) {
        let again = self.lock().eoi(vector);
        self.send(again);
    }

    /// RESET.
    pub fn reset(&self) {
        self.lock().reset();
        self.update_bound();
    }

    /// Tells the bound events what their pins' entries say now. Whoever changed an entry calls this, so the last call finds the last entry.
    fn update_bound(&self) {
        bound::lock(&self.bound).update(|pin| self.lock().message_of(pin));
    }

    /// Whether some pin is unmasked, not counting one that passes the PIC on (delivery mode ExtINT).
    pub fn has_open_pin(&self) -> bool {
        self.lock().has_open_pin()
    }

    /// The register window, [`MMIO_LEN`] bytes.
    pub fn window(self: &Arc<Self>) -> IoApicWindow {
        IoApicWindow(self.clone())
    }
}

impl IrqTarget for IoApic {
    fn set_irq(&self, pin: u32, level: bool) {
        let message = self.lock().set_irq(pin, level);
        self.send(message);
    }

    fn bind(&self, pin: u32, event: &Arc<EventFd>) -> Option<EventBinding> {
        let outlet = self.sink.bind(event)?;
        let mut bound = bound::lock(&self.bound);
        let message = self.lock().message_of(pin);
        let id = bound.add(pin, outlet, event, message);
        Some(bound::binding(id, &self.bound))
    }
}

/// The register window of an [`IoApic`].
pub struct IoApicWindow(Arc<IoApic>);

impl MmioDevice for IoApicWindow {
    fn name(&self) -> &str {
        "IOAPIC"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        let register = offset & !3;
        let value = self.0.lock().read(register).ok_or(IoError::NoRegister { offset })?.to_le_bytes();
        let (at, size) = ((offset & 3) as usize, data.len());
        data.copy_from_slice(value.get(at..at + size).ok_or(IoError::Size { offset, size })?);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        // The select register is eight bits, and some software writes it as a byte.
        let value = match *data {
            [a] if offset == IOREGSEL || offset == EOI => u32::from(a),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return Err(IoError::Size { offset, size: data.len() }),
        };
        let messages = self.0.lock().write(offset, value).ok_or(IoError::NoRegister { offset })?;
        self.0.send(messages);
        if offset == IOWIN {
            self.0.update_bound();
        }
        Ok(())
    }
}
