//! The command as users run it: what it prints, what it says when something is wrong, and its exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

fn golden(name: &str) -> PathBuf {
    Path::new(CRATE).join("../eif/tests/golden").join(name)
}

fn key(name: &str) -> PathBuf {
    Path::new(CRATE).join("tests/keys").join(name)
}

/// A directory to run in, with copies of the golden images.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        for name in ["unsigned.eif", "signed.eif", "resigned.eif"] {
            fs::copy(golden(name), place.path(name)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eif"));
        command.args(arguments).current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH");
        command.output().unwrap()
    }

    /// The standard output of a run that ends with this code.
    fn output(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, code: i32, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.output(code, arguments)).unwrap()
    }

    /// The standard error of a run that fails.
    fn error(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Signs `image` into `signed` with a key of the tests.
    fn sign(&self, image: &str, certificate: &str, private_key: &str, signed: &str) {
        let (certificate, private_key) = (key(certificate), key(private_key));
        let (certificate, private_key) = (certificate.to_str().unwrap(), private_key.to_str().unwrap());
        let arguments =
            ["sign", image, "--signing-certificate", certificate, "--private-key", private_key, "-o", signed];
        self.output(0, &arguments);
    }
}

/// How a check of `eif verify --json` ended.
fn outcome(verdict: &serde_json::Value, check: &str) -> String {
    let checks = verdict["Signature"].as_array().unwrap();
    let found = checks.iter().find(|found| found["Name"] == check).unwrap_or_else(|| panic!("{check}: {verdict:#}"));
    format!("{}: {}", found["Outcome"].as_str().unwrap(), found["Detail"].as_str().unwrap())
}

#[test]
fn describe_prints_the_json_of_nitro_cli() {
    let place = Place::new();
    place.sign("unsigned.eif", "p384.pem", "p384.key.pem", "image.eif");
    let text = place.output(0, &["describe", "--json", "image.eif"]);
    let keys: Vec<&str> = text.lines().filter_map(|line| line.trim().split('"').nth(1)).collect();
    let expected = "EifVersion Measurements HashAlgorithm PCR0 PCR1 PCR2 PCR8 IsSigned SigningCertificate IssuerName \
                    commonName countryName organizationName Algorithm NotBefore NotAfter Signature CheckCRC \
                    SignatureCheck ImageName ImageVersion Metadata BuildTime BuildTool BuildToolVersion \
                    OperatingSystem KernelVersion DockerInfo Architecture RootFS Layers answer";
    assert_eq!(keys.join(" "), expected);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["EifVersion"], 4);
    assert_eq!(json["Measurements"]["HashAlgorithm"], "Sha384 { ... }");
    assert_eq!(json["SigningCertificate"]["IssuerName"]["commonName"], "signer on p384");
    assert_eq!(json["SigningCertificate"]["Algorithm"], "ecdsa-with-SHA384");
    assert_eq!(json["SigningCertificate"]["NotBefore"], "Jan  1 00:00:00 2020 GMT");
    assert_eq!(json["SigningCertificate"]["NotAfter"], "Jan  1 00:00:00 2120 GMT");
    assert_eq!((&json["CheckCRC"], &json["SignatureCheck"]), (&true.into(), &true.into()));
}

#[test]
fn an_unsigned_image_has_no_fields_of_a_signature() {
    let json = Place::new().json(0, &["describe", "--json", "unsigned.eif"]);
    assert_eq!(json["IsSigned"], false);
    for field in ["SigningCertificate", "SignatureCheck"] {
        assert!(json.get(field).is_none(), "{field}");
    }
}

#[test]
fn the_table_shows_control_characters_of_an_image_as_text() {
    let place = Place::new();
    fs::write(place.path("k"), b"kernel").unwrap();
    place.output(0, &["build", "--kernel", "k", "--cmdline", "a \x1b[2J", "--ramdisk", "k", "-o", "a.eif"]);
    let table = place.output(0, &["describe", "a.eif"]);
    assert!(table.contains("cmdline   a \\u{1b}[2J\n"), "{table}");
}

