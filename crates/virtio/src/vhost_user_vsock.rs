//! The socket device with its other side in another process: vhost-user, the front end (virtio 1.3 section 5.10; QEMU's docs/interop/vhost-user.rst).
//!
//! The peer, such as rust-vmm's `vhost-device-vsock`, maps the guest's RAM, serves the receive and the transmit queue itself, and is kicked and calls back by
//! eventfds. Where the processor backend allows it, these are the guest's own: its notification signals the peer's kick, the peer's call interrupts it, and this process sleeps ([`Interrupt::bind`]). What is left here: the handshake, the guest's CID, the interrupt, and what happens when the peer goes away: the device then needs a reset, and
//! never comes back in this run.
//!
//! Deliberately missing: reconnecting, migration, and the event queue, which would only speak of migration. The peer's writes pass by the watch on pages
//! that hold guest code (see the `guest-memory` crate): a guest must not execute a receive buffer in place, which no Linux does.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::EventBinding;
use event_loop::{Handle, Interest, Ready, SourceId};
use thiserror::Error;
use tracing::{debug, error};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vsock::{DEVICE_ID, QUEUE_SIZES};
use crate::{Activation, DeviceError, Interrupt, VirtQueue, VirtioDevice, features};

/// Queues that the peer serves: receive and transmit.
const SERVED: usize = 2;

/// Bits of features that belong to the device type (virtio 1.3 section 2.2).
const DEVICE_FEATURES: u64 = (1 << 24) - 1;

