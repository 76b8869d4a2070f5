//! The six status flags, kept as what they were computed from and worked out only when something asks.
//!
//! Most flag results die unread (soft-cpu design: 86 %), so an arithmetic instruction stores three words and a condition costs a few operations.

use x86::rflags;

/// The last flag-setting operation, in a form from which each flag is one or two operations away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LazyFlags {
    /// The result, sign-extended to 64 bits: ZF is "zero".
    pub result: u64,
    /// The carry (or borrow) out of every bit, shifted so that the operation's top bit is bit 63: CF is bit 63, OF is bit 63 xor bit 62.
    pub carries: u64,
    /// SF is bit 63 of `result ^ delta`, PF the parity of its low byte; bit 12 is AF. Zero or just AF after arithmetic; other bits only when
    /// flags were loaded that no result could have given (ZF and SF together).
    pub delta: u64,
}

const AF_BIT: u32 = 12;

impl Default for LazyFlags {
    fn default() -> Self {
        Self::from_bits(0)
    }
}

impl LazyFlags {
    /// After a logical operation: CF, OF and AF are clear. `result` is sign-extended.
    #[inline(always)]
    pub fn logic(result: u64) -> Self {
        Self { result, carries: 0, delta: 0 }
    }

    /// After `a + b (+ carry)` whose low `bits` bits are `sum`; all three zero- or sign-extended alike.
    #[inline(always)]
    pub fn add(a: u64, b: u64, sum: u64, bits: u32) -> Self {
        let carries = (a & b) | ((a | b) & !sum);
        Self {
            result: sign_extend(sum, bits),
            carries: carries << (64 - bits),
            delta: ((a ^ b ^ sum) & 0x10) << (AF_BIT - 4),
        }
    }

    /// After `a - b (- borrow)` whose low `bits` bits are `difference`.
    #[inline(always)]
    pub fn sub(a: u64, b: u64, difference: u64, bits: u32) -> Self {
        let borrows = (!a & b) | ((!a | b) & difference);
        Self {
            result: sign_extend(difference, bits),
            carries: borrows << (64 - bits),
            delta: ((a ^ b ^ difference) & 0x10) << (AF_BIT - 4),
        }
    }

    /// Replaces CF, OF and AF and keeps ZF, SF and PF.
    #[inline(always)]
    pub fn with_carry_overflow_aux(self, cf: bool, of: bool, af: bool) -> Self {
        Self {
            result: self.result,
            carries: (u64::from(cf) << 63) | (u64::from(cf ^ of) << 62),
            delta: (self.delta & !(1 << AF_BIT)) | (u64::from(af) << AF_BIT),
        }
    }

    /// Replaces CF alone.
    #[inline(always)]
    pub fn with_carry(self, cf: bool) -> Self {
        self.with_carry_overflow_aux(cf, self.of(), self.af())
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.carries >> 63 != 0
    }

    /// Overflow.
    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.carries ^ (self.carries << 1)) >> 63 != 0
    }

    /// Zero.
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.result == 0
    }

    /// Sign.
    #[inline(always)]
    pub fn sf(&self) -> bool {
        (self.result ^ self.delta) >> 63 != 0
    }

    /// Parity of the low byte: even.
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.result ^ self.delta) as u8).count_ones() & 1 == 0
    }

    /// Auxiliary carry.
    #[inline(always)]
    pub fn af(&self) -> bool {
        self.delta >> AF_BIT & 1 != 0
    }

    /// Signed "less": SF differs from OF.
    #[inline(always)]
    pub fn less(&self) -> bool {
        (self.result ^ self.delta ^ self.carries ^ (self.carries << 1)) >> 63 != 0
    }

    /// The flags as RFLAGS bits.
    pub fn bits(&self) -> u64 {
        let bit = |on: bool, flag: u64| if on { flag } else { 0 };
        bit(self.cf(), rflags::CF)
            | bit(self.pf(), rflags::PF)
            | bit(self.af(), rflags::AF)
            | bit(self.zf(), rflags::ZF)
            | bit(self.sf(), rflags::SF)
            | bit(self.of(), rflags::OF)
    }

    /// The flags that these RFLAGS bits say.
    pub fn from_bits(bits: u64) -> Self {
        let has = |flag: u64| bits & flag != 0;
        // The result 0 or 1 gives ZF; delta then corrects SF and PF, whose low byte's parity one flipped bit changes.
        let result = u64::from(!has(rflags::ZF));
        let pf_of_result = has(rflags::ZF);
        let delta = (u64::from(has(rflags::SF)) << 63)
            | u64::from(pf_of_result != has(rflags::PF))
            | (u64::from(has(rflags::AF)) << AF_BIT);
        let carries = (u64::from(has(rflags::CF)) << 63) | (u64::from(has(rflags::CF) != has(rflags::OF)) << 62);
        Self { result, carries, delta }
    }
}

/// Sign-extends the low `bits` (8, 16, 32 or 64) of `value`.
#[inline(always)]
pub fn sign_extend(value: u64, bits: u32) -> u64 {
    (((value << (64 - bits)) as i64) >> (64 - bits)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_survives_a_round_trip() {
        for n in 0..64u64 {
            let pick = |i: u32, flag: u64| if n >> i & 1 != 0 { flag } else { 0 };
            let bits = pick(0, rflags::CF)
                | pick(1, rflags::PF)
                | pick(2, rflags::AF)
                | pick(3, rflags::ZF)
                | pick(4, rflags::SF)
                | pick(5, rflags::OF);
            assert_eq!(LazyFlags::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn byte_addition_overflows_from_127() {
        let f = LazyFlags::add(0x7f, 1, 0x80, 8);
        assert_eq!(f.bits(), rflags::OF | rflags::SF | rflags::AF);
    }

    #[test]
    fn subtraction_below_zero_borrows() {
        let f = LazyFlags::sub(0, 1, u64::MAX, 64);
        assert_eq!(f.bits(), rflags::CF | rflags::SF | rflags::AF | rflags::PF);
    }
}
