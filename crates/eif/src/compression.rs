//! Compressed streams, told apart by their first bytes: gzip (RFC 1952), zstd (RFC 8878) and xz.
//!
//! Deliberately missing: bzip2, lzma, lzo and lz4, which the kernel can unpack too, but which no builder of enclave images writes.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::{GzDecoder, MultiGzDecoder};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// What a stream is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
    Xz,
}

/// The memory that an xz stream may ask for, in KiB: enough for the largest preset's dictionary.
const XZ_MEMORY_KIB: u32 = 128 << 10;

impl Compression {
    /// The compression of a stream that starts with these bytes; `None` if it is not known, or none.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }

    /// Unpacks one stream, and leaves what follows it.
    pub(crate) fn unpack_one<'a>(self, packed: &'a mut dyn BufRead) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(GzDecoder::new(packed)),
            Self::Zstd => Box::new(StreamingDecoder::new(packed).map_err(io::Error::other)?),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB)),
        })
    }

    /// Unpacks one stream after the other to the end of what is packed.
    pub(crate) fn unpack_all<'a>(self, packed: impl BufRead + 'a) -> Box<dyn Read + 'a> {
        match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(ZstdFrames::Between(packed)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(packed, true, XZ_MEMORY_KIB)),
        }
    }
}

/// One frame's magic, which had to be read to see that there is a frame, and the rest.
type Frame<R> = io::Chain<Cursor<[u8; 4]>, R>;

/// Frames of zstd, one after the other, with skippable ones between them, as `zstd:chunked` layers have them.
enum ZstdFrames<R: Read> {
    Between(R),
    Within(Box<StreamingDecoder<Frame<R>, FrameDecoder>>),
    Ended,
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Ended) {
                Self::Between(mut packed) => match next_frame(&mut packed)? {
                    None => return Ok(0),
                    Some(magic) => {
                        let frame = Cursor::new(magic).chain(packed);
                        *self = Self::Within(Box::new(StreamingDecoder::new(frame).map_err(io::Error::other)?));
                    }
                },
                Self::Within(mut frame) => match frame.read(buffer)? {
                    0 if !buffer.is_empty() => *self = Self::Between(frame.into_inner().into_inner().1),
                    read => {
                        *self = Self::Within(frame);
                        return Ok(read);
                    }
                },
                Self::Ended => return Ok(0),
            }
        }
    }
}

/// Skips frames that hold no data, and reads the magic of the next that does; `None` at the end.
fn next_frame(packed: &mut impl Read) -> io::Result<Option<[u8; 4]>> {
    loop {
        let mut magic = [0; 4];
        match packed.read(&mut magic[..1])? {
            0 => return Ok(None),
            _ => packed.read_exact(&mut magic[1..])?,
        }
        if u32::from_le_bytes(magic) & 0xffff_fff0 != 0x184d_2a50 {
            return Ok(Some(magic));
        }
        let mut size = [0; 4];
        packed.read_exact(&mut size)?;
        let size = u64::from(u32::from_le_bytes(size));
        if io::copy(&mut packed.take(size), &mut io::sink())? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf abc | zstd`, without a checksum.
    const ABC_ZSTD: [u8; 12] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x03, 0x19, 0x00, 0x00, b'a', b'b', b'c'];

    #[test]
    fn zstd_frames_follow_each_other_with_skippable_ones_between() {
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        let packed = [&skippable[..], &ABC_ZSTD, &skippable, &ABC_ZSTD, &skippable].concat();
        let mut unpacked = String::new();
        Compression::Zstd.unpack_all(&packed[..]).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, "abcabc");
        let cut = &packed[..packed.len() - 1];
        assert!(Compression::Zstd.unpack_all(cut).read_to_string(&mut unpacked).is_err());
    }

    #[test]
    fn one_stream_is_unpacked_and_the_rest_is_left() {
        let mut packed = &[&ABC_ZSTD[..], b"rest"].concat()[..];
        let mut unpacked = String::new();
        Compression::of(packed).unwrap().unpack_one(&mut packed).unwrap().read_to_string(&mut unpacked).unwrap();
        assert_eq!((unpacked.as_str(), packed), ("abc", &b"rest"[..]));
    }
}
