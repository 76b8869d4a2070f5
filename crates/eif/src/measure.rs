//! Measurements: what the hypervisor writes into the PCRs, computed while the sections pass by.

use std::io::{self, Read};

use serde::{Serialize, Serializer};

use crate::header::SectionKind;
use crate::sha384::Sha384;

/// A SHA-384 digest, the value of one PCR.
pub type Digest = [u8; 48];

/// The value of a PCR after `data` was extended into `old`: `SHA384(old || data)`.
pub fn extend(old: &Digest, data: &[u8]) -> Digest {
    Sha384::digest(&[old, data].concat())
}

/// The PCR of a whole file, as `nitro-cli pcr --input` has it: the file's digest, extended into 48 zero bytes.
///
/// ```
/// // PCR2 of an image with one ramdisk is that of an empty file.
/// let image = eif::Writer::new(b"a bzImage".to_vec(), "").ramdisk(vec![1]);
/// assert_eq!(image.measurements().pcr2, eif::pcr_of(&b""[..])?);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn pcr_of(mut file: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha384::default();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(extend(&[0; 48], &hasher.finish())),
            Ok(size) => hasher.update(&buffer[..size]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}

/// The measurements of an image. Each is a digest extended once into 48 zero bytes.
///
/// Serialized, it is the object of upper-case names and lower-case hex that AWS's tools print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub struct Measurements {
    /// PCR0: kernel, command line and all ramdisks, without their section headers.
    #[serde(serialize_with = "as_hex")]
    pub pcr0: Digest,
    /// PCR1: kernel, command line and the first ramdisk.
    #[serde(serialize_with = "as_hex")]
    pub pcr1: Digest,
    /// PCR2: the ramdisks after the first; if there are none, the digest of nothing, which is not zero.
    #[serde(serialize_with = "as_hex")]
    pub pcr2: Digest,
    /// PCR8: the signing certificate; `None` for an unsigned image, whose PCR8 reads zero.
    #[serde(serialize_with = "as_hex_if_some", skip_serializing_if = "Option::is_none")]
    pub pcr8: Option<Digest>,
}

fn hex(digest: &Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_hex<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(digest))
}

fn as_hex_if_some<S: Serializer>(digest: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
    match digest {
        Some(digest) => serializer.serialize_str(&hex(digest)),
        None => serializer.serialize_none(),
    }
}

/// Takes the measurements: two digests that have nothing to do with one another, so that each may have a thread of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measurer {
    image: ImageDigest,
    application: ApplicationDigest,
    certificate: Option<Digest>,
}

/// What a section's bytes are measured as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    /// A kernel or a command line.
    Boot,
    /// A ramdisk.
    Ramdisk,
}

impl Measured {
    /// What the data of a section is measured as; nothing if it is not.
    pub(crate) fn of(kind: SectionKind) -> Option<Self> {
        match kind {
            SectionKind::Kernel | SectionKind::Cmdline => Some(Self::Boot),
            SectionKind::Ramdisk => Some(Self::Ramdisk),
            _ => None,
        }
    }
}

/// A digest of some of an image's bytes.
pub(crate) trait Part {
    /// Starts the next ramdisk.
    fn begin_ramdisk(&mut self);

    /// Takes the next bytes, or leaves them.
    fn update(&mut self, measured: Measured, bytes: &[u8]);
}

/// What PCR0 and PCR1 are made of. They are the same digest until the second ramdisk, so up to there it is computed once.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageDigest {
    all: Sha384,
    /// PCR1's own state, from the second ramdisk on.
    bootstrap: Option<Sha384>,
    ramdisks: usize,
}

impl Part for ImageDigest {
    fn begin_ramdisk(&mut self) {
        self.ramdisks += 1;
        if self.ramdisks == 2 {
            self.bootstrap = Some(self.all.clone());
        }
    }

    fn update(&mut self, measured: Measured, bytes: &[u8]) {
        self.all.update(bytes);
        // A kernel or a command line behind the ramdisks, which no builder writes.
        if let (Measured::Boot, Some(bootstrap)) = (measured, &mut self.bootstrap) {
            bootstrap.update(bytes);
        }
    }
}

