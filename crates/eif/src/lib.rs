//! The Enclave Image Format (EIF) of AWS Nitro Enclaves: read, check, measure, write.
//!
//! Modelled is version 4 of the format as the public specification and the `aws-nitro-enclaves-image-format` crate,
//! 0.8, define it; versions 2 and 3 are described, but not booted. There are two ways to read an image:
//!
//! - [`BootImage::read`] is what the machine does: it refuses whatever breaks a rule and returns the parts to boot;
//! - [`Description::read`] reads as much as can be read, keeps none of the large parts, and collects the reasons for
//!   which the machine would refuse.
//!
//! Both go over the file once, from anything that is `Read + Seek`, and allocate nothing that the file's real size does
//! not bear out. The checksum and the measurements are taken while the bytes pass by. [`Builder`] makes images, of whatever size, and
//! [`Writer`] those whose parts are in memory.
//!
//! [`resign`] replaces a signature, [`judge`] says what other readers make of an image. With the feature `signing`, the module
//! `signing` makes and verifies signatures, and `nitro_cli` has the objects that AWS's command prints. Without it, a signature
//! section is kept as bytes, and its certificate is measured. With the feature `ramdisks`, `cpio` reads and writes archives,
//! `ramdisks` makes those of an image, of a directory or of what `containers` reads without holding them in memory, and `diff` says why two images measure
//! differently.
//!
//! ```
//! let image = eif::Writer::new(b"a bzImage".to_vec(), "console=ttyS0")
//!     .metadata(eif::Metadata::new("demo", "1.0").to_json())
//!     .ramdisk(b"a cpio archive".to_vec())
//!     .to_vec()?;
//! assert!(eif::is_eif(&image));
//!
//! let booted = eif::BootImage::read(std::io::Cursor::new(&image))?;
//! assert_eq!(booted.cmdline, "console=ttyS0");
//! assert_eq!(booted.measurements().pcr8, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

mod boot_image;
mod builder;
#[cfg(feature = "ramdisks")]
mod compression;
#[cfg(feature = "ramdisks")]
pub mod containers;
#[cfg(feature = "ramdisks")]
mod contents;
#[cfg(feature = "ramdisks")]
pub mod cpio;
mod description;
#[cfg(feature = "ramdisks")]
pub mod diff;
mod error;
mod feed;
mod header;
mod layout;
mod measure;
mod metadata;
#[cfg(feature = "signing")]
pub mod nitro_cli;
mod output;
mod pem;
#[cfg(feature = "ramdisks")]
pub mod ramdisks;
mod readers;
mod resign;
mod sha384;
mod signature;
#[cfg(feature = "signing")]
pub mod signing;
mod stream;
#[cfg(feature = "ramdisks")]
mod tree;
mod warning;
mod writer;

pub use boot_image::BootImage;
pub use builder::{Builder, Unsigned};
pub use description::Description;
pub use error::Error;
pub use header::{
    CRC_OFFSET, CURRENT_VERSION, FLAG_AARCH64, HEADER_SIZE, Header, MAGIC, MAX_SECTIONS, SECTION_HEADER_SIZE,
    SectionKind, is_eif,
};
pub use layout::Section;
pub use measure::{Digest, Measurements, extend, pcr_of};
pub use metadata::{BuildMetadata, Metadata, rfc3339};
pub use readers::{Judgement, QEMU, judge};
pub use resign::{ResignError, resign};
pub use signature::{MAX_SIGNATURE_SIZE, SignatureError, SigningEntry};
pub use warning::Warning;
pub use writer::{WriteError, Writer};
