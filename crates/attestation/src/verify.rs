//! A verifier: what of a document holds, given the root that is trusted, and what does not.
//!
//! The checks are those of the attestation process, section 3.2, each with its own [`Finding`], so that one failure does not hide another.
//! The root is the one that the caller trusts, never the one that the document brings along. Revocation is not checked.

use std::collections::BTreeMap;
use std::fmt;

use p384::ecdsa::signature::Verifier as _;
use p384::ecdsa::{DerSignature, VerifyingKey};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};

use crate::document::{DocumentError, Payload, SignedDocument};

/// ecdsa-with-SHA384 (RFC 5758 section 3.2).
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");

/// What the caller expects of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expectations {
    /// The time at which its certificates must be valid, in seconds since 1970.
    pub now: u64,
    /// The nonce that was asked for; none: it does not matter.
    pub nonce: Option<Vec<u8>>,
    /// PCRs and the values that they must have.
    pub pcrs: BTreeMap<u16, Vec<u8>>,
}

/// One thing to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It is a COSE_Sign1 with the nine fields.
    Form,
    /// Its bundle starts with the trusted root.
    Root,
    /// Its certificates lead from the root to the leaf.
    Chain,
    /// They are valid at this time.
    Validity,
    /// The leaf signed it.
    Signature,
    /// It has the nonce.
    Nonce,
    /// A PCR has its value.
    Pcr(u16),
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("form"),
            Self::Root => f.write_str("root"),
            Self::Chain => f.write_str("certificate chain"),
            Self::Validity => f.write_str("certificate validity"),
            Self::Signature => f.write_str("signature"),
            Self::Nonce => f.write_str("nonce"),
            Self::Pcr(index) => write!(f, "PCR{index}"),
        }
    }
}

/// Why something does not hold. Certificates are counted from the root, which is 0, to the leaf.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The document is not one.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The bundle starts with another root.
    #[error("the bundle's first certificate is not the given root")]
    OtherRoot,
    /// A certificate cannot be read.
    #[error("certificate {index} is malformed")]
    Malformed {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: x509_cert::der::Error,
    },
    /// A certificate says that it was issued by another than the one above it.
    #[error("certificate {index} was issued by {found}, expected {expected}")]
    Issuer {
        /// Which.
        index: usize,
        /// Its issuer.
        found: String,
        /// The subject of the one above.
        expected: String,
    },
    /// A certificate that has issued another may not.
    #[error("certificate {index} may not issue certificates at this place (basicConstraints, keyUsage)")]
    MayNotIssue {
        /// Which.
        index: usize,
    },
    /// The leaf may do more or less than sign.
    #[error("the leaf certificate is not one that signs documents (basicConstraints, keyUsage)")]
    NotALeaf,
    /// An extension that has to be understood and is not.
    #[error("certificate {index} has the unknown critical extension {oid}")]
    Critical {
        /// Which.
        index: usize,
        /// The extension.
        oid: ObjectIdentifier,
    },
    /// A certificate is not signed by the one above.
    #[error("certificate {index} is not signed by the one above it with a P-384 key and SHA-384")]
    NotSigned {
        /// Which.
        index: usize,
    },
    /// A certificate is not valid yet, or no longer.
    #[error("certificate {index} is valid from {from} to {until}")]
    NotValid {
        /// Which.
        index: usize,
        /// Its first second.
        from: String,
        /// Its last.
        until: String,
    },
    /// The document is not signed by its leaf.
    #[error("the signature is not the leaf certificate's over this payload")]
    Signature,
    /// There is another nonce, or none.
    #[error("found {}, expected {}", hex(.found), hex(.expected))]
    Value {
        /// What there is.
        found: Vec<u8>,
        /// What there should be.
        expected: Vec<u8>,
    },
    /// There is no such value.
    #[error("there is none")]
    Missing,
}

/// How one check went.
#[derive(Debug)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Whether it holds.
    pub outcome: Result<(), Refusal>,
}

/// How all checks went.
#[derive(Debug)]
pub struct Report {
    /// Each check. If the form does not hold there is no other.
    pub findings: Vec<Finding>,
    /// What the document says, if it could be read; only to be believed if everything [holds](Self::holds).
    pub payload: Option<Payload>,
}

impl Report {
    /// Whether every check passed.
    pub fn holds(&self) -> bool {
        self.findings.iter().all(|finding| finding.outcome.is_ok())
    }
}

/// Verifies a document against the trusted `root` and what is expected of it.
pub fn verify(document: &[u8], root: &Certificate, expected: &Expectations) -> Report {
    let document = match SignedDocument::decode(document) {
        Ok(document) => document,
        Err(error) => {
            let findings = vec![Finding { check: Check::Form, outcome: Err(error.into()) }];
            return Report { findings, payload: None };
        }
    };
    let payload = document.payload();
    let mut findings = Vec::new();
    let mut note = |check, outcome| findings.push(Finding { check, outcome });
    note(Check::Form, Ok(()));
    note(Check::Root, same_root(payload, root));
    match certificates(payload, root) {
        Ok(certificates) => {
            note(Check::Chain, chain(&certificates));
            note(Check::Validity, validity(&certificates, expected.now));
            note(Check::Signature, signature(&document, &certificates));
        }
        // Without certificates nothing can be said about the rest.
        Err(refusal) => note(Check::Chain, Err(refusal)),
    }
    if let Some(nonce) = &expected.nonce {
        note(Check::Nonce, equal(payload.nonce.as_ref(), nonce));
    }
    for (index, value) in &expected.pcrs {
        note(Check::Pcr(*index), equal(payload.pcrs.get(index), value));
    }
    Report { findings, payload: Some(payload.clone()) }
}

