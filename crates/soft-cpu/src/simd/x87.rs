//! x87 instructions as thunks, with the exception model around them (SDM vol. 1, 8.5 to 8.7).
//!
//! They run with the guest's own masks: an unmasked exception makes the processor set the summary bit and is raised by the next waiting
//! instruction, and the thunk has none. So results are exact for unmasked exceptions too, and #MF is ours to raise.

use iced_x86::{Encoder, Instruction};
use x86::{cr0, exception};

use super::arena::call;
use super::native::{load_operand, store_operand};
use super::thunk::{MemoryUse, ThunkCache};
use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, branch_base, memory};
use crate::flags::LazyFlags;
use crate::fpu::{FSW_ES, offset};
use crate::op::Op;

/// The exceptions (in FSW, and their masks in FCW) after which a store does not take place if they are not masked: all but precision.
const NO_STORE: u16 = 0x1f;

/// In [`Op::aux`]: bits 0 to 4 are the memory operand's size.
const SIZE: u8 = 0x1f;
/// Reads or writes RFLAGS.
const RFLAGS: u8 = 0x20;
/// The memory operand is read.
const LOAD: u8 = 0x40;
/// The memory operand is written.
const STORE: u8 = 0x80;

/// Raises #MF if an unmasked exception is pending: what every waiting instruction does first.
///
/// # Errors
/// #MF. Without CR0.NE a real machine would raise an external interrupt through an FERR# pin that ours has not.
#[inline(always)]
pub(super) fn raise_pending(core: &mut Core) -> Outcome {
    if core.fpu.fsw() & FSW_ES != 0 {
        return core.raise(exception::MF);
    }
    Ok(())
}

/// FWAIT: CR0.EM does not matter to it, CR0.TS only together with CR0.MP.
pub(super) fn fwait(core: &mut Core, _: &Op) -> Outcome {
    if core.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return core.raise(exception::NM);
    }
    raise_pending(core)
}

/// `extra` is the instruction's address as a near branch's target would be, `reg` and `rm` its opcode.
fn execute(core: &mut Core, op: &Op) -> Outcome {
    raise_pending(core)?;
    let size = usize::from(op.aux & SIZE);
    let mut slot = None;
    let mut data_pointer = core.fpu.pointer(offset::FDP);
    if op.aux & LOAD != 0 {
        let linear = core.linear_address(&op.mem, size, false)?;
        load_operand(core, linear, size)?;
    }
    if op.aux & STORE != 0 {
        let linear = core.linear_address(&op.mem, size, true)?;
        slot = Some(core.prepare_write(linear, size)?);
    }
    if op.aux & (LOAD | STORE) != 0 {
        data_pointer = core.effective_address(&op.mem);
    }

    let rflags = core.flags.bits() | x86::rflags::RESERVED_ONE;
    let fpu = &mut *core.fpu;
    fpu.scratch.flags = rflags;
    let mxcsr = fpu.mxcsr();
    call(op.immediate, fpu);
    fpu.set_mxcsr(mxcsr);
    let stored = fpu.fsw() & !fpu.fcw() & NO_STORE == 0;
    let page = core.gpr[usize::from(branch_base(core.mode))];
    fpu.set_pointer(offset::FIP, page.wrapping_add(u64::from(op.extra)));
    fpu.set_pointer(offset::FDP, data_pointer);
    fpu.set_fop(u16::from(op.reg) << 8 | u16::from(op.rm));
    if op.aux & RFLAGS != 0 {
        core.flags = LazyFlags::from_bits(core.fpu.scratch.flags);
    }
    if let Some(slot) = slot
        && stored
    {
        store_operand(core, slot, size);
    }
    Ok(())
}

/// The eleven opcode bits that FOP holds.
fn opcode(i: &Instruction, mode: DecodeMode) -> Option<u16> {
    let mut encoder = Encoder::new(mode.bitness());
    encoder.encode(i, i.ip()).ok()?;
    let bytes = encoder.take_buffer();
    let at = bytes.iter().position(|b| (0xd8..=0xdf).contains(b))?;
    Some(u16::from(bytes[at] & 7) << 8 | u16::from(*bytes.get(at + 1)?))
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode, thunks: &mut ThunkCache) -> Option<Lowered> {
    let (entry, shape) = thunks.thunk(i)?;
    let opcode = opcode(i, mode)?;
    let mut aux = if shape.flags_in || shape.flags_out { RFLAGS } else { 0 };
    if shape.gpr[0].is_some() || shape.mxcsr {
        return None;
    }
    let mut lowered =
        Lowered::new(execute).immediate(entry).extra(i.ip() as u32).reg((opcode >> 8) as u8).rm(opcode as u8);
    if shape.memory != MemoryUse::None {
        let size = i.memory_size().size();
        if !(1..=16).contains(&size) {
            return None;
        }
        aux |= size as u8 | if shape.memory == MemoryUse::Load { LOAD } else { STORE };
        lowered = lowered.mem(memory(i, mode));
    }
    Some(lowered.aux(aux))
}
