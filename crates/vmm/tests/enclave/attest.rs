//! `vmm attest` over documents of an enclave that was booted for it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use attestation::Authority;

use crate::guest::{Chains, Enclave, attestation, document, keep};

const NONCE: &[u8] = b"\x01\x23\xab";

/// An enclave's document under the user's own authority, and its root, in the user's files.
fn attested(settings: &[&str]) -> Enclave {
    let enclave = Enclave::new(&[&attestation(None, Some(NONCE))], Chains::Two);
    let answers = enclave.run(settings);
    keep(enclave.path("").as_path(), &answers[0]);
    let root = enclave.vmm(&["attest", "root"]).output().unwrap();
    assert_eq!(root.status.code(), Some(0));
    fs::write(enclave.path("root.pem"), root.stdout).unwrap();
    enclave
}

fn verify(enclave: &Enclave, arguments: &[&str]) -> Output {
    let root = enclave.path("root.pem");
    let document = enclave.path("document.bin");
    let [root, document] = [&root, &document].map(|path| path.to_str().unwrap());
    enclave.vmm(&[&["attest", "verify", document, "--root", root], arguments].concat()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether the only checks that fail are these lines.
fn fails(output: &Output, lines: &[&str]) {
    let stdout = text(&output.stdout);
    let failed: Vec<&str> = stdout.lines().filter(|line| line.contains(": DOES NOT HOLD: ")).collect();
    assert_eq!(failed, lines, "{stdout}{}", text(&output.stderr));
    assert!(stdout.ends_with(": DOES NOT HOLD\n"), "{stdout}");
    assert_eq!(output.status.code(), Some(1));
}

/// The whole of standard error of a command that prints nothing else.
fn refuses(output: &Output, code: i32, stderr: &str) {
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("", stderr));
    assert_eq!(output.status.code(), Some(code));
}

#[test]
fn a_document_holds_under_the_users_own_root_with_every_option() {
    let enclave = attested(&[]);
    let image = enclave.path("tiny.eif");
    let output = verify(&enclave, &["--nonce", "0123aB", "--eif", image.to_str().unwrap()]);
    let stdout = text(&output.stdout);
    let (lines, verdict) = stdout.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "form: holds",
            "root: holds",
            "certificate chain: holds",
            "certificate validity: holds",
            "signature: holds",
            "nonce: holds",
            "PCR0: holds",
            "PCR1: holds",
            "PCR2: holds",
        ]
    );
    assert!(verdict.starts_with("document of i-0123456789abcdef0-enc"), "{verdict}");
    assert!(verdict.ends_with(" ms after 1970: holds"), "{verdict}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_was_not_asked_for_is_said_not_to_be_checked() {
    let output = verify(&attested(&[]), &[]);
    let stdout = text(&output.stdout);
    assert!(stdout.contains("\nnonce: not checked, as there is no --nonce\n"), "{stdout}");
    assert!(stdout.contains("\nPCR0: not checked, as there is no --pcr0 or --eif\n"), "{stdout}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn another_nonce_another_pcr0_and_another_image_are_each_named() {
    let enclave = attested(&["enclave.debug-mode=true"]);
    fails(&verify(&enclave, &["--nonce", "ff"]), &["nonce: DOES NOT HOLD: found 0123ab, expected ff"]);
    let zero = "00".repeat(48);
    fails(&verify(&enclave, &["--pcr0", "01"]), &[&format!("PCR0: DOES NOT HOLD: found {zero}, expected 01")]);
    let output = verify(&enclave, &["--eif", enclave.path("tiny.eif").to_str().unwrap()]);
    let failed = text(&output.stdout);
    for pcr in ["PCR0", "PCR1", "PCR2"] {
        assert!(failed.contains(&format!("{pcr}: DOES NOT HOLD: found {zero}, expected ")), "{failed}");
    }
    assert!(
        failed.contains("note: PCR0 is zero, so the enclave runs in debug mode and nothing is said of its image\n")
    );
    let output = verify(&enclave, &["--pcr0", &zero]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn a_document_without_a_nonce_does_not_pass_for_one_with() {
    let enclave = Enclave::new(&[&attestation(None, None)], Chains::Two);
    let answers = enclave.run(&[]);
    keep(enclave.path("").as_path(), &answers[0]);
    let root = enclave.vmm(&["attest", "root"]).output().unwrap().stdout;
    fs::write(enclave.path("root.pem"), root).unwrap();
    fails(&verify(&enclave, &["--nonce", "0123ab"]), &["nonce: DOES NOT HOLD: there is none"]);
}

#[test]
fn another_root_is_refused() {
    let enclave = attested(&[]);
    let other = Authority::from_secret(b"other").unwrap().root_pem().unwrap();
    fs::write(enclave.path("root.pem"), other).unwrap();
    let output = verify(&enclave, &[]);
    fails(
        &output,
        &[
            "root: DOES NOT HOLD: the bundle's first certificate is not the given root",
            "certificate chain: DOES NOT HOLD: certificate 1 is not signed by the one above it with a P-384 key and SHA-384",
        ],
    );
}

#[test]
fn times_before_and_after_the_leafs_life_are_refused() {
    let enclave = attested(&[]);
    for at in ["1577836799", "4000000000"] {
        let output = verify(&enclave, &["--at", at]);
        let stdout = text(&output.stdout);
        let failed: Vec<&str> = stdout.lines().filter(|line| line.contains(": DOES NOT HOLD: ")).collect();
        assert_eq!(failed.len(), 1, "{stdout}");
        assert!(
            failed[0].starts_with("certificate validity: DOES NOT HOLD: certificate ")
                && failed[0].contains(" is valid from "),
            "{stdout}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_changed_signature_is_refused() {
    let enclave = attested(&[]);
    let path = enclave.path("document.bin");
    let mut document = fs::read(&path).unwrap();
    *document.last_mut().unwrap() ^= 1;
    fs::write(&path, document).unwrap();
    fails(
        &verify(&enclave, &[]),
        &["signature: DOES NOT HOLD: the signature is not the leaf certificate's over this payload"],
    );
}

#[test]
fn documents_come_as_hexadecimal_and_from_standard_input_too() {
    let enclave = attested(&[]);
    let path = enclave.path("document.bin");
    let hexadecimal: String = fs::read(&path).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let root = enclave.path("root.pem");
    let mut vmm = enclave.vmm(&["attest", "verify", "-", "--root", root.to_str().unwrap()]);
    let mut vmm = vmm.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    writeln!(vmm.stdin.take().unwrap(), "{hexadecimal}").unwrap();
    assert_eq!(vmm.wait().unwrap().code(), Some(0));
    fs::write(&path, hexadecimal).unwrap();
    assert_eq!(verify(&enclave, &[]).status.code(), Some(0));
}

#[test]
fn files_that_are_not_there_or_something_else_are_named() {
    let enclave = Enclave::new(&[], Chains::Two);
    let path = |name: &str| enclave.path(name).display().to_string();
    let gone = "No such file or directory (os error 2)";
    refuses(
        &verify(&enclave, &[]),
        1,
        &format!("vmm: error: cannot read the document {}\n  1: {gone}\n", path("document.bin")),
    );
    fs::write(enclave.path("document.bin"), "what?").unwrap();
    refuses(
        &verify(&enclave, &[]),
        1,
        &format!(
            "vmm: error: {} is neither a raw attestation document nor one in hexadecimal or base64\n",
            path("document.bin")
        ),
    );
    fs::write(enclave.path("document.bin"), [0x84, 0x40]).unwrap();
    refuses(
        &verify(&enclave, &[]),
        1,
        &format!("vmm: error: cannot read the root certificate {}\n  1: {gone}\n", path("root.pem")),
    );
    fs::write(enclave.path("root.pem"), "hello").unwrap();
    refuses(
        &verify(&enclave, &[]),
        1,
        &format!(
            "vmm: error: {} is no root certificate\n  1: there is no certificate (BEGIN CERTIFICATE) in it\n",
            path("root.pem")
        ),
    );
    fs::write(enclave.path("root.pem"), Authority::from_secret(b"t").unwrap().root_pem().unwrap()).unwrap();
    let eif = path("no.eif");
    refuses(&verify(&enclave, &["--eif", &eif]), 1, &format!("vmm: error: cannot read image {eif}\n  1: {gone}\n"));
    let output = verify(&enclave, &[]);
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("form: DOES NOT HOLD: not a COSE_Sign1: "), "{stdout}");
    assert_eq!((stdout.lines().count(), output.status.code()), (1, Some(1)));
}

#[test]
fn values_that_are_mistyped_are_usage_errors() {
    let enclave = Enclave::new(&[], Chains::Two);
    for arguments in [
        &["--nonce", "123"][..],
        &["--pcr0", "xy"],
        &["--at", "noon"],
        &["--pcr0", "00", "--eif", "a.eif"],
        &["--no-such-option"],
    ] {
        assert_eq!(verify(&enclave, arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_root_is_that_of_the_authority_that_is_named() {
    let enclave = Enclave::new(&[], Chains::Two);
    let root = |which: &str| {
        let output = enclave.vmm(&["attest", "root", "--authority", which]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let authority = Authority::from_secret(b"t").unwrap();
    fs::write(enclave.path("ca.pem"), authority.to_pem().unwrap()).unwrap();
    assert_eq!(root("seed:t"), authority.root_pem().unwrap());
    assert_eq!(root(enclave.path("ca.pem").to_str().unwrap()), authority.root_pem().unwrap());
    // Made by the first command that asks, and kept.
    assert!(!kept(&enclave).exists());
    assert_eq!(root("auto"), root("auto"));
    assert!(kept(&enclave).exists());
    let output = enclave.vmm(&["attest", "root", "--authority", "/nonexistent/ca.pem"]).output().unwrap();
    refuses(
        &output,
        1,
        "vmm: error: cannot read the attestation authority /nonexistent/ca.pem\n  1: No such file or directory (os error 2)\n",
    );
}

fn kept(enclave: &Enclave) -> std::path::PathBuf {
    enclave.path("vmm/attestation-authority.pem")
}

#[test]
fn without_a_data_directory_the_root_is_not_to_be_had() {
    let enclave = Enclave::new(&[], Chains::Two);
    let mut vmm = enclave.vmm(&["attest", "root"]);
    let output = vmm.env("XDG_DATA_HOME", "relative").env_remove("HOME").output().unwrap();
    refuses(&output, 1, "vmm: error: there is no data directory: neither XDG_DATA_HOME nor HOME is an absolute path\n");
}

#[test]
fn documents_of_one_authority_are_told_from_each_other_by_their_nonces_alone() {
    let (first, second) = (attestation(None, Some(b"1")), attestation(Some(b"data"), Some(b"2")));
    let enclave = Enclave::new(&[&first, &second], Chains::One);
    let answers = enclave.run(&["enclave.authority=seed:t"]);
    let root = Authority::from_secret(b"t").unwrap().root_pem().unwrap();
    fs::write(enclave.path("root.pem"), root).unwrap();
    for (answer, own, other) in [(&answers[0], "31", "32"), (&answers[1], "32", "31")] {
        keep(Path::new(&enclave.path("")), answer);
        assert!(!document(answer).is_empty());
        assert_eq!(verify(&enclave, &["--nonce", own]).status.code(), Some(0));
        assert_eq!(verify(&enclave, &["--nonce", other]).status.code(), Some(1));
    }
}
