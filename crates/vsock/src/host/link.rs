//! One socket of the host's, and how far it has got.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use event_loop::{Interest, SourceId};
use rustix::net::{Shutdown, shutdown as shut_down_socket};

use super::socket::Socket;
use crate::packet::shutdown;
use crate::{Endpoint, Greeting, Key};

/// Reads of a socket before others get their turn.
const READS_A_TURN: usize = 4;

/// Longest line that opens a connection.
const LONGEST_GREETING: usize = 64;

/// How far a socket has got.
#[derive(Debug)]
pub(super) enum Stage {
    /// A client of the hybrid socket, or another member of the group, that has said this much of its first line.
    Greeting { member: bool, said: Vec<u8> },
    /// The guest's connection waits until the socket is connected.
    Connecting(Key),
    /// The guest's connection waits until another guest of the group accepts it, which has said this much of `OK <port>\n`.
    Introduced(Key, Vec<u8>),
    /// The socket's connection waits for the guest, and its client perhaps for `OK <port>\n`.
    Offered { greeted: bool },
    /// Both sides are there.
    Open(Key),
    /// The guest is gone; this is still to be delivered.
    Draining(VecDeque<u8>),
}

/// One socket of the host's.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) socket: Arc<Socket>,
    pub(super) source: SourceId,
    pub(super) interest: Interest,
    pub(super) stage: Stage,
    /// Nothing more comes from the client, or nobody wants it.
    read_closed: bool,
    /// Nothing more goes to the client.
    write_closed: bool,
}

impl Link {
    pub(super) fn new(socket: Arc<Socket>, source: SourceId, interest: Interest, stage: Stage) -> Self {
        Self { socket, source, interest, stage, read_closed: false, write_closed: false }
    }

    /// What it waits for now.
    pub(super) fn wanted(&self, endpoint: &Endpoint) -> Interest {
        match &self.stage {
            Stage::Greeting { .. } | Stage::Introduced(..) => Interest::READ,
            Stage::Connecting(_) | Stage::Draining(_) => Interest::WRITE,
            Stage::Offered { .. } => Interest::NONE,
            Stage::Open(key) => Interest {
                readable: !self.read_closed && endpoint.room(*key) > 0,
                writable: !self.write_closed && !endpoint.incoming(*key).0.is_empty(),
            },
        }
    }

    /// Takes what is there of the first line, and nothing that follows it. `Ok(None)` when there is more to come.
    ///
    /// # Errors
    /// Why the other side is hopeless.
    pub(super) fn greeting(&mut self) -> io::Result<Option<Greeting>> {
        let (Stage::Greeting { said, .. } | Stage::Introduced(_, said)) = &mut self.stage else { return Ok(None) };
        let mut bytes = [0; LONGEST_GREETING];
        let count = match self.socket.peek(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if is_later(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let end = bytes[..count].iter().position(|byte| *byte == b'\n');
        // What was looked at is there to be read.
        let taken = self.socket.read(&mut bytes[..end.map_or(count, |end| end + 1)])?;
        said.extend_from_slice(&bytes[..taken]);
        if said.len() > LONGEST_GREETING {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if end.is_none() {
            return Ok(None);
        }
        Greeting::parse(said).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Moves data both ways, as far as the socket and the guest have room, and passes on who is done.
    pub(super) fn exchange(&mut self, key: Key, endpoint: &mut Endpoint, scratch: &mut [u8], look: Look) {
        self.write(key, endpoint);
        if endpoint.guest_shutdown(key) & shutdown::RECEIVE != 0 && !self.read_closed {
            // The client hears of it when it writes.
            let _ = shut_down_socket(&*self.socket, Shutdown::Read);
            self.read_closed = true;
            endpoint.shut_down(key, shutdown::SEND);
        }
        if look.readable {
            self.read(key, endpoint, scratch, look.hangup);
        }
    }

    /// Writes data of the guest's that nothing waits before; how much of it the socket took. What goes wrong is found when the rest is written.
    pub(super) fn write_at_once(&self, data: &[u8]) -> usize {
        let open = matches!(self.stage, Stage::Open(_)) && !self.write_closed && !data.is_empty();
        if open { self.socket.write(data).unwrap_or(0) } else { 0 }
    }

    fn write(&mut self, key: Key, endpoint: &mut Endpoint) {
        while !self.write_closed {
            let data = endpoint.incoming(key).0;
            if data.is_empty() {
                if endpoint.guest_shutdown(key) & shutdown::SEND != 0 {
                    self.socket.finish();
                    self.write_closed = true;
                }
                return;
            }
            match self.socket.write(data) {
                Ok(count) => endpoint.consume(key, count),
                Err(error) if is_later(&error) => return,
                Err(_) => {
                    self.write_closed = true;
                    endpoint.shut_down(key, shutdown::RECEIVE);
                }
            }
        }
    }

    fn read(&mut self, key: Key, endpoint: &mut Endpoint, scratch: &mut [u8], hangup: bool) {
        for _ in 0..READS_A_TURN {
            let room = endpoint.room(key).min(scratch.len());
            if room == 0 || self.read_closed {
                return;
            }
            let into = &mut scratch[..room];
            match self.socket.read(into) {
                Ok(0) if !hangup => {
                    self.read_closed = true;
                    endpoint.shut_down(key, shutdown::SEND);
                }
                Ok(count) if count > 0 => {
                    let drained = count < into.len();
                    endpoint.send(key, &into[..count]);
                    if drained && !hangup {
                        // There is nothing more now, or the event loop says so again.
                        return;
                    }
                }
                Err(error) if is_later(&error) => return,
                // The client is gone altogether.
                Ok(_) | Err(_) => {
                    self.read_closed = true;
                    self.write_closed = true;
                    endpoint.shut_down(key, shutdown::BOTH);
                }
            }
        }
    }

    /// Delivers what a guest that is gone has left; true when that is done or there is nobody to take it.
    pub(super) fn drain(&mut self) -> bool {
        if self.write_closed {
            return true;
        }
        let Stage::Draining(rest) = &mut self.stage else { return true };
        loop {
            let data = rest.as_slices().0;
            if data.is_empty() {
                return true;
            }
            match self.socket.write(data) {
                Ok(count) => drop(rest.drain(..count)),
                Err(error) if is_later(&error) => return false,
                Err(_) => return true,
            }
        }
    }
}

/// What the event loop said of a socket.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Look {
    pub(super) readable: bool,
    pub(super) hangup: bool,
}

pub(super) fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
