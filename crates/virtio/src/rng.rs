//! The entropy device, virtio 1.3 section 5.4: device id 4, one queue of writable buffers that come back full of random bytes.

use std::io;

use crate::{Activation, DeviceError, QueueError, VirtQueue, VirtioDevice};

/// Device id of an entropy device.
pub const DEVICE_ID: u32 = 4;

/// How many bytes one buffer is given at most, so that a buffer as large as the guest's RAM costs neither that memory again nor
/// the vCPU's time. Linux asks for 64 bytes at a time; section 5.4.6 lets a device give fewer bytes than the buffer has.
pub const MAX_BYTES: u64 = 4096;

/// Where random bytes come from: fills the whole slice or fails.
pub type Entropy = Box<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>;

/// A virtio-rng device.
pub struct Rng {
    entropy: Entropy,
    queue: Option<VirtQueue>,
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Rng {
    /// A device fed by the host's random number generator.
    pub fn new() -> Self {
        Self::with_entropy(Box::new(|bytes| getrandom::fill(bytes).map_err(io::Error::other)))
    }

    /// A device fed by `entropy`.
    pub fn with_entropy(entropy: Entropy) -> Self {
        Self { entropy, queue: None }
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        // As QEMU's.
        &[8]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.queue = activation.queues.into_iter().next();
        Ok(())
    }

    fn notify(&mut self, _: u16) -> Result<(), DeviceError> {
        let Self { entropy, queue } = self;
        let Some(queue) = queue else { return Ok(()) };
        let broken = |source: QueueError| DeviceError::Queue { queue: 0, source };
        let mut random = [0; MAX_BYTES as usize];
        let mut used = false;
        queue.begin();
        while let Some(chain) = queue.pop().map_err(broken)? {
            let wanted = chain.writable_len().min(MAX_BYTES) as usize;
            let random = random.get_mut(..wanted).unwrap_or_default();
            // Predictable bytes would be worse than none.
            entropy(random).map_err(DeviceError::Host)?;
            let written = queue.write(&chain, random).map_err(broken)?;
            queue.push(chain, written).map_err(broken)?;
            used = true;
        }
        if used { queue.signal().map_err(broken) } else { Ok(()) }
    }

    fn reset(&mut self) {
        self.queue = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Driver;

    fn driver() -> Driver {
        let mut next = 0u8;
        let counting = move |bytes: &mut [u8]| {
            for byte in bytes {
                next = next.wrapping_add(1);
                *byte = next;
            }
            Ok(())
        };
        let mut driver = Driver::new(Box::new(Rng::with_entropy(Box::new(counting))));
        driver.start();
        driver
    }

    #[test]
    fn a_buffer_comes_back_full_of_random_bytes() {
        let mut driver = driver();
        let buffer = driver.writable(&[5]);
        driver.kick();
        assert_eq!(driver.take_used(), [(buffer, 5)]);
        assert_eq!(driver.memory_at(buffer, 0, 6), [1, 2, 3, 4, 5, 0]);
    }

    #[test]
    fn several_buffers_of_a_chain_are_filled_in_order() {
        let mut driver = driver();
        let head = driver.writable(&[2, 3]);
        driver.kick();
        assert_eq!(driver.take_used(), [(head, 5)]);
        assert_eq!(driver.memory_at(head, 0, 3), [1, 2, 0]);
        assert_eq!(driver.memory_at(head, 1, 4), [3, 4, 5, 0]);
    }

    #[test]
    fn a_huge_buffer_is_filled_in_part() {
        let mut driver = driver();
        let head = driver.writable(&[0x8000]);
        driver.kick();
        assert_eq!(driver.take_used(), [(head, MAX_BYTES as u32)]);
    }

    #[test]
    fn a_buffer_that_cannot_be_written_comes_back_empty() {
        let mut driver = driver();
        let head = driver.readable(&[b"abc"]);
        driver.kick();
        assert_eq!(driver.take_used(), [(head, 0)]);
    }

    #[test]
    fn failing_entropy_needs_a_reset_instead_of_giving_zeros() {
        let mut driver = Driver::new(Box::new(Rng::with_entropy(Box::new(|_| Err(io::Error::other("no entropy"))))));
        driver.start();
        let _ = driver.writable(&[8]);
        driver.kick();
        assert_eq!(driver.take_used(), []);
        assert!(driver.needs_reset());
    }

    #[test]
    fn the_hosts_entropy_differs_from_call_to_call() {
        let mut driver = Driver::new(Box::new(Rng::new()));
        driver.start();
        let (a, b) = (driver.writable(&[32]), driver.writable(&[32]));
        driver.kick();
        assert_eq!(driver.take_used(), [(a, 32), (b, 32)]);
        assert_ne!(driver.memory_at(a, 0, 32), driver.memory_at(b, 0, 32));
    }
}