/// How long the peer may take to answer a message. It answers on a vCPU's time.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no vhost-user peer.
#[derive(Debug, Error)]
pub enum VhostUserError {
    /// Nothing listens on the socket.
    #[error("no vhost-user process listens on {path}: start one first, such as vhost-device-vsock")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What listens there is no vhost-user process, or has gone.
    #[error("the vhost-user process on {path} failed to {what}")]
    Handshake {
        /// The socket.
        path: PathBuf,
        /// What it was asked.
        what: &'static str,
        /// The protocol's error.
        #[source]
        source: vhost::Error,
    },
    /// It lacks something.
    #[error("the vhost-user process on {path} does not offer {missing}")]
    Feature {
        /// The socket.
        path: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// It speaks for another guest.
    #[error("the vhost-user process on {path} serves the guest CID {found}, but this guest's is {expected}")]
    Cid {
        /// The socket.
        path: PathBuf,
        /// The CID that it was started with.
        found: u64,
        /// This guest's.
        expected: u32,
    },
    /// The host has no descriptors left, or cannot watch them.
    #[error("cannot watch the vhost-user process")]
    EventLoop(#[from] event_loop::EventLoopError),
    /// The same of a descriptor of our own.
    #[error("cannot make a descriptor for the vhost-user process")]
    Descriptor(#[source] io::Error),
}

/// What is there from DRIVER_OK to the next reset.
struct Running {
    kicks: [Arc<EventFd>; SERVED],
    calls: [Call; SERVED],
}

/// What a queue's call does: it interrupts the driver by itself where there is a binding; the event loop does it for what it leaves there.
struct Call {
    source: SourceId,
    _binding: Option<EventBinding>,
}

struct Peer {
    path: PathBuf,
    gone: AtomicBool,
    /// The running device's.
    interrupt: Mutex<Option<Interrupt>>,
}

/// A virtio-vsock device whose other side is a vhost-user process.
pub struct VhostUserVsock {
    guest_cid: u64,
    frontend: Frontend,
    features: u64,
    /// Whether the guest and the peer may signal each other without this process.
    direct: bool,
    /// What a notification of a queue signals, where it does not come through [`VirtioDevice::notify`].
    notifications: [Option<Arc<EventFd>>; SERVED],
    running: Option<Running>,
    peer: Arc<Peer>,
    watch: SourceId,
    events: Handle,
}

impl VhostUserVsock {
    /// Connects to the process that listens on `path` and asks it whether it serves the guest `guest_cid`. `events` hears of its interrupts, unless they are `direct` and can be, and of its end.
    ///
    /// # Errors
    /// [`VhostUserError`] when there is none, or it is none for this guest.
    pub fn connect(path: &Path, guest_cid: u32, direct: bool, events: Handle) -> Result<Self, VhostUserError> {
        let stream =
            UnixStream::connect(path).map_err(|source| VhostUserError::Connect { path: path.to_owned(), source })?;
        let watched = stream.try_clone().map_err(VhostUserError::Descriptor)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(VhostUserError::Descriptor)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(VhostUserError::Descriptor)?;
        let mut frontend = Frontend::from_stream(stream, SERVED as u64);
        let failed = |what| move |source| VhostUserError::Handshake { path: path.to_owned(), what, source };
        let offered = frontend.get_features().map_err(failed("tell its features"))?;
        let lacks = |missing| VhostUserError::Feature { path: path.to_owned(), missing };
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & protocol == 0 {
            return Err(lacks("protocol features"));
        }
        if offered & features::VERSION_1 == 0 {
            return Err(lacks("VIRTIO_F_VERSION_1"));
        }
        frontend.set_owner().map_err(failed("accept an owner"))?;
        let spoken = frontend.get_protocol_features().map_err(failed("tell its protocol features"))?;
        // With REPLY_ACK a refusal is an answer, not a silence.
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(spoken & wanted).map_err(failed("accept protocol features"))?;
        if spoken.contains(VhostUserProtocolFeatures::CONFIG) {
            let (_, config) = frontend
                .get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])
                .map_err(failed("tell the guest's CID"))?;
            let found = config.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if found != u64::from(guest_cid) {
                return Err(VhostUserError::Cid { path: path.to_owned(), found, expected: guest_cid });
            }
        }
        let peer = Arc::new(Peer { path: path.to_owned(), gone: AtomicBool::new(false), interrupt: Mutex::default() });
        let (watching, loop_) = (peer.clone(), events.clone());
        let own = Arc::new(Mutex::new(None));
        let source = own.clone();
        // Nothing comes unasked, so a socket that is readable outside an exchange is at its end.
        let watch = events.add_source(Arc::new(watched), Interest::READ, move |ready: Ready| {
            if ready.hangup {
                watching.is_gone("it has ended");
                if let Some(source) = *source.lock().unwrap_or_else(PoisonError::into_inner) {
                    loop_.remove_source(source);
                }
            }
        })?;
        *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        debug!(?path, features = offered, "vhost-user peer connected");
        let features = offered & (DEVICE_FEATURES | features::TRANSPORT);
        let (guest_cid, notifications) = (guest_cid.into(), [const { None }; SERVED]);
        Ok(Self { guest_cid, frontend, features, direct, notifications, running: None, peer, watch, events })
    }

    fn start(&mut self, activation: &Activation) -> Result<Running, StartError> {
        let Self { frontend, events, direct, notifications, .. } = self;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        frontend.set_features(activation.features & self.features | protocol)?;
        let memory = activation.queues.first().map(VirtQueue::memory).ok_or(StartError::Memory)?;
        let regions: Result<Vec<_>, _> = memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        frontend.set_mem_table(&regions?)?;
        let mut start = |index: usize| -> Result<(Arc<EventFd>, Call), StartError> {
            let queue = activation.queues.get(index).ok_or(StartError::Memory)?;
            let kick = match notifications.get(index).cloned().flatten() {
                Some(notification) => notification,
                None => Arc::new(EventFd::new(EFD_NONBLOCK)?),
            };
            let call = Arc::new(EventFd::new(EFD_NONBLOCK)?);
            frontend.set_vring_num(index, queue.size())?;
            frontend.set_vring_addr(index, &layout(queue)?)?;
            frontend.set_vring_base(index, 0)?;
            frontend.set_vring_call(index, &call)?;
            frontend.set_vring_kick(index, &kick)?;
            let binding = if *direct { activation.interrupt.bind(&call) } else { None };
            debug!(
                queue = index,
                notified = notifications[index].is_some(),
                bound = binding.is_some(),
                "vring started"
            );
            let (interrupt, called) = (activation.interrupt.clone(), call.clone());
            let source = events.add_source(call, Interest::READ, move |_: Ready| {
                // Only this callback reads it, so there is something, or nothing is lost.
                let _ = called.read();
                interrupt.used_buffer();
            })?;
            frontend.set_vring_enable(index, true)?;
            Ok((kick, Call { source, _binding: binding }))
        };
        let (receive, transmit) = (start(0)?, start(1)?);
        // Buffers may have been there before the driver was ready.
        receive.0.write(1)?;
        transmit.0.write(1)?;
        Ok(Running { kicks: [receive.0, transmit.0], calls: [receive.1, transmit.1] })
    }
}

/// Why the peer does not serve the queues.
#[derive(Debug, Error)]
enum StartError {
    #[error("the vhost-user process refused a message")]
    Protocol(#[from] vhost::Error),
    #[error("guest RAM is not shared with other processes")]
    Memory,
    #[error(transparent)]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Watch(#[from] event_loop::EventLoopError),
}

/// Where the rings are, by our own addresses, as the protocol has it.
fn layout(queue: &VirtQueue) -> Result<VringConfigData, StartError> {
    let [descriptors, driver, device] = queue.ring_addresses();
    let ours = |address: u64| match queue.memory().get_host_address(GuestAddress(address)) {
        Ok(pointer) => Ok(pointer as u64),
        Err(_) => Err(StartError::Memory),
    };
    Ok(VringConfigData {
        queue_max_size: queue.size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: ours(descriptors)?,
        used_ring_addr: ours(device)?,
        avail_ring_addr: ours(driver)?,
        log_addr: None,
    })
}

impl Peer {
    /// Says once that nothing more comes from the peer.
    fn is_gone(&self, why: &str) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            error!("the guest has no vsock any more: the vhost-user process on {} is gone: {why}", self.path.display());
        }
        if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt.needs_reset();
        }
    }

    fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

