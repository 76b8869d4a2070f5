//! The system instructions and far control flow.
//!
//! Whether CPL 3 may use an instruction is decided when it is decoded: the privilege level is part of the decoding mode.

mod control;
pub(crate) mod descriptor;
mod events;
mod far;
mod identity;
mod io;
mod segments;
pub(crate) mod stack;
mod syscall;
mod tables;
#[cfg(test)]
mod tests;

pub use control::CR4_OFFERED;
use iced_x86::Instruction;
use x86::exception;

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::op::Op;

fn raise_invalid(core: &mut Core, _: &Op) -> Outcome {
    core.raise(exception::UD)
}

fn raise_general_protection(core: &mut Core, _: &Op) -> Outcome {
    core.raise_with(exception::GP, 0)
}

/// An instruction that is #UD here.
fn invalid() -> Lowered {
    Lowered::new(raise_invalid).ends_block()
}

/// An instruction that is #GP(0) here.
fn general_protection() -> Lowered {
    Lowered::new(raise_general_protection).ends_block()
}

/// Lowers a system instruction; `None` if it is not one.
pub(crate) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    segments::lower(i, mode)
        .or_else(|| control::lower(i, mode))
        .or_else(|| events::lower(i, mode))
        .or_else(|| syscall::lower(i, mode))
        .or_else(|| identity::lower(i, mode))
        .or_else(|| io::lower(i, mode))
        .or_else(|| far::lower(i, mode))
        .or_else(|| tables::lower(i, mode))
}
