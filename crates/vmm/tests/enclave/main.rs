//! Enclaves as a user runs them, whole: what their NSM answers under each option, and what `vmm attest` says of their documents.

mod attest;
#[path = "../support/elf.rs"]
mod elf;
mod guest;

use attestation::{Authority, Payload, SignedDocument};
use ciborium::Value;
use guest::{Chains, Enclave, End, attestation, document, encode, field};
use sha2::{Digest, Sha384};

const ZERO: [u8; 48] = [0; 48];

fn payload(answer: &[u8]) -> Payload {
    SignedDocument::decode(&document(answer)).unwrap().payload().clone()
}

/// The payload of the one document that an enclave makes with these settings.
fn attested(settings: &[&str]) -> Payload {
    let enclave = Enclave::new(&[&attestation(None, None)], Chains::Two);
    payload(&enclave.run(settings)[0])
}

fn extended(text: &str) -> Vec<u8> {
    Sha384::new().chain_update(ZERO).chain_update(text).finalize().to_vec()
}

fn describe(index: u16) -> Vec<u8> {
    command("DescribePCR", &[("index", index.into())])
}

fn command(name: &str, arguments: &[(&str, Value)]) -> Vec<u8> {
    let arguments = arguments.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect();
    encode(&Value::Map(vec![(Value::from(name), Value::Map(arguments))]))
}

