//! Requests: CBOR into [`Request`].
//!
//! The encoding is serde's externally tagged one: a command without arguments is a text, one with arguments a map of one
//! entry, from the command's name to a map of arguments. The rules below were observed on AWS's module: whatever is not
//! a request (invalid CBOR, unknown command, more than one command, missing or mistyped argument, an index that does not
//! fit 16 bits) is InvalidOperation; arguments that the command does not know are ignored. That an argument given twice,
//! or bytes after the request, are InvalidOperation too is how the interface's own crate decodes.

use ciborium::Value;

use crate::attestation::AttestationRequest;
use crate::response::ErrorCode;

/// How deeply values may nest. The deepest request needs three levels; the rest is room for arguments that are ignored,
/// and the limit keeps a hostile one from exhausting the stack.
const MAX_DEPTH: usize = 128;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    DescribeNsm,
    DescribePcr { index: u16 },
    ExtendPcr { index: u16, data: Vec<u8> },
    LockPcr { index: u16 },
    LockPcrs { range: u16 },
    GetRandom,
    Attestation(AttestationRequest),
}

impl Request {
    /// Decodes one request. Allocates in proportion to `bytes`, whatever lengths are claimed in it.
    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, ErrorCode> {
        let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, MAX_DEPTH)
            .map_err(|_| ErrorCode::InvalidOperation)?;
        if !bytes.is_empty() {
            return Err(ErrorCode::InvalidOperation);
        }
        match value {
            Value::Text(command) => Self::without_arguments(&command),
            Value::Map(entries) => {
                let [(Value::Text(command), Value::Map(arguments))] =
                    <[_; 1]>::try_from(entries).map_err(|_| ErrorCode::InvalidOperation)?
                else {
                    return Err(ErrorCode::InvalidOperation);
                };
                Self::with_arguments(&command, Arguments(arguments))
            }
            _ => Err(ErrorCode::InvalidOperation),
        }
    }

    fn without_arguments(command: &str) -> Result<Self, ErrorCode> {
        match command {
            "DescribeNSM" => Ok(Self::DescribeNsm),
            "GetRandom" => Ok(Self::GetRandom),
            _ => Err(ErrorCode::InvalidOperation),
        }
    }

    fn with_arguments(command: &str, mut arguments: Arguments) -> Result<Self, ErrorCode> {
        match command {
            "DescribePCR" => Ok(Self::DescribePcr { index: arguments.u16("index")? }),
            "ExtendPCR" => Ok(Self::ExtendPcr {
                index: arguments.u16("index")?,
                data: arguments.bytes("data")?.ok_or(ErrorCode::InvalidOperation)?,
            }),
            "LockPCR" => Ok(Self::LockPcr { index: arguments.u16("index")? }),
            "LockPCRs" => Ok(Self::LockPcrs { range: arguments.u16("range")? }),
            // DEVNOTE: no single field has a limit of its own, only the request as a whole (4,096 bytes). AWS's
            // docs/attestation_process.md contradicts itself: section 2.2 gives each of the three up to 1,024 bytes, section 3.2 user_data and nonce 512
            // (aws-nitro-enclaves-nsm-api issue 52). `nsm-check` sends 1,024 in each, and real modules sign 1,025 (hf/nitrite pull requests 3 and 5). It is
            // for verifiers to hold documents to the grammar, as `attestation`'s does from 1,025 bytes on; an error here would not be the real module's.
            "Attestation" => Ok(Self::Attestation(AttestationRequest {
                user_data: arguments.bytes("user_data")?,
                nonce: arguments.bytes("nonce")?,
                public_key: arguments.bytes("public_key")?,
            })),
            _ => Err(ErrorCode::InvalidOperation),
        }
    }
}

struct Arguments(Vec<(Value, Value)>);

impl Arguments {
    /// Takes the argument of that name out; `None` if there is none.
    fn take(&mut self, name: &str) -> Result<Option<Value>, ErrorCode> {
        let is_named = |(key, _): &(Value, Value)| key.as_text() == Some(name);
        let Some(position) = self.0.iter().position(is_named) else {
            return Ok(None);
        };
        let (_, value) = self.0.swap_remove(position);
        if self.0.iter().any(is_named) {
            return Err(ErrorCode::InvalidOperation);
        }
        Ok(Some(value))
    }

    fn u16(&mut self, name: &str) -> Result<u16, ErrorCode> {
        match self.take(name)? {
            Some(Value::Integer(integer)) => integer.try_into().map_err(|_| ErrorCode::InvalidOperation),
            _ => Err(ErrorCode::InvalidOperation),
        }
    }

    /// A byte string; a text stands for its UTF-8 bytes, null and a missing argument for none.
    fn bytes(&mut self, name: &str) -> Result<Option<Vec<u8>>, ErrorCode> {
        match self.take(name)? {
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Text(text)) => Ok(Some(text.into_bytes())),
            Some(Value::Null) | None => Ok(None),
            Some(_) => Err(ErrorCode::InvalidOperation),
        }
    }
}
