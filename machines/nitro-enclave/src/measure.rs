//! What an image's PCRs will be, for verifiers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use eif::{BootImage, Measurements};

use crate::EnclaveError;

/// The PCRs that an enclave of this image has, if nothing is appended to it: PCR0 to PCR2, and PCR8 where it is signed.
///
/// # Errors
/// [`EnclaveError::File`] and [`EnclaveError::Image`].
pub fn measured_pcrs(path: &Path) -> Result<BTreeMap<u16, Vec<u8>>, EnclaveError> {
    let file = |source| EnclaveError::File { what: "image", path: path.to_owned(), source };
    let reader = BufReader::new(File::open(path).map_err(file)?);
    let image = BootImage::read(reader).map_err(|source| EnclaveError::Image { path: path.to_owned(), source })?;
    // Destructured, so that a new measurement cannot be forgotten here.
    let Measurements { pcr0, pcr1, pcr2, pcr8 } = image.measurements();
    let always = [(0, Some(pcr0)), (1, Some(pcr1)), (2, Some(pcr2)), (8, pcr8)];
    Ok(always.into_iter().filter_map(|(index, value)| Some((index, value?.to_vec()))).collect())
}
