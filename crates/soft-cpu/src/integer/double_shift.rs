//! SHLD and SHRD.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, register};
use crate::integer::operand::{Place, operand_size, placed, sized_word, with_place};
use crate::integer::shift::{count_mask, shift_flags};
use crate::op::Op;
use crate::ram::Scalar;

/// `aux`: the count is in CL, not in the immediate.
#[inline(always)]
fn count<T: Scalar>(core: &Core, op: &Op) -> u32 {
    (if op.aux != 0 { core.gpr[1] as u32 } else { op.immediate as u32 }) & count_mask::<T>()
}

/// 16-bit operands with a count above 16 are undefined; AMD shifts the source in a second time and clears CF, and so does this.
fn shld<P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let count = count::<T>(core, op);
    let low = core.reg::<T>(op.rm).widen();
    P::update::<T>(core, op, |high, flags| {
        if count == 0 {
            return (high, *flags);
        }
        let (bits, high) = (T::BITS, high.widen());
        // For 16-bit operands a third word follows the two; wider counts never reach one.
        let result = if T::SIZE == 2 {
            T::truncate((high << 32 | low << 16 | low) << count >> 32)
        } else {
            T::truncate(high << count | low >> (bits - count))
        };
        let cf = count <= bits && high >> (bits - count) & 1 != 0;
        let of = if count >= bits { cf } else { cf != (result.widen() >> (bits - 1) & 1 != 0) };
        (result, shift_flags::<T>(result.widen(), cf, of))
    })
}

fn shrd<P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let count = count::<T>(core, op);
    let high = core.reg::<T>(op.rm).widen();
    P::update::<T>(core, op, |low, flags| {
        if count == 0 {
            return (low, *flags);
        }
        let (bits, low) = (T::BITS, low.widen());
        let result = if T::SIZE == 2 {
            T::truncate((high << 32 | high << 16 | low) >> count)
        } else {
            T::truncate(low >> count | high << (bits - count))
        };
        let cf = count <= bits && low >> (count - 1) & 1 != 0;
        let top = result.widen() >> (bits - 2);
        (result, shift_flags::<T>(result.widen(), cf, top & 1 != top >> 1 & 1))
    })
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = operand_size(i, 1);
    let handler = match i.mnemonic() {
        Mnemonic::Shld => placed!(i, sized_word, size, shld),
        Mnemonic::Shrd => placed!(i, sized_word, size, shrd),
        _ => return None,
    };
    let by_cl = i.op2_kind() == OpKind::Register;
    let immediate = if by_cl { 0 } else { i.immediate(2) };
    let lowered = with_place(Lowered::new(handler), i, mode).rm(register(i.op1_register()));
    Some(lowered.immediate(immediate).aux(u8::from(by_cl)))
}
