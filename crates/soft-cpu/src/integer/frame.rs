//! PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE and BOUND.

use iced_x86::{Code, Instruction, Mnemonic};
use x86::{exception, rflags};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, memory, register};
use crate::flags::sign_extend;
use crate::integer::operand::{displaced, sized_word};
use crate::integer::stack::{Stack, on_stack};
use crate::op::Op;
use crate::ram::Scalar;

const RSP: usize = 4;
const RBP: usize = 5;

/// All eight registers are stored before the stack pointer moves, so a fault leaves only stores below the top of the stack.
fn pusha<W: Stack, T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    let mut sp = W::sp(core);
    for register in 0..8 {
        sp = sp.wrapping_sub(T::SIZE as u64) & W::MASK;
        let value: T = core.reg(register);
        W::write(core, sp, value)?;
    }
    W::set_sp(core, sp);
    Ok(())
}

fn popa<W: Stack, T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    let mut values = [T::default(); 8];
    let mut sp = W::sp(core);
    for value in values.iter_mut().rev() {
        *value = W::read(core, sp)?;
        sp = sp.wrapping_add(T::SIZE as u64) & W::MASK;
    }
    for (register, value) in values.into_iter().enumerate() {
        // The stack pointer's image is thrown away.
        if register != RSP {
            core.set_reg(register as u8, value);
        }
    }
    W::set_sp(core, sp);
    Ok(())
}

fn iopl(core: &Core) -> u8 {
    ((core.system_flags & rflags::IOPL) >> 12) as u8
}

/// In virtual-8086 mode both instructions need IOPL 3. (There are no virtual-mode extensions.)
fn check_v86(core: &mut Core) -> Outcome {
    if core.is_v86() && iopl(core) < 3 {
        return core.raise_with(exception::GP, 0);
    }
    Ok(())
}

fn pushf<W: Stack, T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    check_v86(core)?;
    let image = core.rflags() & !(rflags::VM | rflags::RF);
    W::push(core, T::truncate(image))
}

/// SDM vol. 2, POPF, table 4-16: RF is cleared, VM, VIF and VIP stay, IOPL changes at CPL 0 only and IF where CPL is at most IOPL.
fn popf<W: Stack, T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    check_v86(core)?;
    let image = W::pop::<T>(core)?.widen();
    let mut writable = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if T::SIZE > 2 {
        writable |= rflags::AC | rflags::ID;
    }
    if core.cpl == 0 {
        writable |= rflags::IOPL | rflags::IF;
    } else if core.cpl <= iopl(core) {
        writable |= rflags::IF;
    }
    let before = core.system_flags;
    core.set_rflags(image & writable | before & !writable & !rflags::RF);
    // An interrupt may be waiting for IF, and a trap is looked for where a block begins.
    if (before ^ core.system_flags) & (rflags::IF | rflags::TF | rflags::AC) != 0 {
        core.end_block();
    }
    Ok(())
}

/// `immediate` is the size of the frame, `aux` the nesting level, 0 to 31.
fn enter<W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let step = T::SIZE as u64;
    let mut sp = W::sp(core).wrapping_sub(step) & W::MASK;
    let rbp: T = core.reg(RBP as u8);
    W::write(core, sp, rbp)?;
    let frame = sp;
    let mut link = core.gpr[RBP];
    for level in 1..=op.aux {
        sp = sp.wrapping_sub(step) & W::MASK;
        let pointer = if level == op.aux {
            T::truncate(frame)
        } else {
            link = link.wrapping_sub(step);
            W::read(core, link & W::MASK)?
        };
        W::write(core, sp, pointer)?;
    }
    sp = sp.wrapping_sub(op.immediate) & W::MASK;
    // The new top must be writable: processors probe it.
    W::probe::<T>(core, sp)?;
    core.set_reg(RBP as u8, T::truncate(frame));
    W::set_sp(core, sp);
    Ok(())
}

fn leave<W: Stack, T: Scalar>(core: &mut Core, _: &Op) -> Outcome {
    let frame = core.gpr[RBP] & W::MASK;
    let value: T = W::read(core, frame)?;
    W::set_sp(core, frame.wrapping_add(T::SIZE as u64));
    core.set_reg(RBP as u8, value);
    Ok(())
}

fn bound<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let signed = |value: T| sign_extend(value.widen(), T::BITS) as i64;
    let lower = core.load(&op.mem).map(signed)?;
    let upper = core.load(&displaced(&op.mem, T::SIZE as u64)).map(signed)?;
    let index = signed(core.reg(op.reg));
    if index < lower || index > upper {
        return core.raise(exception::BR);
    }
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let size = || i.stack_pointer_increment().unsigned_abs() as usize;
    Some(match i.code() {
        Code::Pushaw => Lowered::new(on_stack!(mode, 2, pusha)),
        Code::Pushad => Lowered::new(on_stack!(mode, 4, pusha)),
        Code::Popaw => Lowered::new(on_stack!(mode, 2, popa)),
        Code::Popad => Lowered::new(on_stack!(mode, 4, popa)),
        Code::Pushfw | Code::Pushfd | Code::Pushfq => Lowered::new(on_stack!(mode, size(), pushf)),
        Code::Popfw | Code::Popfd | Code::Popfq => Lowered::new(on_stack!(mode, size(), popf)),
        Code::Enterw_imm16_imm8 => lower_enter(i, mode, 2),
        Code::Enterd_imm16_imm8 => lower_enter(i, mode, 4),
        Code::Enterq_imm16_imm8 => lower_enter(i, mode, 8),
        Code::Leavew => Lowered::new(on_stack!(mode, 2, leave)),
        Code::Leaved => Lowered::new(on_stack!(mode, 4, leave)),
        Code::Leaveq => Lowered::new(on_stack!(mode, 8, leave)),
        _ if i.mnemonic() == Mnemonic::Bound => {
            let handler = if i.op0_register().size() == 2 { bound::<u16> } else { bound::<u32> };
            Lowered::new(handler).reg(register(i.op0_register())).mem(memory(i, mode))
        }
        _ => return None,
    })
}

fn lower_enter(i: &Instruction, mode: DecodeMode, size: usize) -> Lowered {
    Lowered::new(on_stack!(mode, size, enter)).immediate(i.immediate(0) & 0xffff).aux(i.immediate(1) as u8 & 31)
}
