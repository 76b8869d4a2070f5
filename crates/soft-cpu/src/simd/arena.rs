//! The memory that generated code lies in, mapped twice, once writable and once executable, so that no address is both.
//!
//! DEVNOTE: a file in memory (memfd) could be mapped twice as well, and would have a name. But `perf` then looks for symbols in that file, and takes those of
//! `/tmp/perf-PID.map` for anonymous mappings only.

#![expect(unsafe_code, reason = "maps memory for generated code and copies the code into it")]

use std::io;
use std::ptr;

use crate::fpu::FpuState;

/// Size of the arena in bytes; pages are taken as they are filled. A thunk is about 60 bytes.
const ARENA_SIZE: usize = 4 << 20;

/// Generated code, appended until it is all forgotten at once.
pub(crate) struct Arena {
    writable: *mut u8,
    executable: *const u8,
    size: usize,
    /// By [`Part`].
    regions: [Region; 2],
    /// About how many bytes of the writable mapping have been touched since they were last given up.
    touched: usize,
}

/// Where in the arena code goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What is executed often lies close together.
    Hot = 0,
    /// And what hardly ever is lies out of its way.
    Cold = 1,
}

/// A part's offsets in the arena.
#[derive(Clone, Copy)]
struct Region {
    start: usize,
    used: usize,
    end: usize,
}

impl Region {
    fn new(start: usize, end: usize) -> Self {
        Self { start, used: start, end }
    }
}

/// Bytes of the writable mapping that may be touched until its pages are given up. Otherwise all code would be resident twice.
const MOST_TOUCHED: usize = 512 << 10;
/// What a patch is taken to touch: a page, but mostly one that others touch as well.
const PATCH_TOUCHES: usize = 512;

// SAFETY: the arena owns both mappings, and writes to them only through `&mut self`.
unsafe impl Send for Arena {}

impl Arena {
    /// An empty arena for thunks.
    pub(super) fn new() -> io::Result<Self> {
        Self::with_size(ARENA_SIZE, ARENA_SIZE)
    }

    /// An empty arena of `size` bytes, the first `hot` of them for hot code.
    pub(crate) fn with_size(size: usize, hot: usize) -> io::Result<Self> {
        let regions = [Region::new(0, hot), Region::new(hot, size)];
        let writable = map(size)?;
        match map_again(writable, size) {
            Ok(executable) => Ok(Self { writable, executable, size, regions, touched: 0 }),
            Err(error) => {
                // SAFETY: unmaps what was just mapped and nothing points into.
                unsafe { libc::munmap(writable.cast(), size) };
                Err(error)
            }
        }
    }

    /// Bytes of code that it holds.
    pub(crate) fn used(&self) -> usize {
        self.regions.iter().map(|region| region.used - region.start).sum()
    }

    /// Bytes that it has room for when it is empty.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes that are still free in this part.
    pub(crate) fn room(&self, part: Part) -> usize {
        let region = &self.regions[part as usize];
        region.end - region.used
    }

    /// The address at which what is appended next to this part can be called.
    pub(crate) fn next(&self, part: Part) -> u64 {
        self.executable as u64 + self.regions[part as usize].used as u64
    }

    /// Overwrites code that was appended, at the address where it runs. Nobody may be running it.
    pub(crate) fn patch(&mut self, at: u64, code: &[u8]) {
        let offset = (at - self.executable as u64) as usize;
        let there = |region: &Region| region.start <= offset && offset + code.len() <= region.used;
        assert!(self.regions.iter().any(there), "a patch of code that is not there");
        // SAFETY: it lies in what has been appended, and nothing else writes to the mapping.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(offset), code.len()) };
        self.touch(PATCH_TOUCHES);
    }

    fn touch(&mut self, bytes: usize) {
        self.touched += bytes;
        if self.touched >= MOST_TOUCHED {
            self.touched = 0;
            // SAFETY: the mapping is ours and shared: what its pages hold is kept.
            let advice = unsafe { libc::madvise(self.writable.cast(), self.size, libc::MADV_DONTNEED) };
            debug_assert_eq!(advice, 0, "{}", io::Error::last_os_error());
        }
    }

