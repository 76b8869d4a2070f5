//! What a user may choose about an enclave, beside the board's own options.

pub use attestation::MapForm;
pub use nsm::DEFAULT_INSTANCE_ID as DEFAULT_PARENT_ID;

use crate::AuthorityChoice;

/// The enclave's own choices; everything else is [`microvm::Options`] with `kernel` an EIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnclaveOptions {
    /// The module id that DescribeNSM reports (`i-<17 hex>-enc<16 hex>`); none: one made of the parent's instance id and PCR0.
    pub id: Option<String>,
    /// The parent's IAM role ARN, measured into PCR3; none leaves PCR3 zero.
    pub parent_role: Option<String>,
    /// The parent's EC2 instance id, measured into PCR4. Real enclaves always have one, so there is a default.
    pub parent_id: String,
    /// Whose certificates attestation documents have.
    pub authority: AuthorityChoice,
    /// How the length of a document's map is written.
    pub document_map: MapForm,
    /// Debug mode: PCR0 to PCR15 read zero, so that no verifier that looks at them mistakes the enclave for one whose console is closed.
    pub debug_mode: bool,
}

impl Default for EnclaveOptions {
    fn default() -> Self {
        Self {
            id: None,
            parent_role: None,
            parent_id: DEFAULT_PARENT_ID.to_owned(),
            authority: AuthorityChoice::default(),
            document_map: MapForm::default(),
            debug_mode: false,
        }
    }
}
