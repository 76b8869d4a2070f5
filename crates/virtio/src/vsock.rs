//! The socket device, virtio 1.3 section 5.10: device id 19, three queues, the guest's CID in configuration space.
//!
//! The device only carries packets between the queues and [`vsock::Host`]. A notification is served at once, on the vCPU's thread, and what is left after a turn
//! on the event loop's; waking another thread for each packet would cost more than the packet. A packet leaves the transmit queue only while the host's side
//! has room for its answer, so neither side can make the other hold more than it should.
//!
//! A driver only frees memory when it hears that its packets were taken, so it hears of that with the next packet for it, after some packets, or soon
//! ([`TOLD_WITHIN_NS`]): an interrupt for each packet would cost a guest more than the packet.
//!
//! Deliberately missing: SEQPACKET, which is not offered, and events: a machine of ours is never moved to another host.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::vsock::packet::{HEADER_LEN, Header};
use ::vsock::{Host, HostGuard, RECEIVE_BUFFER};
use tracing::warn;

use crate::{Activation, Chain, DeviceError, Interrupt, QueueError, VirtQueue, VirtioDevice};

/// Device id of a socket device.
pub const DEVICE_ID: u32 = 19;

/// `VIRTIO_VSOCK_F_STREAM`: stream sockets.
const F_STREAM: u64 = 1 << 0;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Receive, transmit and event queue.
pub(crate) const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Packets of each queue that are served before others on the event loop get their turn.
const PACKETS_A_TURN: usize = 128;

/// Most bytes of payload that are put into one buffer of the guest's.
const MAX_ROOM: u64 = 64 << 10;

/// Packets of the guest's that may have been taken without its knowing. A quarter of the queue: it must never have to wait for this.
const UNTOLD: usize = 64;

/// How long it may take until the guest hears that a packet was taken, in nanoseconds.
pub const TOLD_WITHIN_NS: u64 = 1_000_000;

/// Broken queues that are logged before a device goes quiet.
const LOGGED_FAILURES: u32 = 16;

/// Runs a task soon, on the event loop's thread.
pub type RunSoon = Box<dyn Fn(Box<dyn FnOnce() + Send>) + Send + Sync>;

/// What there is from DRIVER_OK to the next reset.
struct Active {
    receive: VirtQueue,
    transmit: VirtQueue,
    /// Taken from the receive queue for a packet that was gone by then.
    spare: Option<Chain>,
    /// Packets of the guest's that it has not heard of being taken.
    untold: usize,
    /// The packet under way, of either direction.
    packet: Vec<u8>,
    interrupt: Interrupt,
}

struct Shared {
    /// Locked before the host's side.
    active: Mutex<Option<Active>>,
    host: Host,
    run_soon: RunSoon,
    /// A pump is under way to the event loop.
    scheduled: AtomicBool,
    failures: AtomicU32,
}

/// A virtio-vsock device.
pub struct VsockDevice {
    guest_cid: u64,
    shared: Arc<Shared>,
}

/// Whether a turn left something to do.
type Unfinished = bool;

impl Active {
    /// Serves both queues for a turn.
    fn turn(&mut self, host: &mut HostGuard<'_>) -> Result<Unfinished, DeviceError> {
        let broken = |queue| move |source| DeviceError::Queue { queue, source };
        self.transmit.begin();
        self.receive.begin();
        let more_from_guest = self.serve_transmit(host).map_err(broken(TRANSMIT))?;
        host.flush();
        let (told, more_to_guest) = self.serve_receive(host).map_err(broken(RECEIVE))?;
        host.flush();
        let overdue = host.take_due();
        if self.untold > 0 {
            if told || overdue || self.untold >= UNTOLD {
                self.transmit.signal().map_err(broken(TRANSMIT))?;
                self.untold = 0;
            } else {
                host.pump_within(TOLD_WITHIN_NS);
            }
        }
        // While answers wait for the guest its packets wait too; its next buffer brings us back.
        Ok((more_from_guest && host.can_receive()) || more_to_guest)
    }

    /// Takes packets of the guest's.
    fn serve_transmit(&mut self, host: &mut HostGuard<'_>) -> Result<Unfinished, QueueError> {
        let mut count = 0;
        let mut drained = false;
        while count < PACKETS_A_TURN && host.can_receive() {
            let Some(chain) = self.transmit.pop()? else {
                drained = true;
                break;
            };
            let len = self.transmit.read_into(&chain, HEADER_LEN + RECEIVE_BUFFER, &mut self.packet)?;
            let packet = self.packet.get(..len).unwrap_or_default();
            // What is no packet has nobody to answer.
            if let Some(header) = Header::parse(packet) {
                host.receive(&header, packet.get(HEADER_LEN..).unwrap_or_default());
            }
            self.transmit.push(chain, 0)?;
            count += 1;
        }
        self.untold += count;
        Ok(!drained)
    }

