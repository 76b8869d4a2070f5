//! One processor alone: integers, floating point, memory.

use std::hint::black_box;

use super::expect;

/// The results below were computed by these same functions on a real processor; the unit tests hold that.
pub(crate) const INTEGER_RESULT: u64 = 0x4e94_369a_5f69_9e2b;
const FLOAT_RESULT: u64 = 0x9a22992c57cfc317;
const MEMORY_RESULT: u64 = 0xbbd41900cb5e1d4d;

/// A 64-bit linear congruential generator (Knuth's MMIX constants).
pub(crate) struct Generator(pub(crate) u64);

impl Generator {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }
}

/// Multiplies, divides, rotates and counts bits.
pub(super) fn integer() -> Result<(), String> {
    expect("checksum", integer_checksum(), INTEGER_RESULT)
}

/// Adds, multiplies, divides and takes roots: the operations that IEEE 754 defines to the last bit.
pub(super) fn float() -> Result<(), String> {
    expect("checksum", float_checksum(), FLOAT_RESULT)
}

/// The C library's functions, which may differ in the last bits from one processor to another.
pub(super) fn math() -> Result<(), String> {
    for step in 0..500 {
        let x = black_box(f64::from(step) / 50.0 + 0.01);
        let one = x.sin().powi(2) + x.cos().powi(2);
        let same = x.ln().exp();
        if (one - 1.0).abs() > 1e-12 || (same - x).abs() > 1e-12 * x.max(1.0) {
            return Err(format!("x={x}: sin^2+cos^2={one}, exp(ln(x))={same}"));
        }
    }
    Ok(())
}

/// Numbers to text and back.
pub(super) fn decimal() -> Result<(), String> {
    let mut generator = Generator(3);
    for _ in 0..200 {
        let bits = generator.next();
        let number = f64::from_bits(bits);
        if number.is_finite() {
            expect("round trip", format!("{number:e}").parse::<f64>().map(f64::to_bits), Ok(bits))?;
        }
        expect("round trip", bits.to_string().parse::<u64>(), Ok(bits))?;
    }
    Ok(())
}

/// Fresh pages, moves in both directions, and a sum over all of it.
pub(super) fn memory() -> Result<(), String> {
    expect("checksum", memory_checksum(), MEMORY_RESULT)
}

/// Sorting: branches that no predictor knows.
pub(super) fn sort() -> Result<(), String> {
    let mut generator = Generator(7);
    let mut numbers: Vec<u64> = (0..10_000).map(|_| generator.next()).collect();
    let sum = numbers.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number));
    numbers.sort_unstable();
    expect("sum", numbers.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number)), sum)?;
    expect("order", numbers.is_sorted(), true)
}

pub(crate) fn integer_checksum() -> u64 {
    let mut generator = Generator(1);
    let mut sum = 0_u64;
    for round in 1..=100_000_u64 {
        let value = black_box(generator.next());
        sum = sum.rotate_left((value & 31) as u32) ^ (value / round);
        sum = sum.wrapping_add(u64::from(value.count_ones())).wrapping_sub(value % (round | 1));
        sum ^= ((i128::from(value as i64) * i128::from(sum as i64)) >> 64) as u64;
    }
    sum
}

pub(super) fn float_checksum() -> u64 {
    let (mut x, mut y) = (1.0_f64, 0.5_f32);
    let mut sum = 0_u64;
    for round in 1..=20_000_u32 {
        x = (black_box(x) * 1.000_1 + f64::from(round) / 7.0).sqrt();
        y = (black_box(y) / 3.0 + x as f32).sqrt() - 0.25;
        sum = sum.rotate_left(1) ^ x.to_bits() ^ u64::from(y.to_bits()) ^ (x as i64 as u64);
    }
    sum
}

fn memory_checksum() -> u64 {
    const BYTES: usize = 1 << 20;
    let mut generator = Generator(5);
    let mut memory: Vec<u8> = Vec::with_capacity(BYTES);
    while memory.len() < BYTES {
        memory.extend_from_slice(&generator.next().to_le_bytes());
    }
    memory.copy_within(1..BYTES / 2, 0);
    memory.copy_within(0..BYTES / 2, 4093);
    let copy = black_box(memory.clone());
    if copy != memory {
        return 0;
    }
    copy.chunks_exact(8).fold(0_u64, |sum, chunk| {
        let word = chunk.iter().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
        sum.rotate_left(3).wrapping_add(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_processor_computes_the_recorded_results() {
        assert_eq!(format!("{:#018x}", integer_checksum()), format!("{INTEGER_RESULT:#018x}"));
        assert_eq!(format!("{:#018x}", float_checksum()), format!("{FLOAT_RESULT:#018x}"));
        assert_eq!(format!("{:#018x}", memory_checksum()), format!("{MEMORY_RESULT:#018x}"));
    }

    #[test]
    fn the_other_exercises_pass_on_a_real_processor() {
        assert_eq!(math(), Ok(()));
        assert_eq!(decimal(), Ok(()));
        assert_eq!(sort(), Ok(()));
    }
}