impl VirtioDevice for VhostUserVsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.features & DEVICE_FEATURES
    }

    fn transport_features(&self) -> u64 {
        self.features & features::TRANSPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::vsock::read_cid(self.guest_cid, offset, data);
    }

    fn takes_notifications(&mut self, queue: u16, event: &Arc<EventFd>) -> bool {
        match self.notifications.get_mut(usize::from(queue)).filter(|_| self.direct) {
            Some(notification) => {
                *notification = Some(event.clone());
                true
            }
            None => false,
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.peer.set_interrupt(Some(activation.interrupt.clone()));
        if self.peer.gone.load(Ordering::SeqCst) {
            return Err(DeviceError::Host(io::ErrorKind::NotConnected.into()));
        }
        let running = self.start(&activation).map_err(|error| {
            self.peer.is_gone(&error.to_string());
            DeviceError::Host(io::Error::other(error))
        })?;
        self.running = Some(running);
        Ok(())
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        let kick = self.running.as_ref().and_then(|running| running.kicks.get(usize::from(queue)));
        // A counter that is full is one that the peer has yet to read.
        match kick.map_or(Ok(()), |kick| kick.write(1)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(DeviceError::Host(error)),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.peer.set_interrupt(None);
        let Some(Running { kicks: _, calls }) = self.running.take() else { return };
        for (index, call) in calls.into_iter().enumerate() {
            if !self.peer.gone.load(Ordering::SeqCst)
                && let Err(error) = self.frontend.get_vring_base(index)
            {
                // It may go on writing to the guest's memory, and that cannot be taken back.
                self.peer.is_gone(&error.to_string());
            }
            self.events.remove_source(call.source);
        }
    }
}

impl Drop for VhostUserVsock {
    fn drop(&mut self) {
        self.reset();
        self.events.remove_source(self.watch);
    }
}

#[cfg(test)]
#[path = "vhost_user_tests.rs"]
mod tests;
