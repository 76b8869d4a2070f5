//! The document itself: nine fields in CBOR, and the COSE_Sign1 around them (RFC 9052 section 4.2).
//!
//! The fields stand in AWS's order, all of them always, null where the enclave gave none. AWS's modules have written the map with a
//! definite length and, later, with an indefinite one; [`MapForm`] chooses, and the reader takes both, and any order.

use std::collections::BTreeMap;

use ciborium::Value;
use coset::iana::Algorithm;
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder};
use p384::ecdsa::signature::{Signer as _, Verifier as _};
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
use thiserror::Error;

use crate::certificate::IssueError;

/// The longest payload in bytes (attestation process, section 3.1).
const MAX_PAYLOAD: usize = 16384;

/// The longest certificate in bytes, and the longest field of the enclave's (section 2.2).
const MAX_FIELD: usize = 1024;

/// How deeply the payload may nest; two levels are needed.
const MAX_DEPTH: usize = 16;

/// How the length of the payload's map is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MapForm {
    /// In its head, as most of AWS's documents have it.
    #[default]
    Definite,
    /// By a break at its end, as some newer ones have it.
    Indefinite,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The module's name.
    pub module_id: String,
    /// The PCRs' hash function: `SHA384`.
    pub digest: String,
    /// When it was signed, in milliseconds since 1970.
    pub timestamp: u64,
    /// The locked PCRs.
    pub pcrs: BTreeMap<u16, Vec<u8>>,
    /// The signer's certificate, DER.
    pub certificate: Vec<u8>,
    /// The authorities' certificates, DER, from the root to the one that issued [`certificate`](Self::certificate).
    pub cabundle: Vec<Vec<u8>>,
    /// A key of the enclave's.
    pub public_key: Option<Vec<u8>>,
    /// Data of the enclave's.
    pub user_data: Option<Vec<u8>>,
    /// The verifier's proof of freshness.
    pub nonce: Option<Vec<u8>>,
}

/// Why bytes are not an attestation document.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not a COSE_Sign1.
    #[error("not a COSE_Sign1: {reason}")]
    Envelope {
        /// What the decoder found.
        reason: String,
    },
    /// Signed with something else than ES384.
    #[error("the protected header does not name ES384 (-35) and nothing else")]
    Algorithm,
    /// There is something in the header that is not signed.
    #[error("the unprotected header is not empty")]
    Unprotected,
    /// The payload is missing or too long.
    #[error("the payload has {found} bytes, expected 1 to {MAX_PAYLOAD}")]
    PayloadSize {
        /// Its length.
        found: usize,
    },
    /// The payload is not a CBOR map.
    #[error("the payload is not one CBOR map")]
    NotAMap,
    /// A key that documents do not have, or one that is there twice.
    #[error("the payload has an unexpected key {key}")]
    Key {
        /// The key.
        key: String,
    },
    /// A field is missing or of the wrong type or size.
    #[error("{field} is missing or not {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl Payload {
    /// The payload in CBOR.
    pub fn encode(&self, form: MapForm) -> Vec<u8> {
        // Destructured, so that a new field cannot be forgotten.
        let Self { module_id, digest, timestamp, pcrs, certificate, cabundle, public_key, user_data, nonce } = self;
        let bytes = |bytes: &Vec<u8>| Value::Bytes(bytes.clone());
        let optional = |field: &Option<Vec<u8>>| field.as_ref().map_or(Value::Null, bytes);
        let fields = [
            ("module_id", Value::from(module_id.as_str())),
            ("digest", Value::from(digest.as_str())),
            ("timestamp", Value::from(*timestamp)),
            ("pcrs", Value::Map(pcrs.iter().map(|(index, value)| (Value::from(*index), bytes(value))).collect())),
            ("certificate", bytes(certificate)),
            ("cabundle", Value::Array(cabundle.iter().map(bytes).collect())),
            ("public_key", optional(public_key)),
            ("user_data", optional(user_data)),
            ("nonce", optional(nonce)),
        ];
        let map = Value::Map(fields.map(|(name, value)| (Value::from(name), value)).into());
        let mut encoded = Vec::new();
        ciborium::into_writer(&map, &mut encoded).expect("writing to memory does not fail, and a Value is always CBOR");
        if form == MapForm::Indefinite {
            // The head of a map of nine is one byte (RFC 8949 section 3.1), and so is that of an open one.
            encoded[0] = 0xbf;
            encoded.push(0xff);
        }
        encoded
    }

    /// Reads a payload and checks each field's type and size, by section 3.2.2 of the attestation process.
    ///
    /// The sizes are those of the specification's grammar, up to 1024 bytes for each of the enclave's three fields.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn decode(mut encoded: &[u8]) -> Result<Self, DocumentError> {
        let value = ciborium::de::from_reader_with_recursion_limit(&mut encoded, MAX_DEPTH);
        let Ok(Value::Map(entries)) = value else { return Err(DocumentError::NotAMap) };
        if !encoded.is_empty() {
            return Err(DocumentError::NotAMap);
        }
        let mut fields = Fields(BTreeMap::new());
        for (key, value) in entries {
            match key {
                Value::Text(name) if FIELDS.contains(&name.as_str()) && !fields.0.contains_key(&name) => {
                    fields.0.insert(name, value);
                }
                Value::Text(name) => return Err(DocumentError::Key { key: format!("{name:?}") }),
                other => return Err(DocumentError::Key { key: format!("{other:?}") }),
            }
        }
        Ok(Self {
            module_id: fields.text("module_id", "a text that is not empty", |text| !text.is_empty())?,
            digest: fields.text("digest", "\"SHA384\"", |text| text == "SHA384")?,
            timestamp: fields.take("timestamp", "a positive integer", |value| {
                value.into_integer().ok().and_then(|integer| integer.try_into().ok()).filter(|time| *time > 0)
            })?,
            pcrs: fields.take("pcrs", "a map of 1 to 32 indices to 32, 48 or 64 bytes", pcrs)?,
            certificate: fields.take("certificate", "1 to 1024 bytes", certificate)?,
            cabundle: fields.take("cabundle", "a list of certificates of 1 to 1024 bytes", |value| {
                let list: Option<Vec<_>> = value.into_array().ok()?.into_iter().map(certificate).collect();
                list.filter(|list| !list.is_empty())
            })?,
            public_key: fields.optional("public_key")?,
            user_data: fields.optional("user_data")?,
            nonce: fields.optional("nonce")?,
        })
    }
}

