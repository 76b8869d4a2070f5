//! X.509 certificates as AWS's Nitro attestation PKI shapes them: P-384 keys, ECDSA with SHA-384.
//!
//! Extensions and names follow certificates of real documents (2025): authorities carry critical basicConstraints with the number of
//! authorities that may follow, key identifiers and critical keyUsage; the leaf carries critical basicConstraints without a path length
//! and a keyUsage of digitalSignature and nonRepudiation that is not critical.

use std::time::{Duration, SystemTime};

use p384::ecdsa::{DerSignature, SigningKey};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::TbsCertificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{Builder, CertificateBuilder};
use x509_cert::der::asn1::OctetString;
use x509_cert::der::flagset::FlagSet;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{self, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};

/// Why no certificate could be issued.
#[derive(Debug, Error)]
pub enum IssueError {
    /// A part of it cannot be written in DER, such as a date beyond the year 9999.
    #[error("a certificate cannot be encoded")]
    Encoding(#[from] der::Error),
    /// The builder refused it.
    #[error("a certificate cannot be built")]
    Building(#[from] x509_cert::builder::Error),
    /// The public key cannot be written.
    #[error("a public key cannot be encoded")]
    PublicKey(#[from] x509_cert::spki::Error),
    /// The document cannot be encoded or signed.
    #[error("a document cannot be signed")]
    Signing(#[from] p384::ecdsa::Error),
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: Certificate,
    pub(crate) der: Vec<u8>,
    pub(crate) key: SigningKey,
}

/// What a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It signs itself and any number of authorities.
    Root,
    /// It signs certificates, with at most this many authorities between it and the leaf.
    Intermediate { path_len: u8 },
    /// The last authority, which AWS lets sign certificates only.
    Instance,
    /// It signs documents.
    Leaf,
}

/// What is to be certified.
pub(crate) struct Request<'a> {
    pub(crate) role: Role,
    /// As RFC 4514 writes names: the last part stands first in the certificate.
    pub(crate) subject: &'a str,
    pub(crate) serial: &'a [u8],
    /// Seconds since 1970.
    pub(crate) not_before: u64,
    /// Seconds since 1970.
    pub(crate) not_after: u64,
    pub(crate) key: SigningKey,
}

struct Profile {
    role: Role,
    subject: Name,
    issuer: Name,
    /// The issuer's key identifier; a root has none but its own.
    issuer_identifier: Option<OctetString>,
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        key: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        let authority = KeyUsages::DigitalSignature | KeyUsages::KeyCertSign | KeyUsages::CRLSign;
        let (ca, path_len_constraint, usage): (_, _, FlagSet<KeyUsages>) = match self.role {
            Role::Root => (true, None, authority),
            Role::Intermediate { path_len } => (true, Some(path_len), authority),
            Role::Instance => (true, Some(0), KeyUsages::KeyCertSign.into()),
            Role::Leaf => (false, None, KeyUsages::DigitalSignature | KeyUsages::NonRepudiation),
        };
        let mut extensions = vec![extension(true, &BasicConstraints { ca, path_len_constraint })?];
        if ca {
            if let Some(identifier) = &self.issuer_identifier {
                let key_identifier = Some(identifier.clone());
                let identifier = AuthorityKeyIdentifier { key_identifier, ..Default::default() };
                extensions.push(extension(false, &identifier)?);
            }
            extensions.push(extension(false, &SubjectKeyIdentifier::try_from(key)?)?);
        }
        extensions.push(extension(ca, &KeyUsage(usage))?);
        Ok(extensions)
    }
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> der::Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

/// Issues a certificate; without an issuer it is signed by its own key.
pub(crate) fn issue(request: Request<'_>, issuer: Option<&Issued>) -> Result<Issued, IssueError> {
    let Request { role, subject, serial, not_before, not_after, key } = request;
    let subject: Name = subject.parse()?;
    let issuer_name = issuer.map_or_else(|| subject.clone(), |issuer| subject_of(&issuer.certificate));
    let issuer_identifier = issuer.and_then(|issuer| key_identifier(&issuer.certificate));
    let profile = Profile { role, subject, issuer: issuer_name, issuer_identifier };
    let validity = Validity::new(time(not_before)?, time(not_after)?);
    let public_key = SubjectPublicKeyInfoOwned::from_key(key.verifying_key())?;
    let builder = CertificateBuilder::new(profile, SerialNumber::new(serial)?, validity, public_key)?;
    let certificate = builder.build::<_, DerSignature>(issuer.map_or(&key, |issuer| &issuer.key))?;
    Ok(Issued { der: certificate.to_der()?, certificate, key })
}

/// Whom a certificate is about.
fn subject_of(certificate: &Certificate) -> Name {
    certificate.tbs_certificate().subject().clone()
}

/// A certificate's own key identifier. A verifier compares it with what the certificates below say, so it is never computed anew.
fn key_identifier(certificate: &Certificate) -> Option<OctetString> {
    let found = certificate.tbs_certificate().get_extension::<SubjectKeyIdentifier>();
    found.ok().flatten().map(|(_, identifier)| identifier.0)
}

fn time(seconds: u64) -> der::Result<Time> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.ok_or_else(|| der::ErrorKind::DateTime.to_error()).and_then(Time::try_from)
}
