//! Every error and every warning of the crate, with its full text and its hint, in `golden/messages.txt`. A variant that is not
//! listed here does not compile, one that is not made here fails the test, and so does an enum of errors that is not here;
//! `cargo xtask bless` rewrites the texts.

#![cfg(all(feature = "ramdisks", feature = "signing"))]

#[macro_use]
mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use eif::containers::{ContainerError, LayerError, Platform};
use eif::cpio::CpioError;
use eif::ramdisks::RamdiskError;
use eif::signing::{CertificateError, CoseError, Curve, KeyError};
use eif::{Error, ResignError, SectionKind, SignatureError, Warning, WriteError};

use support::Variants;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/messages.txt");

fn io_error() -> io::Error {
    io::Error::other("what the system says")
}

variants!(SignatureError: TooLong Cbor Empty Pem);
variants!(WriteError: NoRamdisk TooManySections Read Io);
variants!(ResignError: Image Version Full Sign Write);
variants!(KeyError: Pem Encrypted Curve Signature Mismatch);
variants!(CertificateError: Pem Der Key Issuer Algorithm Signature);
variants!(CoseError: Decode Algorithm Payload OtherKey Certificate Key Section);
variants!(CpioError: Read Magic Number Name TooManyEntries);
variants!(RamdiskError: Read Changed Special LineBreak Write);
variants!(ContainerError:
    Read Form Compressed Missing Part Json Digest Damaged Choice Platform Layers Layer NoCommand);
variants!(LayerError: Read Outside Path Loop BelowFile HardLink Kind TooLarge TooMany);

/// The texts of one enum.
fn texts<T: Variants + ToString>(all: &mut String, values: &[(T, Option<&str>)]) {
    let made: BTreeSet<&str> = values.iter().map(|(value, _)| value.variant()).collect();
    let missing: Vec<_> = T::ALL.iter().filter(|name| !made.contains(*name)).collect();
    assert!(missing.is_empty(), "variants of {} that are not made here: {missing:?}", T::NAME);
    for (value, hint) in values {
        let _ = writeln!(all, "{}::{}: {}", T::NAME, value.variant(), value.to_string());
        if let Some(hint) = hint {
            let _ = writeln!(all, "  hint: {hint}");
        }
    }
}

fn image_errors() -> Vec<Error> {
    let (index, kind, offset) = (2, SectionKind::Ramdisk, 0x1000);
    let stale =
        |kind| Error::StaleSize { index, kind, offset: 0x12c, section_offset: offset, in_header: 700, in_section: 900 };
    vec![
        Error::Read { offset, source: io_error() },
        Error::ShortHeader { found: 4 },
        Error::Magic { found: *b"\x7fELF" },
        Error::Version { found: 3 },
        Error::Architecture { found: 1 },
        Error::TooManySections { found: 33 },
        Error::SectionInHeader { index, offset: 0x20 },
        Error::SectionOutsideFile { index, offset, file_size: 0x800 },
        Error::ShortSectionHeader { index, offset, found: 5 },
        stale(SectionKind::Signature),
        stale(kind),
        Error::ShortSection { index, kind, offset, found: 10, expected: 20 },
        Error::Overlap {
            first: 1,
            first_kind: SectionKind::Kernel,
            first_end: 0x1010,
            second: index,
            second_kind: kind,
            offset,
        },
        Error::SecondSection { kind: SectionKind::Kernel, first: 0, index, offset },
        Error::MissingSection { kind: SectionKind::Kernel, sections: 3 },
        Error::MissingSection { kind, sections: 3 },
        Error::Crc { found: 1, expected: 0xffff_0000 },
        Error::CmdlineNotText { offset, found: 0xff },
        Error::Signature { index, offset, source: SignatureError::Empty },
        Error::OutOfMemory { index, kind, size: 1 << 40 },
    ]
}

