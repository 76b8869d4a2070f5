//! Device access to guest memory, in one place so that writes can be observed.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::queue::QueueError;

/// The guest's RAM as devices see it.
pub type GuestRam = GuestMemoryMmap<()>;

type WriteHook = Arc<dyn Fn(GuestAddress, usize) + Send + Sync>;

/// A device's way into guest memory.
///
/// Processor backends that cache what they decoded from memory have to learn of writes that no vCPU made, so whatever a device
/// writes, rings included, goes through here, and the hook is called after each write with the guest-physical address and the
/// length in bytes.
#[derive(Clone)]
pub struct Dma {
    memory: Arc<GuestRam>,
    hook: Option<WriteHook>,
}

impl Dma {
    /// Access to `memory` that nobody observes.
    pub fn new(memory: Arc<GuestRam>) -> Self {
        Self { memory, hook: None }
    }

    /// Calls `hook` after every write with where it began and how many bytes it had. The hook runs under the writing device's lock.
    #[must_use]
    pub fn with_write_hook(mut self, hook: impl Fn(GuestAddress, usize) + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// The memory, for reading.
    pub(crate) fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// Whether all of `address .. address + len` is RAM. An empty range is, wherever it points.
    pub(crate) fn is_ram(&self, address: GuestAddress, len: u32) -> bool {
        len == 0 || self.memory.check_range(address, len as usize, Permissions::ReadWrite)
    }

    /// Reads `data.len()` bytes at `address`.
    ///
    /// # Errors
    /// [`QueueError::Memory`] where that is not RAM.
    pub(crate) fn read(&self, address: GuestAddress, data: &mut [u8]) -> Result<(), QueueError> {
        self.memory.read_slice(data, address).map_err(|_| QueueError::Memory { address: address.0, len: data.len() })
    }

    /// Writes `data` at `address`.
    ///
    /// # Errors
    /// [`QueueError::Memory`] where that is not RAM; some bytes may have been written.
    pub(crate) fn write(&self, address: GuestAddress, data: &[u8]) -> Result<(), QueueError> {
        let result = self.memory.write_slice(data, address);
        self.wrote(address, data.len());
        result.map_err(|_| QueueError::Memory { address: address.0, len: data.len() })
    }

    /// Puts the chain that began at descriptor `head` on `queue`'s used ring, with `len` bytes written to it.
    pub(crate) fn add_used(&self, queue: &mut Queue, head: u16, len: u32) -> Result<(), QueueError> {
        let slot = u64::from(queue.next_used() & queue.size().wrapping_sub(1));
        let result = queue.add_used(self.memory(), head, len).map_err(QueueError::Ring);
        // Element `slot` and the index, virtio 1.3 section 2.7.8.
        self.wrote(GuestAddress(queue.used_ring().saturating_add(4 + 8 * slot)), 8);
        self.wrote(GuestAddress(queue.used_ring().saturating_add(2)), 2);
        result
    }

    /// Asks the driver to notify about the next chain it makes available; true if one came while we asked.
    pub(crate) fn enable_notification(&self, queue: &mut Queue) -> Result<bool, QueueError> {
        let result = queue.enable_notification(self.memory()).map_err(QueueError::Ring);
        let (offset, len) = if queue.event_idx_enabled() { (4 + 8 * u64::from(queue.size()), 2) } else { (0, 2) };
        self.wrote(GuestAddress(queue.used_ring().saturating_add(offset)), len);
        result
    }

    fn wrote(&self, address: GuestAddress, len: usize) {
        if let Some(hook) = &self.hook {
            hook(address, len);
        }
    }
}

impl std::fmt::Debug for Dma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dma").field("hooked", &self.hook.is_some()).finish_non_exhaustive()
    }
}
