//! Finite state entropy: how often each symbol comes, and the states that follow (RFC 8878, 4.1).

use super::ZstdError;
use super::bits::Forward;

/// Largest accuracy of any table here, and so the most entries: those of literal and match lengths.
const MAX_ACCURACY: u32 = 9;

/// A state of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) symbol: u8,
    /// Bits that lead to the next state,
    pub(super) bits: u8,
    /// after this is added to them.
    pub(super) base: u16,
}

/// The states of one kind of symbol.
#[derive(Clone)]
pub(super) struct Table {
    entries: [Entry; 1 << MAX_ACCURACY],
    /// The number of states is two to this power.
    pub(super) accuracy: u32,
}

/// What may be in a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) accuracy: u32,
    /// How many symbols there are.
    pub(super) symbols: usize,
}

impl Table {
    /// The table of a single symbol, which takes no bits.
    pub(super) fn single(symbol: u8) -> Self {
        let mut entries = [Entry::default(); 1 << MAX_ACCURACY];
        entries[0].symbol = symbol;
        Self { entries, accuracy: 0 }
    }

    /// The table for these frequencies, which add up to two to the power of `accuracy`; -1 is that of a symbol which comes less than once.
    pub(super) fn of(frequencies: &[i16], accuracy: u32) -> Self {
        let mut table = Self::single(0);
        table.accuracy = accuracy;
        let size = 1usize << accuracy;
        let mask = size - 1;
        let mut next: [u16; 256] = [0; 256];
        let mut high = size;
        for (symbol, frequency) in frequencies.iter().enumerate() {
            next[symbol] = frequency.unsigned_abs();
            if *frequency == -1 {
                high -= 1;
                table.entries[high].symbol = symbol as u8;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, frequency) in frequencies.iter().enumerate() {
            for _ in 0..*frequency {
                table.entries[at].symbol = symbol as u8;
                at = (at + step) & mask;
                while at >= high {
                    at = (at + step) & mask;
                }
            }
        }
        for entry in &mut table.entries[..size] {
            let state = &mut next[usize::from(entry.symbol)];
            entry.bits = (accuracy - state.ilog2()) as u8;
            entry.base = (*state << entry.bits) - size as u16;
            *state += 1;
        }
        table
    }

    /// Reads a table's description; also returns how many bytes it takes.
    pub(super) fn read(bytes: &[u8], limits: Limits) -> Result<(Self, usize), ZstdError> {
        let mut bits = Forward::new(bytes);
        let accuracy = bits.peek(4) + 5;
        bits.skip(4);
        if accuracy > limits.accuracy {
            return Err(ZstdError::Damaged("a table is larger than any may be"));
        }
        let mut frequencies = [0i16; 256];
        let mut symbols = 0;
        // What the frequencies may still add up to; none can be more.
        let mut remaining = 1u32 << accuracy;
        while remaining > 0 {
            if symbols >= limits.symbols {
                return Err(ZstdError::Damaged("a table has too many symbols"));
            }
            // Values from 0 to remaining + 1; the lower ones have a bit less.
            let width = (remaining + 1).ilog2() + 1;
            let (value, half) = (bits.peek(width), 1 << (width - 1));
            let short = (1 << width) - 1 - (remaining + 1);
            let value = if value & (half - 1) < short {
                bits.skip(width - 1);
                value & (half - 1)
            } else {
                bits.skip(width);
                if value >= half { value - short } else { value }
            };
            let frequency = value as i16 - 1;
            remaining -= u32::from(frequency.unsigned_abs());
            frequencies[symbols] = frequency;
            symbols += 1;
            let mut more = frequency == 0;
            while more {
                let zeros = bits.peek(2);
                bits.skip(2);
                symbols += zeros as usize;
                more = zeros == 3;
                if symbols > limits.symbols {
                    return Err(ZstdError::Damaged("a table has too many symbols"));
                }
            }
        }
        Ok((Self::of(&frequencies[..symbols], accuracy), bits.bytes_taken()?))
    }

    /// The entry of a state, which is less than two to the power of the accuracy.
    #[inline(always)]
    pub(super) fn entry(&self, state: usize) -> Entry {
        self.entries[state & ((1 << MAX_ACCURACY) - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_reached_from_its_symbols_states_and_by_one_value_of_bits() {
        let frequencies = [4i16, 3, -1, 0, 20, 5, -1, -1, 29];
        let table = Table::of(&frequencies, 6);
        for (symbol, frequency) in frequencies.iter().enumerate() {
            let states = (0..64).map(|s| table.entry(s)).filter(|e| usize::from(e.symbol) == symbol);
            let mut reached: Vec<u16> = states.clone().flat_map(|e| e.base..e.base + (1 << e.bits)).collect();
            reached.sort_unstable();
            assert_eq!(states.count(), usize::from(frequency.unsigned_abs()));
            assert_eq!(reached, if *frequency == 0 { vec![] } else { (0..64).collect::<Vec<_>>() }, "{symbol}");
        }
    }

    #[test]
    fn descriptions_that_promise_too_much_are_refused() {
        let limits = Limits { accuracy: 9, symbols: 53 };
        assert_eq!(Table::read(&[0x05], limits).err(), Some(ZstdError::Damaged("a table is larger than any may be")));
        // Frequencies of zero without an end.
        let zeros = [0x10, 0xfe, 0xff, 0xff];
        assert!(Table::read(&zeros, Limits { accuracy: 5, symbols: 3 }).is_err());
        assert!(Table::read(&[], limits).is_err());
    }
}
