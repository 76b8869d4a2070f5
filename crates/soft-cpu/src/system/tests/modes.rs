//! Real mode, protected mode and the way between them and long mode.

use x86::{CpuState, cr0, cr4, efer};

use super::*;
use crate::core::seg;

/// A CPU that a start-up IPI with vector 8 has put at 0800:0000, over the machine's tables.
fn started(code: &[u8]) -> Cpu {
    let mut cpu = machine(&[]);
    put_code(&cpu, 0x8000, code);
    let mut state = CpuState::reset(true);
    state.cs = Segment::real_mode(0x800);
    state.cs.attributes |= Segment::CODE;
    state.rip = 0;
    cpu.core.load_state(&state);
    cpu
}

/// Protected mode without paging at CPL 0, 32-bit flat segments, a 32-bit IDT whose handlers halt.
fn protected_machine(code: &[u8]) -> Cpu {
    let mut cpu = machine(code);
    let mut state = CpuState::reset(true);
    state.cr0 = cr0::PE | cr0::ET | cr0::NE;
    state.cs = Segment::from_descriptor(CS32, DESCRIPTORS[1]);
    let data = Segment::from_descriptor(SS, DESCRIPTORS[3]);
    (state.ds, state.es, state.ss) = (data, data, data);
    state.gdtr = DescriptorTable { base: GDT, limit: 0x47 };
    state.idtr = DescriptorTable { base: IDT, limit: 0x7ff };
    state.tr = Segment { selector: TR, base: TSS, limit: 0x67, attributes: 0x8b };
    state.rip = CODE;
    state.gprs[4] = CODE;
    for vector in 0..=255u8 {
        let target = handler(vector);
        let gate = (target & 0xffff) | u64::from(CS32) << 16 | 0xee00 << 32 | (target & 0xffff_0000) << 32;
        put(&cpu, IDT + u64::from(vector) * 8, gate);
    }
    put(&cpu, TSS + 4, RSP0 as u32);
    put(&cpu, TSS + 8, u32::from(SS));
    cpu.core.load_state(&state);
    cpu
}

fn stack32(cpu: &Cpu, n: u64) -> u32 {
    get(cpu, cpu.core.gpr[4] + n * 4)
}

#[test]
fn a_started_processor_goes_through_protected_to_long_mode_as_linuxs_trampoline_does() {
    // 16 bits: cli; lgdtl cs:[0x40]; mov eax, 1; mov cr0, eax; jmp far 0x08:0x8100
    let mut cpu = started(&[
        0xfa, 0x66, 0x2e, 0x0f, 0x01, 0x16, 0x40, 0x00, 0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0, 0x81,
        0, 0, 0x08, 0,
    ]);
    put(&cpu, 0x8040, 0x47u16);
    put(&cpu, 0x8042, GDT as u32);
    // 32 bits: mov eax, 0x18; mov ds, eax; mov ss, eax; mov eax, PAE; mov cr4, eax; mov eax, 0x1000; mov cr3, eax;
    // mov ecx, EFER; xor edx, edx; mov eax, LME|NXE|SCE; wrmsr; mov eax, PG|WP|PE; mov cr0, eax; jmp far 0x10:0x8200
    let mut code = vec![0xb8, 0x18, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xd0];
    code.extend([0xb8, cr4::PAE as u8, 0, 0, 0, 0x0f, 0x22, 0xe0, 0xb8, 0, 0x10, 0, 0, 0x0f, 0x22, 0xd8]);
    code.extend([0xb9, 0x80, 0, 0, 0xc0, 0x31, 0xd2, 0xb8, 1, 9, 0, 0, 0x0f, 0x30]);
    code.extend([0xb8, 1, 0, 1, 0x80, 0x0f, 0x22, 0xc0, 0xea, 0, 0x82, 0, 0, 0x10, 0]);
    put_code(&cpu, 0x8100, &code);
    // 64 bits: mov rax, imm64; hlt
    put_code(&cpu, 0x8200, &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xf4]);
    run(&mut cpu);
    assert_eq!((cpu.core.rip, cpu.core.gpr[0]), (0x820b, 0x0807_0605_0403_0201));
    assert_eq!(cpu.core.efer, efer::SCE | efer::LME | efer::LMA | efer::NXE);
    assert_eq!((cpu.core.segments[seg::CS].selector, cpu.core.cpl), (CS64, 0));
}

#[test]
fn a_real_mode_interrupt_pushes_three_words_and_iret_returns() {
    // mov sp, 0x1000; int 0x21; hlt
    let mut cpu = started(&[0xbc, 0, 0x10, 0xcd, 0x21, 0xf4]);
    // 0000:9000: hlt; iret
    put(&cpu, 0x21 * 4, 0x0000_9000u32);
    put_code(&cpu, 0x9000, &[0xf4, 0xcf]);
    run(&mut cpu);
    assert_eq!((cpu.core.rip, cpu.core.segments[seg::CS].base, cpu.core.gpr[4]), (0x9001, 0, 0x1000 - 6));
    assert_eq!((get::<u16>(&cpu, 0xffa), get::<u16>(&cpu, 0xffc)), (5, 0x800));
    cpu.core.halted = false;
    run(&mut cpu);
    assert_eq!((cpu.core.rip, cpu.core.segments[seg::CS].selector, cpu.core.gpr[4]), (6, 0x800, 0x1000));
}

