//! Segment, control, debug, table and model-specific registers.

use x86::{cr0, cr4, efer};

use super::*;
use crate::core::seg;

/// A CPU at WRMSR with this register and value.
fn at_wrmsr(number: u32, value: u64) -> Cpu {
    let mut cpu = machine(&[0x0f, 0x30, 0xf4]);
    World::around(&mut cpu);
    (cpu.core.gpr[1], cpu.core.gpr[0], cpu.core.gpr[2]) = (number.into(), value & 0xffff_ffff, value >> 32);
    cpu
}

/// What RDMSR gives.
fn rdmsr(number: u32) -> Option<u64> {
    let mut cpu = machine(&[0x0f, 0x32, 0xf4]);
    World::around(&mut cpu);
    cpu.core.gpr[1] = number.into();
    run(&mut cpu);
    (cpu.core.rip == CODE + 3).then(|| cpu.core.gpr[0] | cpu.core.gpr[2] << 32)
}

#[test]
fn msrs_that_do_not_exist_are_gp() {
    assert_eq!(exception(&mut at_wrmsr(0x1234, 0)), (13, 0, CODE));
    assert_eq!((rdmsr(0x1234), rdmsr(0x6e0)), (None, None));
}

#[test]
fn amds_registers_exist_for_amd() {
    assert_eq!((rdmsr(0xc001_0015), rdmsr(0xc001_1029), rdmsr(0xc001_0010)), (Some(1 << 24), Some(2), Some(0)));
    assert_eq!(rdmsr(0x8b), Some(0x0100_0065));
    assert_eq!(rdmsr(0x3a), None, "IA32_FEAT_CTL is Intel's");
}

#[test]
fn values_that_a_register_does_not_take_are_gp() {
    for (number, value) in [
        (x86::msr::IA32_LSTAR, 0x8000_0000_0000),
        (x86::msr::IA32_FS_BASE, 0x8000_0000_0000),
        (x86::msr::IA32_KERNEL_GS_BASE, 0x8000_0000_0000),
        (x86::msr::IA32_PAT, 2),
        (x86::msr::IA32_TSC_AUX, 1 << 32),
        (x86::msr::IA32_EFER, efer::SCE | efer::LME | 1 << 1),
        (x86::msr::IA32_EFER, efer::SCE),
        (x86::msr::IA32_MTRR_DEF_TYPE, 2),
    ] {
        assert_eq!(exception(&mut at_wrmsr(number, value)), (13, 0, CODE), "{number:#x} = {value:#x}");
    }
}

#[test]
fn the_bases_of_fs_and_gs_are_msrs_and_swapgs_swaps() {
    // wrmsr; swapgs; hlt
    let mut cpu = at_wrmsr(x86::msr::IA32_GS_BASE, 0xffff_8000_0000_1000);
    put_code(&cpu, CODE + 2, &[0x0f, 0x01, 0xf8, 0xf4]);
    cpu.core.msrs.kernel_gs_base = 0x7000;
    run(&mut cpu);
    assert_eq!(cpu.core.segment_bases[seg::GS], 0x7000);
    assert_eq!(cpu.core.msrs.kernel_gs_base, 0xffff_8000_0000_1000);
}

#[test]
fn writing_the_tsc_moves_tsc_adjust() {
    let mut cpu = at_wrmsr(x86::msr::IA32_TSC, 1000);
    run(&mut cpu);
    assert_eq!(cpu.core.msrs.tsc_adjust, 1000);
}

#[test]
fn impossible_control_register_values_are_gp() {
    let base = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET;
    for (modrm, value, what) in [
        (0xc0, base & !cr0::PE, "PG without PE"),
        (0xc0, base & !cr0::PG, "PG cleared in 64-bit code"),
        (0xc0, base | cr0::NW, "NW without CD"),
        (0xc0, base | 1 << 32, "upper half of CR0"),
        (0xe0, cr4::OSFXSR, "PAE cleared in long mode"),
        (0xe0, cr4::PAE | cr4::PCIDE, "PCIDE is not offered"),
        (0xe0, cr4::PAE | cr4::LA57, "LA57 is not offered"),
        (0xd8, 1 << 40, "CR3 beyond the physical address"),
    ] {
        let mut cpu = machine(&[0x0f, 0x22, modrm]);
        cpu.core.gpr[0] = value;
        assert_eq!(exception(&mut cpu), (13, 0, CODE), "{what}");
    }
}

