//! What boots and the comparison with the host do not show: eviction, code that changes under its translation, budgets.

use x86::gpr;

use super::cache::Translator;
use crate::run::{Cpu, Debugging, Exit, TranslatorMode};
use crate::testing::{CODE, long_mode};

const HLT: u8 = 0xf4;

fn translating(code: &[u8]) -> Cpu {
    let mut cpu = long_mode(code);
    cpu.set_translator(TranslatorMode::On { threshold: 1, precise: false });
    cpu
}

/// `blocks` blocks that add 1 to RAX, run RCX times, then HLT.
fn chain(blocks: usize) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..blocks {
        // ADD RAX, 1; JMP to the next instruction.
        code.extend([0x48, 0x83, 0xc0, 0x01, 0xeb, 0x00]);
    }
    close_loop(code)
}

/// Makes a loop of `code`, RCX times, then HLT.
pub(super) fn close_loop(mut code: Vec<u8>) -> Vec<u8> {
    // DEC RCX; JNZ to the start.
    code.extend([0x48, 0xff, 0xc9, 0x0f, 0x85]);
    let displacement = -(code.len() as i32 + 4);
    code.extend(displacement.to_le_bytes());
    code.push(HLT);
    code
}

#[test]
fn a_chain_of_blocks_over_two_pages_runs_translated() {
    let mut cpu = translating(&chain(1000));
    cpu.core.gpr[gpr::RCX] = 50;
    assert_eq!(cpu.run(1_000_000), Exit::Halted);
    assert_eq!(cpu.core.gpr[gpr::RAX], 50_000);
    let statistics = cpu.translator_statistics();
    assert!(statistics.instructions > 90_000, "{statistics:?}");
    assert_eq!(cpu.core.counters.instructions, 50 * 2002 + 1);
}

#[test]
fn a_full_arena_is_flushed_and_filled_again() {
    let mut cpu = long_mode(&chain(3000));
    cpu.use_translator(Translator::with_arena(1, false, 128 << 10).unwrap());
    cpu.core.gpr[gpr::RCX] = 20;
    assert_eq!(cpu.run(1_000_000), Exit::Halted);
    assert_eq!(cpu.core.gpr[gpr::RAX], 60_000);
    assert!(cpu.translator_statistics().flushes > 1);
}

#[test]
fn a_small_code_cache_is_what_is_asked_for_and_exits_are_counted_once_each() {
    let mut cpu = translating(&chain(3000));
    cpu.set_debugging(Debugging { code_cache: Some(1), ..Debugging::default() });
    cpu.core.gpr[gpr::RCX] = 60;
    assert_eq!(cpu.run(1_000_000), Exit::Halted);
    let statistics = cpu.translator_statistics();
    assert!(statistics.flushes > 1 && statistics.code_room < 1 << 20, "{statistics:?}");
    assert_eq!(statistics.exits.sum(), statistics.entries, "{statistics:?}");
    assert!(statistics.exits.jumps > 0, "{statistics:?}");
}

#[test]
fn accesses_are_counted_alike_whoever_executes_them() {
    // L: PUSH RAX; POP RBX; ADD [RSP - 8], RAX; DEC ECX; JNZ L; HLT.
    let code = [0x50, 0x5b, 0x48, 0x01, 0x44, 0x24, 0xf8, 0xff, 0xc9, 0x75, 0xf5, HLT];
    for threshold in [1, 20, u32::MAX] {
        let mut cpu = long_mode(&code);
        cpu.set_translator(TranslatorMode::On { threshold, precise: false });
        cpu.set_debugging(Debugging { count_accesses: true, ..Debugging::default() });
        cpu.core.gpr[gpr::RCX] = 50;
        assert_eq!(cpu.run(10_000), Exit::Halted);
        let counters = cpu.core.counters;
        // Translated, the POP shares the PUSH's look-up.
        assert!(counters.accesses == 150 && (1..=2).contains(&counters.misses), "{threshold}: {counters:?}");
    }
}

