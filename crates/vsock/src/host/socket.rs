//! The host's sockets: non-blocking streams and listeners, TCP or Unix, without a difference once they are open.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    ipproto, listen, recv, send, shutdown, socket_with, sockopt,
};

use crate::{Address, VsockError};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Our sockets never block and are nobody else's.
fn flags() -> SocketFlags {
    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC
}

/// An [`Address`] with its name resolved.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// Looks the name up, which may take time: before the guest runs.
    pub(super) fn resolve(address: &Address) -> Result<Self, VsockError> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(path.clone())),
            Address::Tcp(name) => {
                let none = || io::Error::from(io::ErrorKind::NotFound);
                let first = name.to_socket_addrs().and_then(|mut found| found.next().ok_or_else(none));
                first.map(Self::Tcp).map_err(|source| VsockError::Resolve { address: name.clone(), source })
            }
        }
    }
}

/// A stream socket.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Opens a connection; the flag says whether it is there already or still under way.
    pub(super) fn connect(target: &Target) -> io::Result<(Self, bool)> {
        let (socket, outcome) = match target {
            Target::Unix(path) => {
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None)?;
                let outcome = connect(&socket, &SocketAddrUnix::new(path)?);
                (socket, outcome)
            }
            Target::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket = socket_with(family, SocketType::STREAM, flags(), Some(ipproto::TCP))?;
                sockopt::set_tcp_nodelay(&socket, true)?;
                let outcome = connect(&socket, address);
                (socket, outcome)
            }
        };
        match outcome {
            Ok(()) => Ok((Self(socket), true)),
            Err(Errno::INPROGRESS) => Ok((Self(socket), false)),
            Err(error) => Err(error.into()),
        }
    }

    /// What became of a connection that was under way.
    pub(super) fn connected(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.0)??)
    }

    /// Reads; 0 is the end.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, into)?)
    }

    /// Reads without taking.
    pub(super) fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, into, RecvFlags::PEEK)?.0)
    }

    pub(super) fn write(&self, data: &[u8]) -> io::Result<usize> {
        Ok(send(&self.0, data, SendFlags::NOSIGNAL)?)
    }

    /// Tells the peer that nothing more will be written.
    pub(super) fn finish(&self) {
        // A peer that is gone needs no telling.
        let _ = shutdown(&self.0, Shutdown::Write);
    }
}

/// A listening socket. A Unix socket's file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
    file: Option<(PathBuf, (u64, u64))>,
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Listener {
    /// Listens. A Unix socket that nobody listens on any more is replaced.
    pub(super) fn open(target: &Target) -> Result<Self, VsockError> {
        let failed = |source: io::Error| VsockError::Listen {
            address: match target {
                Target::Tcp(address) => format!("tcp:{address}"),
                Target::Unix(path) => format!("unix:{}", path.display()),
            },
            source,
        };
        match target {
            Target::Tcp(address) => Self::tcp(address).map_err(failed),
            Target::Unix(path) => {
                clear_stale(path)?;
                Self::unix(path).map_err(failed)
            }
        }
    }

    fn tcp(address: &SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::STREAM, flags(), Some(ipproto::TCP))?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        bind(&fd, address)?;
        listen(&fd, BACKLOG)?;
        Ok(Self { fd, file: None })
    }

    fn unix(path: &Path) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None)?;
        bind(&fd, &SocketAddrUnix::new(path)?)?;
        let made = std::fs::symlink_metadata(path)?;
        let this = Self { fd, file: Some((path.to_owned(), (made.dev(), made.ino()))) };
        listen(&this.fd, BACKLOG)?;
        Ok(this)
    }

    /// The next connection; `None` when there is none.
    pub(super) fn accept(&self) -> io::Result<Option<Socket>> {
        match accept_with(&self.fd, flags()) {
            Ok(fd) => {
                // Fails for Unix sockets, which have no such delay.
                let _ = sockopt::set_tcp_nodelay(&fd, true);
                Ok(Some(Socket(fd)))
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, made)) = &self.file
            && std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == *made)
        {
            // Somebody else may remove it at the same time.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the socket of a process that is gone.
fn clear_stale(path: &Path) -> Result<(), VsockError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(VsockError::NotASocket { path: path.to_owned() });
    }
    match Socket::connect(&Target::Unix(path.to_owned())) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // If it cannot be removed, binding says why.
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        _ => Err(VsockError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_stale_socket_is_replaced_and_ours_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::open(&Target::Unix(path.clone())).unwrap();
        assert!(listener.accept().unwrap().is_none());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_is_in_use_and_a_file_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let other = UnixListener::bind(&path).unwrap();
        let error = Listener::open(&Target::Unix(path.clone())).unwrap_err();
        assert!(error.to_string().ends_with("v.sock is in use: another process listens on it"), "{error}");
        drop(other);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"precious").unwrap();
        let error = Listener::open(&Target::Unix(path.clone())).unwrap_err();
        assert!(matches!(error, VsockError::NotASocket { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_somebody_else_made_since_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let ours = Listener::open(&Target::Unix(path.clone())).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
