//! What a user may choose about an enclave, beside the board's own options.

/// The enclave's own choices; everything else is [`microvm::Options`] with `kernel` an EIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnclaveOptions {
    /// The module id that DescribeNSM reports (`i-<17 hex>-enc<16 hex>`); none: a made-up one from the parent's instance id.
    pub id: Option<String>,
    /// The parent's IAM role ARN, measured into PCR3; none leaves PCR3 zero.
    pub parent_role: Option<String>,
    /// The parent's EC2 instance id, measured into PCR4.
    pub parent_id: String,
}

/// The instance id of the parent where the user names none: real enclaves always have one, and AWS's own checks want PCR4 non-zero.
pub const DEFAULT_PARENT_ID: &str = "i-1234567890abcdef0";

impl Default for EnclaveOptions {
    fn default() -> Self {
        Self { id: None, parent_role: None, parent_id: DEFAULT_PARENT_ID.to_owned() }
    }
}
