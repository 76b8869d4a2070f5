//! Where AWS's crate, 0.8, and ours do not agree, and why: every row is a rule that the crate's `EifReader::from_eif`
//! (src/utils/eif_reader.rs) does not check, or a bug of its signer. What AWS's service itself and QEMU's reader
//! (hw/core/eif.c, 10.0) do is in the rows' references. A row that fails because both agree again is to be taken out, and with
//! it what `eif::judge` says about the crate.

use std::io::Cursor;

use aws_eif::{Parts, Random, Signer, build, read, verify};
use eif::{BootImage, Description, HEADER_SIZE, Judgement, judge};
use serde_json::json;

/// What a reader does with an image.
#[derive(Debug, PartialEq)]
enum Does {
    Take,
    Refuse,
}
use Does::{Refuse, Take};

struct Row {
    what: &'static str,
    image: Vec<u8>,
    ours: Does,
    theirs: Does,
    /// What our refusal says, or our only warning.
    because: &'static str,
    reference: &'static str,
}

fn parts() -> Parts {
    Parts {
        kernel: vec![1; 300],
        cmdline: "console=ttyS0".to_owned(),
        ramdisks: vec![vec![2; 100], vec![3; 50]],
        name: "disagreements".to_owned(),
        custom: json!({}),
        flags: 0,
    }
}

/// Where things are in the images of [`parts`]: kernel, command line, metadata, ramdisks, each behind a header of 12 bytes.
const VERSION: usize = 4;
const SECTION_COUNT: usize = 0x1a;
const OFFSETS: usize = 0x1c;
const CRC: usize = 0x220;

fn image() -> Vec<u8> {
    build(&parts(), None).0
}

/// The image with these bytes at that offset, and the checksum that goes with them by the header's table.
fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    right_crc(image)
}

fn right_crc(mut image: Vec<u8>) -> Vec<u8> {
    let crc = Description::read(Cursor::new(&image)).unwrap().crc;
    image[CRC..HEADER_SIZE].copy_from_slice(&crc.to_be_bytes());
    image
}

/// The image with a gap before its last section, which the table leaves out.
fn with_gap() -> Vec<u8> {
    let mut image = image();
    let last = image.len() - 62;
    image.splice(last..last, [0; 16]);
    let entry = OFFSETS + 8 * 4;
    image[entry..entry + 8].copy_from_slice(&(last as u64 + 16).to_be_bytes());
    right_crc(image)
}

/// The image with the ramdisks in the table the other way round.
fn with_swapped_table() -> Vec<u8> {
    let mut image = image();
    for table in [OFFSETS, 0x11c] {
        let (a, b) = (table + 8 * 3, table + 8 * 4);
        let first: [u8; 8] = image[a..a + 8].try_into().unwrap();
        image.copy_within(b..b + 8, a);
        image[b..b + 8].copy_from_slice(&first);
    }
    right_crc(image)
}

fn resigned() -> Vec<u8> {
    let (signed, _) = build(&parts(), Some(&Signer::new("first")));
    Signer::new("second, under a longer name").sign_image(&signed)
}

