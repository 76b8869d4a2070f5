//! The Nitro Secure Module (NSM) as a pure model: request bytes in, response bytes out.
//!
//! Modelled is the module that an AWS Nitro Enclave reaches through `/dev/nsm`, interface version 1.0.0: a bank of 32
//! SHA-384 platform configuration registers ([`PcrBank`]) and the seven commands over it ([`Nsm::handle`]), encoded in
//! CBOR as the `aws-nitro-enclaves-nsm-api` crate does. Where AWS's service and QEMU's `virtio-nsm` differ, the answers
//! are those of the service.
//!
//! Deliberately missing: the virtqueue that carries the messages (the `virtio` crate), and the signer of attestation
//! documents. Signing is behind [`Attestor`]; a module without one checks an Attestation request as the real module
//! does and then answers `InternalError`, because it has no key to sign with.
//!
//! There are no threads, no clock and no devices here. The only outside influence is the source of random bytes, which
//! can be replaced ([`Nsm::with_entropy`]).
//!
//! ```
//! use nsm::{BootMeasurements, ModuleId, Nsm, PcrBank, RESPONSE_BUFFER_SIZE};
//!
//! let measured = BootMeasurements::new([1; 48], [2; 48], [3; 48]).with_instance_id("i-1234567890abcdef0");
//! let module_id = ModuleId::new("i-1234567890abcdef0", 0x1234)?;
//! let mut nsm = Nsm::new(module_id, PcrBank::boot(&measured));
//!
//! let answer = nsm.handle(b"\x69GetRandom", RESPONSE_BUFFER_SIZE);
//! assert!(answer.starts_with(b"\xa1\x69GetRandom\xa1\x66random"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod attestation;
mod module;
mod module_id;
mod pcr;
mod request;
mod response;

pub use attestation::{AttestationContext, AttestationRequest, Attestor};
pub use module::{Entropy, MAX_REQUEST_SIZE, Nsm, RANDOM_SIZE, RESPONSE_BUFFER_SIZE};
pub use module_id::{DEFAULT_INSTANCE_ID, ModuleId, ModuleIdError};
pub use pcr::{BOOT_PCRS, BootMeasurements, Digest, PCR_COUNT, PcrBank, ZERO_DIGEST, extend};
pub use response::ErrorCode;
