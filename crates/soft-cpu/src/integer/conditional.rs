//! CMOVcc and SETcc.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::integer::branch::*;
use crate::integer::operand::{InMemory, InRegister, Source, with_source};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

/// The source is read, and a 32-bit destination zero-extended, whether or not the condition holds.
fn cmov<C: Condition, S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let new = S::get::<T>(core, op)?;
    let old: T = core.reg(op.reg);
    core.set_reg(op.reg, if C::holds(&core.flags) { new } else { old });
    Ok(())
}

fn set_register<C: Condition>(core: &mut Core, op: &Op) -> Outcome {
    let value = u8::from(C::holds(&core.flags));
    core.set_reg(op.reg, value);
    Ok(())
}

fn set_memory<C: Condition>(core: &mut Core, op: &Op) -> Outcome {
    let value = u8::from(C::holds(&core.flags));
    core.store(&op.mem, value)
}

fn is_cmov(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cmovo
            | Mnemonic::Cmovno
            | Mnemonic::Cmovb
            | Mnemonic::Cmovae
            | Mnemonic::Cmove
            | Mnemonic::Cmovne
            | Mnemonic::Cmovbe
            | Mnemonic::Cmova
            | Mnemonic::Cmovs
            | Mnemonic::Cmovns
            | Mnemonic::Cmovp
            | Mnemonic::Cmovnp
            | Mnemonic::Cmovl
            | Mnemonic::Cmovge
            | Mnemonic::Cmovle
            | Mnemonic::Cmovg
    )
}

fn is_set(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Seto
            | Mnemonic::Setno
            | Mnemonic::Setb
            | Mnemonic::Setae
            | Mnemonic::Sete
            | Mnemonic::Setne
            | Mnemonic::Setbe
            | Mnemonic::Seta
            | Mnemonic::Sets
            | Mnemonic::Setns
            | Mnemonic::Setp
            | Mnemonic::Setnp
            | Mnemonic::Setl
            | Mnemonic::Setge
            | Mnemonic::Setle
            | Mnemonic::Setg
    )
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let condition = i.condition_code();
    if condition == ConditionCode::None {
        return None;
    }
    if is_cmov(i.mnemonic()) {
        let handler = match (is_memory(i, 1), i.op0_register().size()) {
            (false, 2) => by_condition!(condition, cmov, InRegister, u16),
            (false, 4) => by_condition!(condition, cmov, InRegister, u32),
            (false, _) => by_condition!(condition, cmov, InRegister, u64),
            (true, 2) => by_condition!(condition, cmov, InMemory, u16),
            (true, 4) => by_condition!(condition, cmov, InMemory, u32),
            (true, _) => by_condition!(condition, cmov, InMemory, u64),
        };
        return Some(with_source(Lowered::new(handler).reg(register(i.op0_register())), i, 1, mode));
    }
    if !is_set(i.mnemonic()) {
        return None;
    }
    Some(if is_memory(i, 0) {
        Lowered::new(by_condition!(condition, set_memory)).mem(memory(i, mode))
    } else {
        Lowered::new(by_condition!(condition, set_register)).reg(register(i.op0_register()))
    })
}
