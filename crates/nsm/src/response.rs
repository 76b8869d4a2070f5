//! Responses: [`Response`] into CBOR, fields in the order in which AWS's interface crate declares them.

use ciborium::Value;
use thiserror::Error;

use crate::pcr::Digest;

/// What the module answers instead of a result.
///
/// The interface knows one more, `InvalidResponse`; it is raised in the enclave, for an answer that does not belong to
/// the request, and never sent by a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ErrorCode {
    /// An argument has a value that the command does not take.
    #[error("an argument has a value that the command does not take")]
    InvalidArgument,
    /// The PCR index or range lies past the bank.
    #[error("the pcr index lies past the bank")]
    InvalidIndex,
    /// The PCR is locked.
    #[error("the pcr is locked")]
    ReadOnlyIndex,
    /// What was sent is not a request.
    #[error("the request is malformed or of an unknown kind")]
    InvalidOperation,
    /// The operation was carried out, but its answer does not fit the response buffer.
    #[error("the response buffer is too small for the answer")]
    BufferTooSmall,
    /// The request is longer than [`MAX_REQUEST_SIZE`](crate::MAX_REQUEST_SIZE).
    #[error("the request is too long")]
    InputTooLarge,
    /// The module itself failed.
    #[error("the module failed")]
    InternalError,
}

impl ErrorCode {
    /// The error's name in the interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::InvalidIndex => "InvalidIndex",
            Self::ReadOnlyIndex => "ReadOnlyIndex",
            Self::InvalidOperation => "InvalidOperation",
            Self::BufferTooSmall => "BufferTooSmall",
            Self::InputTooLarge => "InputTooLarge",
            Self::InternalError => "InternalError",
        }
    }
}

/// Interface version 1.0.0, as `DescribeNSM` reports it.
const VERSION: [(&str, u16); 3] = [("version_major", 1), ("version_minor", 0), ("version_patch", 0)];

#[derive(Debug)]
pub(crate) enum Response {
    DescribeNsm { module_id: String, max_pcrs: u16, locked_pcrs: Vec<u16> },
    DescribePcr { lock: bool, data: Digest },
    ExtendPcr { data: Digest },
    LockPcr,
    LockPcrs,
    GetRandom { random: Vec<u8> },
    Attestation { document: Vec<u8> },
    Error(ErrorCode),
}

impl Response {
    /// The answer's bytes, every length definite and every integer in its shortest form.
    ///
    /// Linux's hwrng driver relies on that: it compares the start of a GetRandom answer byte for byte with
    /// `A1 69 "GetRandom" A1 66 "random"` and then expects a byte string of definite length
    /// (drivers/misc/nsm.c, `parse_resp_get_random`).
    pub(crate) fn encode(self) -> Vec<u8> {
        let value = match self {
            Self::DescribeNsm { module_id, max_pcrs, locked_pcrs } => {
                let mut fields = VERSION.map(|(name, number)| (name, Value::from(number))).to_vec();
                fields.push(("module_id", Value::Text(module_id)));
                fields.push(("max_pcrs", Value::from(max_pcrs)));
                fields.push(("locked_pcrs", Value::Array(locked_pcrs.into_iter().map(Value::from).collect())));
                fields.push(("digest", Value::from("SHA384")));
                tagged("DescribeNSM", fields)
            }
            Self::DescribePcr { lock, data } => {
                tagged("DescribePCR", [("lock", Value::Bool(lock)), ("data", Value::Bytes(data.to_vec()))])
            }
            Self::ExtendPcr { data } => tagged("ExtendPCR", [("data", Value::Bytes(data.to_vec()))]),
            Self::LockPcr => Value::from("LockPCR"),
            Self::LockPcrs => Value::from("LockPCRs"),
            Self::GetRandom { random } => tagged("GetRandom", [("random", Value::Bytes(random))]),
            Self::Attestation { document } => tagged("Attestation", [("document", Value::Bytes(document))]),
            Self::Error(code) => Value::Map(vec![(Value::from("Error"), Value::from(code.name()))]),
        };
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).expect("writing to memory does not fail, and a Value is always CBOR");
        bytes
    }
}

/// `{name: {field: value, ...}}`
fn tagged(name: &str, fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let fields = fields.into_iter().map(|(field, value)| (Value::from(field), value)).collect();
    Value::Map(vec![(Value::from(name), Value::Map(fields))])
}
