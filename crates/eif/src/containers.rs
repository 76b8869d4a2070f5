//! Container images as files: an OCI image layout (image-spec 1.1), as a directory or in a tar archive, or what `docker save` and
//! `podman save` write. No daemon, no registry, and nothing is unpacked on the host: the layers become a [`Tree`], and what is in
//! the files goes into a [`Spool`].
//!
//! Every blob is held against its digest. Only with the feature `ramdisks`. Deliberately missing: pulling, signatures of
//! container images, encrypted layers, schema 1 manifests, and extended attributes, for which a ramdisk has no room.
//!
//! What an enclave's init does not do is told in [`Container::remarks`]: AWS's takes a command and an environment, but runs it as
//! root in `/`. A working directory is kept by starting the command through the image's own shell.

mod layers;
mod manifest;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

pub use crate::contents::Spool;
pub use layers::LayerError;
pub use manifest::Platform;

use crate::tree::{SYMLINK, Tree};
use layers::Layers;
use manifest::{Config, Image, RunConfig};
use store::Store;

/// The most that the layers of an image may unpack to, unless the user says otherwise: a ramdisk of more fits in no enclave that
/// anybody has seen.
pub const DEFAULT_LIMIT: u64 = 4 << 30;

/// Why a container image cannot be used.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file or directory is none of the forms that are known.
    #[error("{} is neither an oci image layout nor what `docker save` writes: there is no index.json and no manifest.json", path.display())]
    Form {
        /// The file or directory.
        path: PathBuf,
    },
    /// The whole archive is compressed.
    #[error("{} is compressed as a whole, expected a tar archive; unpack it first", path.display())]
    Compressed {
        /// The archive.
        path: PathBuf,
    },
    /// A part of the image is not there.
    #[error("the image has no {name}")]
    Missing {
        /// The part's path in the image.
        name: String,
    },
    /// A part of the image cannot be read or unpacked.
    #[error("cannot read {name} of the image")]
    Part {
        /// The part's path in the image.
        name: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// A JSON part of the image is not what it should be.
    #[error("{name} of the image cannot be understood: {reason}")]
    Json {
        /// The part's path in the image.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A digest is not one that is known.
    #[error("\"{}\" is no sha256 or sha512 digest", found.escape_debug())]
    Digest {
        /// The digest as it stands in the image.
        found: String,
    },
    /// A part of the image is not what its digest says.
    #[error("{name} of the image is damaged: its digest is {found}, expected {expected}")]
    Damaged {
        /// The part's path in the image.
        name: String,
        /// The digest of what is there.
        found: String,
        /// The digest that it should have.
        expected: String,
    },
    /// There are several images, or none that fits.
    #[error("{} image for {platform}{}, expected one; there are: {}", if found.is_empty() { "no" } else { "more than one" },
        name.as_ref().map(|name| format!(" of the name {name}")).unwrap_or_default(), if found.is_empty() { all } else { found })]
    Choice {
        /// For what the image should be.
        platform: Platform,
        /// The name that it should have.
        name: Option<String>,
        /// The images that fit.
        found: String,
        /// All images.
        all: String,
    },
    /// The image is for another platform.
    #[error("the image is for {found}, expected {expected}")]
    Platform {
        /// What it is for.
        found: String,
        /// What it should be for.
        expected: Platform,
    },
    /// The configuration and the manifest do not agree.
    #[error("the image has {layers} layers, but its configuration names {expected}")]
    Layers {
        /// How many layers the manifest has.
        layers: usize,
        /// How many the configuration has.
        expected: usize,
    },
    /// A layer cannot be applied.
    #[error("layer {number} ({name}) cannot be applied")]
    Layer {
        /// Its number, from 1.
        number: usize,
        /// Its path in the image.
        name: String,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// There is nothing to start.
    #[error("the image has neither an entrypoint nor a command, and none was given")]
    NoCommand,
}

impl ContainerError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Choice { name: None, found, .. } if !found.is_empty() => Some("choose one with --image-name"),
            Self::Choice { .. } | Self::Platform { .. } => Some(
                "`skopeo copy --override-arch ARCH` or `docker pull --platform` fetches an image for another architecture",
            ),
            Self::Form { .. } => {
                Some("`docker save NAME -o FILE` or `skopeo copy docker://NAME oci:DIRECTORY` makes one")
            }
            Self::NoCommand => Some("give the words of a command with --cmd"),
            Self::Layer { source: LayerError::TooLarge { .. }, .. } => {
                Some("if the image is meant to be that large, raise the limit with --max-unpacked")
            }
            _ => None,
        }
    }
}

/// Which image is wanted, and how much of it is taken.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is for.
    pub platform: Platform,
    /// Its name, such as `app:latest`, if there are several.
    pub name: Option<String>,
    /// The most bytes that its layers may unpack to.
    pub limit: u64,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { platform: Platform::Amd64, name: None, limit: DEFAULT_LIMIT }
    }
}

/// What to run in place of what an image says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// The whole command, in place of entrypoint and command; empty for theirs.
    pub command: Vec<String>,
    /// Variables, `NAME=VALUE`, each in place of the image's own of that name.
    pub environment: Vec<String>,
}

