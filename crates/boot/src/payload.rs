//! The compressed kernel inside a bzImage, and what decompresses it.
//!
//! A payload is an ELF vmlinux compressed in one of several ways, then its uncompressed size as four bytes (scripts/Makefile.lib,
//! `size_append`; gzip has it anyway), which every decoder here leaves unread.

use std::io::Read;

use flate2::read::GzDecoder;

use crate::BootError;
use crate::setup_header::SetupHeader;
use crate::zstd;

/// Compressions by their first bytes (boot.rst, "payload_offset").
const MAGICS: [(&[u8], &str); 8] = [
    (&[0x1f, 0x8b], "gzip"),
    (&zstd::MAGIC, "zstd"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (b"\x7fELF", "uncompressed"),
];

/// A bzImage's payload.
pub(crate) enum Payload<'a> {
    /// In a way that is known here.
    Known(Packed<'a>),
    /// In a way that is left to the guest; its name.
    Unknown(&'static str),
}

/// A payload that the VMM can take apart.
pub(crate) enum Packed<'a> {
    /// Decompressed as it is read.
    Stream(Box<dyn Read + 'a>),
    /// A frame for [`zstd::decompress`].
    Zstd(&'a [u8]),
}

impl<'a> Payload<'a> {
    /// Finds the payload and the way to read it.
    pub(crate) fn of(image: &'a [u8], header: &SetupHeader) -> Result<Self, BootError> {
        let payload = header.payload(image)?;
        let name = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).map_or("unrecognised", |m| m.1);
        Ok(match name {
            "gzip" => Self::Known(Packed::Stream(Box::new(GzDecoder::new(payload)))),
            "zstd" => Self::Known(Packed::Zstd(payload)),
            "uncompressed" => Self::Known(Packed::Stream(Box::new(payload))),
            other => Self::Unknown(other),
        })
    }
}
