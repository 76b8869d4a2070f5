//! Ramdisks: cpio archives, plain or compressed, one after the other.

use std::io::{self, Read as _, Write as _};

use eif::cpio::{Writer, read_ramdisk};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "eif-cpio", seeds, run, longest: 4096 };

/// What one input may unpack to. A few bytes of gzip are a megabyte of zeros, which costs time and finds nothing.
const ENOUGH: u64 = 1 << 20;

fn run(input: &[u8]) {
    let mut unpacked = 0;
    let read = read_ramdisk(input, |entry, data| {
        assert!(!entry.name.starts_with(b"/"));
        unpacked += io::copy(&mut data.take(u64::from(entry.size) + 1), &mut io::sink())?;
        if unpacked > ENOUGH { Err(io::Error::other("enough")) } else { Ok(()) }
    });
    if let Err(error) = read {
        assert!(!error.to_string().is_empty());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let archive = || -> io::Result<Vec<u8>> {
        let mut writer = Writer::new(Vec::new(), 1);
        writer.entry(b"dev", 0o040_755, (0, 0), &[])?;
        writer.entry(b"dev/console", 0o020_600, (5, 1), &[])?;
        writer.owned_entry(b"init", 0o100_755, (7, 8), (0, 0), b"#!/bin/sh\n")?;
        writer.finish()
    };
    let archive = archive().expect("memory can be written to");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let gzip = gzip.write_all(&archive).and_then(|()| gzip.finish()).expect("memory can be written to");
    let zstd = ruzstd::encoding::compress_to_vec(&archive[..], ruzstd::encoding::CompressionLevel::Fastest);
    let twice = [&archive[..], &[0; 64], &gzip, &zstd].concat();
    vec![archive, gzip, zstd, twice]
}
