//! 32-bit user code in generated code, beside what the comparison with the host shows: segments that begin elsewhere or end early, addresses that wrap, calls
//! and returns, modes that change. Each program ends in the same state whether it is translated or interpreted.

use vm_memory::{Bytes, GuestAddress};
use x86::{Segment, gpr};

use super::vector_tests::{DATA, End, both_ways};
use crate::core::{DecodeMode, seg};
use crate::run::{Cpu, Exit};
use crate::testing::CODE;

/// Data of user mode, from zero to 4 GiB.
const FLAT: u64 = 0x00cf_f300_0000_ffff;

/// A data segment of user mode that begins at `base`; `limit` is its last byte, or its last page's number with the attribute G.
fn data(base: u64, limit: u32, attributes: u16) -> Segment {
    let raw = u64::from(limit) & 0xffff | (u64::from(limit) & 0xf_0000) << 32 | u64::from(attributes) << 40;
    Segment { base, ..Segment::from_descriptor(0x2b, raw) }
}

/// GS without a limit.
fn open_gs(base: u64) -> Segment {
    data(base, 0xf_ffff, 0xc0f3)
}

/// Runs `code` both ways in compatibility mode, with this GS.
fn compatibility(code: &[u8], gs: Segment, prepare: impl Fn(&mut Cpu)) -> End {
    both_ways(code, |cpu| {
        let core = &mut cpu.core;
        let memory = core.ram.memory();
        // The same tables for user mode.
        memory.write_obj(0x2007_u64, GuestAddress(0x1000)).unwrap();
        memory.write_obj(0x87_u64, GuestAddress(0x2000)).unwrap();
        let mut state = core.save_state();
        let flat = Segment::from_descriptor(0x2b, FLAT);
        state.cs = Segment::from_descriptor(0x23, 0x00cf_fb00_0000_ffff);
        (state.ds, state.es, state.ss, state.gs) = (flat, flat, flat, gs);
        core.load_state(&state);
        assert!(core.mode.has(DecodeMode::FLAT32));
        prepare(cpu);
    })
}

fn word(end: &End, at: u64) -> u32 {
    let at = (at - DATA) as usize;
    u32::from_le_bytes(end.data[at..at + 4].try_into().unwrap())
}

/// How programs end: in user mode it is #GP, and without an interrupt table that is a triple fault.
const HLT: u8 = 0xf4;

#[test]
fn operands_relative_to_gs_are_found_also_below_its_base() {
    // mov ecx, 100; l: mov eax, gs:[0x10]; inc eax; mov gs:[0x10], eax; add gs:[ebx - 8], eax; mov gs:[ebx * 2 - 24], ecx; dec ecx; jnz l
    let code = [
        0xb9, 0x64, 0, 0, 0, 0x65, 0xa1, 0x10, 0, 0, 0, 0x40, 0x65, 0xa3, 0x10, 0, 0, 0, 0x65, 1, 0x43, 0xf8, 0x65,
        0x89, 0x0c, 0x5d, 0xe8, 0xff, 0xff, 0xff, 0x49, 0x75, 0xe4, HLT,
    ];
    let end = compatibility(&code, open_gs(DATA + 0x100), |cpu| cpu.core.gpr[gpr::RBX] = 4);
    assert_eq!(word(&end, DATA + 0x110), 100);
    // Four bytes below the base, and 16.
    assert_eq!((word(&end, DATA + 0xfc), word(&end, DATA + 0xf0)), (5050, 1));
    assert_eq!(end.exit, Exit::Shutdown);
}

#[test]
fn an_operand_that_goes_on_past_the_end_of_an_open_segment_faults() {
    // mov ecx, 100; l: mov eax, gs:[ebx]; inc ebx; dec ecx; jnz l
    let code = [0xb9, 0x64, 0, 0, 0, 0x65, 0x8b, 3, 0x43, 0x49, 0x75, 0xf9, HLT];
    // Where its last three bytes lie is mapped, and no page ends there.
    let end = compatibility(&code, open_gs(DATA + 0x800), |cpu| cpu.core.gpr[gpr::RBX] = 0xffff_ffc0);
    assert_eq!((end.rip, end.gprs[gpr::RBX]), (CODE + 5, 0xffff_fffd));
}

#[test]
fn the_limit_of_gs_is_kept() {
    let code = [0xb9, 0x64, 0, 0, 0, 0x65, 0x8b, 3, 0x43, 0x49, 0x75, 0xf9, HLT];
    let end = compatibility(&code, data(DATA, 0x20, 0x40f3), |cpu| cpu.core.gpr[gpr::RBX] = 0);
    assert_eq!((end.rip, end.gprs[gpr::RBX]), (CODE + 5, 0x1e));
}

