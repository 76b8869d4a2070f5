//! Where generated code finds the core: at the base of GS, which neither the C library nor Rust uses on Linux. So no general register has to be given up for it.

#![expect(unsafe_code, reason = "sets the base of a segment of the thread")]

use std::arch::asm;
use std::cell::Cell;

use crate::core::Core;

/// Code of `arch_prctl` (arch_prctl(2)).
const ARCH_SET_GS: libc::c_int = 0x1001;

/// The kernel lets programs execute WRGSBASE (Documentation/arch/x86/x86_64/fsgs.rst).
const HWCAP2_FSGSBASE: u64 = 1 << 1;

thread_local! {
    /// The thread's base, as it was last set here.
    static BASE: Cell<u64> = const { Cell::new(0) };
}

/// Whether this thread can set the base.
pub(super) fn is_available() -> bool {
    set(BASE.get())
}

/// Makes GS begin at `core`, for this thread.
#[inline(always)]
pub(super) fn point_to(core: &mut Core) {
    let base = &raw mut *core as u64;
    if BASE.get() != base {
        change(base);
    }
}

#[cold]
fn change(base: u64) {
    assert!(set(base), "the base of GS could be set before");
    BASE.set(base);
}

fn set(base: u64) -> bool {
    // SAFETY: it only reads what the kernel has told the process at its start.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0 {
        // SAFETY: the kernel allows the instruction, and nothing in this process but generated code uses GS.
        unsafe { asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
        return true;
    }
    // SAFETY: it changes the base of a segment that nothing in this process but generated code uses.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_what_was_set() {
        assert!(is_available());
        let word = 0x1122_3344_5566_7788_u64;
        let before = BASE.get();
        change(&raw const word as u64);
        let found: u64;
        // SAFETY: GS begins at `word`.
        unsafe { asm!("mov {}, gs:[0]", out(reg) found, options(nostack, readonly)) };
        change(before);
        assert_eq!(found, word);
    }
}
