//! What processors have instructions of their own for: hashes, ciphers, moves of memory, floating point.

use std::hint::black_box;

use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use sha2::{Digest, Sha256};

use super::{Stopwatch, checksum};
use crate::selftest::arithmetic::Generator;

/// Bytes that are hashed and enciphered, and how often at each time.
const BYTES: usize = 1 << 20;
const PASSES: usize = 8;

/// SHA-256 over the bytes, all passes in a row; its first eight bytes.
const DIGEST: u64 = 0xe570_baec_6543_56cd;

/// Checksum of the enciphered bytes.
const CIPHERED: u64 = 0x170d_1f73_f8be_83c0;

/// Sizes of the moves, from a few words to many pages; each moves [`MOVED`] bytes in all.
const MOVES: [usize; 6] = [24, 100, 700, 4096, 50_000, 600_000];
const MOVED: usize = 4 << 20;

/// Rows and columns of the matrices.
const ORDER: usize = 192;

/// Checksum of the matrices' product, to the last bit.
const PRODUCT: u64 = 0xe954_6071_b365_e602;

/// Steps of the bodies' simulation, and the energy that it ends with, to the last bit.
const STEPS: usize = 40_000;
const ENERGY: u64 = 0x3fdb_6782_cbc0_8c69;

/// SHA-256, with the processor's own instructions where it has them (sha2).
pub(super) fn sha256(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let bytes = bytes();
    watch.repeat(times, DIGEST, || {
        let mut hash = Sha256::new();
        for _ in 0..PASSES {
            hash.update(black_box(&bytes));
        }
        let digest = hash.finalize();
        digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    })
}

/// AES-128, block by block, there and back, with the processor's own instructions where it has them (aes).
pub(super) fn aes(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let cipher = aes::Aes128::new(&(*b"sixteen bytes ok").into());
    let plain = bytes();
    let (blocks, _) = plain.as_chunks::<16>();
    let plain: Vec<Block<aes::Aes128>> = blocks.iter().map(|block| (*block).into()).collect();
    let mut blocks = plain.clone();
    watch.repeat(times, (CIPHERED, true), || {
        for _ in 0..PASSES {
            cipher.encrypt_blocks(black_box(&mut blocks));
        }
        let ciphered = blocks.iter().fold(0_u64, |sum, block| sum.rotate_left(1) ^ checksum(block));
        for _ in 0..PASSES {
            cipher.decrypt_blocks(black_box(&mut blocks));
        }
        (ciphered, blocks == plain)
    })
}

/// The C library's memcpy, in moves of many sizes.
pub(super) fn copy(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let from = bytes();
    let mut to = vec![0; BYTES];
    watch.repeat(times, true, || {
        MOVES.iter().all(|&size| {
            let mut at = 0;
            for _ in 0..MOVED / size {
                // An odd distance, so that no alignment is preferred.
                at = if at + 2 * size + 13 > BYTES { 0 } else { at + size + 13 };
                to[at..at + size].copy_from_slice(black_box(&from[at..at + size]));
            }
            to[at..at + size] == from[at..at + size]
        })
    })
}

/// The product of two matrices of 64-bit floating-point numbers, with AVX2 where the processor has it.
pub(super) fn matrix(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let mut generator = Generator(23);
    let mut random = || -> Vec<f64> { (0..ORDER * ORDER).map(|_| (generator.next() >> 40) as f64 / 1e6).collect() };
    let (left, right) = (random(), random());
    let mut product = vec![0.0; ORDER * ORDER];
    watch.repeat(times, PRODUCT, || {
        product.fill(0.0);
        multiply(black_box(&left), black_box(&right), &mut product);
        product.iter().fold(0_u64, |sum, number| sum.rotate_left(1) ^ number.to_bits())
    })
}

#[expect(unsafe_code, reason = "code for a processor that has AVX2 may only run on one")]
fn multiply(left: &[f64], right: &[f64], product: &mut [f64]) {
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        unsafe { multiply_avx2(left, right, product) }
    } else {
        multiply_rows(left, right, product);
    }
}

/// [`multiply_rows`], compiled for AVX2.
#[target_feature(enable = "avx2")]
fn multiply_avx2(left: &[f64], right: &[f64], product: &mut [f64]) {
    multiply_rows(left, right, product);
}

/// Adds in one order whatever the vectors' width, so that the result is the same everywhere.
#[inline(always)]
fn multiply_rows(left: &[f64], right: &[f64], product: &mut [f64]) {
    for (row, sums) in left.chunks_exact(ORDER).zip(product.chunks_exact_mut(ORDER)) {
        for (factor, others) in row.iter().zip(right.chunks_exact(ORDER)) {
            for (sum, other) in sums.iter_mut().zip(others) {
                *sum += factor * other;
            }
        }
    }
}

/// A planet or a star.
#[derive(Clone, Copy)]
struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Five bodies that attract one another, for [`STEPS`] steps: scalar arithmetic with divisions and roots.
pub(super) fn bodies(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let mut generator = Generator(29);
    let mut random = || (generator.next() >> 32) as f64 / 1e9;
    let start: [Body; 5] = std::array::from_fn(|index| Body {
        place: std::array::from_fn(|_| random() * (index + 1) as f64),
        speed: std::array::from_fn(|_| random() / 10.0),
        mass: 1.0 / (index + 1) as f64,
    });
    watch.repeat(times, ENERGY, || {
        let mut bodies = black_box(start);
        for _ in 0..STEPS {
            step(&mut bodies, 0.001);
        }
        bodies.iter().fold(0.0, |sum, body| sum + body.mass * square(body.speed) / 2.0).to_bits()
    })
}

fn step(bodies: &mut [Body; 5], time: f64) {
    for first in 0..bodies.len() {
        for second in first + 1..bodies.len() {
            let (one, other) = (bodies[first], bodies[second]);
            let between: [f64; 3] = std::array::from_fn(|axis| one.place[axis] - other.place[axis]);
            let squared = square(between) + 0.01;
            let pull = time / (squared * squared.sqrt());
            for (axis, distance) in between.iter().enumerate() {
                bodies[first].speed[axis] -= distance * other.mass * pull;
                bodies[second].speed[axis] += distance * one.mass * pull;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body.place[axis] += body.speed[axis] * time;
        }
    }
}

fn square([x, y, z]: [f64; 3]) -> f64 {
    x * x + y * y + z * z
}

fn bytes() -> Vec<u8> {
    let mut generator = Generator(19);
    (0..BYTES / 8).flat_map(|_| generator.next().to_le_bytes()).collect()
}
