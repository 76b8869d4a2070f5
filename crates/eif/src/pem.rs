//! PEM texts (RFC 7468) as OpenSSL reads them: whatever stands before, between and after the blocks is ignored.
//!
//! Deliberately missing: encrypted keys and their headers, and making PEM.

/// The labels under which OpenSSL looks for a certificate.
const CERTIFICATE_LABELS: [&str; 3] = ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"];

/// One block of a PEM text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    /// What stands behind `BEGIN`.
    pub(crate) label: &'a str,
    /// What the base64 decodes to.
    pub(crate) der: Vec<u8>,
}

/// The first block whose label `wanted` takes, and the text behind it; `None` if there is no such block.
///
/// The error is what is wrong with the block.
pub(crate) fn next_block<'a>(
    text: &'a str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<(Block<'a>, &'a str)>, &'static str> {
    let mut rest = text;
    let label = loop {
        let Some(line) = next_line(&mut rest) else { return Ok(None) };
        let label = line.strip_prefix("-----BEGIN ").and_then(|line| line.strip_suffix("-----"));
        if let Some(label) = label.filter(|label| wanted(label)) {
            break label;
        }
    };
    let mut base64 = String::new();
    loop {
        let line = next_line(&mut rest).ok_or("there is no END line")?;
        if line.strip_prefix("-----END ").and_then(|line| line.strip_suffix("-----")) == Some(label) {
            break;
        }
        base64.push_str(line);
    }
    let der = decode_base64(base64.as_bytes()).ok_or("its base64 is malformed")?;
    Ok(Some((Block { label, der }, rest)))
}

fn next_line<'a>(rest: &mut &'a str) -> Option<&'a str> {
    if rest.is_empty() {
        return None;
    }
    let (line, behind) = rest.split_once('\n').unwrap_or((rest, ""));
    *rest = behind;
    Some(line.trim_end())
}

/// Every certificate of a PEM text, DER; at least one. The error is what is wrong with the text.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut rest = str::from_utf8(pem).map_err(|_| "it is not text")?;
    let mut found = Vec::new();
    while let Some((Block { mut der, .. }, behind)) = next_block(rest, |label| CERTIFICATE_LABELS.contains(&label))
        .or_else(|e| if found.is_empty() { Err(e) } else { Ok(None) })?
    {
        // What is measured is the certificate alone, without bytes that may follow it (OpenSSL's auxiliary trust data do).
        match der_size(&der) {
            Some(size) => der.truncate(size),
            None if found.is_empty() => return Err("it does not hold a DER sequence"),
            None => break,
        }
        found.push(der);
        rest = behind;
    }
    if found.is_empty() { Err("there is no BEGIN CERTIFICATE line") } else { Ok(found) }
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
    fn der_is_taken_out_of_every_certificate() {
        // 30 03 02 01 05
        let mut text = b"Certificate:\n    Data: whatever\n".to_vec();
        text.extend(pem("CERTIFICATE", "MAMC\r\nAQU="));
        text.extend(pem("CERTIFICATE", "MAA="));
        assert_eq!(certificates(&text).unwrap(), [vec![0x30, 3, 2, 1, 5], vec![0x30, 0]]);
    }

    #[test]
    fn bytes_behind_the_certificate_are_not_measured() {
        // 30 03 02 01 05 ff
        assert_eq!(certificates(&pem("TRUSTED CERTIFICATE", "MAMCAQX/")).unwrap(), [vec![0x30, 3, 2, 1, 5]]);
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
            assert!(certificates(&text).is_err(), "{}", text.escape_ascii());
        }
    }
}
