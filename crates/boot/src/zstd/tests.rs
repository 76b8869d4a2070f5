//! Whole frames: those of the reference compressor (goldens/zstd, made of [`content`] by zstd 1.5.4 with `-3 --no-check`, `-19`, and `-9 --long=27` from a pipe), and those of
//! ruzstd's compressor.

use super::*;
use crate::testing::zstd;

const FAST: &[u8] = include_bytes!("../../goldens/zstd/fast.zst");
const SLOW: &[u8] = include_bytes!("../../goldens/zstd/slow.zst");
const PIPE: &[u8] = include_bytes!("../../goldens/zstd/pipe.zst");

/// Words, zeros, noise, and much that came before: every kind of block and table is in its frames.
fn content() -> Vec<u8> {
    const WORDS: [&[u8]; 12] = [
        b"kernel",
        b"the ",
        b"page",
        b" of",
        b"interrupt ",
        b"x86",
        b"\0\0",
        b"_start",
        b"memory",
        b", ",
        b"\x48\x89",
        b"read",
    ];
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut content = Vec::new();
    while content.len() < 12_000 {
        content.extend(WORDS[random(12)]);
    }
    content.resize(content.len() + 70_000, 0);
    content.extend((0..600).map(|_| random(256) as u8));
    for _ in 0..700 {
        let at = random(12_000);
        content.extend_from_within(at..at + 20 + random(300));
        content.push(random(256) as u8);
    }
    content
}

fn decompressed(frame: &[u8], room: usize) -> Result<Vec<u8>, ZstdError> {
    let mut out = vec![0xee; room];
    let len = decompress(frame, &mut out)?;
    out.truncate(len);
    Ok(out)
}

#[test]
fn frames_of_the_reference_compressor_give_their_content() {
    let content = content();
    for (name, frame) in [("fast", FAST), ("slow", SLOW), ("pipe", PIPE)] {
        for more in [0, 1, 100_000] {
            assert!(decompressed(frame, content.len() + more).unwrap() == content, "{name} with {more} bytes more");
        }
    }
}

#[test]
fn frames_of_another_compressor_give_their_content() {
    let content = content();
    for len in [0, 1, 5, 300, 66_000, 131_072, content.len()] {
        let part = &content[content.len() - len..];
        assert!(decompressed(&zstd(part), len).unwrap() == part, "{len}");
    }
}

#[test]
fn what_follows_the_frame_is_not_looked_at() {
    let frame = [SLOW, b"anything"].concat();
    assert!(decompressed(&frame, 1 << 20).unwrap() == content());
}

#[test]
fn a_frame_cut_off_anywhere_is_truncated() {
    // Or damaged: a stream of bits that ends early begins elsewhere.
    for frame in [SLOW, PIPE] {
        for len in (0..frame.len()).step_by(7).chain([frame.len() - 1]) {
            assert!(decompressed(&frame[..len], 1 << 20).is_err(), "{len}");
        }
    }
    assert_eq!(decompressed(&SLOW[..SLOW.len() - 1], 1 << 20), Err(ZstdError::Truncated));
}

#[test]
fn a_frame_with_any_bit_changed_is_refused_or_means_the_same() {
    // Padding, and what is said of codes that do not come, mean nothing; the checksum finds the rest.
    let content = content();
    let mut refused = 0;
    for at in (6..SLOW.len()).step_by(3) {
        for bit in [0, 3, 7] {
            let mut frame = SLOW.to_vec();
            frame[at] ^= 1 << bit;
            match decompressed(&frame, 1 << 18) {
                Ok(out) => assert!(out == content, "bit {bit} of byte {at}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > SLOW.len() / 2, "{refused}");
}

#[test]
fn room_for_all_but_a_byte_is_too_little_and_nothing_is_written_past_it() {
    let size = content().len();
    for frame in [FAST, SLOW, PIPE] {
        let mut out = vec![0xee; size + 64];
        assert_eq!(decompress(frame, &mut out[..size - 1]), Err(ZstdError::Room { room: size - 1 }));
        assert!(out[size - 1..].iter().all(|byte| *byte == 0xee));
    }
}

#[test]
fn frames_that_are_not_for_us_say_so() {
    assert_eq!(decompressed(b"\x1f\x8b\x08", 9), Err(ZstdError::Magic));
    let frame = |descriptor: u8, rest: &[u8]| [&MAGIC[..], &[descriptor], rest].concat();
    assert_eq!(decompressed(&frame(0x21, &[7, 0]), 9), Err(ZstdError::Dictionary { id: 7 }));
    assert!(matches!(decompressed(&frame(0x28, &[0, 1, 0, 0]), 9), Err(ZstdError::Damaged(_))), "a reserved bit");
    assert!(matches!(decompressed(&frame(0x20, &[0, 7, 0, 0]), 9), Err(ZstdError::Damaged(_))), "a reserved block");
    assert_eq!(decompressed(&frame(0x20, &[0, 1, 0, 0]), 9), Ok(vec![]), "an empty block");
}

#[test]
fn a_block_that_repeats_a_byte_is_bounded_by_the_room() {
    let frame = [&MAGIC[..], &[0, 0x88], &(10_000u32 << 3 | 1 << 1 | 1).to_le_bytes()[..3], &[5]].concat();
    assert_eq!(decompressed(&frame, 10_000), Ok(vec![5; 10_000]));
    assert_eq!(decompressed(&frame, 9_999), Err(ZstdError::Room { room: 9_999 }));
}

#[test]
fn tables_and_codes_that_no_block_had_cannot_be_repeated() {
    let block = |content: &[u8]| {
        let header = (content.len() as u32) << 3 | 2 << 1 | 1;
        decompressed(&[&MAGIC[..], &[0, 0x88], &header.to_le_bytes()[..3], content].concat(), 1000)
    };
    // No literals, one sequence, all three tables repeated.
    assert!(matches!(block(&[0, 1, 0xfc, 1]), Err(ZstdError::Damaged(what)) if what.contains("repeats tables")));
    // Four literals, treeless.
    assert!(matches!(block(&[0x43, 0x40, 0, 1, 0]), Err(ZstdError::Damaged(what)) if what.contains("Huffman")));
}