    /// Replaces `from` by `to` wherever it is in the `len` bytes at `at`.
    #[cfg(test)]
    pub(crate) fn replace(&mut self, at: u64, len: usize, from: &[u8], to: &[u8]) {
        let start = (at - self.executable as u64) as usize;
        for offset in start..(start + len).min(self.regions[0].used).saturating_sub(from.len()) {
            // SAFETY: the range was appended, and nobody writes to it meanwhile.
            let found = unsafe { std::slice::from_raw_parts(self.writable.add(offset), from.len()) };
            if found == from {
                self.patch(self.executable as u64 + offset as u64, to);
            }
        }
    }

    /// Appends `code` to a part, at a 16-byte boundary, and returns the address at which it can be called; `None` if the part is full.
    pub(crate) fn append(&mut self, part: Part, code: &[u8]) -> Option<u64> {
        let region = &mut self.regions[part as usize];
        let at = region.used;
        let end = at.checked_add(code.len())?;
        if end > region.end {
            return None;
        }
        region.used = end.next_multiple_of(16).min(region.end);
        // SAFETY: `at..end` lies in the mapping, and nothing else writes to it.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(at), code.len()) };
        self.touch(code.len());
        Some(self.executable as u64 + at as u64)
    }

    /// Forgets all code. Nobody may call it any more.
    pub(crate) fn clear(&mut self) {
        for region in &mut self.regions {
            region.used = region.start;
        }
        // What lay here may have been fetched through the other mapping, which the processor need not notice: CPUID serialises it
        // (SDM vol. 3, 10.1.3).
        std::arch::x86_64::__cpuid(0);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and code in them is called only through operations that live no longer.
        unsafe {
            libc::munmap(self.writable.cast(), self.size);
            libc::munmap(self.executable.cast_mut().cast(), self.size);
        }
    }
}

/// New memory that can be mapped again.
fn map(size: usize) -> io::Result<*mut u8> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags | libc::MAP_NORESERVE, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast()) }
}

/// The memory at `writable` once more, executable: moving none of a shared mapping leaves it where it is and makes another (mremap(2)).
fn map_again(writable: *mut u8, size: usize) -> io::Result<*const u8> {
    // SAFETY: `writable` is a shared mapping of `size` bytes, which stays; the new one lies at an address of the kernel's choice.
    let at = unsafe { libc::mremap(writable.cast(), 0, size, libc::MREMAP_MAYMOVE) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the new mapping is ours, and nothing points into it yet.
    if unsafe { libc::mprotect(at, size, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::munmap(at, size) };
        return Err(error);
    }
    Ok(at.cast_const().cast())
}

/// Calls a thunk: `entry` is an address that [`Arena::append`] returned.
#[inline(always)]
pub(super) fn call(entry: u64, state: &mut FpuState) {
    // SAFETY: operations keep the entry address of a thunk and are dropped with all others when the arena is cleared. A thunk is a function of this
    // type that touches only `state` and registers that the calling convention lets it change.
    unsafe {
        let thunk: extern "sysv64" fn(*mut FpuState) = std::mem::transmute(entry as *const ());
        thunk(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_code_can_be_read_where_it_will_run() {
        let mut arena = Arena::new().unwrap();
        let first = arena.append(Part::Hot, &[0x90; 5]).unwrap();
        let second = arena.append(Part::Hot, &[0xc3]).unwrap();
        assert_eq!(second - first, 16);
        // SAFETY: the address lies in the executable mapping, which is readable.
        assert_eq!(unsafe { *(second as *const u8) }, 0xc3);
    }

    #[test]
    fn code_stays_when_the_pages_it_was_written_through_are_given_up() {
        let mut arena = Arena::new().unwrap();
        let code: Vec<u64> = (0..MOST_TOUCHED / 64).map(|_| arena.append(Part::Hot, &[0xc3; 64]).unwrap()).collect();
        assert_eq!(arena.touched, 0);
        // SAFETY: the addresses lie in the executable mapping, which is readable.
        assert!(code.iter().all(|at| unsafe { *(*at as *const u8) } == 0xc3));
    }

    #[test]
    fn a_full_arena_takes_nothing_more_until_it_is_cleared() {
        let mut arena = Arena::new().unwrap();
        let half = vec![0xc3; ARENA_SIZE / 2 + 16];
        assert!(arena.append(Part::Hot, &half).is_some());
        assert!(arena.append(Part::Hot, &half).is_none());
        arena.clear();
        assert!(arena.append(Part::Hot, &half).is_some());
    }
}
