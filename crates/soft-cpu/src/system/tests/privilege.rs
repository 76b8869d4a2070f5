//! Changes of privilege: INT, IRETQ, SYSCALL, far transfers, and what CPL 3 must not do.

use x86::rflags;

use super::*;

const CANONICAL_HOLE: u64 = 0x0000_8000_0000_0000;

/// A CPU at IRETQ with this frame: RIP, CS, RFLAGS, RSP, SS.
fn at_iretq(frame: [u64; 5]) -> Cpu {
    let cpu = machine(&[0x48, 0xcf]);
    let mut cpu = cpu;
    cpu.core.gpr[4] = 0x8_0000;
    for (n, word) in frame.into_iter().enumerate() {
        put(&cpu, 0x8_0000 + n as u64 * 8, word);
    }
    cpu
}

#[test]
fn int_through_a_gate_of_dpl_3_works_from_user_mode_and_iretq_comes_back() {
    // int 0x80; ud2
    let mut cpu = user_machine(&[0xcd, 0x80, 0x0f, 0x0b]);
    put_gate(&cpu, 0x80, handler(0x80), 14, 3, 0);
    put_code(&cpu, handler(0x80), &[0x48, 0xcf]);
    assert_eq!(exception(&mut cpu), (6, 0, CODE + 2));
    assert_eq!((stack(&cpu, 1), stack(&cpu, 3), stack(&cpu, 4)), (USER_CS64.into(), USER_STACK, USER_SS.into()));
}

#[test]
fn int_through_a_gate_of_dpl_0_is_gp_from_user_mode_without_ext() {
    let mut cpu = user_machine(&[0xcd, 0x80]);
    assert_eq!(exception(&mut cpu), (13, 0x80 * 8 + 2, CODE));
}

#[test]
fn iretq_to_the_same_level_pops_five_words_and_takes_a_null_ss() {
    let mut cpu = at_iretq([handler(100), CS64.into(), 2 | rflags::IF, 0x9_0000, 0]);
    assert_eq!(vector(&mut cpu), 100);
    assert_eq!((cpu.core.gpr[4], cpu.core.segments[2].selector), (0x9_0000, 0));
    assert_ne!(cpu.core.system_flags & rflags::IF, 0);
}

#[test]
fn iretq_to_user_mode_drops_segments_of_the_kernel() {
    let mut cpu = at_iretq([CODE + 0x100, USER_CS64.into(), 2, USER_STACK, USER_SS.into()]);
    put_code(&cpu, CODE + 0x100, &[0x0f, 0x0b]);
    assert_eq!(exception(&mut cpu), (6, 0, CODE + 0x100));
    assert_eq!(cpu.core.segments[3].selector, 0, "DS held a segment of DPL 0");
}

#[test]
fn iretq_to_compatibility_mode_runs_32_bit_code() {
    let mut cpu = at_iretq([CODE + 0x100, USER_CS32.into(), 2, USER_STACK, USER_SS.into()]);
    // inc eax (a REX prefix in 64-bit code); ud2
    put_code(&cpu, CODE + 0x100, &[0x40, 0x0f, 0x0b]);
    cpu.core.gpr[0] = 0xffff_ffff_0000_0001;
    assert_eq!(exception(&mut cpu), (6, 0, CODE + 0x101));
    assert_eq!((cpu.core.gpr[0], stack(&cpu, 1)), (2, USER_CS32.into()));
}

#[test]
fn iretq_with_a_bad_frame_faults_at_the_iretq() {
    let good = [CODE, USER_CS64.into(), 2, USER_STACK, USER_SS.into()];
    let with = |n: usize, value: u64| {
        let mut frame = good;
        frame[n] = value;
        frame
    };
    for (frame, code, what) in [
        (with(0, CANONICAL_HOLE), 0, "rip not canonical"),
        (with(1, 0), 0, "null cs"),
        (with(1, SS.into()), SS.into(), "cs is data"),
        (with(1, 0x1000), 0x1000, "cs beyond the table"),
        (with(4, 3), 0, "null ss for user code"),
        (with(4, SS.into()), SS.into(), "ss of another level"),
    ] {
        assert_eq!(exception(&mut at_iretq(frame)), (13, code, CODE), "{what}");
    }
}

