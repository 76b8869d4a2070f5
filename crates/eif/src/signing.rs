//! Signatures over PCR0: made, verified, and tied to the certificate that they come with. Only with the feature `signing`.
//!
//! The curves are those of AWS's builder, P-256, P-384 and P-521, each with its own digest (RFC 9053 section 2.1). Signing is
//! deterministic (RFC 6979): the same key and image give the same bytes.
//!
//! Deliberately missing: keys of the AWS Key Management Service and of PKCS #11 tokens. What such a key signs comes out of
//! [`Request::to_be_signed`], and its answer goes into [`Request::finish`].

mod certificate;
mod cose;
mod keys;
mod verdict;

pub use certificate::{Certificate, CertificateError, Validity};
pub use cose::{CoseError, Request, SignedPcr};
pub use keys::{Curve, KeyError, PublicKey, SigningKey};
pub use verdict::{Check, Outcome, check_signature};

use crate::measure::{Digest, extend};

/// PCR8 of images that are signed with the first certificate of a PEM text.
pub fn pcr8(certificate_pem: &[u8]) -> Result<Digest, CertificateError> {
    use sha2::Digest as _;
    let ders = crate::pem::certificates(certificate_pem).map_err(|reason| CertificateError::Pem { reason })?;
    let der = &ders[0];
    Certificate::from_der(der)?;
    Ok(extend(&[0; 48], &sha2::Sha384::digest(der)))
}
