//! Attestation documents of a Nitro Secure Module: made, signed, read and verified.
//!
//! Modelled is what AWS's "attestation process" describes (docs/attestation_process.md of aws-nitro-enclaves-nsm-api, sections 2 and 3): a
//! COSE_Sign1 over nine fields in CBOR ([`Payload`], [`SignedDocument`]), signed with ES384 by a certificate of three hours
//! ([`Signer`]), which a chain of P-384 certificates ties to a root ([`Authority`]). AWS's root is AWS's alone, so ours is a local test
//! authority and says so in its name; a verifier must be given it deliberately. [`verify`] is such a verifier.
//!
//! Deliberately missing: revocation lists, which AWS's intermediate certificates point to and ours do not; files and clocks, which the
//! caller hands in; randomness, since everything below an authority's key is derived from it.

#![forbid(unsafe_code)]

mod authority;
mod certificate;
mod document;
mod key;
mod pem;
mod signer;
mod verify;

pub use authority::{Authority, AuthorityError};
pub use certificate::IssueError;
pub use document::{DocumentError, MapForm, Payload, SignedDocument};
pub use pem::certificate_from_pem;
pub use signer::{Clock, LEAF_LIFETIME, Signer};
pub use verify::{Check, Expectations, Finding, Refusal, Report, verify};
