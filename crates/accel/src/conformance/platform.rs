//! Further guests: string I/O, MMIO across pages, level-triggered interrupts, IPIs, NMIs, CPUID.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    al, ax, cl, dword_ptr, dx, eax, ebx, ecx, edi, edx, esi, ptr, qword_ptr, rax, rbx, rcx, rdx, rsp,
};

use super::board::{LEVEL, MMIO, PATTERN, REPORT};
use super::code::Guest as Code;
use super::guests::{halt, report_bytes, reporting_handler, start_second_at};
use super::{End, Guest, IDT, SCRATCH};

/// Every guest of this file.
pub const ALL: &[Guest] = &[
    Guest {
        name: "rep outs of every size",
        vcpus: 1,
        build: rep_outs,
        expected: &[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8],
        end: End::Finished,
    },
    Guest {
        name: "rep ins of words and dwords, and backwards",
        vcpus: 1,
        build: rep_ins,
        expected: &[0x50, 0x51, 0x50, 0x51, 0x60, 0x61, 0x62, 0x63, 0x70, 0x70, 0],
        end: End::Finished,
    },
    Guest {
        name: "port writes of every size",
        vcpus: 1,
        build: port_writes,
        expected: &[0x44, 0x44, 0x33, 0x44, 0x33, 0x22, 0x11],
        end: End::Finished,
    },
    Guest {
        name: "MMIO across two pages",
        vcpus: 1,
        build: page_crossing,
        expected: &[4, 0xfc, 1, 2, 3, 4, 4, 0, 5, 6, 7, 8, 0xfe, 0xff, 0, 1],
        end: End::Finished,
    },
    Guest {
        name: "a level interrupt comes again until its wire is low",
        vcpus: 1,
        build: level_again,
        // The handler lowers the wire the second time; each time the end is broadcast.
        expected: &[0x51, 0xe0, 0x51, 0x51, 0xe0, 0x51],
        end: End::Finished,
    },
    Guest {
        name: "an interrupt is in service until its end",
        vcpus: 1,
        build: in_service,
        expected: &[0x52, 1, 0],
        end: End::Finished,
    },
    Guest { name: "an NMI by IPI", vcpus: 1, build: nmi, expected: &[2], end: End::Finished },
    Guest { name: "breakpoint", vcpus: 1, build: breakpoint, expected: &[3, 1], end: End::Finished },
    Guest { name: "a bad MSR value", vcpus: 1, build: bad_msr_value, expected: &[13, 0], end: End::Finished },
    Guest { name: "IPIs wake both vCPUs from HLT", vcpus: 2, build: ipis, expected: &[0x61, 0xb2], end: End::Finished },
    Guest {
        name: "CPUID names the hypervisor and the processor",
        vcpus: 1,
        build: cpuid,
        // "KVMK", APIC ID, hypervisor with x2APIC, long mode, x2APIC ID.
        expected: &[b'K', b'V', b'M', b'K', 0, 1, 1, 0],
        end: End::Finished,
    },
];

/// Writes the bytes 1 to 8 to the scratch memory.
fn scratch_bytes(g: &mut Code) -> Result<(), IcedError> {
    g.mov(rax, 0x0807_0605_0403_0201u64)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    g.mov(edx, u32::from(REPORT))
}

fn rep_outs(g: &mut Code) -> Result<(), IcedError> {
    scratch_bytes(g)?;
    g.mov(esi, SCRATCH as u32)?;
    g.mov(ecx, 4)?;
    g.rep().outsb()?;
    g.mov(esi, SCRATCH as u32)?;
    g.mov(ecx, 2)?;
    g.rep().outsw()?;
    g.mov(esi, SCRATCH as u32)?;
    g.mov(ecx, 2)?;
    g.rep().outsd()?;
    g.end()
}

fn rep_ins(g: &mut Code) -> Result<(), IcedError> {
    g.mov(edx, u32::from(PATTERN) + 0x50)?;
    g.mov(edi, SCRATCH as u32)?;
    g.mov(ecx, 2)?;
    g.rep().insw()?;
    g.mov(eax, dword_ptr(SCRATCH))?;
    report_bytes(g, 4)?;
    g.mov(edx, u32::from(PATTERN) + 0x60)?;
    g.mov(edi, SCRATCH as u32)?;
    g.mov(ecx, 1)?;
    g.rep().insd()?;
    g.mov(eax, dword_ptr(SCRATCH))?;
    report_bytes(g, 4)?;
    g.mov(edx, u32::from(PATTERN) + 0x70)?;
    g.mov(edi, SCRATCH as u32 + 0x101)?;
    g.mov(ecx, 2)?;
    g.std()?;
    g.rep().insb()?;
    g.cld()?;
    g.mov(eax, dword_ptr(SCRATCH + 0x100))?;
    report_bytes(g, 3)?;
    g.end()
}

fn port_writes(g: &mut Code) -> Result<(), IcedError> {
    g.mov(edx, u32::from(REPORT))?;
    g.mov(eax, 0x1122_3344)?;
    g.out(dx, al)?;
    g.out(dx, ax)?;
    g.out(dx, eax)?;
    g.end()
}

