//! INC, DEC, NEG and NOT.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::flags::LazyFlags;
use crate::integer::operand::{Place, operand_size, placed, sized, with_place};
use crate::op::Op;
use crate::ram::Scalar;

fn inc<P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    P::update::<T>(core, op, |a, flags| {
        let sum = T::truncate(a.widen().wrapping_add(1));
        (sum, LazyFlags::add(a.widen(), 1, sum.widen(), T::BITS).with_carry(flags.cf()))
    })
}

fn dec<P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    P::update::<T>(core, op, |a, flags| {
        let difference = T::truncate(a.widen().wrapping_sub(1));
        (difference, LazyFlags::sub(a.widen(), 1, difference.widen(), T::BITS).with_carry(flags.cf()))
    })
}

fn neg<P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    P::update::<T>(core, op, |a, _| {
        let difference = T::truncate(0u64.wrapping_sub(a.widen()));
        (difference, LazyFlags::sub(0, a.widen(), difference.widen(), T::BITS))
    })
}

fn not<P: Place, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    P::update::<T>(core, op, |a, flags| (T::truncate(!a.widen()), *flags))
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = || operand_size(i, 0);
    let handler = match i.mnemonic() {
        Mnemonic::Inc => placed!(i, sized, size(), inc),
        Mnemonic::Dec => placed!(i, sized, size(), dec),
        Mnemonic::Neg => placed!(i, sized, size(), neg),
        Mnemonic::Not => placed!(i, sized, size(), not),
        _ => return None,
    };
    Some(with_place(Lowered::new(handler), i, mode))
}
