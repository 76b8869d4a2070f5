//! The compressed kernel inside a bzImage, and the streams that decompress it.
//!
//! A payload is an ELF vmlinux compressed in one of several ways, then its uncompressed size as four bytes (scripts/Makefile.lib,
//! `size_append`; gzip has it anyway), which every decoder here leaves unread.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::BootError;
use crate::setup_header::SetupHeader;

/// Largest zstd window that a payload may ask for: what the kernel's own build uses with `--ultra -22`.
const MAX_ZSTD_WINDOW: u64 = 128 << 20;

/// Compressions by their first bytes (boot.rst, "payload_offset").
const MAGICS: [(&[u8], &str); 8] = [
    (&[0x1f, 0x8b], "gzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (b"\x7fELF", "uncompressed"),
];

/// A bzImage's payload.
pub(crate) enum Payload<'a> {
    /// Decompressed as it is read.
    Known(Box<dyn Read + 'a>),
    /// In a way that is left to the guest; its name.
    Unknown(&'static str),
}

impl<'a> Payload<'a> {
    /// Finds the payload and the way to read it.
    pub(crate) fn of(image: &'a [u8], header: &SetupHeader) -> Result<Self, BootError> {
        let payload = header.payload(image)?;
        let name = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).map_or("unrecognised", |m| m.1);
        Ok(match name {
            "gzip" => Self::Known(Box::new(GzDecoder::new(payload))),
            "zstd" => Self::Known(Box::new(
                zstd(payload)
                    .map_err(|source| BootError::Read { name: format!("{} (its payload)", header.name), source })?,
            )),
            "uncompressed" => Self::Known(Box::new(payload)),
            other => Self::Unknown(other),
        })
    }
}

fn zstd(payload: &[u8]) -> io::Result<StreamingDecoder<&[u8], FrameDecoder>> {
    StreamingDecoder::new_with_max_window_size(payload, MAX_ZSTD_WINDOW).map_err(io::Error::other)
}
