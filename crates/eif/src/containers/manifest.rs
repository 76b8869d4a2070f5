//! Which image of a file is meant, and what its manifest and configuration say (image-spec 1.1; Docker's image specification 1.2
//! for `manifest.json`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::store::{Part, Store};
use super::{ContainerError, Wanted};

/// Nested indexes are followed to this depth.
const DEEPEST_INDEX: usize = 4;

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// `linux/amd64`.
    Amd64,
    /// `linux/arm64`.
    Arm64,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "linux/amd64",
            Self::Arm64 => "linux/arm64",
        })
    }
}

/// An image that was chosen.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) config_name: String,
    pub(super) config_digest: Option<String>,
    pub(super) config: Config,
    pub(super) layers: Vec<Part>,
    pub(super) names: Vec<String>,
}

/// The configuration (image-spec, config.md).
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    pub(super) created: Option<String>,
    pub(super) author: Option<String>,
    pub(super) config: Option<RunConfig>,
    pub(super) rootfs: RootFs,
}

/// How a container of the image is run.
#[derive(Debug, Default, Clone, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RunConfig {
    pub(super) user: Option<String>,
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    /// Digests of the layers, unpacked.
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An index, or a manifest: the two are told apart by what they hold.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<DescribedPlatform>,
}

#[derive(Debug, Clone, Deserialize)]
struct DescribedPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Descriptor {
    fn name(&self) -> Option<&str> {
        // containerd writes the whole name into an annotation of its own, and only the tag into the standard one.
        let annotation = |key| self.annotations.get(key).map(String::as_str);
        annotation("io.containerd.image.name").or(annotation("org.opencontainers.image.ref.name"))
    }

    /// Whether it may be an image for that platform: it says so, or says nothing.
    fn fits(&self, wanted: Platform) -> bool {
        // A statement of how an image was built stands beside the images themselves, for the platform unknown/unknown.
        if self.annotations.contains_key("vnd.docker.reference.type") {
            return false;
        }
        self.platform
            .as_ref()
            .is_none_or(|platform| format!("{}/{}", platform.os, platform.architecture) == wanted.to_string())
    }

    fn shown(&self) -> String {
        let platform = self
            .platform
            .as_ref()
            .map(|platform| format!(" for {}/{}", platform.os, platform.architecture))
            .unwrap_or_default();
        format!("{}{platform}", self.name().unwrap_or(&self.digest))
    }
}

/// The one image that is wanted.
pub(super) fn choose(store: &Store, wanted: &Wanted) -> Result<Image, ContainerError> {
    // Newer versions of Docker write both; the layout has digests.
    if store.has("index.json") {
        return choose_of_index(store, wanted);
    }
    if store.has("manifest.json") {
        return choose_of_saved(store, wanted);
    }
    Err(ContainerError::Form { path: store.path().to_owned() })
}

fn choose_of_index(store: &Store, wanted: &Wanted) -> Result<Image, ContainerError> {
    let mut document: Document = store.json(&Part { name: "index.json".to_owned(), digest: None })?;
    let mut names = Vec::new();
    let mut name = wanted.name.as_deref();
    for _ in 0..DEEPEST_INDEX {
        let descriptor = one_of(&document.manifests, wanted, name)?;
        names.extend(descriptor.name().map(str::to_owned));
        document = store.json(&Part::blob(&descriptor.digest)?)?;
        // Names stand in the outermost index only.
        name = None;
        if let Some(config) = &document.config {
            let part = Part::blob(&config.digest)?;
            let layers = document.layers.iter().map(|layer| Part::blob(&layer.digest)).collect::<Result<_, _>>()?;
            let config_digest = Some(config.digest.clone());
            return Ok(Image { config: store.json(&part)?, config_name: part.name, config_digest, layers, names });
        }
    }
    let reason = format!("indexes are nested more than {DEEPEST_INDEX} deep");
    Err(ContainerError::Json { name: "index.json".to_owned(), reason })
}

fn one_of<'a>(all: &'a [Descriptor], wanted: &Wanted, name: Option<&str>) -> Result<&'a Descriptor, ContainerError> {
    let named = |found: &Descriptor| {
        name.is_none_or(|name| {
            found.name().is_some_and(|found| same_name(found, name))
                || found.annotations.get("org.opencontainers.image.ref.name").is_some_and(|found| found == name)
        })
    };
    let fitting: Vec<&Descriptor> = all.iter().filter(|found| found.fits(wanted.platform) && named(found)).collect();
    // The same image may be listed once for each of its names.
    match fitting.as_slice() {
        [first, rest @ ..] if rest.iter().all(|other| other.digest == first.digest) => Ok(first),
        found => {
            let listed = |descriptors: &mut dyn Iterator<Item = &Descriptor>| {
                descriptors.map(Descriptor::shown).collect::<Vec<_>>().join(", ")
            };
            Err(ContainerError::Choice {
                platform: wanted.platform,
                name: name.map(str::to_owned),
                found: listed(&mut found.iter().copied()),
                all: listed(&mut all.iter()),
            })
        }
    }
}

/// Whether a full name is the one that a user gave, who may leave out Docker's own registry and the tag `latest`.
fn same_name(full: &str, given: &str) -> bool {
    let short = |name: &str| {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        name.strip_suffix(":latest").unwrap_or(name).to_owned()
    };
    short(full) == short(given)
}

fn choose_of_saved(store: &Store, wanted: &Wanted) -> Result<Image, ContainerError> {
    let all: Vec<Saved> = store.json(&Part { name: "manifest.json".to_owned(), digest: None })?;
    let shown =
        |saved: &Saved| saved.repo_tags.clone().unwrap_or_default().first().cloned().unwrap_or(saved.config.clone());
    let fits = |saved: &&Saved| {
        let name = wanted.name.as_deref();
        name.is_none_or(|name| saved.repo_tags.iter().flatten().any(|tag| same_name(tag, name)))
    };
    let found: Vec<&Saved> = all.iter().filter(fits).collect();
    let [saved] = found.as_slice() else {
        return Err(ContainerError::Choice {
            platform: wanted.platform,
            name: wanted.name.clone(),
            found: found.iter().map(|saved| shown(saved)).collect::<Vec<_>>().join(", "),
            all: all.iter().map(shown).collect::<Vec<_>>().join(", "),
        });
    };
    // The configuration's file is named after its digest.
    let stem = saved.config.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    let digest = Part::blob(&format!("sha256:{stem}")).ok().and_then(|part| part.digest);
    let config = store.json(&Part { name: saved.config.clone(), digest: digest.clone() })?;
    // What is held against a digest is what each layer unpacks to.
    let layers = saved.layers.iter().map(|name| Part { name: name.clone(), digest: None }).collect();
    let names = saved.repo_tags.clone().unwrap_or_default();
    Ok(Image { config, config_name: saved.config.clone(), config_digest: digest, layers, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_with_and_without_what_goes_without_saying() {
        assert!(same_name("docker.io/library/app:latest", "app"));
        assert!(same_name("app:latest", "app:latest"));
        assert!(!same_name("app:1", "app"));
        assert!(!same_name("example.com/app:latest", "app"));
    }
}
