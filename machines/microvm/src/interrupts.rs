//! Which interrupt is whose, and how a wire reaches the interrupt controllers: the board's only table of interrupt numbers (QEMU 10's).
//!
//! | GSI | acpi=off | acpi=on |
//! |---|---|---|
//! | [`TIMER`] 0 | PIT | PIT |
//! | [`SERIAL`] 4 | COM1 | COM1 |
//! | 5 to 12 | virtio-mmio 0 to 7 | |
//! | [`RTC`] 8 | RTC | RTC |
//! | [`GED`] 9 | | GED |
//! | 16 to 23 | | virtio-mmio 0 to 7, without a second IOAPIC |
//! | 24 to 47 | | virtio-mmio 0 to 23, with a second IOAPIC |
//!
//! GSIs 0 to 15 reach the PIC and the IOAPIC alike, and it is for the guest to use one of them; GSI 0 arrives on the IOAPIC's pin 2. GSIs 16 to 23 are the
//! IOAPIC's other pins, 24 to 47 the second one's. With ACPI off, virtio-mmio 3 and the RTC share a wire.

use std::sync::{Arc, Mutex, PoisonError};

use accel::{AccelError, Irqchip, Pin};
use bus::{EventBinding, IrqLine, IrqTarget};
use chipset::ioapic::{IoApic, PINS};
use chipset::pic::Pic;
use vmm_sys_util::eventfd::EventFd;

/// The i8254.
pub const TIMER: u32 = 0;
/// The 16550A.
pub const SERIAL: u32 = 4;
/// The MC146818.
pub const RTC: u32 = 8;
/// The generic event device.
pub const GED: u32 = 9;
/// GSIs from here on reach no PIC.
pub const ISA_END: u32 = 16;
/// The IOAPIC pin where the timer arrives.
pub const TIMER_PIN: u32 = 2;
/// First GSI of the second IOAPIC.
pub const IOAPIC2_BASE: u32 = PINS;
/// Number of GSIs of a board with two IOAPICs.
pub const GSIS: u32 = 2 * PINS;

/// How many virtio-mmio transports there are, and the GSI of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportPlan {
    /// How many.
    pub count: u32,
    /// GSI of transport 0; the others follow.
    pub first_gsi: u32,
}

impl TransportPlan {
    /// The plan for a board with or without ACPI and a second IOAPIC (which needs ACPI).
    pub fn new(acpi: bool, ioapic2: bool) -> Self {
        match (acpi, ioapic2) {
            (true, true) => Self { count: 24, first_gsi: IOAPIC2_BASE },
            (true, false) => Self { count: 8, first_gsi: 16 },
            (false, _) => Self { count: 8, first_gsi: 5 },
        }
    }
}

/// The pin of its IOAPIC where a GSI arrives.
fn ioapic_pin(gsi: u32) -> u32 {
    if gsi == TIMER { TIMER_PIN } else { gsi % PINS }
}

/// The wires of a board whose controllers are the backend's. GSI 2 has no device: its inputs are the timer's and the second i8259's.
fn backend_wires(has_pic: bool) -> Vec<(u32, Pin)> {
    let gsis = || (0..PINS).filter(|&gsi| gsi != TIMER_PIN);
    let pic = gsis().filter(|&gsi| has_pic && gsi < ISA_END).map(|gsi| (gsi, Pin::Pic(gsi as u8)));
    pic.chain(gsis().map(|gsi| (gsi, Pin::IoApic(ioapic_pin(gsi) as u8)))).collect()
}

/// Whose the interrupt controllers are.
enum Controllers {
    /// The board's: the PIC if there is one, and one or two IOAPICs.
    Board { pic: Option<Arc<Pic>>, ioapics: Vec<Arc<IoApic>> },
    /// The processor backend's.
    Backend(Arc<dyn Irqchip>),
}

/// The board's wiring from GSIs to interrupt controllers.
pub struct GsiWiring {
    controllers: Controllers,
    /// How many devices hold each GSI high. The lock is held while the controllers hear of a change, so that they hear in order; a
    /// controller never calls back.
    holders: Vec<Mutex<u32>>,
}

/// One device's end of a wire that others may share.
struct Source {
    wiring: Arc<GsiWiring>,
    level: Mutex<bool>,
}

impl GsiWiring {
    /// Wires to these controllers: the PIC if there is one, and one or two IOAPICs.
    pub fn new(pic: Option<Arc<Pic>>, ioapics: Vec<Arc<IoApic>>) -> Arc<Self> {
        Self::to(Controllers::Board { pic, ioapics })
    }

    /// Wires to the backend's controllers, of which the PIC is connected where the board has one.
    ///
    /// # Errors
    /// What the backend says.
    pub fn to_backend(irqchip: Arc<dyn Irqchip>, has_pic: bool) -> Result<Arc<Self>, AccelError> {
        irqchip.connect(&backend_wires(has_pic))?;
        Ok(Self::to(Controllers::Backend(irqchip)))
    }

    fn to(controllers: Controllers) -> Arc<Self> {
        let holders = std::iter::repeat_with(Mutex::default).take(GSIS as usize).collect();
        Arc::new(Self { controllers, holders })
    }

