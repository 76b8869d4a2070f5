//! The two directions in which a Zstandard frame's bits are read (RFC 8878, 4.1 and 4.1.1).

use super::ZstdError;

/// Bits from the front of some bytes, the lowest of each byte first: the tables' descriptions.
pub(super) struct Forward<'a> {
    bytes: &'a [u8],
    /// Bits that have been taken.
    at: usize,
}

impl<'a> Forward<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` bits, at most 16, which are not taken yet; zeros follow the end.
    pub(super) fn peek(&self, count: u32) -> u32 {
        let from = self.bytes.get(self.at / 8..).unwrap_or_default();
        let word = from.iter().take(3).rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        word >> (self.at % 8) & ((1 << count) - 1)
    }

    pub(super) fn skip(&mut self, count: u32) {
        self.at += count as usize;
    }

    /// How many bytes have been begun.
    pub(super) fn bytes_taken(&self) -> Result<usize, ZstdError> {
        let taken = self.at.div_ceil(8);
        if taken > self.bytes.len() { Err(ZstdError::Truncated) } else { Ok(taken) }
    }
}

/// Bits from the end of some bytes, the highest of each byte first, after a one that marks where they begin: symbols and states.
///
/// As in the reference decoder, eight bytes are in a register and the next ones are fetched when [`Backward::refill`] is called, after which at
/// least [`Backward::REFILLED`] bits can be taken; what is taken past the front reads as anything, and shows in [`Backward::left`].
pub(super) struct Backward<'a> {
    bytes: &'a [u8],
    /// Eight bytes of them.
    word: u64,
    /// How many of its bits are taken, from the highest on.
    taken: u32,
    /// Where the word begins.
    at: usize,
    /// Bits at the bottom of the word that no byte stands for.
    missing: i64,
}

impl<'a> Backward<'a> {
    /// Bits that are there after a refill, unless the front is near.
    pub(super) const REFILLED: u32 = 56;

    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, ZstdError> {
        let Some(last) = bytes.last().filter(|last| **last != 0) else {
            return Err(ZstdError::Damaged("a bit stream has no beginning"));
        };
        let at = bytes.len().saturating_sub(8);
        let missing = 8u32.saturating_sub(bytes.len() as u32) * 8;
        let word = bytes[at..].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)) << missing;
        Ok(Self { bytes, word, taken: last.leading_zeros() + 1, at, missing: missing.into() })
    }

    /// Fetches what lies before the word in place of what has been taken of it.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let back = (self.taken as usize / 8).min(self.at);
        self.at -= back;
        self.taken -= back as u32 * 8;
        // Otherwise all of a short stream is in the word already.
        if let Some(word) = self.bytes[self.at..].first_chunk() {
            self.word = u64::from_le_bytes(*word);
        }
    }

    /// The next `count` bits, 1 to 56, not taken yet.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> usize {
        (self.word << (self.taken & 63) >> (64 - count)) as usize
    }

    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.taken += count;
    }

    /// The next `count` bits, 0 to 56.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> usize {
        let bits = self.word << (self.taken & 63) >> 1 >> (63 - count);
        self.taken += count;
        bits as usize
    }

    /// Bits that have not been taken; negative if more were than there are.
    #[inline(always)]
    pub(super) fn left(&self) -> i64 {
        self.at as i64 * 8 + 64 - i64::from(self.taken) - self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_bits_come_lowest_first_and_zeros_after_them() {
        let mut bits = Forward::new(&[0b1010_0101, 0b11]);
        assert_eq!(bits.peek(4), 5);
        bits.skip(4);
        assert_eq!(bits.peek(6), 0b11_1010);
        bits.skip(9);
        assert_eq!((bits.peek(8), bits.bytes_taken().unwrap()), (0, 2));
        bits.skip(8);
        assert!(bits.bytes_taken().is_err());
    }

    #[test]
    fn backward_bits_come_highest_first_over_any_number_of_refills() {
        for len in [1usize, 2, 7, 8, 9, 40] {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 37 + 1) as u8 & 0x7f | 0x40).collect();
            let mut expected = bytes.iter().rev().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).skip(2);
            let mut bits = Backward::new(&bytes).unwrap();
            for left in (0..len as i64 * 8 - 2).rev() {
                bits.refill();
                assert_eq!((bits.take(1) as u8, bits.left()), (expected.next().unwrap(), left), "{left} of {len}");
            }
            bits.refill();
            bits.take(1);
            assert!(bits.left() < 0, "{len}");
        }
    }

    #[test]
    fn a_stream_that_ends_in_a_zero_byte_or_is_empty_has_no_beginning() {
        assert!(Backward::new(&[1, 0]).is_err() && Backward::new(&[]).is_err());
    }
}
