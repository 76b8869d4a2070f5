//! The MP floating pointer and configuration table (Intel MultiProcessor Specification 1.4, May 1997, chapter 4).
//!
//! For guests without ACPI. Legacy mode "virtual wire" is implied: the PIC reaches the bootstrap processor through LINT0. PCI buses are
//! deliberately missing: such a board has ACPI.

use crate::Ioapic;

/// Bytes of the floating pointer structure; the configuration table follows it at once.
const POINTER_SIZE: u32 = 16;
/// Version of the specification, 1.4.
const SPEC_REVISION: u8 = 4;
/// Bus ID of the ISA bus, the only one.
const ISA_BUS: u8 = 0;
/// Version of the local and I/O APICs: integrated.
const APIC_VERSION: u8 = 0x14;

/// Most processors that 8-bit APIC IDs can name; 0xff is the broadcast.
pub const MAX_CPUS: u32 = 255;

/// A board for guests without ACPI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MpTable {
    /// Number of processors, 1 to [`MAX_CPUS`]; processor `n` has local APIC ID `n` and processor 0 starts.
    pub cpus: u32,
    /// Guest-physical address of the local APICs.
    pub lapic_address: u32,
    /// The IOAPIC that the ISA interrupts reach, pin for interrupt but for [`MpTable::irq0_on_pin2`].
    pub ioapic: Ioapic,
    /// The timer's interrupt 0 arrives on pin 2, as on every PC with two interrupt controllers.
    pub irq0_on_pin2: bool,
    /// ISA interrupts that are level-triggered, active high (bit `n` for interrupt `n`); the others are edges, as the bus has it.
    pub level_triggered: u16,
    /// CPUID.1:EAX of the processors.
    pub cpu_signature: u32,
    /// CPUID.1:EDX of the processors.
    pub cpu_features: u32,
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

