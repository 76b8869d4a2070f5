//! Zstandard frames, as a kernel's payload is: what another decoder makes of them too is the same bytes.

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "boot-zstd", seeds, run, longest: 8192 };

/// Most content that is compared.
const ROOM: usize = 1 << 20;

fn run(input: &[u8]) {
    let mut out = vec![0; ROOM];
    let Ok(len) = boot::zstd::decompress(input, &mut out) else { return };
    // The other decoder has its own opinion of how much a frame may want before it has seen any of it, and is more lenient in other things.
    let mut theirs = Vec::new();
    if let Ok(decoder) = StreamingDecoder::new(input)
        && decoder.take(ROOM as u64 + 1).read_to_end(&mut theirs).is_ok()
    {
        assert!(theirs == out[..len], "{} bytes, theirs are {}", len, theirs.len());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let text = include_bytes!("boot_zstd.rs");
    vec![
        include_bytes!("../../../crates/boot/goldens/zstd/slow.zst").to_vec(),
        include_bytes!("../../../crates/boot/goldens/zstd/pipe.zst").to_vec(),
        compress_to_vec(&text[..], CompressionLevel::Fastest),
        compress_to_vec(&[7; 5000][..], CompressionLevel::Fastest),
        compress_to_vec(&b""[..], CompressionLevel::Uncompressed),
    ]
}