#[test]
fn images_signed_with_each_curve_verify_and_keep_their_measurements() {
    let place = Place::new();
    let unsigned = place.json(0, &["describe", "--json", "unsigned.eif"]);
    for (certificate, private_key) in [
        ("p256.pem", "p256.key.pem"),
        ("p384.pem", "p384.key.pem"),
        ("p384.pem", "p384.pkcs8.pem"),
        ("p521.pem", "p521.key.pem"),
    ] {
        place.sign("unsigned.eif", certificate, private_key, "image.eif");
        let verdict = place.json(0, &["verify", "--json", "--require-signature", "image.eif"]);
        for check in ["certificate", "signature", "signed PCR0", "validity", "chain"] {
            assert!(outcome(&verdict, check).starts_with("Passed"), "{certificate}: {verdict:#}");
        }
        assert!(verdict["Readers"].as_array().unwrap().iter().all(|reader| reader["Accepts"] == true));
        let signed = place.json(0, &["describe", "--json", "image.eif"]);
        for pcr in ["PCR0", "PCR1", "PCR2"] {
            assert_eq!(signed["Measurements"][pcr], unsigned["Measurements"][pcr]);
        }
        let pcr8 = place.json(0, &["pcr", "--signing-certificate", key(certificate).to_str().unwrap()]);
        assert_eq!(signed["Measurements"]["PCR8"], pcr8["PCR8"]);
    }
}

#[test]
fn a_signature_is_replaced_in_place_and_the_header_fits_it() {
    let place = Place::new();
    let certificate = key("p521.pem");
    let (certificate, private_key) = (certificate.to_str().unwrap(), key("p521.key.pem"));
    // The image with a stale size in its header is put right by this.
    for image in ["unsigned.eif", "signed.eif", "resigned.eif"] {
        let arguments =
            ["sign", image, "--signing-certificate", certificate, "--private-key", private_key.to_str().unwrap()];
        place.output(0, &arguments);
        place.output(0, &["verify", image]);
    }
    assert_eq!(fs::read(place.path("signed.eif")).unwrap(), fs::read(place.path("unsigned.eif")).unwrap());
    assert_eq!(fs::read(place.path("resigned.eif")).unwrap(), fs::read(place.path("unsigned.eif")).unwrap());
}

#[test]
fn openssl_signs_in_the_place_of_a_hardware_module() {
    let place = Place::new();
    let (certificate, private_key) = (key("p256.pem"), key("p256.key.pem"));
    let certificate = certificate.to_str().unwrap();
    let emitted =
        place.json(0, &["sign", "--json", "unsigned.eif", "--signing-certificate", certificate, "--emit", "bytes"]);
    assert_eq!((&emitted["Curve"], &emitted["Digest"]), (&"P-256".into(), &"sha256".into()));
    let openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", private_key.to_str().unwrap(), "-out", "signature", "bytes"])
        .current_dir(place.0.path())
        .output();
    if !openssl.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let finish = ["sign", "unsigned.eif", "--signing-certificate", certificate, "--signature", "signature"];
    place.output(0, &finish);
    let verdict = place.json(0, &["verify", "--json", "unsigned.eif"]);
    assert_eq!(outcome(&verdict, "signature"), "Passed: made with the certificate's key");
    // The same signature does not fit another image.
    let mut other = fs::read(place.path("unsigned.eif")).unwrap();
    other[700] ^= 1;
    fs::write(place.path("other.eif"), other).unwrap();
    let error = place.error(&["sign", "other.eif", "--signing-certificate", certificate, "--signature", "signature"]);
    assert!(error.starts_with("eif: error: other.eif cannot be signed\n  1: the crc at offset 0x220 is "), "{error}");
}

