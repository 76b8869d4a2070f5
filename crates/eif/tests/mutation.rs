//! Damaged images never panic, and what they cost is bounded by what they hold.

mod support;

use std::io::{Cursor, Read, Seek, SeekFrom};

use support::*;

const GOLDENS: [&[u8]; 3] =
    [include_bytes!("golden/unsigned.eif"), include_bytes!("golden/signed.eif"), include_bytes!("golden/resigned.eif")];

/// Boundary values that sizes, offsets and counts go wrong at.
const EDGES: [u64; 12] =
    [0, 1, 11, 12, 547, 548, 0x7fff_ffff, 0xffff_ffff, 1 << 60, i64::MAX as u64, 1 << 63, u64::MAX];

fn mutate(image: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        if image.is_empty() {
            return;
        }
        let position = random.below(image.len());
        match random.below(6) {
            0 => image[position] ^= 1 << random.below(8),
            1 => image[position] = random.next() as u8,
            // A whole field of the header.
            2 if image.len() >= eif::HEADER_SIZE => {
                let edge = EDGES[random.below(EDGES.len())];
                put(image, OFFSETS + 8 * random.below(64), &edge.to_be_bytes());
            }
            // An offset that points anywhere in the file.
            3 if image.len() >= eif::HEADER_SIZE => {
                put(image, OFFSETS + 8 * random.below(8), &(position as u64).to_be_bytes());
            }
            4 => image.truncate(position),
            _ => {
                let end = (position + random.below(64)).min(image.len());
                let part = image[position..end].to_vec();
                image.splice(position..position, part);
            }
        }
    }
}

#[test]
fn mutated_images_never_panic_and_bear_out_what_is_read_from_them() {
    let mut random = Random(0x5eed);
    let mut read = 0;
    for round in 0..20_000 {
        let mut image = GOLDENS[round % GOLDENS.len()].to_vec();
        mutate(&mut image, &mut random);
        // Every other one with a right checksum, so that what is behind that check is reached too.
        if round % 2 == 0 {
            fix_crc(&mut image);
        }
        let described = describe(&image);
        match boot(&image) {
            Ok(booted) => {
                read += 1;
                assert!(booted.kernel.len() + booted.initrd.len() + booted.cmdline.len() <= image.len());
                let described = described.unwrap();
                assert!(described.refusals.is_empty());
                assert_eq!(described.measurements, booted.measurements());
                assert_eq!(described.warnings, booted.warnings);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                // What the machine refuses, the description cannot read or gives a reason for.
                assert!(described.is_err() || !described.unwrap().refusals.is_empty());
            }
        }
    }
    assert!(read > 1000, "only {read} mutated images were read");
}

#[test]
fn random_bytes_behind_a_magic_never_panic() {
    let mut random = Random(2);
    for _ in 0..2000 {
        let mut image: Vec<u8> = (0..random.below(2000)).map(|_| random.next() as u8).collect();
        if image.len() >= 8 {
            put(&mut image, 0, b".eif\x00\x04\x00\x00");
        }
        assert!(boot(&image).is_err());
        let _ = describe(&image);
    }
}

/// Counts the bytes that are read.
struct Counting<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for Counting<R> {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(position)
    }
}

#[test]
fn every_byte_is_read_once() {
    for image in &GOLDENS[..2] {
        let mut reader = Counting { inner: Cursor::new(image), read: 0 };
        eif::BootImage::read(&mut reader).unwrap();
        assert_eq!(reader.read, image.len() as u64);
    }
}

#[test]
fn file_that_shrinks_while_it_is_read_is_refused() {
    /// Says that it has all the bytes, but holds only some.
    struct Shrunk {
        inner: Cursor<Vec<u8>>,
        claimed: u64,
    }
    impl Read for Shrunk {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.inner.read(buffer)
        }
    }
    impl Seek for Shrunk {
        fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
            match position {
                SeekFrom::End(0) => Ok(self.claimed),
                other => self.inner.seek(other),
            }
        }
    }
    let image = plain_image();
    for size in 0..image.len() {
        let inner = Cursor::new(image[..size].to_vec());
        assert!(eif::BootImage::read(Shrunk { inner, claimed: image.len() as u64 }).is_err(), "shrunk to {size}");
    }
}
