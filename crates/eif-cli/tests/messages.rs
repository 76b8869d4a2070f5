//! Every error of the command, with its full text, causes and hint, as it is printed.

use std::io;

use eif_cli::{Error, error_text};

fn io_error() -> io::Error {
    io::Error::other("what the system says")
}

/// Gives errors the names of their variants; one that is left out does not compile.
macro_rules! variants {
    ($($variant:ident)+) => {
        const VARIANTS: &[&str] = &[$(stringify!($variant)),+];

        fn variant(error: &Error) -> &'static str {
            match error {
                $(Error::$variant { .. } => stringify!($variant),)+
            }
        }
    };
}

variants!(File Output Image Write Resign Certificate Key Signing Json Ramdisk Container Name Epoch);

#[test]
fn every_error_has_its_text() {
    let path = std::path::PathBuf::from("FILE");
    let stale = eif::Error::StaleSize {
        index: 5,
        kind: eif::SectionKind::Signature,
        offset: 0x144,
        section_offset: 0x550,
        in_header: 700,
        in_section: 900,
    };
    let errors = [
        (
            Error::File { verb: "open", path: path.clone(), source: io_error() },
            "eif: error: cannot open FILE\n  1: what the system says",
        ),
        (Error::Output(io_error()), "eif: error: cannot write to standard output\n  1: what the system says"),
        (
            Error::Image { path: path.clone(), source: stale },
            "eif: error: FILE cannot be read as an enclave image\n  1: the size of section 5 (signature) is 700 bytes in the header's \
             table at offset 0x144, but 900 bytes in the section's own header at offset 0x550\n  hint: the image was probably signed a \
             second time by AWS's tools, which leave the first signature's size in the header (aws-nitro-enclaves-image-format issue \
             54); `eif sign` signs it anew with a header that fits",
        ),
        (
            Error::Write { path: path.clone(), source: eif::WriteError::NoRamdisk },
            "eif: error: FILE cannot be written\n  1: an eif needs at least one ramdisk",
        ),
        (
            Error::Resign { path: path.clone(), source: eif::ResignError::Full },
            "eif: error: FILE cannot be signed\n  1: the image has 32 sections already: there is no room for a signature",
        ),
        (
            Error::Certificate {
                path: path.clone(),
                source: eif::signing::CertificateError::Der { reason: "it ends early".to_owned() },
            },
            "eif: error: FILE holds no usable certificate\n  1: it is not an x.509 certificate: it ends early",
        ),
        (
            Error::Key { path: path.clone(), source: eif::signing::KeyError::Encrypted },
            "eif: error: FILE holds no usable private key\n  1: the private key is encrypted, expected one without a passphrase\n  hint: \
             `openssl pkcs8 -topk8 -nocrypt -in KEY` takes the passphrase off",
        ),
        (
            Error::Signing(eif::signing::CoseError::OtherKey),
            "eif: error: the signature cannot be made\n  1: the private key is not the one of the certificate",
        ),
        (
            Error::Json { path: path.clone(), reason: "it is a list".to_owned() },
            "eif: error: FILE is not a json object: it is a list",
        ),
        (
            Error::Ramdisk {
                path: path.clone(),
                source: eif::ramdisks::RamdiskError::Special { path: "FILE/socket".into() },
            },
            "eif: error: the ramdisk of FILE cannot be made\n  1: FILE/socket is neither a file, a directory nor a symbolic link",
        ),
        (
            Error::Container { path: path.clone(), source: eif::containers::ContainerError::NoCommand },
            "eif: error: FILE cannot be read as a container image\n  1: the image has neither an entrypoint nor a command, and none was \
             given\n  hint: give the words of a command with --cmd",
        ),
        (Error::Name { path }, "eif: error: FILE is not text"),
        (
            Error::Epoch { found: "now".to_owned() },
            "eif: error: SOURCE_DATE_EPOCH is \"now\", expected seconds since 1970 below 4294967295",
        ),
    ];
    assert_eq!(errors.each_ref().map(|(error, _)| variant(error)), VARIANTS);
    for (error, expected) in errors {
        assert_eq!(error_text(&error), expected);
    }
}
