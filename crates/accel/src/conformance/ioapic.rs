//! The guests of the IOAPIC, whose messages and ends of interrupt pass the backend, and of the bits that the processor sets in page tables.

use iced_x86::IcedError;
use iced_x86::code_asm::{al, dword_ptr, dx, eax, edx, qword_ptr, rax};

use super::board::{IOAPIC, PIN};
use super::code::Guest as Code;
use super::guests::reporting_handler;
use super::{DIRECTORIES, End, Guest};

/// Every guest of this file.
pub const ALL: &[Guest] = &[
    Guest {
        name: "an IOAPIC's edge pin interrupts at each rise",
        vcpus: 1,
        build: edge,
        expected: &[0x54, 1, 0x54],
        end: End::Finished,
    },
    Guest {
        name: "an IOAPIC's masked pin is silent",
        vcpus: 1,
        build: masked,
        expected: &[1, 0x56],
        end: End::Finished,
    },
    Guest {
        name: "an IOAPIC's level pin has its remote IRR until the end of interrupt",
        vcpus: 1,
        build: level,
        expected: &[0x55, 1, 0xe0, 0x55, 0],
        end: End::Finished,
    },
    Guest {
        name: "a load sets the accessed bit, a store the dirty bit",
        vcpus: 1,
        build: accessed_and_dirty,
        expected: &[0, 1, 3],
        end: End::Finished,
    },
];

/// Redirection entry: level-triggered.
const LEVEL: u32 = 1 << 15;
/// Redirection entry: masked.
const MASKED: u32 = 1 << 16;

/// Programs the lower half of `pin`'s redirection entry; the upper addresses local APIC 0 after RESET. Clobbers RAX.
fn redirect(g: &mut Code, pin: u8, entry: u32) -> Result<(), IcedError> {
    select(g, pin)?;
    g.mov(eax, (IOAPIC + 0x10) as u32)?;
    g.mov(dword_ptr(rax), entry as i32)
}

/// Selects the lower half of `pin`'s redirection entry. Clobbers RAX.
fn select(g: &mut Code, pin: u8) -> Result<(), IcedError> {
    g.mov(eax, IOAPIC as u32)?;
    g.mov(dword_ptr(rax), i32::from(0x10 + 2 * pin))
}

/// Reports the remote IRR of the selected entry. Clobbers RAX.
fn report_remote_irr(g: &mut Code) -> Result<(), IcedError> {
    g.mov(eax, (IOAPIC + 0x10) as u32)?;
    g.mov(eax, dword_ptr(rax))?;
    g.shr(eax, 14)?;
    g.and(eax, 1)?;
    g.report_al()
}

/// Sets the level of `pin`'s wire. Clobbers AL and DX.
fn wire(g: &mut Code, pin: u8, high: bool) -> Result<(), IcedError> {
    g.mov(edx, u32::from(PIN))?;
    g.mov(al, u32::from(pin | u8::from(high) << 7))?;
    g.out(dx, al)
}

fn edge(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x54)?;
    g.apic_on()?;
    redirect(g, 4, 0x54)?;
    g.sti()?;
    wire(g, 4, true)?;
    g.linger()?;
    wire(g, 4, true)?;
    g.linger()?;
    g.report(1)?;
    wire(g, 4, false)?;
    wire(g, 4, true)?;
    g.linger()?;
    g.end()
}

fn masked(g: &mut Code) -> Result<(), IcedError> {
    reporting_handler(g, 0x56)?;
    g.apic_on()?;
    redirect(g, 23, 0x56 | MASKED)?;
    g.sti()?;
    wire(g, 23, true)?;
    g.linger()?;
    g.report(1)?;
    wire(g, 23, false)?;
    redirect(g, 23, 0x56)?;
    wire(g, 23, true)?;
    g.linger()?;
    g.end()
}

fn level(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(0x55)?;
    report_remote_irr(g)?;
    wire(g, 5, false)?;
    g.apic_eoi()?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(0x55, handler)?;
    g.apic_on()?;
    redirect(g, 5, 0x55 | LEVEL)?;
    g.sti()?;
    wire(g, 5, true)?;
    g.linger()?;
    report_remote_irr(g)?;
    g.end()
}

/// Of the second large page, which nothing has touched yet.
fn accessed_and_dirty(g: &mut Code) -> Result<(), IcedError> {
    const LARGE_PAGE: u64 = 2 << 20;
    report_accessed_and_dirty(g)?;
    g.mov(rax, qword_ptr(LARGE_PAGE))?;
    report_accessed_and_dirty(g)?;
    g.mov(qword_ptr(LARGE_PAGE), rax)?;
    report_accessed_and_dirty(g)?;
    g.end()
}

/// Bits 5 and 6 of the page's directory entry.
fn report_accessed_and_dirty(g: &mut Code) -> Result<(), IcedError> {
    g.mov(eax, dword_ptr(DIRECTORIES + 8))?;
    g.shr(eax, 5)?;
    g.and(eax, 3)?;
    g.report_al()
}