fn same_root(payload: &Payload, root: &Certificate) -> Result<(), Refusal> {
    let root = root.to_der().map_err(|source| Refusal::Malformed { index: 0, source })?;
    if payload.cabundle.first() == Some(&root) { Ok(()) } else { Err(Refusal::OtherRoot) }
}

/// The trusted root, the bundle without its own, and the leaf.
fn certificates(payload: &Payload, root: &Certificate) -> Result<Vec<Certificate>, Refusal> {
    let mut certificates = vec![root.clone()];
    let below = payload.cabundle.iter().skip(1).chain([&payload.certificate]);
    for (index, der) in (1..).zip(below) {
        certificates.push(Certificate::from_der(der).map_err(|source| Refusal::Malformed { index, source })?);
    }
    Ok(certificates)
}

fn chain(certificates: &[Certificate]) -> Result<(), Refusal> {
    let last = certificates.len() - 1;
    for (index, pair) in (1..).zip(certificates.windows(2)) {
        let [above, certificate] = pair else { continue };
        understood(index, certificate)?;
        let (found, expected) = (certificate.tbs_certificate().issuer(), above.tbs_certificate().subject());
        if found != expected {
            return Err(Refusal::Issuer { index, found: found.to_string(), expected: expected.to_string() });
        }
        // Between the one above and the leaf stand this many authorities.
        if !may_issue(above, last - index) {
            return Err(Refusal::MayNotIssue { index: index - 1 });
        }
        is_signed_by(certificate, above).ok_or(Refusal::NotSigned { index })?;
    }
    certificates.last().filter(|leaf| is_leaf(leaf)).map(drop).ok_or(Refusal::NotALeaf)
}

/// A certificate whose critical extensions are not all known must be refused (RFC 5280 section 4.2).
fn understood(index: usize, certificate: &Certificate) -> Result<(), Refusal> {
    let known = [BasicConstraints::OID, KeyUsage::OID];
    let extensions = certificate.tbs_certificate().extensions().into_iter().flatten();
    match extensions.filter(|extension| extension.critical).find(|extension| !known.contains(&extension.extn_id)) {
        Some(extension) => Err(Refusal::Critical { index, oid: extension.extn_id }),
        None => Ok(()),
    }
}

fn may_issue(certificate: &Certificate, authorities_below: usize) -> bool {
    let certificate = certificate.tbs_certificate();
    let constraints = certificate.get_extension::<BasicConstraints>();
    let usage = certificate.get_extension::<KeyUsage>();
    let authority = matches!(
        constraints,
        Ok(Some((_, BasicConstraints { ca: true, path_len_constraint })))
            if path_len_constraint.is_none_or(|most| authorities_below <= usize::from(most))
    );
    authority && matches!(usage, Ok(Some((_, usage))) if usage.key_cert_sign())
}

fn is_leaf(certificate: &Certificate) -> bool {
    let certificate = certificate.tbs_certificate();
    let constraints = certificate.get_extension::<BasicConstraints>();
    let usage = certificate.get_extension::<KeyUsage>();
    matches!(constraints, Ok(None | Some((_, BasicConstraints { ca: false, path_len_constraint: None }))))
        && matches!(usage, Ok(Some((_, usage))) if usage.digital_signature())
}

fn public_key(certificate: &Certificate) -> Option<VerifyingKey> {
    let info = certificate.tbs_certificate().subject_public_key_info();
    VerifyingKey::try_from(info.owned_to_ref()).ok()
}

fn is_signed_by(certificate: &Certificate, issuer: &Certificate) -> Option<()> {
    let algorithms = [certificate.signature_algorithm(), certificate.tbs_certificate().signature()];
    if algorithms.iter().any(|algorithm| algorithm.oid != ECDSA_WITH_SHA384) {
        return None;
    }
    let message = certificate.tbs_certificate().to_der().ok()?;
    let signature = DerSignature::try_from(certificate.signature().as_bytes()?).ok()?;
    public_key(issuer)?.verify(&message, &signature).ok()
}

fn validity(certificates: &[Certificate], now: u64) -> Result<(), Refusal> {
    for (index, certificate) in certificates.iter().enumerate() {
        let validity = certificate.tbs_certificate().validity();
        let (from, until) = (validity.not_before, validity.not_after);
        if !(from.to_unix_duration().as_secs()..=until.to_unix_duration().as_secs()).contains(&now) {
            return Err(Refusal::NotValid { index, from: from.to_string(), until: until.to_string() });
        }
    }
    Ok(())
}

fn signature(document: &SignedDocument, certificates: &[Certificate]) -> Result<(), Refusal> {
    let key = certificates.last().and_then(public_key).ok_or(Refusal::Signature)?;
    if document.is_signed_by(&key) { Ok(()) } else { Err(Refusal::Signature) }
}

fn equal(found: Option<&Vec<u8>>, expected: &[u8]) -> Result<(), Refusal> {
    match found {
        None => Err(Refusal::Missing),
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Refusal::Value { found: found.clone(), expected: expected.to_vec() }),
    }
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() { "an empty one".to_owned() } else { bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
