//! Why a command failed, as the user reads it.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be opened, read, written or put into place.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Standard output failed.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// An image cannot be read.
    #[error("{} cannot be read as an enclave image", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: eif::Error,
    },
    /// An image cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: eif::WriteError,
    },
    /// An image cannot be signed.
    #[error("{} cannot be signed", path.display())]
    Resign {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: eif::ResignError,
    },
    /// A certificate cannot be used.
    #[error("{} holds no usable certificate", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: eif::signing::CertificateError,
    },
    /// A private key cannot be used.
    #[error("{} holds no usable private key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: eif::signing::KeyError,
    },
    /// A signature cannot be asked for or taken in.
    #[error("the signature cannot be made")]
    Signing(#[from] eif::signing::CoseError),
    /// A JSON file of the user's is not JSON.
    #[error("{} is not a json object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A directory cannot be made a ramdisk.
    #[error("the ramdisk of {} cannot be made", path.display())]
    Ramdisk {
        /// The directory, or init.
        path: PathBuf,
        /// Why.
        #[source]
        source: eif::ramdisks::RamdiskError,
    },
    /// A container image cannot be used.
    #[error("{} cannot be read as a container image", path.display())]
    Container {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: eif::containers::ContainerError,
    },
    /// A path cannot be named in an image.
    #[error("{} is not text", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// A time is not one.
    #[error("SOURCE_DATE_EPOCH is \"{found}\", expected seconds since 1970 below {}", u32::MAX)]
    Epoch {
        /// Its value.
        found: String,
    },
}

impl Error {
    /// Whether the reader of standard output went away.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What to do about it, where the cause is known.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Image { source: eif::Error::Read { source, .. }, .. }
                if source.kind() == io::ErrorKind::NotSeekable =>
            {
                Some("an image is read from a file; a pipe's bytes are to be written to one first")
            }
            Self::Image { source, .. } => source.hint(),
            Self::Resign { source: eif::ResignError::Image(source), .. } => source.hint(),
            Self::Container { source, .. } => source.hint(),
            Self::Key { source: eif::signing::KeyError::Encrypted, .. } => {
                Some("`openssl pkcs8 -topk8 -nocrypt -in KEY` takes the passphrase off")
            }
            _ => None,
        }
    }
}

/// An error as the user reads it: `eif: error: ...`, its causes, numbered from the nearest to the first, and a hint.
pub fn error_text(error: &Error) -> String {
    let mut text = format!("eif: error: {error}");
    let causes = std::iter::successors(error.source(), |cause: &&dyn StdError| (*cause).source());
    for (number, cause) in (1..).zip(causes) {
        text.push_str(&format!("\n  {number}: {cause}"));
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text
}
