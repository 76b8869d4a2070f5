//! The enclave's line to its parent instance: a vsock whose other end is CID 3 and answers the heartbeat.

use std::time::Duration;

/// The CID of an enclave whose user chose none: the first that nitro-cli gives.
pub const DEFAULT_CID: u32 = 16;

/// A vsock to the parent for [`microvm::Options::vsock`], with nothing on the host yet. `cid` is the enclave's, from 4 up; without a heartbeat within
/// `heartbeat_timeout` of its start the run ends.
pub fn parent(cid: u32, heartbeat_timeout: Option<Duration>) -> vsock::Options {
    vsock::Options {
        heartbeat: Some(vsock::Heartbeat { timeout: heartbeat_timeout }),
        ..vsock::Options::new(cid, vsock::PARENT_CID)
    }
}
