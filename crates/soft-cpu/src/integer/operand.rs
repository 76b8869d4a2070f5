//! Where an operand lives, as types: a handler is written once and instantiated for registers, memory and locked memory.
//!
//! By convention `op.reg` is the register a [`Place`] updates and `op.rm` the one a [`Source`] reads; memory is `op.mem`.

use iced_x86::{Instruction, OpKind};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::flags::LazyFlags;
use crate::op::{Mem, Op};
use crate::ram::Scalar;

/// An operand that is only read.
pub(super) trait Source: 'static {
    /// Its value.
    fn get<T: Scalar>(core: &mut Core, op: &Op) -> Outcome<T>;
}

/// An operand that is read and written.
pub(super) trait Place: 'static {
    /// Replaces the value and the flags by what `f` makes of them. `f` may be called more than once.
    fn update<T: Scalar>(core: &mut Core, op: &Op, f: impl Fn(T, &LazyFlags) -> (T, LazyFlags)) -> Outcome;
}

/// A general register.
pub(super) struct InRegister;
/// Memory.
pub(super) struct InMemory;
/// Memory, under LOCK.
pub(super) struct InLockedMemory;
/// The immediate.
pub(super) struct Immediate;

impl Source for InRegister {
    #[inline(always)]
    fn get<T: Scalar>(core: &mut Core, op: &Op) -> Outcome<T> {
        Ok(core.reg(op.rm))
    }
}

impl Source for InMemory {
    #[inline(always)]
    fn get<T: Scalar>(core: &mut Core, op: &Op) -> Outcome<T> {
        core.load(&op.mem)
    }
}

impl Source for Immediate {
    #[inline(always)]
    fn get<T: Scalar>(_: &mut Core, op: &Op) -> Outcome<T> {
        Ok(T::truncate(op.immediate))
    }
}

impl Place for InRegister {
    #[inline(always)]
    fn update<T: Scalar>(core: &mut Core, op: &Op, f: impl Fn(T, &LazyFlags) -> (T, LazyFlags)) -> Outcome {
        let (result, flags) = f(core.reg(op.reg), &core.flags);
        core.set_reg(op.reg, result);
        core.flags = flags;
        Ok(())
    }
}

impl Place for InMemory {
    #[inline(always)]
    fn update<T: Scalar>(core: &mut Core, op: &Op, f: impl Fn(T, &LazyFlags) -> (T, LazyFlags)) -> Outcome {
        let linear = core.linear_address(&op.mem, T::SIZE, true)?;
        let slot = core.prepare_write(linear, T::SIZE)?;
        let (result, flags) = f(core.slot_read(slot), &core.flags);
        core.slot_write(slot, result);
        core.flags = flags;
        Ok(())
    }
}

impl Place for InLockedMemory {
    #[inline(always)]
    fn update<T: Scalar>(core: &mut Core, op: &Op, f: impl Fn(T, &LazyFlags) -> (T, LazyFlags)) -> Outcome {
        let before = core.flags;
        let linear = core.linear_address(&op.mem, T::SIZE, true)?;
        let old = core.locked_update::<T>(linear, |value| f(value, &before).0)?;
        core.flags = f(old, &before).1;
        Ok(())
    }
}

/// `mem` moved by `delta` bytes: the sum wraps at the address size, as the parts of an address do.
#[inline(always)]
pub(super) fn displaced(mem: &Mem, delta: u64) -> Mem {
    Mem { displacement: mem.displacement.wrapping_add(delta), ..*mem }
}

/// Size in bytes of operand `n`, a general register or memory.
pub(super) fn operand_size(i: &Instruction, n: u32) -> usize {
    if is_memory(i, n) { i.memory_size().size() } else { i.op_register(n).size() }
}

/// Whether operand `n` is a general register or memory.
pub(super) fn is_general(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr()
}

/// Puts operand 0 where a [`Place`] looks for it.
pub(super) fn with_place(lowered: Lowered, i: &Instruction, mode: DecodeMode) -> Lowered {
    if is_memory(i, 0) { lowered.mem(memory(i, mode)) } else { lowered.reg(register(i.op0_register())) }
}

/// Puts operand `n` where a [`Source`] looks for it.
pub(super) fn with_source(lowered: Lowered, i: &Instruction, n: u32, mode: DecodeMode) -> Lowered {
    match i.op_kind(n) {
        OpKind::Memory => lowered.mem(memory(i, mode)),
        OpKind::Register => lowered.rm(register(i.op_register(n))),
        _ => lowered.immediate(i.immediate(n)),
    }
}

/// Picks the instance of a handler for an operand size in bytes: `sized!(size, handler, other arguments)`.
macro_rules! sized {
    ($size:expr, $handler:ident $(, $arg:ty)*) => {
        match $size {
            1 => $handler::<$($arg,)* u8> as $crate::op::Handler,
            2 => $handler::<$($arg,)* u16>,
            4 => $handler::<$($arg,)* u32>,
            _ => $handler::<$($arg,)* u64>,
        }
    };
}
pub(super) use sized;

/// Likewise for an operation that has no 8-bit form.
macro_rules! sized_word {
    ($size:expr, $handler:ident $(, $arg:ty)*) => {
        match $size {
            2 => $handler::<$($arg,)* u16> as $crate::op::Handler,
            4 => $handler::<$($arg,)* u32>,
            _ => $handler::<$($arg,)* u64>,
        }
    };
}
pub(super) use sized_word;

/// Picks the instance for the place of operand 0 and its size: `placed!(instruction, sized, size, handler, other arguments)`, where `sized` is the macro for
/// the sizes there are.
macro_rules! placed {
    ($i:expr, $sized:ident, $size:expr, $handler:ident $(, $arg:ty)*) => {
        if !$crate::decode::is_memory($i, 0) {
            $sized!($size, $handler $(, $arg)*, $crate::integer::operand::InRegister)
        } else if $i.has_lock_prefix() {
            $sized!($size, $handler $(, $arg)*, $crate::integer::operand::InLockedMemory)
        } else {
            $sized!($size, $handler $(, $arg)*, $crate::integer::operand::InMemory)
        }
    };
}
pub(super) use placed;

/// Picks the instance for a register or memory source in operand `n` and a size: `sourced!(instruction, n, sized, size, handler, other arguments)`.
macro_rules! sourced {
    ($i:expr, $n:expr, $sized:ident, $size:expr, $handler:ident $(, $arg:ty)*) => {
        if $crate::decode::is_memory($i, $n) {
            $sized!($size, $handler $(, $arg)*, $crate::integer::operand::InMemory)
        } else {
            $sized!($size, $handler $(, $arg)*, $crate::integer::operand::InRegister)
        }
    };
}
pub(super) use sourced;
