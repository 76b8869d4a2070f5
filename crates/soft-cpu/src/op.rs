//! A decoded instruction: the function that executes it and its operands, ready to use.

use crate::core::{Core, GPR_ZERO, Outcome, seg};
use crate::ram::Scalar;

/// Executes one instruction. On `Err` nothing of it has been committed (REP string instructions commit by iteration).
pub type Handler = fn(&mut Core, &Op) -> Outcome;

/// A memory operand: `segment : base + (index << shift) + displacement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mem {
    /// Displacement, sign-extended; from the start of the page for a RIP-relative operand.
    pub displacement: u64,
    /// Index into [`Core::gpr`], [`GPR_ZERO`] if there is none, [`GPR_PAGE`](crate::core::GPR_PAGE) for a RIP-relative operand.
    pub base: u8,
    /// Index into [`Core::gpr`], [`GPR_ZERO`] if there is none.
    pub index: u8,
    /// log2 of the scale.
    pub shift: u8,
    /// Segment number for [`Core::segment_bases`]: [`seg::FLAT`] where the base is zero by definition.
    pub segment: u8,
    /// 64 minus the address size in bits.
    pub unused_bits: u8,
    /// Limits and rights of the segment must be checked (outside 64-bit code).
    pub checked: bool,
}

impl Mem {
    /// No memory operand.
    pub const NONE: Self = Self {
        displacement: 0,
        base: GPR_ZERO,
        index: GPR_ZERO,
        shift: 0,
        segment: seg::FLAT as u8,
        unused_bits: 0,
        checked: false,
    };
}

/// A decoded instruction.
#[derive(Clone, Copy)]
pub struct Op {
    /// Executes it.
    pub execute: Handler,
    /// Immediate, sign-extended to 64 bits; where a near branch goes, relative to `rm`. What else a handler wants to keep.
    pub immediate: u64,
    /// The memory operand.
    pub mem: Mem,
    /// Offset of the instruction from the start of its block, in bytes.
    pub offset: u16,
    /// Length of the instruction, in bytes.
    pub len: u8,
    /// First register operand: a [`Core::gpr`] index or a [`byte_register`] code; what else a handler wants to keep.
    pub reg: u8,
    /// Second register operand, likewise.
    pub rm: u8,
    /// What else a handler wants to keep: a small number decided at decode time.
    pub aux: u8,
    /// Likewise.
    pub extra: u32,
    /// Instructions of the block from this one on.
    pub left: u8,
}

/// The code of an 8-bit register: its [`Core::gpr`] index, with bit 7 set for AH, CH, DH, BH.
pub const fn byte_register(index: u8, high: bool) -> u8 {
    index | if high { 0x80 } else { 0 }
}

impl Core {
    /// Reads a register operand of `T`'s size: for `u8`, `reg` is a [`byte_register`] code.
    #[inline(always)]
    pub fn reg<T: Scalar>(&self, reg: u8) -> T {
        let value = self.gpr[usize::from(reg & 31)];
        if T::SIZE == 1 { T::truncate(value >> ((reg >> 7) * 8)) } else { T::truncate(value) }
    }

    /// Writes a register operand of `T`'s size: 32-bit writes clear the upper half, 8- and 16-bit ones keep the rest.
    #[inline(always)]
    pub fn set_reg<T: Scalar>(&mut self, reg: u8, value: T) {
        let slot = &mut self.gpr[usize::from(reg & 31)];
        match T::SIZE {
            1 => {
                let shift = (reg >> 7) * 8;
                *slot = (*slot & !(0xff << shift)) | value.widen() << shift;
            }
            2 => *slot = (*slot & !0xffff) | value.widen(),
            _ => *slot = value.widen(),
        }
    }

    /// The effective address of a memory operand (LEA's result), not yet a linear address.
    #[inline(always)]
    pub fn effective_address(&self, mem: &Mem) -> u64 {
        let base = self.gpr[usize::from(mem.base & 31)];
        let index = self.gpr[usize::from(mem.index & 31)];
        let sum = base.wrapping_add(index << (mem.shift & 3)).wrapping_add(mem.displacement);
        sum << (mem.unused_bits & 63) >> (mem.unused_bits & 63)
    }

    /// The linear address of a memory operand of `size` bytes, limits and rights checked where the mode has them.
    ///
    /// # Errors
    /// #GP or #SS outside 64-bit code.
    #[inline(always)]
    pub fn linear_address(&mut self, mem: &Mem, size: usize, write: bool) -> Outcome<u64> {
        let effective = self.effective_address(mem);
        if mem.checked {
            return self.checked_linear_address(usize::from(mem.segment), effective, size, write);
        }
        Ok(self.segment_bases[usize::from(mem.segment & 7)].wrapping_add(effective))
    }

    /// Loads a memory operand.
    ///
    /// # Errors
    /// Segment and page faults.
    #[inline(always)]
    pub fn load<T: Scalar>(&mut self, mem: &Mem) -> Outcome<T> {
        let linear = self.linear_address(mem, T::SIZE, false)?;
        self.read(linear)
    }

    /// Stores a memory operand.
    ///
    /// # Errors
    /// Segment and page faults.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, mem: &Mem, value: T) -> Outcome {
        let linear = self.linear_address(mem, T::SIZE, true)?;
        self.write(linear, value)
    }

    /// The linear address of `offset` in a segment whose limit and rights are in force (legacy and compatibility modes; SDM vol. 3, 6.3 and 6.5).
    #[inline(never)]
    pub fn checked_linear_address(&mut self, segment: usize, offset: u64, size: usize, write: bool) -> Outcome<u64> {
        use x86::Segment;
        if segment >= self.segments.len() {
            return Ok(offset & 0xffff_ffff);
        }
        let s = self.segments[segment];
        let real = self.mode.has(crate::core::DecodeMode::REAL);
        let last = offset + (size as u64 - 1);
        let code = s.has(Segment::CODE);
        let usable = s.has(Segment::PRESENT);
        let allowed = real
            || usable && if write { !code && s.has(Segment::READ_WRITE) } else { !code || s.has(Segment::READ_WRITE) };
        let inside = if !code && s.has(Segment::CONFORMING_OR_EXPAND_DOWN) && !real {
            let top = if s.has(Segment::DB) { 0xffff_ffff } else { 0xffff };
            offset > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        if !allowed || !inside {
            return self.segment_fault(segment);
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }
}
