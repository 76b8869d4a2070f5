//! The guests of the processor and its local APIC; those of the platform around it are in [`super::platform`].

use iced_x86::IcedError;
use iced_x86::code_asm::{
    al, ax, byte_ptr, cl, dl, dword_ptr, dx, eax, ebx, ecx, edi, edx, esi, ptr, qword_ptr, r8, rax, rbx, rcx, rdi, rsp,
    word_ptr,
};

use super::board::{MMIO, PATTERN, PIC};
use super::code::Guest as Code;
use super::{End, Guest, SCRATCH};

/// Every guest of this file.
pub const ALL: &[Guest] = &[
    Guest {
        name: "port reads of every size",
        vcpus: 1,
        build: port_reads,
        expected: &[0x10, 0x20, 0x21, 0x30, 0x31, 0x32, 0x33],
        end: End::Finished,
    },
    Guest { name: "rep insb", vcpus: 1, build: rep_ins, expected: &[0x44, 0x44, 0x44], end: End::Finished },
    Guest {
        name: "MMIO of every size, and across a device register",
        vcpus: 1,
        build: mmio,
        expected: &[
            1, 8, 0x11, 2, 8, 0x11, 0x22, 4, 8, 0x11, 0x22, 0x33, 0x44, 8, 16, 1, 2, 3, 4, 5, 6, 7, 8, 0x83, 0x40,
        ],
        end: End::Finished,
    },
    Guest {
        name: "divide error and invalid opcode",
        vcpus: 1,
        build: exceptions,
        expected: &[0, 6, 0x99],
        end: End::Finished,
    },
    Guest {
        name: "page fault with CR2 and error code",
        vcpus: 1,
        build: page_fault,
        expected: &[2, 0x40],
        end: End::Finished,
    },
    Guest {
        name: "general protection with a selector",
        vcpus: 1,
        build: general_protection,
        expected: &[0x18],
        end: End::Finished,
    },
    Guest { name: "triple fault", vcpus: 1, build: triple_fault, expected: &[], end: End::TripleFault },
    Guest { name: "MSI wakes HLT", vcpus: 1, build: msi_wakes_hlt, expected: &[0x51, 0x52], end: End::Finished },
    Guest {
        name: "an interrupt waits for STI and its shadow",
        vcpus: 1,
        build: sti_shadow,
        expected: &[1, 2, 0x51, 3],
        end: End::Finished,
    },
    Guest {
        name: "the higher vector comes first",
        vcpus: 1,
        build: priorities,
        expected: &[0x91, 0x51],
        end: End::Finished,
    },
    Guest {
        name: "TPR holds interrupts back",
        vcpus: 1,
        build: task_priority,
        expected: &[1, 0x51],
        end: End::Finished,
    },
    Guest {
        name: "a level interrupt's EOI is broadcast",
        vcpus: 1,
        build: level_eoi,
        expected: &[0x51, 0xe0, 0x51],
        end: End::Finished,
    },
    Guest { name: "the PIC's interrupt", vcpus: 1, build: ext_int, expected: &[0x33], end: End::Finished },
    Guest { name: "APIC timer, one-shot", vcpus: 1, build: timer_one_shot, expected: &[0x60], end: End::Finished },
    Guest {
        name: "APIC timer, periodic",
        vcpus: 1,
        build: timer_periodic,
        expected: &[0x60, 0x60, 0x60],
        end: End::Finished,
    },
    Guest { name: "APIC timer, TSC deadline", vcpus: 1, build: timer_deadline, expected: &[0x60], end: End::Finished },
    Guest { name: "x2APIC self-IPI", vcpus: 1, build: x2apic_self_ipi, expected: &[0x71], end: End::Finished },
    Guest {
        name: "INIT and start-up IPI, then work on both",
        vcpus: 2,
        build: start_second,
        expected: &[0xa1, 0x01],
        end: End::Finished,
    },
    Guest {
        name: "locked additions of two vCPUs all count",
        vcpus: 2,
        build: locked_additions,
        expected: &[0x40, 0x0d, 0x03],
        end: End::Finished,
    },
    Guest {
        name: "code written by the other vCPU is executed",
        vcpus: 2,
        build: cross_modifying_code,
        expected: &[1, 2],
        end: End::Finished,
    },
    Guest { name: "MSR round trip", vcpus: 1, build: msr_round_trip, expected: &[0xef, 0x13], end: End::Finished },
];

fn port_reads(g: &mut Code) -> Result<(), IcedError> {
    g.mov(edx, u32::from(PATTERN) + 0x10)?;
    g.in_(al, dx)?;
    g.report_al()?;
    g.mov(edx, u32::from(PATTERN) + 0x20)?;
    g.in_(ax, dx)?;
    report_bytes(g, 2)?;
    g.mov(edx, u32::from(PATTERN) + 0x30)?;
    g.in_(eax, dx)?;
    report_bytes(g, 4)?;
    g.end()
}

