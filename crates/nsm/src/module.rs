//! The module itself: its state, and what each request does to it.

use std::io;

use crate::attestation::{AttestationContext, AttestationRequest, Attestor};
use crate::module_id::ModuleId;
use crate::pcr::{PCR_COUNT, PcrBank};
use crate::request::Request;
use crate::response::{ErrorCode, Response};

/// The longest request in bytes (`NSM_REQUEST_MAX_SIZE` of Linux's drivers/misc/nsm.c).
pub const MAX_REQUEST_SIZE: usize = 0x1000;

/// The response buffer in bytes that a driver provides (`NSM_RESPONSE_MAX_SIZE` of Linux's drivers/misc/nsm.c).
pub const RESPONSE_BUFFER_SIZE: usize = 0x3000;

/// How many random bytes a GetRandom answer carries.
pub const RANDOM_SIZE: usize = 256;

/// Where random bytes come from: fills the whole slice or fails.
pub type Entropy = Box<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>;

/// A Nitro Secure Module.
pub struct Nsm {
    module_id: ModuleId,
    boot: PcrBank,
    bank: PcrBank,
    entropy: Entropy,
    attestor: Option<Box<dyn Attestor>>,
}

impl Nsm {
    /// A module in its boot state, with the host's random bytes and no signer of attestation documents.
    pub fn new(module_id: ModuleId, boot: PcrBank) -> Self {
        Self { module_id, bank: boot.clone(), boot, entropy: Box::new(host_entropy), attestor: None }
    }

    /// Replaces the source of random bytes.
    #[must_use]
    pub fn with_entropy(mut self, entropy: Entropy) -> Self {
        self.entropy = entropy;
        self
    }

    /// Gives the module a signer of attestation documents.
    #[must_use]
    pub fn with_attestor(mut self, attestor: Box<dyn Attestor>) -> Self {
        self.attestor = Some(attestor);
        self
    }

    /// The module's name.
    pub fn module_id(&self) -> &ModuleId {
        &self.module_id
    }

    /// The PCRs as they are now.
    pub fn pcrs(&self) -> &PcrBank {
        &self.bank
    }

    /// Puts the PCRs back into their boot state, as a reset of the enclave does.
    pub fn reset(&mut self) {
        // Destructured, so that a new piece of state has to be considered here.
        let Self { module_id: _, boot, bank, entropy: _, attestor: _ } = self;
        bank.clone_from(boot);
    }

    /// Carries out one request and returns the answer, at most `response_capacity` bytes.
    ///
    /// Every request has an answer; what cannot be done is answered by `{"Error": name}`. If the answer does not fit,
    /// the operation has been carried out all the same, and `BufferTooSmall` says so; if even that does not fit, the
    /// answer is empty.
    pub fn handle(&mut self, request: &[u8], response_capacity: usize) -> Vec<u8> {
        let response = self.answer(request).unwrap_or_else(Response::Error).encode();
        if response.len() <= response_capacity {
            return response;
        }
        let error = Response::Error(ErrorCode::BufferTooSmall).encode();
        if error.len() <= response_capacity { error } else { Vec::new() }
    }

    fn answer(&mut self, request: &[u8]) -> Result<Response, ErrorCode> {
        if request.len() > MAX_REQUEST_SIZE {
            return Err(ErrorCode::InputTooLarge);
        }
        match Request::decode(request)? {
            Request::DescribeNsm => Ok(Response::DescribeNsm {
                module_id: self.module_id.as_str().to_owned(),
                max_pcrs: PCR_COUNT,
                locked_pcrs: self.bank.locked().map(|(index, _)| index).collect(),
            }),
            Request::DescribePcr { index } => {
                Ok(Response::DescribePcr { lock: self.bank.is_locked(index)?, data: *self.bank.value(index)? })
            }
            Request::ExtendPcr { index, data } => Ok(Response::ExtendPcr { data: self.bank.extend(index, &data)? }),
            Request::LockPcr { index } => self.bank.lock(index).map(|()| Response::LockPcr),
            Request::LockPcrs { range } => self.bank.lock_range(range).map(|()| Response::LockPcrs),
            Request::GetRandom => self.random(),
            Request::Attestation(request) => self.attest(&request),
        }
    }

    fn random(&mut self) -> Result<Response, ErrorCode> {
        let mut random = vec![0; RANDOM_SIZE];
        // A guest seeds its own generator with these bytes, so a failure must never be papered over with zeros.
        (self.entropy)(&mut random).map_err(|_| ErrorCode::InternalError)?;
        Ok(Response::GetRandom { random })
    }

    fn attest(&mut self, request: &AttestationRequest) -> Result<Response, ErrorCode> {
        let attestor = self.attestor.as_mut().ok_or(ErrorCode::InternalError)?;
        let context = AttestationContext { module_id: &self.module_id, pcrs: &self.bank };
        Ok(Response::Attestation { document: attestor.attest(request, context)? })
    }
}

fn host_entropy(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
