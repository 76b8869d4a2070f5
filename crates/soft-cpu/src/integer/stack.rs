//! PUSH and POP of general registers, memory and immediates, and how the stack is addressed in each mode.
//!
//! Segment registers are pushed and popped by the system family.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::exception;

use crate::core::{Core, DecodeMode, Outcome, Stop, seg};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::integer::operand::{Immediate, InMemory, InRegister, Source, is_general, sized_word, with_source};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

const RSP: usize = 4;

/// How wide the stack pointer is, and whether SS is checked.
pub(super) trait Stack: 'static {
    /// The stack pointer's bits.
    const MASK: u64;

    /// Loads from offset `sp` of the stack.
    fn read<T: Scalar>(core: &mut Core, sp: u64) -> Outcome<T>;
    /// Stores at offset `sp` of the stack.
    fn write<T: Scalar>(core: &mut Core, sp: u64, value: T) -> Outcome;

    /// Checks that offset `sp` of the stack can be written, and writes nothing.
    fn probe<T: Scalar>(core: &mut Core, sp: u64) -> Outcome;

    /// The stack pointer.
    #[inline(always)]
    fn sp(core: &Core) -> u64 {
        core.gpr[RSP] & Self::MASK
    }

    /// Sets the stack pointer, and of RSP no more than it.
    #[inline(always)]
    fn set_sp(core: &mut Core, sp: u64) {
        core.gpr[RSP] = if Self::MASK == 0xffff { core.gpr[RSP] & !0xffff | sp & 0xffff } else { sp & Self::MASK };
    }

    /// Pushes one value.
    #[inline(always)]
    fn push<T: Scalar>(core: &mut Core, value: T) -> Outcome {
        let sp = Self::sp(core).wrapping_sub(T::SIZE as u64) & Self::MASK;
        Self::write(core, sp, value)?;
        Self::set_sp(core, sp);
        Ok(())
    }

    /// Pops one value.
    #[inline(always)]
    fn pop<T: Scalar>(core: &mut Core) -> Outcome<T> {
        let sp = Self::sp(core);
        let value = Self::read(core, sp)?;
        Self::set_sp(core, sp.wrapping_add(T::SIZE as u64));
        Ok(value)
    }
}

/// 64-bit code: RSP, no segment.
pub(super) struct Stack64;
/// ESP within SS.
pub(super) struct Stack32;
/// SP within SS.
pub(super) struct Stack16;

/// On the stack, an address that is not canonical is a stack fault.
#[cold]
#[inline(never)]
fn as_stack_fault(core: &mut Core) {
    if core.fault.vector == exception::GP {
        core.fault.vector = exception::SS;
    }
}

impl Stack for Stack64 {
    const MASK: u64 = u64::MAX;

    #[inline(always)]
    fn read<T: Scalar>(core: &mut Core, sp: u64) -> Outcome<T> {
        let result = core.read(sp);
        if result.is_err() {
            as_stack_fault(core);
        }
        result
    }

    #[inline(always)]
    fn write<T: Scalar>(core: &mut Core, sp: u64, value: T) -> Outcome {
        let result = core.write(sp, value);
        if result.is_err() {
            as_stack_fault(core);
        }
        result
    }

    fn probe<T: Scalar>(core: &mut Core, sp: u64) -> Outcome {
        if core.prepare_write(sp, T::SIZE).is_err() {
            as_stack_fault(core);
            return Err(Stop::Exception);
        }
        Ok(())
    }
}

macro_rules! checked_stack {
    ($name:ident, $mask:expr) => {
        impl Stack for $name {
            const MASK: u64 = $mask;

            fn read<T: Scalar>(core: &mut Core, sp: u64) -> Outcome<T> {
                let linear = core.checked_linear_address(seg::SS, sp, T::SIZE, false)?;
                core.read(linear)
            }

            fn write<T: Scalar>(core: &mut Core, sp: u64, value: T) -> Outcome {
                let linear = core.checked_linear_address(seg::SS, sp, T::SIZE, true)?;
                core.write(linear, value)
            }

            fn probe<T: Scalar>(core: &mut Core, sp: u64) -> Outcome {
                let linear = core.checked_linear_address(seg::SS, sp, T::SIZE, true)?;
                core.prepare_write(linear, T::SIZE).map(|_| ())
            }
        }
    };
}
checked_stack!(Stack32, 0xffff_ffff);
checked_stack!(Stack16, 0xffff);

/// Picks the instance of a handler for the mode's stack and an operand size in bytes: `on_stack!(mode, size, handler, other arguments)`.
macro_rules! on_stack {
    ($mode:expr, $size:expr, $handler:ident $(, $arg:ty)*) => {
        if $mode.has($crate::core::DecodeMode::CODE64) {
            sized_word!($size, $handler $(, $arg)*, $crate::integer::stack::Stack64)
        } else if $mode.has($crate::core::DecodeMode::STACK32) {
            sized_word!($size, $handler $(, $arg)*, $crate::integer::stack::Stack32)
        } else {
            sized_word!($size, $handler $(, $arg)*, $crate::integer::stack::Stack16)
        }
    };
}
pub(super) use on_stack;

fn push<F: Source, W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = F::get::<T>(core, op)?;
    W::push(core, value)
}

fn pop_register<W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = W::pop(core)?;
    core.set_reg(op.reg, value);
    Ok(())
}

/// An address that uses the stack pointer uses the one after the pop.
fn pop_memory<W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let before = core.gpr[RSP];
    let value: T = W::pop(core)?;
    let stored = core.store(&op.mem, value);
    if stored.is_err() {
        core.gpr[RSP] = before;
    }
    stored
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    if !matches!(i.mnemonic(), Mnemonic::Push | Mnemonic::Pop) || !is_general(i, 0) {
        return None;
    }
    let size = i.stack_pointer_increment().unsigned_abs() as usize;
    if i.mnemonic() == Mnemonic::Push {
        let handler: Handler = match i.op0_kind() {
            OpKind::Register => on_stack!(mode, size, push, InRegister),
            OpKind::Memory => on_stack!(mode, size, push, InMemory),
            _ => on_stack!(mode, size, push, Immediate),
        };
        return Some(with_source(Lowered::new(handler), i, 0, mode));
    }
    Some(if is_memory(i, 0) {
        Lowered::new(on_stack!(mode, size, pop_memory)).mem(memory(i, mode))
    } else {
        Lowered::new(on_stack!(mode, size, pop_register)).reg(register(i.op0_register()))
    })
}
