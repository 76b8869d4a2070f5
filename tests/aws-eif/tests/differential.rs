//! Our reader and writer against AWS's, over random images and each other's signatures.

use std::io::Cursor;
use std::time::SystemTime;

use aws_eif::{AwsReading, CURVES, Parts, Pcrs, Random, Signer, build, describe, read, verify};
use eif::nitro_cli::DescribeEif;
use eif::signing::{self, Outcome, Request, SigningKey};
use eif::{BootImage, Description, FLAG_AARCH64, Measurements, Writer};
use openssl::nid::Nid;
use serde_json::{Value, json};

/// How many random images are made each way.
const IMAGES: u64 = 250;

fn random_parts(seed: u64) -> Parts {
    let mut random = Random(seed);
    let kernel_size = random.below(60_000);
    let cmdline_size = random.below(500);
    let ramdisks = 1 + random.below(27);
    Parts {
        kernel: random.bytes(kernel_size),
        cmdline: (0..cmdline_size).map(|_| char::from(b' ' + random.below(95) as u8)).collect(),
        ramdisks: (0..ramdisks)
            .map(|_| {
                // Sizes around the buffers and blocks of either side, and empty ones.
                let size = [random.below(40_000), random.below(3) * 4096, 127 + random.below(3)][random.below(3)];
                random.bytes(size)
            })
            .collect(),
        name: format!("image {seed} \u{e9}\"\\"),
        custom: match random.below(3) {
            0 => json!({}),
            1 => json!({ "answer": seed, "nested": { "list": [1, "two", null, 3.5] } }),
            _ => json!({ "text": "\u{1f980}" }),
        },
        flags: if random.below(4) == 0 { FLAG_AARCH64 } else { 0 },
    }
}

/// A signer on one of the three curves.
fn random_signer(seed: u64) -> Signer {
    let attributes = [
        (Nid::COMMONNAME, "differential \u{fc}ber alles"),
        (Nid::COUNTRYNAME, "DE"),
        (Nid::ORGANIZATIONNAME, "Example & Sons, \"Ltd\""),
        (Nid::PKCS9_EMAILADDRESS, "who@example.com"),
    ];
    Signer::with(CURVES[seed as usize % 3], &attributes[..1 + seed as usize % 4])
}

fn pcrs_of(measurements: Measurements) -> Pcrs {
    serde_json::from_value(serde_json::to_value(measurements).unwrap()).unwrap()
}

/// Signs PCR0 with our code.
fn our_signature(signer: &Signer, measured: &Measurements) -> Vec<u8> {
    let key = SigningKey::from_pem(&signer.key_pem()).unwrap();
    Request::new(&measured.pcr0, &signer.certificate_pem()).unwrap().sign(&key).unwrap()
}

/// Holds every answer of one reader against the other's: header, sections, measurements, metadata, signature, and the object
/// that `nitro-cli describe-eif` prints.
fn assert_same_reading(image: &[u8], which: &str) {
    let ours = Description::read(Cursor::new(image)).unwrap_or_else(|error| panic!("{which}: {error}"));
    let AwsReading { header, pcrs, crc_is_right, metadata, signature } =
        read(image).unwrap_or_else(|error| panic!("{which}: {error}"));
    assert_eq!(ours.header.version, header.version, "{which}");
    assert_eq!(ours.header.flags, header.flags, "{which}");
    assert_eq!((ours.header.default_memory, ours.header.default_cpus), (header.default_mem, header.default_cpus));
    assert_eq!(ours.sections.len(), usize::from(header.num_sections), "{which}");
    for (index, section) in ours.sections.iter().enumerate() {
        let theirs = (header.section_offsets[index], header.section_sizes[index]);
        assert_eq!((section.offset, section.size), theirs, "{which}, section {index}");
    }
    assert_eq!(ours.crc == ours.header.crc, crc_is_right, "{which}");
    assert!(crc_is_right, "{which}");
    assert_eq!(pcrs_of(ours.measurements), pcrs, "{which}");
    assert_eq!(ours.metadata.as_ref().map(|metadata| serde_json::to_value(metadata).unwrap()), metadata, "{which}");
    assert_eq!(ours.signature, signature, "{which}");
    assert_eq!(serde_json::to_value(DescribeEif::new(&ours)).unwrap(), describe(image).unwrap(), "{which}");
}

/// Every check of the signature passes in both, and AWS's verdict on PCR0 is in [`describe`].
fn assert_signature_is_right(image: &[u8], signer: &Signer, which: &str) {
    let ours = Description::read(Cursor::new(image)).unwrap();
    for check in signing::check_signature(&ours, &[], SystemTime::now()) {
        assert_eq!(check.outcome, Outcome::Passed, "{which}: {check:?}");
    }
    verify(image).unwrap_or_else(|error| panic!("{which}: {error}"));
    assert_eq!(describe(image).unwrap()["SignatureCheck"], true, "{which}");
    assert_eq!(pcrs_of(ours.measurements)["PCR8"], signer.pcr8_by_openssl(), "{which}");
}

