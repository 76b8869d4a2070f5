//! Loops of a known number of instructions, which tell how many a second the processor executes.

use std::arch::asm;

/// Instructions in one round of either loop, the two that close it included.
const ROUND: u64 = 8;

/// Bytes that the memory loop walks over, a power of two: more than a first-level cache, less than a TLB covers.
const MEMORY_BYTES: usize = 1 << 18;

/// Runs about so many instructions of register arithmetic and returns how many it were.
pub(super) fn register(instructions: u64) -> u64 {
    let rounds = rounds(instructions);
    register_rounds(rounds);
    rounds.saturating_mul(ROUND)
}

/// The same with instructions of which three in eight touch memory.
pub(super) fn memory(instructions: u64) -> u64 {
    let rounds = rounds(instructions);
    memory_rounds(rounds);
    rounds.saturating_mul(ROUND)
}

fn rounds(instructions: u64) -> u64 {
    (instructions / ROUND).max(1)
}

#[expect(unsafe_code, reason = "only assembly has a known number of instructions")]
fn register_rounds(rounds: u64) {
    // SAFETY: it changes the named registers and flags, and touches no memory and no stack.
    unsafe {
        asm!(
            "2:",
            "add {a}, {b}",
            "rol {a}, 7",
            "xor {b}, {a}",
            "lea {c}, [{a} + {b} * 4]",
            "sub {b}, {c}",
            "and {c}, 0xff",
            "dec {rounds}",
            "jnz 2b",
            a = inout(reg) 0x0123_4567_89ab_cdef_u64 => _,
            b = inout(reg) 0xfedc_ba98_7654_3210_u64 => _,
            c = out(reg) _,
            rounds = inout(reg) rounds => _,
            options(nomem, nostack),
        );
    }
}

#[expect(unsafe_code, reason = "only assembly has a known number of instructions")]
fn memory_rounds(rounds: u64) {
    let mut memory = vec![0_u8; MEMORY_BYTES];
    // SAFETY: the offset is masked to a multiple of 8 below MEMORY_BYTES, so each 8-byte access stays in `memory`.
    unsafe {
        asm!(
            "2:",
            "add {a}, 4168",
            "and {a}, {mask}",
            "mov {b}, [{base} + {a}]",
            "add {b}, {a}",
            "mov [{base} + {a}], {b}",
            "cmp [{base} + {a}], {b}",
            "dec {rounds}",
            "jnz 2b",
            a = inout(reg) 0_u64 => _,
            b = out(reg) _,
            mask = in(reg) (MEMORY_BYTES - 8) as u64,
            base = in(reg) memory.as_mut_ptr(),
            rounds = inout(reg) rounds => _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_loops_end_after_whole_rounds() {
        assert_eq!(register(8001), 8000);
        assert_eq!(memory(100_007), 100_000);
        assert_eq!(register(1), 8);
    }
}
