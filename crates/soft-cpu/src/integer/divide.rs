//! DIV and IDIV.

use iced_x86::{Instruction, Mnemonic};
use x86::exception;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::flags::{LazyFlags, sign_extend};
use crate::integer::operand::{Source, operand_size, sized, sourced, with_source};
use crate::op::{Op, byte_register};
use crate::ram::Scalar;

const RAX: u8 = 0;
const RDX: u8 = 2;
const AH: u8 = byte_register(0, true);

/// The double-width dividend: AX, or DX:AX's likes.
#[inline(always)]
fn dividend<T: Scalar>(core: &Core) -> u128 {
    if T::SIZE == 1 {
        return u128::from(core.reg::<u16>(RAX));
    }
    u128::from(core.reg::<T>(RDX).widen()) << T::BITS | u128::from(core.reg::<T>(RAX).widen())
}

/// Stores quotient and remainder. The flags are undefined; AMD clears SF, ZF and PF, sets AF and keeps the rest.
#[inline(always)]
fn set_quotient<T: Scalar>(core: &mut Core, quotient: u64, remainder: u64) {
    core.set_reg(RAX, T::truncate(quotient));
    core.set_reg(if T::SIZE == 1 { AH } else { RDX }, T::truncate(remainder));
    let (cf, of) = (core.flags.cf(), core.flags.of());
    core.flags = LazyFlags::logic(1).with_carry_overflow_aux(cf, of, true);
}

fn div<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let divisor = S::get::<T>(core, op)?.widen();
    let dividend = dividend::<T>(core);
    // The quotient fits if and only if the dividend's high half is below the divisor; so zero is caught too.
    if (dividend >> T::BITS) as u64 >= divisor {
        return core.raise(exception::DE);
    }
    if let Ok(short) = u64::try_from(dividend) {
        set_quotient::<T>(core, short / divisor, short % divisor);
    } else {
        let divisor = u128::from(divisor);
        set_quotient::<T>(core, (dividend / divisor) as u64, (dividend % divisor) as u64);
    }
    Ok(())
}

fn idiv<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let divisor = i128::from(sign_extend(S::get::<T>(core, op)?.widen(), T::BITS) as i64);
    let unused = 128 - 2 * T::BITS;
    let dividend = (dividend::<T>(core) << unused) as i128 >> unused;
    let (quotient, remainder) = match (i64::try_from(dividend), i64::try_from(divisor)) {
        (Ok(dividend), Ok(divisor)) => match (dividend.checked_div(divisor), dividend.checked_rem(divisor)) {
            (Some(quotient), Some(remainder)) => (i128::from(quotient), i128::from(remainder)),
            _ => return core.raise(exception::DE),
        },
        _ => match (dividend.checked_div(divisor), dividend.checked_rem(divisor)) {
            (Some(quotient), Some(remainder)) => (quotient, remainder),
            _ => return core.raise(exception::DE),
        },
    };
    let fits = i128::from(sign_extend(quotient as u64, T::BITS) as i64) == quotient;
    if !fits {
        return core.raise(exception::DE);
    }
    set_quotient::<T>(core, quotient as u64, remainder as u64);
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let handler = match i.mnemonic() {
        Mnemonic::Div => sourced!(i, 0, sized, operand_size(i, 0), div),
        Mnemonic::Idiv => sourced!(i, 0, sized, operand_size(i, 0), idiv),
        _ => return None,
    };
    Some(with_source(Lowered::new(handler), i, 0, mode))
}