/// Reports the low `count` bytes of RAX, lowest first.
pub(super) fn report_bytes(g: &mut Code, count: u32) -> Result<(), IcedError> {
    for _ in 0..count {
        g.report_al()?;
        g.shr(rax, 8)?;
    }
    Ok(())
}

fn rep_ins(g: &mut Code) -> Result<(), IcedError> {
    g.mov(edx, u32::from(PATTERN) + 0x44)?;
    g.mov(edi, SCRATCH as u32)?;
    g.mov(ecx, 3)?;
    g.rep().insb()?;
    g.mov(eax, dword_ptr(SCRATCH))?;
    report_bytes(g, 3)?;
    g.end()
}

fn mmio(g: &mut Code) -> Result<(), IcedError> {
    g.mov(ebx, (MMIO + 8) as u32)?;
    g.mov(eax, 0x4433_2211)?;
    g.mov(byte_ptr(rbx), al)?;
    g.mov(word_ptr(rbx), ax)?;
    g.mov(dword_ptr(rbx), eax)?;
    g.mov(r8, 0x0807_0605_0403_0201u64)?;
    g.mov(qword_ptr(rbx + 8), r8)?;
    g.mov(al, byte_ptr(rbx + 0x7b))?;
    g.report_al()?;
    g.movzx(eax, word_ptr(rbx + 0x37))?;
    g.shr(eax, 8)?;
    g.report_al()?;
    g.end()
}

fn exceptions(g: &mut Code) -> Result<(), IcedError> {
    let (mut divide, mut opcode, mut after_divide, mut after_opcode) =
        (g.create_label(), g.create_label(), g.create_label(), g.create_label());
    g.set_gate(0, divide)?;
    g.set_gate(6, opcode)?;
    g.xor(ecx, ecx)?;
    g.mov(eax, 1)?;
    g.cdq()?;
    g.div(ecx)?;
    g.set_label(&mut after_divide)?;
    g.ud2()?;
    g.set_label(&mut after_opcode)?;
    g.report(0x99)?;
    g.end()?;
    g.set_label(&mut divide)?;
    g.report(0)?;
    g.lea(rax, ptr(after_divide))?;
    g.mov(qword_ptr(rsp), rax)?;
    g.iretq()?;
    g.set_label(&mut opcode)?;
    g.report(6)?;
    g.lea(rax, ptr(after_opcode))?;
    g.mov(qword_ptr(rsp), rax)?;
    g.iretq()
}

fn page_fault(g: &mut Code) -> Result<(), IcedError> {
    let mut handler = g.create_label();
    g.set_gate(14, handler)?;
    g.mov(rax, 0x40_0000_0000u64)?;
    g.mov(qword_ptr(rax), rax)?;
    g.set_label(&mut handler)?;
    report_page_fault(g)?;
    g.end()
}

/// In the handler of a page fault: reports its error code, and bits 32 to 39 of its address. Clobbers RAX.
pub(super) fn report_page_fault(g: &mut Code) -> Result<(), IcedError> {
    g.pop(rax)?;
    g.report_al()?;
    g.mov(rax, iced_x86::code_asm::cr2)?;
    g.shr(rax, 32)?;
    g.report_al()
}

fn general_protection(g: &mut Code) -> Result<(), IcedError> {
    let mut handler = g.create_label();
    g.set_gate(13, handler)?;
    // Past the end of the GDT.
    g.mov(eax, 0x18)?;
    g.mov(iced_x86::code_asm::ds, eax)?;
    g.set_label(&mut handler)?;
    g.pop(rax)?;
    g.report_al()?;
    g.end()
}

fn triple_fault(g: &mut Code) -> Result<(), IcedError> {
    g.push(0)?;
    g.push(0)?;
    g.lidt(ptr(rsp))?;
    g.ud2()
}

/// A handler that reports `vector` and ends the interrupt.
pub(super) fn reporting_handler(g: &mut Code, vector: u8) -> Result<iced_x86::code_asm::CodeLabel, IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.push(rax)?;
    g.report(vector)?;
    g.apic_eoi()?;
    g.pop(rax)?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(vector, handler)?;
    Ok(handler)
}

fn msi_wakes_hlt(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x51)?;
    reporting_handler(g, 0x52)?;
    g.apic_on()?;
    g.send_msi(0x51)?;
    g.sti()?;
    g.hlt()?;
    g.cli()?;
    g.send_msi(0x52)?;
    g.sti()?;
    g.hlt()?;
    g.end()
}

