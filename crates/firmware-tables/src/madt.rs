//! The Multiple APIC Description Table (ACPI 6.5, 5.2.12).

use acpi_tables::sdt::Sdt;

use crate::acpi::{AcpiTables, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Revision of the table that ACPI 6.3 to 6.5 define.
const REVISION: u8 = 5;
/// Length of the fixed part.
const HEADER_SIZE: u32 = 44;
/// Flag of the fixed part: the board also has two 8259s.
const PCAT_COMPAT: u32 = 1;
/// Local APIC IDs from here on need x2APIC structures.
const FIRST_X2APIC_ID: u32 = 255;

/// Structure types (table 5.21).
mod structure {
    pub(super) const LOCAL_APIC: u8 = 0;
    pub(super) const IOAPIC: u8 = 1;
    pub(super) const SOURCE_OVERRIDE: u8 = 2;
    pub(super) const LOCAL_APIC_NMI: u8 = 4;
    pub(super) const LOCAL_X2APIC: u8 = 9;
    pub(super) const LOCAL_X2APIC_NMI: u8 = 0xa;
}

pub(crate) fn build(board: &AcpiTables) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, board.lapic_address);
    madt.write_u32(40, if board.pic { PCAT_COMPAT } else { 0 });
    for id in 0..board.cpus {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC_ID => {
                madt.append_slice(&[structure::LOCAL_APIC, 8, short, short, 1, 0, 0, 0]);
            }
            _ => {
                madt.append_slice(&[structure::LOCAL_X2APIC, 16, 0, 0]);
                [id, 1, id].iter().for_each(|word| madt.append_slice(&word.to_le_bytes()));
            }
        }
    }
    for ioapic in &board.ioapics {
        madt.append_slice(&[structure::IOAPIC, 12, ioapic.id, 0]);
        madt.append_slice(&ioapic.address.to_le_bytes());
        madt.append_slice(&ioapic.gsi_base.to_le_bytes());
    }
    if board.irq0_on_pin2 {
        madt.append_slice(&[structure::SOURCE_OVERRIDE, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    }
    // Every processor's LINT1 is the NMI button.
    madt.append_slice(&[structure::LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    if board.cpus > FIRST_X2APIC_ID {
        madt.append_slice(&[structure::LOCAL_X2APIC_NMI, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    madt
}
