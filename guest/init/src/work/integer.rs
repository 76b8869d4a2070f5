//! Programs of integer code: a compression, a sort, and the front end of a compiler.

use std::fmt::Write;
use std::hint::black_box;

use super::{Stopwatch, checksum};
use crate::selftest::arithmetic::Generator;

/// Bytes of text that are compressed.
const TEXT_BYTES: usize = 256 << 10;

/// What the compressor's usual level makes of the text, in bytes.
const COMPRESSED_BYTES: usize = 48_041;

/// Numbers that are sorted.
const NUMBERS: usize = 400_000;

/// Functions of the source text that is parsed.
const FUNCTIONS: u64 = 120;

/// Checksum of the source text as the pretty printer writes it.
const PRINTED: u64 = 0x0c3a_e3b4_aa9f_f39d;

const WORDS: [&str; 24] = [
    "enclave",
    "the",
    "of",
    "machine",
    "interrupt",
    "a",
    "page",
    "table",
    "and",
    "guest",
    "kernel",
    "is",
    "to",
    "processor",
    "memory",
    "in",
    "device",
    "boots",
    "reads",
    "writes",
    "register",
    "clock",
    "when",
    "measured",
];

/// Deflates a text of words and inflates it again (miniz_oxide, level 6).
pub(super) fn compress(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let text = text();
    watch.repeat(times, Ok(COMPRESSED_BYTES), || {
        let compressed = miniz_oxide::deflate::compress_to_vec_zlib(black_box(&text), 6);
        match miniz_oxide::inflate::decompress_to_vec_zlib(&compressed) {
            Ok(inflated) if inflated == text => Ok(compressed.len()),
            Ok(_) => Err("another text came back".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Sorts random numbers, first without regard to equal ones, then by their low halves, keeping the order of equal ones.
pub(super) fn sort(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let mut generator = Generator(11);
    let numbers: Vec<u64> = (0..NUMBERS).map(|_| generator.next()).collect();
    let sum = numbers.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number));
    watch.repeat(times, (true, true, sum), || {
        let mut sorted = black_box(numbers.clone());
        sorted.sort_unstable();
        let first = sorted.is_sorted();
        sorted.sort_by_key(|number| *number as u32);
        let second = sorted.is_sorted_by_key(|number| *number as u32);
        (first, second, sorted.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number)))
    })
}

/// The front end of a compiler: takes a Rust source text apart into tokens, builds the syntax tree (syn), and prints
/// that as text again (prettyplease).
pub(super) fn parse(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let source = source();
    watch.repeat(times, Ok(PRINTED), || {
        let file = syn::parse_file(black_box(&source)).map_err(|error| error.to_string())?;
        Ok::<_, String>(checksum(prettyplease::unparse(&file).as_bytes()))
    })
}

fn text() -> Vec<u8> {
    let mut generator = Generator(13);
    let mut text = String::with_capacity(TEXT_BYTES + 16);
    while text.len() < TEXT_BYTES {
        let word = generator.next() >> 40;
        text.push_str(WORDS[word as usize % WORDS.len()]);
        text.push_str(if word.is_multiple_of(11) { ".\n" } else { " " });
    }
    text.into_bytes()
}

/// Functions with every ordinary kind of statement, no two alike.
fn source() -> String {
    let mut generator = Generator(17);
    let mut source = String::new();
    for number in 0..FUNCTIONS {
        let (a, b, c) = (generator.next() >> 48, generator.next() >> 52, generator.next() >> 60);
        let word = WORDS[(a as usize) % WORDS.len()];
        // Writing to a string cannot fail.
        let _ = write!(
            source,
            "/// Works on the {word}.\n\
             pub fn f{number}<T: Into<u64> + Copy>(first: T, rest: &[u64; {b}]) -> Result<u64, String> {{\n\
                 let mut sum = first.into().wrapping_mul({a}) ^ (rest[{c}] << {c});\n\
                 for (index, value) in rest.iter().enumerate().filter(|(index, _)| index % {} == 0) {{\n\
                     match value & 0x{b:x} {{\n\
                         0 | {c} => sum += *value * {a} + index as u64,\n\
                         1..={a} if sum > {b} => return Err(format!(\"{word} {{}}\", sum)),\n\
                         other => {{ let State {{ left, right, .. }} = step(other, &mut sum)?; sum -= left / (right | 1); }}\n\
                     }}\n\
                 }}\n\
                 if sum.count_ones() < {c} && !rest.is_empty() {{ Ok(sum) }} else {{ f{}(sum, rest).map(|x| x - {a}) }}\n\
             }}\n",
            c + 2,
            number.saturating_sub(1),
        );
    }
    source
}
