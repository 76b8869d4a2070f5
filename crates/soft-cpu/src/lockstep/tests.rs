//! Lockstep passes over what is right, and finds what is wrong.

use x86::gpr;

use crate::run::{Cpu, Debugging, Exit, TranslatorMode};
use crate::testing::long_mode;

const HLT: u8 = 0xf4;

fn in_lockstep(code: &[u8]) -> Cpu {
    let mut cpu = long_mode(code);
    cpu.set_translator(TranslatorMode::On { threshold: 1, precise: false });
    cpu.set_debugging(Debugging { lockstep: true, ..Debugging::default() });
    cpu
}

/// RCX times: ADD RAX, 1; MOV [RSP - 16], RAX; ADD [RSP - 8], RAX; DEC RCX; JNZ; then HLT.
const LOOP: [u8; 23] = [
    0x48, 0x83, 0xc0, 0x01, 0x48, 0x89, 0x44, 0x24, 0xf0, 0x48, 0x01, 0x44, 0x24, 0xf8, 0x48, 0xff, 0xc9, 0x75, 0xed,
    HLT, 0x90, 0x90, 0x90,
];

fn count(cpu: &mut Cpu) -> Exit {
    cpu.core.gpr[gpr::RCX] = 20;
    cpu.core.gpr[gpr::RAX] = 0;
    cpu.run(1000)
}

#[test]
fn a_right_translation_passes_and_every_block_is_compared() {
    let mut cpu = in_lockstep(&LOOP);
    assert_eq!(count(&mut cpu), Exit::Halted, "{:?}", cpu.divergence());
    assert_eq!(cpu.core.gpr[gpr::RAX], 20);
    assert!(cpu.compared() >= 20);
    assert_eq!(cpu.core.counters.instructions, 101);
}

/// Runs the loop with `from` replaced by `to` in the generated code, and returns the report.
fn planted(from: &[u8], to: &[u8]) -> String {
    let mut cpu = in_lockstep(&LOOP);
    let start = cpu.core.rip;
    assert_eq!(count(&mut cpu), Exit::Halted, "{:?}", cpu.divergence());
    cpu.plant(from, to);
    cpu.core.rip = start;
    cpu.core.halted = false;
    assert_eq!(count(&mut cpu), Exit::Diverged);
    cpu.divergence().unwrap().to_owned()
}

#[test]
fn a_planted_wrong_constant_is_found_and_reported_with_its_register() {
    // ADD RAX, 1 becomes ADD RAX, 2.
    let report = planted(&[0x48, 0x83, 0xc0, 0x01], &[0x48, 0x83, 0xc0, 0x02]);
    assert!(report.contains("rax: interpreted 0x1, translated 0x2"), "{report}");
    assert!(report.contains("Add_rm64_imm8"), "{report}");
}

#[test]
fn an_entry_of_another_block_in_the_table_of_jumps_is_found() {
    let mut cpu = in_lockstep(&LOOP);
    let start = cpu.core.rip;
    assert_eq!(count(&mut cpu), Exit::Halted, "{:?}", cpu.divergence());
    let core = &mut *cpu.core;
    let page = core.fetch.lookup(start, false).unwrap();
    let (_, code) = core.jumps.find(core.mode, start).unwrap();
    core.jumps.insert(core.mode, start, code + 16, page);
    (core.rip, core.halted) = (start, false);
    assert_eq!(count(&mut cpu), Exit::Diverged);
    assert!(cpu.divergence().unwrap().contains("the table of jumps has"), "{:?}", cpu.divergence());
}

#[test]
fn a_planted_wrong_store_is_found_in_memory() {
    // MOV [R10], RAX becomes MOV [R10], RCX.
    let report = planted(&[0x49, 0x89, 0x02], &[0x49, 0x89, 0x0a]);
    assert!(report.contains("memory at host address"), "{report}");
}

#[test]
fn a_planted_store_to_a_wrong_place_is_found() {
    // MOV [R10], RAX, ADD [R10], RAX's look-up: both use R10; the first store moves by eight bytes when its LEA does.
    // LEA R10, [R9 - 16] becomes LEA R10, [R9 - 24].
    let report = planted(&[0x4d, 0x8d, 0x51, 0xf0], &[0x4d, 0x8d, 0x51, 0xe8]);
    assert!(report.contains("memory at host address"), "{report}");
}

#[test]
fn a_planted_loss_of_flags_is_found() {
    // DEC RCX becomes LEA RCX, [RCX - 1] cut to its length: NOP with REX.W is as long, and then RCX stays.
    let report = planted(&[0x48, 0xff, 0xc9], &[0x48, 0x85, 0xc9]);
    assert!(report.contains("rcx: interpreted 0x13, translated 0x14"), "{report}");
}
