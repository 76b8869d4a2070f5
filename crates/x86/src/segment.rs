//! Segment registers and descriptors (SDM vol. 3, 3.4).

/// A segment register: the selector and the descriptor cached with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// Base linear address.
    pub base: u64,
    /// Last valid offset, in bytes (granularity already applied).
    pub limit: u32,
    /// Access rights as in the descriptor's second word: bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G.
    pub attributes: u16,
}

impl Segment {
    /// Attribute: the accessed bit of a code or data segment.
    pub const ACCESSED: u16 = 1 << 0;
    /// Attribute: a readable code segment or writable data segment.
    pub const READ_WRITE: u16 = 1 << 1;
    /// Attribute: a conforming code segment or expand-down data segment.
    pub const CONFORMING_OR_EXPAND_DOWN: u16 = 1 << 2;
    /// Attribute: a code segment.
    pub const CODE: u16 = 1 << 3;
    /// Attribute: a code or data (not system) segment.
    pub const S: u16 = 1 << 4;
    /// Attribute: present.
    pub const PRESENT: u16 = 1 << 7;
    /// Attribute: a 64-bit code segment.
    pub const L: u16 = 1 << 13;
    /// Attribute: 32-bit default size (code), big stack (data).
    pub const DB: u16 = 1 << 14;
    /// Attribute: the descriptor's limit counts 4 KiB pages.
    pub const G: u16 = 1 << 15;

    /// System descriptor type: available 16-bit TSS.
    pub const TYPE_TSS16: u16 = 1;
    /// System descriptor type: local descriptor table.
    pub const TYPE_LDT: u16 = 2;
    /// System descriptor type: available 32-bit or 64-bit TSS.
    pub const TYPE_TSS_AVAILABLE: u16 = 9;
    /// System descriptor type: busy 32-bit or 64-bit TSS.
    pub const TYPE_TSS_BUSY: u16 = 11;
    /// System descriptor type: call gate.
    pub const TYPE_CALL_GATE: u16 = 12;
    /// System descriptor type: interrupt gate.
    pub const TYPE_INTERRUPT_GATE: u16 = 14;
    /// System descriptor type: trap gate.
    pub const TYPE_TRAP_GATE: u16 = 15;

    /// Whether it is a present data segment of 4 GiB that can be read and written and does not expand down: it refuses nothing.
    pub const fn is_open(&self) -> bool {
        let kind = Self::S | Self::PRESENT | Self::READ_WRITE | Self::CODE | Self::CONFORMING_OR_EXPAND_DOWN;
        self.limit == u32::MAX && self.attributes & kind == Self::S | Self::PRESENT | Self::READ_WRITE
    }

    /// The segment as real mode or reset leaves it: base is sixteen times the selector, 64 KiB, read/write data.
    pub const fn real_mode(selector: u16) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attributes: Self::PRESENT | Self::S | Self::READ_WRITE | Self::ACCESSED,
        }
    }

    /// The cached form of an 8-byte descriptor.
    pub const fn from_descriptor(selector: u16, raw: u64) -> Self {
        let attributes = ((raw >> 40) & 0xf0ff) as u16;
        let limit = ((raw & 0xffff) | ((raw >> 32) & 0xf_0000)) as u32;
        let limit = if attributes & Self::G != 0 { (limit << 12) | 0xfff } else { limit };
        let base = ((raw >> 16) & 0xff_ffff) | ((raw >> 32) & 0xff00_0000);
        Self { selector, base, limit, attributes }
    }

    /// The 8-byte descriptor this was cached from (its low half, for a system segment of long mode).
    pub const fn to_descriptor(&self) -> u64 {
        let limit = if self.attributes & Self::G != 0 { self.limit >> 12 } else { self.limit } as u64;
        (limit & 0xffff)
            | ((self.base & 0xff_ffff) << 16)
            | (((self.attributes & 0xf0ff) as u64) << 40)
            | ((limit & 0xf_0000) << 32)
            | ((self.base & 0xff00_0000) << 32)
    }

    /// Descriptor privilege level.
    #[inline(always)]
    pub const fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }

    /// The type field.
    #[inline(always)]
    pub const fn kind(&self) -> u16 {
        self.attributes & 0xf
    }

    /// Whether all of `attributes`' bits in `bits` are set.
    #[inline(always)]
    pub const fn has(&self, bits: u16) -> bool {
        self.attributes & bits == bits
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Last valid offset, in bytes.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_code_descriptor_survives_the_round_trip() {
        let raw = 0x00af_9b00_0000_ffff;
        let cs = Segment::from_descriptor(0x10, raw);
        assert_eq!((cs.base, cs.limit, cs.dpl()), (0, 0xffff_ffff, 0));
        assert!(cs.has(Segment::L | Segment::CODE | Segment::PRESENT));
        assert_eq!(cs.to_descriptor(), raw);
    }

    #[test]
    fn a_scattered_base_is_put_together() {
        let tss = Segment::from_descriptor(0x40, 0x1200_8b34_5678_0067);
        assert_eq!((tss.base, tss.limit, tss.kind()), (0x1234_5678, 0x67, Segment::TYPE_TSS_BUSY));
    }
}