#[test]
fn openssl_agrees_on_the_certificate_and_its_pcr8() {
    let place = Place::new();
    let certificate = key("p384.pem");
    let openssl = |arguments: &[&str]| {
        Command::new("openssl")
            .args(arguments)
            .arg("-in")
            .arg(&certificate)
            .output()
            .ok()
            .filter(|o| o.status.success())
    };
    let Some(dates) = openssl(&["x509", "-noout", "-dates"]) else {
        eprintln!("skipped: openssl is not installed");
        return;
    };
    place.sign("unsigned.eif", "p384.pem", "p384.key.pem", "image.eif");
    let fields = place.json(0, &["describe", "--json", "image.eif"])["SigningCertificate"].clone();
    let expected = format!(
        "notBefore={}\nnotAfter={}\n",
        fields["NotBefore"].as_str().unwrap(),
        fields["NotAfter"].as_str().unwrap()
    );
    assert_eq!(String::from_utf8(dates.stdout).unwrap(), expected);
    let der = openssl(&["x509", "-outform", "DER"]).unwrap().stdout;
    fs::write(place.path("certificate.der"), der).unwrap();
    // `pcr --input` of the DER is what PCR8 is defined as.
    let input = place.json(0, &["pcr", "--input", "certificate.der"]);
    let pcr8 = place.json(0, &["pcr", "--signing-certificate", certificate.to_str().unwrap()]);
    assert_eq!(input["PCR"], pcr8["PCR8"]);
}

#[test]
fn a_chain_must_end_at_the_given_root() {
    let place = Place::new();
    place.sign("unsigned.eif", "leaf.pem", "p384.key.pem", "leaf.eif");
    let (root, other) = (key("root.pem"), key("p384.pem"));
    let verdict = place.json(0, &["verify", "--json", "leaf.eif"]);
    assert_eq!(outcome(&verdict, "chain"), "Unknown: the issuer of \"a leaf\" is not at hand");
    let verdict = place.json(0, &["verify", "--json", "--root", root.to_str().unwrap(), "leaf.eif"]);
    assert_eq!(outcome(&verdict, "chain"), "Passed: 1 below the given root, \"a root\"");
    let verdict = place.json(3, &["verify", "--json", "--root", other.to_str().unwrap(), "leaf.eif"]);
    assert_eq!(outcome(&verdict, "chain"), "Failed: the issuer of \"a leaf\" is not at hand");
    // The issuer may also stand behind the certificate in its own file.
    let both = [fs::read(key("leaf.pem")).unwrap(), fs::read(&root).unwrap()].concat();
    fs::write(place.path("both.pem"), both).unwrap();
    let both = place.path("both.pem");
    place.sign("unsigned.eif", both.to_str().unwrap(), "p384.key.pem", "both.eif");
    let verdict = place.json(0, &["verify", "--json", "both.eif"]);
    assert_eq!(outcome(&verdict, "chain"), "Passed: ends at a self-signed certificate; no root was given");
}

#[test]
fn an_expired_certificate_fails() {
    let place = Place::new();
    place.sign("unsigned.eif", "expired.pem", "p256.key.pem", "image.eif");
    let verdict = place.json(3, &["verify", "--json", "image.eif"]);
    assert_eq!(outcome(&verdict, "validity"), "Failed: expired at Feb  1 00:00:00 2020 GMT");
}

#[test]
fn a_signature_over_another_image_fails() {
    let place = Place::new();
    place.sign("unsigned.eif", "p256.pem", "p256.key.pem", "image.eif");
    place.output(0, &["extract", "image.eif", "-o", "parts"]);
    // The same signature under another kernel, with a checksum that fits.
    let signature = fs::read(place.path("parts/signature.cbor")).unwrap();
    let image =
        eif::Writer::new(b"another kernel".to_vec(), "").ramdisk(vec![1]).signature(signature).to_vec().unwrap();
    fs::write(place.path("forged.eif"), image).unwrap();
    let verdict = place.json(3, &["verify", "--json", "forged.eif"]);
    assert_eq!(outcome(&verdict, "signature"), "Passed: made with the certificate's key");
    assert!(outcome(&verdict, "signed PCR0").starts_with("Failed: db7f0e81"), "{verdict:#}");
    assert_eq!(place.json(0, &["describe", "--json", "forged.eif"])["SignatureCheck"], false);
}