#[test]
fn cr8_is_the_platforms() {
    // mov cr8, rax; mov rbx, cr8; mov al, 16; mov cr8, rax
    let mut cpu = machine(&[0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc3, 0xb0, 16, 0x44, 0x0f, 0x22, 0xc0]);
    World::around(&mut cpu);
    cpu.core.gpr[0] = 5;
    assert_eq!(exception(&mut cpu), (13, 0, CODE + 10));
    assert_eq!(cpu.core.gpr[3], 5);
}

#[test]
fn a_cr3_write_drops_stale_translations() {
    // mov rax, [0x40000000]; mov cr3, rbx; mov rax, [0x40000000]
    let load = [0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40];
    let mut cpu = machine(&[&load[..], &[0x0f, 0x22, 0xdb], &load, &[0xf4]].concat());
    put(&cpu, 0x2008, 0x83u64);
    put(&cpu, 0, 0x1111u64);
    // Another tree, whose second GiB is not there.
    put(&cpu, 0x6000, 0x7003u64);
    put(&cpu, 0x7000, 0x83u64);
    cpu.core.gpr[3] = 0x6000;
    assert_eq!(exception(&mut cpu), (14, 0, CODE + 11));
    assert_eq!(cpu.core.gpr[0], 0x1111);
}

#[test]
fn invlpg_drops_one_page_even_of_a_large_mapping() {
    // mov rax, [0x40000000]; mov [rbx], rcx (unmaps it); mov rax, [0x40000000]; invlpg [0x40001000]; mov rax, [0x40000000]
    let load = [0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40];
    let invlpg = [0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0, 0x40];
    let mut cpu = machine(&[&load[..], &[0x48, 0x89, 0x0b], &load, &invlpg, &load].concat());
    put(&cpu, 0x2008, 0x83u64);
    cpu.core.gpr[3] = 0x2008;
    assert_eq!(exception(&mut cpu), (14, 0, CODE + 8 + 3 + 8 + 8));
}

#[test]
fn general_detect_traps_an_access_to_a_debug_register_once() {
    // mov rax, dr0
    let mut cpu = machine(&[0x0f, 0x21, 0xc0]);
    cpu.core.dr7 |= x86::dr7::GD;
    assert_eq!(vector(&mut cpu), 1);
    assert_eq!((stack(&cpu, 0), cpu.core.dr6 & x86::dr6::BD), (CODE, x86::dr6::BD));
    assert_eq!(cpu.core.dr7 & x86::dr7::GD, 0);
}

#[test]
fn ltr_marks_the_tss_busy_and_takes_it_only_once() {
    // ltr ax; ltr ax
    let mut cpu = machine(&[0x0f, 0x00, 0xd8, 0x0f, 0x00, 0xd8]);
    cpu.core.gpr[0] = TR.into();
    assert_eq!(exception(&mut cpu), (13, TR.into(), CODE + 3));
    assert_eq!(get::<u8>(&cpu, GDT + u64::from(TR) + 5), 0x8b);
    assert_eq!((cpu.core.tr.base, cpu.core.tr.limit), (TSS, 0x67));
}

#[test]
fn a_data_segment_load_checks_sets_accessed_and_null_clears_the_base() {
    // mov fs, eax; mov gs, ecx; hlt
    let mut cpu = machine(&[0x8e, 0xe0, 0x8e, 0xe9, 0xf4]);
    put(&cpu, GDT + 0x48, 0x00cf_9212_3400_ffffu64);
    cpu.core.gdtr.limit = 0x4f;
    cpu.core.gpr[0] = 0x48;
    cpu.core.set_segment_base(seg::GS, 0x1000);
    run(&mut cpu);
    assert_eq!((cpu.core.segment_bases[seg::FS], cpu.core.segment_bases[seg::GS]), (0x12_3400, 0));
    assert_eq!(get::<u8>(&cpu, GDT + 0x4d), 0x93);

    // DS with the kernel's segment, from CPL 3.
    let mut cpu = user_machine(&[0x8e, 0xd8]);
    cpu.core.gpr[0] = u64::from(SS | 3);
    assert_eq!(exception(&mut cpu), (13, SS.into(), CODE));
}

