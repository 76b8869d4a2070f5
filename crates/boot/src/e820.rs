//! The physical memory map, as the BIOS call INT 15h AX=E820h names it (ACPI 6.5, table 15.4).

/// What a range of physical addresses is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum E820Kind {
    /// Memory that the kernel may use.
    Ram,
    /// Not to be touched.
    Reserved,
    /// ACPI tables, which the kernel may reclaim when it has read them.
    AcpiTables,
}

impl E820Kind {
    /// The number that the map carries.
    pub fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::AcpiTables => 3,
        }
    }
}

/// A range of physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// What it is.
    pub kind: E820Kind,
}
