//! The guests of the pair of i8259 (Intel order number 231468-003), whose vectors reach the processor by LINT0: the board's chips, or the backend's own.

use iced_x86::IcedError;
use iced_x86::code_asm::{al, dx, edx, rax};

use super::board::I8259_PIN;
use super::code::Guest as Code;
use super::{End, Guest};

/// Every guest of this file.
pub const ALL: &[Guest] = &[
    Guest {
        name: "an i8259 interrupts at each rise of its input",
        vcpus: 1,
        build: edges,
        expected: &[0x33, 1, 0x33],
        end: End::Finished,
    },
    Guest {
        name: "the second i8259 interrupts through the first",
        vcpus: 1,
        build: cascaded,
        expected: &[0x3a],
        end: End::Finished,
    },
    Guest { name: "an i8259's interrupt wakes HLT", vcpus: 1, build: wakes, expected: &[0x33], end: End::Finished },
];

/// Vectors of the first chip's inputs and of the second's.
const BASE: [u8; 2] = [0x30, 0x38];

/// Writes a byte to a port. Clobbers AL and DX.
fn put(g: &mut Code, port: u16, value: u8) -> Result<(), IcedError> {
    g.mov(edx, u32::from(port))?;
    g.mov(al, u32::from(value))?;
    g.out(dx, al)
}

/// Sets the level of an input.
fn input(g: &mut Code, pin: u8, high: bool) -> Result<(), IcedError> {
    put(g, I8259_PIN, pin | u8::from(high) << 7)
}

/// Initializes both chips with all inputs masked but those in `open`, and lets LINT0 of the local APIC pass them on.
fn initialize(g: &mut Code, open: u16) -> Result<(), IcedError> {
    // ICW1: cascade, ICW4 follows; ICW2: vectors; ICW3: the second is at input 2; ICW4: 8086 mode. Then the masks.
    let [first, second] = BASE;
    let [low, high] = (!open).to_le_bytes();
    for (port, value) in [(0x20, 0x11), (0x21, first), (0x21, 4), (0x21, 1), (0x21, low)] {
        put(g, port, value)?;
    }
    for (port, value) in [(0xa0, 0x11), (0xa1, second), (0xa1, 2), (0xa1, 1), (0xa1, high)] {
        put(g, port, value)?;
    }
    g.apic_on()?;
    g.apic_write(0x350, 0x700)
}

/// A handler that reports `vector` and ends the interrupt at the chips that it came through.
fn handler(g: &mut Code, vector: u8) -> Result<(), IcedError> {
    let (mut handler, mut over) = (g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.push(rax)?;
    g.push(iced_x86::code_asm::rdx)?;
    g.report(vector)?;
    let [_, second] = BASE;
    if vector >= second {
        put(g, 0xa0, 0x20)?;
    }
    put(g, 0x20, 0x20)?;
    g.pop(iced_x86::code_asm::rdx)?;
    g.pop(rax)?;
    g.iretq()?;
    g.set_label(&mut over)?;
    g.set_gate(vector, handler)
}

fn edges(g: &mut Code) -> Result<(), IcedError> {
    handler(g, 0x33)?;
    initialize(g, 1 << 3)?;
    g.sti()?;
    input(g, 3, true)?;
    g.linger()?;
    input(g, 3, true)?;
    g.linger()?;
    g.report(1)?;
    input(g, 3, false)?;
    input(g, 3, true)?;
    g.linger()?;
    g.end()
}

fn cascaded(g: &mut Code) -> Result<(), IcedError> {
    handler(g, 0x3a)?;
    initialize(g, 1 << 2 | 1 << 10)?;
    g.sti()?;
    input(g, 10, true)?;
    g.linger()?;
    g.end()
}

fn wakes(g: &mut Code) -> Result<(), IcedError> {
    handler(g, 0x33)?;
    initialize(g, 1 << 3)?;
    input(g, 3, true)?;
    g.sti()?;
    g.hlt()?;
    g.end()
}
