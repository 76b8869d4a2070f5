//! Guest-physical addresses to host memory: the one place that holds pointers into guest RAM, and the loads, stores and
//! locked operations through them.

#![expect(unsafe_code, reason = "loads and stores through pointers into guest RAM that other vCPUs and devices share")]

use std::arch::asm;

use guest_memory::{CodePages, GuestMemory};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

/// An integer that one guest access moves.
pub trait Scalar: Copy + Default + Eq + 'static {
    /// Its size in bytes.
    const SIZE: usize;
    /// Its size in bits.
    const BITS: u32 = Self::SIZE as u32 * 8;
    /// The low bits of `value`.
    fn truncate(value: u64) -> Self;
    /// Zero-extended.
    fn widen(self) -> u64;
}

macro_rules! scalar {
    ($($ty:ty),+) => { $(
        impl Scalar for $ty {
            const SIZE: usize = size_of::<$ty>();
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $ty
            }
            #[inline(always)]
            fn widen(self) -> u64 {
                self as u64
            }
        }
    )+ };
}
scalar!(u8, u16, u32, u64);

struct Region {
    base: u64,
    size: u64,
    host: *mut u8,
    code: CodePages,
}

/// A host address of guest RAM, valid for the rest of its 4 KiB page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress(usize);

/// The guest's RAM as one CPU sees it.
pub struct Ram {
    regions: Vec<Region>,
    /// Keeps the mappings alive.
    memory: GuestMemory,
}

// SAFETY: the pointers lead into mappings that `memory` keeps alive, and every access through them is a volatile or locked one.
unsafe impl Send for Ram {}

impl Ram {
    /// A view of `memory`.
    pub fn new(memory: &GuestMemory) -> Self {
        let regions = memory
            .iter()
            .map(|r| Region {
                base: r.start_addr().raw_value(),
                size: r.len(),
                host: r.as_ptr(),
                code: r.bitmap().pages().clone(),
            })
            .collect();
        Self { regions, memory: memory.clone() }
    }

    /// The memory this is a view of.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    #[inline]
    fn region(&self, address: u64) -> Option<&Region> {
        self.regions.iter().find(|r| address.wrapping_sub(r.base) < r.size)
    }

    /// Where the page that holds guest-physical `address` lies; `None` if it is not RAM. The result keeps `address`'s offset.
    #[inline]
    pub fn host(&self, address: u64) -> Option<HostAddress> {
        let region = self.region(address & !0xfff)?;
        Some(HostAddress(region.host as usize + (address - region.base) as usize))
    }

    /// The code watch of the region that holds `address`, with the offset of `address` in it.
    #[inline]
    pub fn code(&self, address: u64) -> Option<(&CodePages, usize)> {
        let region = self.region(address)?;
        Some((&region.code, (address - region.base) as usize))
    }

    /// Loads from guest-physical `address`, which with all `T`'s bytes must lie within one page; `None` if it is not RAM.
    #[inline]
    pub fn load<T: Scalar>(&self, address: u64) -> Option<T> {
        debug_assert!((address & 0xfff) as usize + T::SIZE <= 4096);
        Some(self.host(address)?.load())
    }

    /// Compare-and-exchange of an aligned 64-bit word (a paging entry); `None` if it is not RAM, else whether it was exchanged.
    pub fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Option<bool> {
        let exchanged = self.host(address)?.compare_exchange::<u64>(current, new).is_ok();
        if exchanged && let Some((code, offset)) = self.code(address) {
            code.written(offset, 8);
        }
        Some(exchanged)
    }

    /// Compare-and-exchange of an aligned 32-bit word, likewise.
    pub fn compare_exchange32(&self, address: u64, current: u32, new: u32) -> Option<bool> {
        let exchanged = self.host(address)?.compare_exchange::<u32>(current, new).is_ok();
        if exchanged && let Some((code, offset)) = self.code(address) {
            code.written(offset, 4);
        }
        Some(exchanged)
    }

    /// Copies code bytes out of the page that holds `address`, from it to the page's end at most.
    pub fn copy_code(&self, address: u64, to: &mut [u8]) -> usize {
        let Some(host) = self.host(address) else { return 0 };
        let len = to.len().min(4096 - (address & 0xfff) as usize);
        for (i, byte) in to.iter_mut().take(len).enumerate() {
            *byte = HostAddress(host.0 + i).load();
        }
        len
    }
}

impl HostAddress {
    /// The raw address, for TLB addends.
    #[inline(always)]
    pub fn raw(self) -> usize {
        self.0
    }

    /// The address that a TLB entry's addend and a linear address give.
    #[inline(always)]
    pub(crate) fn from_raw(raw: usize) -> Self {
        Self(raw)
    }

    /// Loads one integer; all its bytes lie in this page.
    #[inline(always)]
    pub fn load<T: Scalar>(self) -> T {
        // SAFETY: made by `Ram::host` or a TLB entry filled from it, so the page is mapped guest RAM. The read is volatile because other
        // vCPUs may write it; unaligned loads are what the guest asked of the same instruction set, and plain x86 moves do them.
        unsafe { read_unaligned_volatile(self.0 as *const T) }
    }

