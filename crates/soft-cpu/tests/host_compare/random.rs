//! A small generator of random numbers that gives the same ones on every machine, and numbers that favour edges.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(u64);

/// Integers where something happens: ends of ranges, and what lies beside them.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    65,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ff80,
    0xffff_ffff_ffff_8000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

const F32_EDGES: &[u32] = &[
    0,
    0x8000_0000, // -0
    0x3f80_0000, // 1
    0xbf80_0000, // -1
    0x4000_0000, // 2
    0x0000_0001, // smallest denormal
    0x007f_ffff, // largest denormal
    0x0080_0000, // smallest normal
    0x7f7f_ffff, // largest
    0xff7f_ffff,
    0x7f80_0000, // infinity
    0xff80_0000,
    0x7fc0_0000, // quiet NaN
    0xffc1_2345,
    0x7f80_0001, // signalling NaN
    0x4f00_0000, // 2^31
    0xcf00_0000,
    0x3f00_0000, // 0.5
    0x3fc0_0000, // 1.5
    0x4b00_0000, // 2^23
];

const F64_EDGES: &[u64] = &[
    0,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x4000_0000_0000_0000,
    1,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_1234_5678_9abc,
    0x7ff0_0000_0000_0001,
    0x41e0_0000_0000_0000, // 2^31
    0x43e0_0000_0000_0000, // 2^63
    0xc3e0_0000_0000_0000,
    0x3fe0_0000_0000_0000, // 0.5
    0x4004_0000_0000_0000, // 2.5
    0x47ef_ffff_e000_0000, // largest f32
    0x3690_0000_0000_0000, // half the smallest f32 denormal
];

/// Exponent words of 80-bit numbers, and significands to go with them.
const F80_EXPONENTS: &[u16] =
    &[0, 0x8000, 1, 0x3fff, 0xbfff, 0x4000, 0x3ffe, 0x403e, 0x401e, 0xc03e, 0x7ffe, 0x7fff, 0xffff];
const F80_SIGNIFICANDS: &[u64] = &[
    0,
    1,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xc000_0000_0000_0000,
    0xa000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0x4000_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
];

impl Random {
    /// The sequence that `seed` gives.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((self.bits() >> 32) * limit) >> 32
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer, often an edge.
    pub(crate) fn edge(&mut self) -> u64 {
        match self.below(8) {
            0..=2 => self.pick(EDGES),
            3 => 1 << self.below(64),
            4 => self.below(256),
            5 => self.bits() >> 32,
            _ => self.bits(),
        }
    }

    /// 16 bytes as one would find them in a vector register: integers or floating-point numbers, often edges.
    pub(crate) fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self.below(6) {
            0 | 1 => {
                for lane in bytes.chunks_exact_mut(4) {
                    let value = if self.one_in(2) { self.pick(F32_EDGES) } else { self.float32() };
                    lane.copy_from_slice(&value.to_le_bytes());
                }
            }
            2 | 3 => {
                for lane in bytes.chunks_exact_mut(8) {
                    let value = if self.one_in(2) { self.pick(F64_EDGES) } else { self.float64() };
                    lane.copy_from_slice(&value.to_le_bytes());
                }
            }
            4 => {
                let size = 1 << self.below(4);
                for lane in bytes.chunks_exact_mut(size) {
                    lane.copy_from_slice(&self.edge().to_le_bytes()[..size]);
                }
            }
            _ => {
                bytes[..8].copy_from_slice(&self.bits().to_le_bytes());
                bytes[8..].copy_from_slice(&self.bits().to_le_bytes());
            }
        }
        bytes
    }

    /// An 80-bit floating-point number, often an edge or one that no instruction makes.
    pub(crate) fn float80(&mut self) -> [u8; 10] {
        let exponent = if self.one_in(2) {
            self.pick(F80_EXPONENTS)
        } else {
            (0x3fe0 + self.below(64) as u16) | (self.bits() as u16 & 0x8000)
        };
        let significand = if self.one_in(2) { self.pick(F80_SIGNIFICANDS) } else { self.bits() | 1 << 63 };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }

    /// A number of ordinary size.
    fn float32(&mut self) -> u32 {
        ((self.bits() as i32 >> self.below(31)) as f32 / 256.0).to_bits()
    }

    fn float64(&mut self) -> u64 {
        ((self.bits() as i64 >> self.below(63)) as f64 / 256.0).to_bits()
    }
}
