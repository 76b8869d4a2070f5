//! Everything that can be said about an image's signature, check by check.

use std::time::SystemTime;

use serde::Serialize;

use super::certificate::{Certificate, CertificateError, Validity};
use super::cose::SignedPcr;
use crate::description::Description;

/// Certificates that are followed from the signing certificate up; longer chains are not followed.
const LONGEST_CHAIN: usize = 16;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub enum Outcome {
    /// It is right.
    Passed,
    /// It is wrong.
    Failed,
    /// It cannot be told.
    Unknown,
}

/// One check of a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self { name, outcome, detail: detail.into() }
    }
}

/// Checks the signature of an image, as of a moment. With roots, the chain must end at one of them; without, it is followed as
/// far as the certificates in the image reach. An unsigned image gets no checks.
///
/// ```
/// use eif::signing::{self, Certificate, Outcome, Request, SigningKey};
///
/// # let certificate = std::fs::read("../eif-cli/tests/keys/p384.pem")?;
/// # let key = SigningKey::from_pem(&std::fs::read("../eif-cli/tests/keys/p384.key.pem")?)?;
/// # let image = eif::Writer::new(b"a bzImage".to_vec(), "").ramdisk(vec![1]);
/// # let section = Request::new(&image.measurements().pcr0, &certificate)?.sign(&key)?;
/// # let file = std::io::Cursor::new(image.signature(section).to_vec()?);
/// let described = eif::Description::read(file)?;
/// let roots = Certificate::all_from_pem(&certificate)?;
/// let checks = signing::check_signature(&described, &roots, std::time::SystemTime::now());
/// let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
/// assert_eq!(names, ["certificate", "signature", "signed PCR0", "validity", "chain"]);
/// assert!(checks.iter().all(|check| check.outcome == Outcome::Passed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_signature(description: &Description, roots: &[Certificate], moment: SystemTime) -> Vec<Check> {
    let Some(entry) = &description.signing_entry else {
        return match &description.signature {
            None => Vec::new(),
            Some(_) => vec![Check::new("signature", Outcome::Failed, "the signature section cannot be decoded")],
        };
    };
    let certificate = match Certificate::from_der(&entry.certificate_der) {
        Ok(certificate) => certificate,
        Err(error) => return vec![Check::new("certificate", Outcome::Failed, error.to_string())],
    };
    let mut checks = Vec::new();
    match certificate.public_key() {
        Err(error) => checks.push(Check::new("certificate", Outcome::Failed, error.to_string())),
        Ok(key) => {
            let detail = format!("{} key, {}", key.curve(), one_line(&certificate));
            checks.push(Check::new("certificate", Outcome::Passed, detail));
            match SignedPcr::verify(&entry.cose_sign1, &key) {
                Err(error) => checks.push(Check::new("signature", Outcome::Failed, with_causes(&error))),
                Ok(signed) => {
                    checks.push(Check::new("signature", Outcome::Passed, "made with the certificate's key"));
                    checks.push(signed_pcr0(&signed, description));
                }
            }
        }
    }
    let (outcome, detail) = match certificate.validity_at(moment) {
        Validity::Valid => (Outcome::Passed, format!("until {}", certificate.not_after())),
        Validity::NotYet => (Outcome::Failed, format!("not valid before {}", certificate.not_before())),
        Validity::Expired => (Outcome::Failed, format!("expired at {}", certificate.not_after())),
    };
    checks.push(Check::new("validity", outcome, detail));
    let further: Vec<Certificate> =
        entry.further_certificates.iter().filter_map(|der| Certificate::from_der(der).ok()).collect();
    checks.push(chain(&certificate, &further, roots));
    checks
}

fn signed_pcr0(signed: &SignedPcr, description: &Description) -> Check {
    const NAME: &str = "signed PCR0";
    if signed.register_index != 0 {
        let detail = format!("PCR{} is signed, expected PCR0", signed.register_index);
        return Check::new(NAME, Outcome::Failed, detail);
    }
    if signed.register_value == description.measurements.pcr0 {
        return Check::new(NAME, Outcome::Passed, "the measured one");
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (found, expected) = (hex(&signed.register_value), hex(&description.measurements.pcr0));
    Check::new(NAME, Outcome::Failed, format!("{found} is signed, but {expected} is measured"))
}

fn chain(leaf: &Certificate, further: &[Certificate], roots: &[Certificate]) -> Check {
    const NAME: &str = "chain";
    let mut current = leaf;
    for length in 1..=LONGEST_CHAIN {
        if let Some(root) = roots.iter().find(|root| current.verify_issued_by(root).is_ok()) {
            let detail = format!("{length} below the given root, {}", one_line(root));
            return Check::new(NAME, Outcome::Passed, detail);
        }
        if current.is_self_issued() {
            return match current.verify_issued_by(current) {
                Ok(()) if roots.is_empty() => {
                    Check::new(NAME, Outcome::Passed, "ends at a self-signed certificate; no root was given")
                }
                Ok(()) => Check::new(NAME, Outcome::Failed, "ends at a self-signed certificate, not at a given root"),
                Err(error @ CertificateError::Signature(_)) => {
                    Check::new(NAME, Outcome::Failed, format!("{}: {}", one_line(current), with_causes(&error)))
                }
                Err(error) => Check::new(NAME, Outcome::Unknown, error.to_string()),
            };
        }
        match further.iter().find(|issuer| current.verify_issued_by(issuer).is_ok()) {
            Some(issuer) => current = issuer,
            None => {
                let outcome = if roots.is_empty() { Outcome::Unknown } else { Outcome::Failed };
                return Check::new(NAME, outcome, format!("the issuer of {} is not at hand", one_line(current)));
            }
        }
    }
    Check::new(NAME, Outcome::Unknown, format!("longer than {LONGEST_CHAIN} certificates"))
}

fn one_line(certificate: &Certificate) -> String {
    let subject = certificate.subject();
    match subject.get("commonName") {
        Some(name) => format!("\"{name}\""),
        None => format!("{subject:?}"),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
