//! A machine with more processors than eight bits can name: the last one is started, interrupted by the IOAPIC, and says who it is.

use iced_x86::IcedError;
use iced_x86::code_asm::{al, dword_ptr, dx, eax, ecx, edx, ptr, qword_ptr, rax, rsp};
use x86::msr;

use super::board::{IOAPIC, PIN};
use super::code::Guest as Code;
use super::guests::{halt, report_bytes, start_at};
use super::{End, Guest, IDT, LIMIT, SCRATCH, run};
use crate::{AccelError, Accelerator};

/// Processors of the machine, and the local APIC ID of the last.
const VCPUS: u32 = 300;
const LAST: u32 = VCPUS - 1;
/// The vector that the IOAPIC sends it.
const VECTOR: u8 = 0x54;

const MANY: Guest = Guest {
    name: "the last of 300 processors",
    vcpus: VCPUS,
    build: last_of_many,
    // Its x2APIC ID, then the interrupt's vector.
    expected: &[LAST as u8, (LAST >> 8) as u8, VECTOR],
    end: End::Finished,
};

/// x2APIC mode, switched on. Clobbers RAX, RCX and RDX.
fn x2apic_on(g: &mut Code) -> Result<(), IcedError> {
    g.read_msr(msr::IA32_APIC_BASE)?;
    g.or(eax, msr::apic_base::X2APIC as i32)?;
    g.wrmsr_of_rax(msr::IA32_APIC_BASE)?;
    g.write_msr(0x80f, 0x1ff)
}

/// Writes an IOAPIC's register. Clobbers RAX.
fn ioapic_write(g: &mut Code, register: u32, value: u32) -> Result<(), IcedError> {
    g.mov(eax, IOAPIC as u32)?;
    g.mov(dword_ptr(rax), register as i32)?;
    g.mov(dword_ptr(rax + 0x10), value as i32)
}

fn last_of_many(g: &mut Code) -> Result<(), IcedError> {
    let (mut last, mut handler, mut over) = (g.create_label(), g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(VECTOR)?;
    g.end()?;
    g.set_label(&mut over)?;
    g.set_gate(VECTOR, handler)?;
    start_at(g, last, |g| {
        x2apic_on(g)?;
        // INIT, then the start-up IPI, by the x2APIC's interrupt command register.
        g.write_msr(0x830, u64::from(LAST) << 32 | 0x4500)?;
        g.write_msr(0x830, u64::from(LAST) << 32 | 0x4609)
    })?;
    g.wait_for(SCRATCH)?;
    // Pin 4 to a destination of 15 bits: the lower eight in bits 63 to 56, the others in bits 55 to 49.
    ioapic_write(g, 0x19, (LAST & 0xff) << 24 | LAST >> 8 << 17)?;
    ioapic_write(g, 0x18, VECTOR.into())?;
    g.mov(edx, u32::from(PIN))?;
    g.mov(al, 0x84)?;
    g.out(dx, al)?;
    halt(g)?;
    g.set_label(&mut last)?;
    g.mov(rsp, super::STACK - 0x1000)?;
    g.mov(rax, IDT << 16 | 0xfff)?;
    g.push(0)?;
    g.push(rax)?;
    g.lidt(ptr(rsp))?;
    x2apic_on(g)?;
    g.mov(ecx, 0x802)?;
    g.rdmsr()?;
    report_bytes(g, 2)?;
    g.mov(eax, 1)?;
    g.mov(qword_ptr(SCRATCH), rax)?;
    g.sti()?;
    let mut stay = g.create_label();
    g.set_label(&mut stay)?;
    g.hlt()?;
    g.jmp(stay)
}

/// Runs the guest.
///
/// # Errors
/// What the backend reports.
///
/// # Panics
/// When the last processor is not reached.
pub fn check(accelerator: &dyn Accelerator) -> Result<(), AccelError> {
    let report = run(accelerator, &MANY, LIMIT)?;
    assert!(report.is_right(&MANY), "it ended {:?} and reported {:x?}", report.end, report.bytes);
    Ok(())
}
