//! The verifier over documents of our own signer, whole and tampered with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use nsm::{AttestationContext, AttestationRequest, BootMeasurements, ModuleId, PcrBank};

use super::*;
use crate::{Authority, LEAF_LIFETIME, MapForm, Signer};

/// 2026-01-02 03:04:05 UTC.
const NOW: u64 = 1_767_323_045;

const NONCE: &[u8] = b"fresh";

fn authority() -> Authority {
    Authority::from_secret(b"test seed").unwrap()
}

fn document(form: MapForm) -> Vec<u8> {
    let mut signer = Signer::new(authority(), form).with_clock(Box::new(|| UNIX_EPOCH + Duration::from_secs(NOW)));
    let bank = PcrBank::boot(&BootMeasurements::new([1; 48], [2; 48], [3; 48]));
    let request = AttestationRequest { nonce: Some(NONCE.to_vec()), ..Default::default() };
    let module_id = ModuleId::with_default_instance(7);
    signer.sign(&request, AttestationContext { module_id: &module_id, pcrs: &bank }).unwrap()
}

fn expectations() -> Expectations {
    Expectations { now: NOW, nonce: Some(NONCE.to_vec()), pcrs: [(0, vec![1; 48])].into() }
}

fn failed(report: &Report) -> Vec<Check> {
    report.findings.iter().filter(|finding| finding.outcome.is_err()).map(|finding| finding.check).collect()
}

#[test]
fn our_own_documents_hold_in_both_forms_and_with_a_tag() {
    for form in [MapForm::Definite, MapForm::Indefinite] {
        let document = document(form);
        let report = verify(&document, authority().root(), &expectations());
        assert!(report.holds(), "{:?}", report.findings);
        assert_eq!(report.findings.len(), 7);
        let tagged = [&[0xd2], document.as_slice()].concat();
        assert!(verify(&tagged, authority().root(), &expectations()).holds());
    }
}

#[test]
fn another_root_is_refused() {
    let other = Authority::from_secret(b"another seed").unwrap();
    let report = verify(&document(MapForm::Definite), other.root(), &expectations());
    assert_eq!(failed(&report), [Check::Root, Check::Chain]);
}

#[test]
fn a_leaf_is_refused_before_and_after_its_three_hours() {
    let document = document(MapForm::Definite);
    for now in [NOW - LEAF_LIFETIME, NOW + LEAF_LIFETIME] {
        let report = verify(&document, authority().root(), &Expectations { now, ..expectations() });
        assert_eq!(failed(&report), [Check::Validity]);
    }
}

#[test]
fn another_nonce_and_another_pcr_are_refused_by_name() {
    let document = document(MapForm::Definite);
    let pcrs = [(0, vec![1; 48]), (1, vec![1; 48]), (16, vec![0; 48])].into();
    let expected = Expectations { nonce: Some(b"stale".to_vec()), pcrs, ..expectations() };
    let report = verify(&document, authority().root(), &expected);
    assert_eq!(failed(&report), [Check::Nonce, Check::Pcr(1), Check::Pcr(16)]);
}

#[test]
fn a_change_of_any_byte_is_refused() {
    let document = document(MapForm::Definite);
    let root = authority();
    // Each byte takes a few milliseconds, so a stride that is prime to every length in it stands for all.
    for at in (0..document.len()).step_by(13).chain(document.len() - 96..document.len()) {
        let mut changed = document.clone();
        changed[at] ^= 0x04;
        assert!(!verify(&changed, root.root(), &expectations()).holds(), "byte {at}");
    }
}

#[test]
fn a_leaf_cannot_issue_a_further_certificate() {
    let genuine = SignedDocument::decode(&document(MapForm::Definite)).unwrap().payload().clone();
    let mut certificates = vec![authority().root().clone()];
    for der in genuine.cabundle[1..].iter().chain([&genuine.certificate, &genuine.certificate]) {
        certificates.push(Certificate::from_der(der).unwrap());
    }
    assert!(chain(&certificates).is_err());
    certificates.pop();
    assert!(chain(&certificates).is_ok());
    certificates.remove(2);
    assert!(matches!(chain(&certificates), Err(Refusal::Issuer { index: 2, .. })));
}

#[test]
fn an_authority_is_not_a_leaf() {
    let genuine = SignedDocument::decode(&document(MapForm::Definite)).unwrap().payload().clone();
    let mut certificates = vec![authority().root().clone()];
    certificates.extend(genuine.cabundle[1..].iter().map(|der| Certificate::from_der(der).unwrap()));
    assert!(matches!(chain(&certificates), Err(Refusal::NotALeaf)));
    assert!(chain(&certificates[..1]).is_err());
}

#[test]
fn malformed_documents_are_refused_without_a_panic() {
    let document = document(MapForm::Indefinite);
    let root = authority();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        // Xorshift: repeatable, and good enough to choose bytes with.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..400 {
        let mut bytes = document.clone();
        for _ in 0..1 + random() % 4 {
            let at = random() as usize % bytes.len();
            match random() % 4 {
                0 => bytes[at] = random() as u8,
                1 => bytes.truncate(at.max(1)),
                2 => drop(bytes.drain(at..(at + 5).min(bytes.len()))),
                _ => bytes.insert(at, random() as u8),
            }
            if bytes.is_empty() {
                break;
            }
        }
        if bytes != document {
            assert!(!verify(&bytes, root.root(), &expectations()).holds(), "round {round}");
        }
    }
    for hostile in [
        &b""[..],
        &[0xd2],
        &[0x84, 0x40, 0xa0, 0x40, 0x40],
        &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x81; 4096],
    ] {
        assert_eq!(failed(&verify(hostile, root.root(), &expectations())), [Check::Form]);
    }
}

#[test]
fn a_module_that_runs_for_weeks_signs_documents_that_hold_for_an_hour_and_a_half_each() {
    let clock = Arc::new(AtomicU64::new(NOW));
    let host = Arc::clone(&clock);
    let host = Box::new(move || UNIX_EPOCH + Duration::from_secs(host.load(Ordering::Relaxed)));
    let mut signer = Signer::new(authority(), MapForm::Definite).with_clock(host);
    let (module_id, bank) = (ModuleId::with_default_instance(1), PcrBank::debug_boot());
    let mut leaves = BTreeSet::new();
    // Steps that share no factor with any certificate's period meet each of them at every point.
    for step in 0..20 {
        let now = NOW + step * 183_007;
        clock.store(now, Ordering::Relaxed);
        let context = AttestationContext { module_id: &module_id, pcrs: &bank };
        let document = signer.sign(&AttestationRequest::default(), context).unwrap();
        for at in [now, now + LEAF_LIFETIME / 2] {
            let report = verify(&document, authority().root(), &Expectations { now: at, ..Expectations::default() });
            assert!(report.holds(), "signed at {now}, verified at {at}: {report:?}");
        }
        leaves.insert(SignedDocument::decode(&document).unwrap().payload().certificate.clone());
    }
    assert_eq!(leaves.len(), 20);
}