fn warnings() -> Vec<Warning> {
    let index = 2;
    vec![
        Warning::HeaderFlags { bits: 0x240 },
        Warning::NewerVersion { version: 5 },
        Warning::Reserved { offset: 0x18, found: 9 },
        Warning::SectionFlags { index, flags: 1 },
        Warning::SkippedSection { index, kind: SectionKind::Unknown(9) },
        Warning::SectionNewerThanVersion { index, kind: SectionKind::Metadata, version: 3 },
        Warning::TableOrder { index },
        Warning::Gap { offset: 0x1000, size: 16, trailing: false },
        Warning::Gap { offset: 0x1000, size: 16, trailing: true },
        Warning::RamdiskBeforeKernel { index },
        Warning::NoMetadata,
        Warning::MetadataUnreadable { reason: "expected value at line 1 column 1".to_owned() },
        Warning::Superseded { kind: SectionKind::Signature, index },
        Warning::CmdlineNotMeasured,
    ]
}

fn container_errors() -> Vec<ContainerError> {
    let (path, name) = (Path::new("app.tar").to_owned(), "blobs/sha256/12".to_owned());
    let choice = |name: Option<&str>, found: &str| ContainerError::Choice {
        platform: Platform::Amd64,
        name: name.map(str::to_owned),
        found: found.to_owned(),
        all: "a, b".to_owned(),
    };
    vec![
        ContainerError::Read { path: path.clone(), source: io_error() },
        ContainerError::Form { path: path.clone() },
        ContainerError::Compressed { path },
        ContainerError::Missing { name: name.clone() },
        ContainerError::Part { name: name.clone(), source: io_error() },
        ContainerError::Json { name: name.clone(), reason: "expected value at line 1 column 1".to_owned() },
        ContainerError::Digest { found: "md5:12".to_owned() },
        ContainerError::Damaged { name: name.clone(), found: "sha256:34".to_owned(), expected: "sha256:12".to_owned() },
        choice(None, "a, b"),
        choice(Some("c"), ""),
        ContainerError::Platform { found: "linux/arm64".to_owned(), expected: Platform::Amd64 },
        ContainerError::Layers { layers: 2, expected: 3 },
        ContainerError::Layer { number: 1, name: name.clone(), source: LayerError::TooMany },
        ContainerError::Layer { number: 1, name, source: LayerError::TooLarge { limit: 4096 } },
        ContainerError::NoCommand,
    ]
}

fn layer_errors() -> Vec<LayerError> {
    let path = "etc/file".to_owned();
    vec![
        LayerError::Read(io_error()),
        LayerError::Outside { path: path.clone() },
        LayerError::Path { path: path.clone(), reason: "it is too long" },
        LayerError::Loop { path: path.clone() },
        LayerError::BelowFile { path: path.clone(), above: "etc".to_owned() },
        LayerError::HardLink { path: path.clone(), target: "gone".to_owned() },
        LayerError::Kind { path, kind: 'Z' },
        LayerError::TooLarge { limit: 4096 },
        LayerError::TooMany,
    ]
}

fn plain<T>(values: Vec<T>) -> Vec<(T, Option<&'static str>)> {
    values.into_iter().map(|value| (value, None)).collect()
}

