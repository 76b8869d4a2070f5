//! The COSE_Sign1 (RFC 9052) over PCR0, as AWS's builder writes it: the algorithm alone in the protected header, nothing in the
//! other, and for a payload a map of `register_index` and `register_value`, the latter an array of integers.

use coset::iana::Algorithm;
use coset::{CborSerializable as _, CoseSign1, HeaderBuilder, SignatureContext, TaggedCborSerializable as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::certificate::{Certificate, CertificateError};
use super::keys::{Curve, KeyError, PublicKey, SigningKey};
use crate::measure::Digest;
use crate::signature::{SignatureError, SigningEntry, cbor_reason};

/// Why an image cannot be signed, or its signature is not right.
#[derive(Debug, Error)]
pub enum CoseError {
    /// It is not a COSE_Sign1.
    #[error("the signature is not a cose_sign1: {reason}")]
    Decode {
        /// What the decoder said.
        reason: String,
    },
    /// The signature names another algorithm than its certificate's key has.
    #[error("the signature's algorithm is {found}, but the certificate's key is of {curve}")]
    Algorithm {
        /// The algorithm's name or number.
        found: String,
        /// The key's curve.
        curve: Curve,
    },
    /// What is signed is not a register's value.
    #[error("what is signed is not a pcr's value: {reason}")]
    Payload {
        /// What the decoder said.
        reason: String,
    },
    /// The private key does not belong to the certificate.
    #[error("the private key is not the one of the certificate")]
    OtherKey,
    /// The certificate cannot be used.
    #[error("the signing certificate cannot be used")]
    Certificate(#[from] CertificateError),
    /// The signature is not right.
    #[error("the signature is not right")]
    Key(#[from] KeyError),
    /// The signature section cannot be made.
    #[error("the signature section cannot be made")]
    Section(#[from] SignatureError),
}

/// What a signature is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPcr {
    /// The register's number, 0 in every image.
    pub register_index: i32,
    /// The register's value.
    pub register_value: Vec<u8>,
}

impl SignedPcr {
    /// Verifies a COSE_Sign1, tagged or not, and returns what it is over. Whether that is the image's PCR0 is for the caller.
    pub fn verify(cose_sign1: &[u8], key: &PublicKey) -> Result<Self, CoseError> {
        let decode = |error: coset::CoseError| CoseError::Decode {
            reason: match &error {
                coset::CoseError::DecodeFailed(error) => cbor_reason(error),
                error => error.to_string(),
            },
        };
        let message = CoseSign1::from_slice(cose_sign1)
            .or_else(|error| CoseSign1::from_tagged_slice(cose_sign1).map_err(|_| error))
            .map_err(decode)?;
        let expected = coset::RegisteredLabelWithPrivate::Assigned(algorithm(key.curve()));
        if message.protected.header.alg.as_ref() != Some(&expected) {
            let found = message.protected.header.alg.as_ref().map_or("missing".to_owned(), algorithm_name);
            return Err(CoseError::Algorithm { found, curve: key.curve() });
        }
        message.verify_signature(&[], |signature, bytes| key.verify(bytes, signature))?;
        let payload = message.payload.unwrap_or_default();
        ciborium::from_reader(payload.as_slice()).map_err(|error| CoseError::Payload { reason: cbor_reason(&error) })
    }
}

/// An algorithm by its name, or by its number if it has none.
fn algorithm_name(algorithm: &coset::Algorithm) -> String {
    match algorithm {
        coset::RegisteredLabelWithPrivate::Assigned(assigned) => format!("{assigned:?}"),
        coset::RegisteredLabelWithPrivate::PrivateUse(number) => number.to_string(),
        coset::RegisteredLabelWithPrivate::Text(text) => text.escape_debug().to_string(),
    }
}

/// A signature that is to be made over a PCR0.
///
/// ```
/// use eif::signing::{Request, SigningKey};
///
/// # let certificate = std::fs::read("../eif-cli/tests/keys/p256.pem")?;
/// # let key = std::fs::read("../eif-cli/tests/keys/p256.key.pem")?;
/// let image = eif::Writer::new(b"a bzImage".to_vec(), "console=ttyS0").ramdisk(vec![1]);
/// let request = Request::new(&image.measurements().pcr0, &certificate)?;
/// // With a key at hand. With a key in hardware, `to_be_signed` goes there, and `finish` takes what comes back.
/// let section = request.sign(&SigningKey::from_pem(&key)?)?;
/// let signed = image.signature(section).to_vec()?;
/// # assert!(eif::BootImage::read(std::io::Cursor::new(signed))?.signing_entry.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    certificate_pem: Vec<u8>,
    key: PublicKey,
    payload: Vec<u8>,
}

impl Request {
    /// Starts a signature over this PCR0 that goes with this certificate, the first of a PEM text.
    pub fn new(pcr0: &Digest, certificate_pem: &[u8]) -> Result<Self, CoseError> {
        let key = Certificate::from_pem(certificate_pem)?.public_key()?;
        let signed = SignedPcr { register_index: 0, register_value: pcr0.to_vec() };
        let mut payload = Vec::new();
        ciborium::into_writer(&signed, &mut payload)
            .map_err(|error| CoseError::Payload { reason: error.to_string() })?;
        Ok(Self { certificate_pem: certificate_pem.to_vec(), key, payload })
    }

    /// The curve of the certificate's key, which names the digest too.
    pub fn curve(&self) -> Curve {
        self.key.curve()
    }

    /// The bytes whose digest is to be signed: the Sig_structure of RFC 9052 section 4.4.
    pub fn to_be_signed(&self) -> Vec<u8> {
        let message = self.message(Vec::new());
        coset::sig_structure_data(
            SignatureContext::CoseSign1,
            message.protected,
            None,
            &[],
            message.payload.as_deref().unwrap_or_default(),
        )
    }

    /// Signs with a key at hand and returns the signature section's data.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, CoseError> {
        if key.public_key() != self.key {
            return Err(CoseError::OtherKey);
        }
        self.finish(&key.sign(&self.to_be_signed()))
    }

    /// Takes a signature over [`to_be_signed`](Self::to_be_signed) that was made elsewhere, r and s one after the other or
    /// DER, verifies it, and returns the signature section's data.
    pub fn finish(&self, signature: &[u8]) -> Result<Vec<u8>, CoseError> {
        let fixed = self.key.fixed_signature(signature)?;
        self.key.verify(&self.to_be_signed(), &fixed)?;
        let cose = self.message(fixed).to_vec().map_err(|error| CoseError::Decode { reason: error.to_string() })?;
        Ok(SigningEntry::encode(&self.certificate_pem, &cose)?)
    }

    fn message(&self, signature: Vec<u8>) -> CoseSign1 {
        let protected = HeaderBuilder::new().algorithm(algorithm(self.curve())).build();
        let builder = coset::CoseSign1Builder::new().protected(protected).payload(self.payload.clone());
        builder.signature(signature).build()
    }
}

fn algorithm(curve: Curve) -> Algorithm {
    match curve {
        Curve::P256 => Algorithm::ES256,
        Curve::P384 => Algorithm::ES384,
        Curve::P521 => Algorithm::ES512,
    }
}