#[test]
fn real_mode_segments_are_paragraphs_and_keep_their_limits() {
    // mov ax, 0x1234; mov ds, ax; hlt
    let mut cpu = started(&[0xb8, 0x34, 0x12, 0x8e, 0xd8, 0xf4]);
    cpu.core.segments[seg::DS].limit = 0xffff_ffff;
    run(&mut cpu);
    assert_eq!((cpu.core.segment_bases[seg::DS], cpu.core.segments[seg::DS].limit), (0x1_2340, 0xffff_ffff));
}

#[test]
fn an_access_past_the_real_mode_limit_is_gp_through_the_vector_table() {
    // mov ax, [0xffff]
    let mut cpu = started(&[0xa1, 0xff, 0xff]);
    put(&cpu, 13 * 4, 0x0000_9000u32);
    put_code(&cpu, 0x9000, &[0xf4]);
    run(&mut cpu);
    assert_eq!(cpu.core.rip, 0x9001);
}

#[test]
fn a_32_bit_interrupt_from_cpl_3_switches_stacks_through_the_tss() {
    // push 0x2b; push USER_STACK; push 2; push 0x23; push CODE + 0x100; iretd
    let mut code = vec![0x6a, 0x2b, 0x68, 0, 0, 4, 0, 0x6a, 2, 0x6a, 0x23, 0x68];
    code.extend((CODE as u32 + 0x100).to_le_bytes());
    code.push(0xcf);
    let mut cpu = protected_machine(&code);
    // int 0x80
    put_code(&cpu, CODE + 0x100, &[0xcd, 0x80]);
    assert_eq!(vector(&mut cpu), 0x80);
    assert_eq!((cpu.core.cpl, cpu.core.gpr[4], cpu.core.segments[seg::SS].selector), (0, RSP0 - 20, SS));
    assert_eq!((stack32(&cpu, 0), stack32(&cpu, 1)), (CODE as u32 + 0x102, USER_CS32.into()));
    assert_eq!((stack32(&cpu, 3), stack32(&cpu, 4)), (USER_STACK as u32, USER_SS.into()));
}

#[test]
fn a_32_bit_fault_pushes_a_32_bit_error_code() {
    // mov eax, 0x1000; mov ds, eax
    let mut cpu = protected_machine(&[0xb8, 0, 0x10, 0, 0, 0x8e, 0xd8]);
    assert_eq!(vector(&mut cpu), 13);
    assert_eq!((stack32(&cpu, 0), stack32(&cpu, 1)), (0x1000, CODE as u32 + 5));
}

#[test]
fn pae_paging_outside_long_mode_uses_the_pdptes_that_cr3_loaded() {
    // mov cr3, ebx; mov cr4, ecx; mov cr0, edx; mov eax, [0x40000000]; hlt
    let mut cpu = protected_machine(&[0x0f, 0x22, 0xdb, 0x0f, 0x22, 0xe1, 0x0f, 0x22, 0xc2, 0xa1, 0, 0, 0, 0x40, 0xf4]);
    put(&cpu, 0x6000, 0x7001u64);
    put(&cpu, 0x6008, 0xa001u64);
    put(&cpu, 0x7000, 0x83u64);
    // 0x40000000 is 0x200000.
    put(&cpu, 0xa000, 0x20_0083u64);
    put(&cpu, 0x20_0000, 0xcafe_f00du32);
    (cpu.core.gpr[3], cpu.core.gpr[1]) = (0x6000, cr4::PAE);
    cpu.core.gpr[2] = cr0::PE | cr0::PG | cr0::NE;
    run(&mut cpu);
    assert_eq!((cpu.core.rip, cpu.core.gpr[0]), (CODE + 15, 0xcafe_f00d));
}

#[test]
fn paging_cannot_start_in_long_mode_from_a_64_bit_segment_or_without_pae() {
    // mov cr0, edx
    let mut cpu = protected_machine(&[0x0f, 0x22, 0xc2]);
    cpu.core.efer = efer::LME;
    cpu.core.gpr[2] = cr0::PE | cr0::PG;
    assert_eq!(vector(&mut cpu), 13);
}

#[test]
fn virtual_8086_mode_is_entered_by_iretd_and_left_by_an_interrupt() {
    // iretd
    let mut cpu = protected_machine(&[0xcf]);
    cpu.core.gpr[4] = 0x8_0000;
    let frame = [0u32, 0x900, 0x2_0002, 0x1000, 0x200, 0x11, 0x22, 0x33, 0x44];
    for (n, word) in frame.into_iter().enumerate() {
        put(&cpu, 0x8_0000 + n as u64 * 4, word);
    }
    // 0900:0000: ud2
    put_code(&cpu, 0x9000, &[0x0f, 0x0b]);
    assert_eq!(vector(&mut cpu), 6);
    assert_eq!((cpu.core.cpl, cpu.core.gpr[4]), (0, RSP0 - 36));
    let pushed: Vec<u32> = (0..9).map(|n| stack32(&cpu, n)).collect();
    assert_eq!(pushed[..2], [0, 0x900]);
    assert_eq!(pushed[3..], [0x1000, 0x200, 0x11, 0x22, 0x33, 0x44]);
    assert_eq!(cpu.core.segments[seg::DS].selector, 0);
}
