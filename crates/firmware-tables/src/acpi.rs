//! ACPI tables of a hardware-reduced board (ACPI 6.5): RSDP, XSDT, FADT, MADT, DSDT, one after another.
//!
//! Hardware-reduced means that there is no PM timer, no SCI and no fixed power button: power-off and reset go through the sleep and reset registers
//! of the generic event device, and its interrupt brings the power button. The RSDT is deliberately missing: every guest that can run here reads
//! the XSDT.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::{Ioapic, dsdt, madt};

pub(crate) const OEM_ID: [u8; 6] = *b"VMM   ";
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
pub(crate) const OEM_REVISION: u32 = 1;

/// Value that the guest writes to the reset register; the one that QEMU's generic event device takes.
pub const RESET_VALUE: u8 = 0x42;

/// An ISA device with ports and an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyDevice {
    /// Its first port.
    pub port: u16,
    /// How many ports it has.
    pub ports: u8,
    /// Its ISA interrupt, 0 to 15.
    pub irq: u8,
}

/// The generic event device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ged {
    /// Guest-physical address of the 32-bit event selector.
    pub selector: u32,
    /// Guest-physical address of its three byte registers: sleep control, sleep status, reset.
    pub registers: u32,
    /// The GSI of its interrupt, active high.
    pub gsi: u32,
    /// Whether that interrupt is an edge (a pulse) and not a level.
    pub edge_triggered: bool,
}

/// A virtio-mmio transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Its number on the board, which names it.
    pub index: u8,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// Size of its registers, in bytes.
    pub size: u32,
    /// The GSI of its interrupt: level-triggered, active high.
    pub gsi: u32,
}

/// A hardware-reduced board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Number of processors; processor `n` has local APIC ID `n`.
    pub cpus: u32,
    /// Guest-physical address of the local APICs.
    pub lapic_address: u32,
    /// The IOAPICs.
    pub ioapics: Vec<Ioapic>,
    /// The timer's interrupt 0 is GSI 2.
    pub irq0_on_pin2: bool,
    /// Whether there are two 8259s.
    pub pic: bool,
    /// The 16550A, if any.
    pub serial: Option<LegacyDevice>,
    /// The MC146818, if any.
    pub rtc: Option<LegacyDevice>,
    /// The generic event device.
    pub ged: Ged,
    /// The virtio-mmio transports that have a device.
    pub virtio: Vec<VirtioMmio>,
}

/// The tables, ready to be put into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiBlob {
    /// All tables; the first byte lies at the address they were built for.
    pub bytes: Vec<u8>,
    /// Guest-physical address of the RSDP.
    pub rsdp: u64,
}

/// FADT "IA-PC boot architecture flags" (ACPI 6.5, table 5.11).
mod boot_architecture {
    pub(super) const VGA_NOT_PRESENT: u16 = 1 << 2;
    pub(super) const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
}

fn byte_register(address: u32) -> GAS {
    GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::ByteAccess, address.into())
}

/// Collects tables one after another, each on a 16-byte boundary.
struct Layout {
    base: u64,
    bytes: Vec<u8>,
}

impl Layout {
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

impl AcpiTables {
    /// The tables for guest-physical address `base`, a multiple of 16; the RSDP comes first.
    ///
    /// Below 1 MiB `base` must be in 0xe0000..0xfffff for a guest to find it by itself (ACPI 6.5, 5.2.5.1).
    pub fn to_blob(&self, base: u64) -> AcpiBlob {
        // The RSDP is the root, but the others' addresses must be known first: leave room for it.
        let mut layout = Layout { base, bytes: vec![0; Rsdp::len()] };
        let dsdt = layout.place(&dsdt::build(self));
        let fadt = layout.place(&self.fadt(dsdt));
        let madt = layout.place(&madt::build(self));
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        let xsdt = layout.place(&xsdt);
        let mut rsdp = Vec::with_capacity(Rsdp::len());
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        layout.bytes[..rsdp.len()].copy_from_slice(&rsdp);
        AcpiBlob { bytes: layout.bytes, rsdp: base }
    }

