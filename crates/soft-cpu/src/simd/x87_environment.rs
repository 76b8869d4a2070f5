//! The x87 control instructions, which do not wait for pending exceptions, and the environment in memory (SDM vol. 1, 8.1.10).

use iced_x86::{Instruction, Mnemonic};

use super::x87;
use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory};
use crate::fpu::{FpuState, offset};
use crate::op::Op;

/// The bits of FCW that exist; bit 6 always reads as one.
const FCW_VALID: u16 = 0x1f3f;
const FCW_ALWAYS: u16 = 0x0040;
const MASKS: u16 = 0x3f;

/// How the environment is laid out in memory; in [`Op::aux`].
mod layout {
    /// 32-bit fields rather than 16-bit ones.
    pub(super) const WIDE: u8 = 1;
    /// Real-mode form: pointers are linear addresses, the opcode lies beside the instruction pointer.
    pub(super) const REAL: u8 = 2;
    /// The registers follow.
    pub(super) const REGISTERS: u8 = 4;
    /// The instruction waits for pending exceptions first.
    pub(super) const WAITS: u8 = 8;
}

fn fninit(core: &mut Core, _: &Op) -> Outcome {
    core.fpu.init_x87();
    Ok(())
}

fn fnclex(core: &mut Core, _: &Op) -> Outcome {
    // Exception flags, stack fault, summary and busy go; the condition codes and the top stay.
    let fsw = core.fpu.fsw() & 0x7f00;
    core.fpu.set_fsw(fsw);
    Ok(())
}

fn fnstsw_ax(core: &mut Core, _: &Op) -> Outcome {
    let fsw = core.fpu.fsw();
    core.set_reg::<u16>(x86::gpr::RAX as u8, fsw);
    Ok(())
}

fn fnstsw(core: &mut Core, op: &Op) -> Outcome {
    core.store(&op.mem, core.fpu.fsw())
}

fn fnstcw(core: &mut Core, op: &Op) -> Outcome {
    core.store(&op.mem, core.fpu.fcw())
}

fn fldcw(core: &mut Core, op: &Op) -> Outcome {
    x87::raise_pending(core)?;
    let value: u16 = core.load(&op.mem)?;
    core.fpu.set_fcw(value & FCW_VALID | FCW_ALWAYS);
    core.fpu.update_x87_summary();
    Ok(())
}

fn fnop(core: &mut Core, _: &Op) -> Outcome {
    x87::raise_pending(core)
}

/// FNDISI, FNENI and FNSETPM of the 8087 and 287: nothing.
fn nothing(_: &mut Core, _: &Op) -> Outcome {
    Ok(())
}

/// Size of the environment in bytes.
const fn environment_size(kind: u8) -> usize {
    if kind & layout::WIDE != 0 { 28 } else { 14 }
}

const fn image_size(kind: u8) -> usize {
    environment_size(kind) + if kind & layout::REGISTERS != 0 { 80 } else { 0 }
}

/// The tag word with two bits a physical register: 0 valid, 1 zero, 2 special, 3 empty.
fn full_tags(fpu: &FpuState) -> u16 {
    let in_use = fpu.image[offset::FTW];
    let top = usize::from(fpu.fsw() >> 11 & 7);
    (0..8usize).fold(0, |tags, physical| {
        let value = fpu.st(physical.wrapping_sub(top) & 7);
        let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
        let fraction_is_zero = value[..8].iter().all(|b| *b == 0);
        let tag = if in_use >> physical & 1 == 0 {
            3
        } else if exponent == 0 && fraction_is_zero {
            1
        } else if exponent == 0 || exponent == 0x7fff || value[7] & 0x80 == 0 {
            2
        } else {
            0
        };
        tags | tag << (physical * 2)
    })
}

fn abridged_tags(full: u16) -> u8 {
    (0..8).fold(0, |tags, n| tags | if full >> (n * 2) & 3 == 3 { 0 } else { 1 << n })
}

fn write_environment(fpu: &FpuState, kind: u8, image: &mut [u8]) {
    let (fip, fdp, fop) = (fpu.pointer(offset::FIP) as u32, fpu.pointer(offset::FDP) as u32, u32::from(fpu.fop()));
    let real = kind & layout::REAL != 0;
    let words = [u32::from(fpu.fcw()), u32::from(fpu.fsw()), u32::from(full_tags(fpu))];
    if kind & layout::WIDE != 0 {
        // The upper halves of fields of 16 bits read as ones.
        let rest = if real {
            [fip & 0xffff | 0xffff_0000, (fip >> 16) << 12 | fop, fdp & 0xffff | 0xffff_0000, (fdp >> 16) << 12]
        } else {
            [fip, fop << 16, fdp, 0xffff_0000]
        };
        let words = words.map(|w| w | 0xffff_0000);
        for (field, word) in image.chunks_exact_mut(4).zip(words.into_iter().chain(rest)) {
            field.copy_from_slice(&word.to_le_bytes());
        }
    } else {
        let rest = if real {
            [fip & 0xffff, (fip >> 16 & 0xf) << 12 | fop, fdp & 0xffff, (fdp >> 16 & 0xf) << 12]
        } else {
            [fip & 0xffff, 0, fdp & 0xffff, 0]
        };
        for (field, word) in image.chunks_exact_mut(2).zip(words.into_iter().chain(rest)) {
            field.copy_from_slice(&(word as u16).to_le_bytes());
        }
    }
}