fn page_crossing(g: &mut Code) -> Result<(), IcedError> {
    g.mov(ebx, (MMIO + 0xffc) as u32)?;
    g.mov(rax, 0x0807_0605_0403_0201u64)?;
    g.mov(qword_ptr(rbx), rax)?;
    g.mov(eax, dword_ptr(rbx + 2))?;
    report_bytes(g, 4)?;
    g.end()
}

fn level_again(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over, mut keep) = (g.create_label(), g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(0x51)?;
    g.mov(rax, qword_ptr(SCRATCH))?;
    g.add(rax, 1)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    g.cmp(rax, 2)?;
    g.jne(keep)?;
    g.mov(edx, u32::from(LEVEL))?;
    g.mov(al, 0)?;
    g.out(dx, al)?;
    g.set_label(&mut keep)?;
    g.apic_eoi()?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(0x51, handler)?;
    g.apic_on()?;
    g.mov(edx, u32::from(LEVEL))?;
    g.mov(al, 0x51)?;
    g.out(dx, al)?;
    g.sti()?;
    g.linger()?;
    g.end()
}

/// Reports the bit of vector 0x52 in the local APIC's in-service register, before and after the end.
fn in_service(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    let report_in_service = |g: &mut Code| {
        g.mov(eax, 0xfee0_0120u32)?;
        g.mov(eax, dword_ptr(rax))?;
        g.shr(eax, 0x52 % 32)?;
        g.and(eax, 1)?;
        g.report_al()
    };
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(0x52)?;
    report_in_service(g)?;
    g.apic_eoi()?;
    report_in_service(g)?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(0x52, handler)?;
    g.apic_on()?;
    g.send_msi(0x4052)?;
    g.sti()?;
    g.linger()?;
    g.end()
}

fn nmi(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 2)?;
    g.apic_on()?;
    // To APIC ID 0, delivery mode NMI.
    g.apic_write(0x310, 0)?;
    g.apic_write(0x300, 0x4400)?;
    g.linger()?;
    g.end()
}

fn breakpoint(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(3)?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(3, handler)?;
    g.int3()?;
    g.report(1)?;
    g.end()
}

fn bad_msr_value(g: &mut Code) -> Result<(), IcedError> {
    let mut handler = g.create_label();
    g.set_gate(13, handler)?;
    // IA32_EFER has reserved bits.
    g.write_msr(x86::msr::IA32_EFER, u64::MAX)?;
    g.set_label(&mut handler)?;
    g.report(13)?;
    g.pop(rax)?;
    g.report_al()?;
    g.end()
}

/// The second sleeps until the first sends it an IPI, and sends one back to the first, which sleeps by then.
fn ipis(g: &mut Code) -> Result<(), IcedError> {
    let (mut second, mut wake, mut over) = (g.create_label(), g.create_label(), g.create_label());
    reporting_handler(g, 0x61)?;
    g.jmp(over)?;
    // The second's handler.
    g.set_label(&mut wake)?;
    g.mov(eax, 0xb2)?;
    g.mov(qword_ptr(SCRATCH + 8), rax)?;
    g.apic_eoi()?;
    g.apic_write(0x310, 0)?;
    g.apic_write(0x300, 0x4061)?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(0x62, wake)?;
    start_second_at(g, second)?;
    g.wait_for(SCRATCH)?;
    g.apic_write(0x310, 1 << 24)?;
    g.apic_write(0x300, 0x4062)?;
    g.sti()?;
    g.hlt()?;
    g.cli()?;
    g.mov(rcx, qword_ptr(SCRATCH + 8))?;
    g.mov(al, cl)?;
    g.report_al()?;
    g.end()?;
    g.set_label(&mut second)?;
    g.mov(rsp, super::STACK - 0x1000)?;
    g.mov(rax, IDT << 16 | 0xfff)?;
    g.push(0)?;
    g.push(rax)?;
    g.lidt(ptr(rsp))?;
    g.apic_on()?;
    g.mov(eax, 1)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    g.sti()?;
    g.hlt()?;
    halt(g)
}

fn cpuid(g: &mut Code) -> Result<(), IcedError> {
    g.mov(eax, 0x4000_0000)?;
    g.xor(ecx, ecx)?;
    g.cpuid()?;
    g.mov(eax, ebx)?;
    report_bytes(g, 4)?;
    g.mov(eax, 1)?;
    g.xor(ecx, ecx)?;
    g.cpuid()?;
    g.mov(eax, ebx)?;
    g.shr(eax, 24)?;
    g.report_al()?;
    // Bits 31 and 21.
    g.and(ecx, 0x8020_0000u32 as i32)?;
    g.cmp(ecx, 0x8020_0000u32 as i32)?;
    g.sete(al)?;
    g.report_al()?;
    g.mov(eax, 0x8000_0001u32)?;
    g.cpuid()?;
    g.shr(edx, 29)?;
    g.mov(eax, edx)?;
    g.and(eax, 1)?;
    g.report_al()?;
    g.mov(eax, 0xb)?;
    g.xor(ecx, ecx)?;
    g.cpuid()?;
    g.mov(rax, rdx)?;
    g.report_al()?;
    // What the host's processor says besides has no place in the comparison of the final states.
    g.xor(eax, eax)?;
    g.xor(ebx, ebx)?;
    g.xor(ecx, ecx)?;
    g.xor(edx, edx)?;
    g.end()
}
