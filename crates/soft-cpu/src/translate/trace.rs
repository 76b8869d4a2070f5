//! Traces: blocks of one page that mostly follow one another, translated as one.
//!
//! A block ends with each jump. Where a jump goes to a block that is hot as well, that block is translated as its continuation: the jump is not there any more, or is
//! the other way round and leaves the trace, and flags and found addresses live on from block to block. Traces end at calls, returns and computed jumps, at the
//! page's end, and where a jump may go back.
//!
//! Nothing but the blocks' own heat says which way a conditional jump mostly goes.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};

use super::classify::direct_target;
use super::generate::Place;
use crate::block::{Block, BlockCache};
use crate::core::DecodeMode;
use crate::op::Op;

/// Most blocks in a trace.
const MOST_BLOCKS: usize = 8;
/// Most instructions in a trace of several blocks.
pub(super) const MOST_OPS: usize = 96;

/// How control goes from a block to the next one of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// There is none.
    Nowhere,
    /// By a jump that is always taken.
    Jump,
    /// By a conditional jump that is taken.
    Taken,
    /// By one that is not.
    NotTaken,
}

/// A block in a trace.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) place: Place,
    pub(super) ops: &'a [Op],
    /// Operands in memory to be counted each time; zero if they are not counted.
    pub(super) accesses: u32,
    pub(super) next: Next,
}

impl<'a> Part<'a> {
    /// All of `block`, which nothing follows yet.
    fn of(block: &'a Block, place: Place) -> Self {
        Self { accesses: block.accesses(), ..Self::new(block.bytes(), place, &block.ops) }
    }

    /// Instructions that nothing follows yet, and whose operands are not counted.
    pub(super) fn new(bytes: &'a [u8], place: Place, ops: &'a [Op]) -> Self {
        Self { bytes, place, ops, accesses: 0, next: Next::Nowhere }
    }

    /// The last instruction.
    fn last(&self, mode: DecodeMode) -> Option<Instruction> {
        let op = self.ops.last()?;
        let start = usize::from(op.offset);
        let bytes = self.bytes.get(start..start + usize::from(op.len))?;
        let ip = self.place.rip().wrapping_add(start as u64);
        Some(Decoder::with_ip(mode.bitness(), bytes, ip, DecoderOptions::NONE).decode())
    }
}

/// The trace that begins with `head`, which is current and lies at `place`; with blocks that are translated or were executed `heat` times.
pub(super) fn follow<'a>(blocks: &'a BlockCache, head: &'a Block, place: Place, heat: u32) -> Vec<Part<'a>> {
    let mut parts = vec![Part::of(head, place)];
    let mut ops = head.ops.len();
    let mut last = 0;
    while let Some((next, block, place)) = successor(blocks, head, &parts, last, heat)
        && parts.len() < MOST_BLOCKS
        && ops + block.ops.len() <= MOST_OPS
    {
        ops += block.ops.len();
        block.native.hold();
        parts[last].next = next;
        last = parts.len();
        parts.push(Part::of(block, place));
    }
    parts
}

/// What mostly follows the last of `parts`, if it is hot.
fn successor<'a>(
    blocks: &'a BlockCache,
    head: &Block,
    parts: &[Part<'a>],
    last: usize,
    heat: u32,
) -> Option<(Next, &'a Block, Place)> {
    let i = parts[last].last(head.mode())?;
    let here = parts[last].place;
    let on_page = |target: u64| target >> 12 == here.rip() >> 12;
    let candidate = |next, target: u64| {
        let block = on_page(target).then(|| blocks.on_page_of(head, target & 0xfff))??;
        Some((block.native.warmth(), next, block, here.on_same_page(target & 0xfff)))
    };
    let targets = match i.flow_control() {
        FlowControl::UnconditionalBranch if i.is_jmp_short_or_near() => [Some((Next::Jump, direct_target(&i)?)), None],
        FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => {
            [Some((Next::NotTaken, i.next_ip())), Some((Next::Taken, direct_target(&i)?))]
        }
        _ => return None,
    };
    // The jump back to a loop's head is a link: otherwise each trace around the loop would begin elsewhere.
    if targets.iter().flatten().any(|(_, target)| *target <= here.rip()) {
        return None;
    }
    let candidates = targets.into_iter().flatten().filter_map(|(next, target)| candidate(next, target));
    // Of two that are equally hot, the one that is not jumped to.
    let (warmth, next, block, place) = candidates.reduce(|best, other| if other.0 > best.0 { other } else { best })?;
    // What is translated already is linked to: twice the code would be slower than a jump.
    (warmth >= heat && warmth != u32::MAX).then_some((next, block, place))
}
