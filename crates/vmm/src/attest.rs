//! `vmm attest`: the authority's root for verifiers to pin, and a verifier.
//!
//! `verify` prints one line a check, `name: holds` or `name: DOES NOT HOLD: why`, on standard output, and ends with 0 only if all hold.
//! Deliberately missing: revocation lists, and AWS's own root, which the user gives as any other.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::{AuthorityError, Check, Expectations, Report, certificate_from_pem, verify};
use base64ct::{Base64, Encoding};
use clap::{Args, Subcommand};
use nitro_enclave::{AuthorityChoice, EnclaveError, LoadError, measured_pcrs};
use thiserror::Error;

use crate::exit::ExitStatus;

/// The longest document that is read, in bytes; a real one has about five thousand, and twice that as text.
const MAX_DOCUMENT: u64 = 1 << 20;

/// `vmm attest`.
#[derive(Debug, Clone, Subcommand)]
pub enum Attest {
    /// Prints the root certificate of the attestation authority as PEM; the user's own authority is made if there is none yet
    Root(Root),
    /// Says what of an attestation document holds; ends with 0 if everything does, with 1 if anything does not
    Verify(Verify),
}

/// `vmm attest root`.
#[derive(Debug, Clone, Args)]
pub struct Root {
    /// Whose root, as enclave.authority: auto, seed:TEXT, or the PATH of a PEM file
    #[arg(long, value_name = "WHICH", default_value = "auto", value_parser = authority_choice)]
    authority: AuthorityChoice,
}

/// `vmm attest verify`.
#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// The document: raw, hexadecimal or base64; - for standard input
    #[arg(value_name = "DOC")]
    document: PathBuf,
    /// The trusted root certificate
    #[arg(long, value_name = "PEM")]
    root: PathBuf,
    /// The nonce that it must have
    #[arg(long, value_name = "HEX", value_parser = Bytes::parse)]
    nonce: Option<Bytes>,
    /// The PCR0 that it must have
    #[arg(long, value_name = "HEX", value_parser = Bytes::parse, conflicts_with = "eif")]
    pcr0: Option<Bytes>,
    /// The image whose PCR0, PCR1, PCR2 and, if it is signed, PCR8 it must have
    #[arg(long, value_name = "FILE")]
    eif: Option<PathBuf>,
    /// Seconds since 1970 at which its certificates must be valid, in place of now
    #[arg(long, value_name = "SECONDS")]
    at: Option<u64>,
}

/// Bytes that were typed in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn parse(text: &str) -> Result<Self, String> {
        unhex(text).map(Self).ok_or_else(|| "expected an even number of hexadecimal digits".to_owned())
    }
}