#[test]
fn addresses_wrap_at_4_gib_and_the_upper_halves_of_registers_do_not_count() {
    // mov ecx, 100; l: mov eax, [esi + edi]; add [esi + edi + 8], eax; add dword [esi + edi + 12], 3; push ecx; push dword [esi + edi + 12];
    // pop dword [esi + edi + 16]; pop edx; dec ecx; jnz l
    let code = [
        0xb9, 0x64, 0, 0, 0, 0x8b, 4, 0x3e, 1, 0x44, 0x3e, 8, 0x83, 0x44, 0x3e, 0x0c, 3, 0x51, 0xff, 0x74, 0x3e, 0x0c,
        0x8f, 0x44, 0x3e, 0x10, 0x5a, 0x49, 0x75, 0xe7, HLT,
    ];
    let end = compatibility(&code, Segment::default(), |cpu| {
        cpu.core.gpr[gpr::RSI] = 0xdead_beef_ffff_f000;
        cpu.core.gpr[gpr::RDI] = 0x1234_5678_0000_1000 + DATA;
        cpu.core.gpr[gpr::RSP] |= 0x7777_0000_0000;
        cpu.core.ram.memory().write_obj(7_u32, GuestAddress(DATA)).unwrap();
    });
    assert_eq!([8, 12, 16].map(|at| word(&end, DATA + at)), [700, 300, 300]);
}

#[test]
fn a_segment_that_is_loaded_in_a_loop_ends_its_translations() {
    // mov ecx, 100; xor edx, edx; l: mov eax, [esi]; cmp ecx, 50; jne n; mov ds, edx; n: dec ecx; jnz l
    let code = [0xb9, 0x64, 0, 0, 0, 0x31, 0xd2, 0x8b, 6, 0x83, 0xf9, 0x32, 0x75, 2, 0x8e, 0xda, 0x49, 0x75, 0xf4, HLT];
    let end = compatibility(&code, Segment::default(), |cpu| cpu.core.gpr[gpr::RSI] = DATA);
    assert_eq!((end.rip, end.gprs[gpr::RCX]), (CODE + 7, 49));
}

#[test]
fn a_branch_of_16_bits_loses_the_upper_half_of_the_instruction_pointer() {
    // mov ecx, 100; l: dec ecx; jnz l; data16 jmp to the next
    let code = [0xb9, 0x64, 0, 0, 0, 0x49, 0x75, 0xfd, 0x66, 0xeb, 0, 0x90];
    let end = compatibility(&code, Segment::default(), |cpu| {
        cpu.core.ram.memory().write_slice(&[HLT; 64], GuestAddress(0)).unwrap();
    });
    assert_eq!(end.rip, (CODE + 11) & 0xffff);
}

#[test]
fn calls_and_returns_find_their_way() {
    // mov ecx, 100; l: push ecx; push 7; call f; mov eax, g - start; add eax, start; call eax; add esi, eax; pop ecx; dec ecx; jnz l; hlt;
    // f: push ebp; mov ebp, esp; mov edx, [ebp + 8]; add edi, edx; test dl, 1; jz n; add edi, 0x11; n: leave; ret 4; g: lea eax, [edi + edx * 2 - 5]; ret
    let code = [
        0xb9, 0x64, 0, 0, 0, 0x51, 0x6a, 7, 0xe8, 0x13, 0, 0, 0, 0xb8, 0x34, 0, 0, 0, 5, 0, 0, 0x10, 0, 0xff, 0xd0, 1,
        0xc6, 0x59, 0x49, 0x75, 0xe6, HLT, 0x55, 0x89, 0xe5, 0x8b, 0x55, 8, 1, 0xd7, 0xf6, 0xc2, 1, 0x74, 3, 0x83,
        0xc7, 0x11, 0xc9, 0xc2, 4, 0, 0x8d, 0x44, 0x57, 0xfb, 0xc3,
    ];
    let end = compatibility(&code, Segment::default(), |cpu| {
        // What a call through a register must not see.
        cpu.core.gpr[gpr::RAX] = u64::MAX;
        (cpu.core.gpr[gpr::RSI], cpu.core.gpr[gpr::RDI]) = (0, 0);
    });
    assert_eq!((end.gprs[gpr::RDI], end.gprs[gpr::RSP]), (100 * 0x18, CODE));
    assert_eq!(end.gprs[gpr::RSI], (1..=100).map(|n| n * 0x18 + 9).sum::<u64>());
}