#[test]
fn verify_says_which_readers_take_an_image() {
    let place = Place::new();
    let readers = |code: i32, image: &str| -> Vec<(String, bool)> {
        let verdict = place.json(code, &["verify", "--json", image]);
        let readers = verdict["Readers"].as_array().unwrap().iter();
        readers.map(|r| (r["Reader"].as_str().unwrap().to_owned(), r["Accepts"] == true)).collect()
    };
    let named = |accepts: [bool; 4]| -> Vec<(String, bool)> {
        let names = ["vmm", "QEMU 10.0", "AWS's crate 0.8", "AWS Nitro Enclaves"];
        names.map(str::to_owned).into_iter().zip(accepts).collect()
    };
    assert_eq!(readers(0, "signed.eif"), named([true; 4]));
    // A size in the header that is stale: AWS's crate does not look at it.
    assert_eq!(readers(3, "resigned.eif"), named([false, false, true, false]));
    fs::write(place.path("k"), b"kernel").unwrap();
    place.output(0, &["build", "--kernel", "k", "--cmdline", "", "--ramdisk", "k", "--aarch64", "-o", "arm.eif"]);
    assert_eq!(readers(3, "arm.eif"), named([false, false, true, true]));
}

#[test]
fn an_image_that_must_be_signed_and_is_not_fails() {
    let place = Place::new();
    place.output(0, &["verify", "unsigned.eif"]);
    let verdict = place.json(3, &["verify", "--json", "--require-signature", "unsigned.eif"]);
    assert_eq!(verdict["Errors"], serde_json::json!(["the image is not signed"]));
}

#[test]
fn parts_that_were_extracted_build_the_same_image() {
    let place = Place::new();
    place.output(0, &["extract", "unsigned.eif", "-o", "parts"]);
    let cmdline = fs::read_to_string(place.path("parts/cmdline")).unwrap();
    let build = |output: &str| {
        let parts = ["--ramdisk", "parts/ramdisk0", "--ramdisk", "parts/ramdisk1"];
        let arguments = [
            &["build", "--json", "--kernel", "parts/kernel", "--cmdline", &cmdline, "--name", "same", "-o", output][..],
            &parts,
        ]
        .concat();
        place.json(0, &arguments)
    };
    let measured = build("a.eif");
    assert_eq!(build("b.eif"), measured);
    assert_eq!(fs::read(place.path("a.eif")).unwrap(), fs::read(place.path("b.eif")).unwrap());
    let described = place.json(0, &["describe", "--json", "unsigned.eif"]);
    assert_eq!(measured["Measurements"], described["Measurements"]);
}

#[test]
fn the_time_of_a_build_is_source_date_epoch() {
    let place = Place::new();
    fs::write(place.path("k"), b"kernel").unwrap();
    let build = |epoch: &str| {
        Command::new(env!("CARGO_BIN_EXE_eif"))
            .args(["build", "--kernel", "k", "--cmdline", "", "--ramdisk", "k", "-o", "a.eif"])
            .current_dir(place.0.path())
            .env("SOURCE_DATE_EPOCH", epoch)
            .output()
            .unwrap()
    };
    assert!(build("1700000000").status.success());
    let described = place.json(0, &["describe", "--json", "a.eif"]);
    assert_eq!(described["Metadata"]["BuildTime"], "2023-11-14T22:13:20+00:00");
    let error = String::from_utf8(build("yesterday").stderr).unwrap();
    let expected = "eif: error: SOURCE_DATE_EPOCH is \"yesterday\", expected seconds since 1970 below 4294967295\n";
    assert_eq!(error, expected);
}

