//! Why two images measure differently, down to the file inside a ramdisk.
//!
//! Sections are compared in pairs: the kernels, the command lines, the first ramdisks, the second, and so on. A ramdisk whose bytes
//! differ is unpacked and compared by file; what cannot be unpacked is compared as a whole. Only the digest of each file is kept.
//!
//! Deliberately missing: what differs within a file, and files that were renamed (one is gone, another is new).

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cpio;
use crate::description::Description;
use crate::error::Error;
use crate::header::SectionKind;
use crate::layout::Section;

/// How two images differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Comparison {
    /// Whether every register is the same, PCR8 included.
    pub same_measurements: bool,
    /// Each register.
    pub registers: Vec<Register>,
    /// Everything that differs, in the order of the sections.
    pub differences: Vec<Difference>,
}

/// A register of two images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Register {
    /// Such as `PCR0`.
    pub name: &'static str,
    /// Whether it is the same.
    pub same: bool,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Difference {
    /// The part of the image, such as `ramdisk 1`.
    pub part: String,
    /// The file in it, if it is a ramdisk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What of it differs, such as `content` or `owner`.
    pub what: &'static str,
    /// How it is in the first image; empty if it is not there.
    pub first: String,
    /// How it is in the second.
    pub second: String,
    /// The registers that it is measured into.
    pub measured_into: Vec<&'static str>,
}

/// Compares two images, given with their descriptions. What differs of them is read twice.
///
/// ```
/// use std::io::Cursor;
///
/// let image = |text: &[u8]| -> Result<Cursor<Vec<u8>>, Box<dyn std::error::Error>> {
///     let mut ramdisk = eif::cpio::Writer::new(Vec::new(), 0);
///     ramdisk.file("motd", 0o644, text)?;
///     Ok(Cursor::new(eif::Writer::new(b"a bzImage".to_vec(), "").ramdisk(ramdisk.finish()?).to_vec()?))
/// };
/// let (mut a, mut b) = (image(b"hello")?, image(b"goodbye")?);
/// let descriptions = [eif::Description::read(&mut a)?, eif::Description::read(&mut b)?];
/// let comparison = eif::diff::compare(&descriptions, a, b)?;
/// assert!(!comparison.same_measurements);
/// let [difference] = comparison.differences.as_slice() else { panic!("one file differs") };
/// assert_eq!((difference.file.as_deref(), difference.what), (Some("motd"), "content"));
/// assert_eq!(difference.measured_into, ["PCR0", "PCR1"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compare<A: Read + Seek, B: Read + Seek>(
    descriptions: &[Description; 2],
    mut first: A,
    mut second: B,
) -> Result<Comparison, Error> {
    let mut differences = Differences::default();
    differences.headers(descriptions);
    for kind in [SectionKind::Kernel, SectionKind::Cmdline] {
        differences.small_part(kind, descriptions, &mut first, &mut second)?;
    }
    let [ramdisks_a, ramdisks_b] = descriptions.each_ref().map(|description| {
        let ramdisks = description.sections.iter().filter(|section| section.kind == SectionKind::Ramdisk);
        ramdisks.copied().collect::<Vec<Section>>()
    });
    for number in 0..ramdisks_a.len().max(ramdisks_b.len()) {
        let pair = (ramdisks_a.get(number), ramdisks_b.get(number));
        differences.ramdisk(number, pair, &mut first, &mut second)?;
    }
    differences.unmeasured(descriptions);
    let [a, b] = descriptions.each_ref().map(|description| description.measurements);
    let register = |name, same| Register { name, same };
    let registers = vec![
        register("PCR0", a.pcr0 == b.pcr0),
        register("PCR1", a.pcr1 == b.pcr1),
        register("PCR2", a.pcr2 == b.pcr2),
        register("PCR8", a.pcr8 == b.pcr8),
    ];
    let same_measurements = registers.iter().all(|register| register.same);
    Ok(Comparison { same_measurements, registers, differences: differences.0 })
}

