//! The compression function (FIPS 180-4 section 6.4.2) with AVX2 and BMI2: as fast as OpenSSL's, which is written in assembly too.
//!
//! The message schedules of two blocks are computed at once, one in each half of the vector registers, two words of each at a
//! time. They need nothing of the state, so those of the next two blocks are computed between the rounds of these two: the
//! vector units then work while the integer units, which the rounds keep busy, leave them room.
//!
//! DEVNOTE: The rounds are assembly, because in what the compiler makes of them the sums that the next round waits for come too
//! late: that is 1.11 times OpenSSL's time on a Zen 3, this is 0.99. Two streams in one pass of AVX-512 (both states in the
//! halves of each register) were tried on a Zen 4: 1.22 times OpenSSL's time for one stream. Two threads need less time than
//! that, on any host with AVX2.

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_alignr_epi8, _mm256_extract_epi64, _mm256_set_epi8, _mm256_set_epi64x,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_xor_si256,
};

use super::BLOCK;

/// How many rows a schedule has: two words of each of two blocks make one.
const ROWS: usize = 40;

/// The keyed schedules of two blocks: in each row words `2 * row` and `2 * row + 1` of the first, then of the second, each with
/// its round's constant added. The last row is zero, for what [`round`] reads ahead.
type Schedule = [__m256i; ROWS + 1];

/// The latest sixteen words of the schedules, without the constants.
type Words = [__m256i; 8];

/// FIPS 180-4 section 4.2.3: the fractional parts of the cube roots of the first eighty primes.
const K: [[u64; 2]; ROWS] = [
    [0x428a_2f98_d728_ae22, 0x7137_4491_23ef_65cd],
    [0xb5c0_fbcf_ec4d_3b2f, 0xe9b5_dba5_8189_dbbc],
    [0x3956_c25b_f348_b538, 0x59f1_11f1_b605_d019],
    [0x923f_82a4_af19_4f9b, 0xab1c_5ed5_da6d_8118],
    [0xd807_aa98_a303_0242, 0x1283_5b01_4570_6fbe],
    [0x2431_85be_4ee4_b28c, 0x550c_7dc3_d5ff_b4e2],
    [0x72be_5d74_f27b_896f, 0x80de_b1fe_3b16_96b1],
    [0x9bdc_06a7_25c7_1235, 0xc19b_f174_cf69_2694],
    [0xe49b_69c1_9ef1_4ad2, 0xefbe_4786_384f_25e3],
    [0x0fc1_9dc6_8b8c_d5b5, 0x240c_a1cc_77ac_9c65],
    [0x2de9_2c6f_592b_0275, 0x4a74_84aa_6ea6_e483],
    [0x5cb0_a9dc_bd41_fbd4, 0x76f9_88da_8311_53b5],
    [0x983e_5152_ee66_dfab, 0xa831_c66d_2db4_3210],
    [0xb003_27c8_98fb_213f, 0xbf59_7fc7_beef_0ee4],
    [0xc6e0_0bf3_3da8_8fc2, 0xd5a7_9147_930a_a725],
    [0x06ca_6351_e003_826f, 0x1429_2967_0a0e_6e70],
    [0x27b7_0a85_46d2_2ffc, 0x2e1b_2138_5c26_c926],
    [0x4d2c_6dfc_5ac4_2aed, 0x5338_0d13_9d95_b3df],
    [0x650a_7354_8baf_63de, 0x766a_0abb_3c77_b2a8],
    [0x81c2_c92e_47ed_aee6, 0x9272_2c85_1482_353b],
    [0xa2bf_e8a1_4cf1_0364, 0xa81a_664b_bc42_3001],
    [0xc24b_8b70_d0f8_9791, 0xc76c_51a3_0654_be30],
    [0xd192_e819_d6ef_5218, 0xd699_0624_5565_a910],
    [0xf40e_3585_5771_202a, 0x106a_a070_32bb_d1b8],
    [0x19a4_c116_b8d2_d0c8, 0x1e37_6c08_5141_ab53],
    [0x2748_774c_df8e_eb99, 0x34b0_bcb5_e19b_48a8],
    [0x391c_0cb3_c5c9_5a63, 0x4ed8_aa4a_e341_8acb],
    [0x5b9c_ca4f_7763_e373, 0x682e_6ff3_d6b2_b8a3],
    [0x748f_82ee_5def_b2fc, 0x78a5_636f_4317_2f60],
    [0x84c8_7814_a1f0_ab72, 0x8cc7_0208_1a64_39ec],
    [0x90be_fffa_2363_1e28, 0xa450_6ceb_de82_bde9],
    [0xbef9_a3f7_b2c6_7915, 0xc671_78f2_e372_532b],
    [0xca27_3ece_ea26_619c, 0xd186_b8c7_21c0_c207],
    [0xeada_7dd6_cde0_eb1e, 0xf57d_4f7f_ee6e_d178],
    [0x06f0_67aa_7217_6fba, 0x0a63_7dc5_a2c8_98a6],
    [0x113f_9804_bef9_0dae, 0x1b71_0b35_131c_471b],
    [0x28db_77f5_2304_7d84, 0x32ca_ab7b_40c7_2493],
    [0x3c9e_be0a_15c9_bebc, 0x431d_67c4_9c10_0d4c],
    [0x4cc5_d4be_cb3e_42b6, 0x597f_299c_fc65_7e2a],
    [0x5fcb_6fab_3ad6_faec, 0x6c44_198c_4a47_5817],
];