    /// Stores one integer; all its bytes lie in this page.
    #[inline(always)]
    pub fn store<T: Scalar>(self, value: T) {
        // SAFETY: as for `load`.
        unsafe { write_unaligned_volatile(self.0 as *mut T, value) }
    }

    /// Copies `count` integers from `from` upwards, one after the other as REP MOVS does: in an overlap, what has just been stored is copied again.
    /// All of both ranges lies within their pages.
    #[inline(always)]
    pub fn copy_forward<T: Scalar>(self, from: Self, count: usize) {
        debug_assert!((self.0 & 0xfff) + count * T::SIZE <= 4096 && (from.0 & 0xfff) + count * T::SIZE <= 4096);
        // SAFETY: as for `load` and `store`; the direction flag is clear between Rust statements.
        unsafe {
            macro_rules! copy {
                ($instruction:literal) => {
                    asm!($instruction, inout("rcx") count => _, inout("rsi") from.0 => _, inout("rdi") self.0 => _, options(nostack, preserves_flags))
                };
            }
            match T::SIZE {
                1 => copy!("rep movsb"),
                2 => copy!("rep movsw"),
                4 => copy!("rep movsd"),
                _ => copy!("rep movsq"),
            }
        }
    }

    /// Stores `value` `count` times upwards; the whole range lies within this page.
    #[inline(always)]
    pub fn fill<T: Scalar>(self, value: T, count: usize) {
        debug_assert!((self.0 & 0xfff) + count * T::SIZE <= 4096);
        let value = value.widen();
        // SAFETY: as for `store`; the direction flag is clear between Rust statements.
        unsafe {
            macro_rules! fill {
                ($instruction:literal) => {
                    asm!($instruction, inout("rcx") count => _, in("rax") value, inout("rdi") self.0 => _, options(nostack, preserves_flags))
                };
            }
            match T::SIZE {
                1 => fill!("rep stosb"),
                2 => fill!("rep stosw"),
                4 => fill!("rep stosd"),
                _ => fill!("rep stosq"),
            }
        }
    }

    /// LOCK CMPXCHG: `Ok` when memory held `current` and now holds `new`, else `Err` with what it holds. Any alignment within the page.
    #[inline(always)]
    pub fn compare_exchange<T: Scalar>(self, current: T, new: T) -> Result<T, T> {
        let found: u64;
        let (old, new64) = (current.widen(), new.widen());
        // SAFETY: as for `load`; a locked compare-and-exchange of the operand's own size on mapped guest RAM.
        unsafe {
            match T::SIZE {
                1 => {
                    asm!("lock cmpxchg byte ptr [{p}], {n}", p = in(reg) self.0, n = in(reg_byte) new64 as u8, inout("rax") old => found, options(nostack))
                }
                2 => {
                    asm!("lock cmpxchg word ptr [{p}], {n:x}", p = in(reg) self.0, n = in(reg) new64, inout("rax") old => found, options(nostack))
                }
                4 => {
                    asm!("lock cmpxchg dword ptr [{p}], {n:e}", p = in(reg) self.0, n = in(reg) new64, inout("rax") old => found, options(nostack))
                }
                _ => {
                    asm!("lock cmpxchg qword ptr [{p}], {n}", p = in(reg) self.0, n = in(reg) new64, inout("rax") old => found, options(nostack))
                }
            }
        }
        let found = T::truncate(found);
        if found == current { Ok(found) } else { Err(found) }
    }

    /// LOCK CMPXCHG16B on a 16-byte aligned address: `Ok` when exchanged, else `Err` with what memory holds.
    pub fn compare_exchange_16(self, current: u128, new: u128) -> Result<u128, u128> {
        debug_assert!(self.0.is_multiple_of(16));
        let (mut low, mut high) = (current as u64, (current >> 64) as u64);
        // SAFETY: as for `load`; rbx is saved and restored because the compiler keeps it for itself. The other registers are named, so that none of them
        // is rbx.
        unsafe {
            asm!(
                "xchg rsi, rbx",
                "lock cmpxchg16b xmmword ptr [rdi]",
                "mov rbx, rsi",
                in("rdi") self.0,
                inout("rsi") new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") low,
                inout("rdx") high,
                options(nostack)
            );
        }
        let found = u128::from(low) | u128::from(high) << 64;
        if found == current { Ok(found) } else { Err(found) }
    }
}

/// # Safety
/// `at` and the bytes after it are mapped.
#[inline(always)]
unsafe fn read_unaligned_volatile<T: Scalar>(at: *const T) -> T {
    #[repr(C, packed)]
    struct Unaligned<T>(T);
    // SAFETY: the caller's promise; the packed wrapper has alignment 1.
    unsafe { at.cast::<Unaligned<T>>().read_volatile().0 }
}

/// # Safety
/// `at` and the bytes after it are mapped for writing.
#[inline(always)]
unsafe fn write_unaligned_volatile<T: Scalar>(at: *mut T, value: T) {
    #[repr(C, packed)]
    struct Unaligned<T>(T);
    // SAFETY: the caller's promise; the packed wrapper has alignment 1.
    unsafe { at.cast::<Unaligned<T>>().write_volatile(Unaligned(value)) }
}
