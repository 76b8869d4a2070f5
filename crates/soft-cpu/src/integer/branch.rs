//! Near control flow: Jcc and JMP to a known target.
//!
//! A block's fall-through address is already in [`Core::rip`] when its last instruction runs, so a branch that is not taken does nothing.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::flags::LazyFlags;
use crate::op::{Handler, Op};

/// A condition of Jcc, SETcc and CMOVcc.
pub(super) trait Condition {
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

fn jcc<C: Condition>(core: &mut Core, op: &Op) -> Outcome {
    if C::holds(&core.flags) {
        core.rip = op.immediate;
    }
    Ok(())
}

fn jmp(core: &mut Core, op: &Op) -> Outcome {
    core.rip = op.immediate;
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    let target = i.near_branch_target() & mode.ip_mask();
    if i.is_jcc_short_or_near() {
        return Some(Lowered::new(by_condition!(i.condition_code(), jcc)).immediate(target).ends_block());
    }
    if i.mnemonic() == Mnemonic::Jmp && i.flow_control() == FlowControl::UnconditionalBranch && i.is_jmp_short_or_near()
    {
        return Some(Lowered::new(jmp).immediate(target).ends_block());
    }
    None
}
