//! The signature section, as far as measuring it needs.
//!
//! The section is CBOR: an array of maps of two arrays of integers (not byte strings), the PEM of the signing certificate
//! and a COSE_Sign1 over PCR0. Only the first map counts. Verifying the signature is deliberately missing here.

use serde::Deserialize;
use thiserror::Error;

/// The longest signature section that the specification allows, in bytes.
pub const MAX_SIGNATURE_SIZE: u64 = 32768;

/// Nesting of the deepest valid section is three; the rest is room for fields that are ignored.
const MAX_DEPTH: usize = 16;

const PEM_LABELS: [&str; 3] = ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"];

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningEntry {
    /// The signing certificate, DER. Its SHA-384 is what PCR8 is extended with.
    pub certificate_der: Vec<u8>,
    /// The signature, a COSE_Sign1.
    pub cose_sign1: Vec<u8>,
}

#[derive(Deserialize)]
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
            .map_err(|error| SignatureError::Cbor { reason: error.to_string() })?;
        let first = entries.into_iter().next().ok_or(SignatureError::Empty)?;
        let certificate_der = pem_to_der(&first.signing_certificate)?;
        Ok(Self { certificate_der, cose_sign1: first.signature })
    }
}

/// The first certificate of a PEM text (RFC 7468), as OpenSSL finds it: whatever stands before or after is ignored.
fn pem_to_der(pem: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let error = |reason| SignatureError::Pem { reason };
    let text = str::from_utf8(pem).map_err(|_| error("it is not text"))?;
    let mut lines = text.lines().map(str::trim_end);
    let label = lines
        .find_map(|line| {
            let label = line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
            PEM_LABELS.contains(&label).then_some(label)
        })
        .ok_or(error("there is no BEGIN CERTIFICATE line"))?;
    let end = format!("-----END {label}-----");
    let mut base64 = String::new();
    loop {
        match lines.next() {
            Some(line) if line == end => break,
            Some(line) => base64.push_str(line),
            None => return Err(error("there is no END CERTIFICATE line")),
        }
    }
    let mut der = decode_base64(base64.as_bytes()).ok_or(error("its base64 is malformed"))?;
    // What is measured is the certificate alone, without bytes that may follow it (OpenSSL's auxiliary trust data do).
    let size = der_size(&der).ok_or(error("it does not hold a DER sequence"))?;
    der.truncate(size);
    Ok(der)
}

/// The size in bytes of the DER SEQUENCE at the start, or `None` if there is no whole one (X.690 8.1.3).
fn der_size(der: &[u8]) -> Option<usize> {
    const SEQUENCE: u8 = 0x30;
    let [SEQUENCE, first, rest @ ..] = der else { return None };
    let (header, size) = match first {
        0..=0x7f => (2, usize::from(*first)),
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let size = rest.get(..count)?.iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
            (2 + count, size)
        }
        _ => return None,
    };
    let end = header.checked_add(size)?;
    (end <= der.len()).then_some(end)
}

/// Standard base64 with padding (RFC 4648 section 4), without line breaks; `None` if it is malformed.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text[..text.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for character in group {
            bits = bits << 6 | base64_value(*character)?;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

fn base64_value(character: u8) -> Option<u32> {
    let value = match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(label: &str, base64: &str) -> Vec<u8> {
        format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n").into_bytes()
    }

    #[test]
    fn base64_test_vectors_of_rfc_4648() {
        let vectors: [(&str, &[u8]); 7] = [
            ("", b""),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("Zm9vYmE=", b"fooba"),
            ("Zm9vYmFy", b"foobar"),
        ];
        for (text, bytes) in vectors {
            assert_eq!(decode_base64(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zg=", "Zg", "====", "Z===", "Zm9\n", "Zm9-", "=Zm9"] {
            assert_eq!(decode_base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn der_is_taken_out_of_the_first_certificate() {
        // 30 03 02 01 05
        let mut text = b"Certificate:\n    Data: whatever\n".to_vec();
        text.extend(pem("CERTIFICATE", "MAMC\r\nAQU="));
        text.extend(pem("CERTIFICATE", "MAA="));
        assert_eq!(pem_to_der(&text).unwrap(), [0x30, 3, 2, 1, 5]);
    }

    #[test]
    fn bytes_behind_the_certificate_are_not_measured() {
        // 30 03 02 01 05 ff
        assert_eq!(pem_to_der(&pem("TRUSTED CERTIFICATE", "MAMCAQX/")).unwrap(), [0x30, 3, 2, 1, 5]);
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for text in [
            b"".to_vec(),
            b"\xff\xfe".to_vec(),
            b"-----BEGIN CERTIFICATE-----\nMAA=\n".to_vec(),
            pem("PRIVATE KEY", "MAA="),
            pem("CERTIFICATE", "M"),
            pem("CERTIFICATE", ""),
            pem("CERTIFICATE", "MAMC"),
            pem("CERTIFICATE", "MIT///8="),
        ] {
            assert!(pem_to_der(&text).is_err(), "{}", text.escape_ascii());
        }
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
