//! Documents that the signer makes: their form, their certificates, and how these change with time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nsm::{BootMeasurements, ModuleId, PcrBank};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::*;

/// 2026-01-02 03:04:05 UTC.
const NOW: u64 = 1_767_323_045;

struct Bench {
    signer: Signer,
    now: Arc<AtomicU64>,
    module_id: ModuleId,
    bank: PcrBank,
}

impl Bench {
    fn new(form: MapForm) -> Self {
        let now = Arc::new(AtomicU64::new(NOW));
        let clock = Arc::clone(&now);
        let clock = Box::new(move || UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed)));
        let authority = Authority::from_secret(b"test seed").unwrap();
        Self {
            signer: Signer::new(authority, form).with_clock(clock),
            now,
            module_id: ModuleId::new("i-0123456789abcdef0", 0xfedc_ba98_7654_3210).unwrap(),
            bank: PcrBank::boot(&BootMeasurements::new([1; 48], [2; 48], [3; 48])),
        }
    }

    fn document(&mut self, request: &AttestationRequest) -> Vec<u8> {
        let context = AttestationContext { module_id: &self.module_id, pcrs: &self.bank };
        self.signer.sign(request, context).unwrap()
    }

    fn payload_at(&mut self, now: u64) -> Payload {
        self.now.store(now, Ordering::Relaxed);
        let document = self.document(&AttestationRequest::default());
        SignedDocument::decode(&document).unwrap().payload().clone()
    }
}

/// The bytes of the envelope's parts: header, payload, signature.
fn parts(document: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let value: ciborium::Value = ciborium::from_reader(document).unwrap();
    let parts = value.into_array().unwrap();
    assert_eq!(parts.len(), 4);
    assert_eq!(parts[0].as_bytes().unwrap(), &[0xa1, 0x01, 0x38, 0x22]);
    assert!(parts[1].as_map().unwrap().is_empty());
    (parts[2].as_bytes().unwrap().clone(), parts[3].as_bytes().unwrap().clone())
}

fn keys(payload: &[u8]) -> Vec<String> {
    let value: ciborium::Value = ciborium::from_reader(payload).unwrap();
    value.into_map().unwrap().into_iter().map(|(key, _)| key.into_text().unwrap()).collect()
}

const IN_ORDER: [&str; 9] =
    ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce"];

#[test]
fn a_document_is_an_untagged_array_with_es384_and_a_fixed_signature() {
    let document = Bench::new(MapForm::Definite).document(&AttestationRequest::default());
    // As real documents start: array of 4, the header of 4 bytes, an empty map, a byte string with a length of two bytes, a map of nine.
    assert_eq!(document[..8], [0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x59]);
    assert_eq!(document[10], 0xa9);
    let (_, signature) = parts(&document);
    assert_eq!(signature.len(), 96);
}

#[test]
fn all_nine_keys_stand_in_order_and_absent_ones_are_null() {
    let document = Bench::new(MapForm::Definite).document(&AttestationRequest::default());
    let (payload, _) = parts(&document);
    assert_eq!(keys(&payload), IN_ORDER);
    assert_eq!(payload[payload.len() - 7..], *b"\x65nonce\xf6");
}

#[test]
fn an_indefinite_map_says_the_same() {
    let (definite, _) = parts(&Bench::new(MapForm::Definite).document(&AttestationRequest::default()));
    let (indefinite, _) = parts(&Bench::new(MapForm::Indefinite).document(&AttestationRequest::default()));
    assert_eq!((indefinite[0], *indefinite.last().unwrap()), (0xbf, 0xff));
    assert_eq!(Payload::decode(&indefinite).unwrap(), Payload::decode(&definite).unwrap());
}

