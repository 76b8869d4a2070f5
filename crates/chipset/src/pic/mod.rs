//! Two cascaded 8259A programmable interrupt controllers with edge/level control, as the PC has them.
//!
//! Intel 8259A data sheet (231468-003); ELCR from the 82371AB (PIIX4) data sheet (290562-001), section 4.1.4.
//!
//! Deliberately missing: single mode's effect on the wiring, MCS-80 mode, buffered mode.
//!
//! DEVNOTE: an edge, once latched, stays even if its line falls before the acknowledge cycle; the real chip would answer with a spurious IRQ 7. QEMU latches
//! too, and a device that pulses its line would otherwise lose interrupts.

mod chip;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{IoError, IrqLine, IrqTarget, PortDevice};
use chip::I8259;

use crate::isa::{read_bytes, write_bytes};

/// The master's input that the slave's output is wired to.
const CASCADE: u8 = 2;
/// ELCR bits that can be set: IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Both chips as one state machine.
#[derive(Debug, Clone)]
pub struct PicPair {
    chips: [I8259; 2],
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// Both chips after power-up.
    pub fn new() -> Self {
        Self { chips: [I8259::new(true), I8259::new(false)] }
    }

    /// RESET. The lines keep their levels: they belong to the devices.
    pub fn reset(&mut self) {
        self.chips.iter_mut().for_each(I8259::reset);
        self.cascade();
    }

    /// Input `pin` (0 to 15) now has this level. Pin 2 is the cascade and not for devices.
    pub fn set_irq(&mut self, pin: u32, level: bool) {
        if pin < 16 && pin != CASCADE.into() {
            self.chips[(pin >> 3) as usize].set_line(pin as u8 & 7, level);
            self.cascade();
        }
    }

    /// The slave's output drives the master's input 2.
    fn cascade(&mut self) {
        let output = self.chips[1].request().is_some();
        self.chips[0].set_line(CASCADE, output);
    }

    /// The level of INTR.
    pub fn output(&self) -> bool {
        self.chips[0].request().is_some()
    }

    /// The interrupt acknowledge cycle: the vector. With nothing to acknowledge, IRQ 7 of the chip that was asked answers (8259A "Interrupt Sequence").
    pub fn ack(&mut self) -> u8 {
        let vector = match self.chips[0].acknowledge() {
            (CASCADE, _) => {
                let vector = self.chips[1].acknowledge().1;
                // INT falls during the cycle: a slave that still asks makes a new edge.
                self.chips[0].set_line(CASCADE, false);
                vector
            }
            (_, vector) => vector,
        };
        self.cascade();
        vector
    }

    /// Reads register `offset` (0 or 1) of the master (`chip` 0) or slave (`chip` 1).
    fn read(&mut self, chip: usize, offset: u16) -> u8 {
        let value = self.chips[chip].read(offset);
        self.cascade();
        value
    }

    /// Writes register `offset` (0 or 1) of the master (`chip` 0) or slave (`chip` 1).
    fn write(&mut self, chip: usize, offset: u16, value: u8) {
        self.chips[chip].write(offset, value);
        if chip == 0 && offset & 1 == 0 && value & 0x10 != 0 {
            // ICW1 has cleared the master's latches, the cascade's among them; the slave still asks.
            self.chips[0].set_line(CASCADE, false);
        }
        self.cascade();
    }
}

/// The pair on a board: shared by the devices' wires, the ports and the processor's acknowledge cycle.
///
/// The INTR wire is driven with the pair's lock held, so that two devices cannot leave it at the older of two levels.
pub struct Pic {
    state: Mutex<Wired>,
}

struct Wired {
    pair: PicPair,
    intr: IrqLine,
    level: bool,
}

impl Wired {
    fn drive(&mut self) {
        let level = self.pair.output();
        if level != self.level {
            self.level = level;
            self.intr.set(level);
        }
    }
}

impl Pic {
    /// A pair whose INTR output is `intr`.
    pub fn new(intr: IrqLine) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(Wired { pair: PicPair::new(), intr, level: false }) })
    }

    fn lock(&self) -> MutexGuard<'_, Wired> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interrupt acknowledge cycle: the vector. The caller must hold no lock that the INTR wire's end takes.
    pub fn ack(&self) -> u8 {
        let mut state = self.lock();
        let vector = state.pair.ack();
        state.drive();
        vector
    }

    /// The level of INTR.
    pub fn output(&self) -> bool {
        self.lock().level
    }

    /// RESET.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.pair.reset();
        state.drive();
    }

    /// The master's two ports (0x20 on a PC).
    pub fn master(self: &Arc<Self>) -> PicPorts {
        PicPorts { pic: self.clone(), chip: 0 }
    }

    /// The slave's two ports (0xa0 on a PC).
    pub fn slave(self: &Arc<Self>) -> PicPorts {
        PicPorts { pic: self.clone(), chip: 1 }
    }

    /// The two edge/level control registers (0x4d0 on a PC).
    pub fn elcr(self: &Arc<Self>) -> ElcrPorts {
        ElcrPorts(self.clone())
    }
}

impl IrqTarget for Pic {
    fn set_irq(&self, pin: u32, level: bool) {
        let mut state = self.lock();
        state.pair.set_irq(pin, level);
        state.drive();
    }
}

/// One chip's two ports.
pub struct PicPorts {
    pic: Arc<Pic>,
    chip: usize,
}

impl PortDevice for PicPorts {
    fn name(&self) -> &str {
        if self.chip == 0 { "PIC master" } else { "PIC slave" }
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        let mut state = self.pic.lock();
        read_bytes(offset, data, |port| state.pair.read(self.chip, port));
        state.drive();
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let mut state = self.pic.lock();
        write_bytes(offset, data, |port, value| state.pair.write(self.chip, port, value));
        state.drive();
        Ok(())
    }
}

/// Both chips' edge/level control registers.
pub struct ElcrPorts(Arc<Pic>);

impl PortDevice for ElcrPorts {
    fn name(&self) -> &str {
        "PIC ELCR"
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        let state = self.0.lock();
        read_bytes(offset, data, |port| state.pair.chips[usize::from(port & 1)].elcr());
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let mut state = self.0.lock();
        write_bytes(offset, data, |port, value| {
            let chip = usize::from(port & 1);
            state.pair.chips[chip].set_elcr(value & ELCR_MASK[chip]);
            state.pair.cascade();
        });
        state.drive();
        Ok(())
    }
}