#[test]
fn images_of_aws_read_the_same_here() {
    for seed in 0..IMAGES {
        let which = format!("seed {seed}");
        let parts = random_parts(seed);
        let signer = (seed % 2 == 0).then(|| random_signer(seed / 2));
        let (image, pcrs) = build(&parts, signer.as_ref());
        assert_same_reading(&image, &which);
        if let Some(signer) = &signer {
            assert_signature_is_right(&image, signer, &which);
        }
        let described = Description::read(Cursor::new(&image)).unwrap();
        assert_eq!(pcrs_of(described.measurements), pcrs, "{which}");
        assert_eq!(described.refusals.is_empty(), parts.flags == 0, "{which}");
        if parts.flags == 0 {
            let booted = BootImage::read(Cursor::new(&image)).unwrap_or_else(|error| panic!("{which}: {error}"));
            assert_eq!(pcrs_of(booted.measurements()), pcrs, "{which}");
            assert_eq!(booted.warnings, [], "{which}");
            assert_eq!(booted.kernel, parts.kernel, "{which}");
            assert_eq!(booted.cmdline, parts.cmdline, "{which}");
            assert_eq!(booted.initrd, parts.ramdisks.concat(), "{which}");
        }
    }
}

#[test]
fn images_of_ours_read_the_same_at_aws() {
    for seed in 1000..1000 + IMAGES {
        let which = format!("seed {seed}");
        let parts = random_parts(seed);
        let mut metadata = eif::Metadata::new(&parts.name, "1");
        metadata.custom_metadata = parts.custom;
        let mut writer = Writer::new(parts.kernel, &parts.cmdline).metadata(metadata.to_json()).flags(parts.flags);
        for ramdisk in parts.ramdisks {
            writer = writer.ramdisk(ramdisk);
        }
        let measured = writer.measurements();
        let signer = random_signer(seed / 2);
        writer = match seed % 4 {
            0 => writer.signature(our_signature(&signer, &measured)),
            2 => writer.signature(signer.signature_section(&pcrs_of(measured))),
            _ => writer,
        };
        let image = writer.to_vec().unwrap();
        assert_same_reading(&image, &which);
        if seed % 2 == 0 {
            assert_signature_is_right(&image, &signer, &which);
        }
    }
}

#[test]
fn images_that_either_side_signs_again_are_right_for_both() {
    for seed in 0..12 {
        let (image, _) = build(&random_parts(seed), Some(&Signer::new("first")));
        let signer = random_signer(seed);
        let mut ours = Cursor::new(Vec::new());
        eif::resign(Cursor::new(&image), &mut ours, |measured| Ok(our_signature(&signer, measured))).unwrap();
        assert_same_reading(ours.get_ref(), "signed again by us");
        assert_signature_is_right(ours.get_ref(), &signer, "signed again by us");
    }
}

#[test]
fn certificates_of_either_name_type_are_described_alike() {
    let attributes: [&[(Nid, &str)]; 4] = [
        &[(Nid::COMMONNAME, "plain")],
        &[(Nid::COMMONNAME, "\u{3b1}\u{3b2}"), (Nid::LOCALITYNAME, "K\u{f6}ln"), (Nid::STATEORPROVINCENAME, "NRW")],
        &[(Nid::ORGANIZATIONALUNITNAME, "a\tb\\c'd\"e"), (Nid::SERIALNUMBER, "00-17")],
        &[
            (Nid::SURNAME, "S"),
            (Nid::GIVENNAME, "G"),
            (Nid::TITLE, "T"),
            (Nid::USERID, "u"),
            (Nid::DOMAINCOMPONENT, "d"),
        ],
    ];
    for (number, attributes) in attributes.into_iter().enumerate() {
        let signer = Signer::with(CURVES[number % 3], attributes);
        let (image, _) = build(&random_parts(number as u64), Some(&signer));
        let ours = Description::read(Cursor::new(&image)).unwrap();
        let ours: Value = serde_json::to_value(DescribeEif::new(&ours)).unwrap();
        assert_eq!(ours["SigningCertificate"], describe(&image).unwrap()["SigningCertificate"], "{attributes:?}");
    }
}

#[test]
fn mutated_images_that_both_readers_take_measure_the_same() {
    let parts = Parts { ramdisks: vec![vec![2; 100], vec![3; 50]], flags: 0, ..random_parts(3) };
    let (image, _) = build(&parts, None);
    let mut random = Random(99);
    let mut compared = 0;
    for _ in 0..2000 {
        let mut mutated = image.clone();
        // Not in the section headers' sizes: AWS's reader allocates whatever they claim.
        let position = eif::HEADER_SIZE + 12 + random.below(300);
        mutated[position] ^= 1 << random.below(8);
        let (Ok(ours), Ok(theirs)) = (Description::read(Cursor::new(&mutated)), read(&mutated)) else { continue };
        assert_eq!(pcrs_of(ours.measurements), theirs.pcrs);
        assert_eq!(ours.crc == ours.header.crc, theirs.crc_is_right);
        compared += 1;
    }
    assert!(compared > 0);
}