/// A container image, unpacked and ready for a ramdisk.
///
/// ```no_run
/// use eif::containers::{Container, Overrides, Spool, Wanted};
/// use eif::ramdisks;
///
/// // What `docker save app -o app.tar` wrote. Its files stay on disk until they are written into the image.
/// let spool = Spool::in_file(tempfile::tempfile()?);
/// let container = Container::read("app.tar".as_ref(), &Wanted::default(), &Overrides::default(), spool)?;
/// let Container { tree, command, environment, .. } = container;
/// let mut ramdisk = std::fs::File::create("app.cpio")?;
/// ramdisks::application_ramdisk(&mut ramdisk, &tree, &command, &environment, 0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Container {
    /// The files.
    pub tree: Tree,
    /// The words of the command: entrypoint, then command.
    pub command: Vec<String>,
    /// The environment, `NAME=VALUE`.
    pub environment: Vec<String>,
    /// What `docker inspect` would say of the image, for the metadata section.
    pub docker_info: Value,
    /// What of the image's configuration an enclave does not do.
    pub remarks: Vec<String>,
}

impl Container {
    /// Reads an image from a directory or an archive. What is in its files is kept in the spool.
    pub fn read(path: &Path, wanted: &Wanted, overrides: &Overrides, spool: Spool) -> Result<Self, ContainerError> {
        let store = Store::open(path)?;
        let Image { config_name, config, config_digest, layers, names } = manifest::choose(&store, wanted)?;
        let Config { os, architecture, created, author, config: run, rootfs } = config;
        if rootfs.diff_ids.len() != layers.len() {
            return Err(ContainerError::Layers { layers: layers.len(), expected: rootfs.diff_ids.len() });
        }
        let found = format!("{os}/{architecture}");
        if found != wanted.platform.to_string() {
            return Err(ContainerError::Platform { found, expected: wanted.platform });
        }
        let mut unpacked = Layers::new(wanted.limit, spool);
        for (number, (layer, diff_id)) in (1..).zip(layers.iter().zip(&rootfs.diff_ids)) {
            let name = layer.name.clone();
            let checked = store.open_part(layer)?;
            let digest = unpacked.apply(checked, diff_id).map_err(|source| ContainerError::Layer {
                number,
                name: name.clone(),
                source,
            })?;
            if &digest != diff_id {
                return Err(ContainerError::Damaged { name, found: digest, expected: diff_id.clone() });
            }
        }
        let tree = unpacked.finish();
        let mut remarks = Vec::new();
        let docker_info = json!({
            "Id": config_digest.unwrap_or(config_name),
            "RepoTags": names,
            "Created": created,
            "Author": author.unwrap_or_default(),
            "Architecture": architecture,
            "Os": os,
            "Config": &run,
            "RootFS": { "Type": "layers", "Layers": rootfs.diff_ids },
        });
        let RunConfig { user, env, entrypoint, cmd, working_dir } = run.unwrap_or_default();
        let mut command = [entrypoint.unwrap_or_default(), cmd.unwrap_or_default()].concat();
        if !overrides.command.is_empty() {
            command.clone_from(&overrides.command);
        }
        if command.is_empty() {
            return Err(ContainerError::NoCommand);
        }
        if let Some(user) = user.filter(|user| !matches!(user.as_str(), "" | "root" | "0" | "0:0" | "root:root")) {
            remarks.push(format!("the image is to be run as user {user}, but an enclave's init runs it as root"));
        }
        if let Some(directory) = working_dir.filter(|directory| !matches!(directory.as_str(), "" | "/")) {
            command = in_directory(&tree, &directory, command, &mut remarks);
        }
        let environment = with_variables(env.unwrap_or_default(), &overrides.environment);
        Ok(Self { tree, command, environment, docker_info, remarks })
    }
}

/// The command so that it starts in a directory. Init changes none, so the image's shell does, if there is one.
fn in_directory(tree: &Tree, directory: &str, mut command: Vec<String>, remarks: &mut Vec<String>) -> Vec<String> {
    if has_shell(tree) {
        let start = ["/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", directory].map(str::to_owned);
        return start.into_iter().chain(command).collect();
    }
    remarks.push(format!(
        "the image is to be run in {directory}, but it has no /bin/sh to change there, so its command starts in /"
    ));
    // A program that is named by a path is found at least.
    if let Some(program) = command.first_mut().filter(|program| program.contains('/') && !program.starts_with('/')) {
        *program = format!("{}/{program}", directory.trim_end_matches('/'));
    }
    command
}

fn has_shell(tree: &Tree) -> bool {
    // `/bin` is a link to `usr/bin` in many images.
    let bin = match tree.0.get(&b"bin"[..]) {
        Some(node) if node.is(SYMLINK) => {
            let target = node.data.in_memory();
            target.strip_prefix(b"/").unwrap_or(target).to_vec()
        }
        _ => b"bin".to_vec(),
    };
    tree.0.contains_key(&[&bin[..], b"/sh"].concat())
}

fn with_variables(mut environment: Vec<String>, more: &[String]) -> Vec<String> {
    for variable in more {
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        environment.retain(|old| name(old) != name(variable));
        environment.push(variable.clone());
    }
    environment
}