#[derive(Debug, Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn push(&mut self, part: &str, what: &'static str, first: String, second: String, into: &[&'static str]) {
        if first != second {
            let (part, measured_into) = (part.to_owned(), into.to_vec());
            self.0.push(Difference { part, file: None, what, first, second, measured_into });
        }
    }

    fn headers(&mut self, [a, b]: &[Description; 2]) {
        self.push("header", "version", a.header.version.to_string(), b.header.version.to_string(), &[]);
        let flags = |description: &Description| format!("{:#06x}", description.header.flags);
        self.push("header", "flags", flags(a), flags(b), &[]);
        let order = |description: &Description| {
            let kinds = description.sections.iter().map(|section| section.kind);
            let measured =
                |kind: &SectionKind| matches!(kind, SectionKind::Kernel | SectionKind::Cmdline | SectionKind::Ramdisk);
            kinds.filter(measured).map(|kind| kind.to_string()).collect::<Vec<_>>().join(", ")
        };
        self.push("header", "order of the sections", order(a), order(b), &["PCR0", "PCR1"]);
    }

    fn small_part<A: Read + Seek, B: Read + Seek>(
        &mut self,
        kind: SectionKind,
        [a, b]: &[Description; 2],
        first: &mut A,
        second: &mut B,
    ) -> Result<(), Error> {
        let section = |description: &Description| description.sections.iter().find(|s| s.kind == kind).copied();
        let (into, part) = (&["PCR0", "PCR1"], kind.to_string());
        if kind == SectionKind::Cmdline && a.cmdline != b.cmdline {
            self.push(&part, "text", a.cmdline.clone(), b.cmdline.clone(), into);
            return Ok(());
        }
        let (digest_a, digest_b) = (summary(first, section(a).as_ref())?, summary(second, section(b).as_ref())?);
        self.push(&part, "content", digest_a, digest_b, into);
        Ok(())
    }

    fn ramdisk<A: Read + Seek, B: Read + Seek>(
        &mut self,
        number: usize,
        (a, b): (Option<&Section>, Option<&Section>),
        first: &mut A,
        second: &mut B,
    ) -> Result<(), Error> {
        let into: &[&'static str] = if number == 0 { &["PCR0", "PCR1"] } else { &["PCR0", "PCR2"] };
        let part = format!("ramdisk {number}");
        let (digest_a, digest_b) = (summary(first, a)?, summary(second, b)?);
        let (Some(a), Some(b)) = (a, b) else {
            self.push(&part, "content", digest_a, digest_b, into);
            return Ok(());
        };
        if digest_a == digest_b {
            return Ok(());
        }
        match (listing(first, a)?, listing(second, b)?) {
            (Ok(a), Ok(b)) => {
                let before = self.0.len();
                self.files(&part, &a, &b, into);
                if self.0.len() == before {
                    let (a, b) = if a.order == b.order {
                        (digest_a, digest_b)
                    } else {
                        ("another order of the files".to_owned(), String::new())
                    };
                    self.push(&part, "form of the archive", a, b, into);
                }
            }
            (Err(reason), _) | (_, Err(reason)) => {
                self.push(&part, "content", format!("{digest_a} ({reason})"), digest_b, into);
            }
        }
        Ok(())
    }

    fn files(&mut self, part: &str, a: &Listing, b: &Listing, into: &[&'static str]) {
        let mut names: Vec<&Vec<u8>> = a.files.keys().chain(b.files.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let before = self.0.len();
            match (a.files.get(name), b.files.get(name)) {
                (Some(a), Some(b)) => {
                    self.push(part, "mode", mode(a), mode(b), into);
                    let owner = |file: &File| format!("{}:{}", file.entry.uid, file.entry.gid);
                    self.push(part, "owner", owner(a), owner(b), into);
                    self.push(part, "time", a.entry.mtime.to_string(), b.entry.mtime.to_string(), into);
                    let device = |file: &File| format!("{:?}", file.entry.device);
                    self.push(part, "device", device(a), device(b), into);
                    self.push(part, "content", content(a), content(b), into);
                }
                (a, b) => {
                    let state = |file: Option<&File>| {
                        file.map_or(String::new(), |file| format!("{}, {}", mode(file), content(file)))
                    };
                    self.push(part, "existence", state(a), state(b), into);
                }
            }
            for difference in self.0.iter_mut().skip(before) {
                difference.file = Some(String::from_utf8_lossy(name).into_owned());
            }
        }
    }

    fn unmeasured(&mut self, [a, b]: &[Description; 2]) {
        let text =
            |bytes: &Option<Vec<u8>>| bytes.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        self.push("metadata", "text", text(&a.metadata_json), text(&b.metadata_json), &[]);
        let certificate = |description: &Description| match &description.signing_entry {
            Some(entry) => short(&Sha256::digest(&entry.certificate_der)),
            None => String::new(),
        };
        self.push("signature", "certificate", certificate(a), certificate(b), &["PCR8"]);
        if certificate(a) == certificate(b) {
            let signature = |description: &Description| match &description.signature {
                Some(section) => short(&Sha256::digest(section)),
                None => String::new(),
            };
            self.push("signature", "content", signature(a), signature(b), &[]);
        }
    }
}

/// The files of a ramdisk. Where a name occurs twice, the last counts, as it does when the kernel unpacks them.
#[derive(Debug, Default)]
struct Listing {
    files: BTreeMap<Vec<u8>, File>,
    order: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct File {
    entry: cpio::Entry,
    digest: [u8; 32],
}

/// Unpacks a ramdisk as far as names and digests; the inner error is why that cannot be done.
fn listing<R: Read + Seek>(image: &mut R, section: &Section) -> Result<Result<Listing, String>, Error> {
    let offset = section.data_offset();
    image.seek(SeekFrom::Start(offset)).map_err(|source| Error::Read { offset, source })?;
    let mut listing = Listing::default();
    let unpacked = cpio::read_ramdisk(image.take(section.size), |entry, data| {
        let mut hasher = Sha256::new();
        update(&mut hasher, data)?;
        listing.order.push(entry.name.clone());
        listing.files.insert(entry.name.clone(), File { entry, digest: hasher.finalize().into() });
        Ok(())
    });
    Ok(match unpacked {
        Ok(()) => Ok(listing),
        Err(error) => Err(error.to_string()),
    })
}

/// The size and digest of a section; nothing if there is none.
fn summary<R: Read + Seek>(image: &mut R, section: Option<&Section>) -> Result<String, Error> {
    let Some(section) = section else { return Ok(String::new()) };
    let offset = section.data_offset();
    let mut hasher = Sha256::new();
    image
        .seek(SeekFrom::Start(offset))
        .and_then(|_| update(&mut hasher, &mut image.take(section.size)))
        .map_err(|source| Error::Read { offset, source })?;
    Ok(format!("{} bytes, sha256 {}", section.size, short(&hasher.finalize())))
}

fn update(hasher: &mut Sha256, data: &mut dyn Read) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match data.read(&mut buffer)? {
            0 => return Ok(()),
            size => hasher.update(&buffer[..size]),
        }
    }
}

fn mode(file: &File) -> String {
    format!("{:06o}", file.entry.mode)
}

fn content(file: &File) -> String {
    format!("{} bytes, sha256 {}", file.entry.size, short(&file.digest))
}

/// As much of a digest as tells two files apart by eye and in practice.
fn short(digest: &[u8]) -> String {
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