    /// Gives the guest packets; the first flag says whether it got any.
    fn serve_receive(&mut self, host: &mut HostGuard<'_>) -> Result<(bool, Unfinished), QueueError> {
        let mut count = 0;
        while count < PACKETS_A_TURN && host.has_packets() {
            let chain = match self.spare.take() {
                Some(chain) => chain,
                None => match self.receive.pop()? {
                    Some(chain) => chain,
                    None => break,
                },
            };
            let room = chain.writable_len().saturating_sub(HEADER_LEN as u64).min(MAX_ROOM);
            self.packet.clear();
            // A buffer without room for payload could never carry data on.
            if room > 0 && !host.transmit(room as usize, &mut self.packet) {
                self.spare = Some(chain);
                break;
            }
            let written = self.receive.write(&chain, &self.packet)?;
            self.receive.push(chain, written)?;
            count += 1;
        }
        if count > 0 {
            self.receive.signal()?;
        }
        Ok((count > 0, count == PACKETS_A_TURN))
    }
}

impl Shared {
    fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the event loop serve the queues.
    fn schedule(self: &Arc<Self>) {
        if !self.scheduled.swap(true, Ordering::SeqCst) {
            let shared = Arc::downgrade(self);
            (self.run_soon)(Box::new(move || {
                if let Some(shared) = shared.upgrade() {
                    shared.pump();
                }
            }));
        }
    }

    /// Serves the queues for a turn, on the event loop's thread.
    fn pump(self: &Arc<Self>) {
        // Cleared first: a notification from now on may be about what this turn has looked at already.
        self.scheduled.store(false, Ordering::SeqCst);
        self.turn(self.active());
    }

    /// Serves the queues for a turn, on a vCPU's thread, unless another thread is at it, which may have looked at them already.
    fn pump_now(self: &Arc<Self>) {
        match self.active.try_lock() {
            Ok(slot) => self.turn(slot),
            Err(_) => self.schedule(),
        }
    }

    fn turn(self: &Arc<Self>, mut slot: MutexGuard<'_, Option<Active>>) {
        let Some(active) = &mut *slot else { return };
        // The host's side is locked for the turn alone: what follows a broken queue locks it again.
        let outcome = active.turn(&mut self.host.lock());
        match outcome {
            Ok(false) => {}
            Ok(true) => self.schedule(),
            Err(error) => {
                if self.failures.fetch_add(1, Ordering::Relaxed) < LOGGED_FAILURES {
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                    warn!(device = "virtio-vsock", "needs a reset: {error}{cause}");
                }
                active.interrupt.needs_reset();
                *slot = None;
                self.host.lock().go_offline();
            }
        }
    }
}

impl VsockDevice {
    /// A device for the guest `guest_cid` with `host` behind it. `run_soon` hands tasks to the event loop that `host` runs on.
    pub fn new(guest_cid: u32, host: Host, run_soon: RunSoon) -> Self {
        let shared = Arc::new(Shared {
            active: Mutex::default(),
            host: host.clone(),
            run_soon,
            scheduled: AtomicBool::new(false),
            failures: AtomicU32::new(0),
        });
        let pumped = Arc::downgrade(&shared);
        host.on_packets(move || {
            if let Some(shared) = pumped.upgrade() {
                shared.pump();
            }
        });
        Self { guest_cid: guest_cid.into(), shared }
    }
}

/// Configuration space, section 5.10.4: the guest's CID.
pub(crate) fn read_cid(guest_cid: u64, offset: u64, data: &mut [u8]) {
    let config = guest_cid.to_le_bytes();
    for (at, byte) in (offset..).zip(data) {
        *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
    }
}

impl VirtioDevice for VsockDevice {
    fn name(&self) -> &str {
        "vsock"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_cid(self.guest_cid, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut queues = activation.queues.into_iter();
        if let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) {
            let active = Active {
                receive,
                transmit,
                spare: None,
                untold: 0,
                packet: Vec::new(),
                interrupt: activation.interrupt,
            };
            *self.shared.active() = Some(active);
            self.shared.host.lock().go_online();
            // Buffers may have been there before the driver was ready.
            self.shared.schedule();
        }
        Ok(())
    }

    fn notify(&mut self, _: u16) -> Result<(), DeviceError> {
        self.shared.pump_now();
        Ok(())
    }

    fn reset(&mut self) {
        *self.shared.active() = None;
        self.shared.host.lock().go_offline();
    }

    fn power_cycle(&mut self) {
        self.shared.host.lock().power_cycle();
    }
}

#[cfg(test)]
#[path = "vsock_tests.rs"]
mod tests;
