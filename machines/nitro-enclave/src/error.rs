//! Why an enclave cannot be started.

use std::path::PathBuf;

use thiserror::Error;

/// Why an enclave cannot be started.
#[derive(Debug, Error)]
pub enum EnclaveError {
    /// Something else than an Enclave Image.
    #[error(
        "{path} is {found}, but the nitro-enclave machine takes only Enclave Images (EIF); \
         type: vmm --machine microvm --kernel {path}"
    )]
    NotAnEif {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Something that no machine boots.
    #[error(
        "{path} is no Enclave Image (EIF): it starts with \"{}\", expected \".eif\"; \
         an enclave image is made by `nitro-cli build-enclave` or `eif build`",
        found.escape_ascii()
    )]
    UnknownImage {
        /// The file.
        path: PathBuf,
        /// Its first bytes, at most four.
        found: Vec<u8>,
    },
    /// The image breaks a rule of the format.
    #[error("{path} cannot be booted{}", hint(source))]
    Image {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: eif::Error,
    },
    /// A file that cannot be read.
    #[error("cannot read {what} {path}")]
    File {
        /// `"image"` or `"initrd"`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The image is another one than the one that was measured when the machine started.
    #[error("{path} has changed since the enclave was started: it cannot be reset with the measurements it has")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The user's module id.
    #[error("the enclave's id is not one that an NSM can have")]
    ModuleId(#[from] nsm::ModuleIdError),
    /// The authority that signs attestation documents.
    #[error("the enclave's attestation authority is not to be had")]
    Authority(#[from] crate::LoadError),
}

/// What to do about it, after a semicolon, where the cause is known.
fn hint(error: &eif::Error) -> String {
    error.hint().map(|hint| format!("; {hint}")).unwrap_or_default()
}
