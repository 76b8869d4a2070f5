//! Images written by AWS's own crate, read with the measurements that it computed. golden/README.md says how they were
//! made.

mod support;

use std::collections::BTreeMap;

use eif::{Error, SectionKind};
use support::*;

const UNSIGNED: &[u8] = include_bytes!("golden/unsigned.eif");
const SIGNED: &[u8] = include_bytes!("golden/signed.eif");
const RESIGNED: &[u8] = include_bytes!("golden/resigned.eif");

fn golden_pcrs(image: &str) -> serde_json::Value {
    let mut all: BTreeMap<String, serde_json::Value> = serde_json::from_str(include_str!("golden/pcrs.json")).unwrap();
    all.remove(image).unwrap()
}

fn json(measurements: eif::Measurements) -> serde_json::Value {
    serde_json::to_value(measurements).unwrap()
}

#[test]
fn unsigned_image_has_the_measurements_that_aws_computed() {
    let image = boot(UNSIGNED).unwrap();
    assert_eq!(json(image.measurements()), golden_pcrs("unsigned.eif"));
    assert_eq!(image.warnings, []);
}

#[test]
fn signed_image_has_the_measurements_that_aws_computed() {
    let image = boot(SIGNED).unwrap();
    assert_eq!(json(image.measurements()), golden_pcrs("signed.eif"));
    assert_eq!(image.warnings, []);
    // A DER SEQUENCE, and a COSE_Sign1: an array of four.
    let entry = image.signing_entry.unwrap();
    assert_eq!((entry.certificate_der[0], entry.cose_sign1[0]), (0x30, 0x84));
}

#[test]
fn signature_changes_no_measurement_but_pcr8() {
    let (unsigned, signed) = (boot(UNSIGNED).unwrap().measurements(), boot(SIGNED).unwrap().measurements());
    assert_eq!((unsigned.pcr0, unsigned.pcr1, unsigned.pcr2), (signed.pcr0, signed.pcr1, signed.pcr2));
    assert_eq!((unsigned.pcr8, signed.pcr8.is_some()), (None, true));
}

#[test]
fn parts_are_those_that_aws_was_given() {
    let image = boot(SIGNED).unwrap();
    assert_eq!(image.cmdline, "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on");
    assert_eq!(image.kernel.len(), 3000);
    assert_eq!(image.ramdisks, [0..500, 500..1200]);
    let kinds: Vec<SectionKind> = image.sections.iter().map(|section| section.kind).collect();
    let ramdisks = [SectionKind::Ramdisk; 2];
    assert_eq!(kinds[..3], [SectionKind::Kernel, SectionKind::Cmdline, SectionKind::Metadata]);
    assert_eq!(kinds[3..5], ramdisks);
    assert_eq!(kinds[5..], [SectionKind::Signature]);
    let metadata = image.metadata.unwrap();
    assert_eq!((metadata.image_name.as_str(), metadata.build_metadata.kernel_version.as_str()), ("golden", "6.6.79"));
    assert_eq!(metadata.custom_metadata["answer"], 42);
}

#[test]
fn image_signed_twice_is_refused_with_the_known_cause_and_described() {
    let error = refusal(RESIGNED);
    assert!(matches!(error, Error::StaleSize { index: 5, kind: SectionKind::Signature, .. }), "{error}");
    assert!(error.hint().unwrap().contains("issue 54"));
    let described = describe(RESIGNED).unwrap();
    assert_eq!(json(described.measurements), golden_pcrs("resigned.eif"));
    assert!(matches!(described.refusals[..], [Error::StaleSize { .. }]));
}

#[test]
fn truncation_of_a_signed_image_anywhere_is_refused() {
    for size in 0..SIGNED.len() {
        assert!(boot(&SIGNED[..size]).is_err(), "truncated to {size}");
    }
}

#[test]
fn writer_makes_the_same_bytes_of_the_same_parts() {
    let image = boot(SIGNED).unwrap();
    let mut writer = eif::Writer::new(image.kernel, &image.cmdline)
        .metadata(image.metadata_json.unwrap())
        .signature(image.signature.unwrap());
    for ramdisk in image.ramdisks {
        writer = writer.ramdisk(image.initrd[ramdisk].to_vec());
    }
    assert_eq!(writer.to_vec().unwrap(), SIGNED);
}
