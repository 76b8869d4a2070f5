//! Near control flow: Jcc, JMP, CALL, RET, LOOP and JRCXZ with their variants.
//!
//! A block's fall-through address is already in [`Core::rip`] when its last instruction runs, so a branch that is not taken does nothing.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};
use x86::exception;
use x86::paging::is_canonical;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::{Lowered, branch_base, is_memory};
use crate::flags::LazyFlags;
use crate::integer::operand::{InMemory, InRegister, Source, operand_size, sized_word, sourced, with_source};
use crate::integer::stack::{Stack, on_stack};
use crate::op::{Handler, Op};
use crate::ram::Scalar;

const RCX: u8 = 1;

/// A condition of Jcc, SETcc and CMOVcc.
pub(super) trait Condition: 'static {
    /// Whether it holds.
    fn holds(flags: &LazyFlags) -> bool;
}

macro_rules! conditions {
    ($($name:ident |$f:ident| $holds:expr;)+) => { $(
        pub(super) struct $name;
        impl Condition for $name {
            #[inline(always)]
            fn holds($f: &LazyFlags) -> bool {
                $holds
            }
        }
    )+ };
}
conditions! {
    O |f| f.of();
    No |f| !f.of();
    B |f| f.cf();
    Ae |f| !f.cf();
    E |f| f.zf();
    Ne |f| !f.zf();
    Be |f| f.cf() || f.zf();
    A |f| !f.cf() && !f.zf();
    S |f| f.sf();
    Ns |f| !f.sf();
    P |f| f.pf();
    Np |f| !f.pf();
    L |f| f.less();
    Ge |f| !f.less();
    Le |f| f.less() || f.zf();
    G |f| !f.less() && !f.zf();
}

/// Picks the instance of a handler that is generic over a [`Condition`].
macro_rules! by_condition {
    ($condition:expr, $handler:ident $(, $arg:ty)*) => {
        match $condition {
            ConditionCode::o => $handler::<O $(, $arg)*> as Handler,
            ConditionCode::no => $handler::<No $(, $arg)*>,
            ConditionCode::b => $handler::<B $(, $arg)*>,
            ConditionCode::ae => $handler::<Ae $(, $arg)*>,
            ConditionCode::e => $handler::<E $(, $arg)*>,
            ConditionCode::ne => $handler::<Ne $(, $arg)*>,
            ConditionCode::be => $handler::<Be $(, $arg)*>,
            ConditionCode::a => $handler::<A $(, $arg)*>,
            ConditionCode::s => $handler::<S $(, $arg)*>,
            ConditionCode::ns => $handler::<Ns $(, $arg)*>,
            ConditionCode::p => $handler::<P $(, $arg)*>,
            ConditionCode::np => $handler::<Np $(, $arg)*>,
            ConditionCode::l => $handler::<L $(, $arg)*>,
            ConditionCode::ge => $handler::<Ge $(, $arg)*>,
            ConditionCode::le => $handler::<Le $(, $arg)*>,
            _ => $handler::<G $(, $arg)*>,
        }
    };
}
pub(super) use by_condition;

/// Where a direct branch goes. What it is relative to stands in `rm`, and in `aux` how many bits of an instruction pointer it clears.
#[inline(always)]
fn direct_target(core: &Core, op: &Op) -> u64 {
    core.gpr[usize::from(op.rm & 31)].wrapping_add(op.immediate) << (op.aux & 63) >> (op.aux & 63)
}

fn jcc<C: Condition>(core: &mut Core, op: &Op) -> Outcome {
    if C::holds(&core.flags) {
        core.rip = direct_target(core, op);
    }
    Ok(())
}

fn jmp(core: &mut Core, op: &Op) -> Outcome {
    core.rip = direct_target(core, op);
    Ok(())
}

/// Whether a branch may go to `target`: in 64-bit code it must be canonical. (Elsewhere the limit is checked by the fetch.)
#[inline(always)]
fn check_target<T: Scalar>(core: &mut Core, target: T) -> Outcome {
    if T::SIZE == 8 && !is_canonical(target.widen()) {
        return core.raise_with(exception::GP, 0);
    }
    Ok(())
}

fn jmp_indirect<S: Source, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let target = S::get::<T>(core, op)?;
    check_target(core, target)?;
    core.rip = target.widen();
    Ok(())
}

fn call<W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    W::push(core, T::truncate(core.rip))?;
    core.rip = direct_target(core, op);
    Ok(())
}