fn sti_shadow(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x51)?;
    g.apic_on()?;
    g.send_msi(0x51)?;
    g.report(1)?;
    g.mov(al, 2)?;
    g.sti()?;
    g.report_al()?;
    g.linger()?;
    g.report(3)?;
    g.end()
}

fn priorities(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x51)?;
    reporting_handler(g, 0x91)?;
    g.apic_on()?;
    g.send_msi(0x51)?;
    g.send_msi(0x91)?;
    g.sti()?;
    g.linger()?;
    g.end()
}

fn task_priority(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x51)?;
    g.apic_on()?;
    g.mov(eax, 5)?;
    g.mov(iced_x86::code_asm::cr8, rax)?;
    g.send_msi(0x51)?;
    g.sti()?;
    g.linger()?;
    g.report(1)?;
    g.xor(eax, eax)?;
    g.mov(iced_x86::code_asm::cr8, rax)?;
    g.linger()?;
    g.end()
}

fn level_eoi(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x51)?;
    g.apic_on()?;
    g.send_msi(0xc051)?;
    g.sti()?;
    g.linger()?;
    g.end()
}

fn ext_int(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x33)?;
    g.apic_on()?;
    // LINT0: ExtINT, not masked.
    g.apic_write(0x350, 0x700)?;
    g.mov(edx, u32::from(PIC))?;
    g.mov(al, 0x33)?;
    g.out(dx, al)?;
    g.sti()?;
    g.linger()?;
    g.end()
}

fn timer_one_shot(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x60)?;
    g.apic_on()?;
    g.apic_write(0x3e0, 0xb)?;
    g.apic_write(0x320, 0x60)?;
    g.apic_write(0x380, 1_000_000)?;
    g.sti()?;
    g.hlt()?;
    g.end()
}

fn timer_periodic(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x60)?;
    g.apic_on()?;
    g.apic_write(0x3e0, 0xb)?;
    g.apic_write(0x320, 0x2_0060)?;
    g.apic_write(0x380, 20_000_000)?;
    g.sti()?;
    for _ in 0..3 {
        g.hlt()?;
    }
    g.end()
}

fn timer_deadline(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x60)?;
    g.apic_on()?;
    g.apic_write(0x320, 0x4_0060)?;
    g.rdtsc()?;
    g.add(eax, 2_000_000)?;
    g.adc(edx, 0)?;
    g.mov(ecx, x86::msr::IA32_TSC_DEADLINE)?;
    g.wrmsr()?;
    g.sti()?;
    g.hlt()?;
    g.end()
}

fn x2apic_self_ipi(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(0x71)?;
    g.write_msr(0x80b, 0)?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(0x71, handler)?;
    g.read_msr(x86::msr::IA32_APIC_BASE)?;
    g.or(eax, x86::msr::apic_base::X2APIC as i32)?;
    g.wrmsr_of_rax(x86::msr::IA32_APIC_BASE)?;
    g.write_msr(0x80f, 0x1ff)?;
    g.write_msr(0x83f, 0x71)?;
    g.sti()?;
    g.linger()?;
    g.end()
}

/// Real-mode code for the second vCPU at 0x9000: jumps to 64-bit mode at the label `target`, through the tables that the first uses.
pub(super) fn start_second_at(g: &mut Code, target: iced_x86::code_asm::CodeLabel) -> Result<(), IcedError> {
    start_at(g, target, |g| {
        g.apic_on()?;
        g.apic_write(0x310, 1 << 24)?;
        g.apic_write(0x300, 0x4500)?;
        g.apic_write(0x310, 1 << 24)?;
        g.apic_write(0x300, 0x4609)
    })
}