#[test]
fn iretq_with_nt_is_gp_in_long_mode() {
    let mut cpu = at_iretq([CODE, CS64.into(), 2, 0x9_0000, 0]);
    cpu.core.system_flags |= rflags::NT;
    assert_eq!(exception(&mut cpu), (13, 0, CODE));
}

#[test]
fn syscall_and_sysretq_make_a_round_trip() {
    // syscall; ud2
    let mut cpu = user_machine(&[0x0f, 0x05, 0x0f, 0x0b]);
    cpu.core.msrs.fmask = rflags::IF | rflags::DF;
    cpu.core.system_flags |= rflags::IF | rflags::DF;
    // hlt; sysretq
    put_code(&cpu, handler(200), &[0xf4, 0x48, 0x0f, 0x07]);
    assert_eq!(vector(&mut cpu), 200);
    assert_eq!((cpu.core.cpl, cpu.core.segments[1].selector, cpu.core.segments[2].selector), (0, CS64, SS));
    assert_eq!((cpu.core.gpr[1], cpu.core.gpr[4]), (CODE + 2, USER_STACK));
    assert_eq!(cpu.core.system_flags & (rflags::IF | rflags::DF), 0);
    assert_eq!(cpu.core.gpr[11] & (rflags::IF | rflags::DF), rflags::IF | rflags::DF);
    cpu.core.halted = false;
    assert_eq!(exception(&mut cpu), (6, 0, CODE + 2));
    assert_eq!((stack(&cpu, 1), stack(&cpu, 4)), (USER_CS64.into(), USER_SS.into()));
    assert_eq!(stack(&cpu, 2) & rflags::IF, rflags::IF);
}

#[test]
fn sysretq_to_an_address_that_is_not_canonical_faults_in_the_kernel() {
    let mut cpu = machine(&[0x48, 0x0f, 0x07]);
    cpu.core.gpr[1] = CANONICAL_HOLE;
    assert_eq!(exception(&mut cpu), (13, 0, CODE));
    assert_eq!(stack(&cpu, 2), u64::from(CS64));
}

#[test]
fn sysretl_enters_compatibility_mode() {
    let mut cpu = machine(&[0x0f, 0x07]);
    cpu.core.gpr[1] = CODE + 0x100;
    cpu.core.gpr[11] = 2;
    put_code(&cpu, CODE + 0x100, &[0x0f, 0x0b]);
    assert_eq!(exception(&mut cpu), (6, 0, CODE + 0x100));
    assert_eq!(stack(&cpu, 1), u64::from(USER_CS32));
}

#[test]
fn syscall_without_sce_is_ud() {
    let mut cpu = user_machine(&[0x0f, 0x05]);
    cpu.core.efer &= !x86::efer::SCE;
    assert_eq!(exception(&mut cpu), (6, 0, CODE));
}

#[test]
fn sysenter_and_sysexit_make_a_round_trip() {
    let mut cpu = user_machine(&[0x0f, 0x34]);
    cpu.core.msrs.sysenter_cs = CS64.into();
    cpu.core.msrs.sysenter_esp = 0x9_0000;
    cpu.core.msrs.sysenter_eip = handler(201);
    assert_eq!(vector(&mut cpu), 201);
    assert_eq!((cpu.core.cpl, cpu.core.gpr[4], cpu.core.segments[2].selector), (0, 0x9_0000, SS));
}

