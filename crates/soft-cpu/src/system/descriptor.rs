//! Descriptors in the GDT and LDT, and what loading one into a segment register checks (SDM vol. 3, 3.4 and 6.5).

use x86::{Segment, exception};

use crate::core::{Core, DecodeMode, Outcome, seg};

/// The error code that names `selector`: its RPL bits are not part of it.
pub(crate) fn selector_error(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

/// Whether `selector` is one of the four null selectors.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

impl Core {
    /// Linear address of `selector`'s descriptor; `None` beyond the table's limit.
    #[inline]
    pub(crate) fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let offset = u64::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.has(Segment::PRESENT) {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            return None;
        };
        if offset + (size - 1) > limit {
            return None;
        }
        let address = base.wrapping_add(offset);
        Some(if self.is_long() { address } else { address & 0xffff_ffff })
    }

    /// The descriptor that `selector` names, in its cached form with its address; #GP or `vector`(selector) beyond the table.
    #[inline]
    pub(crate) fn fetch_descriptor(&mut self, selector: u16, vector: u8, ext: u32) -> Outcome<(Segment, u64)> {
        let Some(address) = self.descriptor_address(selector, 8) else {
            return self.raise_with(vector, selector_error(selector) | ext);
        };
        let raw: u64 = self.read_system(address)?;
        Ok((Segment::from_descriptor(selector, raw), address))
    }

    /// Sets the accessed bit in memory and in the cached copy of a code or data segment's descriptor.
    #[inline]
    pub(crate) fn mark_accessed(&mut self, segment: &mut Segment, address: u64) -> Outcome {
        if segment.has(Segment::ACCESSED) {
            return Ok(());
        }
        segment.attributes |= Segment::ACCESSED;
        let byte = self.read_system::<u8>(address.wrapping_add(5))?;
        self.write_system(address.wrapping_add(5), byte | 1)
    }

    /// Checks `selector` for SS at privilege level `cpl` and returns what is to be cached. `vector` is what an unfit one raises: #GP for instructions,
    /// #TS for a stack from the TSS; `ext` is the error code's low bit.
    pub(crate) fn fetch_stack_segment(&mut self, selector: u16, cpl: u8, vector: u8, ext: u32) -> Outcome<Segment> {
        if is_null(selector) {
            return self.raise_with(vector, ext);
        }
        let (mut ss, address) = self.fetch_descriptor(selector, vector, ext)?;
        let writable = ss.has(Segment::S | Segment::READ_WRITE) && !ss.has(Segment::CODE);
        if (selector & 3) as u8 != cpl || ss.dpl() != cpl || !writable {
            return self.raise_with(vector, selector_error(selector) | ext);
        }
        if !ss.has(Segment::PRESENT) {
            return self.raise_with(exception::SS, selector_error(selector) | ext);
        }
        self.mark_accessed(&mut ss, address)?;
        Ok(ss)
    }

    /// SS as 64-bit mode leaves it when it holds a null selector. The DPL stands for the CPL.
    pub(crate) fn null_stack_segment(selector: u16, cpl: u8) -> Segment {
        Segment { selector, base: 0, limit: 0, attributes: u16::from(cpl) << 5 }
    }

    /// Loads segment register `number` (not CS) as MOV and POP do.
    ///
    /// # Errors
    /// #GP, #NP, #SS with the selector.
    pub(crate) fn load_segment(&mut self, number: usize, selector: u16) -> Outcome {
        let segment = if self.mode.has(DecodeMode::REAL) {
            let mut segment = Segment { selector, base: u64::from(selector) << 4, ..self.segments[number] };
            if self.is_v86() {
                (segment.limit, segment.attributes) = (0xffff, 0xf3);
            }
            segment
        } else if number == seg::SS {
            let cpl = self.cpl;
            if is_null(selector) && self.mode.has(DecodeMode::CODE64) && cpl != 3 && (selector & 3) as u8 == cpl {
                Self::null_stack_segment(selector, cpl)
            } else {
                self.fetch_stack_segment(selector, cpl, exception::GP, 0)?
            }
        } else if is_null(selector) {
            // The base becomes zero too, as Intel's and newer AMD processors do (CPUID 0x80000021, EAX bit 6).
            Segment { selector, ..Segment::default() }
        } else {
            let (mut segment, address) = self.fetch_descriptor(selector, exception::GP, 0)?;
            let (code, conforming) =
                (segment.has(Segment::CODE), segment.has(Segment::CODE | Segment::CONFORMING_OR_EXPAND_DOWN));
            let readable = segment.has(Segment::S) && (!code || segment.has(Segment::READ_WRITE));
            let rpl = (selector & 3) as u8;
            if !readable || (!conforming && segment.dpl() < rpl.max(self.cpl)) {
                return self.raise_with(exception::GP, selector_error(selector));
            }
            if !segment.has(Segment::PRESENT) {
                return self.raise_with(exception::NP, selector_error(selector));
            }
            self.mark_accessed(&mut segment, address)?;
            segment
        };
        self.segments[number] = segment;
        self.segment_bases[number & 7] = segment.base;
        Ok(())
    }

    /// Takes away from a less privileged CPL the data segments that it may not use (returns to an outer level; SDM vol. 2, RET and IRET).
    pub(crate) fn drop_inner_segments(&mut self) {
        for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.segments[number];
            let conforming = segment.has(Segment::CODE | Segment::CONFORMING_OR_EXPAND_DOWN);
            if segment.has(Segment::PRESENT) && !conforming && segment.dpl() < self.cpl {
                // The base stays, as it does for the 64-bit bases of FS and GS.
                (segment.selector, segment.attributes) = (0, 0);
            }
        }
    }
}
