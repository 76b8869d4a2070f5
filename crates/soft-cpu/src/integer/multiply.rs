//! MUL, IMUL in its three forms, MULX, ADCX and ADOX.
//!
//! CF and OF say that the high half matters; the other flags are undefined and stay as they were, as on AMD.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, register};
use crate::flags::sign_extend;
use crate::integer::operand::{Source, operand_size, sized, sized_word, sourced, with_source};
use crate::op::{Handler, Op, byte_register};
use crate::ram::Scalar;

const RAX: u8 = 0;
const RDX: u8 = 2;
const AH: u8 = byte_register(0, true);

/// Stores a double-width product in AX or in DX:AX's likes, and CF and OF.
#[inline(always)]
fn set_product<T: Scalar>(core: &mut Core, low: u64, high: u64, overflow: bool) {
    core.set_reg(RAX, T::truncate(low));
    core.set_reg(if T::SIZE == 1 { AH } else { RDX }, T::truncate(high));
    core.flags = core.flags.with_carry_overflow_aux(overflow, overflow, core.flags.af());
}

fn mul<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?.widen();
    let product = u128::from(core.reg::<T>(RAX).widen()) * u128::from(right);
    let high = (product >> T::BITS) as u64;
    set_product::<T>(core, product as u64, high, high != 0);
    Ok(())
}

#[inline(always)]
fn signed<T: Scalar>(value: T) -> i128 {
    i128::from(sign_extend(value.widen(), T::BITS) as i64)
}

/// Whether a product does not fit in its low half.
#[inline(always)]
fn overflows<T: Scalar>(product: i128) -> bool {
    product != signed(T::truncate(product as u64))
}

fn imul_one<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?;
    let product = signed(core.reg::<T>(RAX)) * signed(right);
    set_product::<T>(core, product as u64, (product >> T::BITS) as u64, overflows::<T>(product));
    Ok(())
}

#[inline(always)]
fn imul_into<T: Scalar>(core: &mut Core, op: &Op, left: T, right: T) -> Outcome {
    let product = signed(left) * signed(right);
    let overflow = overflows::<T>(product);
    core.set_reg(op.reg, T::truncate(product as u64));
    core.flags = core.flags.with_carry_overflow_aux(overflow, overflow, core.flags.af());
    Ok(())
}

fn imul_two<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?;
    let left = core.reg(op.reg);
    imul_into(core, op, left, right)
}

fn imul_three<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let left = S::get::<T>(core, op)?;
    imul_into(core, op, left, T::truncate(op.immediate))
}

/// `reg` takes the high half, the register `aux` the low; the high wins if they are one.
fn mulx<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?.widen();
    let product = u128::from(core.reg::<T>(RDX).widen()) * u128::from(right);
    core.set_reg(op.aux, T::truncate(product as u64));
    core.set_reg(op.reg, T::truncate((product >> T::BITS) as u64));
    Ok(())
}

fn adcx<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?;
    let carry = core.flags.cf();
    let out = add_carry(core, op, right, carry);
    core.flags = core.flags.with_carry(out);
    Ok(())
}

fn adox<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let right = S::get::<T>(core, op)?;
    let carry = core.flags.of();
    let out = add_carry(core, op, right, carry);
    core.flags = core.flags.with_carry_overflow_aux(core.flags.cf(), out, core.flags.af());
    Ok(())
}

#[inline(always)]
fn add_carry<T: Scalar>(core: &mut Core, op: &Op, right: T, carry: bool) -> bool {
    let sum = u128::from(core.reg::<T>(op.reg).widen()) + u128::from(right.widen()) + u128::from(carry);
    core.set_reg(op.reg, T::truncate(sum as u64));
    sum >> T::BITS != 0
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let into = |handler: Handler| Lowered::new(handler).reg(register(i.op0_register()));
    let size = operand_size(i, 0);
    Some(match (i.mnemonic(), i.op_count()) {
        (Mnemonic::Mul, _) => with_source(Lowered::new(sourced!(i, 0, sized, size, mul)), i, 0, mode),
        (Mnemonic::Imul, 1) => with_source(Lowered::new(sourced!(i, 0, sized, size, imul_one)), i, 0, mode),
        (Mnemonic::Imul, 2) => {
            let handler = sourced!(i, 1, sized_word, size, imul_two);
            with_source(into(handler), i, 1, mode)
        }
        (Mnemonic::Imul, _) => {
            let handler = sourced!(i, 1, sized_word, size, imul_three);
            with_source(into(handler), i, 1, mode).immediate(i.immediate(2))
        }
        (Mnemonic::Mulx, _) => {
            let handler = sourced!(i, 2, sized_word, size, mulx);
            with_source(into(handler), i, 2, mode).aux(register(i.op1_register()))
        }
        (Mnemonic::Adcx, _) => with_source(into(sourced!(i, 1, sized_word, size, adcx)), i, 1, mode),
        (Mnemonic::Adox, _) => with_source(into(sourced!(i, 1, sized_word, size, adox)), i, 1, mode),
        _ => return None,
    })
}
