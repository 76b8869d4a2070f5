//! `socat` as the host's client, as users have it, and data whose way is checked by its SHA-256.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sha2::{Digest, Sha256};

use super::served::{PORT, request};
use crate::parent::line;

/// The program.
pub(crate) const SOCAT: &str = "socat";

/// Bytes made or looked at at a time.
const PIECE: usize = 256 << 10;

/// Bytes that do not repeat, so that a piece that is lost, repeated or moved shows (xorshift64).
pub(crate) struct Data(u64);

impl Data {
    /// From the start.
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, piece: &mut [u8]) {
        for word in piece.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(self.0.to_le_bytes().get(..word.len()).unwrap_or_default());
        }
    }

    /// Writes so many bytes; their digest.
    pub(crate) fn write(&mut self, to: &mut impl Write, bytes: u64) -> io::Result<Vec<u8>> {
        let (mut hash, mut piece, mut written) = (Sha256::new(), vec![0; PIECE], 0);
        while written < bytes {
            piece.truncate((bytes - written).min(PIECE as u64) as usize);
            self.fill(&mut piece);
            hash.update(&piece);
            to.write_all(&piece)?;
            written += piece.len() as u64;
        }
        Ok(hash.finalize().to_vec())
    }
}

/// Reads to the end; how many bytes there were, and their digest.
pub(crate) fn digest(mut from: impl Read) -> io::Result<(u64, Vec<u8>)> {
    let (mut hash, mut piece, mut count) = (Sha256::new(), vec![0; PIECE], 0);
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            return Ok((count, hash.finalize().to_vec()));
        }
        hash.update(piece.get(..read).unwrap_or_default());
        count += read as u64;
    }
}

/// The digest of so many bytes of the pattern that the guest sends: its byte at N is N modulo 251.
pub(crate) fn pattern_digest(bytes: u64) -> Vec<u8> {
    let piece: Vec<u8> = (0..PIECE + 251).map(|at| (at % 251) as u8).collect();
    let (mut hash, mut at) = (Sha256::new(), 0);
    while at < bytes {
        let (start, length) = ((at % 251) as usize, (bytes - at).min(PIECE as u64) as usize);
        hash.update(piece.get(start..start + length).unwrap_or_default());
        at += length as u64;
    }
    hash.finalize().to_vec()
}

/// A running `socat`, killed when it is dropped.
pub(crate) struct Socat {
    child: Child,
}

impl Socat {
    /// Connects to the service through the hybrid socket, shakes hands, and asks for `name` with `number`.
    pub(crate) fn ask(socket: &Path, name: &str, number: u64) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let mut child = Command::new(SOCAT)
            // After one side is done it waits so many seconds for the other.
            .args(["-t", "60", "-"])
            .arg(format!("UNIX-CONNECT:{}", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let this = Self { child };
        let (mut input, mut output) = pipes.ok_or_else(|| io::Error::other("no pipes"))?;
        writeln!(input, "CONNECT {PORT}")?;
        let answer = line(&mut output)?;
        if !answer.starts_with("OK ") {
            return Err(io::Error::other(format!("it answered {answer:?}")));
        }
        input.write_all(&request(name, number))?;
        Ok((this, input, output))
    }

    /// Kills it now.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.child.kill()
    }
}

impl Drop for Socat {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
