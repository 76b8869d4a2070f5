//! The virtio-mmio transport, its queues, and one module a device.
//!
//! Modelled is virtio 1.3 with the MMIO transport of section 4.2, register layout version 2, and split queues (2.7) with indirect
//! descriptors and used-buffer event indices. Devices here: [`rng`] (5.4), [`vsock`] (5.10), the same with
//! another process behind it ([`vhost_user_vsock`]), and [`nsm`] (device id 33).
//!
//! [`MmioTransport`] is what the bus sees; it owns the registers and a [`VirtioDevice`]. When the driver is ready the device is
//! given its [`VirtQueue`]s and an [`Interrupt`], all of which it may move to another thread: [`VirtioDevice::notify`] may serve the
//! queue at once, on the vCPU's thread, or only wake that other thread.
//!
//! Devices write into guest memory through `vm-memory` alone, whose bitmap tells processor backends about code that was overwritten
//! (see the `guest-memory` crate).
//!
//! A driver that breaks the rules puts its own device into `DEVICE_NEEDS_RESET` and nothing else; see [`QueueError`].
//!
//! Deliberately missing: the legacy layout (version 1), packed queues, `VIRTIO_F_RING_RESET`, shared-memory regions and notification
//! data.

#![forbid(unsafe_code)]

mod device;
#[cfg(any(test, feature = "fake-peer"))]
pub mod fake_peer;
mod interrupt;
mod mmio;
pub mod nsm;
mod queue;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vhost_user_vsock;
pub mod vsock;

pub use device::{Activation, DeviceError, VirtioDevice, features};
use guest_memory::GuestMemory;
pub use interrupt::Interrupt;
pub use mmio::{MMIO_SIZE, MmioTransport, QUEUE_NOTIFY};
pub use queue::{Chain, QueueError, VirtQueue};
