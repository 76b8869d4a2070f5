//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, and the flagless SHLX, SHRX, SARX and RORX.
//!
//! A masked count of zero changes nothing, flags included, but a memory operand is still written (and faults as a write).

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, register};
use crate::flags::{LazyFlags, sign_extend};
use crate::integer::operand::{
    InRegister, Place, Source, operand_size, placed, sized, sized_word, sourced, with_place, with_source,
};
use crate::op::Op;
use crate::ram::Scalar;

/// One operation: the result and flags for a masked count that is not zero.
trait Shift: 'static {
    fn apply<T: Scalar>(value: T, count: u32, flags: &LazyFlags) -> (T, LazyFlags);
}

/// Where the count comes from.
trait Count: 'static {
    fn get(core: &Core, op: &Op) -> u32;
}

struct InCl;
impl Count for InCl {
    #[inline(always)]
    fn get(core: &Core, _: &Op) -> u32 {
        core.gpr[1] as u32
    }
}

struct InImmediate;
impl Count for InImmediate {
    #[inline(always)]
    fn get(_: &Core, op: &Op) -> u32 {
        op.immediate as u32
    }
}

/// The bits of a count that matter for an operand of `T`'s size.
#[inline(always)]
pub(super) fn count_mask<T: Scalar>() -> u32 {
    if T::SIZE == 8 { 63 } else { 31 }
}

#[inline(always)]
fn top_bit<T: Scalar>(value: u64) -> bool {
    value >> (T::BITS - 1) & 1 != 0
}

/// Flags of a shift: ZF, SF and PF by the result. AF is undefined; AMD sets it.
#[inline(always)]
pub(super) fn shift_flags<T: Scalar>(result: u64, cf: bool, of: bool) -> LazyFlags {
    LazyFlags::logic(sign_extend(result, T::BITS)).with_carry_overflow_aux(cf, of, true)
}

/// Flags of a rotation: only CF and OF change. OF is defined for a count of one; AMD computes it alike for all, even for one that comes full circle.
#[inline(always)]
fn rotate_flags(flags: &LazyFlags, cf: bool, of: bool) -> LazyFlags {
    flags.with_carry_overflow_aux(cf, of, flags.af())
}

struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, _: &LazyFlags) -> (T, LazyFlags) {
        // One bit less first, so that the last bit to leave is the top one; a count past the operand's width leaves nothing.
        let before = T::truncate(value.widen() << (count - 1)).widen();
        let result = T::truncate(before << 1);
        let cf = top_bit::<T>(before);
        (result, shift_flags::<T>(result.widen(), cf, cf != top_bit::<T>(result.widen())))
    }
}

struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, _: &LazyFlags) -> (T, LazyFlags) {
        let before = value.widen() >> (count - 1);
        let result = before >> 1;
        (T::truncate(result), shift_flags::<T>(result, before & 1 != 0, top_bit::<T>(before)))
    }
}

struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, _: &LazyFlags) -> (T, LazyFlags) {
        let before = sign_extend(value.widen(), T::BITS) as i64 >> (count - 1);
        let result = (before >> 1) as u64;
        (T::truncate(result), shift_flags::<T>(result, before & 1 != 0, false))
    }
}

#[inline(always)]
fn rotate_left<T: Scalar>(value: T, count: u32) -> T {
    let value = value.widen();
    let count = count & (T::BITS - 1);
    T::truncate(value << count | value >> ((T::BITS - count) & (T::BITS - 1)))
}

struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, flags: &LazyFlags) -> (T, LazyFlags) {
        let result = rotate_left(value, count);
        let cf = result.widen() & 1 != 0;
        (result, rotate_flags(flags, cf, cf != top_bit::<T>(result.widen())))
    }
}

struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, flags: &LazyFlags) -> (T, LazyFlags) {
        let result = rotate_left(value, T::BITS - (count & (T::BITS - 1)));
        let cf = top_bit::<T>(result.widen());
        (result, rotate_flags(flags, cf, cf != top_bit::<T>(result.widen() << 1)))
    }
}

struct Rcl;
impl Shift for Rcl {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, flags: &LazyFlags) -> (T, LazyFlags) {
        let (mut result, mut cf) = (value.widen(), flags.cf());
        for _ in 0..count % (T::BITS + 1) {
            let out = top_bit::<T>(result);
            result = result << 1 | u64::from(cf);
            cf = out;
        }
        (T::truncate(result), rotate_flags(flags, cf, cf != top_bit::<T>(result)))
    }
}

