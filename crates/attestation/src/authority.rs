//! The authority behind attestation documents: a root certificate and its key.
//!
//! It comes from a secret (fresh random bytes, or the user's seed, which gives the same certificates again) or from a PEM file with a
//! certificate and its key. A root of our own is named as AWS names its (`CN=<partition>.nitro-enclaves`), with a partition that AWS does
//! not have and an organization that nobody can mistake.

use p384::SecretKey;
use p384::ecdsa::SigningKey;
use p384::elliptic_curve::pkcs8::DecodePrivateKey;
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Encode, EncodePem};
use x509_cert::ext::pkix::BasicConstraints;

use crate::certificate::{IssueError, Issued, Request, Role, issue};
use crate::{key, pem};

/// The root's name. RFC 4514 writes it backwards: the country comes first in the certificate, as in AWS's.
const ROOT_NAME: &str = "CN=local-test.nitro-enclaves,OU=not AWS,O=vmm local test authority,C=US";

/// 2020-01-01 00:00:00 UTC. Fixed, so that a seed gives the same root at any time.
const ROOT_NOT_BEFORE: u64 = 1_577_836_800;

/// 2049-12-31 23:59:59 UTC, the last date that X.509 writes with two digits.
const ROOT_NOT_AFTER: u64 = 2_524_607_999;

/// How many authorities stand between the root and the leaf.
pub(crate) const INTERMEDIATES: u8 = 3;

/// Why an authority could not be had.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// There is no certificate in the PEM file.
    #[error("there is no certificate (BEGIN CERTIFICATE) in it")]
    NoCertificate,
    /// The certificate in the PEM file is not one.
    #[error("its certificate is malformed")]
    Certificate(#[source] x509_cert::der::Error),
    /// There is no key in the PEM file.
    #[error("there is no key (BEGIN PRIVATE KEY or BEGIN EC PRIVATE KEY) in it")]
    NoKey,
    /// The key is not a P-384 key.
    #[error("its key is not an unencrypted P-384 key")]
    Key,
    /// The certificate belongs to another key.
    #[error("its certificate is not that of its key")]
    KeyMismatch,
    /// The certificate may not sign certificates.
    #[error("its certificate is not an authority's (basicConstraints CA:TRUE)")]
    NotAnAuthority,
    /// The certificate does not allow enough authorities below it.
    #[error("its certificate allows a path length of {found}, and {INTERMEDIATES} is needed")]
    PathLength {
        /// What its basicConstraints allow.
        found: u8,
    },
    /// The root could not be issued.
    #[error("the root certificate cannot be issued")]
    Issue(#[from] IssueError),
}

/// A root certificate with its key.
#[derive(Debug, Clone)]
pub struct Authority {
    pub(crate) root: Issued,
}

impl Authority {
    /// The authority of that secret, which is as good as its key: 32 random bytes or more, or a seed where nothing has to be secret.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`], which no secret can cause.
    pub fn from_secret(secret: &[u8]) -> Result<Self, AuthorityError> {
        let mut serial: [u8; 16] = key::identifier(secret, &["root serial"]);
        // A serial number is a positive integer that starts with no zero.
        serial[0] = serial[0] & 0x7f | 0x40;
        let root = issue(
            Request {
                role: Role::Root,
                subject: ROOT_NAME,
                serial: &serial,
                not_before: ROOT_NOT_BEFORE,
                not_after: ROOT_NOT_AFTER,
                key: key::derive(secret, &["root"]),
            },
            None,
        )?;
        Ok(Self { root })
    }

    /// The authority of a PEM file: a certificate and its key (PKCS #8 or SEC 1, unencrypted), in any order.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn from_pem(text: &str) -> Result<Self, AuthorityError> {
        let certificate = pem::certificate_from_pem(text)?;
        let key = private_key(text)?;
        let public_key = key.verifying_key().to_sec1_point(false);
        let certified = &certificate.tbs_certificate().subject_public_key_info().subject_public_key;
        if certified.as_bytes() != Some(public_key.as_bytes()) {
            return Err(AuthorityError::KeyMismatch);
        }
        match certificate.tbs_certificate().get_extension::<BasicConstraints>() {
            Ok(Some((_, BasicConstraints { ca: true, path_len_constraint }))) => match path_len_constraint {
                Some(found) if found < INTERMEDIATES => return Err(AuthorityError::PathLength { found }),
                _ => {}
            },
            _ => return Err(AuthorityError::NotAnAuthority),
        }
        let der = certificate.to_der().map_err(AuthorityError::Certificate)?;
        Ok(Self { root: Issued { certificate, der, key } })
    }

    /// The certificate and the key in one PEM file, as [`from_pem`](Self::from_pem) takes it. It is as secret as the key.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] or [`AuthorityError::Key`], where they cannot be encoded.
    pub fn to_pem(&self) -> Result<String, AuthorityError> {
        let key = SecretKey::from(&self.root.key);
        let key = key.to_sec1_pem(LineEnding::LF).map_err(|_| AuthorityError::Key)?;
        Ok(self.root_pem()? + &key)
    }

    /// The root certificate.
    pub fn root(&self) -> &Certificate {
        &self.root.certificate
    }

    /// The root certificate in PEM, for verifiers to pin.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`], where it cannot be encoded.
    pub fn root_pem(&self) -> Result<String, AuthorityError> {
        self.root.certificate.to_pem(LineEnding::LF).map_err(AuthorityError::Certificate)
    }
}

