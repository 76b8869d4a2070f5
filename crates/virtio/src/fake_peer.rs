//! The other process of vhost-user, as a thread of a test: it takes what the guest transmits and throws it away (QEMU's docs/interop/vhost-user.rst).
//!
//! It sees the guest as another process does: the rings by the memory's file descriptors, notifications and interrupts by eventfds. A chain goes to the used ring, then the guest is called.
//!
//! Deliberately missing: receiving, acknowledged messages (REPLY_ACK), more than one connection, and suppressed notifications.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::FrontendReq;

use crate::features;

/// The queue that is served, and how many there are.
const TRANSMIT: usize = 1;
const QUEUES: usize = 2;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// A message's header: request, flags, size of what follows. Flags: version 1, and whether it is a reply.
const HEADER: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
/// Most descriptors that come with a message.
const DESCRIPTORS: usize = 8;

/// What is called after each chain, with their number so far, before the guest is.
type OnServed = Arc<Mutex<dyn FnMut(u32) + Send>>;

/// The process that listens on a socket; it ends when its front end does.
pub struct FakePeer {
    thread: JoinHandle<io::Result<()>>,
}

impl FakePeer {
    /// Listens on `path` for the front end of guest `guest_cid`. `on_served` is called after each chain, with their number so far, before the guest is interrupted.
    ///
    /// # Errors
    /// The host's, when there can be no such socket.
    pub fn listen(path: &Path, guest_cid: u32, on_served: impl FnMut(u32) + Send + 'static) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let on_served: OnServed = Arc::new(Mutex::new(on_served));
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            Connection { stream, guest_cid, memory: Vec::new(), vring: Vring::default(), serving: None, on_served }
                .run()
        });
        Ok(Self { thread })
    }

    /// Waits until the front end has gone.
    ///
    /// # Errors
    /// What went wrong on the connection.
    ///
    /// # Panics
    /// When the thread did.
    pub fn wait(self) -> io::Result<()> {
        self.thread.join().expect("the fake peer panicked")
    }
}

/// A message of the front end.
struct Message {
    request: u32,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A piece of the guest's memory: where the front end has it, and where it is in the file.
struct Region {
    front_end: u64,
    size: u64,
    offset: u64,
    file: Arc<File>,
}

/// A ring's place in a file.
#[derive(Clone)]
struct Place {
    file: Arc<File>,
    offset: u64,
}

impl Place {
    fn read_u16(&self, at: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, self.offset + at)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.offset + at)
    }
}

#[derive(Default)]
struct Vring {
    size: u16,
    available: Option<Place>,
    used: Option<Place>,
    kick: Option<File>,
    call: Option<File>,
}

