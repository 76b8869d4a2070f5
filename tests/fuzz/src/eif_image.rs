//! Enclave images: the machine's reader, the one that describes, and what is said of other readers. The two of ours must agree
//! on what an image measures.

use std::io::Cursor;

use eif::{BootImage, Description, Metadata, Writer};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "eif-image", seeds, run, longest: 16384 };

fn run(input: &[u8]) {
    let booted = BootImage::read(Cursor::new(input));
    let described = Description::read(Cursor::new(input));
    match (&booted, &described) {
        (Ok(booted), Ok(described)) => {
            assert!(described.refusals.is_empty(), "what boots is described without a refusal");
            assert_eq!(booted.measurements(), described.measurements);
        }
        (Ok(_), Err(error)) => panic!("what boots cannot be described: {error}"),
        (Err(error), _) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(described) = described {
        // Whoever reads a verdict prints it.
        let judgements = eif::judge(Cursor::new(input), &described).expect("bytes in memory can be read");
        assert!(judgements.iter().all(|judgement| judgement.accepts || !judgement.reasons.is_empty()));
        let text: String = described.warnings.iter().map(ToString::to_string).collect();
        assert!(text.is_empty() == described.warnings.is_empty());
        let mut resigned = Cursor::new(Vec::new());
        if eif::resign(Cursor::new(input), &mut resigned, |_| Ok(vec![0x80])).is_ok() {
            let again = Description::read(resigned).expect("what was signed again can be described");
            assert_eq!(again.measurements.pcr0, described.measurements.pcr0);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let plain = Writer::new(b"kernel".to_vec(), "console=ttyS0")
        .metadata(Metadata::new("fuzz", "1").to_json())
        .ramdisk(b"one".to_vec())
        .ramdisk(b"two".to_vec());
    let golden: [&[u8]; 3] = [
        include_bytes!("../../../crates/eif/tests/golden/unsigned.eif"),
        include_bytes!("../../../crates/eif/tests/golden/signed.eif"),
        include_bytes!("../../../crates/eif/tests/golden/resigned.eif"),
    ];
    let small = plain.to_vec().expect("a small image can be written");
    golden.into_iter().map(<[u8]>::to_vec).chain([small]).collect()
}
