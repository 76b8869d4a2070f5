//! PEM files that a user names: an authority with its key, and a root certificate to trust.

use attestation::{Authority, certificate_from_pem};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "attestation-pem", seeds, run, longest: 4096 };

fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = certificate_from_pem(&text).map_err(|error| error.to_string());
    if let Ok(authority) = Authority::from_pem(&text) {
        let pem = authority.to_pem().expect("what was read can be written");
        let again = Authority::from_pem(&pem).expect("what was written can be read");
        assert_eq!(again.root(), authority.root());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let authority = Authority::from_secret(b"fuzz").expect("every secret makes an authority");
    let root = authority.root_pem().expect("it can be written");
    let both = authority.to_pem().expect("it can be written");
    let key_first = both.strip_prefix(&root).unwrap_or_default().to_owned() + &root;
    vec![
        root.into_bytes(),
        both.into_bytes(),
        key_first.into_bytes(),
        b"-----BEGIN A-----\nAA==\n-----END A-----".to_vec(),
    ]
}
