//! The instructions of a translation, block behind block, with what is known of each before code is generated.

use iced_x86::{Decoder, DecoderOptions};

use super::classify::{ALL, Classified, Template, classify};
use super::generate::Place;
use super::trace::{Next, Part};
use super::vector::Vectors;
use crate::core::DecodeMode;
use crate::op::Op;

/// An instruction of the translation.
pub(super) struct Step<'a> {
    pub(super) c: Classified<'a>,
    pub(super) op: &'a Op,
    pub(super) bytes: &'a [u8],
    /// Where its block stands.
    pub(super) place: Place,
    /// Instructions of the blocks behind its own, and their operands that were counted.
    pub(super) rest: usize,
    pub(super) rest_accesses: u32,
    /// It is a jump to the next block.
    pub(super) within: Option<Within>,
}

/// A jump within a translation.
#[derive(Clone, Copy)]
pub(super) enum Within {
    /// Control goes on behind it.
    Always,
    /// It leaves if this condition holds, for this address.
    Unless(u8, u64),
}

/// Classifies all instructions, and finds out which flags are live.
pub(super) fn steps<'a>(parts: &'a [Part<'a>], mode: DecodeMode, precise: bool) -> Option<Vec<Step<'a>>> {
    let count: usize = parts.iter().map(|part| part.ops.len()).sum();
    let mut rest_accesses: u32 = parts.iter().map(|part| part.accesses).sum();
    let mut vectors = Vectors::new(mode);
    let mut steps: Vec<Step<'_>> = Vec::with_capacity(count);
    for part in parts {
        let mut decoder = Decoder::with_ip(mode.bitness(), part.bytes, part.place.rip(), DecoderOptions::NONE);
        let rest = count - steps.len() - part.ops.len();
        rest_accesses -= part.accesses;
        for (n, op) in part.ops.iter().enumerate() {
            let start = usize::from(op.offset);
            let instruction = decoder.decode();
            let bytes = part.bytes.get(start..start + usize::from(op.len))?;
            if instruction.len() != bytes.len() {
                return None;
            }
            let last = n + 1 == part.ops.len();
            let mut c = classify(instruction, bytes, op, last, &mut vectors);
            let within = if last { within(&mut c, part.next)? } else { None };
            steps.push(Step { c, op, bytes, place: part.place, rest, rest_accesses, within });
        }
    }
    let mut live = ALL;
    for Step { c, .. } in steps.iter_mut().rev() {
        c.live_after = live;
        live = if precise && c.may_fault() { ALL } else { c.read | live & !c.kill };
        c.live_before = live;
    }
    Some(steps)
}

/// The jump at a block's end, if there is a next block in the translation; `None` if it is no such jump.
fn within(c: &mut Classified<'_>, next: Next) -> Option<Option<Within>> {
    let after = c.instruction.next_ip();
    let within = match (next, c.template) {
        (Next::Nowhere, _) => return Some(None),
        (Next::Jump, Template::Jump { .. }) => Within::Always,
        // The opposite of a condition differs in its lowest bit (SDM vol. 2, appendix B.1.4.7).
        (Next::Taken, Template::JumpIf { condition, .. }) => Within::Unless(condition ^ 1, after),
        (Next::NotTaken, Template::JumpIf { condition, target }) => Within::Unless(condition, target),
        _ => return None,
    };
    if matches!(within, Within::Unless(..)) {
        // Where it leaves for, all flags may be read.
        c.read = ALL;
    }
    Some(Some(within))
}
