//! Where everything is: the board's only table of addresses and ports. They are QEMU 10's (hw/i386/microvm.c, include/hw/i386/microvm.h).
//!
//! | guest-physical | what |
//! |---|---|
//! | 0 .. 0x9fc00 | RAM |
//! | [`EBDA`] 0x9fc00 .. 0xa0000 | extended BIOS data area, reserved |
//! | [`ACPI_TABLES`] 0xe0000 .. 0xf0000 | ACPI tables, where ACPI is on |
//! | [`MP_TABLE`] 0xf0000 .. 0xffff0 | MP table, where ACPI is off |
//! | [`RESET_VECTOR`] 0xffff0 .. 0x100000 | real-mode code that resets the machine |
//! | 0x100000 .. [`LOW_RAM_END`] 0xc0000000 | RAM |
//! | [`GED_SELECTOR`] 0xfea00000 | event selector of the generic event device |
//! | [`GED_REGISTERS`] 0xfea00200 | its sleep control, sleep status and reset registers |
//! | [`VIRTIO_MMIO`] 0xfeb00000 + 512 n | virtio-mmio transport n |
//! | [`IOAPIC`] 0xfec00000 | IOAPIC |
//! | [`IOAPIC2`] 0xfec10000 | second IOAPIC |
//! | [`LAPIC`] 0xfee00000 | local APICs |
//! | [`HIGH_RAM`] 0x100000000 .. | RAM above the first 3 GiB |
//!
//! | ports | what |
//! |---|---|
//! | [`PIC_MASTER`] 0x20, [`PIC_SLAVE`] 0xa0, [`PIC_ELCR`] 0x4d0 | i8259 pair, two ports each |
//! | [`PIT`] 0x40 .. 0x44, [`PORT_B`] 0x61 | i8254 |
//! | [`I8042_COMMAND`] 0x64 | keyboard controller: reset only |
//! | [`RTC`] 0x70 .. 0x72 | MC146818 |
//! | [`COM1`] 0x3f8 .. 0x400 | 16550A |
//! | [`RESET_CONTROL`] 0xcf9 | reset control register |
//!
//! DEVNOTE: QEMU's direct boot goes through firmware, which moves the tables to wherever it likes; ours lie where a kernel finds them unaided.

use boot::{E820Entry, E820Kind};

/// The BIOS data area's pointer to the extended BIOS data area: a real-mode segment, 16 bits.
pub const BDA_EBDA_SEGMENT: u64 = 0x40e;
/// The BIOS data area's size of base memory in KiB, 16 bits.
pub const BDA_BASE_MEMORY_KIB: u64 = 0x413;
/// Extended BIOS data area: the last KiB of base memory.
pub const EBDA: u64 = 0x9_fc00;
/// End of base memory.
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0xf_0000;
/// MP floating pointer, with the table behind it.
pub const MP_TABLE: u32 = 0xf_0000;
/// Where real mode finds firmware: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM goes on here.
pub const EXTENDED_MEMORY: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Event selector of the generic event device.
pub const GED_SELECTOR: u32 = 0xfea0_0000;
/// Sleep and reset registers of the generic event device.
pub const GED_REGISTERS: u32 = GED_SELECTOR + 0x200;
/// First virtio-mmio transport.
pub const VIRTIO_MMIO: u32 = 0xfeb0_0000;
/// Bytes from one transport to the next, and of each one's registers.
pub const VIRTIO_MMIO_SIZE: u32 = 512;
/// First IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Second IOAPIC.
pub const IOAPIC2: u32 = 0xfec1_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// RAM that does not fit below [`LOW_RAM_END`] goes on here.
pub const HIGH_RAM: u64 = 1 << 32;

/// i8259, master.
pub const PIC_MASTER: u16 = 0x20;
/// i8254 counters and control word.
pub const PIT: u16 = 0x40;
/// Gate, speaker, and counter 2's output.
pub const PORT_B: u16 = 0x61;
/// Keyboard controller's command port.
pub const I8042_COMMAND: u16 = 0x64;
/// MC146818 index and data.
pub const RTC: u16 = 0x70;
/// i8259, slave.
pub const PIC_SLAVE: u16 = 0xa0;
/// 16550A.
pub const COM1: u16 = 0x3f8;
/// Edge/level control of both i8259.
pub const PIC_ELCR: u16 = 0x4d0;
/// Reset control register.
pub const RESET_CONTROL: u16 = 0xcf9;

/// How `memory` bytes of RAM lie: bytes below 4 GiB, and bytes from [`HIGH_RAM`] up.
pub fn split_ram(memory: u64) -> (u64, u64) {
    let low = memory.min(LOW_RAM_END);
    (low, memory - low)
}

/// The memory map that a guest with `memory` bytes of RAM is told.
pub fn e820(memory: u64) -> Vec<E820Entry> {
    let (low, high) = split_ram(memory);
    let entry = |start, end, kind| E820Entry { start, end, kind };
    let mut map = vec![
        entry(0, EBDA, E820Kind::Ram),
        entry(EBDA, BASE_MEMORY_END, E820Kind::Reserved),
        entry(ACPI_TABLES, EXTENDED_MEMORY, E820Kind::Reserved),
        entry(EXTENDED_MEMORY, low, E820Kind::Ram),
    ];
    if high > 0 {
        map.push(entry(HIGH_RAM, HIGH_RAM + high, E820Kind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_past_3_gib_goes_on_at_4_gib() {
        assert_eq!(split_ram(3 * GIB), (3 * GIB, 0));
        assert_eq!(split_ram(8 * GIB), (3 * GIB, 5 * GIB));
        assert_eq!(e820(4 * GIB).last().map(|e| (e.start, e.end)), Some((4 * GIB, 5 * GIB)));
    }

    #[test]
    fn the_memory_map_is_sorted_and_without_overlap() {
        let map = e820(5 * GIB);
        assert!(map.windows(2).all(|w| w[0].start < w[0].end && w[0].end <= w[1].start), "{map:x?}");
    }

    #[test]
    fn no_ram_is_told_where_devices_are() {
        let devices = [GED_SELECTOR, VIRTIO_MMIO, IOAPIC, IOAPIC2, LAPIC].map(u64::from);
        let ram: Vec<_> = e820(16 * GIB).into_iter().filter(|e| e.kind == E820Kind::Ram).collect();
        assert!(devices.iter().all(|d| !ram.iter().any(|e| (e.start..e.end).contains(d))));
    }
}
