//! The system instructions and far control flow.

use iced_x86::Instruction;

use crate::core::DecodeMode;
use crate::decode::Lowered;

/// Lowers a system instruction; `None` if it is not one.
pub(crate) fn lower(_i: &Instruction, _mode: DecodeMode) -> Option<Lowered> {
    None
}
