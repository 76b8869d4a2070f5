//! An image as the machine boots it.

use std::io::{self, Read, Seek};
use std::ops::Range;

use crate::error::Error;
use crate::header::Header;
use crate::layout::{Section, Verdict};
use crate::measure::{Measured, Measurements, Measurer};
use crate::metadata::Metadata;
use crate::signature::SigningEntry;
use crate::stream::{Contents, LargeParts};
use crate::warning::Warning;

/// An image that has passed every check, taken apart.
///
/// The parts are the machine's to take; [`measurements`](Self::measurements) does not depend on them any more.
///
/// ```
/// # let file = eif::Writer::new(b"a bzImage".to_vec(), "console=ttyS0").ramdisk(vec![1, 2]).ramdisk(vec![3]).to_vec()?;
/// let mut image = eif::BootImage::read(std::io::Cursor::new(file))?;
/// assert_eq!((image.initrd.as_slice(), image.ramdisks.len()), (&[1, 2, 3][..], 2));
///
/// // An initrd of the user's is measured, words of the user's are not.
/// let before = image.measurements();
/// image.append_ramdisk(&b"a cpio archive"[..])?;
/// assert_ne!(image.measurements().pcr0, before.pcr0);
/// assert_eq!(image.append_cmdline("quiet"), Some(eif::Warning::CmdlineNotMeasured));
/// assert_eq!(image.cmdline, "console=ttyS0 quiet");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BootImage {
    /// The image's header.
    pub header: Header,
    /// The sections in the order of the header's table.
    pub sections: Vec<Section>,
    /// The kernel, for x86-64 a bzImage.
    pub kernel: Vec<u8>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The ramdisks, concatenated without padding. The kernel gets them as one.
    pub initrd: Vec<u8>,
    /// Where each ramdisk lies in [`initrd`](Self::initrd).
    pub ramdisks: Vec<Range<usize>>,
    /// The metadata section as it stands in the image.
    pub metadata_json: Option<Vec<u8>>,
    /// The metadata, if there is a section and it can be read.
    pub metadata: Option<Metadata>,
    /// The signature section as it stands in the image.
    pub signature: Option<Vec<u8>>,
    /// What the signature section says first. The signature has not been verified.
    pub signing_entry: Option<SigningEntry>,
    /// What is odd about the image.
    pub warnings: Vec<Warning>,
    measurer: Measurer,
}

impl BootImage {
    /// Reads an image of version 4 or later for x86-64, and refuses it at the first rule that it breaks.
    ///
    /// The file is read once, from front to back if the sections lie in the order of the table. What is allocated is at
    /// most the file's size and a constant.
    pub fn read<R: Read + Seek>(mut reader: R) -> Result<Self, Error> {
        let Contents {
            layout,
            kernel,
            cmdline,
            initrd,
            ramdisks,
            metadata_json,
            metadata,
            signature,
            signing_entry,
            measurer,
            crc: _,
        } = Contents::read(&mut reader, LargeParts::Keep, &mut Verdict::Refuse)?;
        Ok(Self {
            header: layout.header,
            sections: layout.sections,
            kernel,
            cmdline,
            initrd,
            ramdisks,
            metadata_json,
            metadata,
            signature,
            signing_entry,
            warnings: layout.warnings,
            measurer,
        })
    }

    /// The image's measurements, with the ramdisks that were appended.
    pub fn measurements(&self) -> Measurements {
        self.measurer.measurements()
    }

    /// Appends the user's own initrd to the ramdisks, as QEMU does for `-initrd`: up to the reader's end, and measured as
    /// one more ramdisk, so it changes PCR0 and PCR2. Returns its size in bytes.
    ///
    /// If reading fails, the image is left as it was.
    pub fn append_ramdisk(&mut self, mut initrd: impl Read) -> io::Result<usize> {
        let start = self.initrd.len();
        let size = initrd.read_to_end(&mut self.initrd).inspect_err(|_| self.initrd.truncate(start))?;
        self.measurer.begin_ramdisk();
        self.measurer.update(Measured::Ramdisk, self.initrd.get(start..).unwrap_or_default());
        self.ramdisks.push(start..self.initrd.len());
        Ok(size)
    }

    /// Appends the user's own words to the command line, after one space, as QEMU does for `-append`. They are not
    /// measured, which is what the returned warning says. Nothing appended, nothing to warn of.
    #[must_use = "the user should be told that the appended command line is not measured"]
    pub fn append_cmdline(&mut self, words: &str) -> Option<Warning> {
        if words.is_empty() {
            return None;
        }
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
        Some(Warning::CmdlineNotMeasured)
    }
}