/// What PCR2 is made of: the ramdisks after the first.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApplicationDigest {
    digest: Sha384,
    ramdisks: usize,
}

impl Part for ApplicationDigest {
    fn begin_ramdisk(&mut self) {
        self.ramdisks += 1;
    }

    fn update(&mut self, measured: Measured, bytes: &[u8]) {
        if measured == Measured::Ramdisk && self.ramdisks > 1 {
            self.digest.update(bytes);
        }
    }
}

impl Measurer {
    /// Both digests, for whoever goes on with them apart.
    pub(crate) fn parts(&self) -> (ImageDigest, ApplicationDigest) {
        (self.image.clone(), self.application.clone())
    }

    /// The measurer whose digests were taken apart from one another.
    pub(crate) fn of(image: ImageDigest, application: ApplicationDigest) -> Self {
        Self { image, application, certificate: None }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, measured: Measured, bytes: &[u8]) {
        self.image.update(measured, bytes);
        self.application.update(measured, bytes);
    }

    /// Starts the next ramdisk.
    pub(crate) fn begin_ramdisk(&mut self) {
        self.image.begin_ramdisk();
        self.application.begin_ramdisk();
    }

    /// Takes the signing certificate, DER.
    pub(crate) fn set_certificate(&mut self, der: &[u8]) {
        self.certificate = Some(Sha384::digest(der));
    }

    /// The measurements of everything so far.
    pub(crate) fn measurements(&self) -> Measurements {
        let pcr = |hasher: &Sha384| extend(&[0; 48], &hasher.clone().finish());
        Measurements {
            pcr0: pcr(&self.image.all),
            pcr1: pcr(self.image.bootstrap.as_ref().unwrap_or(&self.image.all)),
            pcr2: pcr(&self.application.digest),
            pcr8: self.certificate.map(|digest| extend(&[0; 48], &digest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pcr(parts: &[&[u8]]) -> Digest {
        let digest = Sha384::digest(&parts.concat());
        extend(&[0; 48], &digest)
    }

    #[test]
    fn one_ramdisk_leaves_pcr2_the_digest_of_nothing() {
        let mut measurer = Measurer::default();
        measurer.update(Measured::Boot, b"kernel");
        measurer.update(Measured::Boot, b"cmdline");
        measurer.begin_ramdisk();
        measurer.update(Measured::Ramdisk, b"boot");
        let measured = measurer.measurements();
        assert_eq!(measured.pcr0, pcr(&[b"kernel", b"cmdline", b"boot"]));
        assert_eq!(measured.pcr1, measured.pcr0);
        assert_eq!(measured.pcr2, pcr(&[]));
        assert_eq!(measured.pcr8, None);
    }

    #[test]
    fn later_ramdisks_go_into_pcr0_and_pcr2_only() {
        let mut measurer = Measurer::default();
        measurer.update(Measured::Boot, b"kernel");
        for ramdisk in [b"1", b"2", b"3"] {
            measurer.begin_ramdisk();
            measurer.update(Measured::Ramdisk, ramdisk);
        }
        // A command line behind the ramdisks is measured where it stands.
        measurer.update(Measured::Boot, b"cmdline");
        let measured = measurer.measurements();
        assert_eq!(measured.pcr0, pcr(&[b"kernel", b"123", b"cmdline"]));
        assert_eq!(measured.pcr1, pcr(&[b"kernel", b"1", b"cmdline"]));
        assert_eq!(measured.pcr2, pcr(&[b"23"]));
    }

    #[test]
    fn certificate_is_hashed_then_extended() {
        let mut measurer = Measurer::default();
        measurer.set_certificate(b"der");
        assert_eq!(measurer.measurements().pcr8, Some(pcr(&[b"der"])));
    }

    #[test]
    fn measurements_serialize_as_aws_prints_them() {
        let measured = Measurements { pcr0: [0xab; 48], pcr1: [0; 48], pcr2: [0; 48], pcr8: None };
        let json = serde_json::to_value(measured).unwrap();
        assert_eq!(json["PCR0"], "ab".repeat(48));
        assert!(json.get("PCR8").is_none());
    }
}
