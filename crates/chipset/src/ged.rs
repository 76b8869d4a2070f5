//! The ACPI Generic Event Device of QEMU's microvm: an event selector, and the sleep and reset registers of a hardware-reduced machine.
//!
//! ACPI 6.5, sections 4.8.3.7 (sleep control and status), 4.8.3.6 (reset register) and 5.6.9 (interrupt-signalled events). The selector and its events are QEMU's
//! (hw/acpi/generic_event_device.c): the DSDT's `_EVT` reads the selector, which clears it, and notifies the power button when bit 1 was set.
//!
//! The interrupt line is high while the selector holds an event, so that it may be declared edge- or level-triggered.
//!
//! Deliberately missing: memory, NVDIMM and CPU hotplug events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{IoError, IrqLine, MmioDevice, PowerControl, PowerRequest};

/// Length of the event selector in bytes.
pub const SELECTOR_LEN: u64 = 4;
/// Length of the sleep and reset registers in bytes.
pub const REGISTERS_LEN: u64 = 3;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// The value that resets, for the FADT's `RESET_VALUE`.
pub const RESET_VALUE: u8 = 0x42;
/// SLP_TYP of S5, for the DSDT's `_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Selector bit of the power button, for the DSDT's `_EVT`.
pub const EVENT_POWER_BUTTON: u32 = 1 << 1;

const SLP_EN: u8 = 1 << 5;

struct State {
    selector: u32,
    irq: IrqLine,
}

/// The device on a board: shared by its register windows and whoever presses the power button.
pub struct Ged {
    state: Mutex<State>,
    power: PowerControl,
}

impl Ged {
    /// A device that interrupts on `irq` and ends the machine through `power`.
    pub fn new(irq: IrqLine, power: PowerControl) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { selector: 0, irq }), power })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        let mut state = self.lock();
        state.selector |= EVENT_POWER_BUTTON;
        state.irq.set(true);
    }

    /// RESET.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.selector = 0;
        state.irq.set(false);
    }

    /// The event selector, [`SELECTOR_LEN`] bytes.
    pub fn selector(self: &Arc<Self>) -> GedSelector {
        GedSelector(self.clone())
    }

    /// The sleep and reset registers, [`REGISTERS_LEN`] bytes.
    pub fn registers(self: &Arc<Self>) -> GedRegisters {
        GedRegisters(self.clone())
    }
}

/// The event selector.
pub struct GedSelector(Arc<Ged>);

impl MmioDevice for GedSelector {
    fn name(&self) -> &str {
        "GED selector"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        if offset != 0 || data.len() != SELECTOR_LEN as usize {
            return Err(IoError::Size { offset, size: data.len() });
        }
        let mut state = self.0.lock();
        data.copy_from_slice(&std::mem::take(&mut state.selector).to_le_bytes());
        state.irq.set(false);
        Ok(())
    }

    fn write(&mut self, offset: u64, _data: &[u8]) -> Result<(), IoError> {
        Err(IoError::ReadOnly { offset })
    }
}

/// The sleep and reset registers.
pub struct GedRegisters(Arc<Ged>);

impl MmioDevice for GedRegisters {
    fn name(&self) -> &str {
        "GED"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        // Nothing ever wakes up here, so the status has no bit set; the others read as zero in QEMU too.
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let &[value] = data else { return Err(IoError::Size { offset, size: data.len() }) };
        match offset {
            SLEEP_CONTROL if value & SLP_EN != 0 && value >> 2 & 7 == SLEEP_TYPE_S5 => {
                self.0.power.request(PowerRequest::PowerOff);
            }
            RESET if value == RESET_VALUE => self.0.power.request(PowerRequest::Reset("GED")),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bus::IrqTarget;

    use super::*;

    #[derive(Default)]
    struct Wire(AtomicBool);

    impl IrqTarget for Wire {
        fn set_irq(&self, _pin: u32, level: bool) {
            self.0.store(level, Ordering::SeqCst);
        }
    }

    fn after_write(offset: u64, value: u8) -> Option<PowerRequest> {
        let power = PowerControl::new();
        Ged::new(IrqLine::detached(), power.clone()).registers().write(offset, &[value]).unwrap();
        power.requested()
    }

    #[test]
    fn sleeping_in_s5_powers_off() {
        assert_eq!(after_write(SLEEP_CONTROL, 0x20 | 5 << 2), Some(PowerRequest::PowerOff));
    }

    #[test]
    fn other_sleep_types_and_a_missing_enable_bit_do_nothing() {
        for value in [5 << 2, 0x20, 0x20 | 3 << 2] {
            assert_eq!(after_write(SLEEP_CONTROL, value), None, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        assert_eq!(after_write(RESET, 0x42), Some(PowerRequest::Reset("GED")));
        assert_eq!(after_write(RESET, 1), None);
        assert_eq!(after_write(SLEEP_STATUS, 0x80), None);
    }

    #[test]
    fn the_power_button_holds_the_line_until_the_selector_is_read() {
        let wire = Arc::new(Wire::default());
        let ged = Ged::new(IrqLine::new(wire.clone(), 9), PowerControl::new());
        ged.press_power_button();
        assert!(wire.0.load(Ordering::SeqCst));
        let mut data = [0; 4];
        ged.selector().read(0, &mut data).unwrap();
        assert_eq!((u32::from_le_bytes(data), wire.0.load(Ordering::SeqCst)), (2, false));
        ged.selector().read(0, &mut data).unwrap();
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn accesses_of_the_wrong_size_are_refused() {
        let ged = Ged::new(IrqLine::detached(), PowerControl::new());
        assert!(ged.selector().read(0, &mut [0; 2]).is_err());
        assert!(ged.selector().write(0, &[0; 4]).is_err());
        assert!(ged.registers().write(0, &[0x42; 2]).is_err());
    }
}