fn rows() -> Vec<Row> {
    let second_kernel = with(HEADER_SIZE + 12 + 300, &[0, 1]);
    let trailing = [image(), vec![0; 11]].concat();
    vec![
        Row {
            what: "another magic",
            image: with_crc_as_it_was(0, b"XXXX"),
            ours: Refuse,
            theirs: Take,
            because: "not an eif: the file starts with XXXX, expected \".eif\"",
            reference: "from_eif never looks at the magic; QEMU does, and refuses",
        },
        Row {
            what: "a wrong checksum",
            image: with_crc_as_it_was(CRC, &[0; 4]),
            ours: Refuse,
            theirs: Take,
            because: "the crc at offset 0x220 is 0x00000000, but the image's bytes give",
            reference: "check_crc() reports it, nobody has to call it; QEMU and the service refuse",
        },
        Row {
            what: "version 3",
            image: with(VERSION, &[0, 3]),
            ours: Refuse,
            theirs: Take,
            because: "eif version 3 at offset 0x4, expected 4 or later",
            reference: "QEMU boots 4 and later only, and so do we; `eif describe` reads 2 and 3",
        },
        Row {
            what: "aarch64",
            image: with(6, &[0, 1]),
            ours: Refuse,
            theirs: Take,
            because: "the image is for aarch64 (flags 0x0001 at offset 0x6), expected x86_64",
            reference: "the crate describes images of both; QEMU refuses every header flag",
        },
        Row {
            what: "a second kernel, no command line",
            image: second_kernel,
            ours: Refuse,
            theirs: Take,
            because: "section 1 at offset 0x35c is a second kernel, the first is section 0; expected one",
            reference: "from_eif hashes whatever comes; QEMU refuses a second kernel or command line",
        },
        Row {
            what: "a signature replaced by AWS's own signer",
            image: resigned(),
            ours: Refuse,
            theirs: Take,
            because: "the size of section 5 (signature) is",
            reference: "aws-nitro-enclaves-image-format issue 54: the first signature's size stays in the header",
        },
        Row {
            what: "a gap between sections",
            image: with_gap(),
            ours: Take,
            theirs: Refuse,
            because: "16 bytes at offset",
            reference: "from_eif goes from section to section; the service and QEMU follow the header's table",
        },
        Row {
            what: "a section of unknown type",
            image: with(HEADER_SIZE + 12 + 300 + 12 + 13 + 1, &[9]),
            ours: Take,
            theirs: Refuse,
            because: "section 2 is skipped, its type is unknown (type 9); AWS's reader refuses such an image",
            reference: "from_eif returns an error; QEMU skips it",
        },
        Row {
            what: "metadata that is not JSON",
            image: with(HEADER_SIZE + 12 + 300 + 12 + 13 + 12, b"["),
            ours: Take,
            theirs: Refuse,
            because: "the metadata cannot be read (",
            reference: "from_eif returns an error; QEMU does not look at it",
        },
        Row {
            what: "a table in another order than the file's",
            image: with_swapped_table(),
            ours: Take,
            theirs: Take,
            because: "section 4 lies before section 3 in the file; AWS's reader, which follows the file and not the table, may \
                      measure something else",
            reference: "the service follows the table",
        },
        Row {
            what: "a section that the table leaves out",
            image: with(SECTION_COUNT, &[0, 4]),
            ours: Take,
            theirs: Take,
            because: "62 bytes at offset",
            reference: "from_eif reads on to the end of the file and measures it; the service follows the table",
        },
        Row {
            what: "a few bytes after the last section",
            image: trailing,
            ours: Take,
            theirs: Take,
            because: "11 bytes at offset",
            reference: "too short for a section's header, so from_eif takes it for the end",
        },
    ]
}

