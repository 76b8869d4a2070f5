//! The other end of a guest's vsock: connections as a state machine, and what they reach on the host.
//!
//! [`Endpoint`] is the protocol of virtio 1.3 section 5.10.6 without sockets, queues or clocks: [`packet`]s in, packets out. [`Host`] runs one on the event loop and connects
//! it with the host: Firecracker's hybrid Unix sockets, forwards between vsock ports and TCP or Unix sockets, the heartbeat that an enclave's init
//! expects of its parent, and other guests of the same group. The virtio device itself is in the `virtio` crate.
//!
//! Deliberately missing: SEQPACKET sockets, and the kernel's own vhost backend.

#![forbid(unsafe_code)]

mod connection;
mod endpoint;
mod error;
mod greeting;
mod host;
mod options;
pub mod packet;

pub use connection::{RECEIVE_BUFFER, SEND_BUFFER};
pub use endpoint::{Endpoint, Event, HOST_CID, Key, MAX_CONNECTIONS, MAX_REPLIES, PARENT_CID, Statistics};
pub use error::VsockError;
pub use greeting::Greeting;
pub use host::{Host, HostGuard, Surroundings};
pub use options::{Address, Forward, ForwardError, GREETING_TIMEOUT, HEARTBEAT_PORT, Heartbeat, Options};
