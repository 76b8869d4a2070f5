//! PEM files: finding the blocks in one, whatever else it holds.

use x509_cert::Certificate;
use x509_cert::der::DecodePem;

use crate::authority::AuthorityError;

/// One block, with its lines from BEGIN to END.
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    pub(crate) text: &'a str,
}

/// The blocks of a PEM file in order. A block without an end is not one.
pub(crate) fn blocks(text: &str) -> Vec<Block<'_>> {
    const BEGIN: &str = "-----BEGIN ";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        rest = &rest[start..];
        let Some((label, _)) = rest[BEGIN.len()..].split_once("-----") else { break };
        let end = format!("-----END {label}-----");
        let Some(at) = rest.find(&end) else { break };
        let (block, behind) = rest.split_at(at + end.len());
        found.push(Block { label, text: block });
        rest = behind;
    }
    found
}

/// The first certificate of a PEM file.
///
/// # Errors
/// [`AuthorityError::NoCertificate`] or [`AuthorityError::Certificate`].
pub fn certificate_from_pem(text: &str) -> Result<Certificate, AuthorityError> {
    let block = blocks(text).into_iter().find(|block| block.label == "CERTIFICATE");
    let block = block.ok_or(AuthorityError::NoCertificate)?;
    Certificate::from_pem(block.text).map_err(AuthorityError::Certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let text = "Bag\n-----BEGIN A-----\nx\n-----END A-----\nmore\n-----BEGIN B C-----\ny\n-----END B C-----\n-----BEGIN D-----";
        let labels: Vec<&str> = blocks(text).iter().map(|block| block.label).collect();
        assert_eq!(labels, ["A", "B C"]);
        assert_eq!(blocks(text)[0].text, "-----BEGIN A-----\nx\n-----END A-----");
    }

    #[test]
    fn a_file_without_a_certificate_says_so() {
        assert!(matches!(certificate_from_pem("hello"), Err(AuthorityError::NoCertificate)));
    }
}
