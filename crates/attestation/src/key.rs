//! Keys that are derived from another secret, so that the same secret gives the same certificates.

use p384::SecretKey;
use p384::ecdsa::SigningKey;
use sha2::{Digest, Sha384};

/// The P-384 key that `secret` and `context` name. `context` is a list of texts, so that no two lists say the same.
pub(crate) fn derive(secret: &[u8], context: &[&str]) -> SigningKey {
    // A digest is no key only if it is zero or above the curve's order, which happens once in 2^190 tries; then the next one serves.
    let mut attempt = 0u32;
    loop {
        let digest = digest(secret, context, attempt);
        if let Ok(key) = SecretKey::from_slice(&digest) {
            return key.into();
        }
        attempt = attempt.wrapping_add(1);
    }
}

/// Bytes that `secret` and `context` name, for names and serial numbers; nothing about the secret can be learnt from them.
pub(crate) fn identifier<const N: usize>(secret: &[u8], context: &[&str]) -> [u8; N] {
    const { assert!(N <= 48) };
    let digest = digest(secret, &[&["identifier"], context].concat(), 0);
    std::array::from_fn(|index| digest[index])
}

fn digest(secret: &[u8], context: &[&str], attempt: u32) -> [u8; 48] {
    let mut hash = Sha384::new();
    hash.update(b"vmm attestation key 1");
    let parts = [secret].into_iter().chain(context.iter().map(|text| text.as_bytes()));
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(attempt.to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_the_secret_and_on_each_part_of_the_context() {
        let key = |secret: &[u8], context: &[&str]| derive(secret, context).to_bytes();
        assert_eq!(key(b"one", &["a", "b"]), key(b"one", &["a", "b"]));
        assert_ne!(key(b"one", &["a", "b"]), key(b"two", &["a", "b"]));
        assert_ne!(key(b"one", &["a", "b"]), key(b"one", &["ab"]));
        assert_ne!(key(b"one", &["a", "b"])[..], identifier::<48>(b"one", &["a", "b"]));
    }
}