#[test]
fn a_push_of_memory_that_faults_moves_no_stack_pointer() {
    // mov ecx, 100; l: push dword [esi]; pop edx; dec ecx; jnz l; mov esp, 0x50000000; push dword [esi]
    let code = [0xb9, 0x64, 0, 0, 0, 0xff, 0x36, 0x5a, 0x49, 0x75, 0xfa, 0xbc, 0, 0, 0, 0x50, 0xff, 0x36, HLT];
    let end = compatibility(&code, Segment::default(), |cpu| cpu.core.gpr[gpr::RSI] = DATA);
    assert_eq!((end.rip, end.gprs[gpr::RSP]), (CODE + 16, 0x5000_0000));
}

#[test]
fn a_jump_back_to_the_page_before_is_a_jump_back() {
    // At the first page's end: l: inc eax; jmp m. On the second: m: dec ecx; jnz l; hlt.
    let mut code = vec![0xb9, 0x64, 0, 0, 0, 0xe9];
    code.extend((0xff0_i32 - 10).to_le_bytes());
    code.resize(0xff0, HLT);
    code.extend([0x40, 0xeb, 0x0d]);
    code.resize(0x1000, HLT);
    code.extend([0x49, 0x75, 0xed, HLT]);
    let end = compatibility(&code, Segment::default(), |cpu| cpu.core.gpr[gpr::RAX] = 0);
    assert_eq!((end.gprs[gpr::RAX], end.rip), (100, CODE + 0x1003));
}

#[test]
fn segments_are_flat_only_if_none_of_them_refuses_anything() {
    let mut cpu = crate::testing::long_mode(&[HLT]);
    let mut mode_with = |number: usize, segment: Segment| {
        let flat = Segment::from_descriptor(0x2b, FLAT);
        let core = &mut cpu.core;
        core.cpl = 3;
        core.segments = [flat; 6];
        core.segments[seg::CS] = Segment::from_descriptor(0x23, 0x00cf_fb00_0000_ffff);
        core.segments[number] = segment;
        core.update_mode();
        let mode = core.mode;
        core.update_code_mode();
        assert_eq!(core.mode, mode);
        mode
    };
    let open = DecodeMode::FLAT32 | DecodeMode::OPEN_FS | DecodeMode::OPEN_GS;
    assert!(mode_with(seg::GS, open_gs(0x1000)).has(open));
    for refusing in [
        Segment::default(),
        data(0x1000, 0xf_ffff, 0xc0f3),
        data(0, 0xf_fffe, 0xc0f3),
        // Read-only, expand-down, code, not present.
        data(0, 0xf_ffff, 0xc0f1),
        data(0, 0xf_ffff, 0xc0f7),
        data(0, 0xf_ffff, 0xc0fb),
        data(0, 0xf_ffff, 0xc073),
    ] {
        for number in [seg::DS, seg::ES, seg::SS] {
            assert!(!mode_with(number, refusing).has(DecodeMode::FLAT32), "{number}: {refusing:x?}");
        }
        if refusing.base == 0 {
            let mode = mode_with(seg::FS, refusing);
            assert!(mode.has(DecodeMode::FLAT32) && !mode.has(DecodeMode::OPEN_FS), "{refusing:x?}");
        }
    }
}

#[test]
fn the_same_forms_in_64_bit_code_are_translated_too() {
    // mov ecx, 100; l: push qword [rbx]; pop qword [rbx + 8]; mov eax, [esi - 4]; add [esi + 8], rax; lea rdx, [esi + esi - 1]; push qword [rbx + 16];
    // add [rbx + 24], rdx; pop rdi; mov eax, [0x200040]; inc eax; mov [0x200040], eax; mov al, [0x200048]; dec ecx; jnz l
    let code = [
        0xb9, 0x64, 0, 0, 0, 0xff, 0x33, 0x8f, 0x43, 8, 0x67, 0x8b, 0x46, 0xfc, 0x67, 0x48, 1, 0x46, 8, 0x67, 0x48,
        0x8d, 0x54, 0x36, 0xff, 0xff, 0x73, 0x10, 0x48, 1, 0x53, 0x18, 0x5f, 0xa1, 0x40, 0, 0x20, 0, 0, 0, 0, 0, 0xff,
        0xc0, 0xa3, 0x40, 0, 0x20, 0, 0, 0, 0, 0, 0xa0, 0x48, 0, 0x20, 0, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xc3, HLT,
    ];
    let end = both_ways(&code, |cpu| {
        cpu.core.gpr[gpr::RSI] = 0xdead_beef_0000_0100 + DATA;
        cpu.core.ram.memory().write_obj(7_u32, GuestAddress(DATA + 0xfc)).unwrap();
    });
    assert_eq!((end.exit, word(&end, DATA + 0x40), word(&end, DATA + 0x108)), (Exit::Halted, 100, 700));
    assert_eq!(end.gprs[gpr::RDX], 2 * (DATA + 0x100) - 1);
}