/// The image with these bytes at that offset and the checksum of before.
fn with_crc_as_it_was(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn every_disagreement_is_known() {
    for Row { what, image, ours, theirs, because, reference } in rows() {
        let (does, said) = match BootImage::read(Cursor::new(&image)) {
            Ok(image) => (Take, image.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            Err(error) => (Refuse, error.to_string()),
        };
        assert_eq!(does, ours, "{what}: {said}");
        assert!(said.contains(because), "{what}: {said}");
        let reading = read(&image).map(|_| Take).unwrap_or(Refuse);
        assert_eq!(reading, theirs, "{what}, where the reference is: {reference}");
        println!("{what}: ours {ours:?}s, AWS's crate {theirs:?}s; {said}; {reference}");
    }
}

#[test]
fn images_whose_sections_are_found_elsewhere_measure_differently() {
    for image in [with_swapped_table(), with(SECTION_COUNT, &[0, 4])] {
        let ours = BootImage::read(Cursor::new(&image)).unwrap().measurements();
        let ours = serde_json::to_value(ours).unwrap();
        assert_ne!(ours["PCR0"], read(&image).unwrap().pcrs["PCR0"]);
    }
}

#[test]
fn a_wrong_signature_is_wrong_for_both() {
    let signer = Signer::new("differential");
    let (image, pcrs) = build(&parts(), None);
    let mut other = pcrs.clone();
    other.insert("PCR0".to_owned(), "00".repeat(48));
    for (section, verified, matches) in [
        (signer.signature_section(&pcrs), true, true),
        // A right signature over another image.
        (signer.signature_section(&other), true, false),
        // The last byte is the signature's own.
        (flipped(signer.signature_section(&pcrs)), false, false),
    ] {
        let Parts { kernel, cmdline, ramdisks, .. } = parts();
        let mut writer = eif::Writer::new(kernel, &cmdline).signature(section);
        for ramdisk in ramdisks {
            writer = writer.ramdisk(ramdisk);
        }
        let signed = writer.to_vec().unwrap();
        let ours = Description::read(Cursor::new(&signed)).unwrap();
        let checks = eif::signing::check_signature(&ours, &[], std::time::SystemTime::now());
        let passed = |name: &str| {
            checks.iter().any(|check| check.name == name && check.outcome == eif::signing::Outcome::Passed)
        };
        assert_eq!((passed("signature"), passed("signed PCR0")), (verified, matches), "{checks:?}");
        assert_eq!(verify(&signed).is_ok(), verified);
        let described = aws_eif::describe(&signed).map(|object| object["SignatureCheck"] == true);
        assert_eq!(described.unwrap_or(false), matches);
    }
    assert!(!image.is_empty());
}

fn flipped(mut section: Vec<u8>) -> Vec<u8> {
    let last = section.len() - 1;
    section[last] ^= 1;
    section
}

#[test]
fn what_judge_says_of_awss_crate_is_what_it_does() {
    let (image, _) = build(&parts(), Some(&Signer::new("judged")));
    let signature = Description::read(Cursor::new(&image)).unwrap().sections.last().unwrap().data_offset() as usize;
    let mut random = Random(5);
    let (mut taken, mut refused, mut elsewhere) = (0, 0, 0);
    for round in 0..6000 {
        let mut mutated = image.clone();
        for _ in 0..1 + random.below(2) {
            // Not in the certificate: OpenSSL and we draw the line of what is still one in different places.
            let position = random.below(signature);
            mutated[position] ^= 1 << random.below(8);
        }
        if round % 3 == 0 {
            mutated.truncate(random.below(image.len()));
        }
        // The crate allocates whatever a section claims before it looks whether the file has it, and ends the process if that
        // is too much.
        if sizes_are_large(&mutated) {
            continue;
        }
        let Ok(described) = Description::read(Cursor::new(&mutated)) else { continue };
        let judgements = judge(Cursor::new(&mutated), &described).unwrap();
        let Judgement { accepts, reasons, .. } =
            judgements.iter().find(|judgement| judgement.reader == "AWS's crate 0.8").unwrap();
        match read(&mutated) {
            Ok(theirs) => {
                assert!(accepts, "round {round}: {reasons:?}");
                let ours = serde_json::to_value(described.measurements).unwrap();
                if ours["PCR0"] != theirs.pcrs["PCR0"] {
                    assert!(reasons.iter().any(|reason| reason.starts_with("it finds other sections")), "{reasons:?}");
                    elsewhere += 1;
                }
                taken += 1;
            }
            Err(error) => {
                assert!(!accepts, "round {round}: {error}");
                refused += 1;
            }
        }
    }
    println!("{taken} taken, {elsewhere} of them measured differently, {refused} refused");
    assert!(taken > 100 && refused > 100);
}

/// Whether a section, found as AWS's crate finds them, claims more than the file could ever hold.
fn sizes_are_large(image: &[u8]) -> bool {
    let mut offset = HEADER_SIZE;
    while let Some(header) = image.get(offset..offset + 12) {
        let size = u64::from_be_bytes(header[4..].try_into().unwrap());
        if size > 1 << 30 {
            return true;
        }
        offset += 12 + size as usize;
    }
    false
}
