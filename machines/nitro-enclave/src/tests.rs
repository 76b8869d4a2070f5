//! The enclave's answers to the board, over images that the `eif` crate wrote.

use std::io::Read;
use std::path::PathBuf;

use eif::Writer;
use microvm::{OnOffAuto, Options, Variant};
use tempfile::TempDir;

use crate::{Enclave, EnclaveOptions, with_defaults};

struct Bench {
    directory: TempDir,
    enclave: Enclave,
    options: Options,
}

impl Bench {
    fn new(image: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new(directory.path().join("demo.eif"));
        std::fs::write(&options.kernel, image).unwrap();
        Self { directory, enclave: Enclave::new(EnclaveOptions::default()).unwrap(), options }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn image(kernel: &[u8]) -> Vec<u8> {
    let writer = Writer::new(kernel.to_vec(), "console=ttyS0").metadata(eif::Metadata::new("demo", "1.0").to_json());
    writer.ramdisk(b"first".to_vec()).ramdisk(b"second".to_vec()).to_vec().unwrap()
}

fn ramdisks(payload: microvm::Payload) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mut part in payload.initrd {
        part.reader.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn an_image_is_taken_apart() {
    let mut bench = Bench::new(&image(b"kernel"));
    bench.enclave.check_image(&bench.options, b".eif").unwrap();
    let payload = bench.enclave.load(&bench.options).unwrap();
    assert_eq!((payload.kernel.as_slice(), payload.cmdline.as_str()), (b"kernel".as_slice(), "console=ttyS0"));
    assert_eq!(ramdisks(payload), b"firstsecond");
}

#[test]
fn the_users_ramdisk_and_command_line_are_appended_and_only_the_ramdisk_is_measured() {
    let mut plain = Bench::new(&image(b"kernel"));
    plain.enclave.load(&plain.options).unwrap();
    let mut bench = Bench::new(&image(b"kernel"));
    bench.options.cmdline = "debug".to_owned();
    assert_eq!(bench.enclave.load(&bench.options).unwrap().cmdline, "console=ttyS0 debug");
    assert_eq!(format!("{:?}", bench.enclave), format!("{:?}", plain.enclave));
    let mut bench = Bench::new(&image(b"kernel"));
    bench.options.initrd = Some(bench.file("extra", b"third"));
    assert_eq!(ramdisks(bench.enclave.load(&bench.options).unwrap()), b"firstsecondthird");
    assert_ne!(format!("{:?}", bench.enclave), format!("{:?}", plain.enclave));
}

#[test]
fn a_kernel_is_refused_with_what_to_type_instead() {
    let bench = Bench::new(b"");
    let error = bench.enclave.check_image(&bench.options, b"\x7fELF").unwrap_err().to_string();
    assert!(error.contains("demo.eif is an ELF file"), "{error}");
    assert!(error.contains("--machine microvm --kernel"), "{error}");
}

#[test]
fn anything_else_is_named_with_its_first_bytes() {
    let bench = Bench::new(b"");
    let error = bench.enclave.check_image(&bench.options, b"PK\x03\x04zip").unwrap_err().to_string();
    assert!(error.contains("starts with \"PK\\x03\\x04\""), "{error}");
    assert!(bench.enclave.check_image(&bench.options, b"").is_err());
}

#[test]
fn a_damaged_image_says_what_is_wrong_and_what_to_do() {
    let mut bytes = image(b"kernel");
    bytes[600] ^= 1;
    let mut bench = Bench::new(&bytes);
    let error = bench.enclave.load(&bench.options).err().unwrap();
    assert!(error.to_string().contains("demo.eif cannot be booted; "), "{error}");
    assert!(error.source().is_some());
}

#[test]
fn an_image_that_changed_is_not_booted_after_a_reset() {
    let mut bench = Bench::new(&image(b"kernel"));
    bench.enclave.load(&bench.options).unwrap();
    bench.enclave.load(&bench.options).unwrap();
    bench.file("demo.eif", &image(b"lenrek"));
    assert!(bench.enclave.load(&bench.options).err().unwrap().to_string().contains("has changed"));
}

#[test]
fn the_one_device_is_an_nsm() {
    let mut bench = Bench::new(&image(b"kernel"));
    bench.enclave.load(&bench.options).unwrap();
    let devices = bench.enclave.devices().unwrap();
    assert_eq!(devices.iter().map(|d| d.device_id()).collect::<Vec<_>>(), [virtio::nsm::DEVICE_ID]);
}

fn measurements() -> eif::Measurements {
    eif::Measurements { pcr0: [0x10; 48], pcr1: [0x11; 48], pcr2: [0x12; 48], pcr8: None }
}

#[test]
fn the_bank_holds_the_images_measurements_and_the_parents_id_but_no_role() {
    let bank = Enclave::new(EnclaveOptions::default()).unwrap().boot_bank(&measurements());
    let zero: Vec<_> = (0..32).filter(|index| *bank.value(*index).unwrap() == nsm::ZERO_DIGEST).collect();
    assert_eq!(zero, [3].into_iter().chain(5..32).collect::<Vec<_>>());
    assert_eq!(*bank.value(1).unwrap(), [0x11; 48]);
}

#[test]
fn a_role_and_a_signature_fill_their_registers() {
    let options = EnclaveOptions { parent_role: Some("arn:aws:iam::1:role/r".to_owned()), ..EnclaveOptions::default() };
    let measured = eif::Measurements { pcr8: Some([0x18; 48]), ..measurements() };
    let bank = Enclave::new(options).unwrap().boot_bank(&measured);
    assert_ne!(*bank.value(3).unwrap(), nsm::ZERO_DIGEST);
    assert_eq!(*bank.value(8).unwrap(), [0x18; 48]);
}

#[test]
fn the_module_is_named_after_the_parent_and_the_image() {
    let name = |parent_id: &str| {
        let options = EnclaveOptions { parent_id: parent_id.to_owned(), ..EnclaveOptions::default() };
        Enclave::new(options).unwrap().module_id(&measurements()).to_string()
    };
    assert_eq!(name("i-0123456789abcdef0"), "i-0123456789abcdef0-enc1010101010101010");
    assert_eq!(name("my laptop"), format!("{}-enc1010101010101010", crate::DEFAULT_PARENT_ID));
}

#[test]
fn a_module_id_of_the_wrong_form_is_refused() {
    let options = EnclaveOptions { id: Some("demo".to_owned()), ..EnclaveOptions::default() };
    assert!(Enclave::new(options).is_err());
}

#[test]
fn acpi_is_off_unless_asked_for() {
    let options = Options::new("demo.eif");
    assert!(!with_defaults(options.clone()).acpi_on());
    assert!(with_defaults(Options { acpi: OnOffAuto::On, ..options }).acpi_on());
}
