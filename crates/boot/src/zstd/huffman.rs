//! Huffman-coded literals (RFC 8878, 4.2).

use super::ZstdError;
use super::bits::Backward;
use super::fse::{Limits, Table};

/// Longest code.
const MAX_BITS: u32 = 11;
/// Symbols whose weights are said; that of the last follows from the others.
const MAX_WEIGHTS: usize = 255;
/// Symbols that can be taken between two refills.
const BURST: usize = (Backward::REFILLED / MAX_BITS) as usize;

/// Codes to symbols.
#[derive(Clone)]
pub(super) struct Codes {
    /// By the next [`Codes::bits`] bits: the symbol, and the length of its code above it.
    entries: Box<[u16; 1 << MAX_BITS]>,
    /// Length of the longest code.
    bits: u32,
}

impl Codes {
    /// Reads the description of a tree; also returns how many bytes it takes.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), ZstdError> {
        let (&header, rest) = bytes.split_first().ok_or(ZstdError::Truncated)?;
        let header = usize::from(header);
        let mut weights = [0u8; MAX_WEIGHTS];
        let (count, size) = if header < 128 {
            let coded = rest.get(..header).ok_or(ZstdError::Truncated)?;
            (read_weights(coded, &mut weights)?, header)
        } else {
            let count = header - 127;
            let size = count.div_ceil(2);
            let nibbles = rest.get(..size).ok_or(ZstdError::Truncated)?.iter().flat_map(|b| [b >> 4, b & 15]);
            weights.iter_mut().zip(nibbles.take(count)).for_each(|(weight, nibble)| *weight = nibble);
            (count, size)
        };
        Ok((Self::of(&weights[..count])?, 1 + size))
    }

    fn of(weights: &[u8]) -> Result<Self, ZstdError> {
        const UNFIT: ZstdError = ZstdError::Damaged("Huffman weights do not make a tree");
        if weights.iter().any(|weight| u32::from(*weight) > MAX_BITS) {
            return Err(UNFIT);
        }
        let sum: u32 = weights.iter().filter(|weight| **weight > 0).map(|weight| 1 << (weight - 1)).sum();
        let bits = sum.checked_ilog2().ok_or(UNFIT)? + 1;
        let rest = (1 << bits) - sum;
        if bits > MAX_BITS || !rest.is_power_of_two() {
            return Err(UNFIT);
        }
        let last = rest.ilog2() as u8 + 1;
        let mut codes = Self { entries: Box::new([0; 1 << MAX_BITS]), bits };
        let mut at = 0;
        // The longest codes come first, and the symbols of each length in their order.
        for weight in 1..=bits as u8 {
            let length = bits as u16 + 1 - u16::from(weight);
            for (symbol, _) in weights.iter().chain([&last]).enumerate().filter(|(_, w)| **w == weight) {
                let end = at + (1 << (weight - 1));
                codes.entries[at..end].fill(symbol as u16 | length << 8);
                at = end;
            }
        }
        Ok(codes)
    }

    /// Fills `out` with the symbols of one stream.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut [u8]) -> Result<(), ZstdError> {
        let mut bits = Backward::new(bytes)?;
        self.decode_rest(&mut bits, out)
    }

    /// The same for four streams, which lie after their sizes.
    pub(super) fn decode_four(&self, bytes: &[u8], out: &mut [u8]) -> Result<(), ZstdError> {
        let (sizes, streams) = bytes.split_first_chunk::<6>().ok_or(ZstdError::Truncated)?;
        let size = |at: usize| usize::from(u16::from_le_bytes([sizes[at], sizes[at + 1]]));
        let (first, rest) = streams.split_at_checked(size(0)).ok_or(ZstdError::Truncated)?;
        let (second, rest) = rest.split_at_checked(size(2)).ok_or(ZstdError::Truncated)?;
        let (third, fourth) = rest.split_at_checked(size(4)).ok_or(ZstdError::Truncated)?;
        let quarter = out.len().div_ceil(4);
        let (out_1, rest) = out.split_at_mut(quarter);
        let few = ZstdError::Damaged("too few literals for four streams");
        let (out_2, rest) = rest.split_at_mut_checked(quarter).ok_or(few.clone())?;
        let (out_3, out_4) = rest.split_at_mut_checked(quarter).ok_or(few)?;
        let (mut a, mut b) = (Backward::new(first)?, Backward::new(second)?);
        let (mut c, mut d) = (Backward::new(third)?, Backward::new(fourth)?);
        let bursts = out_4.len() / BURST;
        // In turns, since each stream for itself is a chain of dependent steps.
        let ((head_1, tail_1), (head_2, tail_2)) = (bursts_of(out_1, bursts), bursts_of(out_2, bursts));
        let ((head_3, tail_3), (head_4, tail_4)) = (bursts_of(out_3, bursts), bursts_of(out_4, bursts));
        for (((o1, o2), o3), o4) in head_1.iter_mut().zip(head_2).zip(head_3).zip(head_4) {
            a.refill();
            b.refill();
            c.refill();
            d.refill();
            for at in 0..BURST {
                o1[at] = self.symbol(&mut a);
                o2[at] = self.symbol(&mut b);
                o3[at] = self.symbol(&mut c);
                o4[at] = self.symbol(&mut d);
            }
        }
        self.decode_rest(&mut a, tail_1)?;
        self.decode_rest(&mut b, tail_2)?;
        self.decode_rest(&mut c, tail_3)?;
        self.decode_rest(&mut d, tail_4)
    }

    #[inline(always)]
    fn symbol(&self, bits: &mut Backward<'_>) -> u8 {
        let entry = self.entries[bits.peek(self.bits) & ((1 << MAX_BITS) - 1)];
        bits.skip(u32::from(entry >> 8));
        entry as u8
    }

    /// Takes symbols to the stream's end.
    fn decode_rest(&self, bits: &mut Backward<'_>, out: &mut [u8]) -> Result<(), ZstdError> {
        for burst in out.chunks_mut(BURST) {
            bits.refill();
            burst.iter_mut().for_each(|symbol| *symbol = self.symbol(bits));
        }
        if bits.left() == 0 { Ok(()) } else { Err(ZstdError::Damaged("a stream of literals does not end with them")) }
    }
}

