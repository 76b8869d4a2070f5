//! The parent's side of an enclave's vsock: what a user's program does at the launcher's Unix socket, which speaks Firecracker's protocol.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the enclave may take over anything that is no long transfer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The longest document that is read, in bytes; the longest possible one has not half as many.
const LONGEST: u64 = 1 << 16;

/// Asks the service at the enclave's `port` for an attestation document over `nonce`.
///
/// # Errors
/// When the socket is not there, the enclave does not listen, or it does not answer.
pub(crate) fn request_document(socket: &Path, port: u32, nonce: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = BufReader::new(connect(socket, port)?);
    stream.get_mut().write_all(nonce)?;
    stream.get_mut().shutdown(Shutdown::Write)?;
    let mut document = Vec::new();
    stream.take(LONGEST).read_to_end(&mut document)?;
    if document.is_empty() { Err(io::Error::other("the enclave sent nothing")) } else { Ok(document) }
}

/// A connection to the enclave's `port`: `CONNECT`, and `OK` back.
pub(crate) fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "CONNECT {port}")?;
    let answer = line(&mut stream)?;
    if answer.starts_with("OK ") {
        Ok(stream)
    } else {
        Err(io::Error::other(format!("port {port} of the enclave answered {answer:?}")))
    }
}

/// A line, and no byte beyond it, which would be the enclave's.
pub(crate) fn line(from: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    BufReader::with_capacity(1, from).take(64).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A launcher that says `answer` to `CONNECT` and then what an enclave says.
    fn served(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("uds");
        let listener = UnixListener::bind(&path).expect("a socket");
        let launcher = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(answer).expect("a client that reads");
            let mut said = Vec::new();
            if answer.is_empty() {
                return Ok(said);
            }
            stream.read_to_end(&mut said).map(|_| said)
        });
        let document = request_document(&path, 5000, b"nonce");
        let said = launcher.join().expect("no panic");
        if document.is_ok() {
            assert_eq!(said.expect("the client closed its end"), b"CONNECT 5000\nnonce");
        }
        document
    }

    #[test]
    fn what_follows_the_handshake_is_the_document() {
        assert_eq!(served(b"OK 1073741824\ndocument").expect("a document"), b"document");
    }

    #[test]
    fn an_enclave_that_does_not_listen_is_an_error() {
        assert!(served(b"").is_err());
        assert!(served(b"OK 1\n").is_err());
    }
}
