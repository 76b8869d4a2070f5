//! Enclave images made and read by AWS's own crate, `aws-nitro-enclaves-image-format` 0.8, to hold ours against.
//!
//! That crate works on paths and panics on errors; what is here hides both behind byte vectors.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use aws_nitro_enclaves_image_format::defs::{EifBuildInfo, EifHeader, EifIdentityInfo};
use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;
use aws_nitro_enclaves_image_format::utils::{EifBuilder, EifSigner, PcrSignatureChecker, SignKeyData};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};
use tempfile::TempDir;

/// Measurements under the names that AWS's tools print, in lower-case hex, without `HashAlgorithm`.
pub type Pcrs = BTreeMap<String, String>;

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel's bytes; AWS's builder does not look into them.
    pub kernel: Vec<u8>,
    /// The command line, without NUL.
    pub cmdline: String,
    /// The ramdisks, at least one.
    pub ramdisks: Vec<Vec<u8>>,
    /// The image's name in the metadata.
    pub name: String,
    /// An object of the builder's own in the metadata.
    pub custom: Value,
    /// The header's flags.
    pub flags: u16,
}

/// The curves that images are signed with, and the digest of certificates made with each.
pub const CURVES: [(Nid, fn() -> MessageDigest); 3] = [
    (Nid::X9_62_PRIME256V1, MessageDigest::sha256),
    (Nid::SECP384R1, MessageDigest::sha384),
    (Nid::SECP521R1, MessageDigest::sha512),
];

/// A key with a self-signed certificate, in files, because AWS's crate takes paths.
pub struct Signer {
    directory: TempDir,
}

impl Signer {
    /// Makes a P-384 key and a certificate of that common name, valid for ten years.
    pub fn new(common_name: &str) -> Self {
        Self::with(CURVES[1], &[(Nid::COMMONNAME, common_name)])
    }

    /// Makes a key of that curve and a certificate of these attributes, valid for ten years.
    pub fn with((curve, digest): (Nid, fn() -> MessageDigest), attributes: &[(Nid, &str)]) -> Self {
        let group = EcGroup::from_curve_name(curve).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut name = X509NameBuilder::new().unwrap();
        for (attribute, value) in attributes {
            name.append_entry_by_nid(*attribute, value).unwrap();
        }
        let name = name.build();
        let mut certificate = X509Builder::new().unwrap();
        certificate.set_version(2).unwrap();
        certificate.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
        certificate.set_subject_name(&name).unwrap();
        certificate.set_issuer_name(&name).unwrap();
        certificate.set_pubkey(&key).unwrap();
        certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(3650).unwrap()).unwrap();
        certificate.sign(&key, digest()).unwrap();