/// Builds an image of a directory with one file in it.
fn build_tree(place: &Place, directory: &str, contents: &str, output: &str) {
    let root = place.path(directory);
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/app.conf"), contents).unwrap();
    fs::write(place.path("init"), b"an init").unwrap();
    fs::write(place.path("nsm.ko"), b"a module").unwrap();
    let arguments = [
        "build",
        "--kernel",
        "init",
        "--cmdline",
        "console=ttyS0",
        "--tree",
        directory,
        "--init",
        "init",
        "--module",
        "nsm.ko",
        "--cmd",
        "/app",
        "--cmd",
        "--verbose",
        "--env",
        "A=b",
        "--name",
        "tree",
        "-o",
        output,
    ];
    place.output(0, &arguments);
}

#[test]
fn the_same_files_in_two_directories_build_the_same_image() {
    let place = Place::new();
    build_tree(&place, "first", "x", "a.eif");
    build_tree(&place, "second", "x", "b.eif");
    assert_eq!(fs::read(place.path("a.eif")).unwrap(), fs::read(place.path("b.eif")).unwrap());
    let comparison = place.json(0, &["diff", "--json", "a.eif", "b.eif"]);
    assert_eq!(comparison["Differences"], serde_json::json!([]));
    place.output(0, &["extract", "a.eif", "-o", "parts"]);
    let mut found = Vec::new();
    eif::cpio::read_ramdisk(fs::File::open(place.path("parts/ramdisk1")).unwrap(), |entry, data| {
        let mut bytes = String::new();
        data.read_to_string(&mut bytes)?;
        found.push((String::from_utf8(entry.name).unwrap(), bytes));
        Ok(())
    })
    .unwrap();
    let data = |name: &str| &found.iter().find(|(found, _)| found == name).unwrap().1;
    assert_eq!((data("cmd").as_str(), data("env").as_str()), ("/app\n--verbose\n", "A=b\n"));
    assert_eq!(data("rootfs/etc/app.conf"), "x");
}

#[test]
fn diff_names_the_file_that_changed_and_the_registers_that_it_is_in() {
    let place = Place::new();
    build_tree(&place, "first", "x", "a.eif");
    build_tree(&place, "second", "y", "b.eif");
    let comparison = place.json(3, &["diff", "--json", "a.eif", "b.eif"]);
    let same = |name: &str| {
        let registers = comparison["Registers"].as_array().unwrap();
        registers.iter().find(|register| register["Name"] == name).unwrap()["Same"] == true
    };
    assert_eq!((same("PCR0"), same("PCR1"), same("PCR2"), same("PCR8")), (false, true, false, true));
    let differences = comparison["Differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{comparison:#}");
    assert_eq!(differences[0]["Part"], "ramdisk 1");
    assert_eq!(differences[0]["File"], "rootfs/etc/app.conf");
    assert_eq!(differences[0]["What"], "content");
    assert_eq!(differences[0]["MeasuredInto"], serde_json::json!(["PCR0", "PCR2"]));
    let table = place.output(3, &["diff", "a.eif", "b.eif"]);
    assert!(table.contains("ramdisk 1  rootfs/etc/app.conf: content (in PCR0 and PCR2)\n"), "{table}");
}

#[test]
fn diff_says_what_of_a_file_differs() {
    let place = Place::new();
    fs::write(place.path("k"), b"kernel").unwrap();
    let build = |name: &str, mode: u32, owner: (u32, u32), time: u32, more: &[u8]| {
        let mut writer = eif::cpio::Writer::new(Vec::new(), time);
        writer.owned_entry(b"file", mode, owner, (0, 0), b"data").unwrap();
        if !more.is_empty() {
            writer.entry(more, 0o100_644, (0, 0), b"").unwrap();
        }
        fs::write(place.path("r"), writer.finish().unwrap()).unwrap();
        place.output(0, &["build", "--kernel", "k", "--cmdline", "", "--ramdisk", "r", "--name", "n", "-o", name]);
    };
    build("a.eif", 0o100_644, (0, 0), 0, b"");
    build("b.eif", 0o100_755, (1, 2), 3, b"more");
    let comparison = place.json(3, &["diff", "--json", "a.eif", "b.eif"]);
    let differences = comparison["Differences"].as_array().unwrap().iter();
    let told: Vec<String> = differences
        .map(|d| [&d["File"], &d["What"], &d["First"], &d["Second"]].map(|v| v.as_str().unwrap()).join(" | "))
        .collect();
    let empty = "e3b0c44298fc1c149afbf4c8996fb924";
    let expected = [
        "file | mode | 100644 | 100755".to_owned(),
        "file | owner | 0:0 | 1:2".to_owned(),
        "file | time | 0 | 3".to_owned(),
        format!("more | existence |  | 100644, 0 bytes, sha256 {empty}"),
    ];
    assert_eq!(told, expected);
    // What is no archive is compared as a whole.
    let comparison = place.json(3, &["diff", "--json", "unsigned.eif", "a.eif"]);
    let first =
        comparison["Differences"].as_array().unwrap().iter().find(|d| d["Part"] == "ramdisk 0").unwrap().clone();
    assert!(first["First"].as_str().unwrap().starts_with("500 bytes, sha256 "), "{first:#}");
}

