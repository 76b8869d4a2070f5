//! What guests are built for.

/// The guest's target triple. The C library is linked statically; musl's target is one more thing to install.
pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";
