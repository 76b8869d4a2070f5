//! Exceptions, interrupts, and what holds them off.

use x86::rflags;

use super::*;

#[test]
fn reading_an_unmapped_page_is_a_page_fault_with_code_0_and_cr2() {
    // mov rax, [0x40000000]
    let mut cpu = machine(&[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40]);
    assert_eq!(exception(&mut cpu), (14, 0, CODE));
    assert_eq!(cpu.core.cr2, NOWHERE);
}

#[test]
fn writing_an_unmapped_page_sets_the_write_bit() {
    // mov [0x40000000], rax
    let mut cpu = machine(&[0x48, 0x89, 0x04, 0x25, 0, 0, 0, 0x40]);
    assert_eq!(exception(&mut cpu), (14, 2, CODE));
}

#[test]
fn a_user_read_of_a_supervisor_page_is_present_and_user() {
    let mut cpu = user_machine(&[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40]);
    // The second GiB is the first again, for the supervisor.
    put(&cpu, 0x2008, 0x83u64);
    assert_eq!(exception(&mut cpu), (14, 5, CODE));
}

#[test]
fn a_supervisor_write_to_a_read_only_page_is_a_protection_fault_under_wp() {
    let mut cpu = machine(&[0x48, 0x89, 0x04, 0x25, 0, 0, 0, 0x40]);
    put(&cpu, 0x2008, 0x85u64);
    assert_eq!(exception(&mut cpu), (14, 3, CODE));
}

#[test]
fn executing_a_no_execute_page_is_a_fetch_fault_at_its_address() {
    // jmp rax would be integer's: mov eax, imm32; push rax; ret is too; so RIP starts there.
    let mut cpu = machine(&[]);
    put(&cpu, 0x2008, 0x8000_0000_0000_0087u64);
    cpu.core.rip = NOWHERE + CODE;
    assert_eq!(exception(&mut cpu), (14, 0x11, NOWHERE + CODE));
    assert_eq!(cpu.core.cr2, NOWHERE + CODE);
}

#[test]
fn smap_stops_the_supervisor_until_stac() {
    // mov rax, [0x40000000]
    let mut code = vec![0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40, 0xf4];
    let setup = |code: &[u8]| {
        let mut cpu = machine(code);
        put(&cpu, 0x1000, 0x2007u64);
        put(&cpu, 0x2000, 0x83u64);
        put(&cpu, 0x2008, 0x87u64);
        cpu.core.cr4 |= x86::cr4::SMAP | x86::cr4::SMEP;
        cpu
    };
    assert_eq!(exception(&mut setup(&code)), (14, 1, CODE));
    // stac
    code.splice(0..0, [0x0f, 0x01, 0xcb]);
    let mut cpu = setup(&code);
    run(&mut cpu);
    assert_eq!(cpu.core.rip, CODE + 12);
}

#[test]
fn a_fault_pushes_five_words_on_an_aligned_stack_with_rf_set() {
    let mut cpu = machine(&[0x0f, 0x0b]);
    cpu.core.gpr[4] = CODE - 4;
    assert_eq!(vector(&mut cpu), 6);
    assert_eq!(cpu.core.gpr[4], CODE - 16 - 40);
    assert_eq!((stack(&cpu, 0), stack(&cpu, 1)), (CODE, u64::from(CS64)));
    assert_ne!(stack(&cpu, 2) & rflags::RF, 0);
    assert_eq!((stack(&cpu, 3), stack(&cpu, 4)), (CODE - 4, u64::from(SS)));
}

#[test]
fn int3_pushes_the_address_after_it_without_rf() {
    let mut cpu = machine(&[0xcc]);
    assert_eq!(vector(&mut cpu), 3);
    assert_eq!((stack(&cpu, 0), stack(&cpu, 2) & rflags::RF), (CODE + 1, 0));
}

