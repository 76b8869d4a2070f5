//! The Differentiated System Description Table: the devices that ACPI alone can find.
//!
//! Names and resources are QEMU's. Each device writes its own AML.

use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use crate::acpi::{AcpiTables, Ged, LegacyDevice, OEM_ID, OEM_REVISION, OEM_TABLE_ID, VirtioMmio};

/// `_STA`: present, enabled, shown, working (ACPI 6.5, 6.3.7).
const STA_WORKING: u8 = 0x0f;

/// The small resource descriptor `IRQNoFlags` (ACPI 6.5, 6.4.2.1): one edge-triggered, active high ISA interrupt.
struct IrqNoFlags(u8);

impl Aml for IrqNoFlags {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const DESCRIPTOR: u8 = 0x22;
        sink.byte(DESCRIPTOR);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

fn com1(serial: &LegacyDevice, sink: &mut Vec<u8>) {
    let (io, irq) = (IO::new(serial.port, serial.port, 0, serial.ports), IrqNoFlags(serial.irq));
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ONE),
            &Name::new("_STA".into(), &STA_WORKING),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &irq])),
        ],
    )
    .to_aml_bytes(sink);
}

fn rtc(rtc: &LegacyDevice, sink: &mut Vec<u8>) {
    let (io, irq) = (IO::new(rtc.port, rtc.port, 1, rtc.ports), IrqNoFlags(rtc.irq));
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &irq])),
        ],
    )
    .to_aml_bytes(sink);
}

/// The generic event device (ACPI 6.5, 5.6.9) reads which events happened from its selector and passes them on.
fn ged(ged: &Ged, sink: &mut Vec<u8>) {
    /// The selector's bit for a press of the power button.
    const POWER_BUTTON: u8 = 2;
    /// The notification that a button was pressed.
    const PRESSED: u8 = 0x80;
    let selector = Path::new("ESEL");
    let pressed = Notify::new(&Path::new("PWRB"), &PRESSED).bytes();
    let wire = Interrupt::new(true, ged.edge_triggered, false, false, ged.gsi);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &"GED"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&wire])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemMemory, &ged.selector, &4u8),
            &Field::new(
                "EREG".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESEL", 32)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &selector),
                    &If::new(
                        &Equal::new(&And::new(&ZERO, &Local(0), &POWER_BUTTON), &POWER_BUTTON),
                        vec![&Raw(pressed)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(sink);
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(sink);
}

fn virtio(transport: &VirtioMmio, sink: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, transport.address, transport.size);
    let wire = Interrupt::new(true, false, false, false, transport.gsi);
    Device::new(
        Path::new(&format!("VR{:02}", transport.index % 100)),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &transport.index),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &wire])),
        ],
    )
    .to_aml_bytes(sink);
}

/// AML that has been written already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

trait AmlBytes {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: Aml> AmlBytes for T {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

pub(crate) fn build(board: &AcpiTables) -> Sdt {
    let mut devices = Vec::new();
    if let Some(serial) = &board.serial {
        com1(serial, &mut devices);
    }
    if let Some(clock) = &board.rtc {
        rtc(clock, &mut devices);
    }
    ged(&board.ged, &mut devices);
    board.virtio.iter().for_each(|transport| virtio(transport, &mut devices));
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&Scope::new("\\_SB_".into(), vec![&Raw(devices)]).bytes());
    // Sleep type 5 is what the GED's sleep control register takes for S5.
    dsdt.append_slice(&Name::new("\\_S5_".into(), &Package::new(vec![&5u8, &ZERO, &ZERO, &ZERO])).bytes());
    dsdt
}
