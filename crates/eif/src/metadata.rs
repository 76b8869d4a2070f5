//! The metadata section: a JSON object that says what the image is and who built it.

use serde::{Deserialize, Serialize};

/// Longer metadata is not parsed; AWS's builder writes a few kilobytes. A parsed JSON text takes many times its length,
/// so without a limit a hostile image could make a small host run out of memory.
const MAX_PARSED_SIZE: usize = 1 << 20;

/// What the image is and who built it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata {
    /// The image's name, by default that of the file it was built into.
    pub image_name: String,
    /// The image's version.
    pub image_version: String,
    /// Who built it, and of what.
    pub build_metadata: BuildMetadata,
    /// What `docker inspect` said of the container image, or an object of the builder's own.
    pub docker_info: serde_json::Value,
    /// Whatever the user gave to the builder.
    pub custom_metadata: serde_json::Value,
}

/// Who built an image, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildMetadata {
    /// When, as RFC 3339 has it.
    pub build_time: String,
    /// With what tool.
    pub build_tool: String,
    /// The tool's version.
    pub build_tool_version: String,
    /// The kernel's operating system.
    pub operating_system: String,
    /// The kernel's version.
    pub kernel_version: String,
}

impl Metadata {
    /// Metadata with a name and a version; the build is said to be this crate's, at the epoch, so that the same input
    /// gives the same image.
    pub fn new(image_name: &str, image_version: &str) -> Self {
        Self {
            image_name: image_name.to_owned(),
            image_version: image_version.to_owned(),
            build_metadata: BuildMetadata {
                build_time: "1970-01-01T00:00:00+00:00".to_owned(),
                build_tool: env!("CARGO_PKG_NAME").to_owned(),
                build_tool_version: env!("CARGO_PKG_VERSION").to_owned(),
                operating_system: "Linux".to_owned(),
                kernel_version: "Unknown".to_owned(),
            },
            docker_info: serde_json::Value::Object(serde_json::Map::new()),
            custom_metadata: serde_json::Value::Object(serde_json::Map::new()),
        }
    }

    /// The section's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and JSON values are always JSON")
    }

    /// Parses the section's bytes; the error says what is wrong with them.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > MAX_PARSED_SIZE {
            return Err(format!("{} bytes are more than the {MAX_PARSED_SIZE} that are parsed", json.len()));
        }
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_under_aws_names() {
        let metadata = Metadata::new("demo", "1.2");
        let json: serde_json::Value = serde_json::from_slice(&metadata.to_json()).unwrap();
        assert_eq!(json["ImageName"], "demo");
        assert_eq!(json["BuildMetadata"]["BuildToolVersion"], env!("CARGO_PKG_VERSION"));
        assert_eq!(Metadata::parse(&metadata.to_json()), Ok(metadata));
    }

    #[test]
    fn unknown_keys_are_ignored_and_missing_ones_named() {
        let mut json: serde_json::Value = serde_json::from_slice(&Metadata::new("a", "b").to_json()).unwrap();
        json["Later"] = 1.into();
        assert!(Metadata::parse(json.to_string().as_bytes()).is_ok());
        json.as_object_mut().unwrap().remove("DockerInfo");
        assert!(Metadata::parse(json.to_string().as_bytes()).unwrap_err().contains("DockerInfo"));
    }

    #[test]
    fn oversized_json_is_not_parsed() {
        assert!(Metadata::parse(&vec![b' '; MAX_PARSED_SIZE + 1]).is_err());
    }
}
