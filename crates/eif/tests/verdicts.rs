//! What is said of images that are odd or wrong, by each reader, and of signatures, in `golden/verdicts.txt`: every text that
//! `eif verify` may print for them. An error or a warning that no image here has fails a test, unless it is said why there cannot
//! be one. `cargo xtask bless` rewrites the texts.

#![cfg(feature = "signing")]

#[macro_use]
mod support;

use std::collections::BTreeSet;

use std::fmt::Write as _;
use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use eif::signing::{self, Certificate, Request, SigningKey};
use eif::{Description, Error, Judgement, SigningEntry, Warning};

use support::{
    CMDLINE, COUNT, FLAGS, KERNEL, METADATA, OFFSETS, RAMDISK, SIGNATURE, SIZES, VERSION, Variants, fix_crc, image_of,
    plain_image, plain_with, put, section_offset,
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/verdicts.txt");

/// Within the validity of every certificate of the tests but the expired one, in seconds since 1970.
const MOMENT: u64 = 1_800_000_000;

fn key_file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../eif-cli/tests/keys").join(name)).unwrap()
}

/// The plain image with bytes before its last section that the table knows nothing of.
fn with_gap(gap: &[u8]) -> Vec<u8> {
    let mut image = plain_image();
    let last = section_offset(&image, 4);
    image.splice(last..last, gap.iter().copied());
    put(&mut image, OFFSETS + 8 * 4, &((last + gap.len()) as u64).to_be_bytes());
    fix_crc(&mut image);
    image
}

/// An image with a second section of some kind.
fn with_section(kind: u16, data: &[u8]) -> Vec<u8> {
    image_of(&[(KERNEL, b"k"), (CMDLINE, b""), (METADATA, b"{}"), (RAMDISK, b"r"), (kind, data)])
}

fn images() -> Vec<(&'static str, Vec<u8>)> {
    let section = |kind: u16, size: u64| [&kind.to_be_bytes()[..], &[0, 0], &size.to_be_bytes()].concat();
    let swapped = {
        let mut image = plain_image();
        for table in [OFFSETS, SIZES] {
            let (a, b) = (image[table + 24..table + 32].to_vec(), image[table + 32..table + 40].to_vec());
            put(&mut image, table + 24, &[b, a].concat());
        }
        fix_crc(&mut image);
        image
    };
    let mut stale = plain_image();
    put(&mut stale, SIZES + 8 * 3, &1_u64.to_be_bytes());
    let mut damaged = plain_image();
    *damaged.last_mut().unwrap() ^= 1;
    let kinds = section_offset(&plain_image(), 0);
    vec![
        ("nothing wrong", plain_image()),
        ("flags that nobody knows", plain_with(FLAGS, &[2, 0x40])),
        ("flags of a section", plain_with(section_offset(&plain_image(), 1) + 2, &[0, 1])),
        ("for aarch64", plain_with(FLAGS, &[0, 1])),
        ("version 3", plain_with(VERSION, &[0, 3])),
        ("a gap of zeros", with_gap(&[0; 16])),
        ("a gap like a section of another type", with_gap(&section(9, 0))),
        ("a gap like a section that is too large", with_gap(&section(RAMDISK, 1 << 40))),
        ("a gap of more empty ramdisks than anybody follows", with_gap(&section(RAMDISK, 0).repeat(4096))),
        ("bytes behind the last section", [plain_image(), vec![0; 20]].concat()),
        ("a section that the table leaves out", plain_with(COUNT, &[0, 4])),
        ("the table in another order", swapped),
        ("a stale size", stale),
        ("damage", damaged),
        ("no kernel", plain_with(kinds, &[0, 3])),
        ("two command lines", with_section(CMDLINE, b"more")),
        ("a section of an unknown type", with_section(9, b"")),
        ("metadata that lacks all fields", with_section(RAMDISK, b"")),
        ("a signature that is none", with_section(SIGNATURE, b"\x80")),
        (
            "two signatures",
            image_of(&[(KERNEL, b"k"), (CMDLINE, b""), (RAMDISK, b"r"), (SIGNATURE, b"\x80"), (SIGNATURE, b"")]),
        ),
        ("a command line that is no text", image_of(&[(KERNEL, b"k"), (CMDLINE, b"a\xff"), (RAMDISK, b"r")])),
        ("a version that is not there yet", plain_with(VERSION, &[0, 5])),
        ("a reserved field", plain_with(0x18, &[0, 9])),
        ("no metadata", image_of(&[(KERNEL, b"k"), (CMDLINE, b""), (RAMDISK, b"r")])),
        ("a ramdisk before the kernel", image_of(&[(RAMDISK, b"r"), (KERNEL, b"k"), (CMDLINE, b"")])),
    ]
}

/// An image of one ramdisk with a signature section.
fn signed(section: Vec<u8>) -> Vec<u8> {
    eif::Writer::new(b"kernel".to_vec(), "").ramdisk(vec![1]).signature(section).to_vec().unwrap()
}

