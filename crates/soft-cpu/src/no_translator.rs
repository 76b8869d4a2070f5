//! What stands in the translator's place in a build without it: the same names, and a translator that cannot be made.

use crate::block::{Block, BlockCache};
use crate::core::{Core, Outcome};
use crate::run::Entered;
use crate::statistics::TranslatorStatistics;
use crate::tlb::{Rights, Tlb};

/// A block's share of the translator: nothing.
#[derive(Debug, Default)]
pub(crate) struct NativeBlock {}

impl NativeBlock {
    pub(crate) fn is_held(&self) -> bool {
        false
    }

    pub(crate) fn heat(&self) -> u32 {
        0
    }

    pub(crate) fn set_generation(&mut self, _: u32) {}
}

/// Generated code by instruction pointer: there is none.
#[derive(Debug, Default)]
pub struct Jumps {}

impl Jumps {
    pub(crate) fn clear(&mut self) {}

    pub(crate) fn flush_non_global(&mut self) {}

    pub(crate) fn flush_page(&mut self, _: u64) {}
}

/// What generated code would keep in [`Core`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NativeState {
    pub(crate) interpret: bool,
}

impl NativeState {
    pub(crate) fn set_tables(&mut self, _: &Tlb, _: Rights) {}
}

/// There is none.
pub(crate) enum Translator {}

impl Translator {
    pub(crate) fn new(_threshold: u32, _precise: bool) -> Option<Self> {
        None
    }

    pub(crate) fn statistics(&self) -> TranslatorStatistics {
        match *self {}
    }

    pub(crate) fn limited_to(self, _size: usize) -> Option<Self> {
        match self {}
    }

    pub(crate) fn known_entry(&self, _: &Core, _clears: u32) -> Option<u64> {
        match *self {}
    }

    pub(crate) fn is_code_of(&self, _: &Core, _: &Block, _entry: u64) -> bool {
        match *self {}
    }

    pub(crate) fn set_debugging(&mut self, _lockstep: bool, _flushes: bool, _perf_map: bool) {
        match *self {}
    }

    pub(crate) fn run(&mut self, _: &mut Core, _: &BlockCache, _: &Block, _budget: u64) -> Entered {
        match *self {}
    }

    pub(crate) fn run_known(&mut self, _: &mut Core, _clears: u32, _budget: u64) -> Entered {
        match *self {}
    }

    pub(crate) fn run_translation(&mut self, _: &mut Core, _: &Block, _number: usize, _slice: i32) -> Entered {
        match *self {}
    }

    pub(crate) fn prepare(&mut self, _: &mut Core, _: &BlockCache, _: &Block) -> Option<usize> {
        match *self {}
    }

    pub(crate) fn live(&self, _number: usize) -> u32 {
        match *self {}
    }

    pub(crate) fn count(&self, _number: usize) -> usize {
        match *self {}
    }

    pub(crate) fn further(&self, _number: usize) -> &[u16] {
        match *self {}
    }

    pub(crate) fn step(&mut self, _: &mut Core, _: &Block) -> Option<Outcome> {
        match *self {}
    }
}