fn all_texts() -> String {
    let mut all = String::new();
    let hinted: Vec<_> = image_errors()
        .into_iter()
        .map(|error| {
            let hint = error.hint();
            (error, hint)
        })
        .collect();
    texts(&mut all, &hinted);
    texts(&mut all, &plain(warnings()));
    let signature = vec![
        SignatureError::TooLong { found: 40000 },
        SignatureError::Cbor { reason: "invalid type".to_owned() },
        SignatureError::Empty,
        SignatureError::Pem { reason: "there is no BEGIN CERTIFICATE line" },
    ];
    texts(&mut all, &plain(signature));
    let write = vec![
        WriteError::NoRamdisk,
        WriteError::TooManySections { found: 33 },
        WriteError::Read { kind: SectionKind::Ramdisk, source: io_error() },
        WriteError::Io(io_error()),
    ];
    texts(&mut all, &plain(write));
    let resign = vec![
        ResignError::Image(Error::ShortHeader { found: 4 }),
        ResignError::Version { version: 2 },
        ResignError::Full,
        ResignError::Sign(Box::new(io_error())),
        ResignError::Write(io_error()),
    ];
    texts(&mut all, &plain(resign));
    let key = vec![
        KeyError::Pem { reason: "there is no BEGIN PRIVATE KEY line" },
        KeyError::Encrypted,
        KeyError::Curve,
        KeyError::Signature { curve: Curve::P384, found: 10 },
        KeyError::Mismatch,
    ];
    texts(&mut all, &plain(key));
    let certificate = vec![
        CertificateError::Pem { reason: "there is no BEGIN CERTIFICATE line" },
        CertificateError::Der { reason: "unexpected tag".to_owned() },
        CertificateError::Key { found: "RSA".to_owned() },
        CertificateError::Issuer { expected: "commonName=a".to_owned(), found: "commonName=b".to_owned() },
        CertificateError::Algorithm { found: "ED25519".to_owned() },
        CertificateError::Signature(KeyError::Mismatch),
    ];
    texts(&mut all, &plain(certificate));
    let cose = vec![
        CoseError::Decode { reason: "it ends early".to_owned() },
        CoseError::Algorithm { found: "missing".to_owned(), curve: Curve::P521 },
        CoseError::Payload { reason: "it ends early".to_owned() },
        CoseError::OtherKey,
        CoseError::Certificate(CertificateError::Key { found: "RSA".to_owned() }),
        CoseError::Key(KeyError::Mismatch),
        CoseError::Section(SignatureError::Empty),
    ];
    texts(&mut all, &plain(cose));
    let cpio = vec![
        CpioError::Read(io_error()),
        CpioError::Magic { offset: 0x70, found: *b"070707" },
        CpioError::Number { offset: 0x70, field: 6 },
        CpioError::Name { offset: 0x70, found: 9000 },
        CpioError::TooManyEntries,
    ];
    texts(&mut all, &plain(cpio));
    let ramdisk = vec![
        RamdiskError::Read { path: "etc".into(), source: io_error() },
        RamdiskError::Changed { path: "etc/passwd".into() },
        RamdiskError::Special { path: "dev/null".into() },
        RamdiskError::LineBreak { word: "a\nb".to_owned() },
        RamdiskError::Write(io_error()),
    ];
    texts(&mut all, &plain(ramdisk));
    let hinted: Vec<_> = container_errors()
        .into_iter()
        .map(|error| {
            let hint = error.hint();
            (error, hint)
        })
        .collect();
    texts(&mut all, &hinted);
    texts(&mut all, &plain(layer_errors()));
    all
}

#[test]
fn every_message_has_its_text() {
    let all = all_texts();
    if std::env::var_os("VMM_BLESS").is_some() {
        std::fs::write(GOLDEN, &all).unwrap();
    }
    assert_eq!(all, std::fs::read_to_string(GOLDEN).unwrap_or_default());
}

/// The names of the enums in these sources that are errors by derivation.
fn error_enums(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            error_enums(&path, names);
            continue;
        }
        let code = std::fs::read_to_string(&path).unwrap();
        let mut derived = false;
        for line in code.lines() {
            let name = line.strip_prefix("pub enum ").and_then(|rest| rest.strip_suffix(" {"));
            names.extend(name.filter(|_| derived).map(str::to_owned));
            derived = (line.starts_with("#[derive(") && line.contains("Error")) || (derived && line.starts_with("#["));
        }
    }
}

#[test]
fn every_enum_of_errors_has_its_texts() {
    let mut names = BTreeSet::new();
    error_enums(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    let all = all_texts();
    let shown: BTreeSet<&str> = all.lines().filter_map(|line| Some(line.split_once("::")?.0)).collect();
    let missing: Vec<_> = names.iter().filter(|name| !shown.contains(name.as_str())).collect();
    assert!(names.contains("LayerError"), "the search finds {names:?}");
    assert!(missing.is_empty(), "{missing:?}");
}
