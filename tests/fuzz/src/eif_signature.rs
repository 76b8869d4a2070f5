//! Signature sections of enclave images: CBOR, PEM, X.509 and COSE. A section that was decoded is checked whole, against an image
//! that it does not fit, so it must never be found to sign its PCR0.

use std::io::Cursor;
use std::time::{Duration, UNIX_EPOCH};

use eif::nitro_cli::DescribeEif;
use eif::signing::{Outcome, check_signature};
use eif::{Description, SigningEntry, Writer};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "eif-signature", seeds, run, longest: 8192 };

/// 2026-01-01 00:00:00 UTC, in seconds.
const NOW: u64 = 1_767_225_600;

fn run(input: &[u8]) {
    let Ok(entry) = SigningEntry::decode(input) else { return };
    assert!(!entry.certificate_der.is_empty());
    let image = Writer::new(b"kernel".to_vec(), "").ramdisk(b"ramdisk".to_vec()).signature(input.to_vec());
    let image = image.to_vec().expect("a small image can be written");
    let described = Description::read(Cursor::new(image)).expect("what was written can be described");
    let checks = check_signature(&described, &[], UNIX_EPOCH + Duration::from_secs(NOW));
    assert!(!checks.iter().any(|check| check.name == "signed PCR0" && check.outcome == Outcome::Passed));
    let _ = format!("{:?}", DescribeEif::new(&described));
}

fn seeds() -> Vec<Vec<u8>> {
    let golden: [&[u8]; 2] = [
        include_bytes!("../../../crates/eif/tests/golden/signed.eif"),
        include_bytes!("../../../crates/eif/tests/golden/resigned.eif"),
    ];
    let section = |image: &[u8]| Description::read(Cursor::new(image)).ok().and_then(|described| described.signature);
    golden.into_iter().filter_map(section).collect()
}
