//! What must be forgotten, and what may be kept, when a mapping or the code behind it changes: each rule, interpreted and translated.

use guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};
use x86::{Segment, cr4, gpr, paging};

use crate::core::Core;
use crate::platform::Nothing;
use crate::ram::Ram;
use crate::run::{Cpu, Exit, TranslatorMode};
use crate::smp::CpuGroup;
use crate::testing::{CODE, long_mode};

/// Two address spaces.
const SPACES: [u64; 2] = [0x1_0000, 0x2_0000];
/// Linear pages that the tests map, four in each address space. No other page of theirs competes with them for a slot of a TLB.
const WINDOW: u64 = 0x4000_4000;
/// Physical pages for them.
const PAGES: [u64; 2] = [0x20_0000, 0x21_0000];
const RWX: u64 = paging::P | paging::RW | paging::US | paging::A | paging::D;

const INC_R8_RET: [u8; 4] = [0x49, 0xff, 0xc0, 0xc3];
const INC_R9_RET: [u8; 4] = [0x49, 0xff, 0xc1, 0xc3];

/// Where the entry for the page `number` of the window lies.
fn entry_address(space: u64, number: u64) -> u64 {
    space + 0x3000 + (WINDOW >> 12 & 0x1ff) * 8 + number * 8
}

fn map(memory: &GuestMemory, space: u64, number: u64, entry: u64) {
    memory.write_obj(entry, GuestAddress(entry_address(space, number))).unwrap();
}

/// A CPU that runs `code` at [`CODE`] with [`WINDOW`] in RBX, in the first address space. The first GiB is mapped to itself in both.
fn cpu(code: &[u8], translate: bool) -> Cpu {
    let mut cpu = long_mode(code);
    let core = &mut *cpu.core;
    let memory = core.ram.memory().clone();
    for space in SPACES {
        let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(space + at)).unwrap();
        put(0, (space + 0x1000) | RWX);
        put(0x1000, RWX | paging::PS);
        put(0x1008, (space + 0x2000) | RWX);
        put(0x2000, (space + 0x3000) | RWX);
    }
    core.cr3 = SPACES[0];
    core.cr4 |= cr4::PGE;
    core.gpr[gpr::RBX] = WINDOW;
    core.gpr[gpr::RCX] = 40;
    core.gpr[8..16].fill(0);
    memory.write_slice(&INC_R8_RET, GuestAddress(PAGES[0])).unwrap();
    memory.write_slice(&INC_R9_RET, GuestAddress(PAGES[1])).unwrap();
    if translate {
        cpu.set_translator(TranslatorMode::On { threshold: 1, precise: false });
    }
    cpu
}

fn both(test: impl Fn(bool)) {
    test(false);
    test(true);
}

fn counts(cpu: &Cpu) -> [u64; 2] {
    [cpu.core.gpr[8], cpu.core.gpr[9]]
}

/// Calls [`WINDOW`] in both address spaces by turns, RCX times.
fn switching_program() -> Vec<u8> {
    let mut code = Vec::new();
    for space in SPACES {
        // MOV RAX, space; MOV CR3, RAX; CALL RBX.
        code.extend([0x48, 0xc7, 0xc0]);
        code.extend((space as u32).to_le_bytes());
        code.extend([0x0f, 0x22, 0xd8, 0xff, 0xd3]);
    }
    // DEC ECX; JNZ to the start; HLT.
    code.extend([0xff, 0xc9, 0x75, (-(code.len() as i8) - 4) as u8, 0xf4]);
    code
}

#[test]
fn one_linear_address_leads_to_the_code_of_each_address_space() {
    both(|translate| {
        let mut cpu = cpu(&switching_program(), translate);
        for (space, page) in SPACES.into_iter().zip(PAGES) {
            map(cpu.core.ram.memory(), space, 0, page | RWX);
        }
        assert_eq!(cpu.run(100_000), Exit::Halted);
        assert_eq!(counts(&cpu), [40, 40], "translate: {translate}");
    });
}

#[test]
fn code_on_a_global_page_outlives_a_cr3_write() {
    both(|translate| {
        let mut cpu = cpu(&switching_program(), translate);
        map(cpu.core.ram.memory(), SPACES[0], 0, PAGES[0] | RWX | paging::G);
        map(cpu.core.ram.memory(), SPACES[1], 0, PAGES[1] | RWX);
        assert_eq!(cpu.run(100_000), Exit::Halted);
        assert_eq!(counts(&cpu), [80, 0], "translate: {translate}");
    });
}

#[test]
fn invlpg_lets_its_page_lead_elsewhere() {
    both(|translate| {
        // MOV [RDI], RDX; XCHG RSI, RDX; INVLPG [RBX]; CALL RBX; DEC ECX; JNZ to the start; HLT.
        let code = [0x48, 0x89, 0x17, 0x48, 0x87, 0xd6, 0x0f, 0x01, 0x3b, 0xff, 0xd3, 0xff, 0xc9, 0x75, 0xf1, 0xf4];
        let mut cpu = cpu(&code, translate);
        cpu.core.gpr[gpr::RDI] = entry_address(SPACES[0], 0);
        (cpu.core.gpr[gpr::RDX], cpu.core.gpr[gpr::RSI]) = (PAGES[0] | RWX, PAGES[1] | RWX);
        assert_eq!(cpu.run(100_000), Exit::Halted);
        assert_eq!(counts(&cpu), [20, 20], "translate: {translate}");
    });
}

