//! A block's sequences: so many literals, then so many bytes again that came so far before (RFC 8878, 3.1.1.3.2 and 3.1.1.4).

use super::ZstdError;
use super::bits::Backward;
use super::fse::{Limits, Table};

/// What a code stands for: the least value, and how many bits are added to it.
type Code = (u32, u8);

const fn codes<const N: usize, const M: usize>(one_by_one: u32, first: u32, rest: [u8; M]) -> [Code; N] {
    let mut codes = [(0, 0); N];
    let mut at = 0;
    let mut value = first;
    while at < one_by_one as usize {
        codes[at] = (value, 0);
        value += 1;
        at += 1;
    }
    let mut more = 0;
    while more < M {
        codes[at] = (value, rest[more]);
        value += 1 << rest[more];
        at += 1;
        more += 1;
    }
    codes
}

/// Literal lengths (3.1.1.3.2.1.1): 0 to 15 have a code each. The table is padded to what a byte of six bits can index.
const LITERAL_LENGTHS: [Code; 64] = codes(16, 0, [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const LITERAL_LENGTH_CODES: usize = 36;
/// Match lengths: 3 to 34 have a code each.
const MATCH_LENGTHS: [Code; 64] = codes(32, 3, [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const MATCH_LENGTH_CODES: usize = 53;
/// Code n stands for n bits below a one.
const OFFSET_CODES: usize = 32;

/// Frequencies that need no description (3.1.1.3.2.2).
const LITERAL_LENGTH_DEFAULT: [i16; 36] =
    [4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1];
const MATCH_LENGTH_DEFAULT: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
const OFFSET_DEFAULT: [i16; 29] =
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];

/// Bytes that are moved at once.
const STRIDE: usize = 16;

/// Room behind a block's literals that may be read with them.
pub(super) const SLACK: usize = STRIDE;

/// What a frame's blocks hand on to the next: the tables, and the last three distances.
pub(super) struct Sequences {
    literal_lengths: Option<Table>,
    offsets: Option<Table>,
    match_lengths: Option<Table>,
    recent: [usize; 3],
}

/// Where the decompressed bytes go.
pub(super) struct Output<'a> {
    pub(super) bytes: &'a mut [u8],
    /// How many there are.
    pub(super) len: usize,
}

impl Output<'_> {
    /// Makes sure that `more` bytes have room.
    pub(super) fn reserve(&self, more: usize) -> Result<(), ZstdError> {
        if more > self.bytes.len() - self.len { Err(ZstdError::Room { room: self.bytes.len() }) } else { Ok(()) }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), ZstdError> {
        self.reserve(bytes.len())?;
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Appends `count` of `literals` from `at`; there are [`SLACK`] bytes behind them. The room has been reserved.
    #[inline(always)]
    fn push_literals(&mut self, literals: &[u8], at: usize, count: usize) {
        let to = self.len;
        self.len += count;
        if count <= STRIDE && to + STRIDE <= self.bytes.len() {
            self.bytes[to..to + STRIDE].copy_from_slice(&literals[at..at + STRIDE]);
        } else {
            self.bytes[to..to + count].copy_from_slice(&literals[at..at + count]);
        }
    }

    /// Appends `count` bytes that begin `distance` before the end, and may reach into what is being appended. The room has been reserved.
    #[inline(always)]
    fn repeat(&mut self, distance: usize, count: usize) -> Result<(), ZstdError> {
        if distance == 0 || distance > self.len {
            return Err(ZstdError::Damaged("a match begins before the first byte"));
        }
        let (to, from) = (self.len, self.len - distance);
        self.len += count;
        if distance >= STRIDE && to + count + STRIDE <= self.bytes.len() {
            // What is written too much is overwritten by what follows.
            let mut at = 0;
            while at < count {
                self.bytes.copy_within(from + at..from + at + STRIDE, to + at);
                at += STRIDE;
            }
        } else {
            self.repeat_close(distance, count, to);
        }
        Ok(())
    }

    #[cold]
    fn repeat_close(&mut self, distance: usize, count: usize, to: usize) {
        // Each turn doubles what can be copied at once.
        let mut done = 0;
        while done < count {
            let part = (distance + done).min(count - done);
            self.bytes.copy_within(to - distance..to - distance + part, to + done);
            done += part;
        }
    }
}

/// Which of a section's tables is meant, and what is known of it.
struct Kind {
    limits: Limits,
    default: (&'static [i16], u32),
}

const LITERAL_LENGTH: Kind =
    Kind { limits: Limits { accuracy: 9, symbols: LITERAL_LENGTH_CODES }, default: (&LITERAL_LENGTH_DEFAULT, 6) };
const OFFSET: Kind = Kind { limits: Limits { accuracy: 8, symbols: OFFSET_CODES }, default: (&OFFSET_DEFAULT, 5) };
const MATCH_LENGTH: Kind =
    Kind { limits: Limits { accuracy: 9, symbols: MATCH_LENGTH_CODES }, default: (&MATCH_LENGTH_DEFAULT, 6) };

impl Sequences {
    pub(super) fn new() -> Self {
        Self { literal_lengths: None, offsets: None, match_lengths: None, recent: [1, 4, 8] }
    }

    /// Decodes a sequences section and does what it says. `literals` has `count` of them and [`SLACK`] bytes more.
    pub(super) fn execute(
        &mut self,
        section: &[u8],
        literals: &[u8],
        count: usize,
        out: &mut Output<'_>,
    ) -> Result<(), ZstdError> {
        let (number, section) = read_number(section)?;
        let mut used = 0;
        if number > 0 {
            let (&modes, mut rest) = section.split_first().ok_or(ZstdError::Truncated)?;
            if modes & 3 != 0 {
                return Err(ZstdError::Damaged("reserved bits of a block are set"));
            }
            read_table(&mut self.literal_lengths, modes >> 6, &mut rest, &LITERAL_LENGTH)?;
            read_table(&mut self.offsets, modes >> 4 & 3, &mut rest, &OFFSET)?;
            read_table(&mut self.match_lengths, modes >> 2 & 3, &mut rest, &MATCH_LENGTH)?;
            used = self.run(number, rest, &literals[..count + SLACK], out)?;
        } else if !section.is_empty() {
            return Err(ZstdError::Damaged("a block goes on behind its end"));
        }
        // What the last match leaves.
        out.push(&literals[used..count])
    }

    /// Returns how many literals the sequences took.
    fn run(&mut self, number: usize, stream: &[u8], literals: &[u8], out: &mut Output<'_>) -> Result<usize, ZstdError> {
        let Self { literal_lengths: Some(ll), offsets: Some(of), match_lengths: Some(ml), recent } = self else {
            return Err(ZstdError::Damaged("a block repeats tables that no block before it had"));
        };
        let available = literals.len() - SLACK;
        let mut bits = Backward::new(stream)?;
        let mut ll_state = bits.take(ll.accuracy);
        let mut of_state = bits.take(of.accuracy);
        let mut ml_state = bits.take(ml.accuracy);
        let mut used = 0;
        for left in (0..number).rev() {
            bits.refill();
            let (ll_entry, of_entry, ml_entry) = (ll.entry(ll_state), of.entry(of_state), ml.entry(ml_state));
            let (ll_base, ll_bits) = LITERAL_LENGTHS[usize::from(ll_entry.symbol & 63)];
            let (ml_base, ml_bits) = MATCH_LENGTHS[usize::from(ml_entry.symbol & 63)];
            let of_bits = u32::from(of_entry.symbol & 31);
            let offset = (1usize << of_bits) + bits.take(of_bits);
            // 31 bits of an offset and 32 of lengths are more than a refill gives; so are the 26 of the states after them.
            const STATES: u32 = 26;
            let lengths = u32::from(ll_bits) + u32::from(ml_bits);
            if of_bits + lengths + STATES > Backward::REFILLED {
                bits.refill();
            }
            let match_length = ml_base as usize + bits.take(ml_bits.into());
            let literal_length = ll_base as usize + bits.take(ll_bits.into());
            if lengths + STATES > Backward::REFILLED {
                bits.refill();
            }
            if left > 0 {
                ll_state = usize::from(ll_entry.base) + bits.take(ll_entry.bits.into());
                ml_state = usize::from(ml_entry.base) + bits.take(ml_entry.bits.into());
                of_state = usize::from(of_entry.base) + bits.take(of_entry.bits.into());
            }
            let distance = resolve(offset, literal_length == 0, recent);
            if literal_length > available - used {
                return Err(ZstdError::Damaged("a block's sequences want more literals than it has"));
            }
            out.reserve(literal_length + match_length)?;
            out.push_literals(literals, used, literal_length);
            used += literal_length;
            out.repeat(distance, match_length)?;
        }
        if bits.left() != 0 {
            return Err(ZstdError::Damaged("a stream of sequences does not end with them"));
        }
        Ok(used)
    }
}

/// The distance that an offset means: 1 to 3 are recent ones (3.1.1.5). Zero, which no frame has, if the arithmetic comes to that.
#[inline(always)]
fn resolve(offset: usize, no_literals: bool, recent: &mut [usize; 3]) -> usize {
    if offset > 3 {
        *recent = [offset - 3, recent[0], recent[1]];
        return recent[0];
    }
    let which = offset - 1 + usize::from(no_literals);
    let distance = if which < 3 { recent[which] } else { recent[0] - 1 };
    match which {
        0 => {}
        1 => recent.swap(0, 1),
        _ => *recent = [distance.max(1), recent[0], recent[1]],
    }
    distance
}

/// The number of sequences, and what follows it.
fn read_number(section: &[u8]) -> Result<(usize, &[u8]), ZstdError> {
    let byte = |at: usize| section.get(at).copied().map(usize::from).ok_or(ZstdError::Truncated);
    let (number, size) = match byte(0)? {
        few @ ..128 => (few, 1),
        255 => (byte(1)? + (byte(2)? << 8) + 0x7f00, 3),
        some => (((some - 128) << 8) + byte(1)?, 2),
    };
    Ok((number, &section[size..]))
}

/// Puts the table that `mode` asks for in its place (3.1.1.3.2.1, "Symbol compression modes").
fn read_table(table: &mut Option<Table>, mode: u8, rest: &mut &[u8], kind: &Kind) -> Result<(), ZstdError> {
    match mode {
        0 => *table = Some(Table::of(kind.default.0, kind.default.1)),
        1 => {
            let (&symbol, behind) = rest.split_first().ok_or(ZstdError::Truncated)?;
            if usize::from(symbol) >= kind.limits.symbols {
                return Err(ZstdError::Damaged("a sequence has a code that does not exist"));
            }
            *table = Some(Table::single(symbol));
            *rest = behind;
        }
        2 => {
            let (read, size) = Table::read(rest, kind.limits)?;
            *table = Some(read);
            *rest = &rest[size..];
        }
        // The one of the block before.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ends of the tables of RFC 8878, 3.1.1.3.2.1.1.
    #[test]
    fn lengths_end_where_the_specification_says() {
        assert_eq!(LITERAL_LENGTHS[LITERAL_LENGTH_CODES - 1], (65_536, 16));
        assert_eq!(LITERAL_LENGTHS[25], (64, 6));
        assert_eq!(MATCH_LENGTHS[MATCH_LENGTH_CODES - 1], (65_539, 16));
        assert_eq!(MATCH_LENGTHS[43], (131, 7));
    }

    #[test]
    fn default_frequencies_fill_their_tables() {
        for kind in [LITERAL_LENGTH, OFFSET, MATCH_LENGTH] {
            let sum: u16 = kind.default.0.iter().map(|f| f.unsigned_abs()).sum();
            assert_eq!(sum, 1 << kind.default.1);
        }
    }

    /// RFC 8878, 3.1.1.5, with the table of what each value means after no literals.
    #[test]
    fn recent_distances_move_to_the_front() {
        let after = |offset, no_literals| {
            let mut recent = [10, 20, 30];
            (resolve(offset, no_literals, &mut recent), recent)
        };
        assert_eq!(after(1, false), (10, [10, 20, 30]));
        assert_eq!(after(2, false), (20, [20, 10, 30]));
        assert_eq!(after(3, false), (30, [30, 10, 20]));
        assert_eq!(after(1, true), (20, [20, 10, 30]));
        assert_eq!(after(2, true), (30, [30, 10, 20]));
        assert_eq!(after(3, true), (9, [9, 10, 20]));
        assert_eq!(after(7, false), (4, [4, 10, 20]));
    }

    #[test]
    fn every_distance_and_length_repeats_what_came_before() {
        for room in [0, 100] {
            for distance in 1..40 {
                for count in 0..70 {
                    let start: Vec<u8> = (0..40).collect();
                    let mut expected = start.clone();
                    (0..count).for_each(|at| expected.push(expected[40 + at - distance]));
                    let mut bytes = vec![0xee; 40 + count + room];
                    let mut out = Output { bytes: &mut bytes, len: 0 };
                    out.push(&start).unwrap();
                    out.repeat(distance, count).unwrap();
                    assert_eq!(out.len, expected.len());
                    assert_eq!(bytes[..expected.len()], expected, "{distance} {count}");
                }
            }
        }
    }

    #[test]
    fn a_match_before_the_first_byte_is_refused() {
        let mut out = Output { bytes: &mut [0; 64], len: 5 };
        assert!(out.repeat(6, 3).is_err() && out.repeat(0, 3).is_err());
    }

    #[test]
    fn the_number_of_sequences_has_three_forms() {
        assert_eq!(read_number(&[127, 9]).unwrap(), (127, &[9][..]));
        assert_eq!(read_number(&[129, 2]).unwrap(), (258, &[][..]));
        assert_eq!(read_number(&[255, 1, 2, 3]).unwrap(), (0x7f00 + 0x201, &[3][..]));
        assert!(read_number(&[255, 1]).is_err() && read_number(&[]).is_err());
    }
}