    /// A wire for one device to `gsi`. Devices on the same GSI are ORed.
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(Arc::new(Source { wiring: self.clone(), level: Mutex::new(false) }), gsi)
    }

    fn drive(&self, gsi: u32, level: bool) {
        let (pic, ioapics) = match &self.controllers {
            Controllers::Backend(irqchip) => return irqchip.set_gsi(gsi, level),
            Controllers::Board { pic, ioapics } => (pic, ioapics),
        };
        if let Some(pic) = pic.as_ref().filter(|_| gsi < ISA_END) {
            pic.set_irq(gsi, level);
        }
        if let Some(ioapic) = ioapics.get((gsi / PINS) as usize) {
            ioapic.set_irq(ioapic_pin(gsi), level);
        }
    }

    /// An event is a pulse on the IOAPIC's pin; a guest that takes the interrupt by the PIC has that pin masked, and the event's owner drives the wire.
    fn bind(&self, gsi: u32, event: &Arc<EventFd>) -> Option<EventBinding> {
        match &self.controllers {
            Controllers::Backend(_) => None,
            Controllers::Board { ioapics, .. } => ioapics.get((gsi / PINS) as usize)?.bind(ioapic_pin(gsi), event),
        }
    }

    fn change(&self, gsi: u32, level: bool) {
        let Some(holders) = self.holders.get(gsi as usize) else { return };
        let mut count = holders.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *count;
        *count = if level { before + 1 } else { before.saturating_sub(1) };
        if (before == 0) != (*count == 0) {
            self.drive(gsi, level);
        }
    }
}

impl IrqTarget for Source {
    fn set_irq(&self, gsi: u32, level: bool) {
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != level {
            *current = level;
            self.wiring.change(gsi, level);
        }
    }

    fn bind(&self, gsi: u32, event: &Arc<EventFd>) -> Option<EventBinding> {
        self.wiring.bind(gsi, event)
    }
}

#[cfg(test)]
mod tests {
    use chipset::ioapic::IoApicVersion;
    use chipset::lapic::MsiSink;

    use super::*;

    #[derive(Default)]
    struct Messages(Mutex<Vec<u8>>);

    impl MsiSink for Messages {
        fn send_msi(&self, _address: u64, data: u32) {
            self.0.lock().unwrap().push(data as u8);
        }
    }

    /// Two IOAPICs whose pin `p` sends vector `0x40 + p`, the second's `0x80 + p`.
    fn wiring() -> (Arc<GsiWiring>, Arc<Messages>) {
        use bus::MmioDevice;
        let messages = Arc::new(Messages::default());
        let ioapics: Vec<_> = [0x40, 0x80]
            .into_iter()
            .map(|base: u32| {
                let ioapic = IoApic::new(IoApicVersion::V20, messages.clone());
                let mut window = ioapic.window();
                for pin in 0..PINS {
                    window.write(0, &(0x10 + 2 * pin).to_le_bytes()).unwrap();
                    window.write(0x10, &(base + pin).to_le_bytes()).unwrap();
                }
                ioapic
            })
            .collect();
        (GsiWiring::new(None, ioapics), messages)
    }

    fn vectors(messages: &Messages) -> Vec<u8> {
        std::mem::take(&mut *messages.0.lock().unwrap())
    }

    #[test]
    fn each_gsi_reaches_its_own_pin_and_the_timer_pin_2() {
        let (wiring, messages) = wiring();
        for (gsi, vector) in [(0, 0x42), (4, 0x44), (12, 0x4c), (23, 0x57), (24, 0x80), (47, 0x97)] {
            wiring.line(gsi).pulse();
            assert_eq!(vectors(&messages), [vector], "GSI {gsi}");
        }
    }

    #[test]
    fn a_shared_wire_stays_high_until_both_devices_let_go() {
        let (wiring, messages) = wiring();
        let (first, second) = (wiring.line(8), wiring.line(8));
        first.set(true);
        second.set(true);
        first.set(false);
        first.set(true);
        assert_eq!(vectors(&messages).len(), 1, "one rising edge");
        first.set(false);
        second.set(false);
        first.set(true);
        assert_eq!(vectors(&messages).len(), 1, "the wire fell and rose again");
    }

    #[test]
    fn a_backends_controllers_are_wired_like_ours() {
        let wires = backend_wires(true);
        let of = |gsi| -> Vec<Pin> { wires.iter().filter(|wire| wire.0 == gsi).map(|wire| wire.1).collect() };
        assert_eq!(of(TIMER), [Pin::Pic(0), Pin::IoApic(2)]);
        assert_eq!(of(12), [Pin::Pic(12), Pin::IoApic(12)]);
        assert_eq!((of(2), of(23)), (vec![], vec![Pin::IoApic(23)]));
        assert!(backend_wires(false).iter().all(|wire| matches!(wire.1, Pin::IoApic(_))));
    }

    #[test]
    fn transports_lie_where_qemu_has_them() {
        assert_eq!(TransportPlan::new(false, false), TransportPlan { count: 8, first_gsi: 5 });
        assert_eq!(TransportPlan::new(true, false), TransportPlan { count: 8, first_gsi: 16 });
        assert_eq!(TransportPlan::new(true, true), TransportPlan { count: 24, first_gsi: 24 });
    }
}
