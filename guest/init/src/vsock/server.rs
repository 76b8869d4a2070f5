//! What the guest does for clients of the host's: each connection says in 16 bytes what it wants, and gets that.
//!
//! A request is a name of eight bytes, filled up with zeros, and a number (little-endian):
//! - `sink` N: takes N bytes and answers with their number in eight bytes;
//! - `hash` N: takes N bytes and answers with their SHA-256;
//! - `source` N: sends N bytes of the pattern, as much at a time as the kernel takes;
//! - `pieces` N: the same, 16 KiB at a time: a packet of those lies in one buffer, and some hosts' sides know no others;
//! - `echo`: sends back what comes, until the client is done;
//! - `hold` N: reads nothing more, and closes after N milliseconds with what came unread;
//! - `killed` N: a process of its own echoes, and is killed after N milliseconds;
//! - `dial` N: connects to a port and echoes there: the port in the lower half of the number, the CID in the upper, where 0 is the parent's;
//! - `relay` N: connects likewise, and passes on what comes from either side;
//! - `stop`: no more connections.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use sha2::{Digest, Sha256};

use super::{PARENT, PATTERN, accepted, connected, echo, listening};

/// The first argument with which this program starts itself as a process that can be killed: it echoes on its standard input.
pub(crate) const ECHO_ARGUMENT: &str = "vsock-echo";

/// Bytes of a request.
const REQUEST: usize = 16;

/// Bytes moved at a time: several of the largest packets.
const PIECE: usize = 256 << 10;

/// Bytes of the pieces that fit into one buffer of the kernel's with their header.
const SMALL_PIECE: usize = 16 << 10;

/// Serves connections, each in a thread of its own, until one says `stop`; returns the bytes moved.
pub(super) fn serve(listener: &OwnedFd, port: u32) -> io::Result<u64> {
    let moved = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    loop {
        let mut connection = accepted(listener)?;
        let mut request = [0; REQUEST];
        // The one that stops must be heard here; what it says comes at once.
        if connection.read_exact(&mut request).is_err() {
            continue;
        }
        let (name, number) = parse(&request);
        if name == "stop" {
            break;
        }
        let moved = moved.clone();
        threads.push(std::thread::spawn(move || {
            // A client that breaks off is the host's doing, and the host judges it.
            let count = answer(connection, &name, number).unwrap_or(0);
            moved.fetch_add(count, Ordering::Relaxed);
        }));
    }
    for thread in threads {
        thread.join().map_err(|_| io::Error::other(format!("a thread of port {port} panicked")))?;
    }
    Ok(moved.load(Ordering::Relaxed))
}

fn parse(request: &[u8; REQUEST]) -> (String, u64) {
    let (name, number) = request.split_at(8);
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    (name, number.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

fn answer(mut connection: File, name: &str, number: u64) -> io::Result<u64> {
    match name {
        "sink" => {
            let count = take(&mut connection, number, |_| {})?;
            connection.write_all(&count.to_le_bytes())?;
            Ok(count)
        }
        "hash" => {
            let mut hash = Sha256::new();
            let count = take(&mut connection, number, |piece| hash.update(piece))?;
            connection.write_all(&hash.finalize())?;
            Ok(count)
        }
        "source" => source(&mut connection, number, PIECE),
        "pieces" => source(&mut connection, number, SMALL_PIECE),
        "echo" => Ok(echo(connection)),
        "hold" => {
            std::thread::sleep(Duration::from_millis(number));
            Ok(0)
        }
        "killed" => killed(connection, Duration::from_millis(number)),
        "dial" => Ok(echo(dial(number)?)),
        "relay" => relay(connection, dial(number)?),
        _ => Err(io::Error::other(format!("no such request: {name}"))),
    }
}

fn dial(number: u64) -> io::Result<File> {
    let (cid, port) = ((number >> 32) as u32, number as u32);
    connected(if cid == 0 { PARENT } else { cid }, port)
}

/// Passes on what comes from either side until both are done.
fn relay(client: File, other: File) -> io::Result<u64> {
    let (from_client, to_other) = (client.try_clone()?, other.try_clone()?);
    let there = std::thread::spawn(move || pass_on(from_client, to_other));
    let back = pass_on(other, client)?;
    there.join().map_err(|_| io::Error::other("a thread panicked"))?.map(|count| count + back)
}

fn pass_on(mut from: File, mut to: File) -> io::Result<u64> {
    let count = io::copy(&mut from, &mut to)?;
    shutdown(to.as_raw_fd(), Shutdown::Write)?;
    Ok(count)
}

/// Reads so many bytes, or as many as come.
fn take(from: &mut File, count: u64, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut taken = 0;
    while taken < count {
        let read = from.read(&mut piece)?;
        if read == 0 {
            break;
        }
        each(piece.get(..read).unwrap_or_default());
        taken += read as u64;
    }
    Ok(taken)
}

fn source(to: &mut File, count: u64, piece: usize) -> io::Result<u64> {
    // Any piece of the pattern starts within its first period.
    let pattern: Vec<u8> = (0..piece as u64 + PATTERN).map(super::pattern).collect();
    let mut sent = 0;
    while sent < count {
        let start = (sent % PATTERN) as usize;
        let length = (count - sent).min(piece as u64) as usize;
        to.write_all(pattern.get(start..start + length).unwrap_or_default())?;
        sent += length as u64;
    }
    Ok(sent)
}

/// Hands the connection to a process, and kills it.
fn killed(connection: File, after: Duration) -> io::Result<u64> {
    let mut child =
        Command::new("/proc/self/exe").arg(ECHO_ARGUMENT).stdin(Stdio::from(OwnedFd::from(connection))).spawn()?;
    std::thread::sleep(after);
    child.kill()?;
    child.wait()?;
    Ok(0)
}

/// The work of a process that is to be killed.
pub(crate) fn child() -> ExitCode {
    use std::os::fd::AsFd;
    match io::stdin().as_fd().try_clone_to_owned() {
        Ok(connection) => {
            echo(File::from(connection));
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Listens and serves; `ready` is called in between.
pub(super) fn run(port: u32, ready: impl FnOnce()) -> io::Result<u64> {
    let listener = listening(port)?;
    ready();
    serve(&listener, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_name_and_a_number() {
        let mut request = *b"sink\0\0\0\0\0\0\0\0\0\0\0\0";
        request[9] = 1;
        assert_eq!(parse(&request), ("sink".to_owned(), 256));
    }
}
