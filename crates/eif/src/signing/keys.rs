//! Keys of the three curves, behind one type.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use thiserror::Error;

use crate::pem;

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file holds no private key.
    #[error("there is no private key in pem form: {reason}")]
    Pem {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file holds an encrypted key.
    #[error("the private key is encrypted, expected one without a passphrase")]
    Encrypted,
    /// The key is not of a curve that images are signed with.
    #[error("the key is not an elliptic-curve key of P-256, P-384 or P-521")]
    Curve,
    /// The bytes of a signature are not one of the curve.
    #[error("{found} bytes are not a signature of {curve}, expected {} or a der sequence", 2 * curve.field_size())]
    Signature {
        /// The curve.
        curve: Curve,
        /// How many bytes there are.
        found: usize,
    },
    /// The signature is not the key's over these bytes.
    #[error("the signature is not by this key over these bytes")]
    Mismatch,
}

/// A curve that images are signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// P-256 with SHA-256, COSE's ES256.
    P256,
    /// P-384 with SHA-384, COSE's ES384.
    P384,
    /// P-521 with SHA-512, COSE's ES512.
    P521,
}

impl Curve {
    /// The size in bytes of a coordinate; a signature is two numbers of this size.
    pub fn field_size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The digest that is signed, as `openssl dgst` names it.
    pub fn digest(self) -> &'static str {
        match self {
            Self::P256 => "sha256",
            Self::P384 => "sha384",
            Self::P521 => "sha512",
        }
    }

    /// The curve of the OID that a public key's parameters hold (RFC 5480 section 2.1.1.1).
    pub(super) fn from_oid(oid: &str) -> Option<Self> {
        match oid {
            "1.2.840.10045.3.1.7" => Some(Self::P256),
            "1.3.132.0.34" => Some(Self::P384),
            "1.3.132.0.35" => Some(Self::P521),
            _ => None,
        }
    }
}

impl std::fmt::Display for Curve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        })
    }
}

/// A private key.
pub struct SigningKey(Private);

enum Private {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.curve())
    }
}

impl SigningKey {
    /// The key of a PEM text: PKCS #8 (`PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`, with or without a block of parameters
    /// before it).
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let text = str::from_utf8(pem).map_err(|_| KeyError::Pem { reason: "it is not text" })?;
        let block = pem::next_block(text, |label| label.ends_with("PRIVATE KEY"))
            .map_err(|reason| KeyError::Pem { reason })?
            .ok_or(KeyError::Pem { reason: "there is no BEGIN PRIVATE KEY line" })?
            .0;
        match block.label {
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
            "EC PRIVATE KEY" if text.contains("Proc-Type: 4,ENCRYPTED") => Err(KeyError::Encrypted),
            "EC PRIVATE KEY" => Self::from_sec1(&block.der),
            _ => Self::from_pkcs8(&block.der),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        use p256::pkcs8::DecodePrivateKey as _;
        // The key's parameters name its curve, so at most one of these takes it.
        if let Ok(key) = p256::SecretKey::from_pkcs8_der(der) {
            return Ok(Self(Private::P256(key.into())));
        }
        if let Ok(key) = p384::SecretKey::from_pkcs8_der(der) {
            return Ok(Self(Private::P384(key.into())));
        }
        let key = p521::SecretKey::from_pkcs8_der(der).map_err(|_| KeyError::Curve)?;
        Ok(Self(Private::P521(key.into())))
    }

    fn from_sec1(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(key) = p256::SecretKey::from_sec1_der(der) {
            return Ok(Self(Private::P256(key.into())));
        }
        if let Ok(key) = p384::SecretKey::from_sec1_der(der) {
            return Ok(Self(Private::P384(key.into())));
        }
        let key = p521::SecretKey::from_sec1_der(der).map_err(|_| KeyError::Curve)?;
        Ok(Self(Private::P521(key.into())))
    }

    /// The curve of the key.
    pub fn curve(&self) -> Curve {
        match self.0 {
            Private::P256(_) => Curve::P256,
            Private::P384(_) => Curve::P384,
            Private::P521(_) => Curve::P521,
        }
    }