fn signatures() -> Vec<(&'static str, Vec<u8>, Vec<Certificate>)> {
    let pcr0 = eif::Writer::new(b"kernel".to_vec(), "").ramdisk(vec![1]).measurements().pcr0;
    let sign = |pcr0, certificate: &[u8], key: &str| {
        Request::new(pcr0, certificate).unwrap().sign(&SigningKey::from_pem(&key_file(key)).unwrap()).unwrap()
    };
    let p384 = key_file("p384.pem");
    let right = sign(&pcr0, &p384, "p384.key.pem");
    let entry = SigningEntry::decode(&right).unwrap();
    let mut forged = entry.cose_sign1.clone();
    *forged.last_mut().unwrap() ^= 1;
    let (leaf, root) = (key_file("leaf.pem"), key_file("root.pem"));
    let roots = |pem: &[u8]| Certificate::all_from_pem(pem).unwrap();
    let other_key = SigningEntry::encode(&key_file("p256.pem"), &entry.cose_sign1).unwrap();
    let pem = |text: &str| SigningEntry::encode(text.as_bytes(), b"").unwrap();
    let block = |base64: &str| format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
    vec![
        ("all right", right.clone(), Vec::new()),
        ("all right, up to a root", sign(&pcr0, &leaf, "p384.key.pem"), roots(&root)),
        ("a chain that ends early", sign(&pcr0, &leaf, "p384.key.pem"), Vec::new()),
        ("a chain that ends early, with a root", sign(&pcr0, &leaf, "p384.key.pem"), roots(&p384)),
        ("a chain to another root", right.clone(), roots(&root)),
        ("an expired certificate", sign(&pcr0, &key_file("expired.pem"), "p256.key.pem"), Vec::new()),
        ("over another image", sign(&[7; 48], &p384, "p384.key.pem"), Vec::new()),
        ("forged", SigningEntry::encode(&p384, &forged).unwrap(), Vec::new()),
        ("by another key", other_key, Vec::new()),
        ("no cose", SigningEntry::encode(&p384, b"no cose").unwrap(), Vec::new()),
        ("an RSA certificate", SigningEntry::encode(&key_file("rsa.pem"), &entry.cose_sign1).unwrap(), Vec::new()),
        ("no certificate", pem(&block("MAMCAQU=")), Vec::new()),
        ("no pem", pem("certificate"), Vec::new()),
        ("pem without an end", pem("-----BEGIN CERTIFICATE-----\nMAA=\n"), Vec::new()),
        ("pem that is no base64", pem(&block("M")), Vec::new()),
        ("pem that is no der", pem(&block("AAAA")), Vec::new()),
        ("pem that is no text", SigningEntry::encode(&[0xff], b"").unwrap(), Vec::new()),
    ]
}

fn all_texts() -> String {
    let mut all = String::new();
    for (what, image) in images() {
        let _ = writeln!(all, "image: {what}");
        let described = Description::read(Cursor::new(&image)).unwrap();
        for Judgement { reader, accepts, reasons } in eif::judge(Cursor::new(&image), &described).unwrap() {
            let _ = writeln!(all, "  {reader} {}", if accepts { "accepts" } else { "refuses" });
            for reason in reasons {
                let _ = writeln!(all, "    {reason}");
            }
        }
    }
    let moment = UNIX_EPOCH + Duration::from_secs(MOMENT);
    for (what, section, roots) in signatures() {
        let _ = writeln!(all, "signature: {what}");
        let described = Description::read(Cursor::new(signed(section))).unwrap();
        for refusal in &described.refusals {
            let source = std::error::Error::source(refusal).map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(all, "  {refusal}: {source}");
        }
        for signing::Check { name, outcome, detail } in signing::check_signature(&described, &roots, moment) {
            let _ = writeln!(all, "  {name} {outcome:?}: {detail}");
        }
    }
    all
}

#[test]
fn every_verdict_has_its_text() {
    let all = all_texts();
    if std::env::var_os("VMM_BLESS").is_some() {
        std::fs::write(GOLDEN, &all).unwrap();
    }
    assert_eq!(all, std::fs::read_to_string(GOLDEN).unwrap_or_default());
}

/// Errors with which no image is described: it cannot be read, or its layout cannot be followed.
const NO_VERDICT: [&str; 10] = [
    "Read",
    "ShortHeader",
    "Magic",
    "TooManySections",
    "SectionInHeader",
    "SectionOutsideFile",
    "ShortSectionHeader",
    "ShortSection",
    "Overlap",
    "OutOfMemory",
];

#[test]
fn every_refusal_and_every_warning_is_that_of_an_image_here() {
    let (mut refusals, mut warnings) = (BTreeSet::from(NO_VERDICT), BTreeSet::new());
    for (_, image) in images() {
        let described = Description::read(Cursor::new(&image)).unwrap();
        refusals.extend(described.refusals.iter().map(Variants::variant));
        warnings.extend(described.warnings.iter().map(Variants::variant));
    }
    // The user's own words are no image's.
    warnings.insert("CmdlineNotMeasured");
    assert_eq!(refusals, Error::ALL.iter().copied().collect());
    assert_eq!(warnings, Warning::ALL.iter().copied().collect());
}
