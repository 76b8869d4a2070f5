//! The line to the parent: the heartbeat of an enclave's init, and traffic for tests.
//!
//! `vmm.heartbeat=on` sends the byte that AWS's init sends, and waits for the same byte. `vmm.vsock=` lists work, separated by commas:
//! - `echo:PORT:N` serves N connections to PORT, each in a thread of its own, and sends back what comes;
//! - `serve:PORT` does for each connection what it asks for, until one says stop: see [`server`];
//! - `connect:PORT:BYTES` sends BYTES bytes of a pattern to the parent's PORT, says that it is done, and reads as many back.

pub(crate) mod server;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, shutdown, socket,
};

use crate::cmdline::CommandLine;
use crate::console::Console;

/// Of an enclave, its parent instance.
const PARENT: u32 = 3;

/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;

const HEARTBEAT_PORT: u32 = 9000;
const HEARTBEAT: u8 = 0xb7;

/// Bytes moved at a time.
const PIECE: usize = 64 << 10;

/// Length of the pattern: a prime, so that a piece that is lost or repeated shifts what follows.
const PATTERN: u64 = 251;

/// Does what the command line asks for and reports how each went.
pub(crate) fn run(console: &mut Console, command_line: &CommandLine) {
    if command_line.value("vmm.heartbeat").is_some() {
        match heartbeat() {
            Ok(()) => console.report("heartbeat", "answered"),
            Err(error) => console.report("heartbeat", error),
        }
    }
    for item in command_line.value("vmm.vsock").into_iter().flat_map(|list| list.split(',')) {
        let start = Instant::now();
        let outcome = match parse(item) {
            Some(Work::Echo { port, connections }) => {
                // The host waits for this line before it connects.
                listening(port).and_then(|listener| {
                    console.report("vsock_listening", port);
                    console.drain();
                    serve(&listener, connections)
                })
            }
            Some(Work::Serve { port }) => server::run(port, || {
                console.report("vsock_listening", port);
                console.drain();
            }),
            Some(Work::Connect { port, bytes }) => exchange(port, bytes),
            None => Err(io::Error::other("unknown work")),
        };
        let milliseconds = start.elapsed().as_millis();
        match outcome {
            Ok(bytes) => console.report("vsock", format_args!("{item} bytes={bytes} ms={milliseconds}")),
            Err(error) => console.report("vsock_error", format_args!("{item} {error}")),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Work {
    Echo { port: u32, connections: u32 },
    Serve { port: u32 },
    Connect { port: u32, bytes: u64 },
}

fn parse(item: &str) -> Option<Work> {
    let mut words = item.split(':');
    let (name, port, count) = (words.next()?, words.next()?.parse().ok()?, words.next().unwrap_or_default());
    match name {
        "serve" => Some(Work::Serve { port }),
        "echo" => Some(Work::Echo { port, connections: count.parse().ok()? }),
        "connect" => Some(Work::Connect { port, bytes: count.parse().ok()? }),
        _ => None,
    }
}

fn stream() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn connected(cid: u32, port: u32) -> io::Result<File> {
    let socket = stream()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(cid, port))?;
    Ok(File::from(socket))
}

fn to_parent(port: u32) -> io::Result<File> {
    connected(PARENT, port)
}

fn heartbeat() -> io::Result<()> {
    let mut parent = to_parent(HEARTBEAT_PORT)?;
    parent.write_all(&[HEARTBEAT])?;
    let mut answer = [0];
    parent.read_exact(&mut answer)?;
    if answer == [HEARTBEAT] { Ok(()) } else { Err(io::Error::other(format!("answered with {:#x}", answer[0]))) }
}

/// A socket that listens on `port`, for whoever connects.
pub(crate) fn listening(port: u32) -> io::Result<OwnedFd> {
    let socket = stream()?;
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY, port))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket)
}

/// Echoes on so many connections; returns how many bytes came. One that breaks off counts as far as it got.
fn serve(listener: &OwnedFd, connections: u32) -> io::Result<u64> {
    let mut threads = Vec::new();
    for _ in 0..connections {
        let connection = accepted(listener)?;
        threads.push(std::thread::spawn(move || echo(connection)));
    }
    Ok(threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum())
}

/// The next connection.
#[expect(unsafe_code, reason = "the safe wrapper returns the accepted descriptor as a bare number")]
pub(crate) fn accepted(listener: &OwnedFd) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    let descriptor = accept(listener.as_raw_fd())?;
    // SAFETY: `accept` has just made it, and nobody else has it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

fn echo(mut connection: File) -> u64 {
    let mut piece = vec![0; PIECE];
    let mut total = 0;
    loop {
        match connection.read(&mut piece) {
            Ok(0) | Err(_) => return total,
            Ok(count) => {
                total += count as u64;
                if connection.write_all(piece.get(..count).unwrap_or_default()).is_err() {
                    return total;
                }
            }
        }
    }
}

fn pattern(at: u64) -> u8 {
    (at % PATTERN) as u8
}

/// Sends the pattern while another thread reads it back; returns how many bytes came back right.
fn exchange(port: u32, bytes: u64) -> io::Result<u64> {
    let parent = to_parent(port)?;
    let mut sender = parent.try_clone()?;
    let sending = std::thread::spawn(move || -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes {
            let piece: Vec<u8> = (sent..bytes.min(sent + PIECE as u64)).map(pattern).collect();
            sender.write_all(&piece)?;
            sent += piece.len() as u64;
        }
        Ok(shutdown(sender.as_raw_fd(), Shutdown::Write)?)
    });
    let received = check(parent);
    sending.join().map_err(|_| io::Error::other("the sender panicked"))??;
    received
}

fn check(mut from: File) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return Ok(at);
        }
        for byte in piece.iter().take(count) {
            if *byte != pattern(at) {
                return Err(io::Error::other(format!("byte {at} is {byte:#x}, not {:#x}", pattern(at))));
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_has_a_port_and_a_count() {
        assert_eq!(parse("echo:5000:3"), Some(Work::Echo { port: 5000, connections: 3 }));
        assert_eq!(parse("connect:5001:1048576"), Some(Work::Connect { port: 5001, bytes: 1 << 20 }));
        assert_eq!(parse("serve:5000"), Some(Work::Serve { port: 5000 }));
        assert_eq!(parse("echo:5000"), None);
        assert_eq!(parse("sing:5000:1"), None);
    }
}
