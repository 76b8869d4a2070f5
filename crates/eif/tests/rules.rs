//! Every rule of the format, broken alone: the error names the rule, the offset, what was found and what was expected.

mod support;

use eif::{Error, Metadata, SectionKind, SignatureError, Warning};
use support::*;

#[test]
fn plain_image_boots_without_a_warning() {
    let image = boot(&plain_image()).unwrap();
    assert_eq!(image.warnings, []);
    assert_eq!(image.kernel, b"the kernel");
    assert_eq!(image.cmdline, "console=ttyS0 panic=30");
    assert_eq!(image.initrd, b"the boot ramdiskthe application");
    assert_eq!(image.ramdisks, [0..16, 16..31]);
    assert_eq!(image.metadata, Some(Metadata::new("plain", "1")));
    assert_eq!(image.measurements().pcr8, None);
    assert_eq!(image.signature, None);
}

#[test]
fn written_image_is_the_plain_image() {
    let written = eif::Writer::new(b"the kernel".to_vec(), "console=ttyS0 panic=30")
        .metadata(Metadata::new("plain", "1").to_json())
        .ramdisk(b"the boot ramdisk".to_vec())
        .ramdisk(b"the application".to_vec())
        .to_vec()
        .unwrap();
    assert_eq!(written, plain_image());
}

#[test]
fn truncation_anywhere_is_refused() {
    let image = plain_image();
    for size in 0..image.len() {
        let error = refusal(&image[..size]);
        match error {
            Error::ShortHeader { found } => assert_eq!(found, size as u64),
            Error::SectionOutsideFile { file_size, .. } => assert_eq!(file_size, size as u64),
            Error::ShortSectionHeader { offset, found, .. } | Error::ShortSection { offset, found, .. } => {
                assert_eq!(offset + found, size as u64);
            }
            other => panic!("truncated to {size}: {other}"),
        }
        assert!(describe(&image[..size]).is_err());
    }
}

#[test]
fn truncation_of_a_large_image_is_refused() {
    let kernel = vec![7; 700_000];
    let metadata = Metadata::new("large", "1").to_json();
    let image = image_of(&[(KERNEL, &kernel), (CMDLINE, b"a"), (METADATA, &metadata), (RAMDISK, &kernel)]);
    assert!(boot(&image).is_ok());
    for size in (0..image.len()).step_by(4099) {
        assert!(boot(&image[..size]).is_err(), "truncated to {size}");
    }
}