/// As [`start_second_at`], for the vCPU that `start` sends INIT and a start-up IPI with page 9.
pub(super) fn start_at(
    g: &mut Code,
    target: iced_x86::code_asm::CodeLabel,
    start: fn(&mut Code) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    // cli; lgdt [0x9040]; mov eax, cr4|PAE; mov cr3; EFER.LME by WRMSR; mov cr0 PE|PG; jmp far 8:0x9080 (in 16-bit code)
    const TRAMPOLINE: &[u8] = &[
        0xfa, // cli
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0x66, 0x0f, 0x01, 0x16, 0x40, 0x90, // lgdt [0x9040]
        0x66, 0xb8, 0x20, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0, // mov eax, 0x620; mov cr4, eax
        0x66, 0xb8, 0x00, 0x40, 0x00, 0x00, 0x0f, 0x22, 0xd8, // mov eax, 0x4000; mov cr3, eax
        0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, // mov ecx, 0xc0000080; rdmsr
        0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, // or eax, 0x100; wrmsr
        0x66, 0xb8, 0x21, 0x00, 0x01, 0x80, 0x0f, 0x22, 0xc0, // mov eax, 0x80010021; mov cr0, eax
        0xea, 0x80, 0x90, 0x08, 0x00, // jmp 8:0x9080
    ];
    for (i, byte) in TRAMPOLINE.iter().enumerate() {
        g.mov(byte_ptr(0x9000 + i as u64), i32::from(*byte))?;
    }
    g.mov(word_ptr(0x9040u64), 0x17_i32)?;
    g.mov(dword_ptr(0x9042u64), super::GDT as i32)?;
    // 64-bit: mov rax, target; jmp rax
    g.mov(word_ptr(0x9080u64), 0xb848_i32)?;
    g.lea(rax, ptr(target))?;
    g.mov(qword_ptr(0x9082u64), rax)?;
    g.mov(word_ptr(0x908au64), 0xe0ff_i32)?;
    start(g)
}

fn start_second(g: &mut Code) -> Result<(), IcedError> {
    let mut second = g.create_label();
    start_second_at(g, second)?;
    g.wait_for(SCRATCH)?;
    g.mov(al, cl)?;
    g.report_al()?;
    g.mov(rax, qword_ptr(SCRATCH + 8))?;
    g.report_al()?;
    g.end()?;
    g.set_label(&mut second)?;
    // The APIC ID of the second.
    g.mov(eax, 0xfee0_0020u32)?;
    g.mov(eax, dword_ptr(rax))?;
    g.shr(eax, 24)?;
    g.mov(qword_ptr(SCRATCH + 8), rax)?;
    g.mov(eax, 0xa1)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    halt(g)
}

pub(super) fn halt(g: &mut Code) -> Result<(), IcedError> {
    let mut stay = g.create_label();
    g.set_label(&mut stay)?;
    g.cli()?;
    g.hlt()?;
    g.jmp(stay)
}

/// Both add 100,000 times to one counter.
fn locked_additions(g: &mut Code) -> Result<(), IcedError> {
    let mut second = g.create_label();
    start_second_at(g, second)?;
    let add = |g: &mut Code| -> Result<(), IcedError> {
        let mut again = g.create_label();
        g.mov(ecx, 100_000)?;
        g.set_label(&mut again)?;
        g.lock().inc(qword_ptr(SCRATCH + 64))?;
        g.sub(ecx, 1)?;
        g.jne(again)
    };
    add(g)?;
    g.wait_for(SCRATCH)?;
    g.mov(rax, qword_ptr(SCRATCH + 64))?;
    report_bytes(g, 3)?;
    g.end()?;
    g.set_label(&mut second)?;
    add(g)?;
    g.mov(eax, 1)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    halt(g)
}

/// The first executes a routine, the second rewrites it, the first executes it again after a serializing instruction.
fn cross_modifying_code(g: &mut Code) -> Result<(), IcedError> {
    let mut second = g.create_label();
    // mov al, 1; ret
    g.mov(edi, 0xa000)?;
    g.mov(dword_ptr(rdi), 0x00c3_01b0)?;
    start_second_at(g, second)?;
    g.mov(rdi, 0xa000u64)?;
    g.call(rdi)?;
    g.report_al()?;
    g.mov(qword_ptr(SCRATCH + 16), rdi)?;
    g.wait_for(SCRATCH)?;
    g.cpuid()?;
    g.mov(rdi, 0xa000u64)?;
    g.call(rdi)?;
    g.report_al()?;
    g.end()?;
    g.set_label(&mut second)?;
    // Writes the page beside the code first, so that it has a translation for it.
    g.mov(edi, 0xa000)?;
    g.mov(qword_ptr(rdi + 0x800), rdi)?;
    g.wait_for(SCRATCH + 16)?;
    g.mov(dl, 2)?;
    g.mov(esi, 0xa001)?;
    g.mov(byte_ptr(iced_x86::code_asm::rsi), dl)?;
    g.mov(eax, 1)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    halt(g)
}

fn msr_round_trip(g: &mut Code) -> Result<(), IcedError> {
    g.write_msr(x86::msr::IA32_LSTAR, 0xffff_8000_1234_cdef)?;
    g.read_msr(x86::msr::IA32_LSTAR)?;
    g.report_al()?;
    g.write_msr(x86::msr::IA32_GS_BASE, SCRATCH)?;
    g.mov(qword_ptr(SCRATCH), 0x13)?;
    g.mov(rax, qword_ptr(0u64).gs())?;
    g.report_al()?;
    g.mov(rcx, rbx)?;
    g.end()
}
