//! What can go wrong in a processor backend.

use thiserror::Error;

/// A failure of a processor backend.
#[derive(Debug, Error)]
pub enum AccelError {
    /// More vCPUs than the backend can have, or none.
    #[error("{requested} vCPUs asked for, but the {backend} accelerator takes 1 to {most}")]
    VcpuCount {
        /// The backend's name.
        backend: &'static str,
        /// What was asked for.
        requested: u32,
        /// The most it can have.
        most: u32,
    },
    /// A vCPU that does not exist or was taken already.
    #[error("vCPU {id} does not exist or has been taken already")]
    NoSuchVcpu {
        /// Its number.
        id: u32,
    },
    /// A state that no processor can be in.
    #[error("impossible vCPU state: {what}")]
    State {
        /// What is wrong with it.
        what: String,
    },
    /// The host lacks something.
    #[error("the {backend} accelerator cannot run here: {what}")]
    Unavailable {
        /// The backend's name.
        backend: &'static str,
        /// What is missing and what to do.
        what: String,
    },
    /// A system call failed.
    #[error("{what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// The backend met something that it does not model.
    #[error("vCPU {id} cannot go on at rip {rip:#x}: {what}")]
    Stuck {
        /// Its number.
        id: u32,
        /// Where it was.
        rip: u64,
        /// What it met.
        what: String,
    },
}
