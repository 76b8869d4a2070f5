//! The bank of platform configuration registers (PCRs): 32 SHA-384 values, each with a lock.
//!
//! PCR0 to PCR15 belong to the hypervisor. It fills and locks them before the enclave starts; PCR16 to PCR31 are the
//! enclave's own, zero and open. What each of the first holds is in AWS's "Cryptographic attestation" chapter of the
//! Nitro Enclaves user guide.

use sha2::{Digest as _, Sha384};

use crate::response::ErrorCode;

/// How many PCRs the bank has.
pub const PCR_COUNT: u16 = 32;

/// How many PCRs, counted from PCR0, the hypervisor owns. They are locked before the enclave starts.
pub const BOOT_PCRS: u16 = 16;

/// A SHA-384 digest, the value of one PCR.
pub type Digest = [u8; 48];

/// The value of a PCR that was never extended.
pub const ZERO_DIGEST: Digest = [0; 48];

/// The value of a PCR after `data` was extended into `old`: `SHA384(old || data)`.
///
/// `data` may be empty, and need not be a digest.
pub fn extend(old: &Digest, data: &[u8]) -> Digest {
    Sha384::new().chain_update(old).chain_update(data).finalize().into()
}

/// What the hypervisor measures before the enclave starts, from which [`PcrBank::boot`] is filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootMeasurements {
    /// PCR0: kernel, command line and all ramdisks.
    pub pcr0: Digest,
    /// PCR1: kernel, command line and the first ramdisk.
    pub pcr1: Digest,
    /// PCR2: the ramdisks after the first.
    pub pcr2: Digest,
    /// PCR3: the parent instance's IAM role, see [`with_role_arn`](Self::with_role_arn). Zero if it has none.
    pub pcr3: Digest,
    /// PCR4: the parent instance's ID, see [`with_instance_id`](Self::with_instance_id).
    pub pcr4: Digest,
    /// PCR8: the certificate that signed the image. Zero if the image is not signed.
    pub pcr8: Digest,
}

impl BootMeasurements {
    /// The measurements of an unsigned image, on a parent instance with the [default ID](crate::DEFAULT_INSTANCE_ID)
    /// and no role.
    ///
    /// PCR4 is never left at zero, because AWS's own `nsm-check` asserts that PCR0, PCR1, PCR2 and PCR4 are not.
    pub fn new(pcr0: Digest, pcr1: Digest, pcr2: Digest) -> Self {
        Self { pcr0, pcr1, pcr2, pcr3: ZERO_DIGEST, pcr4: ZERO_DIGEST, pcr8: ZERO_DIGEST }
            .with_instance_id(crate::DEFAULT_INSTANCE_ID)
    }

    /// Sets PCR3 to the measurement of the parent instance's IAM role: `SHA384(48 zeros || arn)`.
    ///
    /// The raw string is extended, not its digest.
    #[must_use]
    pub fn with_role_arn(mut self, arn: &str) -> Self {
        self.pcr3 = extend(&ZERO_DIGEST, arn.as_bytes());
        self
    }

    /// Sets PCR4 to the measurement of the parent instance's ID: `SHA384(48 zeros || id)`.
    ///
    /// The raw string is extended, not its digest.
    #[must_use]
    pub fn with_instance_id(mut self, id: &str) -> Self {
        self.pcr4 = extend(&ZERO_DIGEST, id.as_bytes());
        self
    }

    /// Sets PCR8, the measurement of the certificate that signed the image.
    #[must_use]
    pub fn with_certificate(mut self, pcr8: Digest) -> Self {
        self.pcr8 = pcr8;
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pcr {
    value: Digest,
    locked: bool,
}

/// The 32 PCRs of one module.
///
/// An index past the bank is [`ErrorCode::InvalidIndex`] everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrBank {
    pcrs: [Pcr; PCR_COUNT as usize],
}

impl PcrBank {
    /// The bank as an enclave finds it: PCR0 to PCR15 filled and locked, PCR16 to PCR31 zero and open.
    pub fn boot(measurements: &BootMeasurements) -> Self {
        // Destructured, so that a new measurement cannot be forgotten here.
        let BootMeasurements { pcr0, pcr1, pcr2, pcr3, pcr4, pcr8 } = measurements;
        let mut bank = Self::debug_boot();
        for (index, value) in [(0, pcr0), (1, pcr1), (2, pcr2), (3, pcr3), (4, pcr4), (8, pcr8)] {
            bank.pcrs[index].value = *value;
        }
        bank
    }

    /// The bank of an enclave in debug mode: as [`boot`](Self::boot), but PCR0 to PCR15 are zero.
    ///
    /// A debug enclave's console can be read by the parent, so AWS gives it measurements that no key policy allows.
    pub fn debug_boot() -> Self {
        let mut bank = Self { pcrs: [Pcr { value: ZERO_DIGEST, locked: false }; PCR_COUNT as usize] };
        for pcr in &mut bank.pcrs[..usize::from(BOOT_PCRS)] {
            pcr.locked = true;
        }
        bank
    }

