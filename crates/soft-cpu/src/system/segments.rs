//! MOV, PUSH and POP of segment registers, and LDS, LES, LFS, LGS, LSS (SDM vol. 2).

use iced_x86::{Instruction, Mnemonic, Register};
use x86::{InterruptShadow, exception};

use super::stack::Stack;
use crate::core::{Core, DecodeMode, Outcome, seg};
use crate::decode::{Lowered, is_memory, memory, register, segment_number};
use crate::op::Op;

/// Loads a segment register and sets up what loading SS brings with it.
fn load(core: &mut Core, number: usize, selector: u16) -> Outcome {
    core.load_segment(number, selector)?;
    if number == seg::SS {
        core.shadow = InterruptShadow::MovSs;
        core.update_code_mode();
    } else if !core.mode.has(DecodeMode::CODE64) {
        // Which segments are flat may have changed.
        core.update_code_mode();
        core.end_block();
    }
    Ok(())
}

fn load_reg(core: &mut Core, op: &Op) -> Outcome {
    load(core, usize::from(op.aux), core.reg(op.rm))
}

fn load_mem(core: &mut Core, op: &Op) -> Outcome {
    let selector: u16 = core.load(&op.mem)?;
    load(core, usize::from(op.aux), selector)
}

/// `extra` is the operand size: the selector is zero-extended to it.
fn store_reg(core: &mut Core, op: &Op) -> Outcome {
    let selector = core.segments[usize::from(op.aux)].selector;
    if op.extra == 2 {
        core.set_reg(op.reg, selector);
    } else {
        core.set_reg(op.reg, u64::from(selector));
    }
    Ok(())
}

fn store_mem(core: &mut Core, op: &Op) -> Outcome {
    let selector = core.segments[usize::from(op.aux)].selector;
    core.store(&op.mem, selector)
}

fn push(core: &mut Core, op: &Op) -> Outcome {
    let selector = core.segments[usize::from(op.aux)].selector;
    let mut stack = Stack::current(core);
    stack.push(core, op.extra as u8, u64::from(selector))?;
    stack.commit(core);
    Ok(())
}

fn pop(core: &mut Core, op: &Op) -> Outcome {
    let mut stack = Stack::current(core);
    let selector = stack.pop(core, op.extra as u8)? as u16;
    let number = usize::from(op.aux);
    // The pointer belongs to the old stack segment's width, so it is committed with that.
    load(core, number, selector)?;
    stack.commit(core);
    Ok(())
}

/// `extra` is the size of the offset.
fn load_far_pointer(core: &mut Core, op: &Op) -> Outcome {
    let size = op.extra as usize;
    let linear = core.linear_address(&op.mem, size + 2, false)?;
    let offset = match size {
        2 => u64::from(core.read::<u16>(linear)?),
        4 => u64::from(core.read::<u32>(linear)?),
        _ => core.read(linear)?,
    };
    let selector: u16 = core.read(linear.wrapping_add(size as u64))?;
    load(core, usize::from(op.aux), selector)?;
    match size {
        2 => core.set_reg(op.reg, offset as u16),
        4 => core.set_reg(op.reg, offset as u32),
        _ => core.set_reg(op.reg, offset),
    }
    Ok(())
}

fn invalid(core: &mut Core, _: &Op) -> Outcome {
    core.raise(exception::UD)
}

/// A load of SS changes the stack's width and holds interrupts off.
fn placed(lowered: Lowered, number: usize) -> Lowered {
    let lowered = lowered.aux(number as u8);
    if number == seg::SS { lowered.ends_block() } else { lowered }
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let segment = |n: u32| {
        let register = i.op_register(n);
        (!is_memory(i, n) && register.is_segment_register()).then(|| segment_number(register))
    };
    let stack_size = i.stack_pointer_increment().unsigned_abs();
    Some(match i.mnemonic() {
        Mnemonic::Mov => match (segment(0), segment(1)) {
            (Some(seg::CS), _) => Lowered::new(invalid).ends_block(),
            (Some(number), _) if is_memory(i, 1) => placed(Lowered::new(load_mem).mem(memory(i, mode)), number),
            (Some(number), _) => placed(Lowered::new(load_reg).rm(register(i.op1_register())), number),
            (_, Some(number)) if is_memory(i, 0) => Lowered::new(store_mem).mem(memory(i, mode)).aux(number as u8),
            (_, Some(number)) => Lowered::new(store_reg)
                .reg(register(i.op0_register()))
                .aux(number as u8)
                .extra(i.op0_register().size() as u32),
            _ => return None,
        },
        Mnemonic::Push => Lowered::new(push).aux(segment(0)? as u8).extra(stack_size),
        Mnemonic::Pop => placed(Lowered::new(pop).extra(stack_size), segment(0)?),
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            let number = match i.mnemonic() {
                Mnemonic::Lds => seg::DS,
                Mnemonic::Les => seg::ES,
                Mnemonic::Lfs => seg::FS,
                Mnemonic::Lgs => seg::GS,
                _ => seg::SS,
            };
            let target: Register = i.op0_register();
            let lowered = Lowered::new(load_far_pointer).mem(memory(i, mode)).reg(register(target));
            placed(lowered.extra(target.size() as u32), number)
        }
        _ => return None,
    })
}
