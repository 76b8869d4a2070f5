//! The module from outside: request bytes in, response bytes out.

use std::sync::{Arc, Mutex};

use ciborium::{Value, cbor};

use super::*;
use crate::pcr::{BootMeasurements, Digest, ZERO_DIGEST, extend};

const ID: &str = "i-1234567890abcdef0-enc0123456789abcdef";

/// A module whose random bytes count up through all requests.
fn nsm() -> Nsm {
    let mut next = 0u8;
    Nsm::new(ModuleId::parse(ID).unwrap(), PcrBank::boot(&BootMeasurements::new([1; 48], [2; 48], [3; 48])))
        .with_entropy(Box::new(move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
            next = next.wrapping_add(1);
            Ok(())
        }))
}

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).unwrap()
}

fn ask(nsm: &mut Nsm, request: Value) -> Value {
    decode(&nsm.handle(&encode(&request), RESPONSE_BUFFER_SIZE))
}

fn ask_raw(nsm: &mut Nsm, request: &[u8]) -> Value {
    decode(&nsm.handle(request, RESPONSE_BUFFER_SIZE))
}

fn error(name: &str) -> Value {
    cbor!({ "Error" => name }).unwrap()
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

fn describe(nsm: &mut Nsm, index: u16) -> Value {
    ask(nsm, cbor!({ "DescribePCR" => { "index" => index } }).unwrap())
}

fn described(lock: bool, data: &Digest) -> Value {
    cbor!({ "DescribePCR" => { "lock" => lock, "data" => bytes(data) } }).unwrap()
}

fn extend_pcr(nsm: &mut Nsm, index: u16, data: Value) -> Value {
    ask(nsm, cbor!({ "ExtendPCR" => { "index" => index, "data" => data } }).unwrap())
}

fn extended(data: &Digest) -> Value {
    cbor!({ "ExtendPCR" => { "data" => bytes(data) } }).unwrap()
}

fn lock_pcr(nsm: &mut Nsm, index: u16) -> Value {
    ask(nsm, cbor!({ "LockPCR" => { "index" => index } }).unwrap())
}

fn lock_pcrs(nsm: &mut Nsm, range: u16) -> Value {
    ask(nsm, cbor!({ "LockPCRs" => { "range" => range } }).unwrap())
}

#[test]
fn describe_nsm_names_the_module_and_its_locked_pcrs() {
    let mut nsm = nsm();
    let locked = |more: &[u64]| Value::Array((0..16u64).chain(more.iter().copied()).map(Value::from).collect());
    let answer = |locked| {
        cbor!({ "DescribeNSM" => {
            "version_major" => 1,
            "version_minor" => 0,
            "version_patch" => 0,
            "module_id" => ID,
            "max_pcrs" => 32,
            "locked_pcrs" => locked,
            "digest" => "SHA384",
        } })
        .unwrap()
    };
    assert_eq!(ask(&mut nsm, "DescribeNSM".into()), answer(locked(&[])));
    lock_pcr(&mut nsm, 31);
    assert_eq!(ask(&mut nsm, "DescribeNSM".into()), answer(locked(&[31])));
}

#[test]
fn get_random_starts_byte_for_byte_as_the_hwrng_driver_expects() {
    let mut nsm = nsm();
    let answer = nsm.handle(b"\x69GetRandom", RESPONSE_BUFFER_SIZE);
    let prefix = b"\xa1\x69GetRandom\xa1\x66random\x59\x01\x00";
    assert_eq!(&answer[..prefix.len()], prefix);
    let random: Vec<u8> = (0..=255).collect();
    assert_eq!(&answer[prefix.len()..], random);
}

#[test]
fn sixteen_random_answers_differ() {
    let id = ModuleId::parse(ID).unwrap();
    let mut host = Nsm::new(id, PcrBank::debug_boot());
    let answers: std::collections::HashSet<Vec<u8>> =
        (0..16).map(|_| host.handle(b"\x69GetRandom", RESPONSE_BUFFER_SIZE)).collect();
    assert_eq!(answers.len(), 16);
}

#[test]
fn failing_entropy_is_an_internal_error_and_not_zeros() {
    let mut nsm = nsm().with_entropy(Box::new(|_| Err(io::Error::other("exhausted"))));
    assert_eq!(ask(&mut nsm, "GetRandom".into()), error("InternalError"));
}

#[test]
fn describe_pcr_shows_value_and_lock() {
    let mut nsm = nsm();
    assert_eq!(describe(&mut nsm, 0), described(true, &[1; 48]));
    assert_eq!(describe(&mut nsm, 15), described(true, &ZERO_DIGEST));
    assert_eq!(describe(&mut nsm, 31), described(false, &ZERO_DIGEST));
}

#[test]
fn extend_pcr_hashes_old_value_and_data() {
    let mut nsm = nsm();
    let once = extend(&ZERO_DIGEST, b"data");
    let twice = extend(&once, b"more");
    assert_eq!(extend_pcr(&mut nsm, 16, bytes(b"data")), extended(&once));
    assert_eq!(extend_pcr(&mut nsm, 16, bytes(b"more")), extended(&twice));
    assert_eq!(describe(&mut nsm, 16), described(false, &twice));
}

#[test]
fn extend_pcr_takes_empty_long_and_text_data() {
    let long = vec![5; 4000];
    for (data, raw) in [(bytes(b""), &b""[..]), (bytes(&long), &long), (Value::from("text"), b"text")] {
        assert_eq!(extend_pcr(&mut nsm(), 20, data), extended(&extend(&ZERO_DIGEST, raw)));
    }
}

#[test]
fn extending_a_locked_pcr_is_read_only() {
    let mut nsm = nsm();
    for index in 0..16 {
        assert_eq!(extend_pcr(&mut nsm, index, bytes(b"x")), error("ReadOnlyIndex"));
    }
    assert_eq!(lock_pcr(&mut nsm, 16), Value::from("LockPCR"));
    assert_eq!(extend_pcr(&mut nsm, 16, bytes(b"x")), error("ReadOnlyIndex"));
    assert_eq!(describe(&mut nsm, 16), described(true, &ZERO_DIGEST));
}

#[test]
fn locking_a_locked_pcr_is_read_only() {
    let mut nsm = nsm();
    for index in 0..16 {
        assert_eq!(lock_pcr(&mut nsm, index), error("ReadOnlyIndex"));
    }
    lock_pcr(&mut nsm, 30);
    assert_eq!(lock_pcr(&mut nsm, 30), error("ReadOnlyIndex"));
}

#[test]
fn locking_a_range_passes_over_what_is_locked() {
    let mut nsm = nsm();
    assert_eq!(lock_pcrs(&mut nsm, 0), Value::from("LockPCRs"));
    assert_eq!(lock_pcrs(&mut nsm, 18), Value::from("LockPCRs"));
    assert_eq!(describe(&mut nsm, 17), described(true, &ZERO_DIGEST));
    assert_eq!(describe(&mut nsm, 18), described(false, &ZERO_DIGEST));
    assert_eq!(lock_pcrs(&mut nsm, 32), Value::from("LockPCRs"));
    assert_eq!(lock_pcrs(&mut nsm, 32), Value::from("LockPCRs"));
    assert_eq!(lock_pcrs(&mut nsm, 33), error("InvalidIndex"));
}

#[test]
fn index_past_the_bank_is_an_invalid_index() {
    let mut nsm = nsm();
    for index in [32, 50, 256, u16::MAX] {
        assert_eq!(describe(&mut nsm, index), error("InvalidIndex"));
        assert_eq!(extend_pcr(&mut nsm, index, bytes(b"x")), error("InvalidIndex"));
        assert_eq!(lock_pcr(&mut nsm, index), error("InvalidIndex"));
    }
}

#[test]
fn index_that_does_not_fit_sixteen_bits_is_an_invalid_operation() {
    let mut nsm = nsm();
    for index in [-1i64, 1 << 16, 1 << 32, i64::MAX, i64::MIN] {
        for (command, argument) in [("DescribePCR", "index"), ("LockPCR", "index"), ("LockPCRs", "range")] {
            let request = cbor!({ command => { argument => index } }).unwrap();
            assert_eq!(ask(&mut nsm, request), error("InvalidOperation"), "{command} {index}");
        }
    }
}

#[test]
fn malformed_requests_are_invalid_operations() {
    let mut nsm = nsm();
    let requests = [
        cbor!("Unknown"),
        cbor!(""),
        cbor!("describensm"),
        cbor!("DescribePCR"),
        cbor!({ "Unknown" => {} }),
        cbor!({ "DescribeNSM" => null }),
        cbor!({ "DescribePCR" => { "index" => 0 }, "LockPCR" => { "index" => 16 } }),
        cbor!({ "DescribePCR" => {} }),
        cbor!({ "DescribePCR" => 0 }),
        cbor!({ "DescribePCR" => [0] }),
        cbor!({ "DescribePCR" => { "index" => "0" } }),
        cbor!({ "DescribePCR" => { "index" => 0.0 } }),
        cbor!({ "DescribePCR" => { "index" => null } }),
        cbor!({ "ExtendPCR" => { "index" => 16 } }),
        cbor!({ "ExtendPCR" => { "data" => "x" } }),
        cbor!({ "ExtendPCR" => { "index" => 16, "data" => null } }),
        cbor!({ "ExtendPCR" => { "index" => 16, "data" => [1, 2] } }),
        cbor!({ "LockPCRs" => { "index" => 1 } }),
        cbor!({ "Attestation" => { "nonce" => 1 } }),
        cbor!({ "Attestation" => null }),
        cbor!({}),
        cbor!([]),
        cbor!(7),
        cbor!({ 1 => { "index" => 0 } }),
    ];
    for request in requests.map(Result::unwrap) {
        assert_eq!(ask(&mut nsm, request.clone()), error("InvalidOperation"), "{request:?}");
    }
}

#[test]
fn bytes_that_are_not_cbor_are_invalid_operations() {
    let mut nsm = nsm();
    let twice = b"\xa1\x6bDescribePCR\xa2\x65index\x00\x65index\x01";
    for request in [
        &b""[..],
        b"\xff",
        b"\x69GetRando",
        b"\x69GetRandom\x00",
        b"\x69GetRand\xff\xfe",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xc1\x69GetRandom",
        twice,
    ] {
        assert_eq!(ask_raw(&mut nsm, request), error("InvalidOperation"), "{}", request.escape_ascii());
    }
}

#[test]
fn deep_nesting_is_an_invalid_operation() {
    let mut nsm = nsm();
    for opening in [0x81, 0x9f, 0xa1, 0xbf, 0xc1, 0xd8] {
        assert_eq!(ask_raw(&mut nsm, &[opening; MAX_REQUEST_SIZE]), error("InvalidOperation"));
    }
}

#[test]
fn extra_arguments_are_ignored() {
    let request = cbor!({ "DescribePCR" => { "more" => [1, { "a" => null }], 7 => 8, "index" => 0 } }).unwrap();
    assert_eq!(ask(&mut nsm(), request), described(true, &[1; 48]));
}

#[test]
fn lengths_may_be_indefinite_and_integers_wide() {
    let mut nsm = nsm();
    let request = b"\xbf\x6bDescribePCR\xbf\x7f\x62in\x63dex\xff\x1b\0\0\0\0\0\0\0\0\xff\xff";
    assert_eq!(ask_raw(&mut nsm, request), described(true, &[1; 48]));
}

#[test]
fn request_of_4096_bytes_is_read_and_a_longer_one_is_too_large() {
    let request = |padding: usize| {
        let data = vec![0; padding];
        encode(&cbor!({ "ExtendPCR" => { "index" => 16, "data" => bytes(&data) } }).unwrap())
    };
    let overhead = request(4000).len() - 4000;
    let fits = request(MAX_REQUEST_SIZE - overhead);
    assert_eq!(fits.len(), MAX_REQUEST_SIZE);
    assert_ne!(ask_raw(&mut nsm(), &fits), error("InputTooLarge"));
    assert_eq!(ask_raw(&mut nsm(), &request(MAX_REQUEST_SIZE - overhead + 1)), error("InputTooLarge"));
    assert_eq!(ask_raw(&mut nsm(), &vec![0xff; 1 << 20]), error("InputTooLarge"));
}

#[test]
fn answer_that_does_not_fit_is_told_and_the_operation_done() {
    let mut nsm = nsm();
    let request = encode(&cbor!({ "ExtendPCR" => { "index" => 16, "data" => "x" } }).unwrap());
    assert_eq!(decode(&nsm.handle(&request, 40)), error("BufferTooSmall"));
    assert_eq!(describe(&mut nsm, 16), described(false, &extend(&ZERO_DIGEST, b"x")));
    assert_eq!(nsm.handle(&request, 5), b"");
    assert_eq!(nsm.handle(&request, 0), b"");
}

#[test]
fn answer_of_exactly_the_capacity_fits() {
    let mut nsm = nsm();
    let request = b"\x6bDescribeNSM";
    let size = nsm.handle(request, RESPONSE_BUFFER_SIZE).len();
    assert_eq!(nsm.handle(request, size).len(), size);
    assert_eq!(decode(&nsm.handle(request, size - 1)), error("BufferTooSmall"));
}

#[test]
fn reset_restores_the_boot_state() {
    let mut nsm = nsm();
    let boot = nsm.pcrs().clone();
    extend_pcr(&mut nsm, 16, bytes(b"x"));
    lock_pcrs(&mut nsm, 32);
    assert_ne!(*nsm.pcrs(), boot);
    nsm.reset();
    assert_eq!(*nsm.pcrs(), boot);
    assert_eq!(describe(&mut nsm, 0), described(true, &[1; 48]));
    assert_eq!(describe(&mut nsm, 16), described(false, &ZERO_DIGEST));
}

#[test]
fn debug_mode_reads_zero_and_stays_locked() {
    let mut nsm = Nsm::new(ModuleId::parse(ID).unwrap(), PcrBank::debug_boot());
    for index in 0..16 {
        assert_eq!(describe(&mut nsm, index), described(true, &ZERO_DIGEST));
        assert_eq!(extend_pcr(&mut nsm, index, bytes(b"x")), error("ReadOnlyIndex"));
    }
}

#[test]
fn attestation_without_a_signer_is_an_internal_error() {
    let request = cbor!({ "Attestation" => { "user_data" => null, "nonce" => null, "public_key" => null } }).unwrap();
    assert_eq!(ask(&mut nsm(), request), error("InternalError"));
}

/// Remembers what it was asked, and "signs" it.
struct Recording(Arc<Mutex<Vec<AttestationRequest>>>);

impl Attestor for Recording {
    fn attest(&mut self, request: &AttestationRequest, context: AttestationContext<'_>) -> Result<Vec<u8>, ErrorCode> {
        assert_eq!(context.module_id.as_str(), ID);
        if request.nonce.as_deref() == Some(b"fail") {
            return Err(ErrorCode::InvalidArgument);
        }
        self.0.lock().unwrap().push(request.clone());
        Ok(vec![context.pcrs.locked().count() as u8])
    }
}

#[test]
fn attestation_fields_may_be_bytes_text_empty_null_or_missing() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut nsm = nsm().with_attestor(Box::new(Recording(asked.clone())));
    let document = cbor!({ "Attestation" => { "document" => bytes(&[16]) } }).unwrap();
    let field = |text: &str| Some(text.as_bytes().to_vec());
    let cases = [
        (cbor!({}), AttestationRequest::default()),
        (
            cbor!({ "user_data" => bytes(b"u"), "nonce" => "n", "public_key" => "" }),
            AttestationRequest { user_data: field("u"), nonce: field("n"), public_key: field("") },
        ),
        (
            cbor!({ "user_data" => null, "nonce" => bytes(b""), "other" => 1 }),
            AttestationRequest { user_data: None, nonce: field(""), public_key: None },
        ),
    ];
    for (arguments, request) in cases {
        assert_eq!(ask(&mut nsm, cbor!({ "Attestation" => arguments.unwrap() }).unwrap()), document);
        assert_eq!(asked.lock().unwrap().pop(), Some(request));
    }
}