#[test]
fn what_the_enclave_gives_comes_back_and_only_locked_pcrs_are_listed() {
    let mut bench = Bench::new(MapForm::Definite);
    bench.bank.extend(16, b"open").unwrap();
    bench.bank.lock(20).unwrap();
    let request = AttestationRequest {
        user_data: Some(vec![1; 1024]),
        nonce: Some(vec![2; 1024]),
        public_key: Some(vec![3; 1024]),
    };
    let document = bench.document(&request);
    let payload = SignedDocument::decode(&document).unwrap().payload().clone();
    assert_eq!(
        (payload.user_data, payload.nonce, payload.public_key),
        (request.user_data, request.nonce, request.public_key)
    );
    assert_eq!(payload.pcrs.keys().copied().collect::<Vec<_>>(), (0..16).chain([20]).collect::<Vec<_>>());
    assert_eq!(payload.timestamp, NOW * 1000);
    assert_eq!(payload.module_id, bench.module_id.as_str());
}

#[test]
fn a_document_with_the_longest_request_fits_the_response_buffer() {
    let mut bench = Bench::new(MapForm::Indefinite);
    bench.bank.lock_range(32).unwrap();
    let request = AttestationRequest { user_data: Some(vec![1; nsm::MAX_REQUEST_SIZE]), ..Default::default() };
    assert!(bench.document(&request).len() + 64 < nsm::RESPONSE_BUFFER_SIZE);
}

#[test]
fn certificates_are_small_and_the_bundle_leads_from_the_root_to_the_instance() {
    let payload = Bench::new(MapForm::Definite).payload_at(NOW);
    assert_eq!(payload.cabundle.len(), 1 + usize::from(INTERMEDIATES));
    let names: Vec<String> = payload
        .cabundle
        .iter()
        .chain([&payload.certificate])
        .map(|der| {
            assert!(der.len() <= 1024, "{} bytes", der.len());
            Certificate::from_der(der).unwrap().tbs_certificate().subject().to_string()
        })
        .collect();
    assert!(names[0].contains("CN=local-test.nitro-enclaves"), "{names:?}");
    assert!(names[2].contains(".zonal.local-1."), "{names:?}");
    assert!(names[3].contains("CN=i-0123456789abcdef0.local-1."), "{names:?}");
    assert!(names[4].contains("CN=i-0123456789abcdef0-encfedcba9876543210.local-1.local-test"), "{names:?}");
}

#[test]
fn a_seed_gives_the_same_certificates_and_even_documents_again() {
    let document = || Bench::new(MapForm::Definite).document(&AttestationRequest::default());
    assert_eq!(document(), document());
}

#[test]
fn the_leaf_lives_three_hours_and_is_replaced_before_it_ends() {
    let mut bench = Bench::new(MapForm::Definite);
    let mut leaves = Vec::new();
    for minute in 0..(24 * 60 / 7) {
        let now = NOW + minute * 7 * 60;
        let payload = bench.payload_at(now);
        let leaf = Certificate::from_der(&payload.certificate).unwrap();
        let validity = leaf.tbs_certificate().validity();
        let (from, until) =
            (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs());
        assert_eq!(until - from, LEAF_LIFETIME);
        assert!(from <= now && now + LEAF_LIFETIME / 2 <= until, "{now} is not in the first half of {from} to {until}");
        leaves.push(payload.certificate);
    }
    leaves.dedup();
    assert!((16..=17).contains(&leaves.len()), "{} leaves in a day", leaves.len());
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let mut bench = Bench::new(MapForm::Definite);
    for step in 0..160 {
        let payload = bench.payload_at(NOW + step * 4 * HOUR + step);
        let mut outer = (0, u64::MAX);
        for der in payload.cabundle.iter().chain([&payload.certificate]) {
            let certificate = Certificate::from_der(der).unwrap();
            let validity = certificate.tbs_certificate().validity();
            let inner =
                (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs());
            assert!(outer.0 <= inner.0 && inner.1 <= outer.1, "{inner:?} in {outer:?}");
            outer = inner;
        }
    }
}

#[test]
fn a_clock_that_certificates_cannot_show_is_an_internal_error() {
    let mut bench = Bench::new(MapForm::Definite);
    bench.now.store(1 << 40, Ordering::Relaxed);
    let context = AttestationContext { module_id: &bench.module_id, pcrs: &bench.bank };
    assert_eq!(bench.signer.attest(&AttestationRequest::default(), context), Err(ErrorCode::InternalError));
}
