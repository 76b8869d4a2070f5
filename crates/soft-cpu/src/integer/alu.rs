//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP and TEST in every operand form and size, LOCKed ones included.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::flags::{LazyFlags, sign_extend};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

/// One two-operand operation.
trait Binary {
    /// Whether the destination is written.
    const WRITES: bool;
    /// The result and the flags, from operands that are zero-extended.
    fn apply<T: Scalar>(a: T, b: T, flags: &LazyFlags) -> (T, LazyFlags);
}

macro_rules! logic {
    ($($name:ident $writes:literal |$a:ident, $b:ident| $result:expr;)+) => { $(
        struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Scalar>(a: T, b: T, _: &LazyFlags) -> (T, LazyFlags) {
                let ($a, $b) = (a.widen(), b.widen());
                let result: u64 = $result;
                (T::truncate(result), LazyFlags::logic(sign_extend(result, T::BITS)))
            }
        }
    )+ };
}
logic! {
    Or true |a, b| a | b;
    And true |a, b| a & b;
    Xor true |a, b| a ^ b;
    Test false |a, b| a & b;
}

macro_rules! arithmetic {
    ($($name:ident $writes:literal $flags:ident |$a:ident, $b:ident, $cf:ident| $result:expr;)+) => { $(
        struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Scalar>(a: T, b: T, flags: &LazyFlags) -> (T, LazyFlags) {
                let ($a, $b, $cf) = (a.widen(), b.widen(), flags);
                let result = T::truncate($result);
                (result, LazyFlags::$flags($a, $b, result.widen(), T::BITS))
            }
        }
    )+ };
}
arithmetic! {
    Add true add |a, b, _f| a.wrapping_add(b);
    Adc true add |a, b, f| a.wrapping_add(b).wrapping_add(u64::from(f.cf()));
    Sub true sub |a, b, _f| a.wrapping_sub(b);
    Sbb true sub |a, b, f| a.wrapping_sub(b).wrapping_sub(u64::from(f.cf()));
    Cmp false sub |a, b, _f| a.wrapping_sub(b);
}

fn reg_reg<B: Binary, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (result, flags) = B::apply::<T>(core.reg(op.reg), core.reg(op.rm), &core.flags);
    if B::WRITES {
        core.set_reg(op.reg, result);
    }
    core.flags = flags;
    Ok(())
}

fn reg_imm<B: Binary, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (result, flags) = B::apply::<T>(core.reg(op.reg), T::truncate(op.immediate), &core.flags);
    if B::WRITES {
        core.set_reg(op.reg, result);
    }
    core.flags = flags;
    Ok(())
}

fn reg_mem<B: Binary, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right: T = core.load(&op.mem)?;
    let (result, flags) = B::apply::<T>(core.reg(op.reg), right, &core.flags);
    if B::WRITES {
        core.set_reg(op.reg, result);
    }
    core.flags = flags;
    Ok(())
}

#[inline(always)]
fn update_memory<B: Binary, T: Scalar>(core: &mut Core, op: &Op, right: T) -> Outcome {
    if !B::WRITES {
        let left: T = core.load(&op.mem)?;
        core.flags = B::apply::<T>(left, right, &core.flags).1;
        return Ok(());
    }
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let slot = core.prepare_write(linear, T::SIZE)?;
    let left: T = core.slot_read(slot);
    let (result, flags) = B::apply::<T>(left, right, &core.flags);
    core.slot_write(slot, result);
    core.flags = flags;
    Ok(())
}

fn mem_reg<B: Binary, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = core.reg(op.reg);
    update_memory::<B, T>(core, op, right)
}

fn mem_imm<B: Binary, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    update_memory::<B, T>(core, op, T::truncate(op.immediate))
}

/// LOCK: `aux` says whether the right operand is the immediate.
fn locked<B: Binary, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = if op.aux != 0 { T::truncate(op.immediate) } else { core.reg(op.reg) };
    let linear = core.linear_address(&op.mem, T::SIZE, true)?;
    let before = core.flags;
    let left = core.locked_update::<T>(linear, |left| B::apply(left, right, &before).0)?;
    core.flags = B::apply(left, right, &before).1;
    Ok(())
}

/// The handlers of one operation for one size.
struct Forms {
    reg_reg: Handler,
    reg_imm: Handler,
    reg_mem: Handler,
    mem_reg: Handler,
    mem_imm: Handler,
    locked: Handler,
}

fn forms<B: Binary + 'static, T: Scalar>() -> Forms {
    Forms {
        reg_reg: reg_reg::<B, T>,
        reg_imm: reg_imm::<B, T>,
        reg_mem: reg_mem::<B, T>,
        mem_reg: mem_reg::<B, T>,
        mem_imm: mem_imm::<B, T>,
        locked: locked::<B, T>,
    }
}

fn by_size<B: Binary + 'static>(size: usize) -> Forms {
    match size {
        1 => forms::<B, u8>(),
        2 => forms::<B, u16>(),
        4 => forms::<B, u32>(),
        _ => forms::<B, u64>(),
    }
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = if is_memory(i, 0) { i.memory_size().size() } else { i.op0_register().size() };
    let forms = match i.mnemonic() {
        Mnemonic::Add => by_size::<Add>(size),
        Mnemonic::Or => by_size::<Or>(size),
        Mnemonic::Adc => by_size::<Adc>(size),
        Mnemonic::Sbb => by_size::<Sbb>(size),
        Mnemonic::And => by_size::<And>(size),
        Mnemonic::Sub => by_size::<Sub>(size),
        Mnemonic::Xor => by_size::<Xor>(size),
        Mnemonic::Cmp => by_size::<Cmp>(size),
        Mnemonic::Test => by_size::<Test>(size),
        _ => return None,
    };
    let immediate = !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory);
    Some(match (is_memory(i, 0), i.op1_kind()) {
        (true, OpKind::Register) => {
            let handler = if i.has_lock_prefix() { forms.locked } else { forms.mem_reg };
            Lowered::new(handler).mem(memory(i, mode)).reg(register(i.op1_register()))
        }
        (true, _) => {
            let handler = if i.has_lock_prefix() { forms.locked } else { forms.mem_imm };
            Lowered::new(handler).mem(memory(i, mode)).immediate(i.immediate(1)).aux(u8::from(immediate))
        }
        (false, OpKind::Register) => {
            Lowered::new(forms.reg_reg).reg(register(i.op0_register())).rm(register(i.op1_register()))
        }
        (false, OpKind::Memory) => Lowered::new(forms.reg_mem).reg(register(i.op0_register())).mem(memory(i, mode)),
        (false, _) => Lowered::new(forms.reg_imm).reg(register(i.op0_register())).immediate(i.immediate(1)),
    })
}