/// Compresses the blocks; false if this host cannot.
pub(super) fn compress(state: &mut [u64; 8], blocks: &[[u8; BLOCK]]) -> bool {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2")) {
        return false;
    }
    #[expect(unsafe_code, reason = "code of AVX2 may only be called where it is known to be there")]
    // SAFETY: The host has the three features that the function is compiled for.
    unsafe {
        compress_pairs(state, blocks);
    }
    true
}

/// Where `a` to `h` are among variables that are turned by one place with each round, so that none has to be moved.
const fn places(turn: usize) -> [usize; 8] {
    let mut places = [0; 8];
    let mut place = 0;
    while place < 8 {
        places[place] = (place + 8 - turn % 8) % 8;
        place += 1;
    }
    places
}

/// One round (step 3), without the addition of its own word, which the round before has done, and with that of the next one, at
/// byte `$next` behind `$rows`.
///
/// The majority of a, b and c is `((a ^ b) & (b ^ c)) ^ b`, and `b ^ c` is the last round's `a ^ b`: `$parity` holds the two in
/// turns.
macro_rules! round {
    ($v:ident, $parity:ident, $rows:ident, $turn:expr, $next:expr) => {{
        const TURN: usize = $turn;
        const PLACES: [usize; 8] = places(TURN);
        const { assert!($next + 8 <= size_of::<Schedule>()) };
        #[expect(unsafe_code, reason = "the order of instructions decides about the speed")]
        // SAFETY: Only registers that are named here are written, and only eight bytes of a schedule are read: `$rows` points to
        // row 8 * q of it, where q is below five, and `$next` is at most that of the first word of the eighth row behind that.
        unsafe {
            asm!(
                "rorx {s}, {e}, 41",
                "rorx {t}, {e}, 18",
                "andn {u}, {e}, {g}",
                "xor {s}, {t}",
                "rorx {t}, {e}, 14",
                "add {h}, {u}",
                "mov {u}, {e}",
                "and {u}, {f}",
                "xor {s}, {t}",
                "add {h}, {u}",
                "add {h}, {s}",
                "add {d}, {h}",
                "add {g}, [{rows} + {next}]",
                "mov {ab}, {a}",
                "rorx {t}, {a}, 39",
                "rorx {u}, {a}, 34",
                "xor {ab}, {b}",
                "xor {t}, {u}",
                "rorx {u}, {a}, 28",
                "and {bc}, {ab}",
                "xor {t}, {u}",
                "xor {bc}, {b}",
                "add {h}, {t}",
                "add {h}, {bc}",
                rows = in(reg) $rows,
                next = const $next,
                a = in(reg) $v[PLACES[0]],
                b = in(reg) $v[PLACES[1]],
                d = inout(reg) $v[PLACES[3]],
                e = in(reg) $v[PLACES[4]],
                f = in(reg) $v[PLACES[5]],
                g = inout(reg) $v[PLACES[6]],
                h = inout(reg) $v[PLACES[7]],
                ab = out(reg) $parity[TURN % 2],
                bc = inout(reg) $parity[1 - TURN % 2] => _,
                s = out(reg) _,
                t = out(reg) _,
                u = out(reg) _,
                options(pure, readonly, nostack),
            );
        }
    }};
}

/// Sixteen rounds, written out, because places in arrays must be constants to become registers; between them four rows of the
/// next schedule, which `$early` and `$late` make in two steps.
macro_rules! sixteen_rounds {
    ($v:ident, $parity:ident, $rows:ident) => {
        sixteen_rounds!($v, $parity, $rows, |_ROW| {}, |_made| {})
    };
    ($v:ident, $parity:ident, $rows:ident, |$row:ident| $early:block, |$made:ident| $late:block) => {
        sixteen_rounds!($v, $parity, $rows, $row, $early, $made, $late, 0 1 2 3)
    };
    ($v:ident, $parity:ident, $rows:ident, $row:ident, $early:block, $made:ident, $late:block, $($number:literal)*) => {
        $({
            const $row: usize = $number;
            let $made = $early;
            round!($v, $parity, $rows, 4 * $number, 64 * $number + 8);
            round!($v, $parity, $rows, 4 * $number + 1, 64 * $number + 32);
            $late
            round!($v, $parity, $rows, 4 * $number + 2, 64 * $number + 40);
            round!($v, $parity, $rows, 4 * $number + 3, 64 * $number + 64);
        })*
    };
}

