//! Guests of instructions that the emulator in KVM does not know: most of them it meets only where they reach a device, or where the host has no hardware virtualization.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    al, dword_ptr, eax, ebx, ecx, edi, edx, ptr, qword_ptr, r8, rax, rbx, rcx, rdi, rdx, rsp, word_ptr, xmm0,
    xmmword_ptr,
};
use x86::{msr, rflags};

use super::board::MMIO;
use super::code::Guest as Code;
use super::guests::{report_bytes, report_page_fault};
use super::{End, Guest, PDPT, SCRATCH};

/// Every guest of this file.
pub const ALL: &[Guest] = &[
    Guest {
        name: "a vector addition takes an operand from a device",
        vcpus: 1,
        build: vector_operand,
        expected: &[0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f],
        end: End::Finished,
    },
    Guest {
        name: "a vector register is stored to a device",
        vcpus: 1,
        build: vector_store,
        expected: &[4, 0x10, 0x44, 0x33, 0x22, 0x11],
        end: End::Finished,
    },
    Guest {
        name: "the x87 loads an integer from a device",
        vcpus: 1,
        build: x87_operand,
        expected: &[0x40, 0x41, 0, 0],
        end: End::Finished,
    },
    Guest {
        name: "a vector load faults with its address",
        vcpus: 1,
        build: vector_fault,
        expected: &[14, 0, 1],
        end: End::Finished,
    },
    Guest {
        name: "CMPXCHG16B exchanges what it expected, and loads what it did not",
        vcpus: 1,
        build: exchange,
        expected: &[1, 0, 0x33, 0x44],
        end: End::Finished,
    },
    Guest {
        name: "a single step over CMPXCHG16B",
        vcpus: 1,
        build: single_step,
        expected: &[1, 1, 1],
        end: End::Finished,
    },
    Guest { name: "SWAPGS exchanges two bases", vcpus: 1, build: swap_gs, expected: &[2, 1, 2], end: End::Finished },
    Guest {
        name: "INVPCID forgets a translation",
        vcpus: 1,
        build: invalidate,
        expected: &[0x71, 0x72],
        end: End::Finished,
    },
];

/// Loads the local APIC's task priority into a vector register. No guest of [`ALL`], because an interrupt controller of the kernel's is out of reach for whoever executes it in KVM's place.
pub const LOCAL_APIC: Guest = Guest {
    name: "a vector register is loaded from the local APIC",
    vcpus: 1,
    build: local_apic,
    expected: &[0x20],
    end: End::Finished,
};

fn local_apic(g: &mut Code) -> Result<(), IcedError> {
    g.apic_on()?;
    g.apic_write(0x80, 0x20)?;
    g.mov(edi, 0xfee0_0080u32)?;
    g.movd(xmm0, dword_ptr(rdi))?;
    g.movd(eax, xmm0)?;
    g.report_al()?;
    g.end()
}

fn vector_operand(g: &mut Code) -> Result<(), IcedError> {
    g.mov(edi, (MMIO + 0x20) as u32)?;
    g.pxor(xmm0, xmm0)?;
    g.paddd(xmm0, xmmword_ptr(rdi))?;
    for _ in 0..2 {
        g.movq(rax, xmm0)?;
        report_bytes(g, 8)?;
        g.psrldq(xmm0, 8)?;
    }
    g.end()
}

fn vector_store(g: &mut Code) -> Result<(), IcedError> {
    g.mov(eax, 0x1122_3344)?;
    g.movd(xmm0, eax)?;
    g.mov(edi, (MMIO + 0x10) as u32)?;
    g.movss(dword_ptr(rdi), xmm0)?;
    g.end()
}

fn x87_operand(g: &mut Code) -> Result<(), IcedError> {
    g.mov(edi, (MMIO + 0x40) as u32)?;
    g.fninit()?;
    g.fild(word_ptr(rdi))?;
    g.fistp(dword_ptr(SCRATCH))?;
    g.fninit()?;
    g.mov(eax, dword_ptr(SCRATCH))?;
    report_bytes(g, 4)?;
    g.end()
}

/// Behind the 4 GiB that are mapped.
fn vector_fault(g: &mut Code) -> Result<(), IcedError> {
    let mut handler = g.create_label();
    g.set_gate(14, handler)?;
    g.mov(rdi, 5u64 << 30)?;
    g.paddd(xmm0, xmmword_ptr(rdi))?;
    g.set_label(&mut handler)?;
    g.report(14)?;
    report_page_fault(g)?;
    g.end()
}

