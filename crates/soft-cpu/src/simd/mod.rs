//! x87, MMX, SSE, AVX and the other instructions that run natively.

use iced_x86::Instruction;

use crate::core::DecodeMode;
use crate::decode::Lowered;

/// Lowers an instruction that the host executes; `None` if it is not one.
pub(crate) fn lower(_i: &Instruction, _mode: DecodeMode) -> Option<Lowered> {
    None
}