#[test]
fn push_and_pop_of_fs_move_eight_bytes_in_64_bit_code() {
    // push fs; pop gs; hlt
    let mut cpu = machine(&[0x0f, 0xa0, 0x0f, 0xa9, 0xf4]);
    cpu.core.segments[seg::FS].selector = SS;
    run(&mut cpu);
    assert_eq!((cpu.core.gpr[4], cpu.core.segments[seg::GS].selector), (CODE, SS));
    assert_eq!(get::<u64>(&cpu, CODE - 8), u64::from(SS));
}

#[test]
fn lgdt_and_sgdt_carry_ten_bytes() {
    // lgdt [rax]; sgdt [rbx]; hlt
    let mut cpu = machine(&[0x0f, 0x01, 0x10, 0x0f, 0x01, 0x03, 0xf4]);
    put(&cpu, 0x8000, 0x1fu16);
    put(&cpu, 0x8002, 0xffff_8000_0000_3000u64);
    (cpu.core.gpr[0], cpu.core.gpr[3]) = (0x8000, 0x8100);
    run(&mut cpu);
    assert_eq!(cpu.core.gdtr, DescriptorTable { base: 0xffff_8000_0000_3000, limit: 0x1f });
    assert_eq!((get::<u16>(&cpu, 0x8100), get::<u64>(&cpu, 0x8102)), (0x1f, 0xffff_8000_0000_3000));
}

#[test]
fn lar_and_lsl_tell_of_a_descriptor_and_verw_of_its_rights() {
    // lar ebx, ax; lsl ecx, ax; verw ax; setz dl would be integer's; hlt
    let mut cpu = machine(&[0x0f, 0x02, 0xd8, 0x0f, 0x03, 0xc8, 0x0f, 0x00, 0xe8, 0xf4]);
    cpu.core.gpr[0] = SS.into();
    run(&mut cpu);
    assert_eq!((cpu.core.gpr[3], cpu.core.gpr[1], cpu.core.flags.zf()), (0x00cf_9300, 0xffff_ffff, true));
    let mut cpu = machine(&[0x0f, 0x00, 0xe8, 0xf4]);
    cpu.core.gpr[0] = CS64.into();
    run(&mut cpu);
    assert!(!cpu.core.flags.zf(), "code cannot be written");
}

#[test]
fn xsetbv_takes_only_consistent_components() {
    for (value, good) in [(7, true), (3, true), (1, true), (5, false), (6, false), (0xf, false)] {
        // xsetbv; hlt
        let mut cpu = machine(&[0x0f, 0x01, 0xd1, 0xf4]);
        World::around(&mut cpu);
        cpu.core.gpr[0] = value;
        run(&mut cpu);
        assert_eq!(cpu.core.rip == CODE + 4, good, "{value:#x}");
    }
}

#[test]
fn cpuid_mirrors_osxsave_and_the_size_of_what_is_enabled() {
    // cpuid; hlt
    let mut cpu = machine(&[0x0f, 0xa2, 0xf4]);
    World::around(&mut cpu);
    cpu.core.gpr[0] = 0xd;
    cpu.core.xcr0 = 3;
    run(&mut cpu);
    assert_eq!(cpu.core.gpr[3], 576);
    let mut cpu = machine(&[0x0f, 0xa2, 0xf4]);
    cpu.core.gpr[0] = 1;
    run(&mut cpu);
    assert_eq!(cpu.core.gpr[1] >> 27 & 1, 1);
}

#[test]
fn rdrand_sets_carry_and_differs_each_time() {
    // rdrand rax; rdrand rbx; hlt
    let mut cpu = machine(&[0x48, 0x0f, 0xc7, 0xf0, 0x48, 0x0f, 0xc7, 0xf3, 0xf4]);
    run(&mut cpu);
    assert_ne!(cpu.core.gpr[0], cpu.core.gpr[3]);
    assert!(cpu.core.flags.cf());
}

#[test]
fn rep_outsb_and_insb_move_the_registers_with_each_byte() {
    // mov edx, 0x55; mov ecx, 300; rep insb; hlt
    let mut cpu = machine(&[0xba, 0x55, 0, 0, 0, 0xb9, 0x2c, 1, 0, 0, 0xf3, 0x6c, 0xf4]);
    World::around(&mut cpu);
    cpu.core.gpr[7] = 0x8000;
    run(&mut cpu);
    assert_eq!((cpu.core.gpr[1], cpu.core.gpr[7]), (0, 0x8000 + 300));
    assert_eq!((get::<u8>(&cpu, 0x8000 + 299), get::<u8>(&cpu, 0x8000 + 300)), (0x55, 0));
}
