//! XCHG, XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic};
use x86::exception;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::flags::LazyFlags;
use crate::integer::operand::{operand_size, sized};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

const RAX: u8 = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;

fn xchg_registers<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (a, b): (T, T) = (core.reg(op.reg), core.reg(op.rm));
    core.set_reg(op.reg, b);
    core.set_reg(op.rm, a);
    Ok(())
}

/// With memory XCHG is locked, prefix or not.
fn xchg_memory<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let new: T = core.reg(op.rm);
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let old = core.locked_update::<T>(linear, |_| new)?;
    core.set_reg(op.rm, old);
    Ok(())
}

fn sum<T: Scalar>(a: T, b: T) -> (T, LazyFlags) {
    let sum = T::truncate(a.widen().wrapping_add(b.widen()));
    (sum, LazyFlags::add(a.widen(), b.widen(), sum.widen(), T::BITS))
}

fn xadd_registers<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let old: T = core.reg(op.reg);
    let (new, flags) = sum(old, core.reg(op.rm));
    core.set_reg(op.rm, old);
    core.set_reg(op.reg, new);
    core.flags = flags;
    Ok(())
}

fn xadd_memory<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let addend: T = core.reg(op.rm);
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let slot = core.prepare_write(linear, T::SIZE)?;
    let old: T = core.slot_read(slot);
    let (new, flags) = sum(old, addend);
    core.slot_write(slot, new);
    core.set_reg(op.rm, old);
    core.flags = flags;
    Ok(())
}

fn xadd_locked<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let addend: T = core.reg(op.rm);
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let old = core.locked_update::<T>(linear, |value| sum(value, addend).0)?;
    core.set_reg(op.rm, old);
    core.flags = sum(old, addend).1;
    Ok(())
}

/// The flags of "accumulator minus destination"; the accumulator takes the old value where they differ, and is otherwise not written (a 32-bit one keeps
/// its upper half).
fn compared<T: Scalar>(core: &mut Core, old: T) -> bool {
    let accumulator: T = core.reg(RAX);
    let difference = T::truncate(accumulator.widen().wrapping_sub(old.widen()));
    core.flags = LazyFlags::sub(accumulator.widen(), old.widen(), difference.widen(), T::BITS);
    let equal = accumulator == old;
    if !equal {
        core.set_reg(RAX, old);
    }
    equal
}

fn cmpxchg_registers<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let new: T = core.reg(op.rm);
    let old: T = core.reg(op.reg);
    if compared(core, old) {
        core.set_reg(op.reg, new);
    }
    Ok(())
}

/// Memory is written in either case: with what it held if the comparison fails.
fn cmpxchg_memory<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let new: T = core.reg(op.rm);
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let slot = core.prepare_write(linear, T::SIZE)?;
    let old: T = core.slot_read(slot);
    let equal = compared(core, old);
    core.slot_write(slot, if equal { new } else { old });
    Ok(())
}

fn cmpxchg_locked<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let new: T = core.reg(op.rm);
    let accumulator: T = core.reg(RAX);
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let old = core.locked_update::<T>(linear, |old| if old == accumulator { new } else { old })?;
    compared(core, old);
    Ok(())
}

fn set_zf(core: &mut Core, zf: bool) {
    let others = core.flags.bits() & !x86::rflags::ZF;
    core.flags = LazyFlags::from_bits(others | if zf { x86::rflags::ZF } else { 0 });
}

fn cmpxchg8b(core: &mut Core, op: &Op) -> Outcome {
    let pair = |high: u64, low: u64| high << 32 | low & 0xffff_ffff;
    let current = pair(core.gpr[RDX], core.gpr[0]);
    let new = pair(core.gpr[RCX], core.gpr[RBX]);
    let linear = core.linear_address(&op.mem, 8, true)?;
    let old = core.locked_update::<u64>(linear, |old| if old == current { new } else { old })?;
    if old != current {
        core.set_reg(RAX, old as u32);
        core.set_reg(RDX as u8, (old >> 32) as u32);
    }
    set_zf(core, old == current);
    Ok(())
}

fn cmpxchg16b(core: &mut Core, op: &Op) -> Outcome {
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let current = pair(core.gpr[RDX], core.gpr[0]);
    let new = pair(core.gpr[RCX], core.gpr[RBX]);
    let linear = core.linear_address(&op.mem, 16, true)?;
    if !linear.is_multiple_of(16) {
        return core.raise_with(exception::GP, 0);
    }
    let exchanged = core.locked_compare_exchange_16(linear, current, new)?;
    if let Err(old) = exchanged {
        core.gpr[0] = old as u64;
        core.gpr[RDX] = (old >> 64) as u64;
    }
    set_zf(core, exchanged.is_ok());
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = || operand_size(i, 1);
    // XCHG is symmetric, and iced gives the memory operand first or last as it is encoded.
    let in_memory = is_memory(i, 0) || (i.mnemonic() == Mnemonic::Xchg && is_memory(i, 1));
    let handler: Handler = match (i.mnemonic(), in_memory, i.has_lock_prefix()) {
        (Mnemonic::Cmpxchg8b, ..) => return Some(Lowered::new(cmpxchg8b).mem(memory(i, mode))),
        (Mnemonic::Cmpxchg16b, ..) => return Some(Lowered::new(cmpxchg16b).mem(memory(i, mode))),
        (Mnemonic::Xchg, false, _) => sized!(size(), xchg_registers),
        (Mnemonic::Xchg, true, _) => sized!(size(), xchg_memory),
        (Mnemonic::Xadd, false, _) => sized!(size(), xadd_registers),
        (Mnemonic::Xadd, true, false) => sized!(size(), xadd_memory),
        (Mnemonic::Xadd, true, true) => sized!(size(), xadd_locked),
        (Mnemonic::Cmpxchg, false, _) => sized!(size(), cmpxchg_registers),
        (Mnemonic::Cmpxchg, true, false) => sized!(size(), cmpxchg_memory),
        (Mnemonic::Cmpxchg, true, true) => sized!(size(), cmpxchg_locked),
        _ => return None,
    };
    let lowered = Lowered::new(handler);
    Some(match (is_memory(i, 0), is_memory(i, 1)) {
        (true, _) => lowered.mem(memory(i, mode)).rm(register(i.op1_register())),
        (_, true) => lowered.mem(memory(i, mode)).rm(register(i.op0_register())),
        _ => lowered.reg(register(i.op0_register())).rm(register(i.op1_register())),
    })
}
