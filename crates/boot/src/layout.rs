//! Where boot structures lie in the first 640 KiB. The kernel has copied or dropped all of them before it hands that memory out.

/// Global descriptor table, four entries and a task-state segment.
pub const GDT: u64 = 0x500;
/// Initial stack pointer; the protocol asks for none, but a kernel's first instructions may push.
pub const STACK_TOP: u64 = 0x8ff0;
/// The zero page: `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity page tables: a PML4, a PDPT and [`IDENTITY_GIB`] page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// GiB of physical memory that are mapped one to one.
pub const IDENTITY_GIB: u64 = 4;
/// Command line, zero-terminated.
pub const CMDLINE: u64 = 0x20000;
/// Address after the last that the command line may use; the extended BIOS data area follows.
pub const CMDLINE_END: u64 = 0x9f000;
/// First address that a kernel or ramdisk may use.
pub const HIGH_MEMORY: u64 = 0x10_0000;