/// Why there is nothing to print.
#[derive(Debug, Error)]
pub enum AttestError {
    /// The authority is not to be had.
    #[error(transparent)]
    Authority(#[from] LoadError),
    /// Its root cannot be written.
    #[error("cannot write the root certificate")]
    Encode(#[from] AuthorityError),
    /// A file cannot be read.
    #[error("cannot read {what} {path}")]
    Read {
        /// `"the document"` or `"the root certificate"`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The document is neither raw nor text.
    #[error("{path} is neither a raw attestation document nor one in hexadecimal or base64")]
    Text {
        /// The file.
        path: PathBuf,
    },
    /// The root is not a certificate.
    #[error("{path} is no root certificate")]
    Root {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: AuthorityError,
    },
    /// The image cannot be measured.
    #[error(transparent)]
    Image(#[from] EnclaveError),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// Carries the command out.
///
/// # Errors
/// [`AttestError`], for which the exit code is 1 as for a document that does not hold.
pub fn run(command: &Attest) -> Result<ExitStatus, AttestError> {
    let mut output = io::stdout().lock();
    match command {
        Attest::Root(Root { authority }) => {
            let root = authority.load()?.root_pem()?;
            output.write_all(root.as_bytes()).map_err(AttestError::Output)?;
            Ok(ExitStatus::PoweredOff)
        }
        Attest::Verify(arguments) => {
            let report = arguments.report()?;
            arguments.print(&report, &mut output).map_err(AttestError::Output)?;
            Ok(if report.holds() { ExitStatus::PoweredOff } else { ExitStatus::Failed })
        }
    }
}

impl Verify {
    fn report(&self) -> Result<Report, AttestError> {
        let document = read_document(&self.document)?;
        let root = std::fs::read_to_string(&self.root).map_err(|source| AttestError::Read {
            what: "the root certificate",
            path: self.root.clone(),
            source,
        })?;
        let root =
            certificate_from_pem(&root).map_err(|source| AttestError::Root { path: self.root.clone(), source })?;
        let mut pcrs: BTreeMap<u16, Vec<u8>> = match &self.eif {
            Some(path) => measured_pcrs(path)?,
            None => BTreeMap::new(),
        };
        pcrs.extend(self.pcr0.as_ref().map(|Bytes(pcr0)| (0, pcr0.clone())));
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let nonce = self.nonce.as_ref().map(|Bytes(nonce)| nonce.clone());
        Ok(verify(&document, &root, &Expectations { now: self.at.unwrap_or_else(clock), nonce, pcrs }))
    }

    fn print(&self, report: &Report, output: &mut dyn Write) -> io::Result<()> {
        for finding in &report.findings {
            match &finding.outcome {
                Ok(()) => writeln!(output, "{}: holds", finding.check)?,
                Err(refusal) => writeln!(output, "{}: DOES NOT HOLD: {refusal}", finding.check)?,
            }
        }
        let Some(payload) = &report.payload else { return Ok(()) };
        let checked = |check| report.findings.iter().any(|finding| finding.check == check);
        for (check, option) in [(Check::Nonce, "--nonce"), (Check::Pcr(0), "--pcr0 or --eif")] {
            if !checked(check) {
                writeln!(output, "{check}: not checked, as there is no {option}")?;
            }
        }
        if payload.pcrs.get(&0).is_some_and(|pcr0| pcr0.iter().all(|byte| *byte == 0)) {
            writeln!(output, "note: PCR0 is zero, so the enclave runs in debug mode and nothing is said of its image")?;
        }
        let verdict = if report.holds() { "holds" } else { "DOES NOT HOLD" };
        writeln!(output, "document of {}, signed {} ms after 1970: {verdict}", payload.module_id, payload.timestamp)
    }
}

fn read_document(path: &Path) -> Result<Vec<u8>, AttestError> {
    let read = |source| AttestError::Read { what: "the document", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let mut reader: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(std::fs::File::open(path).map_err(read)?) };
    reader.by_ref().take(MAX_DOCUMENT).read_to_end(&mut bytes).map_err(read)?;
    decode_text(bytes).ok_or_else(|| AttestError::Text { path: path.to_owned() })
}

/// A document as it came: an array of four, tagged or not, starts with a byte that is not ASCII; all else is taken for text.
fn decode_text(bytes: Vec<u8>) -> Option<Vec<u8>> {
    if bytes.first().is_none_or(|first| !first.is_ascii()) {
        return Some(bytes);
    }
    let text: String = String::from_utf8(bytes).ok()?.split_ascii_whitespace().collect();
    unhex(&text).or_else(|| Base64::decode_vec(&text).ok())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

fn authority_choice(text: &str) -> Result<AuthorityChoice, String> {
    AuthorityChoice::parse(text, Path::new("")).ok_or_else(|| "expected auto, seed:TEXT or a path".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_raw_in_hexadecimal_and_in_base64() {
        let document = vec![0x84, 0x44, 0xa1, 0x01];
        for text in [document.clone(), b"8444a101\n".to_vec(), b" 8444\n A101".to_vec(), b"hEShAQ==\n".to_vec()] {
            assert_eq!(decode_text(text), Some(document.clone()));
        }
        assert_eq!(decode_text(b"not a document!".to_vec()), None);
        assert_eq!(decode_text("ünicode".into()), Some("ünicode".into()));
    }

    #[test]
    fn typed_bytes_have_two_digits_each() {
        assert_eq!(Bytes::parse("0aFF"), Ok(Bytes(vec![10, 255])));
        assert!(Bytes::parse("0").is_err());
        assert!(Bytes::parse("zz").is_err());
        assert!(Bytes::parse("+1").is_err());
    }
}
