//! A stack pointer on trial: far transfers and events push and pop through it and commit RSP only when nothing can fault any more.

use x86::{Segment, exception};

use crate::core::{Core, DecodeMode, Outcome, seg};
use crate::tlb::Rights;

/// A stack that has not been committed to SS:RSP yet.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    /// The pointer.
    pub(crate) sp: u64,
    /// The bits of the pointer that move.
    mask: u64,
    /// The stack segment; `None` in 64-bit mode, where it counts for nothing.
    segment: Option<Segment>,
    rights: Rights,
    /// Selector part and EXT bit of the #SS that a limit violation raises.
    error_code: u32,
}

impl Stack {
    /// The stack that SS:RSP is now.
    #[inline]
    pub(crate) fn current(core: &Core) -> Self {
        let (mask, segment) = if core.mode.has(DecodeMode::CODE64) {
            (u64::MAX, None)
        } else {
            let ss = core.segments[seg::SS];
            (if ss.has(Segment::DB) { 0xffff_ffff } else { 0xffff }, Some(ss))
        };
        Self { sp: core.gpr[x86::gpr::RSP], mask, segment, rights: core.rights, error_code: 0 }
    }

    /// A 64-bit stack at `sp`, used with `rights`.
    #[inline]
    pub(crate) fn flat(sp: u64, rights: Rights) -> Self {
        Self { sp, mask: u64::MAX, segment: None, rights, error_code: 0 }
    }

    /// A stack in `segment`, which is to be loaded; faults carry `error_code`.
    pub(crate) fn in_segment(segment: Segment, sp: u64, rights: Rights, error_code: u32) -> Self {
        let mask = if segment.has(Segment::DB) { 0xffff_ffff } else { 0xffff };
        Self { sp, mask, segment: Some(segment), rights, error_code }
    }

    /// The linear address of `size` bytes at stack offset `offset`.
    #[inline]
    fn linear(&self, core: &mut Core, offset: u64, size: u64) -> Outcome<u64> {
        let Some(ss) = &self.segment else { return Ok(offset) };
        let last = offset + size - 1;
        let inside = if core.mode.has(DecodeMode::REAL) || !ss.has(Segment::CONFORMING_OR_EXPAND_DOWN) {
            last <= u64::from(ss.limit)
        } else {
            offset > u64::from(ss.limit) && last <= self.mask
        };
        if !inside || !(ss.has(Segment::PRESENT) || core.mode.has(DecodeMode::REAL)) {
            return core.raise_with(exception::SS, self.error_code);
        }
        Ok(ss.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Pushes the low `size` bytes (2, 4 or 8) of `value`.
    #[inline]
    pub(crate) fn push(&mut self, core: &mut Core, size: u8, value: u64) -> Outcome {
        let offset = self.sp.wrapping_sub(u64::from(size)) & self.mask;
        let linear = self.linear(core, offset, u64::from(size))?;
        match size {
            2 => core.write_as(self.rights, linear, value as u16)?,
            4 => core.write_as(self.rights, linear, value as u32)?,
            _ => core.write_as(self.rights, linear, value)?,
        }
        self.sp = (self.sp & !self.mask) | offset;
        Ok(())
    }

    /// Pops `size` bytes (2, 4 or 8), zero-extended.
    #[inline]
    pub(crate) fn pop(&mut self, core: &mut Core, size: u8) -> Outcome<u64> {
        let offset = self.sp & self.mask;
        let linear = self.linear(core, offset, u64::from(size))?;
        let value = match size {
            2 => u64::from(core.read_as::<u16>(self.rights, linear)?),
            4 => u64::from(core.read_as::<u32>(self.rights, linear)?),
            _ => core.read_as(self.rights, linear)?,
        };
        self.skip(u64::from(size));
        Ok(value)
    }

    /// Pops `bytes` bytes without looking at them.
    #[inline]
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.sp = (self.sp & !self.mask) | (self.sp.wrapping_add(bytes) & self.mask);
    }

    /// Makes the pointer RSP (or ESP, or SP).
    #[inline]
    pub(crate) fn commit(&self, core: &mut Core) {
        let rsp = &mut core.gpr[x86::gpr::RSP];
        *rsp = match self.mask {
            0xffff => (*rsp & !0xffff) | (self.sp & 0xffff),
            0xffff_ffff => self.sp & 0xffff_ffff,
            _ => self.sp,
        };
    }
}
