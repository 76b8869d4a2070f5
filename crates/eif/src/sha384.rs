//! SHA-384 (FIPS 180-4 section 6.5). On x86-64 with AVX2 the blocks go to code of our own, elsewhere to `sha2`.
//!
//! DEVNOTE: sha2, ring, aws-lc-rs and graviola were measured, and all take 1.4 times OpenSSL's time for one stream, on a Zen 3 as on
//! a Zen 4; with any of them, even one thread a digest misses what measuring may cost. OpenSSL itself would have to be linked from
//! the system.

#[cfg(target_arch = "x86_64")]
mod avx2;

use sha2::block_api::compress512;

use crate::measure::Digest;

/// The size in bytes of what is hashed at a time.
const BLOCK: usize = 128;

/// FIPS 180-4 section 5.3.4: the fractional parts of the square roots of the ninth to sixteenth primes.
const INITIAL: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];

/// A digest that is being taken.
#[derive(Debug, Clone)]
pub(crate) struct Sha384 {
    state: [u64; 8],
    /// The start of a block that is not whole yet.
    partial: [u8; BLOCK],
    /// How many bytes were taken in all.
    size: u64,
}

impl Default for Sha384 {
    fn default() -> Self {
        Self { state: INITIAL, partial: [0; BLOCK], size: 0 }
    }
}

impl Sha384 {
    /// The digest of these bytes.
    pub(crate) fn digest(bytes: &[u8]) -> Digest {
        let mut hasher = Self::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let bytes = self.complete_block(bytes);
        let (blocks, rest) = bytes.as_chunks();
        compress(&mut self.state, blocks);
        self.size += (bytes.len() - rest.len()) as u64;
        self.keep(rest);
    }

    /// The digest of all that was taken.
    pub(crate) fn finish(mut self) -> Digest {
        let bits = u128::from(self.size) * 8;
        // A one, zeros up to the last sixteen bytes of a block, and the size in bits.
        let zeros = (2 * BLOCK - 17 - self.filled()) % BLOCK;
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        padding[1 + zeros..][..16].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..1 + zeros + 16]);
        let mut digest = [0; 48];
        for (bytes, word) in digest.chunks_exact_mut(8).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    /// How much of a block is kept.
    fn filled(&self) -> usize {
        (self.size % BLOCK as u64) as usize
    }

    /// Completes the block that was begun, if there is one, and returns the bytes behind it.
    fn complete_block<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.filled() == 0 {
            return bytes;
        }
        let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled()));
        self.keep(head);
        if self.filled() == 0 {
            compress(&mut self.state, &[self.partial]);
        }
        rest
    }

    /// Keeps bytes that fit into the block that was begun.
    fn keep(&mut self, bytes: &[u8]) {
        let filled = self.filled();
        self.partial[filled..filled + bytes.len()].copy_from_slice(bytes);
        self.size += bytes.len() as u64;
    }
}

/// Takes whole blocks.
fn compress(state: &mut [u64; 8], blocks: &[[u8; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    if avx2::compress(state, blocks) {
        return;
    }
    compress512(state, blocks);
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    fn expected(bytes: &[u8]) -> Digest {
        sha2::Sha384::digest(bytes).into()
    }

    #[test]
    fn the_digest_of_abc_is_that_of_the_standard() {
        let hex: String = Sha384::digest(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        let standard =
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7";
        assert_eq!(hex, standard);
    }

    #[test]
    fn every_size_around_a_block_agrees_with_sha2() {
        let bytes = bytes(700);
        for size in 0..bytes.len() {
            assert_eq!(Sha384::digest(&bytes[..size]), expected(&bytes[..size]), "{size} bytes");
        }
    }

    #[test]
    fn streams_of_any_length_agree_with_sha2_however_they_are_cut() {
        let all = bytes(40_000);
        let mut random = 1_u64;
        let mut below = |bound: usize| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as usize % bound
        };
        for round in 0..300 {
            let stream = &all[below(100)..][..below(all.len() - 100)];
            let mut hasher = Sha384::default();
            let mut rest = stream;
            while !rest.is_empty() {
                let (part, behind) = rest.split_at((1 + below([10, 300, 9000][round % 3])).min(rest.len()));
                hasher.update(part);
                rest = behind;
            }
            assert_eq!(hasher.finish(), expected(stream), "round {round}, {} bytes", stream.len());
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_vector_code_agrees_with_sha2_on_any_state_and_number_of_blocks() {
        let bytes = bytes(128 * 33);
        let blocks = bytes.as_chunks().0;
        for count in 0..=blocks.len() {
            let mut state: [u64; 8] =
                std::array::from_fn(|place| (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut expected = state;
            if !avx2::compress(&mut state, &blocks[..count]) {
                eprintln!("skipped: this host has no AVX2");
                return;
            }
            compress512(&mut expected, &blocks[..count]);
            assert_eq!(state, expected, "{count} blocks");
        }
    }
}
