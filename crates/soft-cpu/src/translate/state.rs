//! What generated code keeps in [`Core`](crate::core::Core) for itself.

use x86::rflags;

use super::reuse::PLACES;
use crate::core::Stop;
use crate::flags::LazyFlags;
use crate::tlb::{Rights, Tlb};

/// Words that generated code reads and writes.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct NativeState {
    /// Instructions until it returns; below zero it does.
    pub(crate) slice: i32,
    /// What a trace that was left early has not used of the slice, if it was not to go on with it.
    pub(crate) unused: i32,
    /// The guest's vector registers and MXCSR are in the host's; never while Rust runs.
    pub(crate) vectors: bool,
    /// And so are the x87 registers; never without the vector registers.
    pub(crate) x87: bool,
    /// Generated code could not execute what comes next: it is to be interpreted.
    pub(crate) interpret: bool,
    /// A handler has ended the run of generated code.
    pub(crate) handler_left: bool,
    /// The status flags as LAHF and SETO give them: AH and AL.
    pub(crate) flags: u16,
    /// Where an indirect call goes, and its code, while the return address is being stored.
    pub(crate) target: u64,
    pub(crate) target_code: u64,
    /// The core's address.
    pub(crate) core: usize,
    /// The host's stack pointer when generated code was entered.
    pub(crate) host_stack: u64,
    /// And where it called a handler.
    pub(crate) caller_stack: u64,
    /// The read and write tables of the TLB for the current rights.
    pub(super) tables: [usize; 2],
    /// Entries from instruction pointers to code, for the current mode.
    pub(crate) jump_table: usize,
    /// Host addresses that a block has found and goes on using; zero for none.
    pub(crate) places: [usize; PLACES],
    /// Why a handler stopped.
    pub(crate) stop: Option<Stop>,
}

impl NativeState {
    /// Says whose rights accesses are made with from now on.
    pub(crate) fn set_tables(&mut self, tlb: &Tlb, rights: Rights) {
        self.tables = tlb.tables(rights);
    }
}

/// LAHF's and SETO's form of the flags.
pub(super) fn to_raw(flags: &LazyFlags) -> u16 {
    let bits = flags.bits();
    let low = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;
    ((bits & low) as u16) << 8 | u16::from(bits & rflags::OF != 0)
}

/// And back.
pub(super) fn from_raw(raw: u16) -> LazyFlags {
    let overflow = if raw & 1 != 0 { rflags::OF } else { 0 };
    LazyFlags::from_bits(u64::from(raw >> 8) | overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_flag_survives_the_way_there_and_back() {
        for bit in [rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF, rflags::OF] {
            assert_eq!(from_raw(to_raw(&LazyFlags::from_bits(bit))).bits(), bit);
        }
    }
}