struct Connection {
    stream: UnixStream,
    guest_cid: u32,
    memory: Vec<Region>,
    /// Of the transmit queue.
    vring: Vring,
    /// What ends the thread that serves it.
    serving: Option<(UnixStream, JoinHandle<io::Result<()>>)>,
    on_served: OnServed,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.get(4 * index..4 * index + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

impl Connection {
    fn run(&mut self) -> io::Result<()> {
        while let Some(message) = self.receive()? {
            self.answer(message)?;
        }
        self.stop()
    }

    /// The next message, or nothing at the connection's end.
    fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut header = [0; HEADER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        self.stream.read_exact(&mut header[received.bytes..])?;
        let mut payload = vec![0; word(&header, 2) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Some(Message { request: word(&header, 0), payload, descriptors }))
    }

    fn reply(&mut self, request: u32, payload: &[u8]) -> io::Result<()> {
        let header = [request, VERSION | REPLY, payload.len() as u32].map(u32::to_le_bytes).concat();
        self.stream.write_all(&[&header, payload].concat())
    }

    fn answer(&mut self, Message { request, payload, descriptors }: Message) -> io::Result<()> {
        let payload = payload.as_slice();
        let is = |expected: FrontendReq| request == expected as u32;
        let mut files = descriptors.into_iter().map(File::from);
        let of_transmit = word(payload, 0) as u8 as usize == TRANSMIT;
        if is(FrontendReq::GET_FEATURES) {
            self.reply(request, &(features::VERSION_1 | PROTOCOL_FEATURES).to_le_bytes())?;
        } else if is(FrontendReq::GET_PROTOCOL_FEATURES) {
            self.reply(request, &VhostUserProtocolFeatures::CONFIG.bits().to_le_bytes())?;
        } else if is(FrontendReq::GET_QUEUE_NUM) {
            self.reply(request, &(QUEUES as u64).to_le_bytes())?;
        } else if is(FrontendReq::GET_CONFIG) {
            let header = payload.get(..HEADER).ok_or_else(|| invalid("a short message"))?;
            self.reply(request, &[header, &u64::from(self.guest_cid).to_le_bytes()].concat())?;
        } else if is(FrontendReq::SET_MEM_TABLE) {
            self.memory = regions(payload, files);
        } else if is(FrontendReq::SET_VRING_NUM) && of_transmit {
            self.vring.size = word(payload, 1) as u16;
        } else if is(FrontendReq::SET_VRING_ADDR) && of_transmit {
            self.vring.used = Some(self.place(long(payload, 16))?);
            self.vring.available = Some(self.place(long(payload, 24))?);
        } else if is(FrontendReq::SET_VRING_KICK) && of_transmit {
            self.vring.kick = files.next();
        } else if is(FrontendReq::SET_VRING_CALL) && of_transmit {
            self.vring.call = files.next();
        } else if is(FrontendReq::SET_VRING_ENABLE) && of_transmit {
            self.start()?;
        } else if is(FrontendReq::GET_VRING_BASE) {
            if of_transmit {
                self.stop()?;
            }
            self.reply(request, &[word(payload, 0).to_le_bytes(), [0; 4]].concat())?;
        }
        Ok(())
    }

    fn place(&self, front_end: u64) -> io::Result<Place> {
        let region = self.memory.iter().find(|r| (r.front_end..r.front_end + r.size).contains(&front_end));
        let region = region.ok_or_else(|| invalid("a ring outside the memory"))?;
        Ok(Place { file: region.file.clone(), offset: region.offset + (front_end - region.front_end) })
    }

    fn start(&mut self) -> io::Result<()> {
        let Vring { size, available, used, kick, call } = std::mem::take(&mut self.vring);
        let (Some(available), Some(used), Some(kick), Some(call)) = (available, used, kick, call) else {
            return Err(invalid("the queue is not complete"));
        };
        let (stop, stopped) = UnixStream::pair()?;
        let on_served = self.on_served.clone();
        let thread = std::thread::spawn(move || serve(size, [&available, &used], [kick, call], &stopped, &on_served));
        self.serving = Some((stop, thread));
        Ok(())
    }

    fn stop(&mut self) -> io::Result<()> {
        let Some((stop, thread)) = self.serving.take() else { return Ok(()) };
        drop(stop);
        thread.join().expect("the queue's thread panicked")
    }
}

/// The regions of a memory table: their number, padding, and for each its guest-physical address, size, address in the front end, and offset in the file.
fn regions(payload: &[u8], files: impl Iterator<Item = File>) -> Vec<Region> {
    let records = payload.get(8..).unwrap_or_default().chunks_exact(32);
    let region = |(record, file): (&[u8], File)| Region {
        size: long(record, 8),
        front_end: long(record, 16),
        offset: long(record, 24),
        file: Arc::new(file),
    };
    records.zip(files).map(region).collect()
}

/// Serves the queue until the other end of `stopped` is dropped.
fn serve(
    size: u16,
    [available, used]: [&Place; 2],
    [mut kick, mut call]: [File; 2],
    stopped: &UnixStream,
    on_served: &Mutex<dyn FnMut(u32) + Send>,
) -> io::Result<()> {
    let (mut index, mut count) = (0u16, 0);
    loop {
        let mut descriptors = [PollFd::new(&kick, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        poll(&mut descriptors, None)?;
        if !descriptors[1].revents().is_empty() {
            return Ok(());
        }
        let mut signals = [0; 8];
        kick.read_exact(&mut signals)?;
        let before = index;
        while index != available.read_u16(2)? {
            let slot = u64::from(index % size);
            let head = available.read_u16(4 + 2 * slot)?;
            used.write(4 + 8 * slot, &u64::from(head).to_le_bytes())?;
            index = index.wrapping_add(1);
            used.write(2, &index.to_le_bytes())?;
            count += 1;
            (on_served.lock().expect("no one panicked"))(count);
        }
        if index != before {
            call.write_all(&1u64.to_le_bytes())?;
        }
    }
}