struct Rcr;
impl Shift for Rcr {
    #[inline(always)]
    fn apply<T: Scalar>(value: T, count: u32, flags: &LazyFlags) -> (T, LazyFlags) {
        let (mut result, mut cf) = (value.widen(), flags.cf());
        for _ in 0..count % (T::BITS + 1) {
            let out = result & 1 != 0;
            result = result >> 1 | u64::from(cf) << (T::BITS - 1);
            cf = out;
        }
        let of = top_bit::<T>(result) != top_bit::<T>(result << 1);
        (T::truncate(result), rotate_flags(flags, cf, of))
    }
}

fn shift<S: Shift, C: Count, P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let count = C::get(core, op) & count_mask::<T>();
    P::update::<T>(core, op, |value, flags| {
        if count == 0 {
            return (value, *flags);
        }
        S::apply(value, count, flags)
    })
}

/// A register shifted by an immediate that is not zero: the commonest form, without any test.
fn shift_immediate<S: Shift, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    InRegister::update::<T>(core, op, |value, flags| S::apply(value, op.aux.into(), flags))
}

macro_rules! shift_forms {
    ($i:expr, $size:expr, $shift:ident) => {{
        let (in_register, masked) = ($i.op0_kind() == OpKind::Register, masked_immediate($i, $size));
        match $i.op1_kind() {
            OpKind::Register => placed!($i, sized, $size, shift, $shift, InCl),
            _ if in_register && masked != 0 => sized!($size, shift_immediate, $shift),
            _ => placed!($i, sized, $size, shift, $shift, InImmediate),
        }
    }};
}

fn masked_immediate(i: &Instruction, size: usize) -> u8 {
    if i.op1_kind() == OpKind::Register { 0 } else { i.immediate(1) as u8 & if size == 8 { 63 } else { 31 } }
}

fn shlx<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (value, count) = flagless::<S, T>(core, op)?;
    core.set_reg(op.reg, T::truncate(value << count));
    Ok(())
}

fn shrx<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (value, count) = flagless::<S, T>(core, op)?;
    core.set_reg(op.reg, T::truncate(value >> count));
    Ok(())
}

fn sarx<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let (value, count) = flagless::<S, T>(core, op)?;
    core.set_reg(op.reg, T::truncate((sign_extend(value, T::BITS) as i64 >> count) as u64));
    Ok(())
}

/// The value and the masked count, in the register `aux`.
#[inline(always)]
fn flagless<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome<(u64, u32)> {
    let value = S::get::<T>(core, op)?.widen();
    Ok((value, core.reg::<u32>(op.aux) & count_mask::<T>()))
}

fn rorx<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<T>(core, op)?;
    let count = op.immediate as u32 & (T::BITS - 1);
    core.set_reg(op.reg, rotate_left(value, T::BITS - count));
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = operand_size(i, 0);
    let handler = match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift_forms!(i, size, Shl),
        Mnemonic::Shr => shift_forms!(i, size, Shr),
        Mnemonic::Sar => shift_forms!(i, size, Sar),
        Mnemonic::Rol => shift_forms!(i, size, Rol),
        Mnemonic::Ror => shift_forms!(i, size, Ror),
        Mnemonic::Rcl => shift_forms!(i, size, Rcl),
        Mnemonic::Rcr => shift_forms!(i, size, Rcr),
        Mnemonic::Shlx | Mnemonic::Shrx | Mnemonic::Sarx | Mnemonic::Rorx => return Some(lower_flagless(i, mode)),
        _ => return None,
    };
    let immediate = if i.op1_kind() == OpKind::Register { 0 } else { i.immediate(1) };
    Some(with_place(Lowered::new(handler), i, mode).immediate(immediate).aux(masked_immediate(i, size)))
}

fn lower_flagless(i: &Instruction, mode: DecodeMode) -> Lowered {
    let size = i.op0_register().size();
    let handler = match i.mnemonic() {
        Mnemonic::Shlx => sourced!(i, 1, sized_word, size, shlx),
        Mnemonic::Shrx => sourced!(i, 1, sized_word, size, shrx),
        Mnemonic::Sarx => sourced!(i, 1, sized_word, size, sarx),
        _ => sourced!(i, 1, sized_word, size, rorx),
    };
    let lowered = with_source(Lowered::new(handler).reg(register(i.op0_register())), i, 1, mode);
    if i.mnemonic() == Mnemonic::Rorx {
        lowered.immediate(i.immediate(2))
    } else {
        lowered.aux(register(i.op2_register()))
    }
}
