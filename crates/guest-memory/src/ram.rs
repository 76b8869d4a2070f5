//! Allocation of guest RAM.

#![expect(unsafe_code, reason = "madvise on the mapping that was just made")]

use thiserror::Error;
use tracing::debug;
use vm_memory::bitmap::NewBitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder};

use crate::CodePages;

/// The guest's RAM.
pub type GuestMemory = GuestMemoryMmap<CodePages>;

/// One contiguous piece of the guest's RAM.
pub type GuestRegion = GuestRegionMmap<CodePages>;

/// Why guest RAM could not be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot map {size} bytes of guest memory; give the machine less memory or free some on the host")]
    Map {
        /// Size asked for, in bytes.
        size: usize,
        /// The host's reason.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A region does not fit the physical address space.
    #[error("guest memory of {size} bytes at {base:#x} passes the end of the physical address space")]
    Range {
        /// First guest-physical address.
        base: u64,
        /// Size in bytes.
        size: usize,
    },
    /// The regions overlap or are not sorted.
    #[error("guest memory regions do not fit together")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
}

fn region(base: u64, size: usize) -> Result<GuestRegion, MemoryError> {
    let mapping: MmapRegion<CodePages> = MmapRegionBuilder::new_with_bitmap(size, CodePages::with_len(size))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(|source| MemoryError::Map { size, source })?;
    // SAFETY: the range is exactly the mapping made above, which `mapping` keeps alive; MADV_HUGEPAGE changes no contents.
    let advice = unsafe { libc::madvise(mapping.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    if advice != 0 {
        debug!("no huge pages for guest memory: {}", std::io::Error::last_os_error());
    }
    GuestRegion::new(mapping, GuestAddress::new(base)).ok_or(MemoryError::Range { base, size })
}

/// Maps zeroed guest RAM: `(guest-physical base, size in bytes)` for each region, sorted and apart.
///
/// # Errors
/// [`MemoryError`] when the host has no room or the regions do not fit together.
pub fn allocate(regions: &[(u64, usize)]) -> Result<GuestMemory, MemoryError> {
    let regions = regions.iter().map(|&(base, size)| region(base, size)).collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn a_device_write_through_vm_memory_reaches_the_code_watch() {
        let memory = allocate(&[(0, 1 << 20), (1 << 32, 1 << 20)]).unwrap();
        let high = memory.find_region(GuestAddress((1 << 32) + 0x3000)).unwrap();
        let before = high.bitmap().pages().watch(0x3010, 16);
        memory.write_slice(&[1, 2, 3], GuestAddress((1 << 32) + 0x3012)).unwrap();
        assert_eq!(high.bitmap().pages().generation(3), before + 1);
    }

    #[test]
    fn overlapping_regions_are_refused() {
        assert!(matches!(allocate(&[(0, 8192), (4096, 4096)]), Err(MemoryError::Layout(_))));
    }
}
