//! The kernel's PIC, IOAPIC and PIT (KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2; Linux Documentation/virt/kvm/api.rst) for `kernel-irqchip = on`.
//!
//! Wires reach them by KVM_IRQ_LINE and the routing table, in which one interrupt of the board's drives a pin of the PIC and one of the IOAPIC. The end of an interrupt never leaves
//! the kernel.

#![expect(unsafe_code, reason = "the chips' states are members of a union")]

use std::sync::{Arc, Mutex, PoisonError};

use accel::{AccelError, Irqchip, Pin};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use tracing::{debug, error};

use crate::host;

/// Inputs of one i8259.
const PIC_PINS: u8 = 8;
/// Redirection entry: masked; delivery mode, whose highest value is ExtINT and passes the PIC on (82093AA, 3.2.4).
const MASKED: u64 = 1 << 16;
const DELIVERY_MODE: u64 = 7 << 8;
/// The chips by KVM's numbers.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

fn state_of(fd: &VmFd, chip_id: u32) -> Result<kvm_irqchip, AccelError> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    fd.get_irqchip(&mut chip).map_err(host("KVM_GET_IRQCHIP"))?;
    Ok(chip)
}

/// The input that `pin` is, as an entry of KVM's routing table for `gsi`.
fn route(gsi: u32, pin: Pin) -> kvm_irq_routing_entry {
    let (chip, input) = match pin {
        Pin::Pic(input) if input < PIC_PINS => (KVM_IRQCHIP_PIC_MASTER, input),
        Pin::Pic(input) => (KVM_IRQCHIP_PIC_SLAVE, input - PIC_PINS),
        Pin::IoApic(input) => (KVM_IRQCHIP_IOAPIC, input),
    };
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = input.into();
    entry
}

/// The kernel's chips of one VM.
pub(crate) struct KernelChips {
    fd: Arc<VmFd>,
    /// PIC, PIC, IOAPIC after RESET.
    first: Vec<kvm_irqchip>,
    /// The PIT after RESET, where there is one.
    first_pit: Mutex<Option<kvm_pit_state2>>,
}

impl KernelChips {
    /// Makes PIC and IOAPIC, before any vCPU.
    pub(crate) fn new(fd: Arc<VmFd>) -> Result<Self, AccelError> {
        fd.create_irq_chip().map_err(host("KVM_CREATE_IRQCHIP"))?;
        let first = CHIPS.into_iter().map(|chip| state_of(&fd, chip)).collect::<Result<_, _>>()?;
        Ok(Self { fd, first, first_pit: Mutex::default() })
    }

    fn first_pit(&self) -> Option<kvm_pit_state2> {
        *self.first_pit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Irqchip for KernelChips {
    fn connect(&self, wires: &[(u32, Pin)]) -> Result<(), AccelError> {
        let entries: Vec<_> = wires.iter().map(|&(gsi, pin)| route(gsi, pin)).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| AccelError::State { what: "more interrupt wires than KVM takes".to_owned() })?;
        self.fd.set_gsi_routing(&routing).map_err(host("KVM_SET_GSI_ROUTING"))
    }

    fn add_pit(&self) -> Result<(), AccelError> {
        // With port 0x61, by which software reads counter 2.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(config).map_err(host("KVM_CREATE_PIT2"))?;
        let first = self.fd.get_pit2().map_err(host("KVM_GET_PIT2"))?;
        *self.first_pit.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
        Ok(())
    }

    fn set_gsi(&self, gsi: u32, level: bool) {
        if let Err(error) = self.fd.set_irq_line(gsi, level) {
            debug!(gsi, level, "KVM refuses the interrupt: {error}");
        }
    }

    fn has_open_pin(&self) -> bool {
        let Ok(chip) = state_of(&self.fd, KVM_IRQCHIP_IOAPIC) else { return false };
        // SAFETY: KVM_GET_IRQCHIP fills in this member for this chip; every bit pattern is valid for it.
        let ioapic = unsafe { chip.chip.ioapic };
        ioapic.redirtbl.iter().any(|entry| {
            // SAFETY: every bit pattern is valid for these 64 bits.
            let bits = unsafe { entry.bits };
            bits & MASKED == 0 && bits & DELIVERY_MODE != DELIVERY_MODE
        })
    }

    fn reset(&self) {
        let chips = self.first.iter().map(|chip| self.fd.set_irqchip(chip));
        let pit = self.first_pit().map(|pit| self.fd.set_pit2(&pit));
        for result in chips.chain(pit) {
            if let Err(error) = result {
                error!("an interrupt controller of KVM's cannot be reset: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_pics_inputs_are_numbered_from_zero() {
        for (pin, expected) in [(Pin::Pic(7), (0, 7)), (Pin::Pic(8), (1, 0)), (Pin::IoApic(23), (2, 23))] {
            let entry = route(5, pin);
            // SAFETY: `route` has written this member.
            let irqchip = unsafe { entry.u.irqchip };
            assert_eq!((entry.gsi, irqchip.irqchip, irqchip.pin), (5, expected.0, expected.1));
        }
    }
}
