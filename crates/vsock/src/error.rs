//! Why the host's side of a vsock cannot be set up.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the host's side of a vsock cannot be set up.
#[derive(Debug, Error)]
pub enum VsockError {
    /// Another process listens there.
    #[error("{path} is in use: another process listens on it")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is a file that is no socket, which is not ours to remove.
    #[error("{path} is there already and is no socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The host refused to listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A name that is no host, or one without an address.
    #[error("{address} has no address")]
    Resolve {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The event loop refused a socket.
    #[error(transparent)]
    EventLoop(#[from] event_loop::EventLoopError),
}
