//! Signing certificates (RFC 5280): what they say, in the words that AWS's tools and OpenSSL use, and who issued them.
//!
//! Deliberately missing: RSA and Edwards curves as issuers' keys, revocation, name constraints and policies. A chain through
//! such an issuer is reported as not verified, with the reason.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _, Tag, Tagged as _};
use x509_cert::time::Time;

use super::keys::{Curve, DigestKind, KeyError, PublicKey};
use crate::pem;

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// It is not PEM.
    #[error("the certificate is not pem: {reason}")]
    Pem {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It is not an X.509 certificate.
    #[error("it is not an x.509 certificate: {reason}")]
    Der {
        /// What the decoder said.
        reason: String,
    },
    /// Its key is not one that images are signed with.
    #[error("the certificate's key is of {found}, expected an elliptic-curve key of P-256, P-384 or P-521")]
    Key {
        /// The algorithm's or the curve's name or OID.
        found: String,
    },
    /// Its issuer has another name than the certificate that is to have issued it.
    #[error("it was issued by \"{expected}\", not by \"{found}\"")]
    Issuer {
        /// The issuer that it names.
        expected: String,
        /// The name of the certificate that it was held against.
        found: String,
    },
    /// Its own signature is made with an algorithm that is not known here.
    #[error("it is signed with {found}, which cannot be verified here")]
    Algorithm {
        /// The algorithm's name or OID.
        found: String,
    },
    /// Its own signature is not its issuer's.
    #[error("its signature is not that of its issuer")]
    Signature(#[source] KeyError),
}

/// Where a moment lies in a certificate's validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Before it.
    NotYet,
    /// Within it.
    Valid,
    /// After it.
    Expired,
}

/// An X.509 certificate.
///
/// ```
/// # let pem = std::fs::read("../eif-cli/tests/keys/p384.pem")?;
/// let certificate = eif::signing::Certificate::from_pem(&pem)?;
/// assert_eq!(certificate.subject()["commonName"], "signer on p384");
/// assert_eq!(certificate.not_after(), "Jan  1 00:00:00 2120 GMT");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Certificate {
    // `Raw`, because OpenSSL takes certificates that break rules of RFC 5280, such as a serial number of zero.
    inner: CertificateInner<Raw>,
    signed: Vec<u8>,
}

impl Certificate {
    /// Decodes a certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let error = |error: x509_cert::der::Error| CertificateError::Der { reason: error.to_string() };
        let inner = CertificateInner::<Raw>::from_der(der).map_err(error)?;
        let signed = inner.tbs_certificate().to_der().map_err(error)?;
        Ok(Self { inner, signed })
    }

    /// Decodes the first certificate of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        Self::all_from_pem(pem).map(|mut all| all.remove(0))
    }

    /// Decodes every certificate of a PEM text; at least one.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, CertificateError> {
        let ders = pem::certificates(pem).map_err(|reason| CertificateError::Pem { reason })?;
        ders.iter().map(|der| Self::from_der(der)).collect()
    }

    /// The issuer's attributes, by the long names of OpenSSL (or OIDs where it has none).
    pub fn issuer(&self) -> BTreeMap<String, String> {
        attributes(self.inner.tbs_certificate().issuer())
    }

    /// The subject's attributes, named likewise.
    pub fn subject(&self) -> BTreeMap<String, String> {
        attributes(self.inner.tbs_certificate().subject())
    }

    /// The algorithm of the certificate's own signature, as OpenSSL names it.
    pub fn algorithm(&self) -> String {
        algorithm_name(&self.inner.signature_algorithm().oid)
    }

    /// The start of its validity, as OpenSSL prints it.
    pub fn not_before(&self) -> String {
        openssl_time(&self.inner.tbs_certificate().validity().not_before)
    }

    /// The end of its validity, as OpenSSL prints it.
    pub fn not_after(&self) -> String {
        openssl_time(&self.inner.tbs_certificate().validity().not_after)
    }

    /// The certificate's own signature.
    pub fn signature(&self) -> &[u8] {
        self.inner.signature().raw_bytes()
    }

    /// Where a moment lies in its validity.
    pub fn validity_at(&self, moment: SystemTime) -> Validity {
        let validity = self.inner.tbs_certificate().validity();
        let moment = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if moment < validity.not_before.to_unix_duration() {
            Validity::NotYet
        } else if moment > validity.not_after.to_unix_duration() {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }

    /// Its key.
    pub fn public_key(&self) -> Result<PublicKey, CertificateError> {
        const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
        let info = self.inner.tbs_certificate().subject_public_key_info();
        let error = |found: String| CertificateError::Key { found };
        if info.algorithm.oid != EC_PUBLIC_KEY {
            return Err(error(match info.algorithm.oid.to_string().as_str() {
                "1.2.840.113549.1.1.1" => "RSA".to_owned(),
                oid => oid.to_owned(),
            }));
        }
        let oid = info.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let oid = oid.map_or_else(|| "no named curve".to_owned(), |oid| oid.to_string());
        let curve = Curve::from_oid(&oid).ok_or_else(|| error(oid))?;
        PublicKey::from_sec1(curve, info.subject_public_key.raw_bytes())
            .map_err(|_| error(format!("{curve}, but is no point of it")))
    }

    /// Whether it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        let certificate = self.inner.tbs_certificate();
        certificate.issuer() == certificate.subject()
    }

    /// Verifies that the holder of another certificate issued this one; for a root that is itself.
    pub fn verify_issued_by(&self, issuer: &Self) -> Result<(), CertificateError> {
        if self.inner.tbs_certificate().issuer() != issuer.inner.tbs_certificate().subject() {
            return Err(CertificateError::Issuer {
                expected: one_line(&self.issuer()),
                found: one_line(&issuer.subject()),
            });
        }
        let digest = match self.inner.signature_algorithm().oid.to_string().as_str() {
            "1.2.840.10045.4.3.2" => DigestKind::Sha256,
            "1.2.840.10045.4.3.3" => DigestKind::Sha384,
            "1.2.840.10045.4.3.4" => DigestKind::Sha512,
            _ => return Err(CertificateError::Algorithm { found: self.algorithm() }),
        };
        let key = issuer.public_key()?;
        key.verify_der(digest, &self.signed, self.signature()).map_err(CertificateError::Signature)
    }
}