        let signer = Self { directory: TempDir::new().unwrap() };
        fs::write(signer.key(), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        fs::write(signer.certificate(), certificate.build().to_pem().unwrap()).unwrap();
        signer
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    /// The key, PEM.
    pub fn key_pem(&self) -> Vec<u8> {
        fs::read(self.key()).unwrap()
    }

    /// The certificate, PEM.
    pub fn certificate_pem(&self) -> Vec<u8> {
        fs::read(self.certificate()).unwrap()
    }

    /// PCR8 by OpenSSL alone: the certificate's DER, hashed, and extended into 48 zero bytes.
    pub fn pcr8_by_openssl(&self) -> String {
        let sha384 = |bytes: &[u8]| openssl::hash::hash(MessageDigest::sha384(), bytes).unwrap().to_vec();
        let der = X509::from_pem(&self.certificate_pem()).unwrap().to_der().unwrap();
        sha384(&[&[0; 48][..], &sha384(&der)].concat()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn key_data(&self) -> SignKeyData {
        SignKeyData::new(self.key().to_str().unwrap(), &self.certificate()).unwrap()
    }

    fn aws(&self) -> EifSigner {
        EifSigner::new(Some(self.key_data())).unwrap()
    }

    /// A signature section over these measurements.
    pub fn signature_section(&self, pcrs: &Pcrs) -> Vec<u8> {
        self.aws().generate_eif_signature(pcrs).unwrap()
    }

    /// Signs an image, which may have a signature already.
    pub fn sign_image(&self, image: &[u8]) -> Vec<u8> {
        let path = self.directory.path().join("image.eif");
        fs::write(&path, image).unwrap();
        self.aws().sign_image(path.to_str().unwrap()).unwrap();
        fs::read(path).unwrap()
    }
}

/// Builds an image with AWS's crate; also returns the measurements that it took while building.
pub fn build(parts: &Parts, signer: Option<&Signer>) -> (Vec<u8>, Pcrs) {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let info = EifIdentityInfo {
        img_name: parts.name.clone(),
        img_version: "1.0".to_owned(),
        build_info: EifBuildInfo {
            build_time: "2024-01-02T03:04:05+00:00".to_owned(),
            build_tool: "aws-eif".to_owned(),
            build_tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            img_os: "Linux".to_owned(),
            img_kernel: "6.6.79".to_owned(),
        },
        docker_info: json!({ "Architecture": "amd64", "RootFS": { "Layers": [] } }),
        custom_info: parts.custom.clone(),
    };
    let mut builder = EifBuilder::new(
        &write("kernel", &parts.kernel),
        parts.cmdline.clone(),
        signer.map(Signer::key_data),
        Sha384::new(),
        parts.flags,
        info,
    );
    for (index, ramdisk) in parts.ramdisks.iter().enumerate() {
        builder.add_ramdisk(&write(&format!("ramdisk{index}"), ramdisk));
    }
    let path = directory.path().join("image.eif");
    let measurements = builder.write_to(&mut File::create(&path).unwrap());
    (fs::read(path).unwrap(), pcrs(measurements))
}

/// What AWS's reader makes of an image.
pub struct AwsReading {
    /// The header.
    pub header: EifHeader,
    /// The measurements.
    pub pcrs: Pcrs,
    /// Whether the header's checksum is right.
    pub crc_is_right: bool,
    /// The metadata section, parsed.
    pub metadata: Option<Value>,
    /// The signature section's data.
    pub signature: Option<Vec<u8>>,
}

/// Reads an image with AWS's crate.
pub fn read(image: &[u8]) -> Result<AwsReading, String> {
    let file = Image::new(image);
    let mut reader = EifReader::from_eif(file.path())?;
    Ok(AwsReading {
        header: reader.get_header(),
        pcrs: pcrs(reader.get_measurements()?),
        crc_is_right: reader.check_crc(),
        metadata: reader.get_metadata().map(|metadata| serde_json::to_value(metadata).unwrap()),
        signature: reader.signature_section,
    })
}

/// What AWS's verifier, which `nitro-cli` runs before an enclave is started, says of an image's signature and certificate.
pub fn verify(image: &[u8]) -> Result<(), String> {
    let file = Image::new(image);
    let mut checker = PcrSignatureChecker::from_eif(&file.path())?;
    if checker.is_empty() { Err("there is no signature".to_owned()) } else { checker.verify() }
}

/// The object that `nitro-cli describe-eif` prints, of the answers of AWS's crate to what it asks.
///
/// `HashAlgorithm` is the debug text of whatever version of a hash crate was compiled in: here `Sha512_48 { .. }`, in the
/// releases of nitro-cli `Sha384 { ... }`. That is what it is set to.
pub fn describe(image: &[u8]) -> Result<Value, String> {
    let file = Image::new(image);
    let mut reader = EifReader::from_eif(file.path())?;
    let mut measurements = reader.get_measurements()?;
    measurements.insert("HashAlgorithm".to_owned(), "Sha384 { ... }".to_owned());
    let mut object = json!({
        "EifVersion": reader.get_header().version,
        "Measurements": measurements,
        "IsSigned": reader.signature_section.is_some(),
        "CheckCRC": reader.check_crc(),
    });
    if reader.signature_section.is_some() {
        let info = reader.get_certificate_info(measurements)?;
        object["SigningCertificate"] = serde_json::to_value(info).unwrap();
        object["SignatureCheck"] = json!(reader.sign_check);
    }
    if let Some(EifIdentityInfo { img_name, img_version, build_info, docker_info, custom_info }) = reader.get_metadata()
    {
        object["ImageName"] = img_name.into();
        object["ImageVersion"] = img_version.into();
        let mut metadata = serde_json::to_value(build_info).unwrap();
        metadata["DockerInfo"] = docker_info;
        for (key, value) in custom_info.as_object().into_iter().flatten() {
            metadata[key] = value.clone();
        }
        object["Metadata"] = metadata;
    }
    Ok(object)
}

/// An image in a file, because AWS's crate takes paths.
struct Image(TempDir);

impl Image {
    fn new(bytes: &[u8]) -> Self {
        let image = Self(TempDir::new().unwrap());
        fs::write(image.path(), bytes).unwrap();
        image
    }

    fn path(&self) -> String {
        self.0.path().join("image.eif").to_str().unwrap().to_owned()
    }
}

fn pcrs(mut measurements: BTreeMap<String, String>) -> Pcrs {
    measurements.remove("HashAlgorithm");
    measurements
}

/// A generator of repeatable bytes (splitmix64), so that a failing image can be made again.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// That many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.bits() as u8).collect()
    }
}
