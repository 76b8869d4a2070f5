//! Zstandard frames (RFC 8878), decompressed into memory that is there already.
//!
//! The output is its own window: whatever distance a frame's header allows, nothing is allocated but one block's literals. Content checksums are verified.
//! Deliberately missing: dictionaries, skippable frames, and more than one frame, none of which a kernel's payload has.
//!
//! DEVNOTE: `ruzstd` keeps a window of its own, which for Debian's kernel was the launcher's peak of memory (56 MiB), and takes twice the time. The reference decoder
//! in C (`zstd-safe`) decompresses into a slice too, as fast as this one; it comes with its compressor, a minute of processor time to build, and so
//! does its translation to Rust (`libzstd-rs-sys`).

mod bits;
mod checksum;
mod fse;
mod huffman;
mod sequences;
#[cfg(test)]
mod tests;

use thiserror::Error;

use huffman::Codes;
use sequences::{Output, SLACK, Sequences};

/// First bytes of a frame.
pub(crate) const MAGIC: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();

/// Most bytes of one block, compressed or not.
const MAX_BLOCK: usize = 128 << 10;

/// Why a frame cannot be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ZstdError {
    /// It ends too early.
    #[error("the zstd frame is cut off")]
    Truncated,
    /// It begins with something else.
    #[error("this is no zstd frame")]
    Magic,
    /// It needs a dictionary.
    #[error("the zstd frame needs dictionary {id}, and there are no dictionaries here")]
    Dictionary {
        /// Its number.
        id: u32,
    },
    /// It contradicts the format.
    #[error("the zstd frame is damaged: {0}")]
    Damaged(&'static str),
    /// There is more in it than may be.
    #[error("the zstd frame holds more than the {room} bytes that there is room for")]
    Room {
        /// The room in bytes.
        room: usize,
    },
    /// Its content is not what was compressed.
    #[error("the zstd frame is damaged: its content has checksum {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// That of the content.
        found: u32,
        /// What the frame says.
        expected: u32,
    },
}

/// What a frame says of itself.
struct Header {
    /// Its content's size, if it says so.
    size: Option<u64>,
    checksum: bool,
}

/// Decompresses the frame at the start of `source` into the front of `out`, and returns the size of its content. What follows the frame is not looked at. After an error `out` may
/// hold anything.
///
/// # Errors
/// [`ZstdError`] when the frame is damaged, cut off, or has no room.
pub fn decompress(source: &[u8], out: &mut [u8]) -> Result<usize, ZstdError> {
    let (header, mut rest) = read_header(source)?;
    if header.size.is_some_and(|size| size > out.len() as u64) {
        return Err(ZstdError::Room { room: out.len() });
    }
    let mut out = Output { bytes: out, len: 0 };
    let mut blocks = Blocks { codes: None, sequences: Sequences::new(), literals: vec![0; MAX_BLOCK + SLACK] };
    loop {
        let (header, behind) = rest.split_first_chunk::<3>().ok_or(ZstdError::Truncated)?;
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let size = (header >> 3) as usize;
        if size > MAX_BLOCK {
            return Err(ZstdError::Damaged("a block is larger than any may be"));
        }
        // A repeated byte's size is that of what it becomes.
        let stored = if header >> 1 & 3 == 1 { 1 } else { size };
        let (block, behind) = behind.split_at_checked(stored).ok_or(ZstdError::Truncated)?;
        match header >> 1 & 3 {
            0 => out.push(block)?,
            1 => {
                out.reserve(size)?;
                out.bytes[out.len..out.len + size].fill(block[0]);
                out.len += size;
            }
            2 => blocks.decompress(block, &mut out)?,
            _ => return Err(ZstdError::Damaged("a block is of no known kind")),
        }
        rest = behind;
        if header & 1 != 0 {
            break;
        }
    }
    if header.size.is_some_and(|size| size != out.len as u64) {
        return Err(ZstdError::Damaged("its content is not of the size that it says"));
    }
    if header.checksum {
        let expected = u32::from_le_bytes(*rest.first_chunk().ok_or(ZstdError::Truncated)?);
        let found = checksum::xxh64(&out.bytes[..out.len]) as u32;
        if found != expected {
            return Err(ZstdError::Checksum { found, expected });
        }
    }
    Ok(out.len)
}