#[test]
fn an_interrupt_gate_clears_if_and_a_trap_gate_keeps_it() {
    for (kind, expected) in [(14, 0), (15, rflags::IF)] {
        let mut cpu = machine(&[0x0f, 0x0b]);
        put_gate(&cpu, 6, handler(6), kind, 0, 0);
        cpu.core.system_flags |= rflags::IF | rflags::NT | rflags::TF;
        assert_eq!(vector(&mut cpu), 6);
        assert_eq!(cpu.core.system_flags & (rflags::IF | rflags::NT | rflags::TF), expected, "gate {kind}");
    }
}

#[test]
fn an_ist_gate_switches_stacks_without_a_change_of_privilege() {
    let mut cpu = machine(&[0x0f, 0x0b]);
    put_gate(&cpu, 6, handler(6), 14, 0, 1);
    assert_eq!(vector(&mut cpu), 6);
    assert_eq!(cpu.core.gpr[4], IST1 - 40);
    assert_eq!((stack(&cpu, 4), cpu.core.segments[2].selector), (SS.into(), SS));
}

#[test]
fn an_event_at_cpl_3_goes_to_rsp0_and_loads_a_null_ss() {
    let mut cpu = user_machine(&[0x0f, 0x0b]);
    assert_eq!(vector(&mut cpu), 6);
    assert_eq!((cpu.core.gpr[4], cpu.core.cpl, cpu.core.segments[2].selector), (RSP0 - 40, 0, 0));
    assert_eq!((stack(&cpu, 1), stack(&cpu, 3), stack(&cpu, 4)), (USER_CS64.into(), USER_STACK, USER_SS.into()));
}

#[test]
fn a_gate_that_is_not_present_is_np_with_idt_and_ext() {
    let mut cpu = machine(&[0x0f, 0x0b]);
    put(&cpu, IDT + 6 * 16, 0x0000_0e00_0010_0000u64);
    assert_eq!(exception(&mut cpu), (11, 6 * 8 + 3, CODE));
}

#[test]
fn a_contributory_fault_on_top_of_another_is_a_double_fault_with_code_0() {
    // int 0x80 without a gate is #GP; its own gate is not there either.
    let mut cpu = machine(&[0xcd, 0x80]);
    put(&cpu, IDT + 0x80 * 16, 0u64);
    put(&cpu, IDT + 13 * 16, 0u64);
    assert_eq!(exception(&mut cpu), (8, 0, CODE));
}

#[test]
fn a_page_fault_on_top_of_a_page_fault_is_a_double_fault() {
    let mut cpu = machine(&[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40]);
    // The page fault's handler gets an unmapped stack.
    put_gate(&cpu, 14, handler(14), 14, 0, 2);
    put(&cpu, TSS + 44, NOWHERE + 0x1000);
    assert_eq!(exception(&mut cpu), (8, 0, CODE));
    assert_eq!(cpu.core.cr2 & !0xfff, NOWHERE);
}

#[test]
fn a_double_fault_without_a_gate_is_a_triple_fault() {
    let mut cpu = machine(&[0xcd, 0x80]);
    cpu.core.idtr.limit = 0;
    assert_eq!(cpu.run(100), Exit::Shutdown);
}

#[test]
fn an_interrupt_wakes_hlt_and_returns_after_it() {
    // sti; hlt; l: jmp l
    let mut cpu = machine(&[0xfb, 0xf4, 0xeb, 0xfe]);
    let world = World::around(&mut cpu);
    run(&mut cpu);
    assert_eq!(cpu.core.rip, CODE + 2);
    world.interrupt(&cpu, 0x40);
    assert_eq!(vector(&mut cpu), 0x40);
    assert_eq!(stack(&cpu, 0), CODE + 2);
}

#[test]
fn an_interrupt_comes_one_instruction_after_sti() {
    // sti; nop; cli; l: jmp l
    let mut cpu = machine(&[0xfb, 0x90, 0xfa, 0xeb, 0xfe]);
    World::around(&mut cpu).interrupt(&cpu, 0x40);
    assert_eq!(vector(&mut cpu), 0x40);
    assert_eq!(stack(&cpu, 0), CODE + 2, "after the nop and before the cli");
}