/// The types of entries (table 4-3).
mod entry {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IOAPIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// The kinds of interrupts (table 4-11).
mod interrupt {
    pub(super) const INT: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXT_INT: u8 = 3;
    /// Polarity active high, trigger level (table 4-10).
    pub(super) const HIGH_LEVEL: u16 = 0b1101;
}

impl MpTable {
    /// The floating pointer and, right after it, the configuration table, for guest-physical address `base`.
    ///
    /// `base` must be a multiple of 16 within the last KiB of base memory or 0xf0000..0xfffff, where guests look (chapter 4).
    pub fn to_bytes(&self, base: u32) -> Vec<u8> {
        let table = self.configuration();
        let mut bytes = Vec::with_capacity(POINTER_SIZE as usize + table.len());
        bytes.extend_from_slice(b"_MP_");
        bytes.extend_from_slice(&(base + POINTER_SIZE).to_le_bytes());
        bytes.extend_from_slice(&[1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
        bytes[10] = checksum(&bytes);
        bytes.extend_from_slice(&table);
        bytes
    }

    fn configuration(&self) -> Vec<u8> {
        let mut entries = Entries::default();
        for id in 0..self.cpus.min(MAX_CPUS) {
            self.processor(&mut entries, id as u8);
        }
        entries.add(&[&[entry::BUS, ISA_BUS], b"ISA   "]);
        let Ioapic { id, address, gsi_base: _ } = self.ioapic;
        entries.add(&[&[entry::IOAPIC, id, APIC_VERSION, 1], &address.to_le_bytes()]);
        for irq in 0..16u8 {
            let pin = if self.irq0_on_pin2 && irq == 0 { 2 } else { irq };
            // Interrupt 2 is the second PIC's output: nothing else can drive it.
            if !(self.irq0_on_pin2 && irq == 2) {
                let flags = if self.level_triggered >> irq & 1 != 0 { interrupt::HIGH_LEVEL } else { 0 };
                let [low, high] = flags.to_le_bytes();
                entries.add(&[&[entry::IO_INTERRUPT, interrupt::INT, low, high, ISA_BUS, irq, id, pin]]);
            }
        }
        entries.add(&[&[entry::LOCAL_INTERRUPT, interrupt::EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]]);
        entries.add(&[&[entry::LOCAL_INTERRUPT, interrupt::NMI, 0, 0, ISA_BUS, 0, 0xff, 1]]);
        self.header(&entries)
    }

    fn processor(&self, entries: &mut Entries, id: u8) {
        const ENABLED: u8 = 1;
        const BOOTSTRAP: u8 = 2;
        let flags = if id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
        let head = [entry::PROCESSOR, id, APIC_VERSION, flags];
        entries.add(&[&head, &self.cpu_signature.to_le_bytes(), &self.cpu_features.to_le_bytes(), &[0; 8]]);
    }

    /// Puts the header of table 4-2 in front of the entries.
    fn header(&self, entries: &Entries) -> Vec<u8> {
        const HEADER_SIZE: usize = 44;
        let size = (HEADER_SIZE + entries.bytes.len()) as u16;
        let mut table = Vec::with_capacity(size.into());
        table.extend_from_slice(b"PCMP");
        table.extend_from_slice(&size.to_le_bytes());
        table.extend_from_slice(&[SPEC_REVISION, 0]);
        table.extend_from_slice(b"VMM     ");
        table.extend_from_slice(b"microvm     ");
        table.extend_from_slice(&[0; 6]); // no OEM table
        table.extend_from_slice(&entries.count.to_le_bytes());
        table.extend_from_slice(&self.lapic_address.to_le_bytes());
        table.extend_from_slice(&[0; 4]); // no extended table
        table.extend_from_slice(&entries.bytes);
        table[7] = checksum(&table);
        table
    }
}

#[derive(Default)]
struct Entries {
    count: u16,
    bytes: Vec<u8>,
}

impl Entries {
    fn add(&mut self, parts: &[&[u8]]) {
        self.count += 1;
        self.bytes.extend(parts.iter().copied().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn table(cpus: u32) -> MpTable {
        MpTable {
            cpus,
            lapic_address: 0xfee0_0000,
            ioapic: Ioapic { id: 0, address: 0xfec0_0000, gsi_base: 0 },
            irq0_on_pin2: true,
            level_triggered: 1 << 12,
            cpu_signature: 0x600,
            cpu_features: 0x201,
        }
    }

    /// The entries of type `kind`; processors are 20 bytes, all others 8.
    fn entries(bytes: &[u8], kind: u8) -> Vec<&[u8]> {
        let mut rest = &bytes[16 + 44..];
        let mut found = Vec::new();
        while let Some(&k) = rest.first() {
            let (entry, after) = rest.split_at(if k == entry::PROCESSOR { 20 } else { 8 });
            if k == kind {
                found.push(entry);
            }
            rest = after;
        }
        found
    }

    #[test]
    fn both_structures_sum_to_zero() {
        let bytes = table(3).to_bytes(0xf0000);
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!((sum(&bytes[..16]), sum(&bytes[16..])), (0, 0));
        assert_eq!(usize::from(u16::from_le_bytes([bytes[20], bytes[21]])), bytes.len() - 16);
    }

    #[test]
    fn only_the_first_processor_is_the_bootstrap_one() {
        let bytes = table(3).to_bytes(0xf0000);
        let flags: Vec<_> = entries(&bytes, entry::PROCESSOR).iter().map(|e| (e[1], e[3])).collect();
        assert_eq!(flags, [(0, 3), (1, 1), (2, 1)]);
    }

    #[test]
    fn the_timer_arrives_on_pin_2_and_interrupt_2_nowhere() {
        let bytes = table(1).to_bytes(0xf0000);
        let routes: Vec<_> = entries(&bytes, entry::IO_INTERRUPT).iter().map(|e| (e[5], e[7])).collect();
        assert_eq!(routes[..3], [(0, 2), (1, 1), (3, 3)]);
        assert_eq!(routes.len(), 15);
    }

    #[test]
    fn level_triggered_interrupts_say_so() {
        let bytes = table(1).to_bytes(0xf0000);
        for e in entries(&bytes, entry::IO_INTERRUPT) {
            assert_eq!(u16::from_le_bytes([e[2], e[3]]), if e[5] == 12 { 0b1101 } else { 0 }, "interrupt {}", e[5]);
        }
    }

    #[test]
    fn two_processors_match_the_golden() {
        golden::check("mp", &table(2).to_bytes(0xf0000), &[]);
    }
}
