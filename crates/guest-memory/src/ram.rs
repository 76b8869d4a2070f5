//! Allocation of guest RAM.

#![expect(unsafe_code, reason = "madvise on the mapping that was just made, and RAM that nobody else uses as a slice")]

use std::fs::File;

use rustix::fs::MemfdFlags;
use thiserror::Error;
use tracing::debug;
use vm_memory::bitmap::{Bitmap, NewBitmap};
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
    mmap::MmapRegionBuilder,
};

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
    /// The host refused memory that can be shared.
    #[error("cannot make {size} bytes of guest memory that another process can map")]
    Share {
        /// Size asked for, in bytes.
        size: usize,
        /// The host's reason.
        #[source]
        source: std::io::Error,
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

/// Who else may map the guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody.
    Private,
    /// Processes that are handed the regions' files: memory of no file system (memfd).
    Shared,
}

fn region(base: u64, size: usize, sharing: Sharing) -> Result<GuestRegion, MemoryError> {
    let builder = MmapRegionBuilder::new_with_bitmap(size, CodePages::with_len(size))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match sharing {
        Sharing::Private => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        Sharing::Shared => {
            let file = memory_file(size).map_err(|source| MemoryError::Share { size, source })?;
            builder.with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE).with_file_offset(FileOffset::new(file, 0))
        }
    };
    let mapping: MmapRegion<CodePages> = builder.build().map_err(|source| MemoryError::Map { size, source })?;
    // SAFETY: the range is exactly the mapping made above, which `mapping` keeps alive; MADV_HUGEPAGE changes no contents.
    let advice = unsafe { libc::madvise(mapping.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    if advice != 0 {
        debug!("no huge pages for guest memory: {}", std::io::Error::last_os_error());
    }
    GuestRegion::new(mapping, GuestAddress::new(base)).ok_or(MemoryError::Range { base, size })
}

fn memory_file(size: usize) -> std::io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(c"guest-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(size as u64)?;
    Ok(file)
}

/// Maps zeroed guest RAM that is nobody else's: `(guest-physical base, size in bytes)` for each region, sorted and apart.
///
/// # Errors
/// [`MemoryError`] when the host has no room or the regions do not fit together.
pub fn allocate(regions: &[(u64, usize)]) -> Result<GuestMemory, MemoryError> {
    allocate_for(Sharing::Private, regions)
}

/// As [`allocate`], for those who may map it.
///
/// # Errors
/// As [`allocate`].
pub fn allocate_for(sharing: Sharing, regions: &[(u64, usize)]) -> Result<GuestMemory, MemoryError> {
    let regions = regions.iter().map(|&(base, size)| region(base, size, sharing)).collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

/// Hands `len` bytes of RAM from `start` on to `fill` as a slice, and then reports all of them as written. `None` if they are not RAM in one piece.
///
/// # Safety
/// Until it returns nobody else may read or write these bytes: no vCPU runs, no device or other process has been told of them.
pub unsafe fn fill<R>(memory: &GuestMemory, start: u64, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
    let slice = memory.get_slice(GuestAddress(start), len).ok()?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: `slice` is `len` mapped bytes, which stay mapped while `memory` is borrowed; by this function's contract they are nobody else's.
    let result = fill(unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), len) });
    slice.bitmap().mark_dirty(0, len);
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryRegion};

    #[test]
    fn a_device_write_through_vm_memory_reaches_the_code_watch() {
        let memory = allocate(&[(0, 1 << 20), (1 << 32, 1 << 20)]).unwrap();
        let high = memory.find_region(GuestAddress((1 << 32) + 0x3000)).unwrap();
        let before = high.bitmap().pages().watch(0x3010, 16);
        memory.write_slice(&[1, 2, 3], GuestAddress((1 << 32) + 0x3012)).unwrap();
        assert_eq!(high.bitmap().pages().generation(3), before + 1);
    }

    #[test]
    fn shared_ram_is_in_files_that_another_mapping_sees() {
        use std::os::unix::fs::FileExt;
        let memory = allocate_for(Sharing::Shared, &[(0, 1 << 20), (1 << 32, 1 << 20)]).unwrap();
        memory.write_slice(b"hello", GuestAddress((1 << 32) + 100)).unwrap();
        let mut seen = [0; 5];
        let high = memory.find_region(GuestAddress(1 << 32)).unwrap();
        high.file_offset().unwrap().file().read_exact_at(&mut seen, 100).unwrap();
        assert_eq!(&seen, b"hello");
        assert!(allocate(&[(0, 1 << 20)]).unwrap().iter().all(|region| region.file_offset().is_none()));
    }

    #[test]
    fn what_is_filled_is_ram_and_reaches_the_code_watch() {
        let memory = allocate(&[(0, 1 << 20), (1 << 32, 1 << 20)]).unwrap();
        let high = memory.find_region(GuestAddress(1 << 32)).unwrap();
        let before = high.bitmap().pages().watch(0x3010, 16);
        // SAFETY: this test is the memory's only user.
        let filled = |start, len| unsafe { fill(&memory, start, len, |bytes| bytes.fill(7)) };
        assert_eq!(filled((1 << 32) + 0x2fff, 0x100), Some(()));
        assert_eq!(high.bitmap().pages().generation(3), before + 1);
        assert_eq!(memory.read_obj::<u16>(GuestAddress((1 << 32) + 0x2ffe)).unwrap(), 0x700);
        assert_eq!(filled((1 << 20) - 1, 2), None);
    }

    #[test]
    fn overlapping_regions_are_refused() {
        assert!(matches!(allocate(&[(0, 8192), (4096, 4096)]), Err(MemoryError::Layout(_))));
    }
}
