//! Where the authority behind attestation documents comes from, and its file in the user's data directory.
//!
//! The file is made on first use, by whoever needs it first: an enclave that asks for a document, or `vmm attest root`. It holds the root
//! certificate and its key, readable by its owner only. Deliberately missing: an authority that is kept anywhere but in a file.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use attestation::{Authority, AuthorityError, MapForm, Signer};
use nsm::{AttestationContext, AttestationRequest, Attestor, ErrorCode};
use thiserror::Error;
use tracing::{info, warn};

/// The file's name below the user's data directory.
const FILE: &str = "vmm/attestation-authority.pem";

/// How many random bytes an authority is made of.
const SECRET_SIZE: usize = 48;

/// Which authority signs an enclave's documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AuthorityChoice {
    /// The user's own, made on first use.
    #[default]
    User,
    /// The one that this text always gives.
    Seed(String),
    /// The certificate and key in this PEM file.
    File(PathBuf),
}

/// Why there is no authority.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Neither `XDG_DATA_HOME` nor `HOME` says where the user's data is.
    #[error("there is no data directory: neither XDG_DATA_HOME nor HOME is an absolute path")]
    NoDataDirectory,
    /// The file cannot be read.
    #[error("cannot read the attestation authority {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file or its directory cannot be made.
    #[error("cannot keep an attestation authority in {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} is no attestation authority")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: AuthorityError,
    },
    /// An authority could not be made.
    #[error("cannot make an attestation authority")]
    Make(#[from] AuthorityError),
    /// The host gives no random bytes.
    #[error("the host gives no random bytes")]
    Entropy(#[from] getrandom::Error),
}

impl AuthorityChoice {
    /// Reads `auto`, `seed:TEXT` or a path, which starts from `base`. An empty text or seed is none of them.
    pub fn parse(text: &str, base: &Path) -> Option<Self> {
        match text.strip_prefix("seed:") {
            Some("") => None,
            Some(seed) => Some(Self::Seed(seed.to_owned())),
            None if text == "auto" => Some(Self::User),
            None if text.is_empty() => None,
            None => Some(Self::File(base.join(text))),
        }
    }

    /// The authority; the user's own is made if there is none yet.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&self) -> Result<Authority, LoadError> {
        match self {
            Self::User => user_authority(&data_directory().ok_or(LoadError::NoDataDirectory)?.join(FILE)),
            Self::Seed(seed) => Ok(Authority::from_secret(seed.as_bytes())?),
            Self::File(path) => read(path),
        }
    }
}

/// The directory that the XDG base directory specification names.
fn data_directory() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
}

fn read(path: &Path) -> Result<Authority, LoadError> {
    let text = fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    Authority::from_pem(&text).map_err(|source| LoadError::Content { path: path.to_owned(), source })
}

fn user_authority(path: &Path) -> Result<Authority, LoadError> {
    match fs::metadata(path) {
        Ok(metadata) => {
            if metadata.permissions().mode() & 0o077 != 0 {
                warn!("{} holds a key and can be read by others than its owner", path.display());
            }
            read(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path)?;
            // Another vmm may have made one at the same time: the first one that was kept counts for both.
            read(path)
        }
        Err(source) => Err(LoadError::Read { path: path.to_owned(), source }),
    }
}

/// Makes an authority and keeps it, unless there has come to be one.
fn make(path: &Path) -> Result<(), LoadError> {
    let text = random_authority()?.to_pem()?;
    let write = |source| LoadError::Write { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(write)?;
    }
    // Written beside its place and linked into it, so that nobody reads half a file.
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    let linked = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::hard_link(&draft, path));
    // A draft that stays does no harm.
    let _ = fs::remove_file(&draft);
    match linked {
        Ok(()) => info!("made an attestation authority in {}", path.display()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(write(source)),
    }
    Ok(())
}

fn random_authority() -> Result<Authority, LoadError> {
    let mut secret = [0; SECRET_SIZE];
    getrandom::fill(&mut secret)?;
    Ok(Authority::from_secret(&secret)?)
}

/// A signer that gets the user's own authority when it is first needed, so that an enclave that never attests leaves nothing behind.
pub(crate) struct OnFirstUse {
    form: MapForm,
    signer: Option<Signer>,
}

impl OnFirstUse {
    pub(crate) fn new(form: MapForm) -> Self {
        Self { form, signer: None }
    }

    /// The user's own authority, or one for this run only where none can be kept.
    fn authority() -> Option<Authority> {
        match AuthorityChoice::User.load() {
            Ok(authority) => Some(authority),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                warn!("{error}{cause}; attestation documents of this run have a root that nobody can verify");
                random_authority().ok()
            }
        }
    }
}

impl Attestor for OnFirstUse {
    fn attest(&mut self, request: &AttestationRequest, context: AttestationContext<'_>) -> Result<Vec<u8>, ErrorCode> {
        let signer = match self.signer.take() {
            Some(signer) => signer,
            None => Signer::new(Self::authority().ok_or(ErrorCode::InternalError)?, self.form),
        };
        self.signer.insert(signer).attest(request, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_authority_is_made_once_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/authority.pem");
        let first = user_authority(&path).unwrap().root_pem().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(user_authority(&path).unwrap().root_pem().unwrap(), first);
        assert_eq!(AuthorityChoice::File(path.clone()).load().unwrap().root_pem().unwrap(), first);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_authority_that_another_kept_first_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authority.pem");
        make(&path).unwrap();
        let first = fs::read(&path).unwrap();
        make(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
    }

    #[test]
    fn a_file_that_is_not_there_or_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authority.pem");
        let choice = AuthorityChoice::File(path.clone());
        assert!(matches!(choice.load(), Err(LoadError::Read { .. })));
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(choice.load(), Err(LoadError::Content { .. })));
    }

    #[test]
    fn a_seed_needs_no_file() {
        let root = |seed: &str| AuthorityChoice::Seed(seed.to_owned()).load().unwrap().root_pem().unwrap();
        assert_eq!(root("one"), root("one"));
        assert_ne!(root("one"), root("two"));
    }
}