#[target_feature(enable = "avx2,bmi1,bmi2")]
fn compress_pairs(state: &mut [u64; 8], blocks: &[[u8; BLOCK]]) {
    let mut schedules = [[_mm256_setzero_si256(); ROWS + 1]; 2];
    let [mut now, mut next] = schedules.each_mut();
    let mut pairs = blocks.chunks(2).peekable();
    if let Some(first) = pairs.peek() {
        whole_schedule(now, first);
    }
    while let Some(pair) = pairs.next() {
        // Behind the last pair there is nothing to prepare, but preparing anything costs less than asking at each row.
        let following = pairs.peek().copied().unwrap_or(pair);
        let mut words = start(next, following);
        for half in 0..pair.len() {
            let mut v = *state;
            let mut parity = [0, v[1] ^ v[2]];
            let first = if half == 0 { _mm256_extract_epi64::<0>(now[0]) } else { _mm256_extract_epi64::<2>(now[0]) };
            v[7] = v[7].wrapping_add(first as u64);
            let mut rows = now.as_ptr().cast::<u64>().wrapping_add(2 * half);
            for part in 5 * half..5 * half + 5 {
                if part < 2 {
                    sixteen_rounds!(v, parity, rows);
                } else {
                    sixteen_rounds!(v, parity, rows, |ROW| { early_half(&words, ROW) }, |early| {
                        words[ROW] = _mm256_add_epi64(early, late_half(&words, ROW));
                        next[4 * part + ROW] = keyed(words[ROW], 4 * part + ROW);
                    });
                    let [a, b, c, d, e, f, g, h] = words;
                    words = [e, f, g, h, a, b, c, d];
                }
                rows = rows.wrapping_add(32);
            }
            for (state, v) in state.iter_mut().zip(v) {
                *state = state.wrapping_add(v);
            }
        }
        std::mem::swap(&mut now, &mut next);
    }
}

/// Starts a schedule with the words of the blocks themselves. If there is only one block, the second is taken to be the same.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn start(schedule: &mut Schedule, pair: &[[u8; BLOCK]]) -> Words {
    let big_endian = _mm256_set_epi8(
        8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7,
    );
    let mut words = [_mm256_setzero_si256(); 8];
    for (row, words) in words.iter_mut().enumerate() {
        let two = |block: &[u8; BLOCK]| {
            let words = block.as_chunks::<8>().0;
            [words[2 * row], words[2 * row + 1]].map(i64::from_le_bytes)
        };
        let ([a, b], [c, d]) = (two(&pair[0]), two(&pair[pair.len() - 1]));
        *words = _mm256_shuffle_epi8(_mm256_set_epi64x(d, c, b, a), big_endian);
        schedule[row] = keyed(*words, row);
    }
    words
}

/// The schedule of a pair before which there is none whose rounds could hide this.
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn whole_schedule(schedule: &mut Schedule, pair: &[[u8; BLOCK]]) {
    let mut words = start(schedule, pair);
    for row in 8..ROWS {
        words[row % 8] = _mm256_add_epi64(early_half(&words, row), late_half(&words, row));
        schedule[row] = keyed(words[row % 8], row);
    }
}

/// A row with the constants of its rounds.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn keyed(words: __m256i, row: usize) -> __m256i {
    let [a, b] = K[row].map(|constant| constant as i64);
    _mm256_add_epi64(words, _mm256_set_epi64x(b, a, b, a))
}

/// Of the next row, which takes the place of the one eight before it, what does not need the latest row (step 1).
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn early_half(words: &Words, row: usize) -> __m256i {
    let at = |behind: usize| words[(row + behind) % 8];
    let fifteen_back = _mm256_alignr_epi8::<8>(at(1), at(0));
    let seven_back = _mm256_alignr_epi8::<8>(at(5), at(4));
    let sigma0 = xor([
        _mm256_srli_epi64::<1>(fifteen_back),
        _mm256_slli_epi64::<63>(fifteen_back),
        _mm256_srli_epi64::<8>(fifteen_back),
        _mm256_slli_epi64::<56>(fifteen_back),
        _mm256_srli_epi64::<7>(fifteen_back),
    ]);
    _mm256_add_epi64(_mm256_add_epi64(at(0), seven_back), sigma0)
}

/// What is to be added to that.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn late_half(words: &Words, row: usize) -> __m256i {
    let two_back = words[(row + 7) % 8];
    xor([
        _mm256_srli_epi64::<19>(two_back),
        _mm256_slli_epi64::<45>(two_back),
        _mm256_srli_epi64::<61>(two_back),
        _mm256_slli_epi64::<3>(two_back),
        _mm256_srli_epi64::<6>(two_back),
    ])
}

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn xor([a, b, c, d, e]: [__m256i; 5]) -> __m256i {
    let both = |a, b| _mm256_xor_si256(a, b);
    both(both(both(a, b), both(c, d)), e)
}
