//! Random loops with jumps that go either way: in traces they end as interpreted, wherever a trace is left.

use x86::gpr;

use super::reuse_tests::Random;
use super::tests::close_loop;
use super::vector_tests::both_ways;
use crate::run::{Cpu, Exit, TranslatorMode};
use crate::testing::long_mode;

/// What stands between the jumps: ADC, SBB, RCL and SETC see the flags of before, in registers and in memory.
const BODIES: [&[u8]; 10] = [
    // ADC EAX, EDX; SBB EDX, EAX; RCL EDX, 1; SETC AL
    &[0x11, 0xd0],
    &[0x19, 0xc2],
    &[0xd1, 0xd2],
    &[0x0f, 0x92, 0xc0],
    // MOV [RBX + 8], RAX; ADC RDX, [RBX + 8]; ADD [RBX + 16], RDX
    &[0x48, 0x89, 0x43, 0x08],
    &[0x48, 0x13, 0x53, 0x08],
    &[0x48, 0x01, 0x53, 0x10],
    // INC R9; XOR RAX, R8; PUSH RAX and POP RDX
    &[0x49, 0xff, 0xc1],
    &[0x4c, 0x31, 0xc0],
    &[0x50, 0x5a],
];

fn bodies(random: &mut Random) -> Vec<u8> {
    (0..=random.below(3)).flat_map(|_| BODIES[random.below(BODIES.len() as u64) as usize]).copied().collect()
}

/// RCX times so many pieces that are jumped over or not, by a bit of R8, which changes each time.
fn program(random: &mut Random, pieces: usize) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..pieces {
        // IMUL R8, R8, constant; ADD R8, constant; BT R8, bit
        code.extend([0x4d, 0x69, 0xc0, 0x2d, 0x7f, 0x95, 0x4c, 0x49, 0x81, 0xc0, 0x4f, 0x81, 0x67, 0x37]);
        code.extend([0x49, 0x0f, 0xba, 0xe0, 20 + random.below(40) as u8]);
        let body = bodies(random);
        // JC or JNC over the piece, sometimes with a JMP at its end to the next instruction.
        let skipped = body.len() as u8 + if random.below(3) == 0 { 2 } else { 0 };
        code.extend([0x72 | random.below(2) as u8, skipped]);
        code.extend(&body);
        if usize::from(skipped) > body.len() {
            code.extend([0xeb, 0x00]);
        }
        code.extend(bodies(random));
    }
    close_loop(code)
}

#[test]
fn a_loop_in_traces_ends_as_interpreted() {
    let mut random = Random(29);
    for pieces in 1..40 {
        let code = program(&mut random, pieces);
        let end = both_ways(&code, |cpu| cpu.core.gpr[gpr::RCX] = 60);
        assert_eq!(end.exit, Exit::Halted, "{pieces} pieces");
    }
}

fn run(cpu: &mut Cpu) -> (u64, u64) {
    cpu.core.gpr[gpr::RCX] = 500;
    assert_eq!(cpu.run(1_000_000), Exit::Halted);
    (cpu.core.counters.instructions, cpu.translator_statistics().translated)
}

#[test]
fn a_straight_loop_of_many_blocks_is_a_few_traces() {
    // ADD RAX, 1; JMP to the next instruction, 40 times; DEC RCX; JNZ; HLT.
    let code = close_loop([0x48, 0x83, 0xc0, 0x01, 0xeb, 0x00].repeat(40));
    let mut cpu = long_mode(&code);
    cpu.set_translator(TranslatorMode::On { threshold: 8, precise: false });
    let (instructions, translated) = run(&mut cpu);
    assert_eq!(instructions, 500 * 82 + 1);
    assert!(translated <= 7, "{translated}");
}
