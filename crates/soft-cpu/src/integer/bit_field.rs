//! BMI1 and BMI2: ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, PDEP and PEXT. (MULX is with the multiplications, SHLX and its like with the shifts.)

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, register};
use crate::flags::{LazyFlags, sign_extend};
use crate::integer::operand::{Source, sized_word, sourced, with_source};
use crate::op::Op;
use crate::ram::Scalar;

/// Stores the result; ZF and SF (and, as on AMD, PF) by it, CF as given, OF clear.
#[inline(always)]
fn finish<T: Scalar>(core: &mut Core, op: &Op, result: u64, cf: bool, af: bool) -> Outcome {
    core.set_reg(op.reg, T::truncate(result));
    core.flags = LazyFlags::logic(sign_extend(result, T::BITS)).with_carry_overflow_aux(cf, false, af);
    Ok(())
}

/// `aux` is the inverted operand.
fn andn<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?.widen();
    let result = !core.reg::<T>(op.aux).widen() & right;
    finish::<T>(core, op, result, false, false)
}

/// `aux` is the control: start in bits 0 to 7, length in 8 to 15.
fn bextr<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    let control = core.reg::<u32>(op.aux);
    let (start, length) = (control & 0xff, control >> 8 & 0xff);
    let shifted = value.checked_shr(start).unwrap_or(0);
    let mask = 1u64.checked_shl(length).map_or(u64::MAX, |top| top - 1);
    finish::<T>(core, op, shifted & mask, false, true)
}

fn blsi<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    finish::<T>(core, op, value & value.wrapping_neg(), value != 0, false)
}

fn blsmsk<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    finish::<T>(core, op, value ^ value.wrapping_sub(1), value == 0, false)
}

fn blsr<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    finish::<T>(core, op, value & value.wrapping_sub(1), value == 0, false)
}

/// `aux` holds the index of the first bit to clear.
fn bzhi<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<T>(core, op)?.widen();
    let index = core.reg::<u32>(op.aux) & 0xff;
    let mask = 1u64.checked_shl(index).map_or(u64::MAX, |top| top - 1);
    finish::<T>(core, op, value & mask, index >= T::BITS, false)
}

/// Scatters the low bits of the register `aux` to the places that the mask names.
fn pdep<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let mut mask = S::get::<T>(core, op)?.widen();
    let mut source = core.reg::<T>(op.aux).widen();
    let mut result = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            result |= lowest;
        }
        source >>= 1;
        mask ^= lowest;
    }
    core.set_reg(op.reg, T::truncate(result));
    Ok(())
}

/// Gathers the bits of the register `aux` that the mask names.
fn pext<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let mut mask = S::get::<T>(core, op)?.widen();
    let source = core.reg::<T>(op.aux).widen();
    let (mut result, mut place) = (0, 1u64);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & lowest != 0 {
            result |= place;
        }
        place <<= 1;
        mask ^= lowest;
    }
    core.set_reg(op.reg, T::truncate(result));
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = i.op0_register().size();
    // The operand that may be memory, and the other one.
    let (source, other) = match i.mnemonic() {
        Mnemonic::Andn | Mnemonic::Pdep | Mnemonic::Pext => (2, 1),
        Mnemonic::Bextr | Mnemonic::Bzhi => (1, 2),
        Mnemonic::Blsi | Mnemonic::Blsmsk | Mnemonic::Blsr => (1, 1),
        _ => return None,
    };
    let handler = match i.mnemonic() {
        Mnemonic::Andn => sourced!(i, source, sized_word, size, andn),
        Mnemonic::Pdep => sourced!(i, source, sized_word, size, pdep),
        Mnemonic::Pext => sourced!(i, source, sized_word, size, pext),
        Mnemonic::Bextr => sourced!(i, source, sized_word, size, bextr),
        Mnemonic::Bzhi => sourced!(i, source, sized_word, size, bzhi),
        Mnemonic::Blsi => sourced!(i, source, sized_word, size, blsi),
        Mnemonic::Blsmsk => sourced!(i, source, sized_word, size, blsmsk),
        _ => sourced!(i, source, sized_word, size, blsr),
    };
    let aux = if is_memory(i, other) { 0 } else { register(i.op_register(other)) };
    Some(with_source(Lowered::new(handler).reg(register(i.op0_register())), i, source, mode).aux(aux))
}