#[test]
fn pop_ss_holds_off_interrupts_and_the_single_step_trap_for_one_instruction() {
    // push 0x18; pop ss is invalid in 64-bit code: mov eax, 0x18; mov ss, eax; nop; nop
    let mut cpu = machine(&[0xb8, 0x18, 0, 0, 0, 0x8e, 0xd0, 0x90, 0x90, 0xeb, 0xfe]);
    let world = World::around(&mut cpu);
    cpu.core.system_flags |= rflags::IF;
    // Up to and with the load of SS.
    assert_eq!(cpu.run(2), Exit::Budget);
    world.interrupt(&cpu, 0x40);
    assert_eq!(vector(&mut cpu), 0x40);
    assert_eq!(stack(&cpu, 0), CODE + 8);

    let mut cpu = machine(&[0x8e, 0xd0, 0x90, 0x90]);
    cpu.core.gpr[0] = SS.into();
    cpu.core.system_flags |= rflags::TF;
    assert_eq!(vector(&mut cpu), 1);
    assert_eq!(stack(&cpu, 0), CODE + 3, "the trap comes after the nop");
}

#[test]
fn single_step_traps_after_one_instruction_with_bs() {
    let mut cpu = machine(&[0x90, 0x90, 0xf4]);
    cpu.core.system_flags |= rflags::TF;
    assert_eq!(vector(&mut cpu), 1);
    assert_eq!((stack(&cpu, 0), cpu.core.dr6 & x86::dr6::BS), (CODE + 1, x86::dr6::BS));
    assert_ne!(stack(&cpu, 2) & rflags::TF, 0);
}

#[test]
fn an_nmi_blocks_the_next_until_iretq() {
    let mut cpu = machine(&[0xf4]);
    // hlt; iretq
    put_code(&cpu, handler(2), &[0xf4, 0x48, 0xcf]);
    run(&mut cpu);
    let notify = |cpu: &Cpu| cpu.core.link.group().notify(0, attention::NMI);
    notify(&cpu);
    assert_eq!(vector(&mut cpu), 2);
    assert!(cpu.core.nmi_blocked);
    notify(&cpu);
    assert_eq!(cpu.run(100), Exit::Halted, "the second waits");
    cpu.core.halted = false;
    // The IRETQ returns and the waiting NMI is taken at once.
    assert_eq!(vector(&mut cpu), 2);
    assert!(cpu.core.nmi_blocked);
}

#[test]
fn an_interrupt_that_was_acknowledged_before_a_move_comes_first_and_once() {
    let mut cpu = machine(&[0xf4]);
    let mut state = cpu.core.save_state();
    (state.acknowledged_interrupt, state.activity) = (Some(0x33), x86::Activity::Halted);
    cpu.core.load_state(&state);
    assert_eq!(
        cpu.core.save_state().acknowledged_interrupt,
        Some(0x33),
        "another move before the first run loses nothing"
    );
    assert_eq!(vector(&mut cpu), 0x33);
    assert_eq!(cpu.core.save_state().acknowledged_interrupt, None);
}

#[test]
fn a_hypercall_gets_its_arguments_and_an_unknown_one_is_ud() {
    // vmmcall; hlt
    let mut cpu = machine(&[0x0f, 0x01, 0xd9, 0xf4]);
    World::around(&mut cpu);
    (cpu.core.gpr[0], cpu.core.gpr[3], cpu.core.gpr[1], cpu.core.gpr[2], cpu.core.gpr[6]) = (7, 1, 20, 300, 4000);
    run(&mut cpu);
    assert_eq!(cpu.core.gpr[0], 4321);

    let mut cpu = machine(&[0x0f, 0x01, 0xd9, 0xf4]);
    World::around(&mut cpu);
    assert_eq!(exception(&mut cpu), (6, 0, CODE));
}
