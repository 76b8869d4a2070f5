//! The metadata section: a JSON object that says what the image is and who built it.

use serde::{Deserialize, Serialize};

/// Longer metadata is not parsed; AWS's builder writes a few kilobytes. A parsed JSON text takes many times its length,
/// so without a limit a hostile image could make a small host run out of memory.
pub(crate) const MAX_PARSED_SIZE: usize = 1 << 20;

/// What the image is and who built it.
///
/// ```
/// let mut metadata = eif::Metadata::new("demo", "1.0");
/// metadata.build_metadata.build_time = eif::rfc3339(1_700_000_000);
/// metadata.custom_metadata = serde_json::json!({ "commit": "1234abcd" });
/// let json: serde_json::Value = serde_json::from_slice(&metadata.to_json())?;
/// assert_eq!(json["BuildMetadata"]["BuildTime"], "2023-11-14T22:13:20+00:00");
/// # Ok::<(), serde_json::Error>(())
/// ```
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

/// Seconds since 1970 in the form of [`BuildMetadata::build_time`], in UTC.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Civil calendar from days since 1970, in eras of 400 years that start in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00")
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
    fn seconds_become_dates_across_leap_years() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00+00:00"),
            (951_782_399, "2000-02-28T23:59:59+00:00"),
            (951_782_400, "2000-02-29T00:00:00+00:00"),
            (1_709_251_200, "2024-03-01T00:00:00+00:00"),
            (4_294_967_295, "2106-02-07T06:28:15+00:00"),
        ] {
            assert_eq!(rfc3339(seconds), date);
        }
    }

    #[test]
    fn oversized_json_is_not_parsed() {
        assert!(Metadata::parse(&vec![b' '; MAX_PARSED_SIZE + 1]).is_err());
    }
}
