//! Every parser that reads what a guest or a stranger wrote, as a function of bytes that must neither panic nor hang.
//!
//! One file a parser, each with a [`Target`] in [`TARGETS`]: its name, the inputs that a fuzzer starts from, and the function. `cargo xtask fuzz`
//! runs them under libFuzzer with coverage feedback, which stable Rust can compile (LLVM's SanitizerCoverage is a codegen option); `cargo test` runs
//! each over its seeds and some thousand mutations of them. A crash that a fuzzer finds becomes a unit test beside the parser.
//!
//! Deliberately missing: sanitizers, which stable Rust cannot compile. The parsers are `forbid(unsafe_code)`, so a panic or a hang is what can go wrong (guest memory is `vm-memory`'s).
//!
//! To add a target: a file here with `pub(crate) const TARGET: Target`, its `mod` line, and its name in [`TARGETS`].

#![forbid(unsafe_code)]

mod boot_zstd;
mod document;
mod driver;
mod eif_cpio;
mod eif_image;
mod eif_metadata;
mod eif_signature;
mod nsm_driver;
mod nsm_request;
mod pem;
#[cfg(test)]
mod tests;
mod vsock_driver;
mod vsock_greeting;
mod vsock_packets;

/// One parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, for `cargo xtask fuzz --only`.
    pub name: &'static str,
    /// Inputs that it takes, for the fuzzer to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads the input. Panics only where the parser does, or where what it found contradicts itself.
    pub run: fn(&[u8]),
    /// The longest input worth trying, in bytes.
    pub longest: usize,
}

/// Every parser.
pub const TARGETS: &[Target] = &[
    boot_zstd::TARGET,
    document::TARGET,
    eif_cpio::TARGET,
    eif_image::TARGET,
    eif_metadata::TARGET,
    eif_signature::TARGET,
    nsm_driver::TARGET,
    nsm_request::TARGET,
    pem::TARGET,
    vsock_driver::TARGET,
    vsock_greeting::TARGET,
    vsock_packets::TARGET,
];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
