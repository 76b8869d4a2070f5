//! The signature section as bytes.
//!
//! The section is CBOR: an array of maps of two arrays of integers (not byte strings), the PEM of the signing certificate
//! and a COSE_Sign1 over PCR0. Only the first map counts. What the
//! signature says and whether it is right is for `cose`.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pem;

/// The longest signature section that the specification allows, in bytes.
pub const MAX_SIGNATURE_SIZE: u64 = 32768;

/// Nesting of the deepest valid section is three; the rest is room for fields that are ignored.
const MAX_DEPTH: usize = 16;

/// Why a signature section cannot be decoded.
#[derive(Debug, Error)]
pub enum SignatureError {
    /// It is longer than [`MAX_SIGNATURE_SIZE`].
    #[error("it has {found} bytes, expected at most {MAX_SIGNATURE_SIZE}")]
    TooLong {
        /// Its size in bytes.
        found: u64,
    },
    /// It is not CBOR, or not of the right shape.
    #[error("it is not a cbor array of signing_certificate and signature: {reason}")]
    Cbor {
        /// What the decoder said.
        reason: String,
    },
    /// The array is empty.
    #[error("its array is empty, expected at least one signature")]
    Empty,
    /// The certificate is not PEM.
    #[error("its certificate is not pem: {reason}")]
    Pem {
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The first entry of a signature section.
///
/// ```
/// # let certificate = std::fs::read("../eif-cli/tests/keys/p384.pem")?;
/// let section = eif::SigningEntry::encode(&certificate, b"a COSE_Sign1")?;
/// let entry = eif::SigningEntry::decode(&section)?;
/// assert_eq!(entry.cose_sign1, b"a COSE_Sign1");
/// assert_eq!(entry.certificate_der[0], 0x30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningEntry {
    /// The signing certificate, DER. Its SHA-384 is what PCR8 is extended with.
    pub certificate_der: Vec<u8>,
    /// The certificates that follow it in the PEM text, DER. Nothing measures them; a chain may be among them.
    pub further_certificates: Vec<Vec<u8>>,
    /// The signature, a COSE_Sign1.
    pub cose_sign1: Vec<u8>,
}

/// What is wrong with CBOR, in words; the decoder's own text is that of its data structures.
pub(crate) fn cbor_reason<T>(error: &ciborium::de::Error<T>) -> String {
    match error {
        ciborium::de::Error::Io(_) => "it ends early".to_owned(),
        ciborium::de::Error::Syntax(offset) => format!("byte {offset:#x} is not cbor"),
        ciborium::de::Error::Semantic(_, reason) => reason.clone(),
        ciborium::de::Error::RecursionLimitExceeded => "it is nested too deep".to_owned(),
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    signing_certificate: Vec<u8>,
    signature: Vec<u8>,
}

impl SigningEntry {
    /// Decodes a signature section's data.
    pub fn decode(mut section: &[u8]) -> Result<Self, SignatureError> {
        let found = section.len() as u64;
        if found > MAX_SIGNATURE_SIZE {
            return Err(SignatureError::TooLong { found });
        }
        let entries: Vec<Entry> = ciborium::de::from_reader_with_recursion_limit(&mut section, MAX_DEPTH)
            .map_err(|error| SignatureError::Cbor { reason: cbor_reason(&error) })?;
        let first = entries.into_iter().next().ok_or(SignatureError::Empty)?;
        let mut certificates =
            pem::certificates(&first.signing_certificate).map_err(|reason| SignatureError::Pem { reason })?;
        let certificate_der = certificates.remove(0);
        Ok(Self { certificate_der, further_certificates: certificates, cose_sign1: first.signature })
    }

    /// A signature section's data: this certificate, PEM, and this COSE_Sign1.
    pub fn encode(certificate_pem: &[u8], cose_sign1: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let entry = Entry { signing_certificate: certificate_pem.to_vec(), signature: cose_sign1.to_vec() };
        let mut section = Vec::new();
        ciborium::into_writer(&[entry], &mut section)
            .map_err(|error| SignatureError::Cbor { reason: error.to_string() })?;
        match section.len() as u64 {
            found if found > MAX_SIGNATURE_SIZE => Err(SignatureError::TooLong { found }),
            _ => Ok(section),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_decodes_to_what_was_encoded() {
        let pem = b"-----BEGIN CERTIFICATE-----\nMAMCAQU=\n-----END CERTIFICATE-----\n";
        let section = SigningEntry::encode(pem, b"cose").unwrap();
        let entry = SigningEntry::decode(&section).unwrap();
        assert_eq!((&*entry.certificate_der, &*entry.cose_sign1), (&[0x30, 3, 2, 1, 5][..], &b"cose"[..]));
        assert!(matches!(SigningEntry::encode(&[b'a'; 20000], b""), Err(SignatureError::TooLong { .. })));
    }

    #[test]
    fn what_is_wrong_with_cbor_is_told_in_words() {
        let text = |section: &[u8]| SigningEntry::decode(section).unwrap_err().to_string();
        let start = "it is not a cbor array of signing_certificate and signature: ";
        assert_eq!(text(b""), format!("{start}it ends early"));
        assert_eq!(text(b"\x81\x1c"), format!("{start}byte 0x1 is not cbor"));
        assert_eq!(text(b"\x81\xa0"), format!("{start}missing field `signing_certificate`"));
        // In a field that is ignored.
        let deep = [&[0x81, 0xa1, 0x61, b'x'][..], &[0x81; 40]].concat();
        assert_eq!(text(&deep), format!("{start}it is nested too deep"));
    }

    #[test]
    fn sections_of_another_shape_are_refused() {
        assert!(matches!(SigningEntry::decode(b""), Err(SignatureError::Cbor { .. })));
        assert!(matches!(SigningEntry::decode(b"\x80"), Err(SignatureError::Empty)));
        assert!(matches!(SigningEntry::decode(b"\x81\xa0"), Err(SignatureError::Cbor { .. })));
        assert!(matches!(SigningEntry::decode(&[0x81; 4096]), Err(SignatureError::Cbor { .. })));
        assert!(matches!(SigningEntry::decode(&[0; 32769]), Err(SignatureError::TooLong { found: 32769 })));
    }
}
