//! The general-purpose instructions: moves, arithmetic, shifts, bits, strings, stack and near control flow.
//!
//! One file a sub-family; each has a `lower` that takes the instructions it knows. What the processor leaves undefined (flags after a multiplication,
//! the destination of BSF with a source of zero) is what the AMD Zen 3 does, where that costs nothing.

mod alu;
mod bit_field;
mod bit_scan;
mod bit_test;
mod branch;
mod conditional;
mod decimal;
mod divide;
mod double_shift;
mod exchange;
mod extend;
mod flag;
mod frame;
mod mov;
mod multiply;
mod nop;
mod operand;
mod shift;
mod stack;
mod string;
#[cfg(test)]
mod tests;
mod unary;

use iced_x86::Instruction;

use crate::core::DecodeMode;
use crate::decode::Lowered;

/// Every sub-family's `lower`, the commonest first.
const FAMILIES: [fn(&Instruction, DecodeMode) -> Option<Lowered>; 19] = [
    mov::lower,
    alu::lower,
    branch::lower,
    stack::lower,
    extend::lower,
    unary::lower,
    shift::lower,
    conditional::lower,
    nop::lower,
    exchange::lower,
    multiply::lower,
    divide::lower,
    bit_test::lower,
    bit_scan::lower,
    bit_field::lower,
    string::lower,
    double_shift::lower,
    flag::lower,
    frame::lower,
];

/// Lowers a general-purpose instruction; `None` if it is not one.
pub(crate) fn lower(i: &Instruction, mode: DecodeMode) -> Option<Lowered> {
    FAMILIES.iter().find_map(|lower| lower(i, mode)).or_else(|| decimal::lower(i))
}
