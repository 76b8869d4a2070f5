//! What the guest finds in memory about the board: ACPI tables or an MP table, the BIOS data area, and the little firmware there is.

use firmware_tables::Ioapic;
use firmware_tables::acpi::{AcpiTables, Ged, LegacyDevice, VirtioMmio};
use firmware_tables::mp::MpTable;
use guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::interrupts::{self, ISA_END};
use crate::transports::Slot;
use crate::{MachineError, Options, address_map as at};

/// CPUID.1:EAX and EDX that the MP table shows, QEMU's: a Pentium Pro with FPU and local APIC. No guest relies on them.
const MP_CPU: (u32, u32) = (0x600, 0x201);

/// What stands at the real-mode reset vector, F000:FFF0: `mov al, 0xfe; out 0x64, al; hlt; jmp $-1`.
///
/// A kernel without a better idea (Debian's with hardware-reduced ACPI and no DMI) reboots by a jump there, and firmware would reset the machine.
const RESET_VECTOR_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Writes the tables of a board with virtio devices in `slots`; the address of the RSDP if there is one.
pub(crate) fn write(
    options: &Options,
    slots: impl Iterator<Item = Slot>,
    memory: &GuestMemory,
) -> Result<Option<u64>, MachineError> {
    put(memory, "the BIOS data area", at::BDA_EBDA_SEGMENT, &((at::EBDA >> 4) as u16).to_le_bytes(), 2)?;
    put(memory, "the BIOS data area", at::BDA_BASE_MEMORY_KIB, &((at::EBDA >> 10) as u16).to_le_bytes(), 2)?;
    let after = at::EXTENDED_MEMORY - at::RESET_VECTOR;
    put(memory, "the reset vector", at::RESET_VECTOR, &RESET_VECTOR_CODE, after)?;
    if options.acpi_on() {
        let blob = acpi(options, slots).to_blob(at::ACPI_TABLES);
        put(memory, "ACPI tables", at::ACPI_TABLES, &blob.bytes, at::ACPI_TABLES_END - at::ACPI_TABLES)?;
        return Ok(Some(blob.rsdp));
    }
    let room = at::RESET_VECTOR - u64::from(at::MP_TABLE);
    put(memory, "the MP table", at::MP_TABLE.into(), &mp(options, slots).to_bytes(at::MP_TABLE), room)?;
    Ok(None)
}

fn put(memory: &GuestMemory, what: &'static str, address: u64, bytes: &[u8], room: u64) -> Result<(), MachineError> {
    if bytes.len() as u64 > room || memory.write_slice(bytes, GuestAddress(address)).is_err() {
        return Err(MachineError::TableSize { what, size: bytes.len(), room });
    }
    Ok(())
}

/// QEMU numbers the IOAPICs from 0, as it does the local APICs.
fn ioapic(id: u8, address: u32, gsi_base: u32) -> Ioapic {
    Ioapic { id, address, gsi_base }
}

fn acpi(options: &Options, slots: impl Iterator<Item = Slot>) -> AcpiTables {
    let legacy = |there: bool, port, ports, gsi: u32| there.then_some(LegacyDevice { port, ports, irq: gsi as u8 });
    let second = options.ioapic2_on().then(|| ioapic(1, at::IOAPIC2, interrupts::IOAPIC2_BASE));
    AcpiTables {
        cpus: options.cpus,
        lapic_address: at::LAPIC,
        ioapics: [Some(ioapic(0, at::IOAPIC, 0)), second].into_iter().flatten().collect(),
        irq0_on_pin2: true,
        pic: options.pic.resolve(true),
        serial: legacy(options.isa_serial, at::COM1, 8, interrupts::SERIAL),
        rtc: legacy(options.rtc.resolve(true), at::RTC, 2, interrupts::RTC),
        ged: Ged {
            selector: at::GED_SELECTOR,
            registers: at::GED_REGISTERS,
            gsi: interrupts::GED,
            edge_triggered: false,
        },
        virtio: slots
            .map(|slot| VirtioMmio {
                index: slot.index as u8,
                address: slot.address,
                size: at::VIRTIO_MMIO_SIZE,
                gsi: slot.gsi,
            })
            .collect(),
    }
}

fn mp(options: &Options, slots: impl Iterator<Item = Slot>) -> MpTable {
    let (cpu_signature, cpu_features) = MP_CPU;
    MpTable {
        cpus: options.cpus,
        lapic_address: at::LAPIC,
        ioapic: ioapic(0, at::IOAPIC, 0),
        irq0_on_pin2: true,
        // QEMU's firmware calls them edges, as on a true ISA bus, and loses an interrupt that joins one that is still held.
        level_triggered: slots.filter(|s| s.gsi < ISA_END).fold(0, |mask, slot| mask | 1 << slot.gsi),
        cpu_signature,
        cpu_features,
    }
}
