//! The seam to whoever signs attestation documents.

use crate::module_id::ModuleId;
use crate::pcr::PcrBank;
use crate::response::ErrorCode;

/// What the enclave asks to have put into the document. An absent field is written as null.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttestationRequest {
    /// Data of the enclave's own.
    pub user_data: Option<Vec<u8>>,
    /// A value of the verifier's that proves the document fresh.
    pub nonce: Option<Vec<u8>>,
    /// A public key, DER, for which the verifier may encrypt its answer.
    pub public_key: Option<Vec<u8>>,
}

/// What the module says of itself in the document.
#[derive(Debug, Clone, Copy)]
pub struct AttestationContext<'a> {
    /// The module's name.
    pub module_id: &'a ModuleId,
    /// The PCRs; the document lists those that are [locked](PcrBank::locked).
    pub pcrs: &'a PcrBank,
}

/// Makes signed attestation documents.
pub trait Attestor: Send {
    /// The document, a serialized COSE_Sign1, or the error that the enclave is told.
    fn attest(&mut self, request: &AttestationRequest, context: AttestationContext<'_>) -> Result<Vec<u8>, ErrorCode>;
}