/// The names of the fields.
const FIELDS: [&str; 9] =
    ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce"];

struct Fields(BTreeMap<String, Value>);

impl Fields {
    fn take<T>(
        &mut self,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, DocumentError> {
        self.0.remove(field).and_then(read).ok_or(DocumentError::Field { field, expected })
    }

    fn text(
        &mut self,
        field: &'static str,
        expected: &'static str,
        accept: impl FnOnce(&str) -> bool,
    ) -> Result<String, DocumentError> {
        self.take(field, expected, |value| value.into_text().ok().filter(|text| accept(text)))
    }

    /// A field of the enclave's: null, or missing as in the oldest documents, for none.
    fn optional(&mut self, field: &'static str) -> Result<Option<Vec<u8>>, DocumentError> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bytes(bytes)) if bytes.len() <= MAX_FIELD => Ok(Some(bytes)),
            Some(_) => Err(DocumentError::Field { field, expected: "null or at most 1024 bytes" }),
        }
    }
}

fn pcrs(value: Value) -> Option<BTreeMap<u16, Vec<u8>>> {
    let mut pcrs = BTreeMap::new();
    for (index, value) in value.into_map().ok()? {
        let index: u16 = index.into_integer().ok()?.try_into().ok().filter(|index| *index < nsm::PCR_COUNT)?;
        let value = value.into_bytes().ok().filter(|value| matches!(value.len(), 32 | 48 | 64))?;
        if pcrs.insert(index, value).is_some() {
            return None;
        }
    }
    (!pcrs.is_empty()).then_some(pcrs)
}

fn certificate(value: Value) -> Option<Vec<u8>> {
    value.into_bytes().ok().filter(|der| (1..=MAX_FIELD).contains(&der.len()))
}

/// A document with its signature.
#[derive(Debug, Clone)]
pub struct SignedDocument {
    envelope: CoseSign1,
    payload: Payload,
}

impl SignedDocument {
    /// Signs an encoded payload and returns the document's bytes: an untagged array of four.
    pub(crate) fn sign(payload: Vec<u8>, key: &SigningKey) -> Result<Vec<u8>, IssueError> {
        let protected = HeaderBuilder::new().algorithm(Algorithm::ES384).build();
        let envelope = CoseSign1Builder::new()
            .protected(protected)
            .payload(payload)
            .try_create_signature(b"", |message| {
                let signature: Signature = key.try_sign(message)?;
                Ok::<_, IssueError>(signature.to_bytes().to_vec())
            })?
            .build();
        Ok(envelope.to_vec().expect("what was built from bytes can be encoded"))
    }

    /// Reads a document, tagged (18) or not, and checks its form; nothing about its signature or its certificates is checked here.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        // The head of tag 18 is one byte; coset's own reader of tagged data would refuse what is not tagged.
        let untagged = bytes.strip_prefix(&[0xd2]).unwrap_or(bytes);
        let envelope =
            CoseSign1::from_slice(untagged).map_err(|error| DocumentError::Envelope { reason: error.to_string() })?;
        let header = HeaderBuilder::new().algorithm(Algorithm::ES384).build();
        if envelope.protected.header != header {
            return Err(DocumentError::Algorithm);
        }
        if !envelope.unprotected.is_empty() {
            return Err(DocumentError::Unprotected);
        }
        let payload = envelope.payload.as_deref().unwrap_or_default();
        if !(1..=MAX_PAYLOAD).contains(&payload.len()) {
            return Err(DocumentError::PayloadSize { found: payload.len() });
        }
        let payload = Payload::decode(payload)?;
        Ok(Self { envelope, payload })
    }

    /// What it says, signed or not.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Whether the signature is one by `key` over everything that is signed.
    pub(crate) fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let verified = self.envelope.verify_signature(b"", |signature, message| {
            let signature = Signature::from_slice(signature)?;
            key.verify(message, &signature)
        });
        verified.is_ok()
    }
}
