//! Interrupts on their whole way: a device's wire, the IOAPIC or the PICs, a local APIC, and back by EOI.

use std::sync::{Arc, Mutex};

use bus::{IrqLine, IrqTarget, MmioDevice, PortDevice};
use chipset::ioapic::{IoApic, IoApicVersion, IoApicWindow};
use chipset::lapic::{InterruptMessage, Lapic, LapicAction, LapicConfig, MsiSink};
use chipset::pic::Pic;

/// Two processors' local APICs, as an accelerator holds them.
struct Processors([Mutex<Lapic>; 2]);

impl Processors {
    fn new() -> Arc<Self> {
        Arc::new(Self([0, 1].map(|id| {
            let config = LapicConfig { id, bsp: id == 0, x2apic: true, physical_address_bits: 40 };
            let mut apic = Lapic::new(config);
            apic.mmio_write(0xf0, &0x1ffu32.to_le_bytes(), 0);
            Mutex::new(apic)
        })))
    }

    fn deliver(&self, message: InterruptMessage, sender: Option<usize>) {
        for (i, apic) in self.0.iter().enumerate() {
            let mut apic = apic.lock().unwrap();
            if apic.matches_destination(message.destination, sender == Some(i)) {
                apic.accept(message.delivery, message.vector, message.trigger);
            }
        }
    }

    fn pending(&self) -> [Option<u8>; 2] {
        [0, 1].map(|i| self.0[i].lock().unwrap().pending_interrupt())
    }
}

impl MsiSink for Processors {
    fn send_msi(&self, address: u64, data: u32) {
        if let Some(message) = InterruptMessage::from_msi(address, data) {
            self.deliver(message, None);
        }
    }
}

impl IrqTarget for Processors {
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0[0].lock().unwrap().set_lint(0, level);
    }
}

fn program(window: &mut IoApicWindow, pin: u8, entry: u64) {
    for (register, value) in [(0x11 + 2 * pin, (entry >> 32) as u32), (0x10 + 2 * pin, entry as u32)] {
        window.write(0x00, &u32::from(register).to_le_bytes()).unwrap();
        window.write(0x10, &value.to_le_bytes()).unwrap();
    }
}

#[test]
fn a_level_interrupt_is_taken_again_until_its_device_lets_go() {
    let processors = Processors::new();
    let ioapic = IoApic::new(IoApicVersion::V20, processors.clone());
    program(&mut ioapic.window(), 9, 1 << 56 | 0x8000 | 0x51);
    let line = IrqLine::new(ioapic.clone(), 9);
    line.set(true);
    for round in 0..2 {
        assert_eq!(processors.pending(), [None, Some(0x51)], "round {round}");
        let action = {
            let mut apic = processors.0[1].lock().unwrap();
            apic.acknowledge(0x51);
            if round == 1 {
                line.set(false);
            }
            apic.mmio_write(0xb0, &[0; 4], 0)
        };
        let Some(LapicAction::EoiBroadcast(vector)) = action else { panic!("no broadcast") };
        ioapic.eoi(vector);
    }
    assert_eq!(processors.pending(), [None, None]);
}

#[test]
fn an_edge_interrupt_to_a_logical_destination_reaches_both() {
    let processors = Processors::new();
    for (i, ldr) in [1u32 << 24, 2 << 24].into_iter().enumerate() {
        processors.0[i].lock().unwrap().mmio_write(0xd0, &ldr.to_le_bytes(), 0);
    }
    let ioapic = IoApic::new(IoApicVersion::V20, processors.clone());
    program(&mut ioapic.window(), 4, 3 << 56 | 0x0800 | 0x34);
    IrqLine::new(ioapic, 4).pulse();
    assert_eq!(processors.pending(), [Some(0x34), Some(0x34)]);
}

#[test]
fn an_ipi_to_all_but_self_reaches_the_other() {
    let processors = Processors::new();
    let action = processors.0[0].lock().unwrap().mmio_write(0x300, &0xc_40fbu32.to_le_bytes(), 0);
    let Some(LapicAction::Ipi(message)) = action else { panic!("no IPI") };
    processors.deliver(message, Some(0));
    assert_eq!(processors.pending(), [None, Some(0xfb)]);
}

#[test]
fn the_pics_interrupt_the_bootstrap_processor_through_its_virtual_wire() {
    let processors = Processors::new();
    // Software enabled the APIC after RESET, which left LINT0 as ExtINT, unmasked.
    let pic = Pic::new(IrqLine::new(processors.clone(), 0));
    for (port, value) in [(0, 0x11), (1, 0x30), (1, 4), (1, 1), (1, 0)] {
        pic.master().write(port, &[value]).unwrap();
    }
    pic.set_irq(0, true);
    assert!(processors.0[0].lock().unwrap().extint_pending());
    assert_eq!(pic.ack(), 0x30);
    assert!(!processors.0[0].lock().unwrap().extint_pending());
}
