//! x87, MMX, SSE and AVX: what user code may execute besides the general-purpose instructions.
//!
//! The host runs these instructions itself, each wrapped in a [`thunk`] that is made when the instruction is decoded. By hand are only the
//! commonest moves ([`moves`]), masked moves and gathers, whose elements fault one by one ([`masked`]), the x87 environment
//! ([`x87_environment`]) and the save areas ([`save_area`]).
//!
//! Covered are the features that [`classify`] lists, as far as the host has them; EVEX, XOP, FMA4 and 3DNow! are invalid opcodes. Not modelled:
//! alignment checks by EFLAGS.AC, AMD's misaligned SSE mode, unmasked underflow of exact tiny results of VCVTPS2PH (which ignores the flushing
//! that finds them for the others), and the selectors in the x87 pointers, which read as zero.

mod arena;
mod classify;
mod masked;
mod moves;
mod native;
mod save_area;
mod thunk;
mod x87;
mod x87_environment;

#[cfg(test)]
mod tests;

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Core, DecodeMode, Outcome};
use crate::decode::Lowered;
use crate::op::Op;
pub(crate) use arena::{Arena, Part};
pub(crate) use classify::{Class, alignment, uses_x87_registers};
pub use thunk::ThunkCache;

/// Lowers an instruction of this family; `None` if it is not one.
pub(crate) fn lower(i: &Instruction, mode: DecodeMode, thunks: &mut ThunkCache) -> Option<Lowered> {
    if let Some(lowered) = save_area::lower(i, mode).or_else(|| moves::lower_without_registers(i, mode)) {
        return Some(lowered);
    }
    if i.mnemonic() == Mnemonic::Wait {
        return Some(Lowered::new(x87::fwait));
    }
    let class = Class::of(i)?;
    if !class.runs_in(mode) {
        return Some(Lowered::new(not_enabled).aux(class as u8));
    }
    match class {
        Class::X87 => x87_environment::lower(i, mode).or_else(|| x87::lower(i, mode, thunks)),
        Class::Mmx | Class::Sse | Class::Avx => {
            moves::lower(i, mode).or_else(|| masked::lower(i, mode)).or_else(|| native::lower(i, mode, thunks))
        }
    }
}

/// An instruction that the control registers do not allow now; `aux` is its class.
fn not_enabled(core: &mut Core, op: &Op) -> Outcome {
    let vector = Class::from_number(op.aux).exception(core);
    core.raise(vector)
}
