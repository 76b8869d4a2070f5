//! Images to break.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io::Cursor;

use eif::{BootImage, CRC_OFFSET, Description, Error, HEADER_SIZE, Header, MAGIC, MAX_SECTIONS, Metadata, Warning};

/// The names of an enum's variants.
pub(crate) trait Variants {
    /// The enum's own name.
    const NAME: &'static str;
    /// Every variant's.
    const ALL: &'static [&'static str];

    /// This value's variant.
    fn variant(&self) -> &'static str;
}

/// Lists an enum's variants. One that is left out does not compile, so that a new one is not forgotten by whatever asks for all.
macro_rules! variants {
    ($enum:ident: $($variant:ident)+) => {
        impl crate::support::Variants for $enum {
            const NAME: &'static str = stringify!($enum);
            const ALL: &'static [&'static str] = &[$(stringify!($variant)),+];

            fn variant(&self) -> &'static str {
                match self {
                    $($enum::$variant { .. } => stringify!($variant),)+
                }
            }
        }
    };
}

variants!(Error:
    Read ShortHeader Magic Version Architecture TooManySections SectionInHeader SectionOutsideFile ShortSectionHeader StaleSize
    ShortSection Overlap SecondSection MissingSection Crc CmdlineNotText Signature OutOfMemory);

variants!(Warning:
    HeaderFlags NewerVersion Reserved SectionFlags SkippedSection SectionNewerThanVersion TableOrder Gap RamdiskBeforeKernel
    NoMetadata MetadataUnreadable Superseded CmdlineNotMeasured);

pub(crate) const KERNEL: u16 = 1;
pub(crate) const CMDLINE: u16 = 2;
pub(crate) const RAMDISK: u16 = 3;
pub(crate) const SIGNATURE: u16 = 4;
pub(crate) const METADATA: u16 = 5;

/// Offsets of header fields.
pub(crate) const VERSION: usize = 0x04;
pub(crate) const FLAGS: usize = 0x06;
pub(crate) const COUNT: usize = 0x1a;
pub(crate) const OFFSETS: usize = 0x1c;
pub(crate) const SIZES: usize = 0x11c;

/// An image of these sections (type and data), one after the other, with a header and a checksum that fit.
pub(crate) fn image_of(sections: &[(u16, &[u8])]) -> Vec<u8> {
    let mut header = Header {
        magic: MAGIC,
        version: 4,
        flags: 0,
        default_memory: 1 << 30,
        default_cpus: 2,
        reserved: 0,
        section_count: sections.len() as u16,
        section_offsets: [0; MAX_SECTIONS],
        section_sizes: [0; MAX_SECTIONS],
        unused: 0,
        crc: 0,
    };
    let mut body = Vec::new();
    for (index, (kind, data)) in sections.iter().enumerate() {
        header.section_offsets[index] = (HEADER_SIZE + body.len()) as u64;
        header.section_sizes[index] = data.len() as u64;
        body.extend_from_slice(&kind.to_be_bytes());
        body.extend_from_slice(&[0, 0]);
        body.extend_from_slice(&(data.len() as u64).to_be_bytes());
        body.extend_from_slice(data);
    }
    let mut image = [header.to_bytes().as_slice(), &body].concat();
    fix_crc(&mut image);
    image
}

/// The sections of a small, complete, unsigned image.
pub(crate) fn plain_sections(metadata: &[u8]) -> Vec<(u16, &[u8])> {
    vec![
        (KERNEL, b"the kernel"),
        (CMDLINE, b"console=ttyS0 panic=30"),
        (METADATA, metadata),
        (RAMDISK, b"the boot ramdisk"),
        (RAMDISK, b"the application"),
    ]
}

/// A small, complete, unsigned image.
pub(crate) fn plain_image() -> Vec<u8> {
    image_of(&plain_sections(&Metadata::new("plain", "1").to_json()))
}

/// Makes the checksum fit the bytes, if the layout can be followed at all.
pub(crate) fn fix_crc(image: &mut [u8]) {
    if let Ok(description) = Description::read(Cursor::new(&image)) {
        put(image, CRC_OFFSET, &description.crc.to_be_bytes());
    }
}

pub(crate) fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The plain image with bytes replaced, and a checksum that fits all the same.
pub(crate) fn plain_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = plain_image();
    put(&mut image, offset, bytes);
    fix_crc(&mut image);
    image
}

/// Where the section of that index starts.
pub(crate) fn section_offset(image: &[u8], index: usize) -> usize {
    let field = OFFSETS + 8 * index;
    u64::from_be_bytes(image[field..field + 8].try_into().unwrap()) as usize
}

pub(crate) fn boot(image: &[u8]) -> Result<BootImage, Error> {
    BootImage::read(Cursor::new(image))
}

pub(crate) fn describe(image: &[u8]) -> Result<Description, Error> {
    Description::read(Cursor::new(image))
}

/// The error with which the machine refuses an image.
pub(crate) fn refusal(image: &[u8]) -> Error {
    match boot(image) {
        Ok(_) => panic!("the image was not refused"),
        Err(error) => error,
    }
}

/// A generator of repeatable bytes (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
