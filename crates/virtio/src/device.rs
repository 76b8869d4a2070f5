//! What a virtio device implements, and what the transport hands it.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::{Interrupt, QueueError, VirtQueue};

/// Feature bits that belong to no device (virtio 1.3 section 6); the transport offers them and acts on them.
pub mod features {
    /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`: both sides say how far the other may go before it notifies.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`: not a legacy driver.
    pub const VERSION_1: u64 = 1 << 32;
    /// What the transport offers for every device.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Why a device stopped. The transport logs it and sets DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The driver broke the rules of a queue.
    #[error("queue {queue} is broken")]
    Queue {
        /// Index of the queue.
        queue: u16,
        /// Which rule.
        #[source]
        source: QueueError,
    },
    /// The host could not supply what the device needs.
    #[error("the host failed the device")]
    Host(#[source] std::io::Error),
}

/// What a device works with from DRIVER_OK to its next reset. All of it may move to another thread.
#[derive(Debug)]
pub struct Activation {
    /// The accepted feature bits, the transport's included.
    pub features: u64,
    /// One for each of [`VirtioDevice::queue_sizes`]. Those that the driver did not enable never yield a chain.
    pub queues: Vec<VirtQueue>,
    /// For configuration changes and errors found on another thread; used buffers are signalled by [`VirtQueue::signal`].
    pub interrupt: Interrupt,
}

/// A virtio device behind a transport.
///
/// The transport calls it under its own lock, on the thread of the vCPU that touched a register, or on the event loop's where the backend signals notifications by events.
pub trait VirtioDevice: Send {
    /// The name that logs use.
    fn name(&self) -> &str;

    /// The device id (virtio 1.3 section 5).
    fn device_id(&self) -> u32;

    /// The device's own feature bits, without the transport's.
    fn features(&self) -> u64 {
        0
    }

    /// Which of [`features::TRANSPORT`] are offered for this device: all, unless something outside serves its queues.
    fn transport_features(&self) -> u64 {
        features::TRANSPORT
    }

    /// The largest size of each queue: powers of two up to 32768. Its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Reads configuration space at `offset`; what is not there reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Writes configuration space at `offset`; what is not there ignores it.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Notifications of `queue` signal `event` from now on, in every life of the device: whether the device has whoever serves the queue wait for it. If not, [`VirtioDevice::notify`] is called for them.
    fn takes_notifications(&mut self, queue: u16, event: &Arc<EventFd>) -> bool {
        let _ = (queue, event);
        false
    }

    /// The driver is ready (DRIVER_OK).
    ///
    /// # Errors
    /// [`DeviceError`] when the device cannot start; it then needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;

    /// The driver made chains available on `queue`, one of the device's. Serves them at once or hands that to another thread. Only
    /// called between a successful `activate` and `reset`.
    ///
    /// # Errors
    /// [`DeviceError`] when the device cannot go on until it is reset.
    fn notify(&mut self, queue: u16) -> Result<(), DeviceError>;

    /// The driver reset the device: it forgets its queues. When this returns, no thread of its may touch guest memory any more.
    fn reset(&mut self);
    /// The whole machine was reset: the device, which the driver's reset went before, also forgets what outlives a driver.
    fn power_cycle(&mut self) {}
}