/// Attributes in one line, the way a message names a certificate.
fn one_line(attributes: &BTreeMap<String, String>) -> String {
    let words: Vec<String> = attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    words.join(", ")
}

fn attributes(name: &x509_cert::name::Name) -> BTreeMap<String, String> {
    let attribute = |attribute: &x509_cert::attr::AttributeTypeAndValue| {
        let text = text_of(attribute.value.tag(), attribute.value.value());
        // AWS's reader prints the text like a Rust literal and takes the quotation marks away again.
        (attribute_name(&attribute.oid), format!("{text:?}").replace('"', ""))
    };
    name.iter().map(attribute).collect()
}

fn text_of(tag: Tag, bytes: &[u8]) -> String {
    match tag {
        Tag::BmpString => {
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        // OpenSSL takes T.61 for Latin-1.
        Tag::TeletexString => bytes.iter().copied().map(char::from).collect(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn attribute_name(oid: &ObjectIdentifier) -> String {
    let oid = oid.to_string();
    let name = match oid.as_str() {
        "2.5.4.3" => "commonName",
        "2.5.4.4" => "surname",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "countryName",
        "2.5.4.7" => "localityName",
        "2.5.4.8" => "stateOrProvinceName",
        "2.5.4.9" => "streetAddress",
        "2.5.4.10" => "organizationName",
        "2.5.4.11" => "organizationalUnitName",
        "2.5.4.12" => "title",
        "2.5.4.17" => "postalCode",
        "2.5.4.42" => "givenName",
        "2.5.4.46" => "dnQualifier",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "userId",
        "0.9.2342.19200300.100.1.25" => "domainComponent",
        _ => return oid,
    };
    name.to_owned()
}

fn algorithm_name(oid: &ObjectIdentifier) -> String {
    let oid = oid.to_string();
    let name = match oid.as_str() {
        "1.2.840.10045.4.1" => "ecdsa-with-SHA1",
        "1.2.840.10045.4.3.2" => "ecdsa-with-SHA256",
        "1.2.840.10045.4.3.3" => "ecdsa-with-SHA384",
        "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
        "1.2.840.113549.1.1.5" => "sha1WithRSAEncryption",
        "1.2.840.113549.1.1.11" => "sha256WithRSAEncryption",
        "1.2.840.113549.1.1.12" => "sha384WithRSAEncryption",
        "1.2.840.113549.1.1.13" => "sha512WithRSAEncryption",
        "1.3.101.112" => "ED25519",
        _ => return oid,
    };
    name.to_owned()
}

/// `Jan  1 00:00:00 2024 GMT`.
fn openssl_time(time: &Time) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let time = time.to_date_time();
    let month = MONTHS[usize::from(time.month()).clamp(1, 12) - 1];
    format!(
        "{month} {:>2} {:02}:{:02}:{:02} {} GMT",
        time.day(),
        time.hour(),
        time.minutes(),
        time.seconds(),
        time.year()
    )
}