    /// The value of a PCR.
    pub fn value(&self, index: u16) -> Result<&Digest, ErrorCode> {
        self.pcr(index).map(|pcr| &pcr.value)
    }

    /// Whether a PCR can no longer be extended.
    pub fn is_locked(&self, index: u16) -> Result<bool, ErrorCode> {
        self.pcr(index).map(|pcr| pcr.locked)
    }

    /// The locked PCRs, by rising index, with their values. An attestation document lists exactly these.
    pub fn locked(&self) -> impl Iterator<Item = (u16, &Digest)> {
        (0u16..).zip(&self.pcrs).filter(|(_, pcr)| pcr.locked).map(|(index, pcr)| (index, &pcr.value))
    }

    /// Extends `data` into a PCR and returns the new value; [`ErrorCode::ReadOnlyIndex`] if it is locked.
    pub fn extend(&mut self, index: u16, data: &[u8]) -> Result<Digest, ErrorCode> {
        let pcr = self.open_pcr(index)?;
        pcr.value = extend(&pcr.value, data);
        Ok(pcr.value)
    }

    /// Locks a PCR; [`ErrorCode::ReadOnlyIndex`] if it already is.
    pub fn lock(&mut self, index: u16) -> Result<(), ErrorCode> {
        self.open_pcr(index)?.locked = true;
        Ok(())
    }

    /// Locks the PCRs below `range`, which is at most 32. PCRs that are already locked stay so, without an error.
    pub fn lock_range(&mut self, range: u16) -> Result<(), ErrorCode> {
        let pcrs = self.pcrs.get_mut(..usize::from(range)).ok_or(ErrorCode::InvalidIndex)?;
        for pcr in pcrs {
            pcr.locked = true;
        }
        Ok(())
    }

    fn pcr(&self, index: u16) -> Result<&Pcr, ErrorCode> {
        self.pcrs.get(usize::from(index)).ok_or(ErrorCode::InvalidIndex)
    }

    fn open_pcr(&mut self, index: u16) -> Result<&mut Pcr, ErrorCode> {
        let pcr = self.pcrs.get_mut(usize::from(index)).ok_or(ErrorCode::InvalidIndex)?;
        if pcr.locked { Err(ErrorCode::ReadOnlyIndex) } else { Ok(pcr) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank() -> PcrBank {
        PcrBank::boot(&BootMeasurements::new([1; 48], [2; 48], [3; 48]))
    }

    #[test]
    fn boot_locks_the_first_sixteen_and_leaves_the_rest_zero_and_open() {
        let bank = bank();
        for index in 0..BOOT_PCRS {
            assert_eq!(bank.is_locked(index), Ok(true), "PCR{index}");
        }
        for index in BOOT_PCRS..PCR_COUNT {
            assert_eq!(bank.is_locked(index), Ok(false), "PCR{index}");
            assert_eq!(bank.value(index), Ok(&ZERO_DIGEST), "PCR{index}");
        }
    }

    #[test]
    fn boot_satisfies_what_nsm_check_asserts() {
        let bank = bank();
        for index in [0, 1, 2, 4] {
            assert_ne!(bank.value(index), Ok(&ZERO_DIGEST), "PCR{index}");
        }
        for index in [3].into_iter().chain(5..PCR_COUNT) {
            assert_eq!(bank.value(index), Ok(&ZERO_DIGEST), "PCR{index}");
        }
    }

    #[test]
    fn role_instance_and_certificate_fill_their_own_registers() {
        let measured = BootMeasurements::new([1; 48], [2; 48], [3; 48])
            .with_role_arn("arn:aws:iam::123456789012:role/Webserver")
            .with_instance_id("i-1234567890abcdef0")
            .with_certificate([8; 48]);
        let bank = PcrBank::boot(&measured);
        let hash = |text: &str| -> Digest {
            let mut input = vec![0u8; 48];
            input.extend_from_slice(text.as_bytes());
            Sha384::digest(&input).into()
        };
        assert_eq!(bank.value(3), Ok(&hash("arn:aws:iam::123456789012:role/Webserver")));
        assert_eq!(bank.value(4), Ok(&hash("i-1234567890abcdef0")));
        assert_eq!(bank.value(8), Ok(&[8; 48]));
    }

    #[test]
    fn debug_boot_is_zero_and_still_locked() {
        let bank = PcrBank::debug_boot();
        for index in 0..PCR_COUNT {
            assert_eq!(bank.value(index), Ok(&ZERO_DIGEST));
            assert_eq!(bank.is_locked(index), Ok(index < BOOT_PCRS));
        }
    }

    #[test]
    fn locked_lists_rising_indices() {
        let mut bank = bank();
        bank.lock(20).unwrap();
        let indices: Vec<u16> = bank.locked().map(|(index, _)| index).collect();
        assert_eq!(indices, (0..16).chain([20]).collect::<Vec<u16>>());
    }
}
