//! What a user may choose about a vsock.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// The port on which an enclave's init expects its parent to answer.
pub const HEARTBEAT_PORT: u32 = 9000;

/// [`Options::greeting_timeout`] where the user says nothing.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A vsock and what it reaches on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The guest's CID: from 4 up for an enclave, from 3 up for others; `u32::MAX` is everyone.
    pub guest_cid: u32,
    /// The CID that connections from the host come from: [`crate::HOST_CID`] or [`crate::PARENT_CID`]. The guest may use either.
    pub host_cid: u64,
    /// Firecracker's hybrid socket, where there is one: the host connects to it and says `CONNECT <port>`; the guest's connections to port P go to
    /// the socket of the same name with `_P` after it.
    pub uds_path: Option<PathBuf>,
    /// What is passed on without a handshake.
    pub forwards: Vec<Forward>,
    /// Answers an enclave's heartbeat, unless something of the user's does.
    pub heartbeat: Option<Heartbeat>,
    /// A directory in which guests find each other by CID: each listens on the socket `CID.sock` there.
    pub group: Option<PathBuf>,
    /// How long a client of the hybrid socket, or another member of the group, may take to say what it wants.
    pub greeting_timeout: Duration,
    /// The socket of a vhost-user process that is the other side in place of all this; it must know the same CID.
    pub vhost_user: Option<PathBuf>,
    /// Whether that process and the guest may notify and interrupt each other without ours, where the processor backend can do that.
    pub vhost_user_direct: bool,
}

impl Options {
    /// A vsock that reaches nothing yet.
    pub fn new(guest_cid: u32, host_cid: u64) -> Self {
        Self {
            guest_cid,
            host_cid,
            uds_path: None,
            forwards: Vec::new(),
            heartbeat: None,
            group: None,
            greeting_timeout: GREETING_TIMEOUT,
            vhost_user: None,
            vhost_user_direct: true,
        }
    }
}

/// The heartbeat of an enclave's init.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// How long after its start an enclave must have been heard; none waits for ever.
    pub timeout: Option<Duration>,
}

/// Where a forward begins or ends on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `tcp:HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// A connection that is passed on: from the left side to the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forward {
    /// `guest:PORT=ADDRESS`: what the guest opens to the host's port goes to the address.
    FromGuest {
        /// The host's vsock port.
        port: u32,
        /// Where its connections go.
        to: Address,
    },
    /// `ADDRESS=guest:PORT`: what is opened to the address goes to the guest's port.
    ToGuest {
        /// Where to listen.
        from: Address,
        /// The guest's vsock port.
        port: u32,
    },
}

/// Why a text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForwardError {
    /// Not two sides.
    #[error("expected FROM=TO, such as \"guest:5000=tcp:127.0.0.1:5000\" or \"unix:app.sock=guest:5000\", found {0:?}")]
    Shape(String),
    /// Both sides are the guest's, or both the host's.
    #[error("one side of {0:?} must be guest:PORT and the other tcp:HOST:PORT or unix:PATH")]
    Sides(String),
    /// A side that is nothing.
    #[error("expected guest:PORT, tcp:HOST:PORT or unix:PATH, found {0:?}")]
    Side(String),
    /// A port that no vsock has.
    #[error("expected a vsock port from 0 to 4294967294, found {0:?}")]
    Port(String),
}

enum Side {
    Guest(u32),
    Host(Address),
}

impl FromStr for Side {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        match text.split_once(':') {
            Some(("guest", port)) => {
                let number = port.parse().ok().filter(|port| *port != u32::MAX);
                number.map(Self::Guest).ok_or_else(|| ForwardError::Port(port.to_owned()))
            }
            Some(("tcp", address)) if is_host_and_port(address) => Ok(Self::Host(Address::Tcp(address.to_owned()))),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Host(Address::Unix(path.into()))),
            _ => Err(ForwardError::Side(text.to_owned())),
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (from, to) = text.split_once('=').ok_or_else(|| ForwardError::Shape(text.to_owned()))?;
        match (from.trim().parse()?, to.trim().parse()?) {
            (Side::Guest(port), Side::Host(to)) => Ok(Self::FromGuest { port, to }),
            (Side::Host(from), Side::Guest(port)) => Ok(Self::ToGuest { from, port }),
            _ => Err(ForwardError::Sides(text.to_owned())),
        }
    }
}

impl Forward {
    /// The same with relative Unix paths starting from `base`.
    #[must_use]
    pub fn relative_to(self, base: &Path) -> Self {
        let joined = |address| match address {
            Address::Unix(path) => Address::Unix(base.join(path)),
            tcp @ Address::Tcp(_) => tcp,
        };
        match self {
            Self::FromGuest { port, to } => Self::FromGuest { port, to: joined(to) },
            Self::ToGuest { from, port } => Self::ToGuest { from: joined(from), port },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_goes_from_left_to_right() {
        let to = Address::Tcp("127.0.0.1:443".to_owned());
        assert_eq!("guest:8443=tcp:127.0.0.1:443".parse(), Ok(Forward::FromGuest { port: 8443, to }));
        let from = Address::Unix("app.sock".into());
        let forward: Forward = "unix:app.sock = guest:5000".parse().unwrap();
        assert_eq!(forward, Forward::ToGuest { from, port: 5000 });
        let from = Address::Unix("/base/app.sock".into());
        assert_eq!(forward.relative_to(Path::new("/base")), Forward::ToGuest { from, port: 5000 });
        assert!("guest:1=tcp:[::1]:80".parse::<Forward>().is_ok());
    }

    #[test]
    fn what_is_no_forward_is_refused_by_its_wrong_part() {
        let refused = |text: &str| text.parse::<Forward>().unwrap_err();
        assert_eq!(refused("5000"), ForwardError::Shape("5000".to_owned()));
        assert_eq!(refused("guest:1=guest:2"), ForwardError::Sides("guest:1=guest:2".to_owned()));
        assert_eq!(refused("guest:1=127.0.0.1:80"), ForwardError::Side("127.0.0.1:80".to_owned()));
        assert_eq!(refused("guest:1=tcp:80"), ForwardError::Side("tcp:80".to_owned()));
        assert_eq!(refused("guest:4294967295=unix:a"), ForwardError::Port("4294967295".to_owned()));
    }
}
