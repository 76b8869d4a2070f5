//! Work with a known number of instructions, for benchmarks of the processor.
//!
//! `vmm.work=loop:N` runs N instructions of register arithmetic, `vmm.work=memory:N` N instructions of which every
//! third touches memory. A comma separates several.

use std::arch::asm;
use std::time::Instant;

use crate::console::Console;

/// Instructions in one round of either loop, the two that close it included.
const ROUND: u64 = 8;

/// Bytes that the memory loop walks over, a power of two: more than a first-level cache, less than a TLB covers.
const MEMORY_BYTES: usize = 1 << 18;

/// Runs what the command line asks for and reports instructions and nanoseconds of each.
pub(crate) fn run(console: &mut Console, wanted: Option<&str>) {
    for item in wanted.into_iter().flat_map(|list| list.split(',')) {
        let Some((name, rounds)) = parse(item) else {
            console.report("work_error", format_args!("{item} is unknown"));
            continue;
        };
        let start = Instant::now();
        match name {
            Kind::Loop => register_loop(rounds),
            Kind::Memory => memory_loop(rounds),
        }
        let nanoseconds = start.elapsed().as_nanos();
        console.report("work", format_args!("{item} instructions={} ns={nanoseconds}", rounds.saturating_mul(ROUND)));
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Loop,
    Memory,
}

/// The kind of work and its rounds, at least one.
fn parse(item: &str) -> Option<(Kind, u64)> {
    let (name, instructions) = item.split_once(':')?;
    let rounds = (instructions.parse::<u64>().ok()? / ROUND).max(1);
    match name {
        "loop" => Some((Kind::Loop, rounds)),
        "memory" => Some((Kind::Memory, rounds)),
        _ => None,
    }
}

#[expect(unsafe_code, reason = "only assembly has a known number of instructions")]
fn register_loop(rounds: u64) {
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
fn memory_loop(rounds: u64) {
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
    fn work_is_parsed_into_rounds_of_eight() {
        assert_eq!(parse("loop:800"), Some((Kind::Loop, 100)));
        assert_eq!(parse("memory:1"), Some((Kind::Memory, 1)));
        assert_eq!(parse("sleep:1"), None);
    }

    #[test]
    fn both_loops_end() {
        register_loop(1000);
        memory_loop(100_000);
    }
}