#[test]
fn wrong_magic_is_named() {
    let error = refusal(&plain_with(0, b"\x7fELF"));
    assert!(matches!(error, Error::Magic { found: [0x7f, b'E', b'L', b'F'] }));
    assert_eq!(error.to_string(), r#"not an eif: the file starts with \x7fELF, expected ".eif""#);
}

#[test]
fn old_versions_are_refused_but_two_and_three_are_described() {
    for version in 0..4u16 {
        let mut image = plain_image();
        put(&mut image, VERSION, &version.to_be_bytes());
        assert!(matches!(refusal(&image), Error::Version { found } if found == version));
        assert!(refusal(&image).hint().is_some());
        assert_eq!(describe(&image).is_ok(), version >= 2);
    }
    let described = describe(&plain_with(VERSION, &[0, 3])).unwrap();
    assert!(matches!(described.refusals[..], [Error::Version { found: 3 }]));
    assert_eq!(described.measurements, boot(&plain_image()).unwrap().measurements());
}

#[test]
fn later_version_boots_with_a_warning() {
    assert_eq!(boot(&plain_with(VERSION, &[0, 5])).unwrap().warnings, [Warning::NewerVersion { version: 5 }]);
}

#[test]
fn aarch64_is_refused_whatever_other_flags_say() {
    for flags in [0x0001u16, 0x0241] {
        let image = plain_with(FLAGS, &flags.to_be_bytes());
        assert!(matches!(refusal(&image), Error::Architecture { found } if found == flags));
        assert!(matches!(describe(&image).unwrap().refusals[..], [Error::Architecture { .. }]));
    }
}

#[test]
fn unknown_header_flags_are_warned_of() {
    let image = boot(&plain_with(FLAGS, &[0x02, 0x40])).unwrap();
    assert_eq!(image.warnings, [Warning::HeaderFlags { bits: 0x240 }]);
}

#[test]
fn reserved_fields_are_warned_of() {
    let warnings = |offset, bytes: &[u8]| boot(&plain_with(offset, bytes)).unwrap().warnings;
    assert_eq!(warnings(0x18, &[0, 9]), [Warning::Reserved { offset: 0x18, found: 9 }]);
    assert_eq!(warnings(0x21c, &[0, 0, 0, 9]), [Warning::Reserved { offset: 0x21c, found: 9 }]);
}

#[test]
fn default_memory_and_cpus_mean_nothing() {
    assert!(boot(&plain_with(0x08, &[0xff; 16])).unwrap().warnings.is_empty());
}

#[test]
fn more_sections_than_the_table_holds_are_refused() {
    assert!(matches!(refusal(&plain_with(COUNT, &[0, 33])), Error::TooManySections { found: 33 }));
    assert!(matches!(refusal(&plain_with(COUNT, &[0xff, 0xff])), Error::TooManySections { found: 0xffff }));
}

#[test]
fn fewer_sections_than_there_are_leave_bytes_that_are_warned_of() {
    let image = boot(&plain_with(COUNT, &[0, 4])).unwrap();
    assert!(matches!(image.warnings[..], [Warning::Gap { trailing: true, size: 27, .. }]));
    assert!(matches!(refusal(&plain_with(COUNT, &[0, 0])), Error::MissingSection { kind: SectionKind::Kernel, .. }));
}

#[test]
fn section_within_the_header_is_refused() {
    let error = refusal(&plain_with(OFFSETS + 8, &547u64.to_be_bytes()));
    assert!(matches!(error, Error::SectionInHeader { index: 1, offset: 547 }));
}

#[test]
fn section_past_the_end_of_the_file_is_refused() {
    for past in [plain_image().len() as u64, u64::MAX] {
        let error = refusal(&plain_with(OFFSETS + 8, &past.to_be_bytes()));
        assert!(matches!(error, Error::SectionOutsideFile { index: 1, offset, .. } if offset == past));
    }
}

#[test]
fn section_header_cut_by_the_end_of_the_file_is_refused() {
    let offset = plain_image().len() as u64 - 11;
    let error = refusal(&plain_with(OFFSETS + 8, &offset.to_be_bytes()));
    assert!(matches!(error, Error::ShortSectionHeader { index: 1, found: 11, .. }));
}

#[test]
fn section_larger_than_the_file_is_refused() {
    for size in [1000u64, 1 << 60, u64::MAX] {
        let mut image = plain_image();
        let offset = section_offset(&image, 3);
        put(&mut image, SIZES + 8 * 3, &size.to_be_bytes());
        put(&mut image, offset + 4, &size.to_be_bytes());
        let error = refusal(&image);
        assert!(
            matches!(error, Error::ShortSection { index: 3, kind: SectionKind::Ramdisk, expected, .. } if expected == size),
            "{error}"
        );
    }
}

#[test]
fn stale_size_is_refused_with_its_known_cause_and_described_by_the_section() {
    let image = plain_with(SIZES + 8 * 4, &14u64.to_be_bytes());
    let error = refusal(&image);
    assert!(matches!(
        error,
        Error::StaleSize { index: 4, kind: SectionKind::Ramdisk, offset: 0x13c, in_header: 14, in_section: 15, .. }
    ));
    assert!(error.hint().unwrap().contains("issue 54"));
    let described = describe(&image).unwrap();
    assert_eq!(described.measurements, boot(&plain_image()).unwrap().measurements());
    assert!(matches!(described.refusals[..], [Error::StaleSize { .. }]));
}

#[test]
fn overlapping_sections_are_refused() {
    let metadata_length = Metadata::new("plain", "1").to_json().len() as u64;
    let same = {
        let mut image = plain_image();
        let third = section_offset(&image, 2) as u64;
        put(&mut image, OFFSETS + 8 * 3, &third.to_be_bytes());
        put(&mut image, SIZES + 8 * 3, &metadata_length.to_be_bytes());
        image
    };
    assert!(matches!(refusal(&same), Error::Overlap { first: 2, second: 3, .. }));

    let first = section_offset(&plain_image(), 0) as u64;
    let inner_size = 3u64;
    let inner = {
        let mut kernel = vec![0; 40];
        put(&mut kernel, 5, &[0, 3, 0, 0]);
        put(&mut kernel, 9, &inner_size.to_be_bytes());
        let mut image = image_of(&[(KERNEL, &kernel), (CMDLINE, b""), (METADATA, b"{}"), (RAMDISK, b"x")]);
        put(&mut image, OFFSETS + 8 * 3, &(first + 12 + 5).to_be_bytes());
        put(&mut image, SIZES + 8 * 3, &inner_size.to_be_bytes());
        image
    };
    let error = refusal(&inner);
    assert!(
        matches!(error, Error::Overlap { first: 0, second: 3, first_end, offset, .. }
            if first_end == first + 52 && offset == first + 17),
        "{error}"
    );
}

#[test]
fn second_kernel_and_second_cmdline_are_refused() {
    for (kind, name) in [(KERNEL, SectionKind::Kernel), (CMDLINE, SectionKind::Cmdline)] {
        let metadata = Metadata::new("a", "b").to_json();
        let mut sections = plain_sections(&metadata);
        sections.push((kind, b"again"));
        let error = refusal(&image_of(&sections));
        assert!(matches!(error, Error::SecondSection { kind, index: 5, .. } if kind == name), "{error}");
    }
}

#[test]
fn missing_kernel_cmdline_and_ramdisk_are_named() {
    for (number, kind) in
        [(KERNEL, SectionKind::Kernel), (CMDLINE, SectionKind::Cmdline), (RAMDISK, SectionKind::Ramdisk)]
    {
        let metadata = Metadata::new("a", "b").to_json();
        let mut sections = plain_sections(&metadata);
        sections.retain(|(found, _)| *found != number);
        let image = image_of(&sections);
        assert!(matches!(refusal(&image), Error::MissingSection { kind: found, .. } if found == kind));
        assert_eq!(describe(&image).unwrap().refusals.len(), 1);
    }
}

#[test]
fn wrong_crc_shows_both_values() {
    let mut image = plain_image();
    let right = u32::from_be_bytes(image[0x220..0x224].try_into().unwrap());
    put(&mut image, 0x220, &0x1234_5678u32.to_be_bytes());
    let error = refusal(&image);
    assert!(matches!(error, Error::Crc { found: 0x1234_5678, expected } if expected == right));
    let text = error.to_string();
    assert!(text.contains("0x12345678") && text.contains(&format!("{right:#010x}")), "{text}");
    assert!(matches!(describe(&image).unwrap().refusals[..], [Error::Crc { .. }]));
}

#[test]
fn every_flipped_bit_of_a_section_is_noticed() {
    let image = plain_image();
    for position in 0x220..image.len() {
        for bit in 0..8 {
            let mut damaged = image.clone();
            damaged[position] ^= 1 << bit;
            assert!(boot(&damaged).is_err(), "bit {bit} at {position:#x}");
        }
    }
}

#[test]
fn unknown_and_invalid_sections_are_skipped_but_count_into_the_crc() {
    let metadata = Metadata::new("plain", "1").to_json();
    for (number, kind) in [(0, SectionKind::Invalid), (6, SectionKind::Unknown(6)), (999, SectionKind::Unknown(999))] {
        let mut sections = plain_sections(&metadata);
        sections.insert(1, (number, b"whatever"));
        let mut image = image_of(&sections);
        let read = boot(&image).unwrap();
        assert_eq!(read.warnings, [Warning::SkippedSection { index: 1, kind }]);
        assert_eq!(read.measurements(), boot(&plain_image()).unwrap().measurements());
        let data = section_offset(&image, 1) + 12;
        image[data] ^= 1;
        assert!(matches!(refusal(&image), Error::Crc { .. }));
    }
}

#[test]
fn section_flags_are_warned_of() {
    let mut image = plain_image();
    let offset = section_offset(&image, 1);
    put(&mut image, offset + 2, &[0x80, 0]);
    fix_crc(&mut image);
    assert_eq!(boot(&image).unwrap().warnings, [Warning::SectionFlags { index: 1, flags: 0x8000 }]);
}

#[test]
fn gap_between_sections_is_allowed_and_not_measured() {
    let mut image = plain_image();
    let second = section_offset(&image, 1);
    image.splice(second..second, [0xee; 5]);
    for index in 1..5 {
        let moved = section_offset(&image, index) as u64 + 5;
        put(&mut image, OFFSETS + 8 * index, &moved.to_be_bytes());
    }
    fix_crc(&mut image);
    let read = boot(&image).unwrap();
    assert_eq!(read.warnings, [Warning::Gap { offset: second as u64, size: 5, trailing: false }]);
    assert_eq!(read.measurements(), boot(&plain_image()).unwrap().measurements());
}

#[test]
fn table_order_decides_what_is_first() {
    // The table lists the two ramdisks in the other order than the file has them.
    let mut image = plain_image();
    let (third, fourth) = (section_offset(&image, 3) as u64, section_offset(&image, 4) as u64);
    put(&mut image, OFFSETS + 8 * 3, &fourth.to_be_bytes());
    put(&mut image, OFFSETS + 8 * 4, &third.to_be_bytes());
    put(&mut image, SIZES + 8 * 3, &15u64.to_be_bytes());
    put(&mut image, SIZES + 8 * 4, &16u64.to_be_bytes());
    fix_crc(&mut image);
    let read = boot(&image).unwrap();
    assert_eq!(read.warnings, [Warning::TableOrder { index: 4 }]);
    assert_eq!(read.initrd, b"the applicationthe boot ramdisk");
}

#[test]
fn ramdisk_before_the_kernel_is_warned_of() {
    let metadata = Metadata::new("a", "b").to_json();
    let image = image_of(&[(RAMDISK, b"r"), (KERNEL, b"k"), (CMDLINE, b"c"), (METADATA, &metadata)]);
    assert_eq!(boot(&image).unwrap().warnings, [Warning::RamdiskBeforeKernel { index: 0 }]);
}

#[test]
fn missing_and_unreadable_metadata_are_warned_of() {
    let image = image_of(&[(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b"r")]);
    assert_eq!(boot(&image).unwrap().warnings, [Warning::NoMetadata]);
    let image = image_of(&[(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b"r"), (METADATA, b"{")]);
    let read = boot(&image).unwrap();
    assert!(matches!(read.warnings[..], [Warning::MetadataUnreadable { .. }]));
    assert_eq!((read.metadata, read.metadata_json.as_deref()), (None, Some(&b"{"[..])));
}

#[test]
fn last_of_several_metadata_sections_counts() {
    let (first, last) = (Metadata::new("first", "1").to_json(), Metadata::new("last", "1").to_json());
    let image = image_of(&[(KERNEL, b"k"), (CMDLINE, b"c"), (METADATA, &first), (RAMDISK, b"r"), (METADATA, &last)]);
    let read = boot(&image).unwrap();
    assert_eq!(read.warnings, [Warning::Superseded { kind: SectionKind::Metadata, index: 2 }]);
    assert_eq!(read.metadata.unwrap().image_name, "last");
}

#[test]
fn sections_newer_than_the_version_are_warned_of() {
    let described = describe(&plain_with(VERSION, &[0, 2])).unwrap();
    let warning = Warning::SectionNewerThanVersion { index: 2, kind: SectionKind::Metadata, version: 2 };
    assert_eq!(described.warnings, [warning]);
}

#[test]
fn signature_that_cannot_be_decoded_is_refused() {
    let metadata = Metadata::new("a", "b").to_json();
    let too_long = vec![0; 32769];
    for signature in [&b"no cbor"[..], b"\x80", b"", &too_long] {
        let mut sections = plain_sections(&metadata);
        sections.push((SIGNATURE, signature));
        let image = image_of(&sections);
        assert!(matches!(refusal(&image), Error::Signature { index: 5, .. }));
        let described = describe(&image).unwrap();
        assert_eq!(described.signature.as_deref(), Some(signature));
        assert_eq!(described.measurements.pcr8, None);
    }
    let mut sections = plain_sections(&metadata);
    sections.push((SIGNATURE, &too_long));
    let error = refusal(&image_of(&sections));
    assert!(matches!(error, Error::Signature { source: SignatureError::TooLong { found: 32769 }, .. }));
}

#[test]
fn cmdline_that_is_not_text_is_refused_at_its_offset() {
    let metadata = Metadata::new("a", "b").to_json();
    for (cmdline, position) in [(&b"ab\0c"[..], 2), (b"a\xff", 1)] {
        let image = image_of(&[(KERNEL, b"k"), (CMDLINE, cmdline), (METADATA, &metadata), (RAMDISK, b"r")]);
        let start = section_offset(&image, 1) as u64 + 12;
        assert!(matches!(refusal(&image), Error::CmdlineNotText { offset, .. } if offset == start + position));
    }
}

#[test]
fn empty_kernel_cmdline_and_ramdisk_are_no_error_of_the_format() {
    let metadata = Metadata::new("a", "b").to_json();
    let image = boot(&image_of(&[(KERNEL, b""), (CMDLINE, b""), (METADATA, &metadata), (RAMDISK, b"")])).unwrap();
    assert_eq!((image.kernel.len(), image.cmdline.len(), image.initrd.len()), (0, 0, 0));
}

#[test]
fn appended_ramdisk_is_measured_as_one_more() {
    let metadata = Metadata::new("plain", "1").to_json();
    let mut sections = plain_sections(&metadata);
    sections.push((RAMDISK, b"the user's own"));
    let with_section = boot(&image_of(&sections)).unwrap();
    let mut appended = boot(&plain_image()).unwrap();
    assert_eq!(appended.append_ramdisk(&b"the user's own"[..]).unwrap(), 14);
    assert_eq!(appended.measurements(), with_section.measurements());
    assert_eq!(appended.initrd, with_section.initrd);
    assert_eq!(appended.ramdisks, with_section.ramdisks);
    let before = boot(&plain_image()).unwrap().measurements();
    assert_ne!(appended.measurements().pcr0, before.pcr0);
    assert_eq!(appended.measurements().pcr1, before.pcr1);
    assert_ne!(appended.measurements().pcr2, before.pcr2);
}

#[test]
fn ramdisk_that_cannot_be_read_changes_nothing() {
    struct Failing(bool);
    impl std::io::Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::Error::other("gone"));
            }
            buffer[0] = 1;
            Ok(1)
        }
    }
    let mut image = boot(&plain_image()).unwrap();
    assert!(image.append_ramdisk(Failing(false)).is_err());
    assert_eq!(image.initrd, b"the boot ramdiskthe application");
    assert_eq!(image.measurements(), boot(&plain_image()).unwrap().measurements());
}

#[test]
fn appended_cmdline_follows_one_space_and_is_not_measured() {
    let mut image = boot(&plain_image()).unwrap();
    let before = image.measurements();
    assert_eq!(image.append_cmdline(""), None);
    assert_eq!(image.append_cmdline("quiet"), Some(Warning::CmdlineNotMeasured));
    assert_eq!(image.cmdline, "console=ttyS0 panic=30 quiet");
    assert_eq!(image.measurements(), before);
}

#[test]
fn every_error_and_warning_is_one_line_of_lower_case_without_a_full_stop() {
    let mut texts: Vec<String> = Vec::new();
    let image = plain_image();
    for size in (0..image.len()).step_by(7) {
        texts.push(refusal(&image[..size]).to_string());
    }
    for (offset, bytes) in [(0, &b"abcd"[..]), (VERSION, &[0, 2]), (FLAGS, &[0, 1]), (COUNT, &[0, 99])] {
        texts.push(refusal(&plain_with(offset, bytes)).to_string());
    }
    texts.push(Warning::CmdlineNotMeasured.to_string());
    texts.push(Warning::NoMetadata.to_string());
    for text in texts {
        assert!(!text.contains('\n') && !text.ends_with('.') && !text.contains("  "), "{text}");
    }
}
