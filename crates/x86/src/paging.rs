//! Bits of paging-structure entries (SDM vol. 3, 5.5).

/// Size of a 4 KiB page, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const RW: u64 = 1 << 1;
/// User-mode accesses allowed.
pub const US: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty (in an entry that maps a page).
pub const D: u64 = 1 << 6;
/// Page size: the entry maps a large page.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execute.
pub const NX: u64 = 1 << 63;
/// The physical address in an entry: bits 12 to 51.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Whether `address` is canonical for 48-bit linear addresses.
#[inline(always)]
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}