#[test]
fn a_store_into_the_running_page_is_executed_as_stored() {
    // MOV EAX, 1; ADD RBX, RAX; INC dword [RIP - 13 + 1], the MOV's immediate; DEC RCX; JNZ to the start; HLT.
    let code =
        [0xb8, 1, 0, 0, 0, 0x48, 0x01, 0xc3, 0xff, 0x05, 0xf3, 0xff, 0xff, 0xff, 0x48, 0xff, 0xc9, 0x75, 0xed, HLT];
    let mut cpu = translating(&code);
    cpu.core.gpr[gpr::RCX] = 10;
    cpu.core.gpr[gpr::RBX] = 0;
    assert_eq!(cpu.run(10_000), Exit::Halted);
    assert_eq!(cpu.core.gpr[gpr::RBX], 55);
}

#[test]
fn an_endless_loop_leaves_when_its_budget_is_used_up_and_when_it_is_kicked() {
    let mut cpu = translating(&[0xeb, 0xfe]);
    assert_eq!(cpu.core.rip, CODE);
    assert_eq!(cpu.run(100_000), Exit::Budget);
    assert_eq!(cpu.core.rip, CODE);
    cpu.core.link.group().notify(0, crate::smp::attention::KICK);
    assert_eq!(cpu.run(100_000), Exit::Kicked);
}

#[test]
fn a_return_to_an_address_that_is_not_canonical_finds_no_old_translation() {
    // mov ecx, 100; xor r8d, r8d; l: lea rax, [t]; xor rax, r8; push rax; ret; t: dec ecx; jne l; test r8, r8; jne e; mov rax, cr3; mov cr3, rax;
    // mov r8, bits << 48; mov ecx, 100; jmp l; e: jmp e
    let program = |bits: u8| {
        vec![
            0xb9, 0x64, 0, 0, 0, 0x45, 0x31, 0xc0, 0x48, 0x8d, 0x05, 5, 0, 0, 0, 0x4c, 0x31, 0xc0, 0x50, 0xc3, 0xff,
            0xc9, 0x75, 0xf0, 0x4d, 0x85, 0xc0, 0x75, 0x17, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x49, 0xb8, 0, 0, 0, 0,
            0, 0, bits, 0, 0xb9, 0x64, 0, 0, 0, 0xeb, 0xd4, 0xeb, 0xfe,
        ]
    };
    // The keys before and after the CR3 write differ in some of these bits.
    for bits in 1..16 {
        let mut cpu = translating(&program(bits));
        // #GP without an interrupt descriptor table is a triple fault.
        assert_eq!(cpu.run(100_000), Exit::Shutdown, "{bits:#x}");
        assert_eq!(cpu.core.gpr[gpr::RCX], 100, "the second loop's first return already faults");
    }
}

/// RCX times MOV RAX, 1, across two pages; ADD RBX, RAX; and, if `patched`, INC of the constant's byte that comes first on the second page.
fn across_pages(patched: bool) -> Vec<u8> {
    let mut code = vec![0xe9];
    code.extend((0xffb_i32 - 5).to_le_bytes());
    code.resize(0xffb, HLT);
    code.extend([0x48, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0x48, 0x01, 0xc3]);
    if patched {
        let after = code.len() as i32 + 6;
        code.extend([0xfe, 0x05]);
        code.extend((0x1000 - after).to_le_bytes());
    }
    code.extend([0x48, 0xff, 0xc9, 0x75]);
    code.push((0xffb - (code.len() as i32 + 1)) as u8);
    code.push(HLT);
    code
}

#[test]
fn an_instruction_across_two_pages_is_translated() {
    let mut cpu = translating(&across_pages(false));
    cpu.core.gpr[gpr::RCX] = 100;
    cpu.core.gpr[gpr::RBX] = 0;
    assert_eq!(cpu.run(10_000), Exit::Halted);
    assert_eq!(cpu.core.gpr[gpr::RBX], 100);
    let statistics = cpu.translator_statistics();
    assert!(statistics.instructions > 390, "{statistics:?}");
    assert!(statistics.entries < 30, "{statistics:?}");
}

#[test]
fn a_store_to_the_second_page_of_an_instruction_is_seen() {
    let mut cpu = translating(&across_pages(true));
    cpu.core.gpr[gpr::RCX] = 100;
    cpu.core.gpr[gpr::RBX] = 0;
    assert_eq!(cpu.run(10_000), Exit::Halted);
    // The constant's byte at bit 24 counts.
    assert_eq!(cpu.core.gpr[gpr::RBX], 100 + ((99 * 100 / 2) << 24));
}