/// The first `count` bursts of `out`, and the rest.
fn bursts_of(out: &mut [u8], count: usize) -> (&mut [[u8; BURST]], &mut [u8]) {
    let (head, tail) = out.split_at_mut(count * BURST);
    (head.as_chunks_mut().0, tail)
}

/// Reads weights that two alternating states give, and returns how many there are.
fn read_weights(bytes: &[u8], weights: &mut [u8; MAX_WEIGHTS]) -> Result<usize, ZstdError> {
    let (table, size) = Table::read(bytes, Limits { accuracy: 6, symbols: MAX_BITS as usize + 2 })?;
    let mut bits = Backward::new(&bytes[size..])?;
    let mut states = [bits.take(table.accuracy), bits.take(table.accuracy)];
    if bits.left() < 0 {
        return Err(ZstdError::Truncated);
    }
    let mut count = 0;
    loop {
        // One weight of this state, and that of the other if no bits are left to go on with.
        let state = &mut states[count % 2];
        let entry = table.entry(*state);
        let weight = weights.get_mut(count).ok_or(ZstdError::Damaged("too many Huffman weights"))?;
        *weight = entry.symbol;
        count += 1;
        bits.refill();
        *state = usize::from(entry.base) + bits.take(entry.bits.into());
        if bits.left() < 0 {
            let weight = weights.get_mut(count).ok_or(ZstdError::Damaged("too many Huffman weights"))?;
            *weight = table.entry(states[count % 2]).symbol;
            return Ok(count + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 8878, 4.2.1: weights 4, 3, 2, 0, 1 and, of the last symbol, 1.
    #[test]
    fn codes_are_those_of_the_specifications_example() {
        let (codes, size) = Codes::read(&[127 + 5, 0x43, 0x20, 0x10]).unwrap();
        assert_eq!((codes.bits, size), (4, 4));
        let entry = |symbol: u16, length: u16| symbol | length << 8;
        assert_eq!(codes.entries[..4], [entry(4, 4), entry(5, 4), entry(2, 3), entry(2, 3)]);
        assert_eq!((codes.entries[4], codes.entries[8], codes.entries[15]), (entry(1, 2), entry(0, 1), entry(0, 1)));
    }

    #[test]
    fn weights_that_make_no_tree_are_refused() {
        let unfit = Some(ZstdError::Damaged("Huffman weights do not make a tree"));
        for weights in [&[0, 0][..], &[12], &[11, 11], &[3, 2, 1, 1, 1]] {
            assert_eq!(Codes::of(weights).err(), unfit, "{weights:?}");
        }
    }

    #[test]
    fn a_stream_that_is_too_short_or_too_long_is_refused() {
        let codes = Codes::of(&[1]).unwrap();
        // Codes of one bit: seven literals after the mark.
        assert_eq!(codes.decode(&[0b1011_0010], &mut [0; 7]), Ok(()));
        for wrong in [6, 8, 100] {
            assert!(codes.decode(&[0b1011_0010], &mut vec![0; wrong]).is_err(), "{wrong}");
        }
    }
}