#[test]
fn each_end_of_an_enclave_has_its_own_exit_code() {
    for (end, code) in [(End::Reset, 0), (End::TripleFault, 4), (End::Crash, 7)] {
        let output = Enclave::that_ends(end).try_run(&[]);
        assert_eq!(output.status.code(), Some(code), "{end:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_enclave_without_a_heartbeat_ends_with_6_and_says_why() {
    let output = Enclave::that_ends(End::Halt).try_run(&["enclave.heartbeat-timeout=1"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "vmm: error: the enclave gave no heartbeat on vsock port 9000 within 1 s\n"
    );
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn one_chain_and_two_chains_are_answered_alike() {
    let requests = [encode(&"DescribeNSM".into()), describe(0), describe(4), describe(32), b"\xff".to_vec()];
    let requests = requests.each_ref().map(Vec::as_slice);
    // The two guests are two images, which in debug mode measure the same.
    let settings = ["enclave.debug-mode=true", "enclave.id=i-1234567890abcdef0-enc0123456789abcdef"];
    let [one, two] = [Chains::One, Chains::Two].map(|chains| Enclave::new(&requests, chains).run(&settings));
    assert_eq!(one, two);
    assert_eq!(field(&one[1], "DescribePCR", "lock"), Value::Bool(true));
    assert_eq!(one[3], b"\xa1\x65Error\x6cInvalidIndex");
    assert_eq!(one[4], b"\xa1\x65Error\x70InvalidOperation");
}

#[test]
fn by_default_pcr3_is_zero_and_pcr4_that_of_a_parent() {
    let pcrs = attested(&["enclave.authority=seed:t"]).pcrs;
    assert_eq!(pcrs.keys().copied().collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    assert_eq!((&pcrs[&3], &pcrs[&4]), (&ZERO.to_vec(), &extended("i-0123456789abcdef0")));
    let zero: Vec<u16> = pcrs.iter().filter(|(_, value)| **value == ZERO).map(|(index, _)| *index).collect();
    assert_eq!(zero, [3].into_iter().chain(5..16).collect::<Vec<_>>());
}

#[test]
fn role_parent_and_id_are_the_users() {
    let payload = attested(&[
        "enclave.authority=seed:t",
        "enclave.parent-role=arn:aws:iam::1:role/r",
        "enclave.parent-id=i-1234567890abcdef0",
        "enclave.id=i-1234567890abcdef0-enc0123456789abcdef",
    ]);
    assert_eq!(payload.pcrs[&3], extended("arn:aws:iam::1:role/r"));
    assert_eq!(payload.pcrs[&4], extended("i-1234567890abcdef0"));
    assert_eq!(payload.module_id, "i-1234567890abcdef0-enc0123456789abcdef");
}

#[test]
fn in_debug_mode_pcr0_to_pcr15_are_zero_in_registers_and_documents() {
    let enclave = Enclave::new(&[&describe(0), &attestation(None, None)], Chains::Two);
    let answers = enclave.run(&["enclave.authority=seed:t", "enclave.debug-mode=true"]);
    assert_eq!(field(&answers[0], "DescribePCR", "data"), Value::Bytes(ZERO.to_vec()));
    assert_eq!(field(&answers[0], "DescribePCR", "lock"), Value::Bool(true));
    let pcrs = payload(&answers[1]).pcrs;
    assert_eq!(pcrs.len(), 16);
    assert!(pcrs.values().all(|value| *value == ZERO));
}

#[test]
fn a_seed_has_the_same_certificates_in_every_run_and_signs_with_its_own_root() {
    let root = Authority::from_secret(b"repeated").unwrap().root_pem().unwrap();
    let root = attestation_root(&root);
    let runs = [0, 1].map(|_| attested(&["enclave.authority=seed:repeated"]));
    assert_eq!(runs[0].cabundle[0], root);
    // A run that meets the turn of a window has a new leaf; the root never changes.
    if runs[0].timestamp / LEAF_WINDOW_MS == runs[1].timestamp / LEAF_WINDOW_MS {
        assert_eq!((&runs[0].certificate, &runs[0].cabundle), (&runs[1].certificate, &runs[1].cabundle));
    }
    assert_ne!(attested(&["enclave.authority=seed:other"]).cabundle[0], root);
}

/// How long all documents have the same certificates, in milliseconds.
const LEAF_WINDOW_MS: u64 = ::attestation::LEAF_LIFETIME * 1000 / 2;

fn attestation_root(pem: &str) -> Vec<u8> {
    use x509_cert::der::Encode;
    ::attestation::certificate_from_pem(pem).unwrap().to_der().unwrap()
}

#[test]
fn the_users_own_pem_file_signs() {
    let authority = Authority::from_secret(b"the user's").unwrap();
    let enclave = Enclave::new(&[&attestation(None, None)], Chains::Two);
    std::fs::write(enclave.path("ca.pem"), authority.to_pem().unwrap()).unwrap();
    let setting = format!("enclave.authority={}", enclave.path("ca.pem").display());
    let payload = payload(&enclave.run(&[&setting])[0]);
    assert_eq!(payload.cabundle[0], attestation_root(&authority.root_pem().unwrap()));
}

#[test]
fn a_pem_file_without_a_key_is_refused_before_anything_starts() {
    let enclave = Enclave::new(&[&describe(0)], Chains::Two);
    let path = enclave.path("ca.pem");
    std::fs::write(&path, Authority::from_secret(b"t").unwrap().root_pem().unwrap()).unwrap();
    let output = enclave.try_run(&[&format!("enclave.authority={}", path.display())]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "vmm: error: the enclave's attestation authority is not to be had\n  1: {} is no attestation authority\n  \
             2: there is no key (BEGIN PRIVATE KEY or BEGIN EC PRIVATE KEY) in it\n",
            path.display()
        )
    );
}

#[test]
fn the_map_of_a_document_is_written_as_asked() {
    for (form, first, last) in [("definite", 0xa9, 0xf6), ("indefinite", 0xbf, 0xff)] {
        let enclave = Enclave::new(&[&attestation(None, None)], Chains::Two);
        let setting = format!("enclave.document-map={form}");
        let answers = enclave.run(&["enclave.authority=seed:t", &setting]);
        let envelope: Value = ciborium::from_reader(document(&answers[0]).as_slice()).unwrap();
        let payload = envelope.as_array().unwrap()[2].as_bytes().unwrap().clone();
        assert_eq!((payload.first(), payload.last()), (Some(&first), Some(&last)), "{form}");
    }
}

#[test]
fn a_reset_restores_the_registers_and_the_next_document_says_so() {
    let extend = command("ExtendPCR", &[("index", 16.into()), ("data", Value::Bytes(b"x".to_vec()))]);
    let lock = command("LockPCRs", &[("range", 20.into())]);
    let requests: [&[u8]; 5] = [&describe(16), &extend, &lock, &attestation(None, None), &describe(20)];
    let lives = Enclave::new(&requests, Chains::Two).run_again_and_again(&["enclave.authority=seed:t"], 3);
    for answers in &lives {
        assert_eq!(field(&answers[0], "DescribePCR", "lock"), Value::Bool(false));
        assert_eq!(field(&answers[0], "DescribePCR", "data"), Value::Bytes(ZERO.to_vec()));
        let pcrs = payload(&answers[3]).pcrs;
        assert_eq!(pcrs.keys().copied().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        assert_eq!(pcrs[&16], extended("x"));
        assert_eq!(field(&answers[4], "DescribePCR", "lock"), Value::Bool(false));
        assert_eq!(pcrs[&0], payload(&lives[0][3]).pcrs[&0]);
    }
}
