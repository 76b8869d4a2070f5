//! The objects that `nitro-cli` prints, field for field and in its order, so that scripts written for it keep working.
//!
//! Modelled is nitro-cli 1.3. Only with the feature `signing`.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::description::Description;
use crate::measure::Measurements;
use crate::metadata::BuildMetadata;
use crate::signing::{Certificate, SignedPcr};

/// What `HashAlgorithm` says: the debug text of AWS's hasher.
pub const HASH_ALGORITHM: &str = "Sha384 { ... }";

/// The measurements, as `nitro-cli build-enclave` and `describe-eif` have them under `Measurements`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NamedMeasurements {
    hash_algorithm: &'static str,
    #[serde(flatten)]
    pcrs: Measurements,
}

impl From<Measurements> for NamedMeasurements {
    fn from(pcrs: Measurements) -> Self {
        Self { hash_algorithm: HASH_ALGORITHM, pcrs }
    }
}

/// What `nitro-cli build-enclave` and `sign-eif` print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildInfo {
    measurements: NamedMeasurements,
}

impl From<Measurements> for BuildInfo {
    fn from(measurements: Measurements) -> Self {
        Self { measurements: measurements.into() }
    }
}

/// What `nitro-cli describe-eif` prints.
///
/// ```
/// # let image = eif::Writer::new(b"a bzImage".to_vec(), "").ramdisk(vec![1]).to_vec()?;
/// let described = eif::Description::read(std::io::Cursor::new(image))?;
/// let json = serde_json::to_value(eif::nitro_cli::DescribeEif::new(&described))?;
/// assert_eq!((&json["EifVersion"], &json["IsSigned"], &json["CheckCRC"]), (&4.into(), &false.into(), &true.into()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeEif {
    eif_version: u16,
    measurements: NamedMeasurements,
    is_signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_certificate: Option<SigningCertificate>,
    #[serde(rename = "CheckCRC")]
    check_crc: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_check: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<DescribeMetadata>,
}

/// `Metadata` of `describe-eif`: the user's own keys stand beside the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeMetadata {
    #[serde(flatten)]
    build: BuildMetadata,
    docker_info: Value,
    #[serde(flatten)]
    custom: Map<String, Value>,
}

/// `SigningCertificate` of `describe-eif`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SigningCertificate {
    issuer_name: std::collections::BTreeMap<String, String>,
    algorithm: String,
    not_before: String,
    not_after: String,
    signature: String,
}

impl From<&Certificate> for SigningCertificate {
    fn from(certificate: &Certificate) -> Self {
        let signature: Vec<String> = certificate.signature().iter().map(|byte| format!("{byte:02X}")).collect();
        Self {
            issuer_name: certificate.issuer(),
            algorithm: certificate.algorithm(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            signature: signature.join(":"),
        }
    }
}

impl DescribeEif {
    /// The object for an image.
    ///
    /// Where AWS's tool would end with an error, because the certificate or the signature cannot be decoded, the fields that
    /// depend on it are left out, or false.
    pub fn new(description: &Description) -> Self {
        let (signing_certificate, signature_check) = signature_fields(description);
        let metadata = description.metadata.as_ref();
        Self {
            eif_version: description.header.version,
            measurements: description.measurements.into(),
            is_signed: description.signature.is_some(),
            signing_certificate,
            check_crc: description.crc == description.header.crc,
            signature_check,
            image_name: metadata.map(|metadata| metadata.image_name.clone()),
            image_version: metadata.map(|metadata| metadata.image_version.clone()),
            metadata: metadata.map(|metadata| DescribeMetadata {
                build: metadata.build_metadata.clone(),
                docker_info: metadata.docker_info.clone(),
                custom: metadata.custom_metadata.as_object().cloned().unwrap_or_default(),
            }),
        }
    }
}

fn signature_fields(description: &Description) -> (Option<SigningCertificate>, Option<bool>) {
    let Some(entry) = &description.signing_entry else {
        return (None, description.signature.as_ref().map(|_| false));
    };
    let Ok(certificate) = Certificate::from_der(&entry.certificate_der) else { return (None, Some(false)) };
    let signed = certificate.public_key().ok().and_then(|key| SignedPcr::verify(&entry.cose_sign1, &key).ok());
    let expected = SignedPcr { register_index: 0, register_value: description.measurements.pcr0.to_vec() };
    (Some((&certificate).into()), Some(signed == Some(expected)))
}