fn call_indirect<S: Source, W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let target = S::get::<T>(core, op)?;
    // A stack that cannot be written comes before a target that is not canonical; the stack pointer moves only after both.
    let sp = W::sp(core).wrapping_sub(T::SIZE as u64) & W::MASK;
    W::probe::<T>(core, sp)?;
    check_target(core, target)?;
    W::push(core, T::truncate(core.rip))?;
    core.rip = target.widen();
    Ok(())
}

/// `immediate` is how much is dropped besides the return address.
fn ret<W: Stack, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let sp = W::sp(core);
    let target = W::read::<T>(core, sp)?;
    check_target(core, target)?;
    W::set_sp(core, sp.wrapping_add(T::SIZE as u64).wrapping_add(op.immediate));
    core.rip = target.widen();
    Ok(())
}

/// What LOOP asks besides "the counter is not zero".
trait LoopCondition: 'static {
    fn holds(flags: &LazyFlags) -> bool;
}

struct Always;
impl LoopCondition for Always {
    #[inline(always)]
    fn holds(_: &LazyFlags) -> bool {
        true
    }
}

struct WhileEqual;
impl LoopCondition for WhileEqual {
    #[inline(always)]
    fn holds(flags: &LazyFlags) -> bool {
        flags.zf()
    }
}

struct WhileNotEqual;
impl LoopCondition for WhileNotEqual {
    #[inline(always)]
    fn holds(flags: &LazyFlags) -> bool {
        !flags.zf()
    }
}

/// `T` is the address size: CX, ECX or RCX counts.
fn loop_while<C: LoopCondition, T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    let count = T::truncate(core.reg::<T>(RCX).widen().wrapping_sub(1));
    core.set_reg(RCX, count);
    if count != T::default() && C::holds(&core.flags) {
        core.rip = direct_target(core, op);
    }
    Ok(())
}

fn jump_if_zero<T: Scalar>(core: &mut Core, op: &Op) -> Outcome {
    if core.reg::<T>(RCX) == T::default() {
        core.rip = direct_target(core, op);
    }
    Ok(())
}

/// The size in bytes of the counter of LOOP and JRCXZ: the address size.
fn counter_size(code: Code) -> usize {
    match code {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => 2,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => 8,
        _ => 4,
    }
}

// DEVNOTE: an operand-size prefix on a near branch in 64-bit code is ignored, as on Intel (and by iced). AMD truncates the target to 16 bits; no code uses
// it, and the guest may not learn which of the two it runs on.
pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    // The target is already cut to the operand size; one past the segment's limit is the fetch's to refuse.
    let direct = |handler: Handler| {
        let bits: u8 = match i.op0_kind() {
            OpKind::NearBranch16 => 16,
            OpKind::NearBranch32 => 32,
            _ => 64,
        };
        Lowered::new(handler).immediate(i.near_branch_target()).rm(branch_base(mode)).aux(64 - bits)
    };
    if i.is_jcc_short_or_near() {
        return Some(direct(by_condition!(i.condition_code(), jcc)).ends_block());
    }
    let size = || operand_size(i, 0);
    let indirect = |handler: Handler| with_source(Lowered::new(handler), i, 0, mode);
    let lowered = match i.mnemonic() {
        Mnemonic::Jmp if i.is_jmp_short_or_near() => direct(jmp),
        Mnemonic::Jmp if i.is_jmp_near_indirect() => indirect(sourced!(i, 0, sized_word, size(), jmp_indirect)),
        Mnemonic::Call if i.is_call_near() => {
            let size = i.stack_pointer_increment().unsigned_abs() as usize;
            direct(on_stack!(mode, size, call))
        }
        Mnemonic::Call if i.is_call_near_indirect() && is_memory(i, 0) => {
            indirect(on_stack!(mode, size(), call_indirect, InMemory))
        }
        Mnemonic::Call if i.is_call_near_indirect() => indirect(on_stack!(mode, size(), call_indirect, InRegister)),
        Mnemonic::Ret => lower_ret(i, mode),
        Mnemonic::Loop => direct(sized_word!(counter_size(i.code()), loop_while, Always)),
        Mnemonic::Loope => direct(sized_word!(counter_size(i.code()), loop_while, WhileEqual)),
        Mnemonic::Loopne => direct(sized_word!(counter_size(i.code()), loop_while, WhileNotEqual)),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => direct(sized_word!(counter_size(i.code()), jump_if_zero)),
        _ => return None,
    };
    Some(lowered.ends_block())
}

fn lower_ret(i: &Instruction, mode: DecodeMode) -> Lowered {
    let size = match i.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let dropped = if i.op_count() == 0 { 0 } else { i.immediate(0) & 0xffff };
    Lowered::new(on_stack!(mode, size, ret)).immediate(dropped)
}