    /// The key that verifies what this one signs.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(match &self.0 {
            Private::P256(key) => Public::P256(*key.verifying_key()),
            Private::P384(key) => Public::P384(*key.verifying_key()),
            Private::P521(key) => Public::P521(*key.verifying_key()),
        })
    }

    /// The signature over the bytes, r and s one after the other.
    pub(super) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        match &self.0 {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(bytes);
                signature.to_bytes().to_vec()
            }
            Private::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(bytes);
                signature.to_bytes().to_vec()
            }
            Private::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign(bytes);
                signature.to_bytes().to_vec()
            }
        }
    }
}

/// A public key.
#[derive(Debug, Clone, PartialEq)]
pub struct PublicKey(Public);

#[derive(Debug, Clone, PartialEq)]
enum Public {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
}

/// The digest that a signature is over, where it does not follow from the key's curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DigestKind {
    Sha256,
    Sha384,
    Sha512,
}

impl PublicKey {
    /// The key of a point in SEC 1's encoding.
    pub(super) fn from_sec1(curve: Curve, point: &[u8]) -> Result<Self, KeyError> {
        let key = match curve {
            Curve::P256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Public::P256),
            Curve::P384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Public::P384),
            Curve::P521 => p521::ecdsa::VerifyingKey::from_sec1_bytes(point).map(Public::P521),
        };
        key.map(Self).map_err(|_| KeyError::Curve)
    }

    /// The curve of the key.
    pub fn curve(&self) -> Curve {
        match self.0 {
            Public::P256(_) => Curve::P256,
            Public::P384(_) => Curve::P384,
            Public::P521(_) => Curve::P521,
        }
    }

    /// Verifies r and s, one after the other, over the bytes, with the curve's own digest.
    pub(super) fn verify(&self, bytes: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let malformed = |_| KeyError::Signature { curve: self.curve(), found: signature.len() };
        let verdict = match &self.0 {
            Public::P256(key) => key.verify(bytes, &p256::ecdsa::Signature::from_slice(signature).map_err(malformed)?),
            Public::P384(key) => key.verify(bytes, &p384::ecdsa::Signature::from_slice(signature).map_err(malformed)?),
            Public::P521(key) => key.verify(bytes, &p521::ecdsa::Signature::from_slice(signature).map_err(malformed)?),
        };
        verdict.map_err(|_| KeyError::Mismatch)
    }

    /// Verifies a DER signature over the bytes, as certificates have it.
    pub(super) fn verify_der(&self, digest: DigestKind, bytes: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let hash = match digest {
            DigestKind::Sha256 => Sha256::digest(bytes).to_vec(),
            DigestKind::Sha384 => Sha384::digest(bytes).to_vec(),
            DigestKind::Sha512 => Sha512::digest(bytes).to_vec(),
        };
        let malformed = |_| KeyError::Signature { curve: self.curve(), found: signature.len() };
        let verdict = match &self.0 {
            Public::P256(key) => {
                key.verify_prehash(&hash, &p256::ecdsa::Signature::from_der(signature).map_err(malformed)?)
            }
            Public::P384(key) => {
                key.verify_prehash(&hash, &p384::ecdsa::Signature::from_der(signature).map_err(malformed)?)
            }
            Public::P521(key) => {
                key.verify_prehash(&hash, &p521::ecdsa::Signature::from_der(signature).map_err(malformed)?)
            }
        };
        verdict.map_err(|_| KeyError::Mismatch)
    }

    /// A signature as r and s one after the other, whether it is given like that or as DER, which is what `openssl` and
    /// most hardware modules put out.
    pub(super) fn fixed_signature(&self, signature: &[u8]) -> Result<Vec<u8>, KeyError> {
        let curve = self.curve();
        if signature.len() == 2 * curve.field_size() {
            return Ok(signature.to_vec());
        }
        let malformed = |_| KeyError::Signature { curve, found: signature.len() };
        Ok(match curve {
            Curve::P256 => p256::ecdsa::Signature::from_der(signature).map_err(malformed)?.to_bytes().to_vec(),
            Curve::P384 => p384::ecdsa::Signature::from_der(signature).map_err(malformed)?.to_bytes().to_vec(),
            Curve::P521 => p521::ecdsa::Signature::from_der(signature).map_err(malformed)?.to_bytes().to_vec(),
        })
    }
}