#[test]
fn attestation_takes_1024_bytes_in_each_field() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut nsm = nsm().with_attestor(Box::new(Recording(asked.clone())));
    let data = bytes(&[1; 1024]);
    let request = cbor!({ "Attestation" => { "user_data" => data, "nonce" => data, "public_key" => data } }).unwrap();
    ask(&mut nsm, request);
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn error_of_the_signer_is_the_answer() {
    let mut nsm = nsm().with_attestor(Box::new(Recording(Arc::default())));
    assert_eq!(ask(&mut nsm, cbor!({ "Attestation" => { "nonce" => "fail" } }).unwrap()), error("InvalidArgument"));
}

#[test]
fn mutated_requests_never_panic_and_always_have_an_answer() {
    let seeds = [
        encode(&"DescribeNSM".into()),
        encode(&"GetRandom".into()),
        encode(&cbor!({ "DescribePCR" => { "index" => 3 } }).unwrap()),
        encode(&cbor!({ "ExtendPCR" => { "index" => 17, "data" => bytes(&[9; 30]) } }).unwrap()),
        encode(&cbor!({ "LockPCR" => { "index" => 17 } }).unwrap()),
        encode(&cbor!({ "LockPCRs" => { "range" => 20 } }).unwrap()),
        encode(&cbor!({ "Attestation" => { "user_data" => "u", "nonce" => null, "public_key" => "" } }).unwrap()),
    ];
    let mut state = 1u64;
    let mut below = |bound: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let mut nsm = nsm();
    let mut answered = 0;
    for round in 0..100_000 {
        let mut request = seeds[round % seeds.len()].clone();
        for _ in 0..1 + below(3) {
            let position = below(request.len().max(1)).min(request.len());
            match below(4) {
                0 if position < request.len() => request[position] ^= 1 << below(8),
                1 if position < request.len() => request[position] = below(256) as u8,
                2 => request.truncate(position),
                _ => request.insert(position, below(256) as u8),
            }
        }
        let capacity = if round % 16 == 0 { below(64) } else { RESPONSE_BUFFER_SIZE };
        let answer = nsm.handle(&request, capacity);
        assert!(answer.len() <= capacity);
        if capacity == RESPONSE_BUFFER_SIZE && decode(&answer).as_map().is_none_or(|map| map[0].0 != "Error".into()) {
            answered += 1;
        }
        if round % 1000 == 0 {
            nsm.reset();
        }
    }
    assert!(answered > 1000, "only {answered} mutated requests were carried out");
}

#[test]
fn module_can_be_moved_to_the_thread_of_its_device() {
    fn assert_send<T: Send>(_: &T) {}
    assert_send(&nsm());
}