fn read_environment(fpu: &mut FpuState, kind: u8, image: &[u8]) {
    let size = if kind & layout::WIDE != 0 { 4 } else { 2 };
    let mut fields = [0u32; 7];
    for (field, bytes) in fields.iter_mut().zip(image.chunks_exact(size)) {
        *field = bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    let [fcw, fsw, tags, fip, second, fdp, fourth] = fields;
    fpu.set_fcw(fcw as u16 & FCW_VALID | FCW_ALWAYS);
    fpu.set_top((fsw >> 11 & 7) as u8);
    fpu.set_fsw(fsw as u16);
    fpu.update_x87_summary();
    fpu.image[offset::FTW] = abridged_tags(tags as u16);
    if kind & layout::REAL != 0 {
        fpu.set_pointer(offset::FIP, u64::from(fip & 0xffff | second >> 12 << 16));
        fpu.set_pointer(offset::FDP, u64::from(fdp & 0xffff | fourth >> 12 << 16));
        fpu.set_fop(second as u16);
    } else {
        fpu.set_pointer(offset::FIP, u64::from(fip));
        fpu.set_pointer(offset::FDP, u64::from(fdp));
        if kind & layout::WIDE != 0 {
            fpu.set_fop((second >> 16) as u16);
        }
    }
}

/// FNSTENV and FNSAVE.
fn store(core: &mut Core, op: &Op) -> Outcome {
    let mut image = [0; 108];
    let (environment, size) = (environment_size(op.aux), image_size(op.aux));
    write_environment(&core.fpu, op.aux, &mut image[..environment]);
    if op.aux & layout::REGISTERS != 0 {
        for (n, register) in image[environment..size].chunks_exact_mut(10).enumerate() {
            register.copy_from_slice(&core.fpu.st(n));
        }
    }
    let linear = core.linear_address(&op.mem, size, true)?;
    core.write_bytes(linear, &image[..size])?;
    if op.aux & layout::REGISTERS != 0 {
        core.fpu.init_x87();
    } else {
        let fcw = core.fpu.fcw();
        core.fpu.set_fcw(fcw | MASKS);
        core.fpu.update_x87_summary();
    }
    Ok(())
}

/// FLDENV and FRSTOR.
fn load(core: &mut Core, op: &Op) -> Outcome {
    if op.aux & layout::WAITS != 0 {
        x87::raise_pending(core)?;
    }
    let mut image = [0; 108];
    let (environment, size) = (environment_size(op.aux), image_size(op.aux));
    let linear = core.linear_address(&op.mem, size, false)?;
    core.read_bytes(linear, &mut image[..size])?;
    read_environment(&mut core.fpu, op.aux, &image[..environment]);
    if op.aux & layout::REGISTERS != 0 {
        for (n, register) in image[environment..size].chunks_exact(10).enumerate() {
            let mut value = [0; 10];
            value.copy_from_slice(register);
            core.fpu.set_st(n, value);
        }
    }
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let operand = |lowered: Lowered| lowered.mem(memory(i, mode));
    let environment = |lowered: Lowered, rest: u8| {
        let size = i.memory_size().size();
        let wide = if matches!(size, 28 | 108) { layout::WIDE } else { 0 };
        let real = if mode.has(DecodeMode::REAL) { layout::REAL } else { 0 };
        lowered.mem(memory(i, mode)).aux(wide | real | rest)
    };
    Some(match i.mnemonic() {
        Mnemonic::Fninit => Lowered::new(fninit),
        Mnemonic::Fnclex => Lowered::new(fnclex),
        Mnemonic::Fnstsw if is_memory(i, 0) => operand(Lowered::new(fnstsw)),
        Mnemonic::Fnstsw => Lowered::new(fnstsw_ax),
        Mnemonic::Fnstcw => operand(Lowered::new(fnstcw)),
        Mnemonic::Fldcw => operand(Lowered::new(fldcw)),
        Mnemonic::Fnop => Lowered::new(fnop),
        Mnemonic::Fnstenv => environment(Lowered::new(store), 0),
        Mnemonic::Fnsave => environment(Lowered::new(store), layout::REGISTERS),
        Mnemonic::Fldenv => environment(Lowered::new(load), layout::WAITS),
        Mnemonic::Frstor => environment(Lowered::new(load), layout::WAITS | layout::REGISTERS),
        Mnemonic::Fndisi | Mnemonic::Fneni | Mnemonic::Fnsetpm => Lowered::new(nothing),
        _ => return None,
    })
}