fn exchange(g: &mut Code) -> Result<(), IcedError> {
    g.xor(eax, eax)?;
    g.xor(edx, edx)?;
    g.mov(ebx, 0x33)?;
    g.mov(ecx, 0x44)?;
    for _ in 0..2 {
        g.lock().cmpxchg16b(xmmword_ptr(SCRATCH))?;
        g.mov(r8, rax)?;
        g.sete(al)?;
        g.report_al()?;
        g.mov(rax, r8)?;
    }
    g.report_al()?;
    g.mov(rax, rdx)?;
    g.report_al()?;
    g.end()
}

/// The handler reports whether DR6 says so, and whether it was called after that instruction and once only.
fn single_step(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over, mut after) = (g.create_label(), g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.mov(rax, iced_x86::code_asm::dr6)?;
    g.shr(rax, 14)?;
    g.and(eax, 1)?;
    g.report_al()?;
    g.lea(rax, ptr(after))?;
    g.cmp(rax, qword_ptr(rsp))?;
    g.sete(al)?;
    g.report_al()?;
    g.and(qword_ptr(rsp + 16), !(rflags::TF as i32))?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(1, handler)?;
    g.pushfq()?;
    g.or(qword_ptr(rsp), rflags::TF as i32)?;
    g.popfq()?;
    g.cmpxchg16b(xmmword_ptr(SCRATCH))?;
    g.set_label(&mut after)?;
    g.nop()?;
    g.report(1)?;
    // What DR6 holds besides is the model's.
    g.xor(eax, eax)?;
    g.mov(iced_x86::code_asm::dr6, rax)?;
    g.end()
}

fn swap_gs(g: &mut Code) -> Result<(), IcedError> {
    g.mov(qword_ptr(SCRATCH), 1)?;
    g.mov(qword_ptr(SCRATCH + 64), 2)?;
    g.write_msr(msr::IA32_GS_BASE, SCRATCH)?;
    g.write_msr(msr::IA32_KERNEL_GS_BASE, SCRATCH + 64)?;
    for _ in 0..2 {
        g.swapgs()?;
        g.mov(rax, qword_ptr(0u64).gs())?;
        g.report_al()?;
    }
    g.swapgs()?;
    g.read_msr(msr::IA32_GS_BASE)?;
    g.mov(rax, qword_ptr(rax))?;
    g.report_al()?;
    g.end()
}

/// Maps 2 MiB behind the first 4 GiB to one place, then to another; with INVLPG where the processor has no INVPCID.
fn invalidate(g: &mut Code) -> Result<(), IcedError> {
    const LINEAR: u64 = 4 << 30;
    const DIRECTORY: u64 = 0x1_5000;
    const LARGE_PAGE: u64 = 2 << 20;
    let (mut without, mut done) = (g.create_label(), g.create_label());
    g.mov(qword_ptr(SCRATCH), 0x71)?;
    g.mov(qword_ptr(SCRATCH + LARGE_PAGE), 0x72)?;
    g.mov(qword_ptr(PDPT + 4 * 8), (DIRECTORY | 3) as i32)?;
    g.mov(qword_ptr(DIRECTORY), 0x83)?;
    g.mov(rdi, LINEAR + SCRATCH)?;
    g.mov(rax, qword_ptr(rdi))?;
    g.report_al()?;
    g.mov(qword_ptr(DIRECTORY), (LARGE_PAGE | 0x83) as i32)?;
    g.mov(eax, 7)?;
    g.xor(ecx, ecx)?;
    g.cpuid()?;
    g.bt(ebx, 10)?;
    g.jnc(without)?;
    // Every translation: type 2, whose descriptor is not looked at.
    g.mov(eax, 2)?;
    g.invpcid(rax, xmmword_ptr(SCRATCH + 128))?;
    g.jmp(done)?;
    g.set_label(&mut without)?;
    g.invlpg(ptr(rdi))?;
    g.set_label(&mut done)?;
    g.mov(rax, qword_ptr(rdi))?;
    g.report_al()?;
    // What CPUID said is the model's.
    g.xor(ebx, ebx)?;
    g.xor(ecx, ecx)?;
    g.xor(edx, edx)?;
    g.cmp(rbx, rcx)?;
    g.end()
}