/// Reads a frame's header (3.1.1.1); also returns what follows.
fn read_header(source: &[u8]) -> Result<(Header, &[u8]), ZstdError> {
    let rest = source.strip_prefix(&MAGIC).ok_or(ZstdError::Magic)?;
    let (&descriptor, mut rest) = rest.split_first().ok_or(ZstdError::Truncated)?;
    if descriptor & 1 << 3 != 0 {
        return Err(ZstdError::Damaged("a reserved bit of its header is set"));
    }
    let single_segment = descriptor & 1 << 5 != 0;
    let mut number = |size: usize| -> Result<u64, ZstdError> {
        let (bytes, behind) = rest.split_at_checked(size).ok_or(ZstdError::Truncated)?;
        rest = behind;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // The window's size is of no interest: all of the output stays.
    number(usize::from(!single_segment))?;
    let id = number([0, 1, 2, 4][usize::from(descriptor & 3)])?;
    if id != 0 {
        return Err(ZstdError::Dictionary { id: id as u32 });
    }
    let size = match descriptor >> 6 {
        0 if !single_segment => None,
        0 => Some(number(1)?),
        1 => Some(number(2)? + 256),
        2 => Some(number(4)?),
        _ => Some(number(8)?),
    };
    Ok((Header { size, checksum: descriptor & 1 << 2 != 0 }, rest))
}

/// What a frame's blocks share.
struct Blocks {
    /// The last Huffman codes.
    codes: Option<Codes>,
    sequences: Sequences,
    /// The block's literals, and room behind them.
    literals: Vec<u8>,
}

/// How a block's literals are stored.
struct Literals {
    /// How many there are.
    count: usize,
    /// How many bytes they take.
    stored: usize,
    four_streams: bool,
}

impl Blocks {
    fn decompress(&mut self, block: &[u8], out: &mut Output<'_>) -> Result<(), ZstdError> {
        let kind = *block.first().ok_or(ZstdError::Truncated)? & 3;
        let (Literals { count, stored, four_streams }, rest) = read_literals_header(block)?;
        if count > MAX_BLOCK {
            return Err(ZstdError::Damaged("a block has more literals than any may have"));
        }
        let (bytes, sequences) = rest.split_at_checked(stored).ok_or(ZstdError::Truncated)?;
        let literals = &mut self.literals[..count];
        match kind {
            0 => literals.copy_from_slice(bytes),
            1 => literals.fill(bytes[0]),
            _ => {
                let mut streams = bytes;
                if kind == 2 {
                    let (codes, size) = Codes::read(bytes)?;
                    self.codes = Some(codes);
                    streams = &bytes[size..];
                }
                let missing = ZstdError::Damaged("a block repeats Huffman codes that no block before it had");
                let codes = self.codes.as_ref().ok_or(missing)?;
                if four_streams { codes.decode_four(streams, literals)? } else { codes.decode(streams, literals)? }
            }
        }
        self.sequences.execute(sequences, &self.literals, count, out)
    }
}

/// Reads the header of a block's literals (3.1.1.3.1.1); also returns what follows.
fn read_literals_header(block: &[u8]) -> Result<(Literals, &[u8]), ZstdError> {
    let (first, format) = (block[0], block[0] >> 2 & 3);
    let compressed = first & 2 != 0;
    // Bytes of the header, bits before the sizes, and bits of each.
    let (size, skipped, width) = match (compressed, format) {
        (false, 0 | 2) => (1, 3, 5),
        (false, 1) => (2, 4, 12),
        (false, _) => (3, 4, 20),
        (true, 0 | 1) => (3, 4, 10),
        (true, 2) => (4, 4, 14),
        (true, _) => (5, 4, 18),
    };
    let (header, rest) = block.split_at_checked(size).ok_or(ZstdError::Truncated)?;
    let header = header.iter().rev().fold(0u64, |header, byte| header << 8 | u64::from(*byte)) >> skipped;
    let number = |shift: u32| (header >> shift) as usize & ((1 << width) - 1);
    let stored = match first & 3 {
        0 => number(0),
        1 => 1,
        _ => number(width),
    };
    Ok((Literals { count: number(0), stored, four_streams: format != 0 }, rest))
}
