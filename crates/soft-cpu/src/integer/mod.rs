//! The general-purpose instructions: moves, arithmetic, shifts, bits, strings, stack and near control flow.

mod alu;
mod branch;
mod mov;

use iced_x86::Instruction;

use crate::core::DecodeMode;
use crate::decode::Lowered;

/// Lowers a general-purpose instruction; `None` if it is not one.
pub(crate) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    mov::lower(i, mode).or_else(|| alu::lower(i, mode)).or_else(|| branch::lower(i, mode))
}