fn private_key(text: &str) -> Result<SigningKey, AuthorityError> {
    let blocks = pem::blocks(text);
    let block = blocks.iter().find(|block| block.label.ends_with("PRIVATE KEY")).ok_or(AuthorityError::NoKey)?;
    let key = match block.label {
        "PRIVATE KEY" => SecretKey::from_pkcs8_pem(block.text).ok(),
        "EC PRIVATE KEY" => SecretKey::from_sec1_pem(block.text).ok(),
        _ => None,
    };
    key.map(SigningKey::from).ok_or(AuthorityError::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_root_again_and_another_seed_another() {
        let root = |seed: &[u8]| Authority::from_secret(seed).unwrap().root_pem().unwrap();
        assert_eq!(root(b"one"), root(b"one"));
        assert_ne!(root(b"one"), root(b"two"));
    }

    #[test]
    fn the_root_names_itself_a_local_test_authority() {
        let authority = Authority::from_secret(b"seed").unwrap();
        let name = authority.root().tbs_certificate().subject().to_string();
        assert!(name.contains("vmm local test authority") && name.contains("not AWS"), "{name}");
        assert_eq!(authority.root().tbs_certificate().issuer().to_string(), name);
    }

    #[test]
    fn an_authority_survives_its_own_pem() {
        let authority = Authority::from_secret(b"seed").unwrap();
        let again = Authority::from_pem(&authority.to_pem().unwrap()).unwrap();
        assert_eq!(again.root.der, authority.root.der);
        assert_eq!(again.root.key.to_bytes(), authority.root.key.to_bytes());
    }

    #[test]
    fn a_pem_file_that_is_none_says_what_it_lacks() {
        let one = Authority::from_secret(b"one").unwrap();
        let two = Authority::from_secret(b"two").unwrap();
        assert!(matches!(Authority::from_pem(""), Err(AuthorityError::NoCertificate)));
        assert!(matches!(Authority::from_pem(&one.root_pem().unwrap()), Err(AuthorityError::NoKey)));
        let mixed = one.root_pem().unwrap() + &two.to_pem().unwrap();
        assert!(matches!(Authority::from_pem(&mixed), Err(AuthorityError::KeyMismatch)));
        let encrypted =
            one.root_pem().unwrap() + "-----BEGIN ENCRYPTED PRIVATE KEY-----\n\n-----END ENCRYPTED PRIVATE KEY-----";
        assert!(matches!(Authority::from_pem(&encrypted), Err(AuthorityError::Key)));
    }
}
