//! How wide the words are that flat code works with besides its operands: addresses, instruction pointers and what is pushed.

use super::emit::{Emitter, Form, Rm};
use crate::core::DecodeMode;

/// 64-bit code's words, or 32-bit code's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Bits32,
    Bits64,
}

impl Width {
    /// The words of flat code of `mode`.
    pub(super) fn of(mode: DecodeMode) -> Self {
        if mode.has(DecodeMode::CODE64) { Self::Bits64 } else { Self::Bits32 }
    }

    /// Bytes of a word.
    pub(super) fn bytes(self) -> u8 {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// What [`Mem::unused_bits`](crate::op::Mem) is for an address of that many bits.
    pub(super) fn unused_bits(self) -> u8 {
        64 - 8 * self.bytes()
    }

    /// An opcode with words as operands. Its results of 32 bits clear the upper half of their registers.
    pub(super) fn form(self, opcode: u8) -> Form {
        Form { wide: self == Self::Bits64, ..Form::short(opcode) }
    }

    /// MOV of a word from memory or a register.
    pub(super) fn load(self, e: &mut Emitter, to: u8, from: Rm) {
        e.modrm(self.form(0x8b), to, from);
    }

    /// MOV of a word to memory.
    pub(super) fn store(self, e: &mut Emitter, to: Rm, from: u8) {
        e.modrm(self.form(0x89), from, to);
    }

    /// LEA of a word.
    pub(super) fn lea(self, e: &mut Emitter, to: u8, from: Rm) {
        e.modrm(self.form(0x8d), to, from);
    }
}
