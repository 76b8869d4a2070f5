//! Attestation documents and their verifier: COSE, CBOR and X.509 from whoever hands one in. What is signed by our own root, and not by its leaf in
//! the form of a document, must never be found to hold.

use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use attestation::{Authority, Check, Expectations, MapForm, Payload, SignedDocument, Signer, verify};
use nsm::{AttestationContext, AttestationRequest, ModuleId, PcrBank};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "attestation-document", seeds, run, longest: 8192 };

/// 2026-01-01 00:00:00 UTC, in seconds.
const NOW: u64 = 1_767_225_600;

struct World {
    authority: Authority,
    documents: Vec<Vec<u8>>,
    payloads: Vec<Payload>,
}

/// The authority, and every document that it has signed. Made once, as signing takes a thousand times as long as reading.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let authority = Authority::from_secret(b"fuzz").expect("every secret makes an authority");
        let field = |text: &str| Some(text.as_bytes().to_vec());
        let requests = [
            AttestationRequest::default(),
            AttestationRequest { user_data: field("data"), nonce: field("nonce"), public_key: field("key") },
        ];
        let bank = PcrBank::debug_boot();
        let module_id = ModuleId::with_default_instance(1);
        let mut documents = Vec::new();
        for form in [MapForm::Definite, MapForm::Indefinite] {
            let clock = Box::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
            let mut signer = Signer::new(authority.clone(), form).with_clock(clock);
            for request in &requests {
                let context = AttestationContext { module_id: &module_id, pcrs: &bank };
                documents.push(signer.sign(request, context).expect("the year can be written"));
            }
        }
        let read = |document: &Vec<u8>| SignedDocument::decode(document).expect("we signed it").payload().clone();
        World { payloads: documents.iter().map(read).collect(), documents, authority }
    })
}

fn run(input: &[u8]) {
    let world = world();
    let expected = Expectations { now: NOW, nonce: Some(b"nonce".to_vec()), ..Expectations::default() };
    let report = verify(input, world.authority.root(), &expected);
    // Whoever reads a report prints it.
    for finding in &report.findings {
        let _ = match &finding.outcome {
            Ok(()) => finding.check.to_string(),
            Err(refusal) => refusal.to_string(),
        };
    }
    let signature_holds =
        report.findings.iter().any(|finding| finding.check == Check::Signature && finding.outcome.is_ok());
    if report.holds() || signature_holds && chain_holds(&report) {
        let payload = report.payload.as_ref().expect("what was verified was read");
        assert!(world.payloads.contains(payload), "a forged document holds");
    }
}

fn chain_holds(report: &attestation::Report) -> bool {
    [Check::Root, Check::Chain]
        .iter()
        .all(|check| report.findings.iter().any(|finding| finding.check == *check && finding.outcome.is_ok()))
}

fn seeds() -> Vec<Vec<u8>> {
    world().documents.clone()
}
