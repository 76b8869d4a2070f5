//! The module's name, `i-<17 hex digits>-enc<16 hex digits>`: the parent instance's ID and the enclave's.

use std::fmt;

use thiserror::Error;

/// The parent instance's ID where the user gives none.
///
/// There has to be one: PCR4 is its measurement, and AWS's own `nsm-check` asserts that PCR4 is not zero.
pub const DEFAULT_INSTANCE_ID: &str = "i-0123456789abcdef0";

const INSTANCE_DIGITS: usize = 17;
const ENCLAVE_DIGITS: usize = 16;

/// Why a text is not a module ID or an instance ID.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModuleIdError {
    /// The parent instance's ID is not of the form that EC2 gives out.
    #[error("instance id {found:?} is not of the form i-<17 lowercase hex digits>, as in {DEFAULT_INSTANCE_ID}")]
    InstanceId {
        /// The text that was given.
        found: String,
    },
    /// The whole is not an instance ID and an enclave ID.
    #[error("module id {found:?} is not of the form i-<17 lowercase hex digits>-enc<16 lowercase hex digits>")]
    ModuleId {
        /// The text that was given.
        found: String,
    },
}

/// A module's name, checked to be of the form that the Nitro hypervisor gives out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModuleId(String);

impl ModuleId {
    /// Joins a parent instance's ID (`i-<17 hex digits>`) and a 64-bit enclave ID.
    pub fn new(instance_id: &str, enclave_id: u64) -> Result<Self, ModuleIdError> {
        if !is_instance_id(instance_id) {
            return Err(ModuleIdError::InstanceId { found: instance_id.to_owned() });
        }
        Ok(Self(format!("{instance_id}-enc{enclave_id:016x}")))
    }

    /// Takes a whole module ID as the user wrote it.
    pub fn parse(text: &str) -> Result<Self, ModuleIdError> {
        match text.split_once("-enc") {
            Some((instance, enclave)) if is_instance_id(instance) && is_hex(enclave, ENCLAVE_DIGITS) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(ModuleIdError::ModuleId { found: text.to_owned() }),
        }
    }

    /// A module ID on the [default parent instance](DEFAULT_INSTANCE_ID).
    pub fn with_default_instance(enclave_id: u64) -> Self {
        Self(format!("{DEFAULT_INSTANCE_ID}-enc{enclave_id:016x}"))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_instance_id(text: &str) -> bool {
    text.strip_prefix("i-").is_some_and(|digits| is_hex(digits, INSTANCE_DIGITS))
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_pads_the_enclave_id_to_sixteen_digits() {
        let id = ModuleId::new("i-1234567890abcdef0", 0xbeef).unwrap();
        assert_eq!(id.as_str(), "i-1234567890abcdef0-enc000000000000beef");
    }

    #[test]
    fn parse_takes_what_new_makes() {
        let id = ModuleId::with_default_instance(u64::MAX);
        assert_eq!(ModuleId::parse(id.as_str()), Ok(id));
    }

    #[test]
    fn default_instance_id_is_well_formed() {
        assert!(is_instance_id(DEFAULT_INSTANCE_ID));
    }

    #[test]
    fn ids_of_other_forms_are_refused() {
        for text in ["", "i-", "i-1234", "i-1234567890ABCDEF0", "x-1234567890abcdef0", "i-1234567890abcdef01"] {
            assert!(ModuleId::new(text, 1).is_err(), "{text}");
        }
        for text in ["i-1234-enc5678", "i-1234567890abcdef0", "i-1234567890abcdef0-enc12", "-enc"] {
            assert!(ModuleId::parse(text).is_err(), "{text}");
        }
    }
}