    fn fadt(&self, dsdt: u64) -> acpi_tables::fadt::FADT {
        let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
            .dsdt_64(dsdt)
            .flag(Flags::HwReducedAcpi)
            .flag(Flags::ResetRegSup)
            .flag(Flags::Headless)
            // Both buttons are control-method devices or absent, never fixed hardware.
            .flag(Flags::PwrButton)
            .flag(Flags::SlpButton);
        let clock = if self.rtc.is_some() { 0 } else { boot_architecture::CMOS_RTC_NOT_PRESENT };
        fadt.iapc_boot_arch = (boot_architecture::VGA_NOT_PRESENT | clock).into();
        fadt.sleep_control_reg = byte_register(self.ged.registers);
        fadt.sleep_status_reg = byte_register(self.ged.registers + 1);
        fadt.reset_reg = byte_register(self.ged.registers + 2);
        fadt.reset_value = RESET_VALUE;
        fadt.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Masked};

    const BASE: u64 = 0xe0000;

    fn board() -> AcpiTables {
        AcpiTables {
            cpus: 2,
            lapic_address: 0xfee0_0000,
            ioapics: vec![
                Ioapic { id: 0, address: 0xfec0_0000, gsi_base: 0 },
                Ioapic { id: 1, address: 0xfec1_0000, gsi_base: 24 },
            ],
            irq0_on_pin2: true,
            pic: true,
            serial: Some(LegacyDevice { port: 0x3f8, ports: 8, irq: 4 }),
            rtc: Some(LegacyDevice { port: 0x70, ports: 2, irq: 8 }),
            ged: Ged { selector: 0xfea0_0000, registers: 0xfea0_0200, gsi: 9, edge_triggered: false },
            virtio: vec![VirtioMmio { index: 23, address: 0xfeb0_2e00, size: 512, gsi: 47 }],
        }
    }

    fn at(blob: &AcpiBlob, address: u64) -> &[u8] {
        let table = &blob.bytes[(address - BASE) as usize..];
        &table[..u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize]
    }

    fn qword(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// FADT, MADT and DSDT as a guest finds them from the RSDP.
    fn walk(blob: &AcpiBlob) -> [&[u8]; 3] {
        let xsdt = at(blob, qword(&blob.bytes, 24));
        let (fadt, madt) = (at(blob, qword(xsdt, 36)), at(blob, qword(xsdt, 44)));
        [fadt, madt, at(blob, qword(fadt, 140))]
    }

    fn check(name: &str, table: &[u8]) {
        let masked = [
            Masked { name: "checksum", range: 9..10 },
            Masked { name: "creator id", range: 28..32 },
            Masked { name: "creator revision", range: 32..36 },
        ];
        golden::check(name, table, &masked);
        if let Some(directory) = std::env::var_os("VMM_DUMP_ACPI") {
            std::fs::write(std::path::Path::new(&directory).join(format!("{name}.aml")), table).unwrap();
        }
    }

    #[test]
    fn every_table_sums_to_zero() {
        let blob = board().to_blob(BASE);
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!((sum(&blob.bytes[..20]), sum(&blob.bytes[..36])), (0, 0));
        for table in walk(&blob) {
            assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        }
    }

    #[test]
    fn the_rsdp_leads_to_every_table() {
        let blob = board().to_blob(BASE);
        assert_eq!(walk(&blob).map(|t| t[..4].to_vec()), [b"FACP".to_vec(), b"APIC".to_vec(), b"DSDT".to_vec()]);
    }

    #[test]
    fn the_tables_match_their_goldens() {
        let blob = board().to_blob(BASE);
        let [fadt, madt, dsdt] = walk(&blob);
        check("fadt", fadt);
        check("madt", madt);
        check("dsdt", dsdt);
    }

    #[test]
    fn processors_past_254_are_x2apic_structures() {
        let blob = AcpiTables { cpus: 257, ..board() }.to_blob(BASE);
        let madt = walk(&blob)[1];
        let first = &madt[44 + 255 * 8..];
        assert_eq!((first[0], first[1], first[4]), (9, 16, 255));
    }

    #[test]
    fn a_board_without_clock_says_so() {
        let blob = AcpiTables { rtc: None, ..board() }.to_blob(BASE);
        assert_eq!(walk(&blob)[0][109] & 1 << 5, 1 << 5);
    }
}
