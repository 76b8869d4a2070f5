//! MOV and LEA between general registers, memory and immediates.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, is_memory, memory, register};
use crate::integer::operand::{is_general, sized};
use crate::op::Op;
use crate::ram::Scalar;

fn reg_reg<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = core.reg(op.rm);
    core.set_reg(op.reg, value);
    Ok(())
}

fn reg_imm<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    core.set_reg(op.reg, T::truncate(op.immediate));
    Ok(())
}

fn reg_mem<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let value: T = core.load(&op.mem)?;
    core.set_reg(op.reg, value);
    Ok(())
}

fn mem_reg<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    core.store(&op.mem, core.reg::<T>(op.reg))
}

fn mem_imm<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    core.store(&op.mem, T::truncate(op.immediate))
}

fn lea<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let address = core.effective_address(&op.mem);
    core.set_reg(op.reg, T::truncate(address));
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    match i.mnemonic() {
        Mnemonic::Mov => {}
        Mnemonic::Lea => {
            let handler = sized!(i.op0_register().size(), lea);
            return Some(Lowered::new(handler).reg(register(i.op0_register())).mem(memory(i, mode)));
        }
        _ => return None,
    }
    let size = if is_memory(i, 0) { i.memory_size().size() } else { i.op0_register().size() };
    if !is_general(i, 0) || !is_general(i, 1) {
        // Segment, control and debug registers are the system family's.
        return None;
    }
    Some(match (is_memory(i, 0), i.op1_kind()) {
        (true, OpKind::Register) => {
            Lowered::new(sized!(size, mem_reg)).mem(memory(i, mode)).reg(register(i.op1_register()))
        }
        (true, _) => Lowered::new(sized!(size, mem_imm)).mem(memory(i, mode)).immediate(i.immediate(1)),
        (false, OpKind::Register) => {
            Lowered::new(sized!(size, reg_reg)).reg(register(i.op0_register())).rm(register(i.op1_register()))
        }
        (false, OpKind::Memory) => {
            Lowered::new(sized!(size, reg_mem)).reg(register(i.op0_register())).mem(memory(i, mode))
        }
        (false, _) => Lowered::new(sized!(size, reg_imm)).reg(register(i.op0_register())).immediate(i.immediate(1)),
    })
}