/// Makes `cpu` run in user mode.
fn enter_user_mode(cpu: &mut Cpu) {
    let core = &mut *cpu.core;
    core.cpl = 3;
    core.segments[crate::core::seg::CS] = Segment::from_descriptor(0x33, 0x00af_fb00_0000_ffff);
    core.segments[crate::core::seg::SS] = Segment::from_descriptor(0x2b, 0x00cf_f300_0000_ffff);
    core.update_mode();
}

#[test]
fn one_code_page_at_two_linear_addresses_computes_with_each() {
    const OTHER: u64 = WINDOW + 0x2000;
    for user in [false, true] {
        both(|translate| {
            // CALL RBX; CALL RBP; DEC ECX; JNZ to the start; HLT, which a user may not.
            let mut cpu = cpu(&[0xff, 0xd3, 0xff, 0xd5, 0xff, 0xc9, 0x75, 0xf8, 0xf4], translate);
            let memory = cpu.core.ram.memory().clone();
            for number in 0..4 {
                map(&memory, SPACES[0], number, (PAGES[0] + number % 2 * 0x1000) | RWX);
            }
            // LEA RAX, [RIP]; ADD R8, RAX; MOV RAX, [RIP + 0x6f]; ADD R9, RAX; JMP to the next page's start.
            let first = [
                0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x49, 0x01, 0xc0, 0x48, 0x8b, 0x05, 0x6f, 0, 0, 0, 0x49, 0x01, 0xc1,
                0xe9, 0xe7, 0x0f, 0, 0,
            ];
            // CALL the next instruction; POP RAX; ADD R10, RAX; RET.
            let second = [0xe8, 0, 0, 0, 0, 0x58, 0x49, 0x01, 0xc2, 0xc3];
            memory.write_slice(&first, GuestAddress(PAGES[0])).unwrap();
            memory.write_obj(3u64, GuestAddress(PAGES[0] + 0x80)).unwrap();
            memory.write_slice(&second, GuestAddress(PAGES[0] + 0x1000)).unwrap();
            cpu.core.gpr[gpr::RBP] = OTHER;
            if user {
                enter_user_mode(&mut cpu);
            }
            assert_eq!(cpu.run(100_000), if user { Exit::Shutdown } else { Exit::Halted });
            let expected = [40 * (WINDOW + OTHER + 14), 80 * 3, 40 * (WINDOW + OTHER + 0x200a)];
            assert_eq!(cpu.core.gpr[8..11], expected, "user: {user}, translate: {translate}");
        });
    }
}

#[test]
fn a_page_that_dma_fills_anew_runs_its_new_code() {
    both(|translate| {
        let mut cpu = cpu(&[0xff, 0xd3, 0xff, 0xc9, 0x75, 0xfa, 0xf4], translate);
        let memory = cpu.core.ram.memory().clone();
        map(&memory, SPACES[0], 0, PAGES[0] | RWX);
        assert_eq!(cpu.run(100_000), Exit::Halted);
        memory.write_slice(&INC_R9_RET, GuestAddress(PAGES[0])).unwrap();
        cpu.core.halted = false;
        (cpu.core.rip, cpu.core.gpr[gpr::RCX]) = (CODE, 40);
        assert_eq!(cpu.run(100_000), Exit::Halted);
        assert_eq!(counts(&cpu), [40, 40], "translate: {translate}");
    });
}

#[test]
fn code_that_another_cpu_overwrites_is_executed_as_written() {
    both(|translate| {
        let mut first = cpu(&[0xff, 0xd3, 0xff, 0xc9, 0x75, 0xfa, 0xf4], translate);
        let memory = first.core.ram.memory().clone();
        let group = CpuGroup::new(2);
        first.core.link = group.link(0);
        map(&memory, SPACES[0], 0, PAGES[0] | RWX);
        // MOV [RDI], RDX; HLT.
        const WRITER: u64 = CODE + 0x5000;
        memory.write_slice(&[0x48, 0x89, 0x17, 0xf4], GuestAddress(WRITER)).unwrap();
        let mut second = Cpu::new(Core::new(Ram::new(&memory), Box::new(Nothing), group.link(1)));
        second.core.load_state(&first.core.save_state());
        second.core.rip = WRITER;
        second.core.gpr[gpr::RDI] = PAGES[0];
        second.core.gpr[gpr::RDX] = u64::from(u32::from_le_bytes(INC_R9_RET));
        // The page is in the writer's TLB before the other has decoded it.
        second.core.write(PAGES[0], u64::from(u32::from_le_bytes(INC_R8_RET))).unwrap();
        assert_eq!(first.run(100_000), Exit::Halted);
        assert_eq!(second.run(100), Exit::Halted);
        first.core.halted = false;
        (first.core.rip, first.core.gpr[gpr::RCX]) = (CODE, 40);
        assert_eq!(first.run(100_000), Exit::Halted);
        assert_eq!(counts(&first), [40, 40], "translate: {translate}");
    });
}