#[test]
fn errors_name_the_file_the_cause_and_what_to_do() {
    let place = Place::new();
    let (p256, encrypted, rsa, rsa_key) =
        (key("p256.pem"), key("encrypted.key.pem"), key("rsa.pem"), key("rsa.key.pem"));
    let other = key("p521.key.pem");
    let [p256, encrypted, rsa, rsa_key, other] =
        [&p256, &encrypted, &rsa, &rsa_key, &other].map(|p| p.to_str().unwrap());
    fs::write(place.path("short"), b".eif").unwrap();
    fs::write(place.path("other"), [0x7f; 600]).unwrap();
    fs::write(place.path("list.json"), b"[]").unwrap();
    let sign = |certificate, private_key| {
        place.error(&["sign", "unsigned.eif", "--signing-certificate", certificate, "--private-key", private_key])
    };
    assert_eq!(
        place.error(&["describe", "missing"]),
        "eif: error: cannot open missing\n  1: No such file or directory (os error 2)\n"
    );
    assert_eq!(
        place.error(&["build", "--kernel", "short", "--cmdline", "", "--ramdisk", "short", "-o", "missing/a.eif"]),
        "eif: error: cannot create missing/a.eif\n  1: No such file or directory (os error 2)\n"
    );
    assert_eq!(place.error(&["verify", "."]), "eif: error: cannot read .\n  1: is a directory\n");
    assert_eq!(
        place.error(&["describe", "short"]),
        "eif: error: short cannot be read as an enclave image\n  1: the file has 4 bytes, but an eif starts with a header \
         of 548 bytes\n  hint: the file is probably truncated: compare its size with the original's\n"
    );
    assert_eq!(
        place.error(&["extract", "other", "-o", "parts"]),
        "eif: error: other cannot be read as an enclave image\n  1: not an eif: the file starts with \\x7f\\x7f\\x7f\\x7f, \
         expected \".eif\"\n  hint: an enclave image is made by `nitro-cli build-enclave` or `eif build`\n"
    );
    assert_eq!(
        place.error(&["pcr", "--signing-certificate", "short"]),
        "eif: error: short holds no usable certificate\n  1: the certificate is not pem: there is no BEGIN CERTIFICATE line\n"
    );
    assert_eq!(
        sign(p256, "short"),
        "eif: error: short holds no usable private key\n  1: there is no private key in pem form: there is no BEGIN PRIVATE \
         KEY line\n"
    );
    assert_eq!(
        sign(p256, encrypted),
        format!(
            "eif: error: {encrypted} holds no usable private key\n  1: the private key is encrypted, expected one without a \
             passphrase\n  hint: `openssl pkcs8 -topk8 -nocrypt -in KEY` takes the passphrase off\n"
        )
    );
    assert_eq!(
        sign(p256, rsa_key),
        format!(
            "eif: error: {rsa_key} holds no usable private key\n  1: the key is not an elliptic-curve key of P-256, P-384 or \
             P-521\n"
        )
    );
    assert_eq!(
        sign(rsa, other),
        "eif: error: unsigned.eif cannot be signed\n  1: the signature cannot be made\n  2: the signing certificate cannot be \
         used\n  3: the certificate's key is of RSA, expected an elliptic-curve key of P-256, P-384 or P-521\n"
    );
    assert_eq!(
        sign(p256, other),
        "eif: error: unsigned.eif cannot be signed\n  1: the signature cannot be made\n  2: the private key is not the one of \
         the certificate\n"
    );
    assert_eq!(
        place.error(&["sign", "unsigned.eif", "--signing-certificate", p256, "--signature", "short"]),
        "eif: error: unsigned.eif cannot be signed\n  1: the signature cannot be made\n  2: the signature is not right\n  3: 4 \
         bytes are not a signature of P-256, expected 64 or a der sequence\n"
    );
    let build = ["build", "--kernel", "short", "--cmdline", "", "--ramdisk", "short", "-o", "a.eif", "--metadata"];
    assert_eq!(
        place.error(&[&build[..], &["list.json"]].concat()),
        "eif: error: list.json is not a json object: invalid type: sequence, expected a map at line 1 column 0\n"
    );
    assert_eq!(
        place.error(&[
            "build",
            "--kernel",
            "short",
            "--cmdline",
            "",
            "--tree",
            "missing",
            "--init",
            "short",
            "--cmd",
            "/a",
            "-o",
            "a.eif"
        ]),
        "eif: error: the ramdisk of missing cannot be made\n  1: cannot read missing\n  2: No such file or directory (os error 2)\n"
    );
    // Whatever failed, the image is as it was, and nothing is left behind.
    assert_eq!(fs::read(place.path("unsigned.eif")).unwrap(), fs::read(golden("unsigned.eif")).unwrap());
    let left: Vec<_> = fs::read_dir(place.0.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

#[test]
fn a_wrong_command_line_has_code_2() {
    let place = Place::new();
    let build = ["build", "--kernel", "k", "--cmdline", "", "-o", "a.eif"];
    let no_contents = &build[..];
    let no_value = &[&build[..], &["--tree", ".", "--init", "i", "--cmd", "c", "--env", "NAME"]].concat();
    for arguments in [&["pcr"][..], &["sign", "a.eif"], &["describe"], &["nonsense"], no_contents, no_value] {
        assert_eq!(place.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_pipe_is_refused_with_what_to_do() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_eif"));
    let output = command.args(["describe", "/dev/stdin"]).stdin(Stdio::piped()).current_dir(place.0.path()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "eif: error: /dev/stdin cannot be read as an enclave image\n  1: cannot read at offset 0x0\n  2: Illegal seek (os error \
         29)\n  hint: an image is read from a file; a pipe's bytes are to be written to one first\n"
    );
}

#[test]
fn parts_of_a_damaged_image_are_extracted_and_the_damage_is_told() {
    let place = Place::new();
    let mut image = fs::read(place.path("signed.eif")).unwrap();
    image[0x240] ^= 1;
    fs::write(place.path("damaged.eif"), image).unwrap();
    let whole = place.output(0, &["extract", "signed.eif", "-o", "parts"]);
    assert!(whole.contains("parts/certificate.der (") && !whole.contains("will not boot"), "{whole}");
    let damaged = place.output(0, &["extract", "damaged.eif", "-o", "parts"]);
    assert!(damaged.contains("will not boot  the crc at offset 0x220 is "), "{damaged}");
}

#[test]
fn completions_and_manual_know_every_subcommand() {
    let place = Place::new();
    let (script, page) = (place.output(0, &["completions", "bash"]), place.output(0, &["man"]));
    for command in ["describe", "verify", "pcr", "sign", "extract", "build", "diff"] {
        assert!(
            script.contains(&format!("eif__{command}")) || script.contains(&format!("eif__subcmd__{command}")),
            "{command}"
        );
        assert!(page.contains(&format!("eif\\-{command}")) || page.contains(&format!("eif-{command}")), "{command}");
    }
    assert!(page.contains("Exit codes:"));
}
