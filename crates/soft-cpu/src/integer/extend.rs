//! Moves that change the value on its way: MOVZX, MOVSX, MOVSXD, CBW to CQO, MOVBE, BSWAP, XLAT and MOVNTI.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, GPR_ZERO, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::flags::sign_extend;
use crate::integer::operand::{Source, operand_size, sized_word, sourced, with_source};
use crate::op::{Mem, Op};
use crate::ram::Scalar;

const RAX: u8 = 0;
const RDX: u8 = 2;

fn movzx<F: Scalar, S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<F>(core, op)?;
    core.set_reg(op.reg, T::truncate(value.widen()));
    Ok(())
}

fn movsx<F: Scalar, S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value = S::get::<F>(core, op)?;
    core.set_reg(op.reg, T::truncate(sign_extend(value.widen(), F::BITS)));
    Ok(())
}

/// CBW, CWDE and CDQE: `T` is the result's size.
fn widen_accumulator<T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    core.set_reg(RAX, T::truncate(sign_extend(core.gpr[0], T::BITS / 2)));
    Ok(())
}

/// CWD, CDQ and CQO.
fn sign_to_dx<T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    let sign = (sign_extend(core.gpr[0], T::BITS) as i64 >> 63) as u64;
    core.set_reg(RDX, T::truncate(sign));
    Ok(())
}

#[inline(always)]
fn swapped<T: Scalar>(value: T) -> T {
    T::truncate(value.widen().swap_bytes() >> (64 - T::BITS))
}

fn movbe_load<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = core.load(&op.mem)?;
    core.set_reg(op.reg, swapped(value));
    Ok(())
}

fn movbe_store<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = core.reg(op.rm);
    core.store(&op.mem, swapped(value))
}

fn bswap<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = core.reg(op.reg);
    // The 16-bit form is undefined; processors clear the register's low half.
    let result = if T::SIZE == 2 { T::default() } else { swapped(value) };
    core.set_reg(op.reg, result);
    Ok(())
}

fn xlat(core: &mut Core, op: &Op) -> Outcome {
    let mem = Mem { displacement: core.gpr[0] & 0xff, ..op.mem };
    let value: u8 = core.load(&mem)?;
    core.set_reg(RAX, value);
    Ok(())
}

fn movnti<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = core.reg(op.rm);
    core.store(&op.mem, value)
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = || i.op0_register().size();
    Some(match i.mnemonic() {
        Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => {
            let signed = i.mnemonic() != Mnemonic::Movzx;
            let handler = match (signed, operand_size(i, 1)) {
                (false, 1) => sourced!(i, 1, sized_word, size(), movzx, u8),
                (false, _) => sourced!(i, 1, sized_word, size(), movzx, u16),
                (true, 1) => sourced!(i, 1, sized_word, size(), movsx, u8),
                (true, 2) => sourced!(i, 1, sized_word, size(), movsx, u16),
                (true, _) => sourced!(i, 1, sized_word, size(), movsx, u32),
            };
            with_source(Lowered::new(handler).reg(register(i.op0_register())), i, 1, mode)
        }
        Mnemonic::Cbw => Lowered::new(widen_accumulator::<u16>),
        Mnemonic::Cwde => Lowered::new(widen_accumulator::<u32>),
        Mnemonic::Cdqe => Lowered::new(widen_accumulator::<u64>),
        Mnemonic::Cwd => Lowered::new(sign_to_dx::<u16>),
        Mnemonic::Cdq => Lowered::new(sign_to_dx::<u32>),
        Mnemonic::Cqo => Lowered::new(sign_to_dx::<u64>),
        Mnemonic::Movbe if is_memory(i, 0) => {
            let handler = sized_word!(i.op1_register().size(), movbe_store);
            Lowered::new(handler).rm(register(i.op1_register())).mem(memory(i, mode))
        }
        Mnemonic::Movbe => {
            Lowered::new(sized_word!(size(), movbe_load)).reg(register(i.op0_register())).mem(memory(i, mode))
        }
        Mnemonic::Bswap => Lowered::new(sized_word!(size(), bswap)).reg(register(i.op0_register())),
        Mnemonic::Xlatb => {
            // The index is AL, which a memory operand cannot say; the handler adds it as the displacement.
            let mem = Mem { index: GPR_ZERO, shift: 0, displacement: 0, ..memory(i, mode) };
            Lowered::new(xlat).mem(mem)
        }
        Mnemonic::Movnti => {
            let handler = sized_word!(i.op1_register().size(), movnti);
            Lowered::new(handler).rm(register(i.op1_register())).mem(memory(i, mode))
        }
        _ => return None,
    })
}
