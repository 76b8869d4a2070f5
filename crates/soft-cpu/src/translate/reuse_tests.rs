//! Random programs whose operands lie near one another and often cross pages: translated they end as interpreted.

use x86::gpr;

use super::vector_tests::{DATA, both_ways};
use crate::run::Exit;

/// A generator of numbers that repeat.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % limit
    }

    fn pick(&mut self, from: &[u8]) -> u8 {
        from[self.below(from.len() as u64) as usize]
    }
}

/// RBX, RBP, RSI and R9, which has no host register of its own.
const BASES: [u8; 4] = [3, 5, 6, 9];
/// RAX, RDX, RDI, R10 and R14.
const VALUES: [u8; 5] = [0, 2, 7, 10, 14];

/// An instruction with a register and `[base + displacement]`, or `[base + rcx * 8 + displacement]`.
fn with_operand(prefix: &[u8], wide: bool, opcode: &[u8], register: u8, random: &mut Random) -> Vec<u8> {
    let base = random.pick(&BASES);
    let displacement = (random.below(400) as i32 - 128) & if random.below(4) == 0 { !0 } else { !15 };
    let mut code = prefix.to_vec();
    code.push(0x40 | u8::from(wide) << 3 | register >> 3 << 2 | base >> 3);
    code.extend(opcode);
    if random.below(4) == 0 {
        code.extend([0x84 | (register & 7) << 3, 0xc8 | base & 7]);
    } else {
        code.push(0x80 | (register & 7) << 3 | base & 7);
    }
    code.extend(displacement.to_le_bytes());
    code
}

fn instruction(random: &mut Random) -> Vec<u8> {
    let value = random.pick(&VALUES);
    let base = random.pick(&BASES);
    let vector = random.below(16) as u8;
    match random.below(28) {
        0..=3 => with_operand(&[], true, &[0x8b], value, random),
        4..=6 => with_operand(&[], true, &[0x89], value, random),
        7 => with_operand(&[], false, &[0x01], value, random),
        // ADC and SBB, which keep flags alive.
        8 => with_operand(&[], true, &[0x13], value, random),
        9 => with_operand(&[], false, &[0x1b], value, random),
        10 | 11 => with_operand(&[], false, &[0x0f, 0x10], vector, random),
        12 | 13 => with_operand(&[], false, &[0x0f, 0x11], vector, random),
        14 => with_operand(&[0xf2], false, &[0x0f, 0x10], vector, random),
        // PADDD, whose operand must be aligned.
        15 if random.below(8) == 0 => with_operand(&[0x66], false, &[0x0f, 0xfe], vector, random),
        // PUSH and POP.
        15 | 16 => vec![0x40 | value >> 3, 0x50 | value & 7],
        17 => vec![0x40 | value >> 3, 0x58 | value & 7],
        // ADD and SUB of a small constant to and from a base.
        18 => vec![0x48 | base >> 3, 0x83, 0xc0 | base & 7, random.below(32) as u8],
        19 => vec![0x48 | base >> 3, 0x83, 0xe8 | base & 7, random.below(32) as u8],
        // INC, and INC of 32 bits, after which the base is another.
        20 => vec![0x48 | base >> 3, 0xff, 0xc0 | base & 7],
        21 => vec![0x40 | base >> 3, 0xff, 0xc0 | base & 7],
        // MOV of a base to another, where registers allow it without REX.
        22 => vec![0x48, 0x89, 0xde],
        // CMOVC and SETC, and RCL by one of memory.
        23 => with_operand(&[], true, &[0x0f, 0x42], value, random),
        24 => with_operand(&[], false, &[0x0f, 0x92], 0, random),
        25 => with_operand(&[], true, &[0xd1], 2, random),
        // ADC of two registers.
        26 => vec![0x48 | value >> 3, 0x11, 0xc0 | value & 7],
        // FNOP: a handler.
        _ => vec![0xd9, 0xd0],
    }
}

#[test]
fn operands_that_share_a_look_up_are_those_of_the_interpreter() {
    let mut random = Random(1);
    let mut halted = 0;
    for _ in 0..150 {
        // mov ecx, 12; the body; dec ecx; jnz to it; hlt
        let mut code = vec![0xb9, 12, 0, 0, 0];
        for _ in 0..8 + random.below(24) {
            code.extend(instruction(&mut random));
        }
        code.extend([0xff, 0xc9, 0x0f, 0x85]);
        code.extend((5 - (code.len() as i32 + 4)).to_le_bytes());
        code.push(0xf4);
        let bases: [u64; 4] = std::array::from_fn(|_| {
            let near_the_end =
                if random.below(2) == 0 { 0x1000 - random.below(12) * 32 } else { 16 * random.below(256) };
            DATA + 0x1000 + near_the_end
        });
        let stack = DATA + 0x2000 + 8 * random.below(8);
        let end = both_ways(&code, |cpu| {
            for (register, value) in BASES.iter().zip(bases) {
                cpu.core.gpr[usize::from(*register)] = value;
            }
            cpu.core.gpr[gpr::RSP] = stack;
        });
        halted += u32::from(end.exit == Exit::Halted);
    }
    assert!(halted > 100, "most of them run to their end: {halted}");
}
