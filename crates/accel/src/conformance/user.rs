//! Guests that leave privilege level 0 and come back.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeLabel, al, ax, byte_ptr, dword_ptr, eax, edi, ptr, qword_ptr, r11, rax, rbx, rcx, rdi, rsp, word_ptr,
};
use x86::{msr, rflags};

use super::code::Guest as Code;
use super::{DIRECTORIES, End, GDT, Guest, IDT, PDPT, PML4, SCRATCH, STACK};

/// Every guest of this file.
pub const ALL: &[Guest] = &[
    Guest {
        name: "user mode calls by INT and is interrupted by its faults",
        vcpus: 1,
        build: interrupts,
        // The gate's handler with the caller's privilege, and once more; #PF of a read of what is the supervisor's.
        expected: &[0x42, 3, 0x42, 3, 14, 5],
        end: End::Finished,
    },
    Guest {
        name: "user mode calls by SYSCALL",
        vcpus: 1,
        build: system_calls,
        // Whether RCX and R11 hold where and how to go on, twice; then the gate's handler.
        expected: &[1, 1, 1, 1, 0x42, 3],
        end: End::Finished,
    },
];

/// Selectors of the larger table of descriptors: SYSCALL and SYSRET want them in this order.
const KERNEL_CODE: u64 = 0x08;
const USER_BASE: u64 = 0x18;
const USER_DATA: u64 = (USER_BASE + 8) | 3;
const USER_CODE: u64 = (USER_BASE + 16) | 3;
const TASK: u64 = 0x30;
/// The task state segment, of which RSP0 alone is used.
const TASK_STATE: u64 = SCRATCH + 0x400;
const KERNEL_STACK: u64 = STACK - 0x800;
const USER_STACK: u64 = STACK - 0x2000;
/// The vector that user mode may call.
const CALL: u8 = 0x42;

/// Lets user mode use the first 2 MiB, where code and stacks are, and gives it descriptors and a way back. Clobbers RAX and RDI.
fn prepare(g: &mut Code) -> Result<(), IcedError> {
    for entry in [PML4, PDPT, DIRECTORIES] {
        g.or(qword_ptr(entry), 4)?;
    }
    let mut descriptor = |at: u64, value: u64| {
        g.mov(rax, value)?;
        g.mov(qword_ptr(GDT + at), rax)
    };
    descriptor(USER_BASE, 0)?;
    descriptor(USER_DATA & !3, 0x00cf_f300_0000_ffff)?;
    descriptor(USER_CODE & !3, 0x00af_fb00_0000_ffff)?;
    // Available 64-bit TSS, present.
    descriptor(TASK, (TASK_STATE & 0xff_ffff) << 16 | 0x89 << 40 | 0x67)?;
    descriptor(TASK + 8, 0)?;
    g.mov(edi, TASK_STATE as u32)?;
    g.mov(qword_ptr(rdi + 4), KERNEL_STACK as i32)?;
    g.mov(word_ptr(rdi + 0x66), 0x68)?;
    g.mov(rax, GDT << 16 | 0x3f)?;
    g.push(0)?;
    g.push(rax)?;
    g.lgdt(ptr(rsp))?;
    g.mov(eax, TASK as u32)?;
    g.ltr(ax)?;
    g.mov(rsp, STACK)
}

/// The gate of [`CALL`], whose handler reports itself and the privilege of its caller. Clobbers RAX.
fn open_gate(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(CALL)?;
    g.mov(rax, qword_ptr(rsp + 8))?;
    g.and(eax, 3)?;
    g.report_al()?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(CALL, handler)?;
    // Privilege level 3 may call it.
    g.mov(byte_ptr(IDT + u64::from(CALL) * 16 + 5), 0xee_i32)
}

/// IRETQ to `code` in user mode. Clobbers RAX.
fn enter(g: &mut Code, code: CodeLabel) -> Result<(), IcedError> {
    g.push(USER_DATA as i32)?;
    g.push(USER_STACK as i32)?;
    g.push(rflags::RESERVED_ONE as i32)?;
    g.push(USER_CODE as i32)?;
    g.lea(rax, ptr(code))?;
    g.push(rax)?;
    g.iretq()
}

fn interrupts(g: &mut Code) -> Result<(), IcedError> {
    let (mut user, mut fault) = (g.create_label(), g.create_label());
    open_gate(g)?;
    g.set_gate(14, fault)?;
    prepare(g)?;
    enter(g, user)?;
    g.set_label(&mut user)?;
    for _ in 0..2 {
        g.int(i32::from(CALL))?;
    }
    g.mov(eax, dword_ptr(2u64 << 20))?;
    g.set_label(&mut fault)?;
    g.report(14)?;
    g.pop(rax)?;
    g.report_al()?;
    g.end()
}

fn system_calls(g: &mut Code) -> Result<(), IcedError> {
    let (mut user, mut entry, mut back) = (g.create_label(), g.create_label(), g.create_label());
    let mut fault = g.create_label();
    open_gate(g)?;
    g.set_gate(13, fault)?;
    prepare(g)?;
    g.write_msr(msr::IA32_STAR, USER_BASE << 48 | KERNEL_CODE << 32)?;
    g.write_msr(msr::IA32_FMASK, rflags::DF)?;
    g.lea(rax, ptr(entry))?;
    g.wrmsr_of_rax(msr::IA32_LSTAR)?;
    g.mov(rbx, 0u64)?;
    enter(g, user)?;
    g.set_label(&mut entry)?;
    g.lea(rax, ptr(back))?;
    g.cmp(rax, rcx)?;
    g.sete(al)?;
    g.report_al()?;
    g.mov(rax, r11)?;
    g.shr(rax, 10)?;
    g.and(eax, 1)?;
    g.report_al()?;
    g.add(rbx, 1)?;
    g.sysretq()?;
    g.set_label(&mut user)?;
    g.std()?;
    g.syscall()?;
    g.set_label(&mut back)?;
    g.cmp(rbx, 1)?;
    g.je(user)?;
    g.cld()?;
    g.int(i32::from(CALL))?;
    // #GP, since user mode may not.
    g.hlt()?;
    g.set_label(&mut fault)?;
    g.end()
}
