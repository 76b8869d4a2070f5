//! The Nitro Enclave machine: microvm with an EIF for a kernel and an NSM.

mod options;

pub use options::{DEFAULT_PARENT_ID, EnclaveOptions};