#[test]
fn privileged_instructions_are_gp_at_cpl_3() {
    for code in [
        &[0xf4][..],         // hlt
        &[0xfa],             // cli
        &[0xfb],             // sti
        &[0x0f, 0x20, 0xd8], // mov rax, cr3
        &[0x0f, 0x22, 0xd8], // mov cr3, rax
        &[0x0f, 0x21, 0xf8], // mov rax, dr7
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x32],       // rdmsr
        &[0x0f, 0x01, 0xf8], // swapgs
        &[0x0f, 0x06],       // clts
        &[0x0f, 0x09],       // wbinvd
        &[0x0f, 0x01, 0x38], // invlpg [rax]
        &[0x0f, 0x00, 0xd8], // ltr ax
        &[0x0f, 0x01, 0x10], // lgdt [rax]
        &[0xe4, 0x80],       // in al, 0x80
        &[0xee],             // out dx, al
        &[0x0f, 0x33],       // rdpmc
    ] {
        let mut cpu = user_machine(code);
        assert_eq!(cpu.run(100), Exit::Halted, "{code:x?}");
        assert_eq!((cpu.core.rip, stack(&cpu, 1)), (handler(13) + 1, CODE), "{code:x?}");
    }
}

#[test]
fn umip_hides_the_tables_from_user_mode() {
    // sidt [rsp-16]; ud2
    let code = [0x0f, 0x01, 0x4c, 0x24, 0xf0, 0x0f, 0x0b];
    assert_eq!(exception(&mut user_machine(&code)), (6, 0, CODE + 5));
    let mut cpu = user_machine(&code);
    cpu.core.cr4 |= x86::cr4::UMIP;
    assert_eq!(exception(&mut cpu), (13, 0, CODE));
}

#[test]
fn the_port_bitmap_of_the_tss_opens_single_ports() {
    // in al, 0x80; in al, 0x81
    let mut cpu = user_machine(&[0xe4, 0x80, 0xe4, 0x81]);
    World::around(&mut cpu);
    cpu.core.tr.limit = 0xff;
    put(&cpu, TSS + 102, 0x68u16);
    put(&cpu, TSS + 0x68 + 16, 0xfffeu16);
    assert_eq!(exception(&mut cpu), (13, 0, CODE + 2));
    assert_eq!(cpu.core.gpr[0] & 0xff, 0x80);
}

#[test]
fn a_far_return_goes_to_user_mode_and_a_call_gate_back() {
    // retfq
    let mut cpu = machine(&[0x48, 0xcb]);
    cpu.core.gpr[4] = 0x8_0000;
    for (n, word) in [CODE + 0x100, USER_CS64.into(), USER_STACK, USER_SS.into()].into_iter().enumerate() {
        put(&cpu, 0x8_0000 + n as u64 * 8, word);
    }
    // call far [rip+2]; ud2; far pointer to the gate
    put_code(&cpu, CODE + 0x100, &[0xff, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0x4b, 0]);
    let target = handler(150);
    put(&cpu, GDT + 0x48, (target & 0xffff) | u64::from(CS64) << 16 | 0xec00 << 32 | (target & 0xffff_0000) << 32);
    put(&cpu, GDT + 0x50, target >> 32);
    cpu.core.gdtr.limit = 0x57;
    assert_eq!(vector(&mut cpu), 150);
    assert_eq!((cpu.core.cpl, cpu.core.gpr[4]), (0, RSP0 - 32));
    assert_eq!([0, 1, 2, 3].map(|n| stack(&cpu, n)), [CODE + 0x106, USER_CS64.into(), USER_STACK, USER_SS.into()]);
}

#[test]
fn a_far_call_and_return_within_a_level_keep_the_stack() {
    // call far [rip+1]; hlt; far pointer
    let mut code = vec![0xff, 0x1d, 1, 0, 0, 0, 0xf4];
    code.extend((CODE as u32 + 0x100).to_le_bytes());
    code.extend(CS64.to_le_bytes());
    let mut cpu = machine(&code);
    // retf (32-bit operands, as the call's)
    put_code(&cpu, CODE + 0x100, &[0xcb]);
    run(&mut cpu);
    assert_eq!((cpu.core.rip, cpu.core.gpr[4]), (CODE + 7, CODE));
}
